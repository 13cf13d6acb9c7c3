"""Requests through the proxy do not reach this machine's other services, however their address is written."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from fakes import Answer, Upstream, chat_answer, json_answer
from heliproxy import reach
from heliproxy.reach import Verdict
from running import Running, running
from security.wire import raw


@pytest.fixture(scope="module")
def victim() -> Iterator[Upstream]:
    """A service on loopback that trusts whoever reaches it."""
    with Upstream(lambda asked: Answer(body=b"inside")) as up:
        yield up


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with (
        Upstream(lambda asked: json_answer(chat_answer("hi"))) as up,
        running(tmp_path_factory.mktemp("reach") / "home", up) as run,
    ):
        yield run


SPELLINGS = [
    "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "0", "0.0.0.0", "0.1.2.3",
    "127.9.9.9", "localhost", "LOCALHOST", "localhost.", "a.localhost", "[::1]", "[::]", "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]", "[::127.0.0.1]", "[0:0:0:0:0:0:0:1]",
]  # fmt: skip


@pytest.mark.parametrize("host", SPELLINGS)
def test_tunnels_into_this_machine_are_refused(run: Running, victim: Upstream, host: str) -> None:
    target = f"{host}:{victim.port}".encode()
    got = raw(run.proxy.port, b"CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n" % (target, target))
    assert got.split(b"\r\n")[0].split(b" ")[1] in (b"403", b"400"), got
    assert victim.asked == []


@pytest.mark.parametrize("host", SPELLINGS)
def test_requests_into_this_machine_are_refused(run: Running, victim: Upstream, host: str) -> None:
    target = f"{host}:{victim.port}".encode()
    for line, named in ((b"http://%s/x" % target, target), (b"/x", target), (b"http://%s/x" % target, b"example.com")):
        got = raw(run.proxy.port, b"GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % (line, named))
        assert got.split(b" ")[1] in (b"403", b"400", b"502"), got
        assert b"inside" not in got
    assert victim.asked == []


@pytest.mark.parametrize(
    "request_of",
    [
        "POST http://127.0.0.1:{victim}/v1/chat/completions HTTP/1.1\r\nHost: api.openai.com\r\n",
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{victim}\r\n",
        (
            "POST /v1/gateway/v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{own}\r\n"
            "Helicone-Target-URL: http://127.0.0.1:{victim}\r\n"
        ),
        (
            "POST /v1/gateway/v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{own}\r\n"
            "Helicone-Target-URL: http://user@127.0.0.1:{victim}\r\n"
        ),
        (
            "POST /oai/v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{own}\r\n"
            "Helicone-OpenAI-Api-Base: http://[::ffff:127.0.0.1]:{victim}\r\n"
        ),
        (
            "POST /v1/gateway/v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{own}\r\n"
            'Helicone-Fallbacks: [{{"target-url": "http://localhost:{victim}", "headers": {{}}, "onCodes": [500]}}]\r\n'
        ),
        "POST //127.0.0.1:{victim}/v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{own}\r\n",
        "POST /v1/gateway/http://127.0.0.1:{victim}/ HTTP/1.1\r\nHost: 127.0.0.1:{own}\r\n",
        "POST /v1/gateway/@127.0.0.1:{victim}/ HTTP/1.1\r\nHost: 127.0.0.1:{own}\r\n",
        "POST /oai/../127.0.0.1:{victim}/ HTTP/1.1\r\nHost: 127.0.0.1:{own}\r\n",
        "POST /bedrock/v1/127.0.0.1:{victim}/x HTTP/1.1\r\nHost: 127.0.0.1:{own}\r\n",
        "POST /bedrock/v1/x HTTP/1.1\r\nHost: 127.0.0.1:{own}\r\nHelicone-Target-URL: http://127.1:{victim}\r\n",
    ],
)
def test_no_way_of_naming_a_target_leads_inside(run: Running, victim: Upstream, request_of: str) -> None:
    head = request_of.format(victim=victim.port, own=run.proxy.port)
    got = raw(run.proxy.port, f"{head}Connection: close\r\nContent-Length: 2\r\n\r\n{{}}".encode())
    assert b"inside" not in got
    assert victim.asked == []


def answering(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[str]:
    """Have the name `rebound.example.com` lead to one address after the other; the last one stays."""
    real, left, asked = socket.getaddrinfo, list(answers), []

    def fake(host: object, port: object, *args: object, **kw: object) -> object:
        if host not in ("rebound.example.com", b"rebound.example.com"):
            return real(host, port, *args, **kw)  # type: ignore[arg-type]
        address = left.pop(0) if len(left) > 1 else left[0]
        asked.append(address)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", fake)
    return asked


@pytest.mark.parametrize("answers", [("127.0.0.1",), ("203.0.113.5", "127.0.0.1"), ("127.0.0.1", "203.0.113.5")])
def test_names_that_lead_inside_are_refused(
    run: Running, victim: Upstream, answers: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, *answers)
    name = f"rebound.example.com:{victim.port}".encode()
    got = raw(run.proxy.port, b"GET http://%s/ HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % (name, name))
    assert b"inside" not in got
    answering(monkeypatch, *answers)
    got = raw(run.proxy.port, b"CONNECT %s HTTP/1.1\r\n\r\n" % name, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"inside" not in got
    assert victim.asked == []


def test_a_rebound_name_is_no_name_of_our_port(run: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page at http://rebound.example.com:8080 asks its own origin, which leads to us by then."""
    answering(monkeypatch, "127.0.0.1")
    for path in ("/v1/chat/completions", "/oai/v1/chat/completions", "/", "/v1/request/query"):
        head = f"POST {path} HTTP/1.1\r\nHost: rebound.example.com:{run.proxy.port}\r\nConnection: close\r\n"
        got = raw(run.proxy.port, f"{head}Content-Length: 2\r\n\r\n{{}}".encode())
        assert got.split(b" ")[1] in (b"403", b"502"), got


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "https://evil.com"}, 403),
        ({"Origin": "http://127.0.0.1.evil.com"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "https://evil.com", "Sec-Fetch-Site": "none"}, 403),
        ({"Origin": "http://localhost:3000", "Sec-Fetch-Site": "cross-site"}, 200),
        ({"Origin": "app://obsidian.md", "Sec-Fetch-Site": "cross-site"}, 200),
        ({"Origin": "vscode-webview://abc"}, 200),
        ({"Sec-Fetch-Mode": "cors"}, 200),
    ],
)
def test_web_pages_do_not_use_the_gateway(run: Running, headers: dict[str, str], status: int) -> None:
    for path in ("/oai/v1/chat/completions", "/v1/chat/completions"):
        answer = run.direct().post(run.url + path, json={"model": "gpt-4o-mini", "messages": []}, headers=headers)
        assert answer.status_code == status, answer.text
        assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_verdicts() -> None:
    assert reach.verdict("api.openai.com") is Verdict.OUTSIDE
    assert reach.verdict("oai.helicone.ai") is Verdict.OUTSIDE
    assert reach.verdict("10.0.0.1") is Verdict.OUTSIDE
    assert reach.verdict("example.com") is Verdict.UNKNOWN
    assert {reach.verdict(host) for host in SPELLINGS} == {Verdict.HERE}


def test_a_target_that_was_refused_stays_reachable_for_others(
    run: Running, victim: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A target must be public; a program that asks for the same place may go where it could go without us."""
    asked = answering(monkeypatch, "192.0.2.99")
    body = b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    named = b"Helicone-Target-URL: http://rebound.example.com:%d\r\n" % victim.port
    head = b"POST /v1/gateway/v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % run.proxy.port
    got = raw(run.proxy.port, head + named + body)
    assert b"not a public address" in got
    assert asked
    guarded, deadline = run.proxy.addon.fence._guarded, time.monotonic() + 10
    while guarded and time.monotonic() < deadline:  # until the client is known to have left
        threading.Event().wait(0.02)
    assert not guarded
