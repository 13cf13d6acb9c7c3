"""Policy, price and cache are those of the host that is really called, and no key goes to another's host."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from fakes import Answer, Asked, Upstream, chat_answer, json_answer
from heliproxy.serve import ProxyThread
from heliproxy.settings import Settings, parse_upstreams
from running import Running
from security.wire import raw

HOSTS = ("api.openai.com", "api.anthropic.com", "evil.example.com")
CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]}
BODY = json.dumps(CHAT).encode()
TAIL = b"Content-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
PATH = b"/v1/chat/completions"


@pytest.fixture(scope="module")
def up() -> Iterator[Upstream]:
    counted = iter(range(10_000))

    def answer(asked: Asked) -> Answer:
        if asked.header("x-fail"):
            return json_answer({"error": "no"}, 500)
        return json_answer(chat_answer(f"answer {next(counted)}"))

    with Upstream(answer) as up:
        yield up


@pytest.fixture(scope="module")
def run(up: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    home = tmp_path_factory.mktemp("isolation") / "home"
    upstreams = parse_upstreams(f"{host}={up.url}/{number}" for number, host in enumerate(HOSTS))
    allowed = (f"127.0.0.1:{up.port}", f"localhost:{up.port}")
    with ProxyThread(Settings(home=home, port=0, api_port=None, upstreams=upstreams, allowed_targets=allowed)) as proxy:
        run = Running(proxy, home)
        yield run
        run.close()


@pytest.mark.parametrize(
    ("line", "host", "provider"),
    [
        (b"http://evil.example.com/v1/chat/completions", b"api.openai.com", "evil.example.com"),
        (b"http://evil.example.com/v1/chat/completions", b"api.openai.com:80", "evil.example.com"),
        (b"http://api.openai.com@evil.example.com/v1/chat/completions", b"api.openai.com", None),
        (b"http://evil.example.com#@api.openai.com/v1/chat/completions", b"api.openai.com", None),
        (b"http://api.openai.com/v1/chat/completions", b"evil.example.com", "openai"),
        (b"/v1/chat/completions", b"evil.example.com", "evil.example.com"),
    ],
)
def test_an_absolute_address_counts_and_not_the_host_header(
    run: Running, line: bytes, host: bytes, provider: str | None
) -> None:
    before = len(run.rows())
    got = raw(run.proxy.port, b"POST %s HTTP/1.1\r\nHost: %s\r\n%s" % (line, host, TAIL))
    rows = run.rows()[before:] if provider is None else run.wait_rows(before + 1)[before:]
    if provider is None:
        assert all(row["provider"] != "openai" for row in rows), got
    else:
        assert [row["provider"] for row in rows] == [provider]
        assert (rows[0]["cost_usd"] is None) == (provider != "openai")


@pytest.mark.parametrize("http2", [False, True])
def test_inside_a_tunnel_its_target_counts(run: Running, http2: bool) -> None:
    before = len(run.rows())
    with httpx.Client(proxy=run.url, verify=run.context, trust_env=False, timeout=20, http2=http2) as client:
        answer = client.post(f"https://evil.example.com{PATH.decode()}", json=CHAT, headers={"host": "api.openai.com"})
    assert answer.status_code == 200
    (row,) = run.wait_rows(before + 1)[before:]
    assert (row["provider"], row["host"], row["cost_usd"]) == ("evil.example.com", "evil.example.com", None)


def test_a_cached_answer_is_not_another_hosts(run: Running) -> None:
    on = {"Helicone-Cache-Enabled": "true", "authorization": "Bearer sk-one-0123456789"}
    client = run.client()
    first = client.post("http://api.openai.com/v1/chat/completions", json=CHAT, headers=on)
    assert first.headers["helicone-cache"] == "MISS"
    again = client.post("http://api.openai.com/v1/chat/completions", json=CHAT, headers=on)
    assert again.headers["helicone-cache"] == "HIT"
    for url, headers in (
        ("http://evil.example.com/v1/chat/completions", on),
        ("http://evil.example.com/v1/chat/completions", on | {"host": "api.openai.com"}),
        ("http://api.openai.com/v1/chat/completions", on | {"authorization": "Bearer sk-two-0123456789"}),
        ("http://api.openai.com/v1/chat/completions", on | {"x-api-key": "sk-three-0123456789"}),
        ("http://api.openai.com/v1/chat/completions", {"helicone-cache-enabled": "true", "cookie": "session=other"}),
        ("http://api.openai.com/v1/chat/completions", on | {"openai-organization": "other"}),
        ("http://api.openai.com/v1/chat/completions?key=other", on),
    ):
        client.cookies.clear()
        other = client.post(url, json=CHAT, headers=headers)
        assert other.content != first.content, (url, headers)


def test_a_fallback_has_its_own_key_and_nothing_else(run: Running, up: Upstream) -> None:
    up.asked.clear()
    target = f"http://127.0.0.1:{up.port}"
    entries = [
        {"target-url": target, "headers": {"Authorization": "Bearer sk-a", "x-fail": "1"}, "onCodes": [500]},
        {"target-url": target, "headers": {"x-api-key": "sk-b"}, "onCodes": [500]},
    ]
    sent = {
        "helicone-fallbacks": json.dumps(entries),
        "authorization": "Bearer sk-client",
        "x-api-key": "sk-client-too",
        "cookie": "c=sk-client",
        "helicone-auth": "Bearer sk-helicone",
    }
    answer = run.direct().post(f"{run.url}/v1/gateway/v1/chat/completions", json=CHAT, headers=sent)
    assert answer.status_code == 200
    first, second = up.asked
    assert first.header("authorization") == "Bearer sk-a"
    assert second.header("x-api-key") == "sk-b"
    assert second.header("authorization") is None
    for asked in (first, second):
        text = str(asked.headers)
        assert "sk-client" not in text
        assert "sk-helicone" not in text
    assert "sk-a" not in str(second.headers)


def test_a_key_in_the_query_is_the_first_targets(run: Running, up: Upstream) -> None:
    up.asked.clear()
    first = {"target-url": f"http://127.0.0.1:{up.port}", "headers": {"x-fail": "1"}, "onCodes": [500]}
    other = {"target-url": f"http://localhost:{up.port}", "headers": {}, "onCodes": [500]}
    sent = {"helicone-fallbacks": json.dumps([first, first, other])}
    url = f"{run.url}/v1/gateway/v1/chat/completions?alt=sse&key=sk-query"
    assert run.direct().post(url, json=CHAT, headers=sent).status_code == 200
    with_key, without = "/v1/chat/completions?alt=sse&key=sk-query", "/v1/chat/completions?alt=sse"
    assert [asked.path for asked in up.asked] == [with_key, with_key, without]


def test_the_ai_gateway_sends_a_provider_its_own_key_only(
    run: Running, up: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    up.asked.clear()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai")
    names = ("authorization", "x-api-key", "xi-api-key", "x-auth-token", "cookie", "x-amz-security-token", "my_api_key")
    sent = dict.fromkeys(names, "sk-client") | {"x-other": "kept"}
    url = f"{run.url}/ai-gateway/v1/chat/completions?key=sk-client"
    answer = run.direct().post(url, json=CHAT | {"model": "gpt-4o-mini/openai"}, headers=sent)
    assert answer.status_code == 200, answer.text
    (asked,) = up.asked
    assert asked.header("authorization") == "Bearer sk-of-openai"
    assert asked.header("x-other") == "kept"
    assert "sk-client" not in str(asked)
