"""What mitmproxy's HTTP/1 leaves out, and stops at: trailers, and answers that are announced first (1xx).

At a trailer its core raises in the middle of a connection, and the client waits for ever. After `103 Early Hints` it
takes the real answer for garbage. Here trailers are read, and passed on where the message is chunked; answers that
announce another are dropped, as mitmproxy does it for HTTP/2.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import h11
from h11._readers import ChunkedReader
from h11._receivebuffer import ReceiveBuffer
from mitmproxy import http
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http import _http1
from mitmproxy.proxy.layers.http._events import (
    HttpEvent,
    RequestEndOfMessage,
    RequestTrailers,
    ResponseEndOfMessage,
    ResponseTrailers,
)

logger = logging.getLogger(__name__)

_OWNER = "_heliproxy_owner"
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")
"""The head of a chunk without extensions; h11 reads any other."""
Send = Callable[[Any, HttpEvent], Iterable[commands.Command]]


class TrailerReader(ChunkedReader):
    """Reads a chunked body, and puts its trailers where mitmproxy looks for those of HTTP/2: on the message.

    Chunks that have arrived together are given together: each costs a way through the proxy.
    """

    def __call__(self, buf: ReceiveBuffer) -> Any:
        whole = self.whole_chunks(buf)
        if whole:
            return h11.Data(data=whole)
        event = super().__call__(buf)
        if type(event) is h11.EndOfMessage and event.headers:
            codec: Any = vars(buf)[_OWNER]
            is_request = type(codec) is _http1.Http1Server
            message = codec.request if is_request else codec.response
            message.trailers = http.Headers(list(event.headers))
            return h11.EndOfMessage()
        return event

    def whole_chunks(self, buf: ReceiveBuffer) -> bytes:
        """Take the chunks at the start of the buffer that are there with both their ends, RFC 9112 section 7.1."""
        if self._reading_trailer or self._bytes_in_chunk:
            return b""
        data = buf._data
        place = len(self._bytes_to_discard)  # the end of a chunk whose data came without it
        if not data.startswith(self._bytes_to_discard):
            return b""
        found = []
        while head := _CHUNK.match(data, place):
            start = head.end()
            end = start + int(head[1], 16)
            if end == start or data[end : end + 2] != b"\r\n":
                break
            found.append(bytes(data[start:end]))
            place = end + 2
        if found:
            buf._extract(place)
            self._bytes_to_discard = b""
        return b"".join(found)


def _start(init: Callable[..., None]) -> Callable[..., None]:
    def start(self: _http1.Http1Connection, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        setattr(self.buf, _OWNER, self)

    return start


def _reader(make: Callable[[int | None], Any]) -> Callable[[int | None], Any]:
    def make_body_reader(expected_size: int | None) -> Any:
        return TrailerReader() if expected_size is None else make(expected_size)

    return make_body_reader


def _answer(send: Send) -> Send:
    def answer(self: _http1.Http1Server, event: HttpEvent) -> Iterable[commands.Command]:
        kind = type(event)
        if kind is ResponseTrailers:
            return ()  # they are on the response, and follow at its end
        if kind is ResponseEndOfMessage and self.response is not None and self.response.trailers:
            assert self.request is not None
            if self.request.method.upper() != "HEAD" and _is_chunked(self.response):
                return _end(self, self.response.trailers, response=True)
        return send(self, event)

    return answer


def _ask(send: Send) -> Send:
    def ask(self: _http1.Http1Client, event: HttpEvent) -> Iterable[commands.Command]:
        kind = type(event)
        if kind is RequestTrailers:
            return ()
        request = self.request
        if kind is RequestEndOfMessage and request is not None and request.trailers and _is_chunked(request):
            return _end(self, request.trailers, request=True)
        return send(self, event)

    return ask


def _is_chunked(message: http.Message) -> bool:
    return "chunked" in message.headers.get("transfer-encoding", "").lower()


def _end(codec: _http1.Http1Connection, trailers: http.Headers, **done: bool) -> CommandGenerator[None]:
    yield commands.SendData(codec.conn, b"0\r\n" + bytes(trailers) + b"\r\n")
    yield from codec.mark_done(**done)


def _past_announcements(read: Callable[..., CommandGenerator[None]]) -> Callable[..., CommandGenerator[None]]:
    def read_headers(self: _http1.Http1Client, event: events.ConnectionEvent) -> CommandGenerator[None]:
        while self.request is not None and _is_announcement(bytes(self.buf._data[:12])):
            if not self.buf.maybe_extract_lines():
                break
        if self.buf or not isinstance(event, events.DataReceived):
            yield from read(self, event)

    return read_headers


def _is_announcement(start: bytes) -> bool:
    """Whether an answer that starts so is a 1xx that another follows."""
    return len(start) == 12 and start.startswith(b"HTTP/1.") and start[8:10] == b" 1" and start[9:] != b"101"


def problem() -> str | None:
    """Why these changes do not fit the installed mitmproxy, or None if they do."""
    for owner, name, parameters in (
        (_http1.Http1Server, "send", ("self", "event")),
        (_http1.Http1Client, "send", ("self", "event")),
        (_http1.Http1Client, "read_headers", ("self", "event")),
        (_http1.Http1Connection, "mark_done", ("self", "request", "response")),
        (_http1, "make_body_reader", ("expected_size",)),
    ):
        found = getattr(owner, name, None)
        if found is None or tuple(inspect.signature(inspect.unwrap(found)).parameters) != parameters:
            return f"{owner.__name__}.{name} is not as it was"
    if (
        not hasattr(ReceiveBuffer(), "_data")
        or not hasattr(ReceiveBuffer, "_extract")
        or not hasattr(ReceiveBuffer(), "__dict__")
    ):
        return "h11's buffer is not as it was"
    return None


@cache
def use() -> None:
    """Change mitmproxy's HTTP/1 for this process, once."""
    reason = problem()
    if reason is not None:
        logger.warning("HTTP/1 trailers are not supported: %s", reason)
        return
    _http1.Http1Connection.__init__ = _start(_http1.Http1Connection.__init__)  # type: ignore[method-assign]
    _http1.make_body_reader = _reader(_http1.make_body_reader)  # type: ignore[assignment]
    _http1.Http1Server.send = _answer(_http1.Http1Server.send)  # type: ignore[assignment,method-assign]
    _http1.Http1Client.send = _ask(_http1.Http1Client.send)  # type: ignore[assignment,method-assign]
    _http1.Http1Client.read_headers = _past_announcements(_http1.Http1Client.read_headers)  # type: ignore[method-assign]
