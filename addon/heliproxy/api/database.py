"""Reads and writes of the API: readers of their own, in threads; all writes on the recorder's thread."""

from __future__ import annotations

import contextlib
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from anyio import to_thread

from heliproxy import queries
from heliproxy.api.errors import ApiError
from heliproxy.bodies import decoded
from heliproxy.migrations import SchemaError
from heliproxy.queries import Row
from heliproxy.recorder import Recorder
from heliproxy.rounding import without_noise
from heliproxy.store import Writer, open_reader

FLUSH_SECONDS = 5.0
"""How long a read waits for rows that are still being written, before it answers without them."""
WRITE_SECONDS = 15.0
READ_SECONDS = 30.0
"""A query that runs longer is ended."""
STEPS = 50_000
"""Instructions of SQLite's machine between two looks at the clock."""
IDLE_READERS = 4


def fetch_rows(conn: sqlite3.Connection, sql: str, values: Sequence[Any]) -> list[Row]:
    """The rows of a query, as an answer gives them: without the noise of sums."""
    return [
        {name: without_noise(value) for name, value in row.items()} for row in queries.fetch_rows(conn, sql, values)
    ]


class Database:
    """The database behind the API. `recorder` is asked for at each call: the app is made before it runs."""

    def __init__(self, path: Path, recorder: Callable[[], Recorder]) -> None:
        self._path = path
        self._recorder = recorder
        self._idle: list[tuple[tuple[int, int], sqlite3.Connection]] = []
        self._lock = threading.Lock()

    async def read[T](self, job: Callable[[sqlite3.Connection], T], *, flush: bool = True) -> T:
        """Run `job` on a read-only connection, in a thread, after everything handed to the recorder is stored."""
        return await to_thread.run_sync(self._read, job, flush)

    async def write[T](self, job: Callable[[Writer], T]) -> T:
        """Run `job` on the recorder's thread; what it stores is visible to the next read."""

        def run() -> T:
            recorder = self._recorder()

            def with_writer() -> T:
                assert recorder.writer is not None
                return job(recorder.writer)

            try:
                done: T = recorder.call(with_writer, WRITE_SECONDS)
            except (sqlite3.Error, OSError, SchemaError) as e:  # TimeoutError is an OSError
                raise ApiError(503, f"the database cannot be written: {e}") from e
            return done

        return await to_thread.run_sync(run)

    def _read[T](self, job: Callable[[sqlite3.Connection], T], flush: bool) -> T:
        recorder = self._recorder()
        if flush and recorder.alive:
            # Late rows are worth less than an answer.
            with contextlib.suppress(TimeoutError):
                recorder.flush(FLUSH_SECONDS)
        try:
            key, conn = self._borrow()
        except (OSError, sqlite3.Error, SchemaError) as e:
            raise ApiError(503, f"the database cannot be read: {e}") from e
        deadline = _read_until.deadline = time.monotonic() + READ_SECONDS
        conn.set_progress_handler(lambda: time.monotonic() > deadline, STEPS)
        try:
            return job(conn)
        except sqlite3.OperationalError as e:
            if "interrupted" in str(e) or time.monotonic() > deadline:
                raise ApiError(400, f"the query took longer than {READ_SECONDS:.0f} s; narrow it down") from e
            raise
        finally:
            _read_until.deadline = math.inf
            conn.set_progress_handler(None, 0)
            if conn.in_transaction:
                conn.rollback()
            self._give_back(key, conn)

    def _borrow(self) -> tuple[tuple[int, int], sqlite3.Connection]:
        """A connection to the file that is at the path now: a damaged one may have been replaced."""
        info = self._path.stat()
        key = (info.st_dev, info.st_ino)
        with self._lock:
            while self._idle:
                found, conn = self._idle.pop()
                if found == key:
                    return found, conn
                conn.close()
        conn = open_reader(self._path)
        add_functions(conn)
        return key, conn

    def _give_back(self, key: tuple[int, int], conn: sqlite3.Connection) -> None:
        with self._lock:
            if len(self._idle) < IDLE_READERS:
                self._idle.append((key, conn))
                return
        conn.close()

    def close(self) -> None:
        """Close the connections that are kept for the next read."""
        with self._lock:
            while self._idle:
                self._idle.pop()[1].close()


def add_functions(conn: sqlite3.Connection) -> None:
    """Functions the API's SQL uses: bodies as text, and comparison of text beyond ASCII."""
    conn.create_function("body_text", 2, body_text, deterministic=True)
    conn.create_function("fold", 1, fold, deterministic=True)


class _ReadUntil(threading.local):
    deadline = math.inf
    """Monotonic seconds."""


_read_until = _ReadUntil()
"""When the read under way on this thread has to end."""


def body_text(stored: Any, encoding: str | None) -> str | None:
    """A stored body as text. Raises TimeoutError when it is too late: queries of long texts make few steps to count."""
    if time.monotonic() > _read_until.deadline:
        raise TimeoutError
    raw = decoded(stored, encoding or "")
    return None if raw is None else raw.decode("utf-8", "replace")


def fold(value: Any) -> Any:
    """Text with its case folded; SQLite itself folds ASCII only."""
    return value.casefold() if isinstance(value, str) else value
