"""The short way from a client's bytes to the answer they had before (see `repeats`), past mitmproxy's HTTP layers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layer import CommandGenerator

from heliproxy.repeats import MAX_REQUEST, Repeats, Scope

if TYPE_CHECKING:
    from mitmproxy.proxy.layers.http._http1 import Http1Server

    from heliproxy.fast_layers import FlatLayer

logger = logging.getLogger(__name__)


class Repeating:
    """One client connection that may repeat itself.

    A request comes in one piece, or its head before its body: many clients send these apart. Of a request that is
    remembered the head is held back until more comes; it is incomplete, so nobody waits for what it would lead to.
    """

    __slots__ = ("_held", "_layer", "_repeats", "_start")

    def __init__(self, layer: FlatLayer, repeats: Repeats) -> None:
        self._layer = layer
        self._repeats = repeats
        self._held = b""
        """What is held back: the beginning of a remembered request."""
        self._start = b""
        """The beginning of a request under way, which may turn out to be one to be remembered."""

    def handle(self, codec: Http1Server, event: events.DataReceived) -> CommandGenerator[None]:
        if not self._repeats.wanted:
            yield from self._layer._drive(codec, codec._handle_event(event))
            return
        held, self._held = self._held, b""
        if held:
            event = events.DataReceived(event.connection, held + event.data)
        data = event.data
        start, self._start = self._start, b""
        if codec.state != codec.read_headers or codec.buf:
            if start and codec.state == codec.read_body:
                yield from self._watch(codec, event, start)
            else:
                yield from self._layer._drive(codec, codec._handle_event(event))
            return
        scope = self._scope()
        answer = self._answer(scope, data)
        if answer is not None:
            yield commands.SendData(codec.conn, answer)
        elif not held and self._repeats.starts(scope, data):
            self._held = data
        elif len(data) <= MAX_REQUEST and (b"elicone-Cache" in data or b"elicone-cache" in data):
            yield from self._watch(codec, event, held)
        else:
            yield from self._layer._drive(codec, codec._handle_event(event))

    def _answer(self, scope: Scope, data: bytes) -> bytes | None:
        try:
            return self._repeats.answer(scope, data)
        except Exception:
            # In here it would end the connection; the whole way has its own answer to what is wrong.
            logger.exception("a repeated request takes the whole way")
            self._repeats.forget()
            return None

    def let_go(self, codec: Http1Server) -> CommandGenerator[None]:
        """Handle what is held back: there will be no more."""
        held, self._held = self._held, b""
        if held:
            yield from self._layer._drive(codec, codec._handle_event(events.DataReceived(codec.conn, held)))

    def _watch(self, codec: Http1Server, event: events.DataReceived, start: bytes) -> CommandGenerator[None]:
        """Handle a piece the usual way, and remember the request if all it led to was a cached answer.

        `start` is the piece before this one; held back or not, for `event` then has both.
        """
        repeats, fresh = self._repeats, codec.state == codec.read_headers
        number = codec.stream_id
        rest = event.data[len(start) :] if fresh else event.data
        repeats.taken()
        sent: list[commands.Command] = []
        for command in self._layer._drive(codec, codec._handle_event(event)):
            sent.append(command)
            yield command
        noted = repeats.taken()
        if codec.buf:
            return
        if codec.state == codec.read_headers and codec.stream_id == number + 2:
            only = sent[0] if len(sent) == 1 else None
            if noted is not None and isinstance(only, commands.SendData) and only.connection is codec.conn:
                whole = (start, rest) if start else (rest, b"")
                if len(start) + len(rest) <= MAX_REQUEST:
                    repeats.learn(self._scope(), *whole, noted, only.data)
        elif fresh and codec.state == codec.read_body and not sent:
            self._start = event.data

    def _scope(self) -> Scope:
        context = self._layer.context
        client, server = context.client, context.server
        run = self._repeats.run_of(client.id)
        return (client.sockname, client.tls, server.address, server.tls, self._layer.mode, run)
