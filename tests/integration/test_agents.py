"""Coding agents as they come from npm and PyPI, run by `heliproxy run` against a fake of their providers.

They are the oracles: each prints what it used, Claude Code and opencode in dollars too, and our rows must say the
same. `scripts/install-test-clients` installs them; an agent that is not there is skipped.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from integration.agents.fake_llm import Call, FakeLlm

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("HELIPROXY_TEST_CACHE") or Path.home() / ".cache" / "heliproxy-tests") / "agents"
TIMEOUT = 240
"""Seconds for one agent; alone on an idle machine each needs 1 to 6."""
PROVIDERS = ("api.openai.com", "api.anthropic.com", "generativelanguage.googleapis.com", "chatgpt.com")
OTHERS = (
    "ab.chatgpt.com",
    "api.github.com",
    "github.com",
    "models.opencode.ai",
    "play.googleapis.com",
    "raw.githubusercontent.com",
)
"""Where most agents send telemetry and look for news: here, nowhere."""


@dataclass(frozen=True)
class Agent:
    """How one agent is run; `{here}` in an argument is the folder it runs in."""

    program: Path
    arguments: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One agent's run: what it printed, what the upstream saw, what we logged."""

    here: Path
    status: int
    stdout: str
    stderr: str
    calls: list[Call]
    others: list[str]
    rows: list[dict[str, Any]]

    @property
    def lines(self) -> list[Any]:
        """What it printed, as JSON lines; anything else is left out."""
        return [json.loads(line) for line in self.stdout.splitlines() if line.startswith("{")]

    def total(self, column: str) -> Any:
        return sum(row[column] or 0 for row in self.rows)


def _platform_package(name: str) -> str:
    """npm's name for the build of a package for this machine."""
    machine = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    return f"{name}-{sys.platform}-{machine}"


_MODULES = CACHE / "node_modules"
_BIN = _MODULES / ".bin"
_CLAUDE = _MODULES / _platform_package("@anthropic-ai/claude-code") / "claude"
_OPENCODE = _MODULES / _platform_package("opencode") / "bin" / "opencode"
_COPILOT = ("-p", "say hello", "--usage-output-file", "{here}/usage.json")
_COPILOT_ENV = {"COPILOT_OFFLINE": "true", "COPILOT_PROVIDER_API_KEY": "sk-fake"}
_COPILOT_OPENAI = {"COPILOT_PROVIDER_BASE_URL": "https://api.openai.com/v1", "COPILOT_MODEL": "gpt-4.1"}
_CODEX = ("exec", "--skip-git-repo-check", "--json")
_CODEX_HTTP = (
    'model_providers.hel={name="hel",base_url="https://api.openai.com/v1",env_key="MYKEY",wire_api="responses",'
    'http_headers={"Helicone-Auth"="Bearer x","Helicone-Property-App"="codex"}}'
)
AGENTS = {
    "claude": Agent(
        _CLAUDE,
        ("-p", "say hello", "--output-format", "json"),
        {
            "ANTHROPIC_API_KEY": "sk-ant-fake",
            "ANTHROPIC_CUSTOM_HEADERS": "Helicone-Property-App: demo\nHelicone-User-Id: ada",
        },
    ),
    "codex": Agent(_BIN / "codex", (*_CODEX, "say hello"), {"CODEX_API_KEY": "sk-fake"}),
    "codex-http": Agent(
        _BIN / "codex",
        (*_CODEX, "-c", 'model_provider="hel"', "-c", _CODEX_HTTP, "say hello"),
        {"MYKEY": "sk-fake"},
    ),
    "gemini": Agent(
        _BIN / "gemini",
        ("-p", "say hello", "--output-format", "json", "-m", "gemini-2.5-flash"),
        {
            "GEMINI_API_KEY": "fake",
            "GEMINI_CLI_TRUST_WORKSPACE": "true",
            "GEMINI_CLI_CUSTOM_HEADERS": "Helicone-Property-App: gem",
        },
    ),
    "copilot": Agent(
        _BIN / "copilot",
        _COPILOT,
        _COPILOT_ENV | _COPILOT_OPENAI | {"COPILOT_PROVIDER_HEADERS": "Helicone-Property-App: copilot"},
    ),
    "copilot-websocket": Agent(
        _BIN / "copilot",
        _COPILOT,
        _COPILOT_ENV
        | _COPILOT_OPENAI
        | {"COPILOT_PROVIDER_WIRE_API": "responses", "COPILOT_PROVIDER_TRANSPORT": "websockets"},
    ),
    "copilot-anthropic": Agent(
        _BIN / "copilot",
        _COPILOT,
        _COPILOT_ENV
        | {
            "COPILOT_PROVIDER_TYPE": "anthropic",
            "COPILOT_PROVIDER_BASE_URL": "https://api.anthropic.com",
            "COPILOT_MODEL": "claude-sonnet-4.5",
        },
    ),
    "opencode": Agent(
        _OPENCODE,
        ("run", "--format", "json", "-m", "anthropic/claude-haiku-4-5", "say hello"),
        {"ANTHROPIC_API_KEY": "sk-ant-fake"},
    ),
    "aider": Agent(
        CACHE / "aider" / "bin" / "aider",
        (
            *("--model", "openai/gpt-4o", "--message", "hi", "--yes-always", "--no-check-update"),
            *("--no-show-model-warnings", "--no-show-release-notes", "--no-git", "--no-analytics"),
        ),
        {"OPENAI_API_KEY": "sk-fake", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
    ),
}


def run_agent(agent: Agent, here: Path) -> Run:
    """Run an agent through our proxy in a clean environment with a home of its own."""
    home, user, work = here / "heliproxy", here / "user", here / "work"
    user.mkdir()
    work.mkdir()
    env = {"PATH": os.environ["PATH"], "HOME": str(user), "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT / "addon")}
    with FakeLlm() as up:
        command = [sys.executable, "-m", "heliproxy", "run", "--home", str(home)]
        for host in PROVIDERS + OTHERS:
            command += ["--upstream", f"{host}={up.url}"]
        command += ["--", str(agent.program), *(a.replace("{here}", str(here)) for a in agent.arguments)]
        done = subprocess.run(
            command,
            env=env | agent.env,
            cwd=work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    conn = sqlite3.connect(home / "heliproxy.db")
    conn.row_factory = sqlite3.Row
    try:
        rows = [dict(row) for row in conn.execute("SELECT * FROM requests ORDER BY created_at, rowid")]
        for row in rows:
            found = conn.execute("SELECT key, value FROM properties WHERE request_id = ?", (row["id"],))
            row["properties"] = dict(found.fetchall())
    finally:
        conn.close()
    return Run(here, done.returncode, done.stdout, done.stderr, up.calls, up.others, rows)


@pytest.fixture(scope="module")
def started(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Future[Run]]]:
    """The runs of all agents that tests were chosen for, a few at a time: most of each run is waiting."""
    chosen = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    wanted = [call.params["run"] for call in chosen if call is not None]
    runs: dict[str, Future[Run]] = {}
    with ThreadPoolExecutor(3) as pool:
        for name in wanted:
            if AGENTS[name].program.exists():
                runs[name] = pool.submit(run_agent, AGENTS[name], tmp_path_factory.mktemp(name))
        yield runs.__getitem__
        pool.shutdown(cancel_futures=True)


@pytest.fixture
def run(request: pytest.FixtureRequest, started: Callable[[str], Future[Run]]) -> Run:
    """The finished run of the test's agent, with what holds for every agent checked."""
    name = request.param
    program = AGENTS[name].program
    if not program.exists():
        pytest.skip(f"{program.name} is not installed: scripts/install-test-clients")
    if program.is_relative_to(_BIN) and shutil.which("node") is None:
        pytest.skip(f"{program.name} needs node")
    found = started(name).result()
    assert found.status == 0, found.stderr
    assert found.calls, found.stderr
    check_rows(found)
    return found


def check_rows(run: Run) -> None:
    """One row a model call, none for anything else, each with the usage its answer reported."""
    rows = {int(re.findall(r"\d+$", row["response_id"])[0]): row for row in run.rows}
    assert len(run.rows) == len(run.calls)
    for call in run.calls:
        row = rows[call.number]
        assert (row["path"], row["source"] == "websocket") == (call.path, call.transport == "websocket")
        assert (row["status"], row["error"], row["usage_source"]) == (200, None, "provider")
        assert (row["parse_error"], row["truncated"], row["lower_bound"]) == (None, 0, 0)
        assert json.loads(row["usage_json"]) == call.usage
        assert row["cost_usd"] > 0
        assert 0 < row["ttft_ms"] <= row["latency_ms"]
        assert not [name for name in call.headers if name.startswith("helicone-")]


@pytest.mark.parametrize("run", ["claude"], indirect=True)
def test_claude_code_prints_our_tokens_and_dollars(run: Run) -> None:
    printed = json.loads(run.stdout)
    usage = printed["usage"]
    cached, written = usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]
    assert run.total("input_tokens") == usage["input_tokens"] + cached + written
    assert run.total("cache_read_tokens") == cached > 0
    assert run.total("cache_write_tokens") == written == 1000
    assert run.total("output_tokens") == usage["output_tokens"]
    assert run.total("cost_usd") == pytest.approx(printed["total_cost_usd"], rel=0, abs=1e-9)
    assert {row["session_id"] for row in run.rows} == {printed["session_id"]}
    assert {(row["user_id"], row["properties"]["app"]) for row in run.rows} == {("ada", "demo")}
    assert any("/api/event_logging/" in other for other in run.others)


def check_codex(run: Run) -> None:
    (usage,) = [line["usage"] for line in run.lines if line["type"] == "turn.completed"]
    (thread,) = [line["thread_id"] for line in run.lines if line["type"] == "thread.started"]
    assert run.total("input_tokens") == usage["input_tokens"]
    assert run.total("cache_read_tokens") == usage["cached_input_tokens"] > 0
    assert run.total("output_tokens") == usage["output_tokens"]
    assert run.total("reasoning_tokens") == usage["reasoning_output_tokens"] == 30
    assert {row["session_id"] for row in run.rows} == {thread}


@pytest.mark.parametrize("run", ["codex"], indirect=True)
def test_codex_prints_our_tokens_over_its_websocket(run: Run) -> None:
    check_codex(run)
    assert [row["source"] for row in run.rows] == ["websocket"]


@pytest.mark.parametrize("run", ["codex-http"], indirect=True)
def test_codex_prints_our_tokens_although_it_resets_the_stream(run: Run) -> None:
    check_codex(run)
    assert [(row["method"], row["properties"]["app"]) for row in run.rows] == [("POST", "codex")]


@pytest.mark.parametrize("run", ["gemini"], indirect=True)
def test_gemini_cli_prints_our_tokens(run: Run) -> None:
    (stats,) = json.loads(run.stdout)["stats"]["models"].values()
    tokens = stats["tokens"]
    assert len(run.rows) == stats["api"]["totalRequests"]
    assert run.total("input_tokens") == tokens["prompt"]
    assert run.total("cache_read_tokens") == tokens["cached"] == 200
    assert run.total("output_tokens") == tokens["candidates"] + tokens["thoughts"]
    assert run.total("reasoning_tokens") == tokens["thoughts"] == 10
    assert {row["properties"]["app"] for row in run.rows} == {"gem"}


def check_copilot(run: Run) -> None:
    (metrics,) = json.loads((run.here / "usage.json").read_text())["modelMetrics"].values()
    usage = metrics["usage"]
    assert len(run.rows) == metrics["requests"]["count"]
    assert run.total("input_tokens") == usage["inputTokens"] > 1000
    assert run.total("cache_read_tokens") == usage["cacheReadTokens"] > 0
    assert run.total("cache_write_tokens") == usage["cacheWriteTokens"]
    assert run.total("output_tokens") == usage["outputTokens"]
    assert run.total("reasoning_tokens") == usage.get("reasoningTokens", 0)


@pytest.mark.parametrize("run", ["copilot"], indirect=True)
def test_copilot_prints_our_tokens_although_it_hangs_up(run: Run) -> None:
    check_copilot(run)
    assert {row["properties"]["app"] for row in run.rows} == {"copilot"}


@pytest.mark.parametrize("run", ["copilot-websocket"], indirect=True)
def test_copilot_prints_our_tokens_over_its_websocket(run: Run) -> None:
    check_copilot(run)
    assert [row["source"] for row in run.rows] == ["websocket"]


@pytest.mark.parametrize("run", ["copilot-anthropic"], indirect=True)
def test_copilot_prints_our_tokens_of_messages(run: Run) -> None:
    check_copilot(run)
    assert run.total("cache_write_tokens") == 1000


@pytest.mark.parametrize("run", ["opencode"], indirect=True)
def test_opencode_prints_our_tokens_and_dollars(run: Run) -> None:
    # The title of the session is another call, of which it prints nothing.
    assert len(run.rows) == 2
    (printed,) = [line["part"] for line in run.lines if line["type"] == "step_finish"]
    (row,) = [row for row in run.rows if row["request_model"] == "claude-haiku-4-5"]
    tokens = printed["tokens"]
    cached, written = tokens["cache"]["read"], tokens["cache"]["write"]
    assert row["input_tokens"] == tokens["input"] + cached + written
    assert (row["cache_read_tokens"], row["cache_write_tokens"]) == (cached, written)
    assert row["output_tokens"] == tokens["output"]
    assert row["cost_usd"] == pytest.approx(printed["cost"], rel=0, abs=1e-9)
    assert {row["session_id"] for row in run.rows} == {printed["sessionID"]}


@pytest.mark.parametrize("run", ["aider"], indirect=True)
def test_aider_is_logged_although_it_hangs_up(run: Run) -> None:
    # It counts by itself instead of reading the usage, so what it prints is no measure.
    assert [(row["model"], row["finish_reason"]) for row in run.rows] == [("gpt-4o", "stop")]
