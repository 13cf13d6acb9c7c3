"""What is too big, too deep, too slow or too many costs little, and the next client is served as before."""

from __future__ import annotations

import contextlib
import json
import platform
import re
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, Event, StreamEnded

from fakes import Answer, Asked, Upstream, chat_answer, chat_chunks, json_answer, sse_answer
from heliproxy.secrets import redact_text
from security.bombs import ENCODINGS, bomb
from security.wire import raw
from served import CHAT, PATH, Served, served

HEAD = b"POST /oai/v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
BOMB_MIB = 64


def answer(asked: Asked) -> Answer:
    encoding = asked.header("x-bomb")
    if encoding:
        kind = asked.header("x-type") or "application/json"
        return Answer(200, bomb(encoding), [("content-type", kind), ("content-encoding", encoding)])
    if asked.header("x-endless"):
        return Answer(200, b"{}", [("content-type", "application/json"), ("x-big", "y" * (3 << 20))])
    if asked.header("x-silent"):
        return json_answer({key: value for key, value in chat_answer("Hello!").items() if key != "usage"})
    if b'"stream": true' in asked.body:
        return sse_answer(chat_chunks(["Hello", "!"]))
    return json_answer(chat_answer("Hello!"))


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("limits") / "home"
    with Upstream(answer) as up, served(home, up.url) as found:
        assert found.ask().status == 200
        assert found.ask(headers={"x-silent": "1"}).status == 200  # loads what tokens are counted with
        for path in ("/requests", "/v1/evals/scores"):  # loads what the API needs
            found.get(path)
        found.health(flush=True)
        yield found


def reset_peak(proxy: Served) -> None:
    Path(f"/proc/{proxy.running.pid}/clear_refs").write_text("5")


def peak_mib(proxy: Served) -> float:
    text = Path(f"/proc/{proxy.running.pid}/status").read_text("ascii")
    return int(re.findall(r"VmHWM:\s+(\d+) kB", text)[0]) / 1024


@contextlib.contextmanager
def costing_at_most(proxy: Served, mib: float) -> Iterator[None]:
    try:
        reset_peak(proxy)
    except OSError:
        pytest.skip("the kernel does not tell how much memory was used")
    before = proxy.resident_mib()
    yield
    proxy.health(flush=True)
    assert peak_mib(proxy) - before < mib


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_answers_that_unpack_to_much_pass_as_they_are(proxy: Served, encoding: str, kind: str) -> None:
    with costing_at_most(proxy, BOMB_MIB):
        reply = proxy.ask(headers={"x-bomb": encoding, "x-type": kind})
        assert (reply.status, reply.body) == (200, bomb(encoding))


def test_twenty_at_once_cost_hardly_more_than_one(proxy: Served) -> None:
    with costing_at_most(proxy, BOMB_MIB), ThreadPoolExecutor(20) as clients:
        for encoding in ("br", "gzip"):
            bomb(encoding)  # made once, before twenty threads of the upstream would make it
            replies = list(clients.map(lambda _, e=encoding: proxy.ask(headers={"x-bomb": e}).status, range(20)))
            assert replies == [200] * 20


def test_what_a_bomb_took_is_given_back(proxy: Served) -> None:
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        pytest.skip("it is glibc that keeps memory")
    before = proxy.resident_mib()
    for encoding in ENCODINGS:
        proxy.ask(headers={"x-bomb": encoding})
    proxy.health(flush=True)
    assert proxy.resident_mib() - before < 12


@pytest.mark.parametrize("policies", [{}, {"Helicone-Cache-Enabled": "true", "Helicone-LLM-Security-Enabled": "true"}])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_requests_that_unpack_to_much(proxy: Served, encoding: str, policies: dict[str, str]) -> None:
    headers = {"content-encoding": encoding, "content-type": "application/json"} | policies
    with costing_at_most(proxy, BOMB_MIB):
        reply = httpx.post(f"http://127.0.0.1:{proxy.port}{PATH}", content=bomb(encoding), headers=headers)
        assert reply.status_code in (200, 400, 500)


@pytest.mark.parametrize("path", ["/oai/v1/log", "/v1/traces", "/v1/request/query"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_logs_that_unpack_to_much_are_refused(proxy: Served, encoding: str, path: str) -> None:
    headers = {"content-encoding": encoding, "content-type": "application/json"}
    with costing_at_most(proxy, BOMB_MIB):
        reply = httpx.post(f"http://127.0.0.1:{proxy.api_port}{path}", content=bomb(encoding), headers=headers)
        assert reply.status_code in (400, 413, 415)


@pytest.mark.parametrize(("start", "piece"), [(b"X-Big: ", b"x" * 65536), (b"", b"X-A: " + b"y" * 9000 + b"\r\n")])
@pytest.mark.parametrize("line", [HEAD, b"GET /", b"CONNECT "])
def test_headers_without_end_are_refused_early(proxy: Served, line: bytes, start: bytes, piece: bytes) -> None:
    with costing_at_most(proxy, 32), socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as conn:
        sent, got = 0, b""
        with contextlib.suppress(OSError):
            conn.sendall(line + start)
            while sent < 64 << 20:
                conn.sendall(piece)
                sent += len(piece)
        with contextlib.suppress(OSError):
            got = conn.recv(65536)
        assert sent < 32 << 20
        assert got == b"" or got.startswith(b"HTTP/1.1 4")
        assert len(got) < 10_000
    assert proxy.ask().status == 200


def test_long_headers_pass(proxy: Served) -> None:
    assert proxy.ask(headers={"x-long": "y" * 200_000}).status in (200, 502)  # the fake upstream takes 64 KiB
    assert proxy.ask(headers={"x-long": "y" * 50_000}).status == 200


def test_an_upstream_with_endless_headers_is_given_up(proxy: Served) -> None:
    with costing_at_most(proxy, 32):
        assert proxy.ask(headers={"x-endless": "1"}).status in (500, 502)
    assert proxy.ask().status == 200


def test_a_body_of_64_mib_passes(proxy: Served) -> None:
    body = b'{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "' + b"x" * (64 << 20) + b'"}]}'
    reply = httpx.post(f"http://127.0.0.1:{proxy.port}{PATH}", content=body, timeout=60)
    assert reply.status_code == 200
    row = proxy.get(f"/v1/request/{reply.headers['helicone-id']}")
    assert row.status in (200, 404)


def test_five_hundred_half_sent_requests_keep_nobody_waiting(proxy: Served) -> None:
    halves = (HEAD + b"Content-Le", HEAD + b"Content-Length: 100\r\n\r\n{", b"C", b"")
    api = (
        b"POST /oai/v1/log HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
    )
    with contextlib.ExitStack() as stack:
        for index in range(500):
            conn = stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port), timeout=20))
            conn.sendall(halves[index % 4])
        for _ in range(100):
            stack.enter_context(socket.create_connection(("127.0.0.1", proxy.api_port), timeout=20)).sendall(api)
        assert proxy.ask(timeout=5).status == 200
        assert proxy.health()["status"] == "ok"
    assert proxy.ask(timeout=5).status == 200


ODD = {
    "deep lists": b"[" * 500_000,
    "deep objects": b'{"a":' * 200_000,
    "long integer": b'{"model": "gpt-4o-mini", "max_tokens": ' + b"9" * 5000 + b', "messages": []}',
    "half surrogates": b'{"model": "\\ud800\\u0000", "messages": [{"role": "user", "content": "\\udfff"}]}',
    "NUL": b'{"model": "a\0b"}',
    "no numbers": b'{"model": NaN, "messages": Infinity, "n": 1e999}',
    "no UTF-8": b'{"model": "\xff\xfe"}',
}


@pytest.mark.parametrize("name", ODD)
def test_odd_bodies_harm_nobody(proxy: Served, name: str) -> None:
    policies = {"Helicone-Cache-Enabled": "true", "Helicone-RateLimit-Policy": "1000;w=60;u=cents"}
    fallbacks = {"Helicone-Fallbacks": ODD[name].decode("latin-1")[:20_000].replace("\0", "")}
    with httpx.Client(trust_env=False, timeout=20, headers={"content-type": "application/json"}) as client:
        gateway, api = f"http://127.0.0.1:{proxy.port}", f"http://127.0.0.1:{proxy.api_port}"
        assert client.post(gateway + PATH, content=ODD[name]).status_code == 200
        assert client.post(gateway + PATH, content=ODD[name], headers=policies).status_code == 200
        given = {key: value.encode("latin-1") for key, value in fallbacks.items()}
        assert client.post(gateway + PATH, content=b"{}", headers=given).status_code in (200, 400, 500)
        for path in ("/oai/v1/log", "/v1/traces", "/v1/request/query", "/v1/helicone-sql/execute", "/v1/webhooks"):
            assert client.post(api + path, content=ODD[name]).status_code in (200, 400, 422)
    assert proxy.health(flush=True)["recorder"] == "running"
    assert proxy.ask().status == 200


@pytest.mark.parametrize(
    ("text", "headers"),
    [
        ('<helicone-prompt-input key="a" >' * 30_000, {"Helicone-Prompt-Id": "p"}),
        ("<helicone-prompt-input " * 40_000, {"Helicone-Prompt-Id": "p"}),
        ("<!--" * 250_000, {"Helicone-Token-Limit-Exception-Handler": "truncate"}),
        ("\n " * 500_000, {"Helicone-Token-Limit-Exception-Handler": "truncate"}),
        ('"' * 1_000_000, {}),
        ('"key\\": ' * 100_000, {}),
        ("\\" * 1_000_000, {}),
    ],
    ids=["open tags", "open attributes", "comments", "white space", "quotes", "names", "backslashes"],
)
def test_long_texts_are_read_once(proxy: Served, text: str, headers: dict[str, str]) -> None:
    """A pattern that starts anew at each of a hundred thousand places would keep everybody waiting for hours."""
    reply = proxy.ask({**CHAT, "messages": [{"role": "user", "content": text}]}, headers)
    assert reply.status == 200
    proxy.health(flush=True)
    page = proxy.get(f"/requests/{reply.headers['helicone-id']}")  # of a body that was cut
    assert page.status == 200
    assert proxy.get(f"/v1/request/{reply.headers['helicone-id']}").status == 200


LONG = (
    "WITH RECURSIVE a(s) AS (SELECT '00' UNION ALL SELECT s || s FROM a WHERE length(s) < 2000000),"
    " b AS (SELECT max(s) AS m FROM a) SELECT "
)


@pytest.mark.parametrize(
    ("sql", "status"),
    [
        (LONG + ", ".join(["m || 'x'"] * 120) + " FROM b", 400),
        (LONG + ", ".join(["m || 'x'"] * 500) + " FROM b", 400),
        (LONG + "m || x.value FROM b, json_each('[" + "1," * 2000 + "1]') x", 400),
        (LONG + "instr(m, substr(m, 1, 1000000) || '1') FROM b", 200),
        (LONG + "length(replace(m, substr(m, 1, 1000000) || '1', 'x')) FROM b", 200),
        (LONG + "replace(m, '0', m) FROM b", 400),
        (LONG + "length(trim(m, m)) FROM b", 400),
        (LONG + "m LIKE '%" + "0" * 5000 + "1' FROM b", 400),
        ("SELECT json_patch('{}', '{}')", 400),
        ("SELECT " + ", ".join(["hex(zeroblob(4000000))"] * 120), 400),
        ("SELECT count(*) FROM objects", 400),
        ("SELECT count(*) FROM sqlite_master", 400),
    ],
)
def test_a_query_is_bounded_within_one_step_too(proxy: Served, sql: str, status: int) -> None:
    with costing_at_most(proxy, 600):
        url = f"http://127.0.0.1:{proxy.api_port}/v1/helicone-sql/execute"
        assert httpx.post(url, json={"sql": sql}, timeout=120).status_code == status
        assert proxy.get("/sql?" + urlencode({"q": sql})).status == 200


@pytest.mark.parametrize("piece", ["sk-", "-eyJ", "eyJabcdefghij.", ";w=", "Bearer ", "://"])
def test_long_messages_are_read_once(piece: str) -> None:
    assert len(redact_text(piece * 100_000)) > 100_000


@pytest.mark.parametrize(
    "request_of",
    [
        b"POST /oai/v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nHelicone-Property-A: a\0b\r\n",
        b"POST /oai/v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nHelicone-User-Id: a\rX-Evil: 1\r\n",
        b"POST /oai/v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nHelicone-Request-Id: %0d%0aX-Evil: 1\r\n",
        b"POST /oai/v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nHelicone-RateLimit-Policy: 1;\x0bX-Evil: 1\r\n",
        b"POST /v1/gateway/x HTTP/1.1\r\nHost: 127.0.0.1\r\nHelicone-Target-Url: http://a%0d%0aX-Evil: 1\r\n",
        b"POST /%0d%0aX-Evil:%201/v1/x HTTP/1.1\r\nHost: 127.0.0.1\r\n",
        b"GET /login?to=%0d%0aX-Evil:%201 HTTP/1.1\r\nHost: 127.0.0.1\r\n",
        b"GET /static/../../../../etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\n",
        b"GET /static/%2e%2e/%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\n",
        b"GET /static/..%2f..%2f..%2fetc%2fpasswd HTTP/1.1\r\nHost: 127.0.0.1\r\n",
        b"GET /static//etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\n",
    ],
)
def test_no_header_is_injected_and_no_path_left(proxy: Served, request_of: bytes) -> None:
    for port in (proxy.port, proxy.api_port):
        host = b"Host: 127.0.0.1:%d" % port
        got = raw(
            port, request_of.replace(b"Host: 127.0.0.1", host) + b"Content-Length: 0\r\nConnection: close\r\n\r\n"
        )
        head = got.partition(b"\r\n\r\n")[0].lower()
        assert not any(line.startswith(b"x-evil") for line in re.split(rb"[\r\n]+", head))
        assert b"root:" not in got


def test_a_key_in_a_head_that_never_ends_is_not_logged(proxy: Served) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as conn:
        conn.sendall(HEAD + b"Authorization: Bearer sk-unfinished-0123456789\r\n")
        conn.shutdown(socket.SHUT_WR)
        conn.recv(1000)
    assert "sk-unfinished" not in proxy.errors


HTTP2 = [
    (":method", "POST"), (":path", "/v1/chat/completions"), (":scheme", "https"), (":authority", "api.openai.com"),
    ("content-type", "application/json"),
]  # fmt: skip


@contextlib.contextmanager
def http2(proxy: Served) -> Iterator[tuple[ssl.SSLSocket, H2Connection]]:
    """A connection of our own to the provider's host, through the proxy, with nothing checked on this side."""
    context = ssl.create_default_context(cafile=str(proxy.home / "ca" / "mitmproxy-ca-cert.pem"))
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as plain:
        plain.sendall(b"CONNECT api.openai.com:443 HTTP/1.1\r\nHost: api.openai.com:443\r\n\r\n")
        assert plain.recv(1000).startswith(b"HTTP/1.1 200")
        with context.wrap_socket(plain, server_hostname="api.openai.com") as conn:
            h2 = H2Connection(H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False))
            h2.initiate_connection()
            conn.sendall(h2.data_to_send())
            yield conn, h2


def heard(conn: ssl.SSLSocket, h2: H2Connection) -> Event | None:
    """The event that ends a stream or the connection; None when it was closed without one."""
    with contextlib.suppress(OSError):
        while data := conn.recv(65536):
            for event in h2.receive_data(data):
                if isinstance(event, (StreamEnded, ConnectionTerminated)):
                    return event
    return None


def reset(conn: ssl.SSLSocket, h2: H2Connection, times: int) -> None:
    with contextlib.suppress(OSError):
        for _ in range(times):
            stream = h2.get_next_available_stream_id()
            h2.send_headers(stream, HTTP2, end_stream=True)
            h2.reset_stream(stream)
            conn.sendall(h2.data_to_send())


def test_streams_opened_and_reset_without_end_close_their_connection(proxy: Served) -> None:
    with costing_at_most(proxy, 64), http2(proxy) as (conn, h2):
        reset(conn, h2, 5000)
        gone = heard(conn, h2)
        assert gone is None or isinstance(gone, ConnectionTerminated)
    assert proxy.ask().status == 200


def test_streams_are_reset_in_peace(proxy: Served) -> None:
    with http2(proxy) as (conn, h2):
        reset(conn, h2, 100)
        h2.send_headers(stream := h2.get_next_available_stream_id(), HTTP2)
        h2.send_data(stream, json.dumps(CHAT).encode(), end_stream=True)
        conn.sendall(h2.data_to_send())
        assert isinstance(heard(conn, h2), StreamEnded)


@pytest.mark.parametrize(
    "extra",
    [
        ("x-a", "b\r\nX-Evil: 1"),
        ("x-a", "b\0c"),
        ("x-a\r\nx-evil", "1"),
        ("helicone-request-id", "a\r\nX-Evil: 1"),
        ("helicone-ratelimit-policy", "1;w=60\r\nX-Evil: 1"),
        ("helicone-property-x\r\nx-evil", "1"),
        ("transfer-encoding", "chunked"),
        ("content-length", "5"),
        ("host", "evil.example.com"),
        (":path", "/evil"),
    ],
)
def test_no_odd_header_passes_in_http2(proxy: Served, extra: tuple[str, str]) -> None:
    with http2(proxy) as (conn, h2):
        stream = h2.get_next_available_stream_id()
        h2.send_headers(stream, [*HTTP2, extra])
        h2.send_data(stream, json.dumps(CHAT).encode(), end_stream=True)
        conn.sendall(h2.data_to_send())
        assert isinstance(heard(conn, h2), ConnectionTerminated)


def test_many_streams_at_once(proxy: Served) -> None:
    """A hundred here; a thousand in the torture."""
    good = []

    def stream() -> None:
        reply = proxy.ask({**CHAT, "stream": True})
        good.append(reply.status == 200 and reply.body.endswith(b"data: [DONE]\n\n"))

    threads = [threading.Thread(target=stream) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert good == [True] * 100
