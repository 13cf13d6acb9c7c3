"""A thread that has a core only while nobody else wants it, and notices when that is hardly ever.

At low priority, even at nice 10, Linux gives a process the core of another for a tick (4 ms) now and then, which calls
that come just then have to wait for: once in 40 ms when both have much to do. With the idle policy it is once in more
than a second. On a machine whose cores are all busy that is as good as never, and only root can give a thread back the
priority it gave up; so another thread must do the work then.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

STARVED_SECONDS = 0.5
"""How long a thread waits for a core before it may be said to starve."""
STARVED_SHARE = 9
"""It does when it has waited so many times as long as it ran: nice 10 is worth about a tenth of a core."""


class Hunger:
    """Whether a thread starves.

    Args:
        run_and_wait: nanoseconds for which the thread has run, and for which it has waited for a core.
        clock: monotonic seconds.
    """

    def __init__(
        self, run_and_wait: Callable[[], tuple[int, int]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._run_and_wait = run_and_wait
        self._clock = clock
        self._look_at = clock() + STARVED_SECONDS
        self._seen = run_and_wait()

    def starves(self) -> bool:
        """Whether the thread has hardly run since it was looked at last; to be asked often."""
        now = self._clock()
        if now < self._look_at:
            return False
        self._look_at = now + STARVED_SECONDS
        before, self._seen = self._seen, self._run_and_wait()
        ran, waited = self._seen[0] - before[0], self._seen[1] - before[1]
        return waited > STARVED_SECONDS * 1e9 and waited > STARVED_SHARE * ran


class IdleThread:
    """Does what another thread has it do and waits for.

    Raises:
        OSError: this system has no such policy, or does not tell how long threads wait.
    """

    def __init__(self) -> None:
        # Of the calling thread, which has run for a while: what a new one has run for is not counted at once.
        if run_and_wait() == (0, 0):
            raise OSError("the kernel does not count how long threads wait")
        self._pool = ThreadPoolExecutor(1, "idle")
        self.starves: Callable[[], bool] = self._pool.submit(_become_idle).result().starves

    def run[T](self, work: Callable[[], T]) -> T:
        """The result of `work`, which may ask `starves`. Raises what it raises."""
        return self._pool.submit(work).result()


def _become_idle() -> Hunger:
    """Give the calling thread the idle policy. Raises OSError."""
    if sys.platform == "linux":
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        return Hunger(run_and_wait)
    else:  # noqa: RET505 - mypy finds what follows unreachable
        raise OSError("no idle policy here")


def run_and_wait() -> tuple[int, int]:
    """Nanoseconds for which the calling thread has run, and has waited for a core. Raises OSError."""
    ran, waited, _ = Path("/proc/thread-self/schedstat").read_text().split()
    return int(ran), int(waited)
