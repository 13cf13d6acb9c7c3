"""Manual logs straight from the socket: the one kind of request that comes a thousand times a second.

uvicorn's protocol, h11 and Starlette take about a millisecond for a request, most of it for what a log has no use
for. So a log that arrives in the plainest form (HTTP/1.1, a content length, nothing unusual in its head) is answered
here by the same function as everywhere else, after the same guard. Whatever is not of that form, or is refused, goes
on to uvicorn unchanged, byte for byte, as if this class were not there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.responses import Response

    from heliproxy.api.endpoint import Api
    from heliproxy.api.guard import Guard

Fields = list[tuple[bytes, bytes]]

MAX_HEAD = 16 * 1024
"""Bytes of a request's head; a longer one is not plain."""
_HEAD = re.compile(
    rb"POST (/[a-z0-9/]{1,40}) HTTP/1\.1\r\n((?:[!#-'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\x0a-\x1f\x7f]*\r\n)+)\r\n"
)
_FIELD = re.compile(rb"([^:]+):[ \t]*([^\r]*)\r\n")
_ONCE = (b"host", b"content-length")
_NOT_PLAIN = frozenset((b"transfer-encoding", b"expect", b"upgrade", b"content-encoding", b"trailer"))
_REASONS = {status.value: status.phrase for status in HTTPStatus}


def plain_head(data: bytes) -> tuple[str, Fields, int, int] | None:
    """The head of a plain POST at the start of `data`: (path, header fields, bytes of the head, bytes of the body).

    None for anything that needs a real HTTP parser, a head that has not arrived whole included.
    """
    found = _HEAD.match(data, 0, MAX_HEAD)
    if found is None:
        return None
    fields = [(name.lower(), value.rstrip(b" \t")) for name, value in _FIELD.findall(found[2])]
    once = {name: value for name, value in fields if name in _ONCE}
    length = once.get(b"content-length", b"")
    if len(once) != len(_ONCE) or sum(name in _ONCE for name, _ in fields) != len(_ONCE):
        return None
    if not length.isdigit() or len(length) > 10:
        return None
    for name, value in fields:
        if name in _NOT_PLAIN or (name == b"connection" and value.lower() != b"keep-alive"):
            return None
    return found[1].decode("ascii"), fields, found.end(), int(length)


class LogProtocol(H11Protocol):
    """A connection of the API's port. `app` is set by `protocol_for`: it makes the app when first asked."""

    app_of: Callable[[], Starlette]
    held: bytearray | None = None
    """The beginning of a log whose rest is still under way."""
    wanted = 0
    """Bytes of the whole of it."""

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
        from heliproxy.api.fields import MAX_BODY
        from heliproxy.api.logs import LOG_PATHS, answer_log

        head = plain_head(data) if data.startswith(b"POST /") else None
        if head is None:
            return None
        path, fields, start, length = head
        kind = LOG_PATHS.get(path)
        if kind is None or not 0 < length <= MAX_BODY:
            return None
        app = self.app_of()
        api: Api = app.state.api
        guard: Guard = app.state.guard
        if guard.refusal({"method": "POST", "path": path, "headers": fields}) is not None:
            return None
        end = start + length
        if len(data) < end:
            self.held, self.wanted = bytearray(data), end
            return b""
        headers = [(name.decode("latin-1"), value.decode("utf-8", "surrogateescape")) for name, value in fields]
        self._send(answer_log(api, kind, headers, data[start:end]))
        return data[end:]

    def _send(self, response: Response) -> None:
        from heliproxy.api.guard import EXTRA_HEADERS

        fields = (*self.server_state.default_headers, *response.raw_headers, *EXTRA_HEADERS)
        lines = [b"HTTP/1.1 %d %s" % (response.status_code, _REASONS[response.status_code].encode())]
        lines += [name + b": " + value for name, value in fields]
        self.transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + bytes(response.body))
        self.on_response_complete()


def protocol_for(app_of: Callable[[], Starlette]) -> type[LogProtocol]:
    """The protocol of a port behind which is this app."""
    return type("BoundLogProtocol", (LogProtocol,), {"app_of": staticmethod(app_of)})
