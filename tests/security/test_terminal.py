"""What others said is obeyed by no terminal: not in log lines, not in what commands print."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from conftest import ROOT
from fakes import Answer, Asked, Upstream, chat_answer, json_answer
from served import served

OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
TEXT = "a\x1b]52;c;aGk=\x07\x1b[2J\x9b31m\x9d8;;http://evil\x9c\u202eevil\u2066\r\nheliproxy: FORGED\x08\x7f\x85\u2028z"
IN_HEADER = "a\x9b31m\x9d8;;http://evil\x9c\u202eevil\u2066z\x85\u2028".encode()
NAMES = (
    "helicone-user-id", "helicone-session-id", "helicone-session-name", "helicone-session-path", "helicone-property-x",
    "helicone-model-override", "helicone-request-id", "helicone-cache-enabled", "helicone-ratelimit-policy",
    "helicone-token-limit-exception-handler", "helicone-nonsense", "helicone-retry-num", "user-agent",
)  # fmt: skip


def answer(asked: Asked) -> Answer:
    if b"fail" in asked.body:
        return json_answer({"error": {"message": TEXT, "type": TEXT, "code": TEXT}}, 400)
    return json_answer(chat_answer(TEXT, model=TEXT) | {"id": TEXT})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with such texts in every place, and what was said on stderr meanwhile in `errors`."""
    home = tmp_path_factory.mktemp("terminal") / "home"
    body = {"model": TEXT, "user": TEXT, "messages": [{"role": TEXT, "name": TEXT, "content": TEXT}]}
    with Upstream(answer) as up, served(home, up.url) as proxy, httpx.Client(trust_env=False, timeout=20) as client:
        url = f"http://127.0.0.1:{proxy.port}"
        for sent in (body, body | {"user": "fail"}):
            reply = client.post(f"{url}/oai/v1/chat/completions", json=sent, headers=dict.fromkeys(NAMES, IN_HEADER))
            assert not [value for value in reply.headers.values() if OBEYED.search(value)]
        targets = [{"target-url": f"http://{TEXT}", "headers": {TEXT: TEXT}, "onCodes": [TEXT]}]
        for headers in (
            {"helicone-target-url": b"http://" + IN_HEADER},
            {"helicone-target-url": b"http://127.0.0.1:9/" + IN_HEADER},
            {"helicone-fallbacks": json.dumps(targets).encode()},
        ):
            client.post(f"{url}/v1/gateway/v1/chat/completions", json=body, headers=headers)
        log = {
            "providerRequest": {"url": TEXT, "json": body, "meta": {f"Helicone-Property-{TEXT}": TEXT}},
            "providerResponse": {"json": chat_answer(TEXT), "status": 200, "headers": {TEXT: TEXT}},
            "timing": {"startTime": {"seconds": 1790000000, "milliseconds": 0}},
            "provider": TEXT,
        }
        assert client.post(f"http://127.0.0.1:{proxy.api_port}/custom/v1/log", json=log).status_code == 200
        proxy.health(flush=True)
        (home / "errors").write_text(proxy.errors, "utf-8")
    return home


def test_log_lines(home: Path) -> None:
    said = (home / "errors").read_text("utf-8")
    assert "Helicone-RateLimit-Policy" in said
    assert OBEYED.findall(said) == []
    assert not re.search("(?m)^heliproxy: FORGED", said)


@pytest.mark.parametrize(
    "command",
    [
        ["requests"], ["requests", "--format", "md"], ["requests", "--format", "csv"], ["requests", "--json"],
        ["requests", "--format", "ndjson"], ["costs", "--by", "model"], ["costs", "--by", "user"], ["sessions"],
        ["costs", "--by", "property:x"], ["doctor"], ["show", TEXT], ["requests", "--user", TEXT], ["sessions", TEXT],
        ["export", "-o", "-", "--format", "csv"], ["export", "-o", "-", "--include-body"],
        ["export", "-o", "-", "--format", "json", "--include-body"],
    ],
)  # fmt: skip
def test_commands(home: Path, command: list[str]) -> None:
    environ = {"PATH": os.environ["PATH"], "HOME": str(home.parent), "PYTHONPATH": str(ROOT / "addon")}
    whole = [sys.executable, "-m", "heliproxy", *command, "--home", str(home)]
    shown = subprocess.run(whole, env=environ, capture_output=True, timeout=60, check=False)
    text = (shown.stdout + shown.stderr).decode().replace("\r\n", "\n")
    assert text
    assert OBEYED.findall(text) == []


def test_an_export_has_the_very_text(home: Path) -> None:
    environ = {"PATH": os.environ["PATH"], "HOME": str(home.parent), "PYTHONPATH": str(ROOT / "addon")}
    whole = [sys.executable, "-m", "heliproxy", "export", "-o", "-", "--include-body", "--home", str(home)]
    shown = subprocess.run(whole, env=environ, capture_output=True, timeout=60, check=True)
    rows = [json.loads(line) for line in shown.stdout.splitlines()]
    assert any(row["response_body"].get("model") == TEXT for row in rows if isinstance(row["response_body"], dict))
