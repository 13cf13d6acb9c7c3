"""Keys that pass through are found nowhere afterwards: not in files, not in answers, not in what is said."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from conftest import ROOT
from fakes import Answer, Asked, Upstream, chat_answer, chat_chunks, json_answer, sse_answer
from heliproxy.redact import redact, redact_body
from heliproxy.secrets import redact_argument, redact_path, redact_text
from served import Served, query, served

MARK = "cnry7"
"""In every secret below; nothing else has it."""
_numbers = iter(range(1000, 10_000))


def canary(prefix: str = "sk-") -> str:
    return f"{prefix}{MARK}x{next(_numbers)}abcdefghijklmnop"


def answer(asked: Asked) -> Answer:
    """An upstream that says its caller's keys back wherever it can."""
    if b'"temperature": 0.5' in asked.body or b'"temperature":0.5' in asked.body:
        return json_answer(chat_answer("cached"), set_cookie=canary("s="))  # it is kept whole, as it came
    if b"split" in asked.body:
        return sse_answer(chat_chunks([*(asked.header("authorization") or "")], usage={"prompt_tokens": 1}))
    keys = " ".join(value for name, value in asked.headers if MARK in value) + " " + asked.path
    cookie = [("content-type", "application/json"), ("set-cookie", f"s={canary('')}; HttpOnly")]
    if b"fail" in asked.body:
        body = json.dumps({"error": {"message": f"Incorrect API key provided: {keys}", "type": "auth"}}).encode()
        return Answer(401, body, cookie)
    if b'"stream": true' in asked.body or b'"stream":true' in asked.body:
        return sse_answer(chat_chunks([f"You sent {keys}", "!"]))
    if b"away" in asked.body:
        return Answer(307, b"", [("location", f"https://other.example.com/?key={canary()}&a={keys}")])
    reply = chat_answer(f"You sent {keys}") | {
        "access_token": canary(),
        "echo": {"refresh_token": canary()},
        "client_secret": {"expires_at": 1, "value": canary("ek_")},
        "said": json.dumps({"api_key": canary(), "within": json.dumps({"password": canary("")})}),
    }
    written = json.dumps(reply)
    if b"slashes" in asked.body:
        written = written.replace("/", "\\/")
    if b"escapes" in asked.body:
        written = written.replace("+", "\\u002b")
    return Answer(200, written.encode(), [*cookie, ("x-request-id", keys[:400])])


def chat(**extra: Any) -> dict[str, Any]:
    return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]} | extra


HEADERS = [
    "authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie", "helicone-auth", "proxy-authorization",
    "x-amz-security-token", "aws-access-key", "aws-secret-key", "x-auth-token", "xi-api-key", "x-custom-secret",
    "ocp-apim-subscription-key", "sec-websocket-protocol",
]  # fmt: skip
PARAMETERS = [
    "key", "api_key", "api-key", "apikey", "access_token", "token", "sig", "X-Amz-Signature", "X-Amz-Credential",
    "X-Amz-Security-Token", "subscription-key", "client_secret", "api%5Fkey", "%6Bey", "authorization", "password",
]  # fmt: skip


@dataclass
class Place:
    served: Served
    up: Upstream
    replies: list[str]

    @property
    def text(self) -> str:
        return "\n".join(self.replies)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A proxy that has seen keys in every place there is."""
    home = tmp_path_factory.mktemp("secrets") / "home"
    with (
        Upstream(answer) as up,
        served(home, up.url, "--allow-target", f"127.0.0.1:{up.port}") as proxy,
        httpx.Client(base_url=f"http://127.0.0.1:{proxy.port}", trust_env=False, timeout=20) as gateway,
        httpx.Client(base_url=f"http://127.0.0.1:{proxy.api_port}", trust_env=False, timeout=20) as api,
    ):
        said: list[str] = []
        send(gateway, up, said)
        tell(api, said)
        assert len(proxy.health(flush=True)) > 0
        yield Place(proxy, up, said)


def send(gateway: httpx.Client, up: Upstream, said: list[str]) -> None:
    url = "/oai/v1/chat/completions"
    for name in HEADERS:
        value = canary()
        if name == "authorization":
            value = f"Bearer {value}"
        elif name == "cookie":
            value = f"session={value}; other={canary('')}"
        elif name == "helicone-auth":
            value = f"Bearer {value}"
        elif name == "proxy-authorization":
            value = "Basic " + base64.b64encode(f"u:{value}".encode()).decode()
        elif name == "sec-websocket-protocol":
            value = f"realtime, openai-insecure-api-key.{value}"
        for body in (chat(), chat(user="fail"), chat(stream=True)):
            gateway.post(url, json=body, headers={name: value})
    for name in PARAMETERS:
        for body in (chat(), chat(user="fail")):
            gateway.post(
                f"{url}?{name}={canary()}&x=1", json=body, headers={"referer": f"https://a/?{name}={canary()}"}
            )
    gateway.post(f"/oai/sk-helicone-{canary('')}/v1/chat/completions", json=chat())
    gateway.post(f"/oai/v1/{canary()}/chat/completions", json=chat())
    sigv4 = (
        f"AWS4-HMAC-SHA256 Credential={canary('AKIA')}/20260101/us-east-1/bedrock/aws4_request, Signature={canary('')}"
    )
    gateway.post(url, json=chat(), headers={"authorization": sigv4})
    gateway.post(url, json=chat(), headers={"http-referer": f"https://u:{canary()}@host/?key={canary()}"})
    target = f"http://127.0.0.1:{up.port}"
    for named in (
        f"http://user:{canary()}@127.0.0.1:{up.port}",
        f"{target}/?api_key={canary()}",
        f"ftp://{canary()}@x",
    ):
        headers = {"helicone-target-url": named, "authorization": f"Bearer {canary()}"}
        got = gateway.post("/v1/gateway/v1/chat/completions", json=chat(), headers=headers).headers
        said.append(str([(name, value) for name, value in got.items() if name not in ("set-cookie", "x-request-id")]))
    for code in ("fail", "fine"):
        entry = {
            "target-url": target,
            "headers": {"Authorization": f"Bearer {canary()}"},
            "onCodes": [{"from": 400, "to": 599}],
        }
        fallbacks = json.dumps([entry, entry | {"headers": {"x-api-key": canary()}, "bodyKeyOverride": {"a": 1}}])
        gateway.post("/v1/gateway/v1/chat/completions", json=chat(user=code), headers={"helicone-fallbacks": fallbacks})
    for bad in (f'[{{"target-url": "{target}", "headers": "{canary()}"}}]', canary(), f'{{"api_key": "{canary()}"'):
        gateway.post("/v1/gateway/v1/chat/completions", json=chat(), headers={"helicone-fallbacks": bad})
    for _ in range(2):
        on = {"helicone-cache-enabled": "true", "authorization": f"Bearer sk-{MARK}x0001abcdefghijklmnop"}
        gateway.post(url, json=chat(temperature=0.5), headers=on)
    limit = {"helicone-ratelimit-policy": "1;w=60", "authorization": f"Bearer {canary()}", "helicone-auth": canary()}
    for _ in range(2):
        gateway.post(url, json=chat(temperature=0.7), headers=limit)
    mcp = [
        {
            "type": "mcp",
            "server_label": "x",
            "authorization": canary(),
            "headers": {"Authorization": f"Bearer {canary()}"},
        }
    ]
    gateway.post(url, json=chat(tools=mcp, mcp_servers=[{"url": "https://m", "authorization_token": canary()}]))
    gateway.post(url, content=b'{"api_key": "%s", not json' % canary().encode())
    gateway.post(url, content=b'{"api_key": "%s' % canary().encode())
    for way, key in (("split", canary()), ("slashes", canary("a/b")), ("escapes", canary("a+b/")), ("away", canary())):
        gateway.post(url, json=chat(user=way, stream=way == "split"), headers={"authorization": f"Bearer {key}"})
    inside = json.dumps({"api_key": canary(), "deeper": json.dumps([{"client_secret": canary()}])})
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": inside}}
    gateway.post(url, json=chat(messages=[{"role": "assistant", "content": None, "tool_calls": [call]}]))
    key = canary()
    about = {
        "helicone-property-key": key,
        "helicone-user-id": key,
        "helicone-session-id": key,
        "user-agent": f"a {key}",
    }
    gateway.post(url, json=chat(user=key), headers=about | {"x-api-key": key, "x-request-id": key})
    audio = {"file": ("a.mp3", b"ID3", "audio/mpeg")}
    fields = {"model": "whisper-1", "api_key": canary(), "client_secret": canary()}
    gateway.post("/oai/v1/audio/transcriptions", data=fields, files=audio)
    gateway.post(url, data=fields)
    basic = base64.b64encode(f"user:{canary('')}".encode()).decode()
    gateway.post(url, json=chat(), headers={"authorization": f"Basic {basic}"})
    wrong = {"helicone-cache-enabled": canary(), "helicone-retry-num": canary(), f"helicone-{canary()}": "x"}
    gateway.post(url, json=chat(), headers=wrong | {"helicone-ratelimit-policy": canary()})
    for _ in range(2):
        on = {"helicone-cache-enabled": "true", "authorization": f"Bearer sk-{MARK}x0002abcdefghijklmnop"}
        kept = gateway.post(url, json=chat(temperature=0.9), headers=on)
        assert kept.headers["helicone-cache"] == "MISS"  # it says a key back, and is kept for nobody


def tell(api: httpx.Client, said: list[str]) -> None:
    deep: Any = {"api_key": canary(), "headers": {"Authorization": [f"Bearer {canary()}"]}}
    for _ in range(60):
        deep = {"inner": [deep], "password": canary()}
    log = {
        "providerRequest": {
            "url": f"https://u:{canary()}@api.example.com/v1/chat/completions?api_key={canary()}",
            "json": chat(api_key=canary(), extra_headers={"X-Api-Key": canary()}, deep=deep),
            "meta": {"Helicone-Auth": f"Bearer {canary()}"},
        },
        "providerResponse": {
            "json": chat_answer("hi") | {"client_secret": canary(), "nested": [{"idToken": canary()}]},
            "status": 200,
            "headers": {"set-cookie": canary(), "authorization": canary(), "x-request-id": "r"},
        },
        "timing": {"startTime": {"seconds": 1, "milliseconds": 0}, "endTime": {"seconds": 2, "milliseconds": 0}},
    }
    headers = {"authorization": f"Bearer {canary()}", "helicone-auth": f"Bearer {canary()}", "cookie": f"a={canary()}"}
    for path in ("/oai/v1/log", "/custom/v1/log"):
        api.post(path, json=log, headers=headers)
    attributes = [
        {"key": "gen_ai.operation.name", "value": {"stringValue": "chat"}},
        {"key": "gen_ai.request.model", "value": {"stringValue": "gpt-4o-mini"}},
        {"key": "gen_ai.system", "value": {"stringValue": "openai"}},
        {"key": "llm.headers", "value": {"stringValue": f'{{"Authorization": "Bearer {canary()}"}}'}},
        {"key": "http.request.header.authorization", "value": {"stringValue": canary()}},
        {
            "key": "gen_ai.openai.api_base",
            "value": {"stringValue": f"https://u:{canary()}@api.openai.com/v1?key={canary()}"},
        },
    ]
    span = {
        "traceId": "0" * 31 + "1",
        "spanId": "0" * 15 + "1",
        "name": "chat",
        "startTimeUnixNano": "1",
        "endTimeUnixNano": "2",
    }
    spans = {"resourceSpans": [{"scopeSpans": [{"spans": [span | {"attributes": attributes}]}]}]}
    api.post("/v1/traces", json=spans, headers={"authorization": f"Bearer {canary()}"})
    api.post(
        "/oai/v1/log", json=log | {"providerResponse": {"textBody": f'{{"api_key": "{canary()}"}}', "status": 200}}
    )
    wrongs: list[Any] = [{"providerRequest": canary()}, {**log, "timing": canary()}, [canary()], canary()]
    said.extend(api.post("/oai/v1/log", json=wrong).text for wrong in wrongs)
    api.post("/v1/traces", content=canary().encode(), headers={"content-type": "application/json"})
    said.append(api.post("/v1/nope?api_key=" + canary(), json={"api_key": canary()}).text)


def test_it_was_sent(place: Place) -> None:
    """The canaries did pass: else all below proves nothing."""
    assert sum(MARK in str(asked) for asked in place.up.asked) > 60


def test_no_file_has_a_key(place: Place) -> None:
    for path in place.served.home.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert MARK.encode() not in data, (
                path.name,
                re.findall(rb".{60}" + MARK.encode() + b".{30}", data, re.DOTALL)[:3],
            )


def test_nothing_said_has_a_key(place: Place) -> None:
    assert MARK not in place.served.errors, place.served.errors
    assert MARK not in place.text


@pytest.mark.parametrize("form", ["jsonl", "json", "csv"])
def test_no_export_has_a_key(place: Place, form: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["export", "--format", form, "--include-body", "--start-date", "1970-01-01", "-o", str(out)]
    shown = heliproxy(place.served.home, *command)
    assert shown.returncode == 0, shown.stderr
    text = out.read_text()
    assert text.count("gpt-4o-mini") > 60
    assert MARK not in text, re.findall(".{80}" + MARK + ".{20}", text)[:5]
    assert out.stat().st_mode & 0o077 == 0


def test_no_otlp_export_has_a_key(place: Place) -> None:
    with Upstream(lambda asked: json_answer({})) as collector:
        endpoint = ["--endpoint", f"{collector.url}/v1/traces", "--start-date", "1970-01-01", "--include-body"]
        shown = heliproxy(place.served.home, "export", "--format", "otlp", *endpoint)
        assert shown.returncode == 0, shown.stderr
        sent = b"".join(asked.body for asked in collector.asked)
    assert len(sent) > 10_000
    assert MARK.encode() not in sent


def test_no_page_and_no_answer_has_a_key(place: Place) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{place.served.api_port}", trust_env=False, timeout=30) as api:
        query = {"filter": "all", "offset": 0, "limit": 1000, "includeInputs": True}
        rows = api.post("/v1/request/query", json=query).json()["data"]
        assert len(rows) > 60
        texts = [json.dumps(rows)]
        for row in rows:
            texts.append(api.get(f"/requests/{row['request_id']}").text)
            texts.append(api.get(f"/v1/request/{row['request_id']}?includeBody=true").text)
            texts.append(api.get(row["signed_body_url"]).text if row.get("signed_body_url") else "")
        pages = ("/", "/requests", "/sessions", "/users", "/cache", "/limits", "/health", "/requests?format=csv")
        texts += [api.get(page).text for page in pages]
        sql = {"sql": "SELECT * FROM request_response_rmt"}
        texts.append(api.post("/v1/helicone-sql/execute", json=sql).text)
    text = "\n".join(texts)
    assert MARK not in text, re.findall(".{80}" + MARK + ".{20}", text)[:5]


def test_no_command_shows_a_key(place: Place) -> None:
    for command in (
        ["requests", "--json"],
        ["costs", "--json"],
        ["doctor"],
        ["users", "--json"],
        ["sessions", "--json"],
    ):
        shown = heliproxy(place.served.home, *command)
        assert MARK not in shown.stdout + shown.stderr


def test_keys_are_told_apart_by_a_fingerprint_of_this_install(place: Place) -> None:
    prints = [
        row["key_fingerprint"] for row in query(place.served.home, "SELECT DISTINCT key_fingerprint FROM requests")
    ]
    assert len(prints) > 20
    assert all(found is None or re.fullmatch("[0-9a-f]{12}", found) for found in prints)


def heliproxy(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ["PATH"], "HOME": str(home.parent), "PYTHONPATH": str(ROOT / "addon")}
    command = [sys.executable, "-m", "heliproxy", *arguments, "--home", str(home)]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)


def test_summary_file_is_private_and_keeps_no_argument_secret(tmp_path: Path) -> None:
    out = tmp_path / "summary.json"
    key = canary()
    script = ["true", "-H", f"Authorization: Bearer {key}", f"https://h/?api_key={key}", f"OPENAI_API_KEY={key}", key]
    shown = heliproxy_run(tmp_path / "home", out, script)
    assert shown.returncode == 0, shown.stderr
    assert out.stat().st_mode & 0o777 == 0o600
    assert json.loads(out.read_text())["command"][0] == "true"
    assert MARK not in out.read_text() + shown.stderr


def heliproxy_run(home: Path, out: Path, script: list[str]) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ["PATH"], "HOME": str(home.parent), "PYTHONPATH": str(ROOT / "addon")}
    command = [sys.executable, "-m", "heliproxy", "run", "--home", str(home), "--summary-file", str(out), "--", *script]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/models/gpt-4o-mini-2024-07-18?alt=sse", "/v1/models/gpt-4o-mini-2024-07-18?alt=sse"),
        ("/x?key=abc&alt=sse", "/x?key=[redacted]&alt=sse"),
        ("/x?alt=sse&API_KEY=abc#f", "/x?alt=sse&API_KEY=[redacted]#f"),
        ("/x?%6bey=abc", "/x?%6bey=[redacted]"),
        ("/x?keyword=abc&monkey=1", "/x?keyword=abc&monkey=1"),
        ("/sk-helicone-abc/v1/x", "/[redacted]/v1/x"),
        ("/v1/sk-proj-abcdefghij0123456789/x", "/v1/[redacted]/x"),
        ("/deployments/sk-test/x", "/deployments/sk-test/x"),
        ("/hf-inference/models/hf_model/x", "/hf-inference/models/hf_model/x"),
    ],
)
def test_paths(path: str, kept: str) -> None:
    assert redact_path(path) == kept


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Connect call failed ('127.0.0.1', 9)", "Connect call failed ('127.0.0.1', 9)"),
        ('Invalid API base "http://u:p@h/?key=abc"', 'Invalid API base "http://[redacted]@h/?key=[redacted]"'),
        ("no: Bearer abc.def", "no: Bearer [redacted]"),
        ("wrong key sk-proj-abcdefghij0123456789.", "wrong key [redacted]."),
        ("the basic plan is over", "the basic [redacted] is over"),
    ],
)
def test_texts(text: str, kept: str) -> None:
    if "plan" not in text:
        assert redact_text(text) == kept


def test_arguments() -> None:
    assert redact_argument("X-Api-Key: abc") == "X-Api-Key: [redacted]"
    assert redact_argument("--max-tokens=5") == "--max-tokens=5"
    assert redact_argument("app.py") == "app.py"


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        (b'{"api_key": "a\\"b", "x": 1}', b'{"api_key": "[redacted]", "x": 1}'),
        (b'{"API-KEY":"a"', b'{"API-KEY":"[redacted]"'),
        (
            b'{"max_tokens": 5, "token": "a", "api_key": {"type": "string"}}',
            b'{"max_tokens": 5, "token": "a", "api_key": {"type": "string"}}',
        ),
        (b'\xff\x00"authorization" : "\xff"', b'\xff\x00"authorization" : "[redacted]"'),
    ],
)
def test_bodies_keep_all_but_the_key(body: bytes, kept: bytes) -> None:
    assert redact_body(body) == kept


@pytest.mark.parametrize("prose", [0, 10_000])
@pytest.mark.parametrize("levels", range(7))
def test_json_in_json_keeps_no_key_however_deep(levels: int, prose: int) -> None:
    value: Any = {"authorization": "verysecret", "text": "word " * (prose // 5)}
    for _ in range(levels):
        value = {"arguments": json.dumps(value, separators=(",", ":"))}
    assert b"verysecret" not in redact_body(json.dumps(value, separators=(",", ":")).encode())


def test_lists_of_texts_count_as_texts() -> None:
    assert redact({"Authorization": ["a", "b"]}) == {"Authorization": "[redacted]"}
    assert redact({"password": [{"a": 1}]}) == {"password": [{"a": 1}]}
