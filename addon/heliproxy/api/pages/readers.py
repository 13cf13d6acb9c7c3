"""Read-only connections for the pages, reused from request to request."""

from __future__ import annotations

import contextlib
import queue
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from heliproxy.store import open_reader

KEPT = 4
"""Idle connections kept open."""


class Readers:
    """Hands out connections to one database, one thread at a time each. A replaced file is noticed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._idle: queue.LifoQueue[tuple[sqlite3.Connection, tuple[int, int]]] = queue.LifoQueue(KEPT)

    @contextlib.contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """A connection for the time of a `with`.

        Raises:
            FileNotFoundError, SchemaError, sqlite3.Error: there is no database that can be read.
        """
        conn, file_id = self._take()
        try:
            yield conn
        except BaseException:
            conn.close()
            raise
        try:
            self._idle.put_nowait((conn, file_id))
        except queue.Full:
            conn.close()

    def _take(self) -> tuple[sqlite3.Connection, tuple[int, int]]:
        file_id = self._file_id()
        while True:
            try:
                conn, known = self._idle.get_nowait()
            except queue.Empty:
                break
            if known == file_id:
                return conn, known
            conn.close()
        conn = open_reader(self.path)
        conn.execute(f"PRAGMA cache_size = -{32 << 10}")
        conn.execute(f"PRAGMA mmap_size = {1 << 30}")
        return conn, file_id

    def _file_id(self) -> tuple[int, int]:
        try:
            info = self.path.stat()
        except OSError:
            return 0, 0
        return info.st_dev, info.st_ino

    def close(self) -> None:
        """Close what is idle."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait()[0].close()
