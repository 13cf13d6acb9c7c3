"""Hands what a socket has received to mitmproxy where it arrives, without waking a task for it.

mitmproxy reads each connection in a task of its own: what arrives goes into a buffer, the task is woken by the event
loop's next turn, copies it out, handles it, and asks each writer in turn whether it must wait. Handling is one function
that never waits, so here it is called at once, as long as the task does wait for data and nothing is in the buffer. All
else (end, errors, cancellation, what came before the task did) stays the task's.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from asyncio import Lock, StreamReader
from collections.abc import Callable, Coroutine, Sequence
from functools import cache
from typing import Any, Protocol

from mitmproxy.connection import Connection
from mitmproxy.proxy import events
from mitmproxy.proxy.server import ConnectionHandler

logger = logging.getLogger(__name__)

HandleConnection = Callable[[ConnectionHandler, Connection], Coroutine[Any, Any, None]]

HIGH_WATER = 64 * 1024
"""asyncio's own mark: with more than this unsent, a writer is to be waited for."""

SHORTCUT = "heliproxy_shortcut"
"""Under this name an upstream's connection keeps its `Shortcut`, while it has one."""


class Shortcut(Protocol):
    """A way from an upstream's socket to the client's that leads past the layers (`fast_layers`)."""

    def take(self, data: bytes) -> tuple[bytes, bool]:
        """What is to be sent to the client, and whether that was all there is to do with what was received."""


BESIDE = 2
"""So many calls that begin are looked at beside the answers that are there, and a quarter as many as those are."""
_upstreams: set[int] = set()
"""File descriptors of connections with upstreams."""
_streaming: set[int] = set()
"""Of these, those that bring a stream and take the shortcut."""

_writing: set[asyncio.Task[None]] = set()
"""Connections that are not read from until what they have caused to be written is on its way."""


def answers_first(ready: Sequence[Any]) -> Sequence[Any]:
    """Of the sockets that are ready, as a selector tells it, those with answers, and while there are streams, only a
    few others.

    A call that begins takes half a millisecond and more, a piece of a stream a tenth. When many calls begin at once,
    the streams under way would wait for all of them.
    """
    if not _streaming:
        return ready
    answers = [one for one in ready if one[0].fd in _upstreams]
    if len(answers) == len(ready):
        return ready
    others = [one for one in ready if one[0].fd not in _upstreams]
    return answers + others[: max(BESIDE, len(answers) // 4)]


def _feed(handler: ConnectionHandler, connection: Connection, reader: StreamReader, file: int) -> None:
    """Have a connection's data handled as they arrive."""
    buffer: Any = reader
    lock: Any = handler._server_event_lock
    wait = reader.feed_data

    def feed_data(data: bytes) -> None:
        waiter = buffer._waiter
        if waiter is None or waiter.done() or buffer._buffer or lock._locked or lock._waiters or not data:
            wait(data)
            return
        short = vars(connection).get(SHORTCUT)
        if short is not None:
            if _pass_on(handler, reader, short, data):
                return
            data = b""
        step = handler.server_event(events.DataReceived(connection, data))
        try:
            step.send(None)
        except StopIteration:
            pass
        else:
            raise RuntimeError("mitmproxy waits while it handles an event")
        if vars(connection).get(SHORTCUT) is not None:
            _streaming.add(file)
        else:
            _streaming.discard(file)
        for transport in handler.transports.values():
            socket: Any = getattr(transport.writer, "transport", None)  # the writers of UDP and WireGuard have none
            if socket is not None and socket.get_write_buffer_size() > HIGH_WATER:
                _pause(handler, reader)
                break

    buffer.feed_data = feed_data


def _pass_on(handler: ConnectionHandler, reader: StreamReader, short: Shortcut, data: bytes) -> bool:
    """Take the short way of a streamed body; False: there is something left for the layers."""
    handler.timeout_watchdog.register_activity()
    try:
        passed, done = short.take(data)
    except Exception:
        handler.log("mitmproxy has crashed!", logging.ERROR, exc_info=True)
        return True
    client = handler.transports.get(handler.client)
    writer: Any = client.writer if client is not None else None
    if passed and writer is not None and not writer.is_closing():
        writer.write(passed)
        if writer.transport.get_write_buffer_size() > HIGH_WATER:
            _pause(handler, reader)
    return done


def _pause(handler: ConnectionHandler, reader: StreamReader) -> None:
    transport: Any = reader._transport  # type: ignore[attr-defined]
    transport.pause_reading()

    async def drain() -> None:
        try:
            await handler.drain_writers()
        finally:
            transport.resume_reading()

    task = asyncio.get_running_loop().create_task(drain())
    _writing.add(task)
    task.add_done_callback(_writing.discard)


def _directly(handle: HandleConnection) -> HandleConnection:
    async def handle_connection(self: ConnectionHandler, connection: Connection) -> None:
        reader = self.transports[connection].reader
        if type(reader) is not StreamReader:
            await handle(self, connection)
            return
        file = _file(reader)
        if connection is not self.client:
            _upstreams.add(file)
        _feed(self, connection, reader, file)
        try:
            await handle(self, connection)
        finally:
            _upstreams.discard(file)
            _streaming.discard(file)
            vars(reader).pop("feed_data", None)

    return handle_connection


def _file(reader: StreamReader) -> int:
    socket = reader._transport.get_extra_info("socket")  # type: ignore[attr-defined]
    return -1 if socket is None else int(socket.fileno())


def problem() -> str | None:
    """Why this does not fit the installed Python and mitmproxy, or None if it does."""
    handle = inspect.unwrap(ConnectionHandler.handle_connection)
    if tuple(inspect.signature(handle).parameters) != ("self", "connection"):
        return "mitmproxy's handle_connection is not as it was"
    for owner, names in ((StreamReader, ("_waiter", "_buffer", "_transport")), (Lock, ("_locked", "_waiters"))):
        missing = [name for name in names if name not in owner.__init__.__code__.co_names]
        if missing:
            return f"asyncio's {owner.__name__} has no {missing[0]}"
    return None


@cache
def use() -> None:
    """Change how mitmproxy reads its connections in this process, once."""
    reason = problem()
    if reason is not None:
        logger.debug("connections are read as mitmproxy does it: %s", reason)
        return
    ConnectionHandler.handle_connection = _directly(ConnectionHandler.handle_connection)  # type: ignore[assignment, method-assign]
