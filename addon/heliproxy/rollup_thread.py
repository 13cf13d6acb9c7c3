"""Keeps the sums of `rollups` up to date while the proxy runs: a thread that has another process make them.

That process goes at a low priority and gives its memory back when it ends: to sum up a busy hour takes seconds and
megabytes, which would else be the proxy's.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from heliproxy import own_process

logger = logging.getLogger(__name__)

FIRST_PAUSE = 5.0
"""Seconds after the start before the thread looks for work."""
PAUSE = 300.0
"""Seconds between two looks."""
SETTLED_SECONDS = 7200.0
"""An hour's sums are made well within this time after the last call that began in it."""


class Filler:
    """The thread behind the reports. All it does can be lost at any time."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heliproxy-rollups", daemon=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._looked = 0.0

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread, and what it has under way."""
        self._stop.set()
        process = self._process
        if process is not None:
            process.terminate()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while not self._stop.wait(pause):
            pause = PAUSE
            try:
                self.fill()
            except (OSError, subprocess.SubprocessError) as e:
                # Reports read the requests instead; the next look may fare better.
                logger.debug("sums of the past were not made: %s", e)

    def fill(self) -> None:
        """Have what is missing made; ends early once the thread is to end.

        Raises:
            OSError: the process cannot be started.
            subprocess.CalledProcessError: it failed.
        """
        now = self._clock()
        if self._written() + SETTLED_SECONDS < self._looked:
            return  # all that can be summed up was there at the last look
        command = own_process.command("rollup_filler", str(self._path), repr(now))
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # its end tells the process that this one is gone
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=own_process.environment(),
        )
        with self._process as process:
            if self._stop.is_set():
                process.terminate()
            process.wait()
        self._process = None
        if process.returncode and not self._stop.is_set():
            raise subprocess.CalledProcessError(process.returncode, command)
        self._looked = now

    def _written(self) -> float:
        """When the database was last written to, in seconds of the wall clock. Raises OSError when it is not there."""
        times = [self._path.stat().st_mtime]
        with contextlib.suppress(OSError):
            times.append(self._path.with_name(f"{self._path.name}-wal").stat().st_mtime)
        return max(times)
