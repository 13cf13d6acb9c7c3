"""Has logs taken by a process beside this one when they come in numbers (`log_process`), and looks after it.

A log costs half a millisecond in which, here, calls would have to wait for Python's lock. So when logs come faster
than now and then, a second process is started, and is handed the connections that bring them. It ends after a minute
without logs. Whatever happens to it, no log that was answered is lost: what it has not committed is in memory that
both share, and is read here.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heliproxy import log_ring, messages, own_process
from heliproxy.log_ring import Ring
from heliproxy.messages import ANSWER, ASK, BACK, BORED, CONNECTION, DONE, FLUSH, HELLO, READY, Message, packed

if TYPE_CHECKING:
    from starlette.responses import Response

    from heliproxy.api.logs import Posted
    from heliproxy.recorder import Recorder

logger = logging.getLogger(__name__)

START_AT = 50
"""Logs within a second that are worth a process of its own."""
IDLE_SECONDS = 60.0
START_SECONDS = 30.0
"""How long who asks waits for the process to come up."""
ANSWER_SECONDS = 60.0
LONGEST_FLUSH = 3600.0
RETRY_SECONDS = 0.02
END_SECONDS = 5.0
"""How long the process may take to write what it has, at the end; the rest is written here."""
PAUSE_SECONDS = 10.0
"""From the death of a process until the next one is started; doubled each time that one did not come up."""
LONGEST_PAUSE = 600.0
REAP_SECONDS = 5.0
ROOM_SECONDS = 30.0
"""How long logs that a dead process has left wait for room here."""

SUMS = ("rows", "written", "lost_rows", "lost_bodies", "lost_calls", "errors", "damaged_files")
"""Facts that are counts since the start of a process."""


class LogHandover:
    """One process at a time that takes logs. Methods may be called from any thread.

    Args:
        token: asked for at each log; None: none is needed.
        recorder: is told what the process has committed, and takes over what it leaves.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        home: Path,
        token: Callable[[], str | None],
        recorder: Recorder,
        *,
        idle_seconds: float = IDLE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.home, self.token, self.recorder = home, token, recorder
        self.idle_seconds = idle_seconds
        self._clock = clock
        self.take_back: Callable[[socket.socket, bytes], None] = lambda sock, _: sock.close()
        """Takes a connection that brings something else than logs, with what it has brought; on any thread."""
        self.ready = False
        """Whether the process takes connections."""
        self._child: Child | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._not_before = 0.0
        self._pause = PAUSE_SECONDS
        self._second = 0.0
        self._count = 0
        self._past: dict[str, int] = dict.fromkeys(SUMS, 0)
        """Counts of processes that have ended."""

    # -- on the event loop -----------------------------------------------------------------------------------------

    def counts_one(self) -> bool:
        """Count a log that comes to this process; whether the next ones may be handed over."""
        if self.ready:
            return True
        now = self._clock()
        if now - self._second >= 1.0:
            self._second, self._count = now, 0
        self._count += 1
        if self._count > START_AT:
            self.start()
        return False

    @property
    def starting(self) -> bool:
        """Whether the process will be there in a moment."""
        child = self._child
        return child is not None and not child.up.done()

    async def up(self, seconds: float) -> None:
        """Return when the process is there, when it cannot be, or after some seconds."""
        child = self._child
        if child is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.wrap_future(child.up), seconds)

    def start(self) -> Child | None:
        """Start the process unless it runs already or must not run; returns the one that runs."""
        with self._lock:
            if self._child is None and not self._closed and self._clock() >= self._not_before and is_possible():
                try:
                    self._child = Child(self)
                except OSError as e:  # out of handles
                    logger.debug("no process takes logs: %s", e)
                    self._not_before = self._clock() + PAUSE_SECONDS
                    return None
                self._child.thread.start()
            return self._child

    def give(self, file: int, data: bytes) -> bool:
        """Hand over a connection with what it has brought so far; False: it stays here."""
        child = self._child
        return child is not None and self.ready and child.gives(file, data)

    async def ask(self, posted: Posted) -> Response | None:
        """The answer to logs, made there; None: they are to be answered here."""
        child = self.start()
        if child is None:
            return None
        answer = await child.ask(posted)
        if answer is None:
            return None
        from starlette.responses import Response

        status, fields, body = answer
        response = Response(body, status)
        response.raw_headers = list(fields)
        return response

    # -- on other threads ------------------------------------------------------------------------------------------

    def flush(self, timeout: float | None = None) -> bool:
        """Whether everything it has answered is committed now."""
        child = self._child
        return child is None or child.flush(timeout)

    def facts(self) -> dict[str, Any]:
        """Those of its recorder, counts since the start of this process."""
        child = self._child
        now = dict(child.facts) if child is not None else {}
        return now | {name: self._past[name] + now.get(name, 0) for name in SUMS}

    def close(self, timeout: float = END_SECONDS) -> None:
        """Have the process write what it has, and end it."""
        with self._lock:
            self._closed = True
            child = self._child
        if child is not None:
            child.end()
            child.thread.join(timeout)
            if child.thread.is_alive():
                child.kill()
                child.thread.join(timeout)

    @property
    def process(self) -> int | None:
        """Id of the process that runs."""
        child = self._child
        return child.process.pid if child is not None and child.process is not None else None

    def over(self, child: Child, failed: bool) -> None:
        """A process has ended, and everything it has left is taken care of."""
        for name in SUMS:
            self._past[name] += child.facts.get(name, 0)
        child.facts = {}
        with self._lock:
            if failed:
                self._pause = PAUSE_SECONDS if child.up.result() else min(2 * self._pause, LONGEST_PAUSE)
                self._not_before = self._clock() + self._pause
            self._child = None


class Child:
    """One process and the thread that hears it, until both are over."""

    def __init__(self, owner: LogHandover) -> None:
        self._owner = owner
        self._control, self._theirs = messages.pair()
        self._file = log_ring.new_file()
        self._ring = Ring(self._file)
        self._token = owner.token()
        self.facts: dict[str, Any] = {}
        self.thread = threading.Thread(target=self._run, name="heliproxy-logs", daemon=True)
        self.process: subprocess.Popen[bytes] | None = None
        self.up: Future[bool] = _future()
        """Whether it takes logs, once that is known."""
        self._heard = 0
        """Batches of which it has told."""
        self._lock = threading.Lock()
        """Nothing is sent after END, and the ring is not looked at once it is closed."""
        self._ending = self._closed = False
        self._answers: dict[int, Future[Any]] = {}
        self._numbers = itertools.count(1)

    # -- asked by others -------------------------------------------------------------------------------------------

    def gives(self, file: int, data: bytes) -> bool:
        """Hand over a connection; False: it stays here. Does not wait."""
        if self._owner.token() != self._token:
            self.end()
        with self._lock, contextlib.suppress(OSError):
            return not self._ending and messages.send(self._control, Message(CONNECTION, data, (file,)), wait=False)
        return False

    async def ask(self, posted: Posted) -> tuple[int, Any, bytes] | None:
        """Status, header fields and body of the answer to logs; None when there is none."""
        try:
            if not await asyncio.wait_for(asyncio.wrap_future(self.up), START_SECONDS):
                return None
            asked = self._asks(ASK, posted.dump())
            return None if asked is None else await asyncio.wait_for(asyncio.wrap_future(asked), ANSWER_SECONDS)
        except TimeoutError:
            return None

    def flush(self, timeout: float | None) -> bool:
        """Whether everything it has answered is committed now; also true when there is no such process any more."""
        deadline = time.monotonic() + (LONGEST_FLUSH if timeout is None else timeout)
        while True:
            with self._lock:
                if self._closed or not self.up.done():
                    return True
                # After the last batch the ring is empty, but its ids may still be under way to us.
                if self._ring.empty and self._ring.batches == self._heard:
                    return True
            asked = self._asks(FLUSH)
            left = deadline - time.monotonic()
            try:
                done = None if asked is None else asked.result(max(0.0, left))
            except TimeoutError:
                return False
            if done is not None or left <= 0:
                return bool(done)
            if asked is None:
                time.sleep(RETRY_SECONDS)

    def _asks(self, kind: bytes, body: bytes = b"") -> Future[Any] | None:
        """Send what is answered; None when it cannot be sent now, but for a flush of one that is ending: that comes."""
        asked: Future[Any] = _future()
        number = next(self._numbers)
        with self._lock:
            if self._closed:
                return None
            self._answers[number] = asked
            if self._ending:
                if kind == FLUSH:
                    return asked
            else:
                # Never waits: the event loop may be the next to want the lock.
                with contextlib.suppress(OSError):
                    if messages.send(self._control, packed(kind, number, body), wait=False):
                        return asked
            del self._answers[number]
        return None

    def end(self) -> None:
        """Have it write what it has, and end."""
        with self._lock:
            if self._ending or self._closed:
                return
            self._ending = True
            self._owner.ready = False
            if self.up.done():
                with contextlib.suppress(OSError):
                    self._control.shutdown(socket.SHUT_WR)
            else:
                self.kill()  # it has nothing yet

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()

    # -- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._start()
            while (message := messages.receive(self._control)) is not None:
                self._hear(message)
        except OSError as e:
            logger.debug("the process that takes logs: %s", e)
        except Exception:
            logger.exception("the process that takes logs was not understood")
        self._owner.ready = False
        status = self._reap()
        failed = not self._ending or bool(status)
        left = self._recover()
        if failed:
            logger.warning(
                "the process that takes logs ended with status %s; %d logs of it are read here", status, left
            )
        self._close()
        self._owner.over(self, failed)

    def _start(self) -> None:
        files = self._theirs.fileno(), self._file
        with self._lock:
            if self._ending:
                raise OSError("ended before it was started")
            self.process = subprocess.Popen(
                own_process.command("log_process", *map(str, files)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=files,
                process_group=0,  # Ctrl-C is the proxy's business, which says when to end
                env=own_process.environment(),
            )
        self._theirs.close()
        hello = str(self._owner.home), self._token, self._owner.idle_seconds
        messages.send(self._control, packed(HELLO, *hello))

    def _hear(self, message: Message) -> None:
        if message.kind == BACK:
            self._owner.take_back(socket.socket(fileno=message.files[0]), message.body)
        elif message.kind == READY:
            with self._lock:
                self.up.set_result(True)
                self._owner.ready = not self._ending
        elif message.kind == BORED:
            self.end()
        elif message.kind == DONE:
            batch, ids, self.facts = message.values
            self._owner.recorder.heard(ids)
            self._heard = batch
        elif message.kind in (FLUSH, ANSWER):
            number, result, facts = message.values
            self.facts = facts or self.facts
            asked = self._answers.pop(number, None)
            if asked is not None:
                asked.set_result(result)

    def _reap(self) -> int | None:
        """The status of the process, which has closed its end; it is killed if it goes on all the same."""
        if self.process is None:
            return None
        try:
            return self.process.wait(REAP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def _recover(self) -> int:
        """Take over what the process has answered and not committed; returns how many logs that were."""
        from heliproxy.api.logs import load_posted, read_again

        found = 0
        deadline = time.monotonic() + ROOM_SECONDS
        for record in self._ring.records():
            posted = load_posted(record)
            found += 1
            while not self._owner.recorder.take(partial(read_again, posted), len(posted.raw)):
                if time.monotonic() > deadline:
                    self._owner.recorder.counters.lost_rows += 1
                    break
                time.sleep(0.05)
        return found

    def _close(self) -> None:
        """Let all who wait go on: what was to be flushed is the recorder's now, and the rest is to be done here."""
        with self._lock:
            self._closed = True
            self._ring.close()
            waiting = list(self._answers.values())
        os.close(self._file)
        self._control.close()
        self._theirs.close()
        if not self.up.done():
            self.up.set_result(False)
        for asked in waiting:
            asked.set_result(None)


def is_possible() -> bool:
    """Whether a process can be started beside this one: on Linux, by a Python that is one."""
    return log_ring.is_possible() and not getattr(sys, "frozen", False)


def _future() -> Future[Any]:
    """One that nobody who gives up waiting can cancel."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future
