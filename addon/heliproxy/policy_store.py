"""state.db: what policies remember between calls, restarts and processes: cached answers, buckets, budgets.

A file of its own beside heliproxy.db, so that a busy log writer and a limit that must be exact never wait for each
other. Every method may be called from any thread; those that touch the disk block for as long as another process
holds the write lock (BUSY_S at most) and belong in an executor, not on the event loop. Only `CacheStore.lookup_memory`,
`BudgetStore.active` and `BudgetStore.add` are for the loop itself.

Nothing here raises into the traffic. A cache that cannot be read is a miss. A limiter without its file counts in
memory, from what it last knew, and says so in a warning; a budget is judged by what was last known of it, and a
blocking one of which nothing is known refuses. A damaged file is renamed and a new one begun. When another process
holds the file for longer than the patience of who asks, all others fail at once for a moment: a call never waits behind
a queue of calls that wait.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import sys
import threading
import time
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from cachetools import LRUCache

from heliproxy.home import make_private_file, make_private_folder
from heliproxy.policies import budget as budgets
from heliproxy.policies import ratelimit
from heliproxy.policies.budget import Budget, BudgetState, Spender
from heliproxy.policies.cache import CacheEntry
from heliproxy.policies.ratelimit import BucketState, Decision, Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

logger = logging.getLogger(__name__)

STATE_NAME = "state.db"
BUSY_S = 10.0
"""How long opening the file, a limit or a command waits for another process's lock."""
CACHE_BUSY_S = 0.25
"""How long the cache does: an answer that is not cached costs less than a client that waits."""
LIMIT_BUSY_S = 3.0
AWAY_S = 1.0
"""After a failure nobody tries again for this long."""
SCHEMA_VERSION = 1
_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS cache (
        key BLOB NOT NULL, idx INTEGER NOT NULL, created REAL NOT NULL, expires REAL NOT NULL, size INTEGER NOT NULL,
        status INTEGER NOT NULL, headers TEXT NOT NULL, latency_ms REAL NOT NULL, request_id TEXT NOT NULL,
        cost_usd REAL, usage TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (key, idx))""",
    "CREATE INDEX IF NOT EXISTS cache_created ON cache (created, size)",
    "CREATE INDEX IF NOT EXISTS cache_expires ON cache (expires, size)",
    """CREATE TABLE IF NOT EXISTS buckets (
        id TEXT PRIMARY KEY, tokens REAL NOT NULL, updated REAL NOT NULL, policy TEXT NOT NULL,
        full_at REAL NOT NULL) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS budgets (
        name TEXT PRIMARY KEY, amount_usd REAL NOT NULL, per TEXT NOT NULL, scope TEXT, action TEXT NOT NULL,
        created_at TEXT NOT NULL)""",
)

MEMORY_BYTES = 64 << 20
DISK_BYTES = 512 << 20
_PURGE_EVERY = 64
_BUCKET_KEPT_S = 30 * 86_400
_KNOWN_BUCKETS = 10_000
MEMORY_WARNING = "Helicone-RateLimit-Policy: the limiter's file failed ({}), so this process counts alone for now"

Failure = (sqlite3.Error, OSError)


class CacheStorage(Protocol):
    """Where cached answers live; a fleet would put a shared server behind this."""

    def lookup_memory(self, key: bytes, bucket: int, now_s: float) -> list[CacheEntry | None] | None: ...
    def lookup_disk(self, key: bytes, bucket: int, now_s: float) -> list[CacheEntry | None]: ...
    def save(self, key: bytes, bucket: int, entry: CacheEntry, ttl_s: int, now_s: float) -> int | None: ...


class LimitStorage(Protocol):
    """Where buckets live."""

    def take(self, bucket_id: str, policy: Policy, now_s: float | None = None) -> Decision: ...
    def charge(self, bucket_id: str, policy: Policy, cents: float, now_s: float | None = None) -> None: ...


class StateFile:
    """The SQLite file: one connection a process, one user at a time, opened on first use and again after an error.

    With `mends`, a damaged file is renamed and a new one begun: for a proxy, not for a command that only looks.
    """

    def __init__(self, path: Path, *, mends: bool = False) -> None:
        self.path = path
        self._mends = mends
        self._stamp_path = path.with_name(f"{path.name}-changed")
        self._stamp = str(self._stamp_path)
        self._lock = threading.RLock()
        self._conn: sqlite3.Connection | None = None
        self._file_id: tuple[int, int] | None = None
        self._patience_s = BUSY_S
        self._away = (0.0, 0.0)
        """Until when nobody tries again who would not wait longer than the one that failed."""
        self._replaced = False
        self.restore: Callable[[sqlite3.Connection], None] = lambda _: None
        """Puts into a file that replaces a damaged one what must not be lost with it."""
        self.faults = 0
        self.last_fault: str | None = None

    @contextlib.contextmanager
    def reading(self, patience_s: float = BUSY_S) -> Iterator[sqlite3.Connection]:
        """The connection, outside a transaction. Raises sqlite3.Error or OSError, within about `patience_s`."""
        self._check_away(patience_s)
        if not self._lock.acquire(timeout=patience_s):
            raise self._note(sqlite3.OperationalError("the file of the policies is busy"))
        try:
            self._check_away(patience_s)
            with self._failures_noted(patience_s):
                conn = self._open(patience_s)
                if patience_s != self._patience_s:
                    conn.execute(f"PRAGMA busy_timeout = {int(patience_s * 1000)}")
                    self._patience_s = patience_s
                yield conn
        finally:
            self._lock.release()

    @contextlib.contextmanager
    def _failures_noted(self, patience_s: float) -> Iterator[None]:
        try:
            yield
        except Failure as e:
            self._note(e)
            self.close()
            if not (_is_damage(e) and self._set_aside(e)):
                self._away = time.monotonic() + AWAY_S, patience_s
            raise

    def _check_away(self, patience_s: float) -> None:
        until, waited_s = self._away
        if patience_s <= waited_s and time.monotonic() < until:
            raise self._note(sqlite3.OperationalError(f"the file of the policies is away ({self.last_fault})"), False)

    def _note(self, error: Exception, keep: bool = True) -> Exception:
        self.faults += 1
        if keep:
            self.last_fault = f"{type(error).__name__}: {error}"[:300]
        return error

    def facts(self) -> dict[str, Any]:
        """Failures so far, as `/health` says them."""
        return {"policy_errors": self.faults, "last_policy_error": self.last_fault}

    def _set_aside(self, error: Exception) -> bool:
        """Rename a damaged file, so that the next use begins a new one; False when that is not to be or fails."""
        if not self._mends:
            return False
        aside = self.path.with_name(f"{self.path.name}.corrupt-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}")
        try:
            self.path.replace(aside)
            for end in ("-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    self.path.with_name(self.path.name + end).replace(f"{aside}{end}")
        except OSError:
            return False
        self._replaced = True
        logger.error("%s is damaged (%s). It is kept as %s; a new one is started.", self.path, error, aside)
        return True

    @contextlib.contextmanager
    def writing(self, patience_s: float = BUSY_S) -> Iterator[sqlite3.Connection]:
        """One transaction, alone among all processes. Raises sqlite3.Error or OSError; then nothing is kept."""
        with self.reading(patience_s) as conn:
            conn.execute("BEGIN IMMEDIATE")
            try:
                yield conn
                conn.execute("COMMIT")
            except BaseException:
                if conn.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        conn.execute("ROLLBACK")
                raise

    def close(self) -> None:
        with self._lock:
            if self._conn is not None:
                with contextlib.suppress(sqlite3.Error):
                    self._conn.close()
            self._conn = None

    def changed(self) -> None:
        """Tell every process that what it holds in memory is old."""
        try:
            make_private_file(self._stamp_path)
            self._stamp_path.write_text(str(time.time_ns()))
        except OSError as e:
            logger.warning(
                "cannot touch %s: %s; other processes notice the change after a restart", self._stamp_path, e
            )

    def stamp(self) -> int:
        """Differs after `changed` was called in any process. One stat call."""
        try:
            return os.stat(self._stamp).st_mtime_ns  # noqa: PTH116 - asked at every call, and half as dear as Path's
        except OSError:
            return 0

    def _open(self, patience_s: float) -> sqlite3.Connection:
        if self._conn is not None and self._file_id == self._current_id():
            return self._conn
        self.close()
        try:
            self._conn = self._opened(patience_s)
        except sqlite3.DatabaseError as e:
            if not (_is_damage(e) and self._set_aside(e)):
                raise
            self._note(e)
            self._conn = self._opened(patience_s)
        self._file_id = self._current_id()
        return self._conn

    def _opened(self, patience_s: float) -> sqlite3.Connection:
        make_private_folder(self.path.parent)
        make_private_file(self.path)
        conn = sqlite3.connect(self.path, isolation_level=None, timeout=patience_s, check_same_thread=False)
        self._patience_s = patience_s
        try:
            _set_up_patiently(conn, patience_s)
            if self._replaced:
                self.restore(conn)
                self._replaced = False
        except BaseException:
            conn.close()
            raise
        return conn

    def _current_id(self) -> tuple[int, int] | None:
        """Which file the path names now: a deleted home must not be written to through an open handle."""
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return (stat.st_dev, stat.st_ino)


def _is_damage(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _set_up_patiently(conn: sqlite3.Connection, patience_s: float) -> None:
    """Set up, again and again while another process is doing the same.

    SQLite does not wait when two connections turn a new file to WAL at once: one of them gets BUSY on the spot, and
    a limiter that cannot open its file would let a call pass that must not.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return _set_up(conn)
        except sqlite3.OperationalError as e:
            if getattr(e, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            if conn.in_transaction:
                conn.execute("ROLLBACK")
            time.sleep(0.005)


def _set_up(conn: sqlite3.Connection) -> None:
    version = conn.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise sqlite3.DatabaseError(f"state.db has schema {version}, this heliproxy knows up to {SCHEMA_VERSION}")
    if version == 0:
        conn.execute("PRAGMA auto_vacuum = INCREMENTAL")
    conn.execute("PRAGMA journal_mode = WAL")
    # A killed process loses nothing; a power cut may cost the last commits but not the file.
    conn.execute("PRAGMA synchronous = NORMAL")
    conn.execute(f"PRAGMA journal_size_limit = {16 << 20}")
    if version < SCHEMA_VERSION:
        conn.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA:
            conn.execute(statement)
        conn.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        conn.execute("COMMIT")


# --- cache -----------------------------------------------------------------------------------------------------------

_READ_ENTRIES = (
    "SELECT idx, expires, status, headers, body, latency_ms, created, request_id, cost_usd, usage FROM cache"
    " WHERE key = ? AND idx < ? AND expires > ?"
)
_PRICE_ENTRY = "UPDATE cache SET cost_usd = ?, usage = ? WHERE key = ? AND request_id = ?"
_READ_COST = "SELECT cost_usd FROM cache WHERE key = ? AND request_id = ?"
_PUT_ENTRY = (
    "INSERT INTO cache"
    " (key, idx, created, expires, size, status, headers, latency_ms, request_id, cost_usd, usage, body)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


class CacheStore:
    """Cached answers on disk, the recently used ones in memory too. Times are Unix seconds by the wall clock."""

    def __init__(self, state: StateFile, memory_bytes: int = MEMORY_BYTES, disk_bytes: int = DISK_BYTES) -> None:
        self._state = state
        self._disk_bytes = disk_bytes
        self._lock = threading.Lock()
        self._memory: LRUCache[tuple[bytes, int], tuple[float, CacheEntry]] = LRUCache(
            memory_bytes, getsizeof=lambda kept: kept[1].size
        )
        self._stamp = state.stamp()
        self._saves = 0

    def lookup_memory(self, key: bytes, bucket: int, now_s: float) -> list[CacheEntry | None] | None:
        """The entries at 0..bucket-1 when all are in memory and alive, else None: ask `lookup_disk`. Never blocks."""
        stamp = self._state.stamp()
        with self._lock:
            if stamp != self._stamp:
                self._memory.clear()
                self._stamp = stamp
            found: list[CacheEntry | None] = []
            for index in range(bucket):
                kept = self._memory.get((key, index))
                if kept is None or kept[0] <= now_s:
                    return None
                found.append(kept[1])
            return found

    def lookup_disk(self, key: bytes, bucket: int, now_s: float) -> list[CacheEntry | None]:
        """The entries at 0..bucket-1 as any process on this host saved them; None where there is none alive."""
        found: list[CacheEntry | None] = [None] * bucket
        try:
            with self._state.reading(CACHE_BUSY_S) as conn:
                rows = conn.execute(_READ_ENTRIES, (key, bucket, now_s)).fetchall()
        except Failure as e:
            logger.warning("cache not readable, treated as a miss: %s", e)
            return found
        for index, expires, *columns in rows:
            entry = _entry(columns)
            found[index] = entry
            self._remember(key, index, expires, entry)
        return found

    def save(self, key: bytes, bucket: int, entry: CacheEntry, ttl_s: int, now_s: float) -> int | None:
        """Fill the first free place of the bucket and return its index; None: no place free, or not stored."""
        if ttl_s <= 0 or bucket < 1:
            return None
        expires = now_s + ttl_s
        try:
            with self._state.writing(CACHE_BUSY_S) as conn:
                conn.execute("DELETE FROM cache WHERE key = ? AND expires <= ?", (key, now_s))
                taken = {row[0] for row in conn.execute("SELECT idx FROM cache WHERE key = ?", (key,))}
                index = next((i for i in range(bucket) if i not in taken), None)
                if index is None:
                    return None
                conn.execute(_PUT_ENTRY, _columns(key, index, expires, entry))
                self._saves += 1
                if self._saves % _PURGE_EVERY == 1:
                    _purge(conn, now_s, self._disk_bytes)
        except Failure as e:
            logger.warning("answer not cached: %s", e)
            return None
        self._remember(key, index, expires, entry)
        return index

    def price(self, key: bytes, request_id: str, cost_usd: float | None, usage: Mapping[str, Any]) -> None:
        """Add to an entry, saved before it was priced, what it cost."""
        try:
            with self._state.writing(CACHE_BUSY_S) as conn:
                conn.execute(_PRICE_ENTRY, (cost_usd, json.dumps(dict(usage), default=str), key, request_id))
        except Failure as e:
            logger.warning("cost of a cached answer not kept: %s", e)
        with self._lock:
            for place, (expires, entry) in list(self._memory.items()):
                if place[0] == key and entry.request_id == request_id:
                    self._memory[place] = (expires, replace(entry, cost_usd=cost_usd, usage=usage))

    def cost(self, key: bytes, request_id: str) -> float | None:
        """What an entry's answer cost, once it is known."""
        try:
            with self._state.reading(CACHE_BUSY_S) as conn:
                row = conn.execute(_READ_COST, (key, request_id)).fetchone()
        except Failure:
            return None
        return row[0] if row else None

    def purge(self, now_s: float) -> None:
        """Remove expired entries, then the oldest ones until the size cap holds. Raises sqlite3.Error or OSError."""
        with self._state.writing() as conn:
            _purge(conn, now_s, self._disk_bytes)
        with self._state.reading() as conn:
            conn.execute("PRAGMA incremental_vacuum").fetchall()

    def clear(self) -> int:
        """Remove everything, here and in the memory of other processes. Raises sqlite3.Error or OSError."""
        with self._state.writing() as conn:
            removed = conn.execute("DELETE FROM cache").rowcount
        with self._state.reading() as conn:
            conn.execute("PRAGMA incremental_vacuum").fetchall()
        self._state.changed()
        with self._lock:
            self._memory.clear()
        return removed

    def stats(self, now_s: float) -> dict[str, Any]:
        """Live entries, expired ones, bytes, oldest and newest (Unix seconds). Raises sqlite3.Error or OSError."""
        with self._state.reading() as conn:
            row = conn.execute(
                "SELECT count(*) FILTER (WHERE expires > :now), count(*) FILTER (WHERE expires <= :now),"
                " count(DISTINCT key), coalesce(sum(size), 0), min(created), max(created) FROM cache",
                {"now": now_s},
            ).fetchone()
        names = ("entries", "expired", "keys", "bytes", "oldest", "newest")
        return dict(zip(names, row, strict=True)) | {"max_bytes": self._disk_bytes}

    def _remember(self, key: bytes, index: int, expires: float, entry: CacheEntry) -> None:
        with self._lock:
            if entry.size <= self._memory.maxsize:
                self._memory[(key, index)] = (expires, entry)


def _columns(key: bytes, index: int, expires: float, entry: CacheEntry) -> tuple[Any, ...]:
    headers, usage = json.dumps(entry.headers), json.dumps(dict(entry.usage), default=str)
    return (
        *(key, index, entry.created_at, expires, entry.size, entry.status, headers, entry.latency_ms),
        *(entry.request_id, entry.cost_usd, usage, entry.body),
    )


def _entry(columns: Sequence[Any]) -> CacheEntry:
    status, headers, body, latency_ms, created, request_id, cost_usd, usage = columns
    pairs = tuple((name, value) for name, value in json.loads(headers))
    return CacheEntry(status, pairs, body, latency_ms, created, request_id, cost_usd, json.loads(usage))


def _purge(conn: sqlite3.Connection, now_s: float, cap: int) -> None:
    conn.execute("DELETE FROM cache WHERE expires <= ?", (now_s,))
    total = conn.execute("SELECT coalesce(sum(size), 0) FROM cache").fetchone()[0]
    if total <= cap:
        return
    cutoff = None
    for created, size in conn.execute("SELECT created, size FROM cache ORDER BY created"):
        if total <= cap * 0.9:
            break
        total -= size
        cutoff = created
    conn.execute("DELETE FROM cache WHERE created <= ?", (cutoff,))


# --- rate limits -----------------------------------------------------------------------------------------------------

_READ_BUCKET = "SELECT tokens, updated, policy FROM buckets WHERE id = ?"
_PUT_BUCKET = (
    "INSERT INTO buckets (id, tokens, updated, policy, full_at) VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE"
    " SET tokens = excluded.tokens, updated = excluded.updated, policy = excluded.policy, full_at = excluded.full_at"
)


def steady_clock() -> Callable[[], float]:
    """A clock in Unix seconds that never steps back or jumps within this process: wall time at its making, then
    monotonic. Restarts and other processes agree with it as far as their wall clocks do.

    It goes on while the machine is suspended: a process that lived through a night's sleep would otherwise be hours
    behind one that was started after it, and each would refill the buckets they share anew.
    """
    monotonic = _monotonic()
    offset = time.time() - monotonic()
    return lambda: offset + monotonic()


def _monotonic() -> Callable[[], float]:
    """A monotonic clock that counts suspended time too. On Linux CLOCK_MONOTONIC does not, on macOS it does, and
    there it is `time.monotonic` that does not."""
    if sys.platform == "win32":
        return time.monotonic
    number = time.CLOCK_BOOTTIME if sys.platform == "linux" else time.CLOCK_MONOTONIC
    return partial(time.clock_gettime, number)


class LimitStore:
    """Token buckets, exact among all threads and processes that share the file.

    Without the file this process counts alone, from what it last knew of each bucket, until the file is back.
    """

    def __init__(self, state: StateFile, clock: Callable[[], float] | None = None) -> None:
        self._state = state
        self._clock = clock or steady_clock()
        self._purged = False
        self._lock = threading.Lock()
        self._known: LRUCache[str, BucketState] = LRUCache(_KNOWN_BUCKETS)
        self._apart: set[str] = set()
        """Buckets that were used while the file could not be."""

    def take(self, bucket_id: str, policy: Policy, now_s: float | None = None) -> Decision:
        """Decide one call and deduct its token in one transaction."""
        now = self._clock() if now_s is None else now_s
        try:
            with self._state.writing(LIMIT_BUSY_S) as conn:
                if not self._purged:
                    conn.execute("DELETE FROM buckets WHERE full_at < ?", (now - _BUCKET_KEPT_S,))
                    self._purged = True
                decision, after = ratelimit.take(self._bucket(conn, bucket_id), policy, now)
                _put_bucket(conn, bucket_id, after, policy)
        except Failure as e:
            logger.warning("rate limit counted in memory: %s", e)
            with self._lock:
                decision, after = ratelimit.take(self._known.get(bucket_id), policy, now)
                self._keep_apart(bucket_id, after)
            return replace(decision, warning=MEMORY_WARNING.format(e))
        self._keep(bucket_id, after)
        return decision

    def charge(self, bucket_id: str, policy: Policy, cents: float, now_s: float | None = None) -> None:
        """Deduct what a call cost, for policies with `u=cents`."""
        now = self._clock() if now_s is None else now_s
        try:
            with self._state.writing(LIMIT_BUSY_S) as conn:
                after = ratelimit.charge(self._bucket(conn, bucket_id), policy, cents, now)
                _put_bucket(conn, bucket_id, after, policy)
        except Failure as e:
            logger.warning("rate limit charged in memory: %s", e)
            with self._lock:
                self._keep_apart(bucket_id, ratelimit.charge(self._known.get(bucket_id), policy, cents, now))
        else:
            self._keep(bucket_id, after)

    def _bucket(self, conn: sqlite3.Connection, bucket_id: str) -> BucketState | None:
        """As the file has it, or as it was left in memory when that is less."""
        stored = _bucket(conn, bucket_id)
        if bucket_id not in self._apart:
            return stored
        known = self._known.get(bucket_id)
        return known if known is not None and (stored is None or known.tokens < stored.tokens) else stored

    def _keep(self, bucket_id: str, state: BucketState) -> None:
        with self._lock:
            self._known[bucket_id] = state
            self._apart.discard(bucket_id)

    def _keep_apart(self, bucket_id: str, state: BucketState) -> None:
        self._known[bucket_id] = state
        self._apart.add(bucket_id)
        if len(self._apart) > _KNOWN_BUCKETS:
            self._apart &= set(self._known)


def _bucket(conn: sqlite3.Connection, bucket_id: str) -> BucketState | None:
    row = conn.execute(_READ_BUCKET, (bucket_id,)).fetchone()
    return BucketState(*row) if row else None


def _put_bucket(conn: sqlite3.Connection, bucket_id: str, state: BucketState, policy: Policy) -> None:
    full_at = ratelimit.full_at_s(state, policy)
    conn.execute(_PUT_BUCKET, (bucket_id, state.tokens, state.updated_s, state.policy, full_at))


# --- budgets ---------------------------------------------------------------------------------------------------------

_SCOPE_SQL = {
    None: ("''", "requests"),
    "user": ("user_id", "requests"),
    "model": ("coalesce(request_model, model)", "requests"),  # as it was asked for: all that is known beforehand
    "session": ("session_id", "requests"),
}
_REFRESH_S = 10.0


class BudgetStore:
    """Budgets, and what was spent of them: the log's own sum, plus what this process has added since.

    `log` is heliproxy.db, read only. Calls of other processes count as soon as they are in the log, at most ten
    seconds later. Amounts of calls still running are not known yet, so a budget can be overrun by those.
    """

    def __init__(self, state: StateFile, log: Path) -> None:
        self._state = state
        self._log = log
        self._lock = threading.Lock()
        self._budgets: tuple[Budget, ...] | None = None
        self._stamp = -1
        state.restore = self._restore
        self._spent: dict[tuple[str, str, datetime], tuple[float, float]] = {}
        """(budget, value, period start) -> (USD, monotonic seconds of the last look at the log)."""

    def active(self) -> bool:
        """Whether there may be a budget to ask about: one stat call. True until the file was read once."""
        return self._budgets is None or bool(self._budgets) or self._state.stamp() != self._stamp

    def all(self) -> tuple[Budget, ...]:
        """All budgets by name. Raises sqlite3.Error or OSError."""
        stamp = self._state.stamp()
        if self._budgets is None or stamp != self._stamp:
            with self._state.reading() as conn:
                rows = conn.execute("SELECT amount_usd, per, scope, action FROM budgets ORDER BY name").fetchall()
            with self._lock:
                self._budgets, self._stamp = tuple(Budget(*row) for row in rows), stamp
        return self._budgets

    def set(self, budget: Budget, now: datetime) -> None:
        """Add a budget, or replace the one of the same period and scope. Raises sqlite3.Error or OSError."""
        row = (budget.name, budget.amount_usd, budget.per, budget.by, budget.action, budgets.utc_text(now))
        with self._state.writing() as conn:
            conn.execute("INSERT OR REPLACE INTO budgets VALUES (?, ?, ?, ?, ?, ?)", row)
        self._changed()

    def remove(self, name: str) -> bool:
        """Remove the budget of this name; False when there is none. Raises sqlite3.Error or OSError."""
        with self._state.writing() as conn:
            removed = conn.execute("DELETE FROM budgets WHERE name = ?", (name,)).rowcount
        self._changed()
        return removed > 0

    def decide(self, spender: Spender, now: datetime) -> BudgetState | None:
        """The exhausted budget that decides about this call, or None. `now` is aware; days begin in its zone.

        Reads the log at most every ten seconds for each value. Without the files, budgets are judged by what was last
        known of them. Raises SpendingUnknownError for a blocking one of which nothing is known.
        """
        try:
            known = self.all()
        except Failure as e:
            logger.warning("budgets not read again: %s", e)
            known = self._budgets or ()
        return budgets.strictest([state for one in known if (state := self._known_state(one, spender, now))])

    def _known_state(self, budget: Budget, spender: Spender, now: datetime) -> BudgetState | None:
        try:
            return self._state_of(budget, spender, now)
        except Failure as e:
            logger.warning("what was spent of a budget cannot be read: %s", e)
            value = spender.value(budget) or ""
            start = budgets.period_start(budget.per, now)
            spent = self._spent.get((budget.name, value, start))
            if spent is not None:
                return BudgetState(budget, value, spent[0], start)
            if budget.action == "block":
                raise budgets.SpendingUnknownError(budget, str(e)) from e
            return None

    def _restore(self, conn: sqlite3.Connection) -> None:
        """Write what is known of the budgets into a file that replaces a damaged one."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        rows = [(b.name, b.amount_usd, b.per, b.by, b.action, at) for b in self._budgets or ()]
        conn.executemany("INSERT OR IGNORE INTO budgets VALUES (?, ?, ?, ?, ?, ?)", rows)

    def add(self, spender: Spender, cost_usd: float | None, now: datetime) -> None:
        """Count what a call cost before its row is in the log."""
        if not cost_usd or cost_usd < 0:
            return
        with self._lock:
            for budget in self._budgets or ():
                value = spender.value(budget)
                key = (budget.name, value or "", budgets.period_start(budget.per, now))
                if value is not None and key in self._spent:
                    spent, seen = self._spent[key]
                    self._spent[key] = (spent + cost_usd, seen)

    def states(self, now: datetime) -> list[BudgetState]:
        """Every budget with every value that spent something, the most used first. Raises sqlite3.Error or OSError."""
        found = []
        for budget in self.all():
            start = budgets.period_start(budget.per, now)
            spent = self._sums(budget, start)
            if budget.by is None or not spent:
                spent = spent or {"": 0.0}
            found += [BudgetState(budget, value, usd, start) for value, usd in spent.items()]
        return sorted(found, key=lambda s: -s.spent_usd / max(s.budget.amount_usd, 1e-9))

    def _state_of(self, budget: Budget, spender: Spender, now: datetime) -> BudgetState | None:
        value = spender.value(budget)
        if value is None:
            return None
        start = budgets.period_start(budget.per, now)
        key = (budget.name, value, start)
        with self._lock:
            spent, seen = self._spent.get(key, (0.0, float("-inf")))
        if time.monotonic() - seen >= _REFRESH_S:
            logged = self._sums(budget, start, value).get(value, 0.0)
            with self._lock:
                # The log lags behind what was added here; the larger of the two is nearer the truth.
                spent = max(self._spent.get(key, (0.0, 0.0))[0], logged)
                if len(self._spent) > 10_000:
                    self._spent.clear()
                self._spent[key] = (spent, time.monotonic())
        return BudgetState(budget, value, spent, start)

    def _sums(self, budget: Budget, start: datetime, value: str | None = None) -> dict[str, float]:
        """USD by value of the budget's scope since `start`; `value` narrows it to one."""
        if not self._log.exists():
            return {}
        since = budgets.utc_text(start)
        if budget.by is not None and budget.by.startswith("property:"):
            column, source = "p.value", "requests JOIN properties p ON p.request_id = requests.id AND lower(p.key) = ?"
            bound: list[Any] = [budget.by.removeprefix("property:"), since]
        else:
            (column, source), bound = _SCOPE_SQL[budget.by], [since]
        spent = "sum(cost_usd + coalesce(fees_usd, 0))"
        sql = f"SELECT {column}, {spent} FROM {source} WHERE created_at >= ? AND {column} IS NOT NULL"
        if value:
            sql, bound = f"{sql} AND {column} = ?", [*bound, value]
        uri = f"{self._log.absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=BUSY_S)) as conn:
            return {row[0]: float(row[1] or 0.0) for row in conn.execute(f"{sql} GROUP BY 1", bound)}

    def _changed(self) -> None:
        self._state.changed()
        with self._lock:
            self._budgets = None
            self._spent.clear()


def budget_json(state: BudgetState) -> dict[str, Any]:
    """One state as the command line and the API print it."""
    return asdict(state.budget) | {
        "name": state.budget.name,
        "value": state.value or None,
        "spent_usd": state.spent_usd,
        "since": budgets.utc_text(state.start),
        "over": state.over,
    }
