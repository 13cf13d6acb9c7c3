"""Results that are dear to compute, kept while nothing is written, or for a little longer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

KEPT = 64
STALE_FACTOR = 10
"""A result may be this many times older than the time it took: a page of a big log costs at most a tenth of a core."""
STALE_MOST = 30.0
"""Seconds that a result may be older than the file."""

Version = tuple[int, ...]


class Kept:
    """Remembers results by key, for one database file."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._files = (path, path.with_name(f"{path.name}-wal"))
        self._clock = clock
        self._lock = threading.Lock()
        self._values: dict[Hashable, tuple[Any, Version, float, float]] = {}

    def get(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """The result of `compute`, or one of an earlier call with this key that is fresh enough."""
        version = self._version()
        now = self._clock()
        with self._lock:
            found = self._values.get(key)
        if found is not None:
            value, made_of, made_at, took = found
            if made_of == version or now - made_at < min(STALE_MOST, took * STALE_FACTOR):
                return value
        value = compute()
        done = self._clock()
        with self._lock:
            if len(self._values) >= KEPT:
                self._values.pop(next(iter(self._values)))
            self._values[key] = (value, version, done, done - now)
        return value

    def _version(self) -> Version:
        """Differs after any process wrote to the file."""
        found: list[int] = []
        for path in self._files:
            try:
                info = path.stat()
            except OSError:
                found += [0, 0]
            else:
                found += [info.st_mtime_ns, info.st_size]
        return tuple(found)
