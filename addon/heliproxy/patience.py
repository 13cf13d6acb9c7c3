"""Ends upstream calls that have been silent for too long.

mitmproxy has one timeout, for a whole client connection, and it ends that connection as if the client had left. Here
every upstream call has its own: it counts while we connect, while the answer is waited for, and from each byte to the
next. Nothing is done for it call by call or byte by byte: now and then one look goes over the calls under way, and
those that show no progress since the last look have been silent for that long.

What does not count: our own waits (backoff, policies), a client that still sends its request, and one that does not
read what was sent to it. Time in which this process did not run, as in a suspended laptop, counts as one look at most.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http import GetHttpConnection, HttpLayer
from mitmproxy.proxy.layers.http._events import ErrorCode, ResponseProtocolError

from heliproxy.attempts import Progress, RetryLayer, RetryStream
from heliproxy.settings import INCREASED_TIMEOUT

if TYPE_CHECKING:
    from mitmproxy.proxy.server import ConnectionHandler

    from heliproxy.exchange import Exchange
    from heliproxy.settings import Settings

logger = logging.getLogger(__name__)

LOOKS_A_WAIT = 8
"""How often a call is looked at before its time is over; it is ended at most a quarter late."""
LONGEST_TICK = 5.0

Limit = Callable[[str], tuple[float, int] | None]
"""For a flow id: seconds of silence allowed, and the bytes of the answer seen so far; None: no call of ours."""


class Patience:
    """The looks, as one task: from `start()` until `stop()`.

    Args:
        shortest: the shortest time that any call may be silent, in seconds.
        limit: says for each flow how long it may be silent.
        connections: mitmproxy's handlers of the client connections, by client id.
    """

    def __init__(
        self, shortest: float, limit: Limit, connections: Callable[[], Mapping[Any, ConnectionHandler]]
    ) -> None:
        self.layers: WeakSet[RetryLayer] = WeakSet()
        """The HTTP layers whose calls are looked at; whoever makes one puts it in here."""
        self.tick = min(shortest / LOOKS_A_WAIT, LONGEST_TICK)
        self._limit, self._connections = limit, connections
        self._quiet: dict[RetryStream, tuple[object, float]] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look from now on, in the running event loop."""
        self._task = asyncio.create_task(self.run(), name="upstream timeouts")

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def run(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(self.tick)
            now = time.monotonic()
            try:
                await self.look(min(now - last, 2 * self.tick))
            except Exception:
                logger.exception("upstream timeouts: one look failed")
            last = now

    async def look(self, passed: float) -> None:
        """Look at every call; `passed` seconds went by since the last look."""
        before, self._quiet = self._quiet, {}
        connections = self._connections()
        for layer in list(self.layers):
            handler = connections.get(layer.context.client.id)
            if handler is None:
                self.layers.discard(layer)
            elif layer.streams and not _client_is_slow(handler):
                for stream in {s for s in layer.streams.values() if isinstance(s, RetryStream)}:
                    await self._look_at(stream, layer, handler, before.get(stream), passed)

    async def _look_at(
        self,
        stream: RetryStream,
        layer: RetryLayer,
        handler: ConnectionHandler,
        before: tuple[object, float] | None,
        passed: float,
    ) -> None:
        progress = stream.progress()
        found = self._limit(stream.flow.id) if progress is not None else None
        if progress is None or found is None:
            return
        seconds, size = found
        quiet = before[1] + passed if before is not None and before[0] == (progress, size) else 0.0
        self._quiet[stream] = ((progress, size), quiet)
        if quiet >= seconds:
            message = f"upstream timeout: silent for {seconds:g} s"
            if isinstance(progress.waits_for, GetHttpConnection):
                _end_connecting(progress.waits_for, layer, handler, message)
            else:
                await _end_call(stream, progress, handler, message)


def limit_of(live: Mapping[str, Exchange], passed: Mapping[str, int], settings: Callable[[], Settings]) -> Limit:
    """The limit of the exchanges under way, and of the calls that are passed on unlogged (with the bytes of their
    answers so far); both are by flow id."""

    def limit(flow_id: str) -> tuple[float, int] | None:
        exchange = live.get(flow_id)
        if exchange is None:
            size = passed.get(flow_id)
            return None if size is None else (settings().upstream_timeout, size)
        seconds = settings().upstream_timeout
        if exchange.directives.increase_timeout:
            seconds = max(seconds, INCREASED_TIMEOUT)
        return seconds, exchange.size_response

    return limit


def _client_is_slow(handler: ConnectionHandler) -> bool:
    """Whether the client has not taken what was sent to it; then nothing more is read from upstreams either."""
    io = handler.transports.get(handler.client)
    transport = getattr(io.writer, "transport", None) if io is not None else None
    return transport is not None and transport.get_write_buffer_size() > 0


def _end_connecting(wait: GetHttpConnection, layer: RetryLayer, handler: ConnectionHandler, message: str) -> None:
    """Give up a connection that is being made; whoever waits for it is told by mitmproxy."""
    for connection, waits in layer.waiting_for_establishment.items():
        if wait not in waits:
            continue
        dialled = getattr(layer.connections.get(connection), "tunnel_connection", connection)
        io = handler.transports.get(dialled)
        # One that has not been dialled waits for its turn among our own connections.
        if io is not None and io.handler is not None and dialled.timestamp_start is not None:
            for each in waits:
                stream = layer.command_sources.get(each)
                if isinstance(stream, RetryStream):
                    stream.stalled = message
            io.handler.cancel(message)
        return


async def _end_call(stream: RetryStream, progress: Progress, handler: ConnectionHandler, message: str) -> None:
    """Tell the stream that its call is over, by way of all the layers around it, which have to take what it answers."""
    wake = events.Wakeup(commands.RequestWakeup(0))
    layers = stream.context.layers
    around = [(layer, layers[n + 1]) for n, layer in enumerate(layers[:-1]) if isinstance(layer, HttpLayer)]
    for layer, child in around:
        layer.command_sources[wake.command] = child
    stall = _Stall(stream, progress, message)
    around[-1][0].command_sources[wake.command] = stall  # type: ignore[assignment]
    try:
        await handler.server_event(wake)
    finally:
        for layer, _ in around:
            layer.command_sources.pop(wake.command, None)


class _Stall:
    """Takes the place of a stream for one event, and makes it the error it stands for."""

    def __init__(self, stream: RetryStream, progress: Progress, message: str) -> None:
        self._stream, self._progress, self._message = stream, progress, message

    def handle_event(self, event: events.Event) -> CommandGenerator[None]:
        stream = self._stream
        if isinstance(event, events.Wakeup):
            if stream.progress() != self._progress:
                return  # something has come meanwhile
            stream.stalled = self._message
            event = ResponseProtocolError(stream.upstream_id, self._message, ErrorCode.GENERIC_SERVER_ERROR)
        yield from stream.handle_event(event)
