"""Calls over one WebSocket: OpenAI Responses (Codex's default) and Realtime.

One socket carries many responses, one after the other. Each `response.create` of the client, or response that the
server starts by itself (Realtime), becomes an exchange of its own. Messages are only looked at in passing; they are
kept as the events of a stream, so that the recorder reads them as it reads a streamed HTTP response.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from heliproxy.exchange import Exchange

STREAM = ((b"content-type", b"text/event-stream"),)
_CREATE = b'"response.create"'
_ITEM = b'"conversation.item.create"'
_CREATED = b'"response.created"'
_FINAL = re.compile(rb'"type"\s*:\s*"(?:response\.(?:completed|incomplete|failed|cancelled|done)|error)"')
_WARM_UP = re.compile(rb'"generate"\s*:\s*false')
_DELTA = b'.delta"'
_HEAD = 512
"""Bytes of a message in which its type is looked for first; OpenAI writes it first."""
HAND_OVER = 256 * 1024
MAX_ITEMS = 64 * 1024
"""Bytes kept of what a Realtime client said since its last response; recordings are longer and have no text."""
MAX_OPEN = 64
"""Responses waiting for their turn on one socket; more than this is no client we know."""


class Socket:
    """One open WebSocket.

    Args:
        template: the exchange of the upgrade request; every response's exchange is made from it.
        finish: takes an exchange that is over. `stream`: takes the bytes of a long one in between.
        new_id, wall, clock: fresh ids, Unix seconds, monotonic seconds.
    """

    def __init__(
        self,
        template: Exchange,
        finish: Callable[[Exchange], None],
        stream: Callable[[Exchange], None],
        new_id: Callable[[], str],
        wall: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self._template = template
        self._finish = finish
        self._stream = stream
        self._new_id = new_id
        self._wall, self._clock = wall, clock
        self._open: list[Exchange] = []
        self._count = 0
        self._items: list[bytes] = []
        self.opened: Callable[[Exchange], None] | None = None
        """Is told of each response's exchange, for who shows them."""

    def from_client(self, message: bytes) -> None:
        """Note a client's message; a `response.create` opens an exchange."""
        if _ITEM in message[:_HEAD] and len(message) + sum(map(len, self._items)) <= MAX_ITEMS:
            self._items.append(message)
        elif _CREATE in message and len(self._open) < MAX_OPEN:
            exchange = self._new(message)
            exchange.warm_up = _WARM_UP.search(message) is not None
            self._open.append(exchange)

    def from_server(self, message: bytes) -> None:
        """Note a server's message; it belongs to the oldest response still open."""
        if not self._open:
            if _CREATED not in message[:_HEAD]:
                return
            self._open.append(self._new(b""))
        exchange = self._open[0]
        if exchange.first_byte is None and _DELTA in message[:_HEAD]:
            exchange.first_byte = self._clock()
        event = b"data: " + message.replace(b"\n", b" ") + b"\n\n"
        exchange.chunks.append(event)
        exchange.size_response += len(message)
        exchange.pending += len(event)
        if _FINAL.search(message, 0, _HEAD) or (
            len(message) > _HEAD and b'"response.' in message[-_HEAD:] and _FINAL.search(message)
        ):
            self._end(exchange)
        elif exchange.pending > HAND_OVER:
            self._stream(exchange)

    def open_calls(self) -> tuple[Exchange, ...]:
        """Responses that are not over; may be asked on any thread."""
        return tuple(self._open)

    def close(self, by_client: bool, reason: str) -> None:
        """The socket is gone: what is still open ended with it."""
        for exchange in list(self._open):
            exchange.aborted = "client" if by_client else "upstream"
            exchange.error = reason
            self._end(exchange)

    def _new(self, request: bytes) -> Exchange:
        self._count += 1
        first = self._count == 1
        request, self._items = with_items(request, self._items), []
        found = replace(
            self._template,
            id=self._template.id if first else self._new_id(),
            created_at=self._wall(),
            started=self._clock(),
            request_body=request,
            source="websocket",
            status=200,
            response_headers=STREAM,
            chunks=[],
            warnings=list(self._template.warnings) if first else [],
            attempts=[],
            after=[],
            properties=dict(self._template.properties),
        )
        if self.opened is not None:
            self.opened(found)
        return found

    def _end(self, exchange: Exchange) -> None:
        self._open.remove(exchange)
        exchange.ended = self._clock()
        exchange.finished = True
        self._finish(exchange)


def with_items(request: bytes, items: list[bytes]) -> bytes:
    """A `response.create` with the items sent before it as its `items`: Realtime says what is asked in messages apart.

    Nothing is parsed: what is no JSON stays none. `request` is empty for a response that the server started.
    """
    if not items:
        return request
    body = (request or b'{"type":"response.create"}').rstrip()
    return body[:-1] + b',"items":[' + b",".join(items) + b"]}" if body.endswith(b"}") else request
