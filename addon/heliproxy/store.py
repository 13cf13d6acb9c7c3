"""heliproxy.db: the one SQLite file everything is written to and read from.

A `Writer` belongs to one thread. It buffers records and commits them in batches; nothing it does raises into the
traffic: when SQLite cannot take a batch, the batch is kept and tried again later. What is kept is bounded: bodies are
dropped first, then rows, and everything lost is counted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from heliproxy import migrations
from heliproxy.bodies import Body, StoredBody, stored
from heliproxy.home import make_private_file, make_private_folder
from heliproxy.migrations import SchemaError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

logger = logging.getLogger(__name__)

COLUMNS = (
    "id", "created_at", "provider", "host", "path", "method", "model", "request_model", "response_model", "status",
    "error", "error_type", "stream", "latency_ms", "ttft_ms", "input_tokens", "cache_read_tokens",
    "cache_write_tokens", "cache_write_1h_tokens", "output_tokens", "reasoning_tokens", "input_audio_tokens",
    "cache_read_audio_tokens", "output_audio_tokens", "input_image_tokens", "output_image_tokens", "usage_source",
    "usage_json", "lower_bound", "cost_usd", "fees_usd", "cost_source", "price_id", "price_version", "saved_usd",
    "cache",
    "cache_reference_id", "attempts", "attempts_json", "fallback_index", "user_id", "session_id", "session_name",
    "session_path", "prompt_id", "key_fingerprint", "auth_fingerprint", "run_id", "client", "service_tier",
    "finish_reason",
    "response_id", "format", "source", "target_url", "warning", "parse_error", "truncated", "incomplete", "preview",
    "answer_preview", "size_request", "size_response",
)  # fmt: skip
INCOMPLETE = COLUMNS.index("incomplete")
CREATED_AT = COLUMNS.index("created_at")

# A row that was opened early (incomplete = 1) gives way to the final one; it never overwrites a final one.
PUT_ROW = (
    f"INSERT INTO requests ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))}) "
    f"ON CONFLICT (id) DO UPDATE SET {', '.join(f'{c} = excluded.{c}' for c in COLUMNS[1:])} "
    "WHERE requests.incomplete IS 1 OR excluded.incomplete IS NOT 1"
)
# What was set through the API for this id before its row arrived stays.
PUT_PROPERTY = "INSERT OR IGNORE INTO properties (request_id, key, value) VALUES (?, ?, ?)"
PUT_BODY = "INSERT OR REPLACE INTO bodies VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
SET_PROPERTY = "INSERT OR REPLACE INTO properties (request_id, key, value) VALUES (?, ?, ?)"
SET_SCORE = "INSERT OR REPLACE INTO scores (request_id, name, value, type) VALUES (?, ?, ?, ?)"
SET_FEEDBACK = "INSERT OR REPLACE INTO feedback (request_id, name, value, type, created_at) VALUES (?, ?, ?, ?, ?)"

PUT_UNDER_WAY = (
    "INSERT OR REPLACE INTO under_way (process, request_id) SELECT ?, id FROM requests WHERE id = ? AND incomplete = 1"
)
FORGET_UNDER_WAY = "DELETE FROM under_way WHERE request_id = ?"

SLICE = 8
"""Rows written in one go; then comes a pause, in which the event loop can take over Python's lock."""
PAUSE_SECONDS = 0.00005

FEEDBACK_SCORE = "helicone-score-feedback"

# Errors that lie in one value of one row: the rest of the batch is written without it.
POISON = (
    OverflowError,
    UnicodeError,
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    sqlite3.DataError,
)
Failure = (sqlite3.Error, OSError, SchemaError)

MAX_CHECKED_BYTES = 64 << 20
"""A file up to this is read in whole when it may be damaged, which takes a fifth of a second."""
CHECK_SECONDS = 60.0
TRUST_SECONDS = 1.0
"""How long after a sign of another process of ours the changes of the file are taken for its."""
LEAST_SIZE = 512
"""Bytes of the smallest SQLite database."""
MAX_ODD_FAILURES = 20
"""Times in a row that a batch may fail for a reason that is not the database's before it is given up."""


class DamagedError(sqlite3.DatabaseError):
    """The file was overwritten while it was in use."""


@dataclass(frozen=True, slots=True)
class Record:
    """One exchange to be stored. `row` has keys of `COLUMNS`; an absent key is NULL."""

    row: Mapping[str, Any]
    properties: Mapping[str, str] = field(default_factory=dict)
    body: Body | StoredBody | None = None


@dataclass(frozen=True, slots=True)
class Store:
    """The database file at `path`: opens writers and readers of it."""

    path: Path
    clock: Callable[[], float] = time.time
    """Unix time in seconds."""

    def writer(self, **limits: Any) -> Writer:
        """Open for writing: create or migrate the file. Raises SchemaError, sqlite3.Error or OSError if it cannot."""
        writer = Writer(self.path, clock=self.clock, **limits)
        writer.open()
        return writer

    def reader(self) -> sqlite3.Connection:
        """Open for reading, see `open_reader`."""
        return open_reader(self.path)


def open_reader(path: Path) -> sqlite3.Connection:
    """Open the database read-only, on a live file or a copy of one; never migrates.

    Raises FileNotFoundError, SchemaError (another version's file, or not ours) or sqlite3.Error.
    """
    if not path.exists():
        raise FileNotFoundError(f"no database at {path}")
    uri = f"file:{quote(str(path.absolute()))}?mode=ro"
    try:
        conn = connect_reader(uri)
    except sqlite3.OperationalError:
        # A copy in a folder we may not write to has no place for the -shm file that WAL needs. Without a -wal file
        # beside it nobody is writing, and it can be read as it stands.
        if Path(f"{path}-wal").exists():
            raise
        conn = connect_reader(uri + "&immutable=1")
    try:
        migrations.check_readable(conn)
    except BaseException:
        conn.close()
        raise
    return conn


def connect_reader(uri: str) -> sqlite3.Connection:
    conn = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=5, check_same_thread=False)
    try:
        conn.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.DatabaseError as e:
        conn.close()
        if primary_code(e) == sqlite3.SQLITE_NOTADB:
            raise SchemaError("the file is not a SQLite database") from e
        raise
    return conn


def open_writer(path: Path, busy_timeout: float) -> sqlite3.Connection:
    """Open for writing, create (file 0600, folder 0700) and migrate as needed.

    Raises SchemaError with the file unchanged, sqlite3.Error or OSError.
    """
    make_private_folder(path.parent)
    make_private_file(path)
    conn = sqlite3.connect(path, isolation_level=None, timeout=busy_timeout, check_same_thread=False)
    try:
        applied = migrations.applied_steps(conn)
        migrations.check_not_newer(applied)
        if not applied:
            # Only a file without tables can be made so that space is given back in small steps.
            conn.execute("PRAGMA auto_vacuum = INCREMENTAL")
        conn.execute("PRAGMA journal_mode = WAL")
        # Safe against a killed process; a power cut may cost the last commits but not the file.
        conn.execute("PRAGMA synchronous = NORMAL")
        conn.execute(f"PRAGMA journal_size_limit = {64 << 20}")
        migrations.migrate(conn)
    except BaseException:
        conn.close()
        raise
    return conn


def settle(path: Path) -> None:
    """Bring everything committed into the file itself, so that it can be copied alone. For when all else is closed.

    Does nothing when another process is using the file. Raises sqlite3.Error.
    """
    conn = sqlite3.connect(path, isolation_level=None, timeout=0.2)
    try:
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    finally:
        conn.close()


def primary_code(error: BaseException) -> int:
    """The SQLite result code without its extension; -1 when there is none."""
    code = getattr(error, "sqlite_errorcode", None)
    return code & 0xFF if isinstance(code, int) else -1


class Writer:
    """Buffers records and writes them in batches. One thread at a time.

    `max_rows` and `max_body_bytes` bound what is kept while SQLite cannot be written.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        busy_timeout: float = 5.0,
        max_rows: int = 40_000,
        max_body_bytes: int = 64 << 20,
    ) -> None:
        self.path = path
        self.written = 0
        self.lost_rows = 0
        self.lost_bodies = 0
        self.errors = 0
        self.last_error: str | None = None
        self.set_aside = 0
        """Damaged files that were renamed and replaced by a new one."""
        self.away_since: float | None = None
        """Unix seconds since when nothing could be written; None: the last write worked."""
        self.process: str | None = None
        """Mark of this process (see `underway`), noted with every row that is opened before its call is over."""
        self._opened: set[str] = set()
        """Ids of rows that this writer has opened and not replaced yet."""
        self._odd_failures = 0
        self._clock = clock
        self._monotonic = monotonic
        self._busy_timeout = self._write_timeout = busy_timeout
        self._slice = SLICE
        self._max_rows = max_rows
        self._max_body_bytes = max_body_bytes
        self._conn: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None
        self._found_wal = False
        self._check_at = 0.0
        self._trusted_until = 0.0
        self._seen: tuple[int, int, int, int] | None = None
        """How file and WAL were (see `_change_id`) when they were last known to be sound."""
        self._rows: dict[str, tuple[Any, ...]] = {}
        self._properties: list[tuple[Any, ...]] = []
        self._bodies: dict[str, tuple[Any, ...]] = {}
        self._body_bytes = 0
        self._retry_at = 0.0
        self._delay = 0.0

    # -- records -------------------------------------------------------------------------------------------------

    def add(self, record: Record) -> bool:
        """Buffer one record; False when it had to be dropped."""
        row = record.row
        key = row.get("id")
        if not isinstance(key, str) or not key or not row.get("created_at"):
            self._lose(f"a record without id or created_at: {key!r}", rows=1)
            return False
        known = self._rows.get(key)
        if known is None and len(self._rows) >= self._max_rows:
            self._lose("the write buffer is full", rows=1, bodies=record.body is not None)
            return False
        if known is None or known[INCOMPLETE] or not row.get("incomplete"):
            self._rows[key] = tuple(map(row.get, COLUMNS))
        if record.properties:
            self._properties += [(key, name, value) for name, value in record.properties.items()]
        if record.body is not None:
            self._add_body(key, record.body)
        return True

    def _add_body(self, key: str, body: Body | StoredBody) -> None:
        kept = body if isinstance(body, StoredBody) else stored(body)
        size = len(kept.request or b"") + len(kept.response or b"")
        if self._body_bytes + size > self._max_body_bytes:
            self._lose("the write buffer is full of bodies", bodies=1)
            return
        self._body_bytes += size
        self._bodies[key] = (
            key,
            kept.request,
            kept.response,
            kept.encoding,
            kept.request_type,
            kept.response_type,
            kept.request_headers,
            kept.response_headers,
        )

    @property
    def buffered(self) -> int:
        """Number of rows waiting for `flush`."""
        return len(self._rows)

    def flush(self, *, force: bool = False) -> int:
        """Commit everything buffered in one transaction; returns the number of rows written. Does not raise.

        After a failure the batch is kept and tried again on later calls, at growing distances up to 5 s;
        `force` tries at once.
        """
        if not self._rows and not self._properties and not self._bodies:
            return 0
        if not force and self._monotonic() < self._retry_at:
            return 0
        for _ in range(2):  # twice: a corrupt or vanished file is replaced, then written
            try:
                return self._commit()
            except Exception as e:
                if not self._failed(e):
                    return 0
        return 0

    def be_patient(self, seconds: float) -> None:
        """From now on wait this long for another process's lock before a batch is put off. `write` waits as before."""
        self._busy_timeout = seconds
        self._wait(seconds)

    def never_pause(self) -> None:
        """From now on write in one go: this process has no event loop that waits for Python's lock."""
        self._slice = max(SLICE, self._max_rows)

    def _wait(self, seconds: float) -> None:
        if self._conn is not None:
            self._conn.execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")

    def _commit(self) -> int:
        rows = list(self._rows.values())
        with self._transaction() as conn, triggers(conn, when=self._change_history(conn, rows)):
            lost = self._write(conn, PUT_ROW, rows)
            self._write(conn, PUT_PROPERTY, self._properties)
            lost_bodies = self._write(conn, PUT_BODY, list(self._bodies.values()))
            opened = self._note_opened(conn)
        self._opened = opened
        self._seen = self._change_id()
        self._odd_failures = 0
        self._rows = {}
        self._properties = []
        self._bodies = {}
        self._body_bytes = 0
        self.written += len(rows) - lost
        self.lost_rows += lost
        self.lost_bodies += lost_bodies
        return len(rows) - lost

    def _change_history(self, conn: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> bool:
        """Whether any row belongs, or as it stands so far belongs, to a time that is summed up already."""
        horizon = conn.execute("SELECT until FROM rollup_horizon").fetchone()[0]
        if not horizon:
            return False
        if any(str(row[CREATED_AT]) < horizon for row in rows):
            return True
        known = "SELECT 1 FROM requests WHERE created_at < ? AND id IN (SELECT value FROM json_each(?)) LIMIT 1"
        return conn.execute(known, (horizon, json.dumps([row[0] for row in rows]))).fetchone() is not None

    def _note_opened(self, conn: sqlite3.Connection) -> set[str]:
        """Note rows of calls still under way with this process's mark, and take out those that are over."""
        fresh = [key for key, row in self._rows.items() if row[INCOMPLETE]]
        over = self._opened & self._rows.keys() - set(fresh) if self._opened else set()
        if fresh and self.process is not None:
            conn.executemany(PUT_UNDER_WAY, [(self.process, key) for key in fresh])
        if over:
            conn.executemany(FORGET_UNDER_WAY, [(key,) for key in over])
        return self._opened.union(fresh) - over

    def _write(self, conn: sqlite3.Connection, sql: str, rows: list[tuple[Any, ...]]) -> int:
        """Write all rows; returns how many could not be stored whatever was done to them."""
        if not rows:
            return 0
        conn.execute("SAVEPOINT batch")
        try:
            for start in range(0, len(rows), self._slice):
                if start:
                    time.sleep(PAUSE_SECONDS)
                conn.executemany(sql, rows[start : start + self._slice])
            lost = 0
        except POISON:
            conn.execute("ROLLBACK TO batch")
            lost = sum(not self._write_one(conn, sql, row) for row in rows)
        conn.execute("RELEASE batch")
        return lost

    def _write_one(self, conn: sqlite3.Connection, sql: str, row: tuple[Any, ...]) -> bool:
        try:
            conn.execute(sql, row)
        except POISON:
            try:
                conn.execute(sql, tuple(map(storable, row)))
            except POISON as e:
                self._note(e)
                return False
        return True

    # -- things said about a request afterwards --------------------------------------------------------------------

    def set_property(self, request_id: str, key: str, value: str) -> None:
        """Set one property, visible at once. Raises sqlite3.Error or OSError when it cannot be stored."""
        self.write([(SET_PROPERTY, (request_id, key, value))])

    def add_scores(self, request_id: str, scores: Mapping[str, float | bool]) -> None:
        """Set scores, visible at once; a bool is stored as 1 or 0 with type "boolean", others as "number".

        Raises sqlite3.Error or OSError when they cannot be stored.
        """
        self.write([(SET_SCORE, (request_id, *score_columns(name, value))) for name, value in scores.items()])

    def add_feedback(self, request_id: str, value: bool | float | str, name: str = "rating") -> None:
        """Set one piece of feedback, visible at once; a boolean rating is also Helicone's feedback score.

        Raises sqlite3.Error or OSError when it cannot be stored.
        """
        kind = "boolean" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"
        text = str(value).lower() if isinstance(value, bool) else str(value)
        at = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        writes: list[tuple[str, tuple[Any, ...]]] = [(SET_FEEDBACK, (request_id, name, text, kind, at))]
        if name == "rating" and isinstance(value, bool):
            writes.append((SET_SCORE, (request_id, *score_columns(FEEDBACK_SCORE, value))))
        self.write(writes)

    def write(self, writes: Sequence[tuple[str, tuple[Any, ...]]]) -> None:
        """Run statements with their values in one transaction, after everything buffered; visible at once.

        Raises sqlite3.Error or OSError when they cannot be stored.
        """
        self.flush(force=True)
        try:
            self.open()
            self._wait(self._write_timeout)
            with self._transaction() as conn:
                for sql, values in writes:
                    conn.execute(sql, tuple(map(storable, values)))
        except Failure as e:
            self._failed(e)
            raise
        finally:
            self._wait(self._busy_timeout)

    def run[T](self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Run `job` on the connection, outside a transaction and not looking at what is buffered.

        Raises sqlite3.Error or OSError.
        """
        self.open()
        assert self._conn is not None
        return job(self._conn)

    # -- the file --------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the file if it is not open. Raises SchemaError, sqlite3.Error or OSError."""
        if self._conn is not None and self._file_id() == self._inode:
            self._check_changed()
            return
        self._disconnect()
        self._found_wal = Path(f"{self.path}-wal").exists()
        try:
            self._conn = open_writer(self.path, self._busy_timeout)
        except sqlite3.DatabaseError as e:
            if primary_code(e) not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise
            self._set_aside(e)
            self._conn = open_writer(self.path, self._busy_timeout)
        self._inode = self._file_id()
        self._seen = None

    def close(self) -> None:
        """Write what is buffered (what cannot be written is counted as lost) and close the file. Does not raise."""
        self.flush(force=True)
        if self._rows or self._bodies:
            self._give_up()
        self._disconnect()

    def _give_up(self) -> None:
        self._lose("could not be written", rows=len(self._rows), bodies=len(self._bodies))
        self._rows, self._properties, self._bodies, self._body_bytes = {}, [], {}, 0
        self._odd_failures = 0

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self.open()
        conn = self._conn
        assert conn is not None
        conn.execute("BEGIN IMMEDIATE")
        try:
            yield conn
            conn.execute("COMMIT")
        except BaseException:
            if conn.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    conn.execute("ROLLBACK")
            raise
        self._delay = self._retry_at = 0.0
        self.away_since = None

    def _failed(self, error: BaseException) -> bool:
        """Note a failed write and decide what comes next: True to try again at once, False to wait."""
        self._note(error)
        self.away_since = self.away_since or self._clock()
        code = primary_code(error)
        if not isinstance(error, Failure):
            self._odd_failures += 1
            if self._odd_failures > MAX_ODD_FAILURES:
                self._give_up()
        if isinstance(error, DamagedError) or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            moved = self._file_id() != self._inode
            if self._conn is not None:
                # What the damaged file and its WAL hold is left as it is, for whoever wants to mend it.
                self._conn.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, True)
            self._disconnect()
            # Another process may have set the file aside already; then its new one is used.
            if moved or self._set_aside(error):
                return True
        elif code not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL):
            # File truncated, made read-only, I/O error: a fresh connection sees the file as it is now.
            self._disconnect()
        self._delay = min(5.0, self._delay * 2 or 0.25)
        self._retry_at = self._monotonic() + self._delay
        return False

    def _set_aside(self, error: BaseException) -> bool:
        """Move a corrupt file, with its WAL, out of the way; True when that worked."""
        stamp = datetime.fromtimestamp(self._clock(), UTC).strftime("%Y%m%dT%H%M%S")
        aside = self.path.with_name(f"{self.path.name}.corrupt-{stamp}")
        number = 1
        while aside.exists():
            number += 1
            aside = self.path.with_name(f"{self.path.name}.corrupt-{stamp}-{number}")
        try:
            self.path.replace(aside)
            for end in ("-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    Path(f"{self.path}{end}").replace(f"{aside}{end}")
        except OSError as e:
            self._note(e)
            return False
        self.set_aside += 1
        logger.error("The database is damaged (%s). It is kept as %s; a new one is started.", error, aside)
        return True

    def _file_id(self) -> tuple[int, int] | None:
        try:
            info = self.path.stat()
        except OSError:
            return None
        return info.st_dev, info.st_ino

    def _check_changed(self) -> None:
        """Look at the file itself when somebody else changed it or its WAL. Raises DamagedError.

        Another process that writes, or another program that overwrote it: SQLite, which has pages in memory, would not
        notice for a while. The look must be SQLite's: closing a file of our own would take away the locks that this
        process has on it, and another process would think nobody uses the WAL.
        """
        changed = self._change_id()
        if changed == self._seen:
            return
        if changed is not None and changed[1] < LEAST_SIZE:
            raise DamagedError(f"{self.path.name} was cut to {changed[1]} bytes")
        if self._monotonic() < self._trusted_until:
            self._seen = changed
            return
        deep = self._seen is not None and self._monotonic() >= self._check_at
        if self.check(deep=deep):
            self._seen = changed

    def check(self, *, deep: bool = True) -> bool:
        """Read the beginning of the file, with `deep` all of one that is not too large; False when it is in use.

        Raises DamagedError.
        """
        try:
            with contextlib.closing(connect_reader(f"file:{quote(str(self.path.absolute()))}?mode=ro")) as conn:
                conn.execute("SELECT 1 FROM requests LIMIT 1").fetchone()
                found = self._checked(conn) if deep else "ok"
        except (SchemaError, sqlite3.Error, OSError) as e:
            codes = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)  # the last: no such table
            if isinstance(e, SchemaError) or primary_code(e) in codes:
                raise DamagedError(str(e)) from e
            return False  # locked, out of handles: another time
        if found != "ok":
            raise DamagedError(found)
        return True

    def _checked(self, conn: sqlite3.Connection) -> str:
        if self.path.stat().st_size > MAX_CHECKED_BYTES:
            return "ok"
        self._check_at = self._monotonic() + CHECK_SECONDS
        return str(conn.execute("PRAGMA quick_check(1)").fetchone()[0])

    def check_after_crash(self) -> None:
        """Read all of a file that somebody left without closing it, and replace it if it is damaged. Does not raise."""
        if not self._found_wal:
            return
        try:
            self.check()
        except DamagedError as e:
            self._failed(e)

    def _change_id(self) -> tuple[int, int, int, int] | None:
        """When the file and its WAL were changed, and how long they are."""
        try:
            info = os.stat(self.path)  # noqa: PTH116 - asked at every commit, and half as dear as Path's
        except OSError:
            return None
        try:
            wal = os.stat(f"{self.path}-wal")  # noqa: PTH116
        except OSError:
            return info.st_mtime_ns, info.st_size, 0, 0
        return info.st_mtime_ns, info.st_size, wal.st_mtime_ns, wal.st_size

    def leave_checks_to_another(self) -> None:
        """For a moment, take changes of the file for those of another process of ours, which looks at it as it writes.

        To look costs a connection, at every commit while both write.
        """
        now = self._monotonic()
        self._trusted_until = now + TRUST_SECONDS
        self._check_at = max(self._check_at, now + CHECK_SECONDS)

    def _disconnect(self) -> None:
        if self._conn is not None:
            with contextlib.suppress(sqlite3.Error):
                self._conn.close()
            self._conn = self._inode = None

    def _note(self, error: BaseException) -> None:
        self.errors += 1
        text = f"{type(error).__name__}: {error}"
        if text != self.last_error:  # once for a run of equal failures, not once a batch
            logger.warning("Could not write %s: %s", self.path, error)
        self.last_error = text

    def _lose(self, reason: str, *, rows: int = 0, bodies: int = 0) -> None:
        self.lost_rows += rows
        self.lost_bodies += bodies
        if reason != self.last_error:
            logger.warning("Lost %d rows, %d bodies so far: %s", self.lost_rows, self.lost_bodies, reason)
        self.last_error = reason


@contextlib.contextmanager
def triggers(conn: sqlite3.Connection, *, when: bool) -> Iterator[None]:
    """Let the triggers that forget sums of the past run in this block only `when` it may change the past.

    Each row they look at costs a fifth of writing it, and nearly all rows are new.
    """
    option = sqlite3.SQLITE_DBCONFIG_ENABLE_TRIGGER
    conn.setconfig(option, when)
    try:
        yield
    finally:
        conn.setconfig(option, True)


def score_columns(name: str, value: float | bool) -> tuple[str, float, str]:
    return name, float(value), "boolean" if isinstance(value, bool) else "number"


def storable(value: Any) -> Any:
    """`value` as something SQLite takes: big integers as floats, lone surrogates replaced, odd types as text."""
    if value is None or isinstance(value, float | bytes):
        return value
    if isinstance(value, int):
        if -(2**63) <= value < 2**63:
            return value
        return float(value) if abs(value) < 2**1000 else None
    return str(value).encode("utf-8", "replace").decode()
