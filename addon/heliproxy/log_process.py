"""The process beside the proxy that takes logs when they come in numbers.

    python -m heliproxy.log_process CONTROL RING

The proxy hands it connections that bring logs; from then on it reads, answers, prices and writes them, at a lower
priority and without Python's lock in the way of the proxy's calls. One thread at a time does it all, answers first: an
idle one (`idle_thread`), which nobody notices, or for a while the main one, when the idle one starves. Each log is in
the ring (`log_ring`) before it is answered and until it is committed. A connection that brings anything else goes back
to the proxy with what it has brought. It ends when the proxy says so or is gone, and asks to after a while without
logs.
"""

from __future__ import annotations

import gc
import logging
import selectors
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from email.utils import formatdate
from functools import partial
from pathlib import Path
from typing import Any

from heliproxy.api.guard import Guard
from heliproxy.api.logs import Posted, Read, answer_log, kept, load_posted
from heliproxy.api.plain import answer_bytes, may_become_log, plain_log
from heliproxy.exchange import Exchange
from heliproxy.home import DATABASE_NAME
from heliproxy.idle_thread import IdleThread
from heliproxy.log_handover import IDLE_SECONDS
from heliproxy.log_ring import Ring
from heliproxy.messages import (
    ANSWER,
    ASK,
    BACK,
    BORED,
    CONNECTION,
    DONE,
    END,
    FLUSH,
    READY,
    Message,
    packed,
    receive,
    send,
)
from heliproxy.pricing import Prices
from heliproxy.priority import stand_back
from heliproxy.record import Pricing
from heliproxy.recorder import BATCH_SECONDS, MAX_UNWRITTEN, SHARED_BUSY_SECONDS, Recorder
from heliproxy.secrets import install_secret
from heliproxy.store import Store
from heliproxy.tokens import estimate

BATCH_ROWS = 50
"""A commit that takes no longer than a tick of the kernel's (4 ms) is seldom interrupted. When the idle thread is, and
then starves, the proxy's own commits wait until it gets its next tick, a second or more later."""
MANY_WAITING = 2_000
"""Logs that were answered and not read; past it the oldest are read before others are answered."""
MUCH_WAITING = 16 << 20
"""Bytes of them."""
MAX_WAITING = 10_000
"""Past this they are refused."""
READ_SECONDS = 0.002
"""How long logs are read before connections are looked at again."""
MAIN_SECONDS = 30.0
"""How long the main thread does it all once the idle one has starved; doubled when that starves again soon."""
MOST_MAIN_SECONDS = 240.0
KEEP_ALIVE_SECONDS = 5.0
"""As uvicorn closes connections that bring nothing."""
RECEIVE = 256 * 1024


class Rows(Recorder):
    """A recorder without a thread: makes rows of exchanges when it is told to."""

    def get_ready(self) -> None:
        """Open the database and load the prices. Raises what opening it does."""
        self.writer = self._open_writer()
        self.writer.be_patient(SHARED_BUSY_SECONDS)
        self.writer.never_pause()
        self._pricing = self._load_pricing()

    @property
    def unwritten(self) -> int:
        return 0 if self.writer is None else self.writer.buffered

    def read(self, read: Callable[[], Iterable[Exchange]]) -> None:
        """Make rows of logs."""
        try:
            for exchange in read():
                self._record(exchange)
        except Exception as e:
            self.counters.lost_rows += 1
            self._failed(e)

    def commit(self, *, final: bool = False) -> bool:
        """Whether everything made is in the database now."""
        self._commit(final)
        return not self.unwritten


class Connection:
    """One client's connection."""

    __slots__ = ("_held", "_out", "_process", "_sock", "_wanted", "seen")

    def __init__(self, process: LogProcess, sock: socket.socket) -> None:
        self._process = process
        self._sock = sock
        self._held = bytearray()
        self._wanted = 0
        """Bytes that the log at the start of `_held` has."""
        self._out = b""
        """The rest of an answer that the client has not taken yet."""
        self.seen = process.clock()

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def idle(self) -> bool:
        return not self._held and not self._out

    def ready(self, events: int) -> None:
        """Read or write what can be."""
        self.seen = self._process.clock()
        try:
            if events & selectors.EVENT_WRITE:
                self._write(b"")
            elif data := self._sock.recv(RECEIVE):
                self.take(data)
            else:
                self._process.drop(self)
        except BlockingIOError:
            return
        except OSError:
            self._process.drop(self)

    def take(self, data: bytes) -> None:
        """Take what has arrived, and answer the logs in it. Raises OSError when the client is gone."""
        self._held += data
        while self._held and not self._out and len(self._held) >= self._wanted:
            log = plain_log(self._held, self._process.guard)
            if log is None:
                if may_become_log(self._held):
                    return
                self._process.give_back(self)
                return
            self._wanted = log.end
            if len(self._held) < log.end:
                return
            raw = bytes(memoryview(self._held)[log.start : log.end])
            posted = Posted(log.path, tuple(kept(log.headers)), raw, time.time())
            del self._held[: log.end]
            self._wanted = 0
            self._write(answer_bytes(self._process.answer(posted), self._process.date()))

    def _write(self, data: bytes) -> None:
        """Send, or keep for later and read nothing until then: who takes no answers gets no more of them."""
        data = self._out + data
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        waited, self._out = bool(self._out), data[sent:]
        if waited != bool(self._out):
            self._process.watch(self, selectors.EVENT_WRITE if self._out else selectors.EVENT_READ)
        if waited and not self._out and self._held:
            self.take(b"")

    def leave(self) -> tuple[socket.socket, bytes]:
        return self._sock, bytes(self._held)


class LogProcess:
    """Takes logs, see above.

    Args:
        clock: monotonic seconds.
        idle: does it all until it starves; None: the thread that runs this does.
    """

    def __init__(
        self,
        control: socket.socket,
        ring: Ring,
        rows: Rows,
        guard: Guard,
        idle_seconds: float = IDLE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        idle: IdleThread | None = None,
    ) -> None:
        self.guard = guard
        self.clock = clock
        self._control = control
        self._ring = ring
        self._rows = rows
        self._idle_seconds = idle_seconds
        self._idle = idle
        self._main_seconds = MAIN_SECONDS / 2
        self._selector = selectors.DefaultSelector()
        self._connections: set[Connection] = set()
        self._waiting: deque[tuple[Read, int]] = deque()
        self._read_until = 0
        """Position in the ring behind the log that was read last."""
        self._taken = self._done = 0
        """Logs taken, and logs read, since the start."""
        self._flushes: deque[tuple[int, int]] = deque()
        """Who waits for how many logs to be committed."""
        self._commit_at: float | None = None
        self._busy_at = self._sweep_at = clock()
        self._bored = self._over = False
        self._date: tuple[int, tuple[tuple[bytes, bytes], ...]] = (0, ())
        rows.listeners.append(self._committed)

    def run(self) -> None:
        """Take logs until told to end; then write what is left."""
        self._control.setblocking(False)
        self._selector.register(self._control, selectors.EVENT_READ, self._hear)
        self._send(Message(READY))
        while not self._over:
            if self._idle is None:
                self._take_logs(lambda: False)
            else:
                self._take_turns(self._idle)
        for connection in tuple(self._connections):
            self.give_back(connection)
        while self._waiting:
            self._read(self.clock() + 1.0)
        # What cannot be written now stays in the ring, and is the proxy's.
        if self._rows.commit(final=True):
            self._settle()
            assert self._rows.writer is not None
            self._rows.writer.close()

    def _take_turns(self, idle: IdleThread) -> None:
        """Let the idle thread do it all until it starves, and then this one, for a while."""
        began = self.clock()
        idle.run(partial(self._take_logs, idle.starves))
        now = self.clock()
        soon = now - began < self._main_seconds
        self._main_seconds = min(2 * self._main_seconds, MOST_MAIN_SECONDS) if soon else MAIN_SECONDS
        until = now + self._main_seconds
        self._take_logs(lambda: self.clock() >= until)

    def _take_logs(self, enough: Callable[[], bool]) -> None:
        """Read, answer and commit until it is over, or this thread has done `enough`."""
        while not self._over:
            if not self._is_behind:
                for key, events in self._selector.select(self._patience()):
                    key.data(events)
            self._read(self.clock() + READ_SECONDS)
            if enough():  # above all, let a thread that starves begin no commit
                return
            self._look_after(self.clock())

    @property
    def _is_behind(self) -> bool:
        """Whether so much waits that whoever asks for a row would wait too long: clients wait for answers instead."""
        return len(self._waiting) > MANY_WAITING or (bool(self._waiting) and self._ring.used > MUCH_WAITING)

    def stop(self) -> None:
        """Ask to end; from a signal's handler."""
        self._busy_at = self.clock() - self._idle_seconds

    # -- logs ----------------------------------------------------------------------------------------------------

    def answer(self, posted: Posted) -> Any:
        """The answer to logs; they are in the ring when it is `ok`."""
        self._busy_at = self.clock()
        return answer_log(posted, self._take)

    def _take(self, posted: Posted, read: Read) -> bool:
        if len(self._waiting) >= MAX_WAITING or self._rows.unwritten > MAX_UNWRITTEN:
            return False
        position = self._ring.add(posted.dump())
        if position is None:
            return False
        self._waiting.append((read, position))
        self._taken += 1
        return True

    def _read(self, until: float) -> None:
        while self._waiting:
            read, position = self._waiting.popleft()
            self._rows.read(read)
            self._read_until = position
            self._done += 1
            if self.clock() > until:
                return

    def _look_after(self, now: float) -> None:
        """Commit what is due, close connections that bring nothing, and say when there is nothing to do."""
        while self._flushes and self._flushes[0][1] <= self._done:
            self._answer_flush(self._flushes.popleft()[0])
        if not self._rows.unwritten:
            self._settle()
        elif self._commit_at is None:
            self._commit_at = now + BATCH_SECONDS
        elif now >= self._commit_at or self._rows.unwritten >= BATCH_ROWS:
            self._commit_at = None if self._rows.commit() else now + BATCH_SECONDS
            self._settle()
        if now >= self._sweep_at:
            self._sweep_at = now + 1.0
            for connection in tuple(self._connections):
                if connection.idle and now - connection.seen > KEEP_ALIVE_SECONDS:
                    self.drop(connection)
            if now - self._busy_at >= self._idle_seconds and not self._bored and not self._waiting:
                self._bored = True
                self._send(Message(BORED))

    def _settle(self) -> None:
        """Let go of what is read once no row of it waits: it is committed, or made none."""
        if not self._rows.unwritten and self._read_until:
            self._commit_at = None
            self._ring.let_go(self._read_until)
            self._read_until = 0

    def _answer_flush(self, number: int) -> None:
        done = self._rows.commit(final=True)
        self._settle()
        self._send(packed(FLUSH, number, done, self.facts()))

    def _committed(self, ids: list[str]) -> None:
        self._send(packed(DONE, self._ring.batches + 1, ids, self.facts()))

    def facts(self) -> dict[str, Any]:
        return self._rows.facts() | {"waiting": len(self._waiting), "waiting_bytes": self._ring.used}

    def _patience(self) -> float:
        if self._waiting:
            return 0.0
        now = self.clock()
        due = self._sweep_at if self._commit_at is None else min(self._commit_at, self._sweep_at)
        return max(0.0, due - now)

    # -- connections ---------------------------------------------------------------------------------------------

    def date(self) -> tuple[tuple[bytes, bytes], ...]:
        """The header that says the time, as uvicorn adds it."""
        now = int(time.time())
        if now != self._date[0]:
            self._date = now, ((b"date", formatdate(now, usegmt=True).encode()),)
        return self._date[1]

    def watch(self, connection: Connection, events: int) -> None:
        if connection in self._connections:
            self._selector.modify(connection, events, connection.ready)

    def drop(self, connection: Connection) -> None:
        """Close a connection."""
        self._forget(connection)
        connection.leave()[0].close()

    def give_back(self, connection: Connection) -> None:
        """Let the proxy have a connection again, with what it has brought."""
        self._forget(connection)
        sock, held = connection.leave()
        self._send(Message(BACK, held, (sock.fileno(),)))
        sock.close()

    def _forget(self, connection: Connection) -> None:
        if connection in self._connections:
            self._connections.discard(connection)
            self._selector.unregister(connection)

    def _adopt(self, file: int, brought: bytes) -> None:
        sock = socket.socket(fileno=file)
        sock.setblocking(False)
        connection = Connection(self, sock)
        self._connections.add(connection)
        self._selector.register(connection, selectors.EVENT_READ, connection.ready)
        try:
            connection.take(brought)
        except OSError:
            self.drop(connection)

    # -- the proxy -----------------------------------------------------------------------------------------------

    def _hear(self, events: int) -> None:
        while not self._over:
            try:
                message = receive(self._control, wait=False)
            except BlockingIOError:
                return
            except OSError:
                message = None
            self._obey(message or Message(END))

    def _obey(self, message: Message) -> None:
        if message.kind == CONNECTION:
            self._adopt(message.files[0], message.body)
        elif message.kind == FLUSH:
            self._flushes.append((message.values[0], self._taken))
        elif message.kind == ASK:
            number, posted = message.values
            response = self.answer(load_posted(posted))
            answer = response.status_code, response.raw_headers, bytes(response.body)
            self._send(packed(ANSWER, number, answer, None))
        elif message.kind == END:
            self._over = True

    def _send(self, message: Message) -> None:
        try:
            self._control.setblocking(True)
            send(self._control, message)
        except OSError:
            self._over = True  # the proxy is gone; what it gave is written all the same
        finally:
            self._control.setblocking(False)


def main(control: str, ring: str) -> None:
    stand_back()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="heliproxy: %(message)s")
    end = socket.socket(fileno=int(control))
    hello = receive(end)
    if hello is None:
        return
    folder, token, idle_seconds = hello.values
    home = Path(folder)
    rows = Rows(Store(home / DATABASE_NAME).writer, partial(_pricing, home))
    rows.get_ready()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        """Never called: of the guard only its judgement is asked."""

    try:
        idle = IdleThread()
    except OSError:
        idle = None
    process = LogProcess(end, Ring(int(ring)), rows, Guard(app, lambda: token), idle_seconds, idle=idle)
    signal.signal(signal.SIGTERM, lambda *_: process.stop())
    gc.collect()
    gc.freeze()
    process.run()


def _pricing(home: Path) -> Pricing:
    prices = Prices(home)
    _ = prices.table  # now, not while the first client waits
    return Pricing(prices, estimate, install_secret(home))


if __name__ == "__main__":
    main(*sys.argv[1:])
