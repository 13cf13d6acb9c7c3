"""Bodies that are longer than a proxy should hold: from some length on they pass piece by piece.

mitmproxy collects a request whole before the addons see it, and so do policies that read it. Past `MAX_BODY` it asks
the addons, through a hook, what to do: with `flow.request.stream` set, what was collected is sent and the rest follows
as it comes; with a `flow.response`, the rest is read and thrown away, and the client gets that answer when it has sent
all. An answer that is collected passes on from there as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mitmproxy.proxy import commands
from mitmproxy.proxy.layers.http._events import RequestData, ResponseData
from mitmproxy.proxy.utils import ReceiveBuffer

from heliproxy.fast_layers import InlineStream
from heliproxy.record import STORED_LIMIT

if TYPE_CHECKING:
    from mitmproxy import http
    from mitmproxy.proxy.layer import CommandGenerator

    from heliproxy.exchange import Exchange, HeaderFields

MAX_BODY = 64 * 1024 * 1024
"""Bytes of one body that are held."""
KEPT = STORED_LIMIT + 1
"""Bytes of a longer request that go to the recorder: one more than are stored, so that it shows."""


@dataclass
class HeliproxyLongBodyHook(commands.StartHook):
    """A request is longer than is held; see above for what may be done about it."""

    name = "heliproxy_long_body"
    flow: http.HTTPFlow


class BoundedStream(InlineStream):
    """An HTTP stream that holds no more than `MAX_BODY` bytes of a body."""

    def check_body_size(self, request: bool) -> CommandGenerator[bool]:
        """What mitmproxy asks before a body and after each piece of one; True: it is not to go on."""
        if len(self.request_body_buf if request else self.response_body_buf) <= MAX_BODY:
            return (yield from super().check_body_size(request))
        if not request:
            yield from self._stream_response()
            return False
        if self.flow.response is None:
            yield HeliproxyLongBodyHook(self.flow)
            if (yield from self.check_killed(True)):
                return True
        if self.flow.response is None:
            yield from self._stream_request()
        else:
            self.request_body_buf.clear()
        return False

    def _stream_request(self) -> CommandGenerator[None]:
        held, self.request_body_buf = bytes(self.request_body_buf), ReceiveBuffer()
        self.flow.request.stream = self.flow.request.stream or True
        yield from self.start_request_stream()
        yield from self.client_state(RequestData(self.stream_id, held))

    def _stream_response(self) -> CommandGenerator[None]:
        held, self.response_body_buf = bytes(self.response_body_buf), ReceiveBuffer()
        assert self.flow.response is not None
        self.flow.response.stream = self.flow.response.stream or True
        yield from self.start_response_stream()
        yield from self.server_state(ResponseData(self.stream_id, held))


def is_announced(fields: HeaderFields) -> bool:
    """Whether a message's headers say that its body will be longer than is held."""
    for name, value in fields:
        if len(value) > 7 and name.lower() == b"content-length":
            return value.isdigit() and (len(value) > 18 or int(value) > MAX_BODY)
    return False


def request_tap(exchange: Exchange) -> Callable[[bytes], bytes]:
    """What mitmproxy is to call with each piece of a request that passes: keeps its head, and counts."""
    head = bytearray()
    exchange.size_request = 0

    def copy(data: bytes) -> bytes:
        assert exchange.size_request is not None
        exchange.size_request += len(data)
        if data and len(head) < KEPT:
            head.extend(data[: KEPT - len(head)])
            exchange.request_body = bytes(head)
        return data

    return copy
