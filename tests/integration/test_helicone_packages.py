"""Helicone's own packages, unmodified, against a running proxy and its API.

Each is redirected by the option its documentation names, or by the proxy where it has none. They live in
environments of their own, made by helicone_packages/install.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes import Answer, Asked, Upstream, chat_answer, chat_chunks, json_answer, sse_answer
from heliproxy.serve import ProxyThread
from heliproxy.settings import Settings, parse_upstreams
from running import Running

HERE = Path(__file__).parent / "helicone_packages"
CACHE = Path(os.environ.get("HELIPROXY_TEST_CACHE") or Path.home() / ".cache" / "heliproxy-tests") / "helicone"
SECONDS = 120


def answer(asked: Asked) -> Answer:
    if not asked.body.startswith(b"{"):
        return Answer(404)
    if asked.json.get("stream"):
        return sse_answer(chat_chunks("Hello there"))
    return json_answer(chat_answer("Hello there"))


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream(answer) as up:
        yield up


@pytest.fixture
def served(tmp_path: Path, upstream: Upstream) -> Iterator[Running]:
    upstreams = parse_upstreams([f"api.openai.com={upstream.url}"])
    with ProxyThread(Settings(home=tmp_path / "home", port=0, api_port=0, upstreams=upstreams)) as proxy:
        run = Running(proxy, tmp_path / "home")
        yield run
        run.close()


def api(served: Running) -> str:
    return f"http://127.0.0.1:{served.proxy.api_port}"


def environment(served: Running, proxied: bool = False) -> dict[str, str]:
    keep = ("PATH", "HOME", "SYSTEMROOT", "TMPDIR", "LANG")
    found = {name: os.environ[name] for name in keep if name in os.environ}
    found |= {"TRACELOOP_TELEMETRY": "false", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "127.0.0.1,localhost"}
    if proxied:
        found |= {"HTTPS_PROXY": served.url, "HTTP_PROXY": served.url, "NODE_EXTRA_CA_CERTS": str(served.ca)}
    return found


def run(command: list[str], env: dict[str, str]) -> str:
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=SECONDS, cwd=CACHE, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Error making request" not in done.stdout + done.stderr
    return done.stdout


def python(name: str, script: str, *args: str, env: dict[str, str]) -> str:
    interpreter = CACHE / name / "bin" / "python"
    if not (CACHE / name / "installed.txt").is_file():
        pytest.skip(f"{name} is not installed; helicone_packages/install does it")
    return run([str(interpreter), str(HERE / script), *args], env)


def node(script: str, *args: str, env: dict[str, str], options: tuple[str, ...] = ()) -> str:
    if shutil.which("node") is None or not (CACHE / "node" / "installed.json").is_file():
        pytest.skip("the Node packages are not installed; helicone_packages/install does it")
    # Node looks for packages beside the script, and this clone is no place for node_modules.
    copy = CACHE / "node" / script
    copy.write_bytes((HERE / script).read_bytes())
    return run(["node", *options, str(copy), *args], env)


def by_case(served: Running) -> dict[str, dict[str, Any]]:
    sql = "SELECT p.value AS 'case', r.* FROM requests r JOIN properties p ON p.request_id = r.id WHERE p.key = 'case'"
    return {row["case"]: row for row in served.rows(sql)}


def told(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("provider", "status", "input_tokens", "output_tokens", "usage_source"))


def test_node_helpers(served: Running) -> None:
    out = node("helpers.mjs", api(served), env=environment(served))
    found = by_case(served)
    assert {name: told(row) for name, row in found.items()} == {
        "request-undefined": ("custom", 200, 9, 2, "provider"),
        "request-openai": ("openai", 200, 9, 2, "provider"),
        "request-anthropic": ("anthropic", 200, 9, 2, "provider"),
        "request-google": ("google", 200, 9, 2, "provider"),
        "request-mistral": ("mistral", 200, 9, 2, "provider"),
        "stream": ("custom", 200, 8, 1, "estimated"),
        "single-stream": ("custom", 200, 8, 1, "estimated"),
        "single-request": ("custom", 200, 9, 2, "provider"),
        "builder-stream": ("custom", 200, 8, 1, "estimated"),
        "builder-response": ("custom", 200, 9, 2, "provider"),
        "builder-error": ("custom", 500, None, None, "none"),
        "tool": ("custom", 200, 0, 0, "provider"),
        "vector": ("custom", 200, 0, 0, "provider"),
    }
    assert {row["user_id"] for row in found.values()} == {"u1"}
    assert {row["session_id"] for row in found.values()} == {"s1"}
    assert found["single-request"]["latency_ms"] == pytest.approx(321, abs=2)
    assert found["request-openai"]["cost_usd"] == pytest.approx(9 * 0.15e-6 + 2 * 0.6e-6)
    assert json.loads(out)["refused"]


def test_python_helpers(served: Running) -> None:
    out = python("helpers", "helpers.py", api(served), env=environment(served))
    found = by_case(served)
    assert {name: told(row) for name, row in found.items()} == {
        "request-None": ("custom", 200, 9, 2, "provider"),
        "request-openai": ("openai", 200, 9, 2, "provider"),
        "request-anthropic": ("anthropic", 200, 9, 2, "provider"),
        "request-google": ("custom", 200, 9, 2, "provider"),
        "builder-chunks": ("custom", 200, 8, 1, "estimated"),
        "builder-response": ("custom", 200, 9, 2, "provider"),
        "builder-error": ("custom", 200, None, None, "none"),
        "string": ("openai", 200, 8, 2, "estimated"),
        "tool": ("custom", 200, 0, 0, "provider"),
    }
    assert found["builder-error"]["error_type"] == "ValueError"
    assert (found["string"]["latency_ms"], found["string"]["ttft_ms"]) == (1500.0, 120.5)
    assert "does not have stored prompts" in out


def test_python_async(served: Running, upstream: Upstream) -> None:
    python("async", "traced.py", api(served), upstream.url, env=environment(served))
    whole, streamed = served.wait_rows(2)
    assert (whole["source"], whole["user_id"], whole["session_id"]) == ("otlp", "u1", "s1")
    assert whole["usage_source"] == "provider"
    assert (streamed["stream"], streamed["usage_source"], streamed["input_tokens"]) == (1, "estimated", 8)
    assert (streamed["output_tokens"], streamed["answer_preview"]) == (2, "Hello there")
    assert streamed["cost_usd"] == pytest.approx(8 * 0.15e-6 + 2 * 0.6e-6)


def test_litellm(served: Running, upstream: Upstream) -> None:
    env = environment(served) | {"HELICONE_API_BASE": api(served), "HELICONE_API_KEY": "sk-helicone-test"}
    python("litellm", "litellm_callback.py", upstream.url, env=env)
    (row,) = served.wait_rows(1)
    assert (row["source"], row["provider"], row["user_id"], row["session_id"]) == ("log", "openai", "u1", "s1")
    assert row["usage_source"] == "provider"
    assert served.rows("SELECT value FROM properties WHERE key = 'env'") == [{"value": "dev"}]
    assert "sk-helicone-test" not in (served.home / "heliproxy.db").read_bytes().decode("latin-1")


def test_node_helicone(served: Running, upstream: Upstream) -> None:
    env = environment(served, proxied=True)
    preload = CACHE / "node" / "through_proxy.cjs"
    if preload.parent.is_dir():
        preload.write_bytes((HERE / "through_proxy.cjs").read_bytes())
    out = node(
        "helicone.cjs", api(served), served.url, upstream.url, env=env, options=("--require", str(preload))
    )  # fmt: skip
    found = json.loads(out.splitlines()[-1])
    rows = {row["user_id"]: row for row in served.wait_rows(3)}
    assert rows["proxied"]["id"] == found["proxied"]
    assert found["queried"] == 1
    assert found["bodies"]["response"]["choices"][0]["message"]["content"] == "Hello there"
    scores = served.rows(f"SELECT name, value FROM scores WHERE request_id = '{found['proxied']}' ORDER BY name")
    assert scores == [
        {"name": "good", "value": 1.0},
        {"name": "helicone-score-feedback", "value": 1.0},
        {"name": "length", "value": 11.0},
    ]
    assert told(rows["manual"]) == ("custom", 200, 3, 4, "provider")
    assert (rows["spanned"]["source"], rows["spanned"]["provider"]) == ("otlp", "openai")
