"""Manual logs straight from the socket: the one kind of request that comes a thousand times a second.

uvicorn's protocol, h11 and Starlette take about a millisecond for a request, most of it for what a log has no use
for. So a log that arrives in the plainest form (HTTP/1.1, a content length, nothing unusual in its head) is answered
here by the same function as everywhere else, after the same guard. Whatever is not of that form, or is refused, goes
on to uvicorn unchanged, byte for byte, as if this class were not there. When logs come in numbers, their connections
are handed to a process beside this one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from heliproxy.api.logs import BIG, Posted, answer_log, taker
from heliproxy.api.plain import PlainLog, answer_bytes, plain_log

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from heliproxy.api.endpoint import Api
    from heliproxy.recorder import Beside

START_SECONDS = 3.0
"""How long a log waits at most for the process beside this one to start."""


class LogProtocol(H11Protocol):
    """A connection of the API's port. `app` is set by `protocol_for`: it makes the app when first asked."""

    app_of: Callable[[], Starlette]
    held: bytearray | None = None
    """The beginning of a log whose rest is still under way."""
    wanted = 0
    """Bytes of the whole of it."""
    has_waited = False
    """For that process to start; it does so once."""
    brought: bytes | None = None
    """What a connection that comes back from the process beside this one has received there and not answered."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if self.brought:
            self.data_received(self.brought)

    def data_received(self, data: bytes) -> None:
        if self.held is not None:
            self._unset_keepalive_if_required()
            self.held += data
            if len(self.held) < self.wanted:
                return
            data, self.held = bytes(self.held), None
        while data and self._is_free():
            rest = self._log(data)
            if rest is None:
                break
            data = rest
        if data and self.held is None:
            super().data_received(data)

    def _is_free(self) -> bool:
        """Whether nothing else is going on that an answer would have to wait for."""
        conn = self.conn
        return (
            conn.our_state is h11.IDLE
            and conn.their_state is h11.IDLE
            and not conn.trailing_data[0]
            and not self.flow.write_paused
            and not self.transport.is_closing()
        )

    def _log(self, data: bytes) -> bytes | None:
        """Answer the log at the start of `data`, and give back what follows it; None when it is no plain log."""
        if not data.startswith(b"POST /"):
            return None
        app = self.app_of()
        log = plain_log(data, app.state.guard)
        if log is None or log.end - log.start > BIG:
            return None
        api: Api = app.state.api
        if self.brought is None and self._hand_over(api, data):
            return b""
        if len(data) < log.end:
            self.held, self.wanted = bytearray(data), log.end
            return b""
        self._answer(api, log, data)
        return data[log.end :]

    def _answer(self, api: Api, log: PlainLog, data: bytes) -> None:
        posted = Posted(log.path, tuple(log.headers), data[log.start : log.end], api.clock())
        self.transport.write(answer_bytes(answer_log(posted, taker(api.recorder)), self.server_state.default_headers))
        self.on_response_complete()

    def _hand_over(self, api: Api, data: bytes) -> bool:
        """Give the connection, with what it has brought so far, to the process that takes logs, if there is one."""
        beside = api.recorder.beside
        if beside is None:
            return False
        if not beside.counts_one():
            return self._wait_for(beside, data)
        if self.transport.get_write_buffer_size():
            return False
        if not beside.give(self.transport.get_extra_info("socket").fileno(), data):
            return False
        self._unset_keepalive_if_required()
        self.transport.abort()  # closes our end of it only, and says nothing to the client
        return True

    def _wait_for(self, beside: Beside, data: bytes) -> bool:
        """Read no further until that process has started: what it can do soon is not done here, at calls' expense."""
        if self.has_waited or not beside.starting:
            return False
        self.has_waited = True
        self.held, self.wanted = bytearray(data), sys.maxsize
        self.transport.pause_reading()
        self.waiting = self.loop.create_task(self._go_on(beside))
        return True

    async def _go_on(self, beside: Beside) -> None:
        await beside.up(START_SECONDS)
        if self.held is not None and not self.transport.is_closing():
            data, self.held = bytes(self.held), None
            self.transport.resume_reading()
            self.data_received(data)


def protocol_for(app_of: Callable[[], Starlette]) -> type[LogProtocol]:
    """The protocol of a port behind which is this app."""
    return type("BoundLogProtocol", (LogProtocol,), {"app_of": staticmethod(app_of)})
