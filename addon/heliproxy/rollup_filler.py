"""Makes the sums that `rollups` reads, one period at a time, the newest first.

    python -m heliproxy.rollup_filler DATABASE NOW

is what `rollup_thread` starts: a process that goes behind all others and ends with its standard input.

The write lock is held only for moments. A period is first *claimed*, then summed up without any lock, and kept if its
claim is still there: a trigger takes the claim away when anything in the period changes meanwhile, whichever process
changes it. All that is made here can be lost at any time.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from heliproxy import migrations, rollups
from heliproxy.distributions import pack, unpack
from heliproxy.filters import Filters
from heliproxy.priority import stand_back
from heliproxy.queries_pages import seen_times
from heliproxy.rollups import KINDS, LEFT_OUT, NAMED_KINDS, PROPERTY, Part, Range
from heliproxy.tallies import NAMED_DIMENSIONS, Key, Tally, grouped_requests
from heliproxy.times import stored_time

LEAST_ROWS = 40
"""A period with fewer requests is not summed up: reading them is as quick."""
SAVING = 8
"""A kind is kept of a period when it has at most one group for so many requests, or few groups at all."""
FEW_GROUPS = 8
MOST_PROPERTIES = 24
MOST_DIVIDED = 8
"""With more properties in a period, each has sums by its values alone."""
SETTLED = timedelta(minutes=10)
"""An hour is summed up so long after its end: calls that began in it may still be running."""
MOST_GROUPS = 20_000
"""A kind with more groups is not kept."""
MOST_RAW = 60_000
"""A kind that smaller periods do not have is not made of more requests than this."""

DIMENSIONS = (
    "provider",
    "model",
    "host",
    "status",
    "error_type",
    "cache",
    "user_id",
    "key_fingerprint",
    "client",
    "prompt_id",
    "run_id",
    "property",
)
COLUMNS = ("kind", "level", "start", "number", *DIMENSIONS, *rollups.SUMS, "first_at", "last_at", "latencies", "waits")
PUT = f"INSERT INTO rollups ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"

# From one to the next in the index; DISTINCT would read it all.
KINDS_THERE = """
    WITH RECURSIVE there (kind) AS (
        SELECT min(kind) FROM rollups
        UNION ALL
        SELECT (SELECT min(kind) FROM rollups WHERE kind > there.kind) FROM there WHERE there.kind IS NOT NULL
    )
    SELECT kind FROM there WHERE kind IS NOT NULL
"""

Period = tuple[int, int]
"""Level and start."""
Groups = dict[Key, Tally]


def connect(path: Path) -> sqlite3.Connection:
    """Raises sqlite3.Error for a file that is not there."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=5.0)


def fill_all(path: Path, now: datetime, wanted: Callable[[], bool] = lambda: True) -> int:
    """Make all sums that are missing, as long as they are `wanted`; returns the number of periods made.

    Raises:
        sqlite3.Error: the file is not there, or cannot be written.
    """
    done = 0
    with closing(connect(path)) as conn:
        for period in missing(conn, now):
            if not wanted():
                break
            done += fill(conn, period)
    return done


def main(path: str, now: str) -> None:
    """Make all that is missing at `now`, seconds of the wall clock, until the process that asked for it is gone."""
    stand_back()
    ended = threading.Event()

    def watch() -> None:
        os.read(0, 1)
        ended.set()

    threading.Thread(target=watch, daemon=True).start()
    try:
        fill_all(Path(path), datetime.fromtimestamp(float(now), UTC), lambda: not ended.is_set())
    except sqlite3.Error as e:
        sys.exit(f"sums of the past were not made: {e}")


# -- what is missing ------------------------------------------------------------------------------------------------


def missing(conn: sqlite3.Connection, now: datetime) -> Iterator[Period]:
    """Past periods that hold requests and have no sums, newest first, each after the ones it is made of."""
    if migrations.m005_property_sums.__name__ not in migrations.applied_steps(conn):
        return
    known = set(conn.execute("SELECT level, start FROM rollup_periods WHERE kinds IS NOT NULL"))
    end = rollups.hour_before(now - SETTLED)
    oldest: dict[Period, int] = {}
    for hour in hours_with_requests(conn, end):
        for level in range(rollups.LEVELS):
            period = (level, hour // 4**level)
            if (period[1] + 1) * 4**level <= end:
                oldest[period] = hour
    yield from sorted(oldest.keys() - known, key=lambda period: (-oldest[period], period[0]))


def hours_with_requests(conn: sqlite3.Connection, end: int) -> Iterator[int]:
    """Hours before `end` in which there are requests, newest first."""
    while True:
        found = conn.execute(
            "SELECT max(created_at) FROM requests WHERE created_at < ? AND created_at >= ?",
            (stored_time(rollups.time_of(end)), stored_time(rollups.EPOCH)),
        ).fetchone()[0]
        if found is None:
            return
        try:
            at = datetime.fromisoformat(found[:13] + ":00+00:00")
        except ValueError:
            return  # a time that is none: what comes before it stays with the requests
        end = rollups.hour_before(at)
        yield end


# -- one period -----------------------------------------------------------------------------------------------------


def fill(conn: sqlite3.Connection, period: Period) -> bool:
    """Make the sums of one period; False when something in it changed meanwhile. Raises sqlite3.Error."""
    claim = random.getrandbits(62)
    set_claim(conn, period, claim)
    rows, found = sum_up(conn, period)
    kept = {kind: groups for kind, groups in found.items() if groups is not None and saves(groups, rows)}
    marks = [*kept] + [LEFT_OUT + kind for kind in found if ":" in kind and kind not in kept]
    seen = users_seen(conn, window_of(period)) if "user" in kept else {}
    with writing(conn):
        done = conn.execute(
            "UPDATE rollup_periods SET rows = ?, kinds = ?, claim = NULL WHERE level = ? AND start = ? AND claim = ?",
            (rows, json.dumps(marks), *period, claim),
        ).rowcount
        if done:
            forget(conn, period)
            for kind, groups in kept.items():
                conn.executemany(PUT, records(kind, period, groups, seen))
    return bool(done)


@contextlib.contextmanager
def writing(conn: sqlite3.Connection) -> Iterator[None]:
    conn.execute("BEGIN IMMEDIATE")
    try:
        yield
        conn.execute("COMMIT")
    except BaseException:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        raise


def set_claim(conn: sqlite3.Connection, period: Period, claim: int) -> None:
    with writing(conn):
        conn.execute("INSERT OR REPLACE INTO rollup_periods (level, start, claim) VALUES (?, ?, ?)", (*period, claim))
        # Triggers look at what is older than this only.
        conn.execute("UPDATE rollup_horizon SET until = max(until, ?)", (stored_time(window_of(period)[1]),))


def forget(conn: sqlite3.Connection, period: Period) -> None:
    kinds = [(kind, *period) for (kind,) in conn.execute(KINDS_THERE)]
    conn.executemany("DELETE FROM rollups WHERE kind = ? AND level = ? AND start = ?", kinds)


def window_of(period: Period) -> Range:
    level, start = period
    return rollups.time_of(start * 4**level), rollups.time_of((start + 1) * 4**level)


def saves(groups: Groups | None, rows: int) -> bool:
    return groups is not None and len(groups) <= min(MOST_GROUPS, max(FEW_GROUPS, rows // SAVING))


def sum_up(conn: sqlite3.Connection, period: Period) -> tuple[int, dict[str, Groups | None]]:
    """The number of requests, and the groups of each kind: from smaller periods, and from requests for the rest."""
    window = window_of(period)
    sql = "SELECT count(*) FROM requests WHERE created_at >= ? AND created_at < ?"
    rows: int = conn.execute(sql, tuple(map(stored_time, window))).fetchone()[0]
    found: dict[str, Groups | None] = {}
    if rows < LEAST_ROWS:
        return rows, found
    for kind, columns in reversed(KINDS.items()):
        wider = {name: groups for name, groups in found.items() if groups and set(columns) <= set(KINDS[name])}
        if wider:
            source = min(wider, key=lambda name: len(wider[name]))
            found[kind] = narrowed(wider[source], KINDS[source], columns)
        else:
            found[kind] = groups_of(conn, kind, [f"r.{column}" for column in columns], [], columns, window)
    divided = {kind for kind, groups in found.items() if saves(groups, rows)}
    return rows, found | property_kinds(conn, window, rows, divided)


def narrowed(groups: Groups, columns: Sequence[str], wanted: Sequence[str]) -> Groups:
    places = [columns.index(column) for column in wanted]
    found: Groups = {}
    for key, one in groups.items():
        found.setdefault(tuple(key[i] for i in places), Tally()).merge(one)
    return found


def groups_of(
    conn: sqlite3.Connection,
    kind: str,
    selected: Sequence[str],
    values: Sequence[str],
    columns: Sequence[str],
    window: Range,
) -> Groups | None:
    """One kind's groups: of sums by `columns`, of requests by the expressions `selected`. None: it would take long."""
    part = rollups.plan(conn, kind, [window])[0]
    if requests_in(conn, part) > MOST_RAW:
        return None
    waits = rollups.has_waits(kind)
    found: Groups = {}
    for past in rollups.read(conn, kind, columns, [part], waits=waits):
        found.setdefault(past.group, Tally()).add_past(past.sums, unpack(past.latencies), unpack(past.waits))
    for raw in part.raw:
        for group, sums, times, first_tokens in grouped_requests(conn, selected, values, raw, waits=waits):
            one = found.setdefault(group, Tally())
            one.add(sums)
            one.latencies += times
            one.waits += first_tokens
    return found


def requests_in(conn: sqlite3.Connection, part: Part) -> int:
    sql = "SELECT count(*) FROM requests WHERE created_at >= ? AND created_at < ?"
    return sum(conn.execute(sql, tuple(map(stored_time, raw))).fetchone()[0] for raw in part.raw)


def property_kinds(conn: sqlite3.Connection, window: Range, rows: int, kept: set[str]) -> dict[str, Groups | None]:
    """The kinds of each property, and those without groups to say that there are no more; nothing when it is too much.

    Only of kinds that are `kept` without properties, for there the properties that a period lacks are found.
    """
    part = rollups.plan(conn, PROPERTY, [window])[0]
    if requests_in(conn, part) > MOST_RAW:
        return {}
    names = property_names(conn, part)
    if len(names) > MOST_PROPERTIES:
        return {}
    heads = [head for head, kind in NAMED_KINDS.items() if kind in kept]
    if len(names) > MOST_DIVIDED:
        heads = heads[:1]
    found: dict[str, Groups | None] = {head: {} for head in heads}
    for name in sorted(names):
        found |= kinds_of_property(conn, name, heads, window, rows)
    return found


def kinds_of_property(
    conn: sqlite3.Connection, name: str, heads: Sequence[str], window: Range, rows: int
) -> dict[str, Groups | None]:
    """The kinds of one property; None for those that are left out."""
    kinds = [f"{head}:{name}" for head in heads]
    found: dict[str, Groups | None] = dict.fromkeys(kinds)
    if has_two_values(conn, name, window):
        return found
    alone = kinds[0]
    found[alone] = groups_of_property(conn, alone, window)
    if not saves(found[alone], rows):
        return found
    for kind in reversed(kinds[1:]):
        columns = rollups.columns_of(kind)
        wider = {one: groups for one, groups in found.items() if groups and set(columns) < set(rollups.columns_of(one))}
        if wider:
            source = min(wider, key=lambda one: len(wider[one]))
            found[kind] = narrowed(wider[source], rollups.columns_of(source), columns)
        else:
            found[kind] = groups_of_property(conn, kind, window)
    return found


def groups_of_property(conn: sqlite3.Connection, kind: str, window: Range) -> Groups | None:
    columns = rollups.columns_of(kind)
    selected = [NAMED_DIMENSIONS[PROPERTY], *(f"r.{column}" for column in columns[1:])]
    return groups_of(conn, kind, selected, [kind.partition(":")[2]], columns, window)


def has_two_values(conn: sqlite3.Connection, name: str, window: Range) -> bool:
    """Whether a request has the property twice, in different case: a filter finds both, a group shows one."""
    sql = """
        SELECT 1 FROM requests r WHERE r.created_at >= ? AND r.created_at < ? AND 1 <
            (SELECT count(*) FROM properties p WHERE p.request_id = r.id AND p.key = ? COLLATE NOCASE) LIMIT 1
    """
    part = rollups.plan(conn, f"{PROPERTY}:{name}", [window])[0]
    return any(conn.execute(sql, (*map(stored_time, raw), name)).fetchone() for raw in part.raw)


def users_seen(conn: sqlite3.Connection, window: Range) -> dict[Any, tuple[str, str]]:
    return seen_times(conn, Filters(since=window[0], until=window[1]), everybody=True)


def property_names(conn: sqlite3.Connection, part: Part) -> set[str]:
    """The names of all properties in some time, in lower case."""
    names: set[str] = set()
    for level, first, last in part.blocks:
        sql = "SELECT kinds FROM rollup_periods WHERE level = ? AND start >= ? AND start < ?"
        for (text,) in conn.execute(sql, (level, first, last)):
            kinds = (mark.removeprefix(LEFT_OUT) for mark in json.loads(text))
            names.update(kind.partition(":")[2] for kind in kinds if kind.startswith(f"{PROPERTY}:"))
    for raw in part.raw:
        sql = (
            "SELECT DISTINCT lower(p.key) FROM requests r JOIN properties p ON p.request_id = r.id "
            "WHERE r.created_at >= ? AND r.created_at < ?"
        )
        names.update(name for (name,) in conn.execute(sql, tuple(map(stored_time, raw))))
    return names


def records(kind: str, period: Period, groups: Groups, seen: dict[Any, tuple[str, str]]) -> Iterator[tuple[Any, ...]]:
    """Rows of `rollups`; `seen` are the times of users."""
    columns = rollups.columns_of(kind)
    waits = rollups.has_waits(kind)
    for number, (key, one) in enumerate(groups.items()):
        dimensions = dict(zip(columns, key, strict=True))
        yield (
            kind,
            *period,
            number,
            *(dimensions.get(column) for column in DIMENSIONS),
            *one.sums,
            *(seen[key[0]] if kind == "user" else (None, None)),
            pack(one.past_latencies, one.latencies),
            pack(one.past_waits, one.waits) if waits else None,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
