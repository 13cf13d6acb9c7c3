"""What one connection may take of us before it is closed.

How long the head of an HTTP/1 message may be: mitmproxy collects it without end, and logs what is left of it. HTTP/2
has its own bound (64 KiB of headers) in mitmproxy already; what it lacks is one for streams that are opened and reset
at once (CVE-2023-44487), which cost their sender nothing and us a request each.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable
from typing import Any

import h2.errors
import h2.events
from h11._receivebuffer import ReceiveBuffer
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http import _http1, _http2
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._events import ErrorCode, ResponseProtocolError

logger = logging.getLogger(__name__)

MAX_HEAD = 1024 * 1024
"""Bytes of a request line or status line with all its headers. `Helicone-Fallbacks` may carry whole prompts."""
RESETS = 200
"""Streams that a client may reset in one go: all that it has under way, twice."""
RESETS_A_SECOND = 20.0
_MARK = "_heliproxy_bounded"
Read = Callable[..., CommandGenerator[None]]


def _is_endless(codec: Any) -> bool:
    """Whether the head is longer than allowed; what follows a head in the buffer does not count."""
    if len(codec.buf) <= MAX_HEAD:
        return False
    head = codec.buf._data[:MAX_HEAD]
    return b"\n\r\n" not in head and b"\n\n" not in head


def _request_head(read: Read) -> Read:
    def read_headers(self: Any, event: events.ConnectionEvent) -> CommandGenerator[None]:
        if isinstance(event, events.ConnectionClosed):
            return _close_quietly(self)
        return _refuse(self) if _is_endless(self) else read(self, event)

    return read_headers


def _response_head(read: Read) -> Read:
    def read_headers(self: Any, event: events.ConnectionEvent) -> CommandGenerator[None]:
        return _give_up(self) if _is_endless(self) else read(self, event)

    return read_headers


def _close_quietly(codec: Any) -> CommandGenerator[None]:
    """Close a connection that ends in the middle of a head, without the key in it being logged."""
    _forget(codec)
    yield commands.CloseConnection(codec.conn)


def _refuse(codec: Any) -> CommandGenerator[None]:
    _forget(codec)
    yield commands.SendData(
        codec.conn,
        b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-type: text/plain\r\n"
        b"content-length: 41\r\n\r\nthe headers are longer than a megabyte.\r\n",
    )
    yield commands.CloseConnection(codec.conn)
    codec.state = codec.done


def _give_up(codec: Any) -> CommandGenerator[None]:
    _forget(codec)
    yield commands.CloseConnection(codec.conn)
    if codec.stream_id is not None:
        error = "the headers of the answer are longer than a megabyte"
        yield ReceiveHttp(ResponseProtocolError(codec.stream_id, error, ErrorCode.GENERIC_SERVER_ERROR))


def _forget(codec: Any) -> None:
    codec.buf = ReceiveBuffer()


class Allowance:
    """How many streams a client may reset now: `RESETS`, which come back in time."""

    __slots__ = ("_at", "_left")

    def __init__(self, now: float) -> None:
        self._left, self._at = float(RESETS), now

    def take(self, now: float) -> bool:
        """Whether there was one left."""
        self._left = min(float(RESETS), self._left + (now - self._at) * RESETS_A_SECOND) - 1
        self._at = now
        return self._left >= 0


def _client_resets(handle: Callable[..., CommandGenerator[bool]]) -> Callable[..., CommandGenerator[bool]]:
    def handle_h2_event(self: Any, event: h2.events.Event) -> CommandGenerator[bool]:
        if type(event) is h2.events.StreamReset:
            now = time.monotonic()
            if not self.__dict__.setdefault("_heliproxy_resets", Allowance(now)).take(now):
                return _calm_down(self)
        return handle(self, event)

    return handle_h2_event


def _calm_down(codec: Any) -> CommandGenerator[bool]:
    yield from codec.protocol_error("too many streams were reset", h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
    return True


def use() -> None:
    """Put the bounds on mitmproxy's HTTP, for all proxies of this process; a second call does nothing."""
    _bound_resets()
    for codec, bound in ((_http1.Http1Server, _request_head), (_http1.Http1Client, _response_head)):
        read = getattr(codec, "read_headers", None)
        if read is None or list(inspect.signature(read).parameters) != ["self", "event"]:
            logger.warning("the length of headers is not bounded: this mitmproxy reads them in another way")
            return
        if not hasattr(read, _MARK):
            wrapped = bound(read)
            setattr(wrapped, _MARK, True)
            codec.read_headers = wrapped  # type: ignore[method-assign]


def _bound_resets() -> None:
    handle = getattr(_http2.Http2Server, "handle_h2_event", None)
    closes = getattr(_http2.Http2Server, "protocol_error", None)
    if (
        handle is None
        or closes is None
        or list(inspect.signature(handle).parameters) != ["self", "event"]
        or list(inspect.signature(closes).parameters) != ["self", "message", "error_code"]
    ):
        logger.warning("HTTP/2 resets are not bounded: this mitmproxy reads them in another way")
    elif not hasattr(handle, _MARK):
        wrapped = _client_resets(handle)
        setattr(wrapped, _MARK, True)
        _http2.Http2Server.handle_h2_event = wrapped  # type: ignore[method-assign]
