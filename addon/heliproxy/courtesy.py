"""Lets a thread work when the event loop has nothing to do, so that Python's lock is the loop's while it has.

A thread that computes and a loop that is woken thousands of times a second get equal shares of the lock, in slices of
milliseconds; the calls under way would wait for the bookkeeping of those that are over. Here the thread waits until the
loop itself waits for the network, within bounds.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

_yield = getattr(os, "sched_yield", partial(time.sleep, 0))
"""Lets go of Python's lock, and where the system knows how, of the core, which the loop may need to take the lock."""


Order = Callable[[Sequence[Any]], Sequence[Any]]
"""Which of the sockets that are ready, as a selector gives them, are looked at in this turn, in order."""


class Courtesy:
    """One thread's courtesy towards one loop. Without a loop to watch, the thread never waits."""

    def __init__(self) -> None:
        self._idle = True
        self._waiting = False
        self._hurries = 0
        self._count = threading.Lock()
        self._turn = threading.Lock()
        self._turn.acquire()
        self._restore: Any = None

    def watch(self, loop: asyncio.AbstractEventLoop, order: Order = tuple) -> None:
        """Know when the loop waits; one that does not say when it does is left alone. Called in the loop's thread.

        What `order` leaves out is ready again in the loop's next turn.
        """
        selector: Any = getattr(loop, "_selector", None)
        select = getattr(selector, "select", None)
        if select is None:
            return

        def watched(timeout: float | None = None) -> Any:
            if timeout is None or timeout > 0:
                self._idle = True
                if self._waiting:
                    self._let()
            try:
                ready = select(timeout)
            finally:
                self._idle = False
            return order(ready) if len(ready) > 1 else ready

        selector.select = watched
        self._idle = False
        self._restore = lambda: vars(selector).pop("select", None)

    def unwatch(self) -> None:
        """Leave the loop alone, in its thread."""
        if self._restore is not None:
            self._restore()
            self._restore = None
        self._idle = True
        self._let()

    def wait(self, seconds: float) -> None:
        """Return when the loop waits, somebody is in a hurry, or the time is over; called by the one thread."""
        if self._idle or self._hurries or seconds <= 0:
            return
        self._turn.acquire(blocking=False)  # a turn that came after its time was over
        self._waiting = True
        if not (self._idle or self._hurries):
            self._turn.acquire(timeout=seconds)
        self._waiting = False

    def pause(self, seconds: float) -> None:
        """As `wait`, for the middle of some work: a loop that has been woken since cannot say so without the lock."""
        if self._hurries or seconds <= 0:
            return
        _yield()
        self.wait(seconds)

    def rest(self, seconds: float) -> None:
        """Return when the time is over or somebody is in a hurry; called by the one thread."""
        if self._hurries or seconds <= 0:
            return
        self._turn.acquire(blocking=False)
        if not self._hurries:
            self._turn.acquire(timeout=seconds)

    @contextlib.contextmanager
    def hurry(self) -> Iterator[None]:
        """While somebody waits for the thread, it waits for nobody."""
        with self._count:
            self._hurries += 1
        self._let()
        try:
            yield
        finally:
            with self._count:
                self._hurries -= 1

    def _let(self) -> None:
        self._waiting = False
        with contextlib.suppress(RuntimeError):  # the thread has had its turn already
            self._turn.release()
