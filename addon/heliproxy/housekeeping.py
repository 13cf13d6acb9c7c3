"""Keeping heliproxy.db small and safe: removing what is old, giving space back, copying it while it is in use.

Everything is done in small steps, each a transaction of its own with a pause after it, so that the recorder of a
running proxy, which waits for no one longer than a second, always gets its turn.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from heliproxy.home import make_private_file
from heliproxy.retention import Retention
from heliproxy.store import open_reader, open_writer
from heliproxy.times import stored_time

logger = logging.getLogger(__name__)

BATCH_ROWS = 500
BATCH_PAGES = 500
PAUSE_SECONDS = 0.02
BUSY_SECONDS = 15.0
FIRST_SECONDS = 2.0
"""After the start of a proxy, until it first looks for what is too old or too much."""
EVERY_SECONDS = 300.0
LOCK_NAME = "housekeeping.lock"
ROOM = 0.9
"""Of the allowed size: how far a database that is too large is brought down."""
BACKUP_PAGES = 2000

Tell = Callable[[int, int], None]
"""Called between steps with how much is done and how much there is in all."""


def silent(done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was removed, or with `dry_run` would be."""

    rows: int = 0
    bodies: int = 0
    bytes: int = 0
    """Of the bodies, as stored."""

    def __add__(self, other: Pruned) -> Pruned:
        return Pruned(self.rows + other.rows, self.bodies + other.bodies, self.bytes + other.bytes)


_BODY_BYTES = "coalesce(sum(coalesce(length(request), 0) + coalesce(length(response), 0)), 0)"
_OLD = "SELECT id FROM requests WHERE created_at < ?"
_FIRST_OLD = "SELECT id FROM requests WHERE created_at < ? ORDER BY created_at LIMIT ?"
_NEXT_OLD = (
    "SELECT created_at, id FROM requests WHERE (created_at, id) > (?, ?) AND created_at < ?"
    " ORDER BY created_at, id LIMIT ?"
)
_OLDEST = "SELECT id FROM requests ORDER BY created_at LIMIT ?"
_OLDEST_BODIES = "SELECT request_id FROM bodies ORDER BY rowid LIMIT ?"
_FORGET_SUMS = (
    "DELETE FROM rollups WHERE NOT EXISTS"
    " (SELECT 1 FROM rollup_periods p WHERE p.level = rollups.level AND p.start = rollups.start)"
)
_BELONGING = (
    ("properties", "request_id"),
    ("scores", "request_id"),
    ("feedback", "request_id"),
    ("under_way", "request_id"),
    ("requests", "id"),
)


def count_old(conn: sqlite3.Connection, before: datetime, *, bodies_only: bool = False) -> Pruned:
    """What `prune` would remove. Raises sqlite3.Error."""
    at = stored_time(before)
    rows = 0 if bodies_only else conn.execute(f"SELECT count(*) FROM ({_OLD})", (at,)).fetchone()[0]
    bodies = conn.execute(f"SELECT count(*), {_BODY_BYTES} FROM bodies WHERE request_id IN ({_OLD})", (at,)).fetchone()
    return Pruned(rows, *bodies)


def prune(
    conn: sqlite3.Connection,
    before: datetime,
    *,
    bodies_only: bool = False,
    tell: Tell = silent,
    pause: Callable[[float], object] = time.sleep,
) -> Pruned:
    """Remove requests made before then, with all that belongs to them, or only their bodies. Raises sqlite3.Error.

    What is pruned is left out of reports from then on. Costs that count against a budget's running period go as well.
    """
    at = stored_time(before)
    total = conn.execute(f"SELECT count(*) FROM ({_OLD})", (at,)).fetchone()[0]
    done, removed = 0, Pruned()
    for ids in _bodies_of(conn, at) if bodies_only else _until_none(conn, _FIRST_OLD, (at, BATCH_ROWS)):
        removed += remove(conn, ids, bodies_only=bodies_only)
        done += len(ids)
        tell(done, total)
        pause(PAUSE_SECONDS)
    if removed.rows:
        conn.execute(_FORGET_SUMS)
    return removed


def _until_none(conn: sqlite3.Connection, sql: str, values: tuple[object, ...]) -> Iterator[list[str]]:
    while ids := [row[0] for row in conn.execute(sql, values)]:
        yield ids


def _bodies_of(conn: sqlite3.Connection, at: str) -> Iterator[list[str]]:
    place = ("", "")
    while rows := conn.execute(_NEXT_OLD, (*place, at, 4 * BATCH_ROWS)).fetchall():
        place = rows[-1]
        yield [row[1] for row in rows]


def remove(conn: sqlite3.Connection, ids: list[str], *, bodies_only: bool = False) -> Pruned:
    """Remove these requests, or only their bodies, in one transaction. Raises sqlite3.Error."""
    conn.execute("CREATE TEMP TABLE IF NOT EXISTS removing (id TEXT PRIMARY KEY)")
    conn.execute("BEGIN IMMEDIATE")
    try:
        conn.execute("DELETE FROM temp.removing")
        conn.executemany("INSERT OR IGNORE INTO temp.removing VALUES (?)", [(key,) for key in ids])
        among = "IN (SELECT id FROM temp.removing)"
        bodies, size = conn.execute(f"SELECT count(*), {_BODY_BYTES} FROM bodies WHERE request_id {among}").fetchone()
        rows = 0
        if bodies:
            conn.execute(f"DELETE FROM bodies WHERE request_id {among}")
        if not bodies_only:
            for table, column in _BELONGING:
                rows = conn.execute(f"DELETE FROM {table} WHERE {column} {among}").rowcount
        conn.execute("COMMIT")
    except BaseException:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        raise
    return Pruned(rows, bodies, size)


def prune_to_size(conn: sqlite3.Connection, max_bytes: int, *, pause: Callable[[float], object] = time.sleep) -> Pruned:
    """Remove the oldest bodies, then the oldest requests, until the database has room again. Raises sqlite3.Error.

    Does nothing while the pages in use are within `max_bytes`.
    """
    removed = Pruned()
    if used_bytes(conn) <= max_bytes:
        return removed
    for sql, bodies_only in ((_OLDEST_BODIES, True), (_OLDEST, False)):
        while used_bytes(conn) > max_bytes * ROOM:
            ids = [row[0] for row in conn.execute(sql, (BATCH_ROWS // 5,))]
            if not ids:
                break
            removed += remove(conn, ids, bodies_only=bodies_only)
            pause(PAUSE_SECONDS)
    return removed


def used_bytes(conn: sqlite3.Connection) -> int:
    """Bytes of the pages that hold something; free ones are used again before the file grows."""
    pages, free, size = (
        int(conn.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size


def give_back(conn: sqlite3.Connection, *, tell: Tell = silent, pause: Callable[[float], object] = time.sleep) -> int:
    """Cut free pages off the file, in steps; returns their number. 0 for files made before this was possible.

    Raises sqlite3.Error.
    """
    if conn.execute("PRAGMA auto_vacuum").fetchone()[0] != 2:
        return 0
    free = total = int(conn.execute("PRAGMA freelist_count").fetchone()[0])
    while free:
        conn.execute(f"PRAGMA incremental_vacuum({BATCH_PAGES})").fetchall()
        left = int(conn.execute("PRAGMA freelist_count").fetchone()[0])
        tell(total - left, total)
        if left >= free:
            break
        free = left
        pause(PAUSE_SECONDS)
    return total - free


def vacuum(conn: sqlite3.Connection) -> None:
    """Write the whole file anew, without gaps. Nobody else can write meanwhile. Raises sqlite3.Error."""
    conn.execute("PRAGMA auto_vacuum = INCREMENTAL")
    conn.execute("VACUUM")


def shorten_wal(conn: sqlite3.Connection) -> None:
    """Bring everything into the file and empty the WAL, if nobody is reading it."""
    with contextlib.suppress(sqlite3.Error):
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def backup(source: Path, target: Path, *, tell: Tell = silent) -> int:
    """Copy the database as it is at this moment to a file of its own, mode 0600; returns its size in bytes.

    Raises FileExistsError, SchemaError, sqlite3.Error or OSError; then there is no such file.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists")
    part = target.with_name(f"{target.name}.part")
    part.unlink(missing_ok=True)
    make_private_file(part)
    try:
        with contextlib.closing(open_reader(source)) as conn, contextlib.closing(sqlite3.connect(part)) as copy:
            # One snapshot for all steps: else every commit of a running proxy would make it begin again.
            conn.execute("BEGIN")
            conn.execute("SELECT count(*) FROM sqlite_master").fetchone()
            conn.backup(copy, pages=BACKUP_PAGES, progress=lambda _, left, total: tell(total - left, total), sleep=0)
            conn.execute("ROLLBACK")
            copy.execute("PRAGMA journal_mode = DELETE").fetchone()  # one file, that can be moved anywhere
        size = part.stat().st_size
        part.rename(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return size


def open_for_upkeep(path: Path) -> sqlite3.Connection:
    """A connection that may change the file. Raises FileNotFoundError, SchemaError, sqlite3.Error or OSError."""
    if not path.exists():
        raise FileNotFoundError(f"no database at {path}")
    return open_writer(path, BUSY_SECONDS)


def keep(conn: sqlite3.Connection, retention: Retention, now: datetime, pause: Callable[[float], object]) -> Pruned:
    """Remove what is too old or too much now, and give the space back. Raises sqlite3.Error."""
    removed = Pruned()
    if retention.keep_days is not None:
        removed += prune(conn, now - timedelta(days=retention.keep_days), pause=pause)
    if retention.keep_bodies_days is not None:
        removed += prune(conn, now - timedelta(days=retention.keep_bodies_days), bodies_only=True, pause=pause)
    if retention.max_bytes is not None:
        removed += prune_to_size(conn, retention.max_bytes, pause=pause)
    if removed != Pruned():
        give_back(conn, pause=pause)
        shorten_wal(conn)
    return removed


@contextlib.contextmanager
def alone(home: Path) -> Iterator[bool]:
    """Whether no other process does this now: several proxies may share a home. Raises OSError."""
    path = home / LOCK_NAME
    make_private_file(path)
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


class Keeper:
    """The thread of a running proxy that removes what its `retention` says, now and then."""

    def __init__(self, path: Path, retention: Retention, clock: Callable[[], float] = time.time) -> None:
        self._path, self._retention, self._clock = path, retention, clock
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heliproxy-housekeeping", daemon=True)

    def start(self) -> None:
        if self._retention:
            self._thread.start()

    def stop(self) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def _run(self) -> None:
        wait = FIRST_SECONDS
        while not self._over.wait(wait):
            wait = EVERY_SECONDS
            try:
                self.work()
            except _StopError:
                return
            except Exception as e:
                logger.warning("housekeeping failed, and is tried again later: %s", e)

    def work(self) -> None:
        """Do it once. Raises sqlite3.Error or OSError."""
        with alone(self._path.parent) as first:
            if first:
                self._work()

    def _work(self) -> None:
        with contextlib.closing(open_for_upkeep(self._path)) as conn:
            removed = keep(conn, self._retention, datetime.fromtimestamp(self._clock(), UTC), self._pause)
        if removed != Pruned():
            logger.info("removed %d requests and %d bodies as too old or too much", removed.rows, removed.bodies)

    def _pause(self, seconds: float) -> None:
        if self._over.wait(seconds):
            raise _StopError


class _StopError(Exception):
    """The proxy ends; what is left is done next time."""
