"""The thread that keeps the sums of `rollups` up to date while the proxy runs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

logger = logging.getLogger(__name__)

FIRST_PAUSE = 5.0
"""Seconds after the start before the thread looks for work."""
PAUSE = 300.0
"""Seconds between two looks."""
REST = 1.0
"""After each piece of work the thread rests so many times as long as it took."""


class Filler:
    """The thread behind the reports. All it does can be lost at any time."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heliproxy-rollups", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread; waits for the piece of work under way."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while not self._stop.wait(pause):
            pause = PAUSE
            try:
                self.fill()
            except Exception as e:
                # Reports read the requests instead; the next look may fare better.
                logger.debug("sums of the past were not made: %s", e)

    def fill(self) -> None:
        """Make what is missing, with rests; ends early once the thread is to end. Raises sqlite3.Error."""
        # Heavy imports, which the start of the proxy does not wait for.
        from heliproxy.rollup_filler import connect, fill, missing

        now = datetime.fromtimestamp(self._clock(), UTC)
        with closing(connect(self._path)) as conn:
            for period in missing(conn, now):
                began = time.monotonic()
                fill(conn, period)
                if self._stop.wait(REST * (time.monotonic() - began)):
                    return
