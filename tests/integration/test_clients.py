"""Every client in a clean environment (`env -i`) through one `heliproxy run`: does its call get through, decrypted?

The table in clients/TABLE.md is what this test saw. `HELIPROXY_UPDATE_TABLE=1 pytest tests/integration/test_clients.py`
writes it anew; without that, a cell that differs from it fails. Clients that are not installed are skipped:
`scripts/install-test-clients` installs those that come from npm and PyPI.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from fakes import Answer, Asked, Upstream, chat_answer, json_answer, message_answer

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent / "clients"
TABLE = HERE / "TABLE.md"
CACHE = Path(os.environ.get("HELIPROXY_TEST_CACHE", Path.home() / ".cache" / "heliproxy-tests")) / "clients"
HOSTS = (
    "api.openai.com",
    "api.anthropic.com",
    "generativelanguage.googleapis.com",
    "bedrock-runtime.us-east-1.amazonaws.com",
)
PYTHON = (
    *("urllib", "requests", "httpx", "httpx-async", "aiohttp", "aiohttp-trust-env", "openai", "openai-async"),
    *("anthropic", "google-genai", "boto3", "grpcio"),
)
NODE = ("fetch", "https", "axios", "undici", "openai", "anthropic")
RUNTIMES = {"bun": "@oven/bun-*/bin/bun", "deno": "@deno/*/deno"}
"""Where npm puts the programs of the other runtimes; their own launchers only find these."""
CHAT = "https://api.openai.com/v1/chat/completions"
NO_ROW = {"py-grpcio", "git"}
"""Their connection shows that they trust us, but they make no call that is logged."""

BASE_URL_ONLY = {"deno-undici"}
"""It opens its own connections, past Deno's proxy, and finds no dispatcher to share."""


@dataclass(frozen=True)
class Client:
    name: str
    command: tuple[str, ...]
    title: str = ""


def node_programs() -> dict[str, str]:
    """The Node versions at hand, by major version."""
    found = [CACHE / "node_modules" / f"node-{v}" / "bin" / "node" for v in (18, 20, 22, 24)]
    programs = [str(path) for path in found if path.is_file()]
    if (own := shutil.which("node")) is not None:
        programs.append(own)
    versions = {}
    for program in programs:
        shown = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
        if match := re.match(r"v(\d+)", shown):
            versions.setdefault(match[1], program)
    return dict(sorted(versions.items()))


def runtimes() -> dict[str, tuple[str, ...]]:
    """How Bun and Deno, where they are at hand, run a file."""
    found = {}
    for name, pattern in RUNTIMES.items():
        program = next(iter(map(str, (CACHE / "node_modules").glob(pattern))), shutil.which(name))
        if program is not None:
            found[name] = (program, "run", "-A") if name == "deno" else (program,)
    return found


def clients(folder: Path) -> list[Client]:
    python = next((str(p) for p in [CACHE / "venv" / "bin" / "python"] if p.exists()), sys.executable)
    found = [Client(f"py-{n}", (python, str(HERE / "client.py"), n), f"Python: {n}") for n in PYTHON]
    for major, program in node_programs().items():
        names = [(n, f"node-{major}-{n}") for n in NODE]
        found += [Client(k, (program, str(HERE / "client.cjs"), n, k), f"Node {major}: {n}") for n, k in names]
    for runtime, start in runtimes().items():
        names = [(n, f"{runtime}-{n}") for n in NODE]
        found += [Client(k, (*start, str(HERE / "client.cjs"), n, k), f"{runtime.title()}: {n}") for n, k in names]
    body = '{"model": "curl", "messages": [{"role": "user", "content": "hi"}]}'
    others = {
        "curl": ("curl", "-sSf", CHAT, "-H", "content-type: application/json", "-d", body),
        "git": ("git", "ls-remote", "https://api.openai.com/v1/git-was-here"),
        "go": ("go", "run", str(HERE / "client.go")),
        "ruby": ("ruby", str(HERE / "client.rb")),
        "php": ("php", str(HERE / "client.php")),
        "java": ("java", str(HERE / "Client.java")),
    }
    titles = {"go": "Go", "ruby": "Ruby: net/http", "php": "PHP: curl", "java": "Java: HttpClient"}
    return found + [Client(n, c, titles.get(n, n)) for n, c in others.items() if shutil.which(c[0]) is not None]


def answer(asked: Asked) -> Answer:
    if "/messages" in asked.path:
        return json_answer(message_answer(model=asked.json["model"]))
    if "generateContent" in asked.path:
        parts = {"candidates": [{"content": {"role": "model", "parts": [{"text": "hi"}]}, "finishReason": "STOP"}]}
        return json_answer(parts | {"usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 1}})
    if asked.path.endswith("/converse"):
        message = {"role": "assistant", "content": [{"text": "hi"}]}
        usage = {"inputTokens": 3, "outputTokens": 1, "totalTokens": 4}
        return json_answer({"output": {"message": message}, "stopReason": "end_turn", "usage": usage, "metrics": {}})
    if asked.path.endswith("/chat/completions"):
        return json_answer(chat_answer(model=asked.json["model"]))
    return Answer(404)


@dataclass(frozen=True)
class Seen:
    """What one `heliproxy run` over all clients showed."""

    exits: dict[str, tuple[int, str]]
    rows: dict[str, str]
    """Provider by model; the model is the client's name."""
    asked: list[str]
    titles: dict[str, str]

    def result(self, name: str) -> str:
        """ "ok", or what went wrong; "absent" when the client is not installed."""
        if name not in self.exits or self.exits[name][0] == 77:
            return "absent"
        if name == "git":
            return "ok" if any("git-was-here/info/refs" in path for path in self.asked) else self.exits[name][1]
        code, said = self.exits[name]
        if code != 0:
            return said.strip() or f"exit status {code}"
        return "ok" if name in self.rows or name in NO_ROW else "no row"


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp("clients")
    wanted = clients(folder)
    (folder / "commands.json").write_text(json.dumps({c.name: c.command for c in wanted}))
    with Upstream(answer) as up:
        upstreams = [part for host in HOSTS for part in ("--upstream", f"{host}={up.url}")]
        shown = subprocess.run(
            [
                *(sys.executable, "-m", "heliproxy", "run", "-q", "--java", *upstreams, "--"),
                *(sys.executable, str(HERE / "drive.py"), str(folder / "commands.json")),
            ],
            env=clean_environment(folder),
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert shown.returncode == 0, shown.stderr
    with closing(sqlite3.connect(folder / "home" / "heliproxy.db")) as conn:
        rows = dict(conn.execute("SELECT request_model, provider FROM requests"))
    exits = {name: (code, said) for name, (code, said) in json.loads(shown.stdout).items()}
    return Seen(exits, rows, [asked.path for asked in up.asked], {c.name: c.title for c in wanted})


def clean_environment(folder: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "HELIPROXY_HOME": str(folder / "home"),
        "PYTHONPATH": str(ROOT / "addon"),
        "PYTHONWARNINGS": "ignore",
        "NODE_PATH": str(CACHE / "node_modules"),
        "GOCACHE": str(CACHE / "go") if CACHE.is_dir() else str(folder / "go"),
    }


NAMES = [
    *(f"py-{n}" for n in PYTHON),
    *(f"node-{v}-{n}" for v in (18, 20, 22, 24) for n in NODE),
    *(f"{r}-{n}" for r in RUNTIMES for n in NODE),
    *("curl", "git", "go", "ruby", "php", "java"),
]


@pytest.mark.parametrize("name", NAMES)
def test_call_is_decrypted_and_logged(seen: Seen, name: str) -> None:
    result = seen.result(name)
    if result == "absent":
        pytest.skip(f"{name} is not installed: scripts/install-test-clients, or the distribution's package")
    assert (result == "ok") == (name not in BASE_URL_ONLY), result


def test_each_call_made_one_row_of_its_provider(seen: Seen) -> None:
    providers = {"anthropic": "anthropic", "google-genai": "google", "boto3": "bedrock"}
    expected = {name: providers.get(re.sub(r"^(?:py|node-\d+|bun|deno)-", "", name), "openai") for name in seen.rows}
    assert seen.rows == expected


def test_table_is_what_was_seen(seen: Seen) -> None:
    cells = {name: "works" if seen.result(name) == "ok" else "base URL only" for name in NAMES}
    if os.environ.get("HELIPROXY_UPDATE_TABLE"):
        TABLE.write_text(table(seen, cells))
    written = dict(re.findall(r"^\| (.+?) \| (works|base URL only) \|$", TABLE.read_text(), re.MULTILINE))
    for name in NAMES:
        if seen.result(name) != "absent":
            assert written.get(seen.titles[name]) == cells[name], name


def table(seen: Seen, cells: dict[str, str]) -> str:
    """The table of what works through `heliproxy run`; rows of clients that are absent here are kept as they were."""
    text = TABLE.read_text() if TABLE.exists() else ""
    before = re.findall(r"^\| (.+?) \| (works|base URL only) \|$", text, re.MULTILINE)
    now = {seen.titles[n]: cells[n] for n in NAMES if seen.result(n) != "absent"}
    rows = {**dict(before), **now}
    lines = ["| client, in a clean environment | through `heliproxy run` |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| {title} | {cell} |" for title, cell in rows.items())]) + "\n"
