"""The short ways of a stream's bytes: to the client come the upstream's, whatever the pieces they arrive in."""

from __future__ import annotations

import hashlib
import random
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes import Upstream, sse_answer
from heliproxy import direct_read
from heliproxy.fast_layers import Shortcut
from running import running

URL = "https://api.openai.com/v1/chat/completions"
ASK = {"model": "gpt-4o-mini", "messages": [], "stream": True}
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
PIECE = 64 * 1024


class RawUpstream(Upstream):
    """Sends bytes as they are; the handler is never asked."""

    def __init__(self, pieces: list[bytes]) -> None:
        super().__init__(lambda _: sse_answer([]))
        self.pieces = pieces

    async def _send(self, writer: Any, answer: Any) -> bool:
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in self.pieces:
            writer.write(piece)
            await writer.drain()
        return True


def chunked(parts: list[bytes], extension: bytes) -> bytes:
    return b"".join(b"%x%b\r\n%b\r\n" % (len(one), extension, one) for one in parts)


def split(data: bytes, draw: random.Random, longest: int) -> list[bytes]:
    pieces = []
    while data:
        size = draw.randint(1, longest)
        pieces.append(data[:size])
        data = data[size:]
    return pieces


@pytest.mark.parametrize("extension", [b"", b";name=value"], ids=["plain", "extended"])
@pytest.mark.parametrize("longest", [3, 40, 4000])
def test_chunks_may_be_cut_anywhere(tmp_path: Path, longest: int, extension: bytes) -> None:
    draw = random.Random(longest)
    events = [b'data: {"choices":[{"delta":{"content":"%d"}}]}\n\n' % number for number in range(60)]
    body = b"".join([*events, b"data: [DONE]\n\n"])
    data = HEAD + chunked(split(body, draw, 90), extension) + b"0\r\n\r\n"
    with RawUpstream(split(data, draw, longest)) as up, running(tmp_path / "home", up) as run:
        client = run.client()
        for _ in range(3):  # over one connection: the next head follows the last chunk
            assert client.post(URL, json=ASK).content == body
        rows = run.wait_rows(3)
    assert [(row["status"], row["size_response"]) for row in rows] == [(200, len(body))] * 3
    assert up.connections == 1


def test_pieces_of_a_stream_do_not_pass_the_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[bool] = []
    take = Shortcut.take

    def counted(self: Shortcut, data: bytes) -> tuple[bytes, bool]:
        passed, done = take(self, data)
        taken.append(done)
        return passed, done

    monkeypatch.setattr(Shortcut, "take", counted)
    events = [b"data: %d\n\n" % number for number in range(40)]
    go_on = [threading.Event() for _ in events]

    def steps() -> Iterator[bytes]:
        for event, gone in zip(events, go_on, strict=True):
            yield event
            assert gone.wait(20)

    answer = sse_answer(steps())  # type: ignore[arg-type]
    with Upstream(lambda _: answer) as up, running(tmp_path / "home", up) as run:
        found = []
        with run.client().stream("POST", URL, json=ASK) as response:
            for piece, gone in zip(response.iter_raw(), go_on, strict=False):
                found.append(piece)
                if len(found) == 20:
                    streaming = direct_read._streaming & direct_read._upstreams
                gone.set()
        assert found == events
        assert len(streaming) == 1
        assert not direct_read._streaming  # though the connection stays open
        # The first piece finds the way, and the end is for the layers.
        assert taken.count(True) >= len(events) - 2
        assert taken.count(False) <= 1
        assert run.row()["size_response"] == len(b"".join(events))
    assert not direct_read._upstreams


def ready(*files: int) -> list[Any]:
    return [(selectors.SelectorKey(file, file, selectors.EVENT_READ, None), selectors.EVENT_READ) for file in files]


@pytest.mark.parametrize(
    ("streaming", "files", "expected"),
    [
        ({9}, (1, 2, 8, 3, 9, 4), (8, 9, 1, 2)),
        ({9}, (1, 2, 3), (1, 2)),
        ({9}, (8, 9), (8, 9)),
        ({9}, (1, 2, 3, 4, 5, *range(10, 26)), (*range(10, 26), 1, 2, 3, 4)),
        (set(), (1, 2, 8, 3), (1, 2, 8, 3)),
    ],
)
def test_while_there_are_streams_few_calls_begin_at_once(
    monkeypatch: pytest.MonkeyPatch, streaming: set[int], files: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    monkeypatch.setattr(direct_read, "_streaming", streaming)
    monkeypatch.setattr(direct_read, "_upstreams", {8, 9, *range(10, 26)})
    assert [key.fd for key, _ in direct_read.answers_first(ready(*files))] == list(expected)


@pytest.mark.parametrize("tail", [b"zz\r\n", b"5\r\nab", b"5\r\nabcdeXX"], ids=["no size", "cut", "no end"])
def test_a_broken_chunk_ends_the_answer_after_all_that_was_whole(tmp_path: Path, tail: bytes) -> None:
    class Cut(RawUpstream):
        async def _send(self, writer: Any, answer: Any) -> bool:
            await super()._send(writer, answer)
            return False

    whole = b"data: 1\n\n"
    with Cut([HEAD + chunked([whole], b""), chunked([whole], b""), tail]) as up, running(tmp_path / "home", up) as run:
        found = bytearray()
        with run.client().stream("POST", URL, json=ASK) as response, pytest.raises(httpx.RemoteProtocolError):
            collect(response, found)
        row = run.row()
    assert found.startswith(whole * 2)
    assert row["error"]


def collect(response: httpx.Response, found: bytearray) -> None:
    for piece in response.iter_raw():
        found += piece


@contextmanager
def lazy_reader(proxy: tuple[str, int], context: ssl.SSLContext, request: bytes) -> Iterator[ssl.SSLSocket]:
    with socket.create_connection(proxy, timeout=20) as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        plain.sendall(b"CONNECT api.openai.com:443 HTTP/1.1\r\nhost: api.openai.com:443\r\n\r\n")
        while b"\r\n\r\n" not in plain.recv(4096):
            pass
        with context.wrap_socket(plain, server_hostname="api.openai.com") as secure:
            secure.sendall(request)
            yield secure


def test_who_does_not_read_is_waited_for(tmp_path: Path) -> None:
    """What the client leaves unread must not pile up in the proxy: the upstream is stopped."""
    assert direct_read.problem() is None
    sent, total = [0], 1500
    digest = hashlib.sha256()

    def steps() -> Iterator[bytes]:
        for number in range(total):
            piece = b"data: %s\n\n" % (b"%06d" % number * (PIECE // 6))
            digest.update(piece)
            sent[0] += 1
            yield piece

    body = b'{"model":"gpt-4o-mini","messages":[],"stream":true}'
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: api.openai.com\r\nconnection: close\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    )
    answer = sse_answer(steps())  # type: ignore[arg-type]
    with (
        Upstream(lambda _: answer) as up,
        running(tmp_path / "home", up) as run,
        lazy_reader(("127.0.0.1", run.proxy.port), run.context, request) as client,
    ):
        before, deadline = -1, time.monotonic() + 20
        while before != sent[0] and time.monotonic() < deadline:
            before = sent[0]
            threading.Event().wait(0.5)
        assert 0 < sent[0] < total / 2
        found = b"".join(iter(lambda: client.recv(1 << 20), b""))
    assert sent[0] == total
    head, _, rest = found.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    received, place = hashlib.sha256(), 0
    while size := int(rest[place : (end := rest.index(b"\r\n", place))], 16):
        received.update(rest[end + 2 : end + 2 + size])
        place = end + 2 + size + 2
    assert received.hexdigest() == digest.hexdigest()
