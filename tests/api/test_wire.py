"""Logs straight from the socket: answered as uvicorn and Starlette would, however the bytes are cut."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from api_rig import Port, Rig, log_body
from heliproxy import recorder
from heliproxy.api.door import respond
from heliproxy.api.plain import plain_head

HEAD = b"POST /oai/v1/log HTTP/1.1\r\nHost: 127.0.0.1:8585\r\nContent-Type: application/json\r\n"


def post(body: bytes, more: bytes = b"", path: bytes = b"/oai/v1/log", length: int | None = None) -> bytes:
    head = HEAD.replace(b"/oai/v1/log", path) + more
    return head + b"Content-Length: %d\r\n\r\n" % (len(body) if length is None else length) + body


LOG = json.dumps(log_body()).encode()
UNCUT = post(LOG)
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(LOG), LOG)


@pytest.fixture
def port(rig: Rig) -> Iterator[Port]:
    found = Port(rig)
    yield found
    found.close()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (UNCUT, "/oai/v1/log"),
        (post(b"{}", b"Connection: keep-alive\r\nX: \xc3\xa9 \t\r\n"), "/oai/v1/log"),
        (post(b"{}", path=b"/v1/trace/custom/log/typed"), "/v1/trace/custom/log/typed"),
        (UNCUT[:-len(LOG) - 2], None),
        (UNCUT.replace(b"HTTP/1.1", b"HTTP/1.0"), None),
        (UNCUT.replace(b"POST", b"PUT"), None),
        (post(b"{}", path=b"/oai/v1/log?a=b"), None),
        (post(b"{}", b"Connection: close\r\n"), None),
        (post(b"{}", b"Connection: upgrade\r\n"), None),
        (post(b"{}", b"Expect: 100-continue\r\n"), None),
        (post(b"{}", b"Transfer-Encoding: chunked\r\n"), None),
        (post(b"{}", b"Content-Encoding: gzip\r\n"), None),
        (post(b"{}", b"Content-Length: 3\r\n"), None),
        (post(b"{}", b"Host: other\r\n"), None),
        (UNCUT.replace(b"Host: 127.0.0.1:8585\r\n", b""), None),
        (post(b"{}", b"X : y\r\n"), None),
        (post(b"{}", b"X: y\r\n folded\r\n"), None),
        (post(b"{}", b"X: y\nZ: 1\r\n"), None),
        (post(b"{}", b"X: a\x00b\r\n"), None),
        (post(b"{}", b"X: " + b"y" * 20_000 + b"\r\n"), None),
        (UNCUT.replace(b"Content-Length: ", b"Content-Length: +"), None),
        (UNCUT.replace(b"Content-Length: ", b"Content-Length: 99999999999"), None),
        (b"", None),
        (b"POST /", None),
    ],
)  # fmt: skip
def test_only_plain_heads_are_read(data: bytes, expected: str | None) -> None:
    found = plain_head(data)
    assert (found[0] if found else None) == expected


def test_fields_come_with_lower_names_and_trimmed_values() -> None:
    found = plain_head(post(b"{}", b"Helicone-User-Id: \t ada  \r\nX:\r\n"))
    assert found is not None
    assert found[1] == [
        (b"host", b"127.0.0.1:8585"),
        (b"content-type", b"application/json"),
        (b"helicone-user-id", b"ada"),
        (b"x", b""),
        (b"content-length", b"2"),
    ]
    assert found[3] == 2


@pytest.mark.parametrize(
    "pieces",
    [(UNCUT,), (UNCUT[:-len(LOG)], LOG), (UNCUT[:40], UNCUT[40:]), (UNCUT[:-700], UNCUT[-700:-300], UNCUT[-300:])],
    ids=["whole", "head first", "cut in the head", "three pieces"],
)  # fmt: skip
def test_a_log_arrives_however_it_is_cut(port: Port, pieces: tuple[bytes, ...]) -> None:
    ((status, headers, body),) = port.send(*pieces)
    assert (status, body) == (200, b"ok")
    assert port.rig.get(f"/v1/request/{headers['helicone-id']}")["total_tokens"] == 120


@pytest.mark.parametrize(
    ("plain", "chunked"),
    [
        (UNCUT, CHUNKED),
        (post(b"{}"), HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"),
        (post(b"{"), HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n\r\n"),
    ],
    ids=["ok", "refused", "no JSON"],
)
def test_the_answer_is_that_of_the_long_way(port: Port, plain: bytes, chunked: bytes) -> None:
    answers = [port.send(sent)[0] for sent in (plain, chunked)]
    for _, headers, _ in answers:
        headers.pop("helicone-id", None)
        assert headers.pop("date")
    assert answers[0] == answers[1]


def test_answers_come_in_the_order_of_the_requests(port: Port) -> None:
    health = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1:8585\r\n\r\n"
    answers = port.send(UNCUT + UNCUT + health + UNCUT + CHUNKED + UNCUT, answers=6)
    assert [status for status, _, _ in answers] == [200] * 6
    assert [body == b"ok" for _, _, body in answers] == [True, True, False, True, True, True]
    assert len({headers["helicone-id"] for _, headers, body in answers if body == b"ok"}) == 5
    assert port.rig.post("/v1/request/count/query") == 5


@pytest.mark.parametrize(
    ("request_bytes", "status", "text"),
    [
        (UNCUT.replace(b"127.0.0.1:8585", b"evil.example"), 403, "does not answer to the host"),
        (post(LOG, b"Origin: https://evil.example\r\n"), 403, "are refused"),
        (UNCUT.replace(b"application/json", b"text/plain"), 415, "should be application/json"),
        (post(b"", length=11 << 20), 400, "Payload too large"),
        (post(b"[1,", path=b"/v1/trace/custom/log"), 400, "not valid JSON"),
        (post(LOG, path=b"/oai/v2/log"), 404, "there is no POST"),
    ],
)
def test_refusals_are_those_of_the_app(port: Port, request_bytes: bytes, status: int, text: str) -> None:
    (answer,) = port.send(request_bytes)
    assert answer[0] == status
    assert text in answer[2].decode()
    assert port.rig.post("/v1/request/count/query") == 0


def test_the_token_is_asked_for(port: Port) -> None:
    object.__setattr__(port.rig.addon.settings, "token", "t0ken")
    assert port.send(UNCUT)[0][0] == 401
    assert port.send(post(LOG, b"Authorization: Bearer t0ken\r\n"))[0][0] == 200


@pytest.mark.parametrize("sent", [UNCUT, CHUNKED], ids=["plain", "chunked"])
def test_a_log_without_room_is_refused_and_not_counted_as_lost(
    port: Port, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(recorder, "MAX_PENDING_BYTES", 100)
    ((status, headers, body),) = port.send(sent)
    assert (status, headers["retry-after"]) == (503, "1")
    assert re.fullmatch(rb'\{"error":"logs come faster .* again"\}', body)
    assert port.rig.recorder.counters.lost_rows == 0
    monkeypatch.undo()
    assert port.send(sent)[0][0] == 200
    assert port.rig.post("/v1/request/count/query") == 1


@pytest.mark.parametrize(
    ("method", "path", "headers", "body"),
    [
        ("POST", "/oai/v1/log", (), LOG),
        ("POST", "/oai/v1/log", (), b"{}"),
        ("POST", "/oai/v1/log", (), b"{"),
        ("POST", "/v1/trace/custom/log/typed", (), b"{}"),
        ("POST", "/v1/trace/custom/log", (), b"{"),
        ("POST", "/oai/v1/log", (), b""),
        ("POST", "/oai/v1/log", ((b"origin", b"https://evil.example"),), LOG),
        ("POST", "/oai/v1/log", ((b"content-encoding", b"gzip"),), gzip.compress(LOG)),
        ("GET", "/oai/v1/log", (), LOG),
    ],
)
def test_the_door_of_the_proxy_answers_the_same(
    port: Port, method: str, path: str, headers: tuple[tuple[bytes, bytes], ...], body: bytes
) -> None:
    fields = ((b"Host", b"api.worker.helicone.ai"), (b"Content-Type", b"application/json"), *headers)
    known = port.app

    async def unknown(scope: Any, receive: Any, send: Any) -> None:
        await known(scope, receive, send)

    answers = []
    for app in (known, unknown):
        status, found, text = asyncio.run(respond(app, method, path, "", fields, body, None))
        answers.append((status, sorted(pair for pair in found if pair[0] != b"helicone-id"), text))
    assert answers[0] == answers[1]
    assert port.rig.post("/v1/request/count/query") == (2 if answers[0][2] == b"ok" else 0)
