"""Sums of the past, kept so that a report over millions of requests reads a few thousand rows.

A period is an hour of UTC, or a block of 4, 16, 64, 256 or 1024 hours. For each there are the sums of several *kinds*:
by model, by user, and so on. A report takes the largest periods that lie in its window and are up to date, and reads
the requests themselves for the rest: the hour under way, parts of hours at the window's ends, hours in which something
was changed (triggers forget those, see `migrations`). `rollup_filler` makes them; nothing here writes.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from heliproxy.migrations import m005_property_sums

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator, Sequence

    from heliproxy.filters import Filters

LEVELS = 6
HOUR = timedelta(hours=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

TRAFFIC = ("provider", "model", "host", "status", "error_type", "cache")
# From the smallest to the largest: the first that has all columns asked for is read.
KINDS: dict[str, tuple[str, ...]] = {
    "total": (),
    "provider": ("provider",),
    "model": ("provider", "model"),
    "prompt": ("prompt_id",),
    "run": ("run_id",),
    "client": ("client",),
    "callers": ("client", "prompt_id", "run_id"),
    "user": ("user_id",),
    "key": ("key_fingerprint",),
    "traffic": TRAFFIC,
    "people": (*TRAFFIC, "user_id", "key_fingerprint"),
}
WITH_WAITS = frozenset({"total", "traffic", "people"})
"""Kinds that also keep the times to the first token."""
PROPERTY = "property"
NAMED_KINDS = {
    PROPERTY: "total",
    "property-model": "model",
    "property-user": "user",
    "property-traffic": "traffic",
    "property-people": "people",
}
"""Kinds that each property has for itself, `property:name`, and the kinds whose groups its values divide.

A period is marked with the bare kind when each property in it has one, unless it is among `LEFT_OUT`; that of a
property the period is not marked with is found in the kind without it."""
LEFT_OUT = "without:"
SCORE = "score:"
MOST_SCORES = 2_000
"""Scores of one name; with more, all requests are read to group by it."""
MOST_HOLES = 200
"""Hours that may be read by themselves among the sums."""

COLUMNS_OF_GROUPS = {
    "model": "model",
    "provider": "provider",
    "user": "user_id",
    "host": "host",
    "status": "status",
    "run": "run_id",
    "key": "key_fingerprint",
    "prompt": "prompt_id",
    "client": "client",
}
COLUMNS_OF_FILTERS = {
    "models": ("model",),
    "providers": ("provider",),
    "users": ("user_id",),
    "hosts": ("host",),
    "runs": ("run_id",),
    "keys": ("key_fingerprint",),
    "prompts": ("prompt_id",),
    "statuses": ("status", "error_type", "cache"),
}
SUMS = (
    "requests",
    "errors",
    "hits",
    "aborted",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "cost_usd",
    "fees_usd",
    "saved_usd",
    "estimated",
    "unpriced",
)

Range = tuple[datetime, datetime]
Block = tuple[int, int, int]
"""Level, first and last (exclusive) period of a run of periods."""


@dataclass(slots=True)
class Part:
    """How one stretch of time is read: some of it from sums, the rest from the requests."""

    blocks: list[Block] = field(default_factory=list)
    raw: list[Range] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Sums:
    """The sums of one group in one of the ranges asked for, with packed distributions."""

    place: int
    """Which of the ranges."""
    group: tuple[Any, ...]
    sums: tuple[Any, ...]
    latencies: list[bytes]
    waits: list[bytes]


def kind_of(groups: Sequence[str], filters: Filters, *, waits: bool = False) -> str | None:
    """The kind of sums that answers for these groups (times left out) and filters; None when there is none."""
    if filters.sessions:
        return None
    names = {folded(name) for name, _ in filters.properties}
    needed: set[str] = set()
    for group in groups:
        head, _, name = group.partition(":")
        if head == PROPERTY:
            names.add(folded(name))
        elif group in COLUMNS_OF_GROUPS:
            needed.add(COLUMNS_OF_GROUPS[group])
        else:
            return None
    for field_name, columns in COLUMNS_OF_FILTERS.items():
        if getattr(filters, field_name):
            needed.update(columns)
    if not names:
        return next((kind for kind in KINDS if answers(kind, needed, waits)), None)
    # Of two properties at once there are no sums.
    heads = [head for head, kind in NAMED_KINDS.items() if answers(kind, needed, waits)] if len(names) == 1 else []
    return f"{heads[0]}:{names.pop()}" if heads else None


def answers(kind: str, needed: set[str], waits: bool) -> bool:
    return needed <= set(KINDS[kind]) and (kind in WITH_WAITS or not waits)


def columns_of(kind: str) -> tuple[str, ...]:
    head = kind.partition(":")[0]
    return (PROPERTY, *KINDS[NAMED_KINDS[head]]) if head in NAMED_KINDS else KINDS[kind]


def has_waits(kind: str) -> bool:
    head = kind.partition(":")[0]
    return NAMED_KINDS.get(head, head) in WITH_WAITS


def scored_hours(conn: sqlite3.Connection, names: Iterable[str]) -> list[int] | None:
    """Hours in which a request has one of these scores; None when there are too many to be read by themselves."""
    hours: set[int] = set()
    sql = """
        SELECT r.created_at FROM (SELECT request_id FROM scores WHERE name = ? COLLATE NOCASE LIMIT ?) s
        CROSS JOIN requests r ON r.id = s.request_id
    """
    for name in names:
        found = conn.execute(sql, (name, MOST_SCORES + 1)).fetchall()
        if len(found) > MOST_SCORES:
            return None
        try:
            hours.update(hour_before(datetime.fromisoformat(at[:13] + ":00+00:00")) for (at,) in found)
        except ValueError:
            return None
    return sorted(hours) if len(hours) <= MOST_HOLES else None


def folded(name: str) -> str:
    """A property's name in lower case, as SQLite's NOCASE has it, which knows the case of ASCII only."""
    return "".join(c.lower() if c.isascii() else c for c in name)


def condition(filters: Filters) -> tuple[str, list[Any]]:
    """A condition on `rollups r` with its parameters, times left out: that of `Filters`, with properties as a column.

    Raises ValueError for an unknown status form.
    """
    where, values = replace(filters, since=None, until=None, properties=()).condition()
    return where + " AND r.property = ?" * len(filters.properties), [*values, *(v for _, v in filters.properties)]


def available(conn: sqlite3.Connection) -> bool:
    """Whether the file has sums of these kinds: an older one, opened for reading, may have no place for them."""
    sql = "SELECT 1 FROM _sqlite_migrations WHERE name = ?"
    return conn.execute(sql, (m005_property_sums.__name__,)).fetchone() is not None


# -- which periods --------------------------------------------------------------------------------------------------


def plan(conn: sqlite3.Connection, kind: str, ranges: Iterable[Range], holes: Sequence[int] = ()) -> list[Part]:
    """How to read each range by sums of this kind; the hours `holes`, in order, are left to the requests."""
    parts = []
    for begins, ends in ranges:
        part = Part()
        first, last = hour_after(begins), hour_before(ends)
        if first >= last:
            part.raw.append((begins, ends))
        else:
            gaps: list[tuple[int, int]] = []
            at = first
            for hole in holes[bisect_left(holes, first) : bisect_left(holes, last)]:
                cover(conn, kind, at, hole, LEVELS - 1, part.blocks, gaps)
                gaps.append((hole, hole + 1))
                at = hole + 1
            cover(conn, kind, at, last, LEVELS - 1, part.blocks, gaps)
            edges = [(begins, time_of(first)), *((time_of(a), time_of(b)) for a, b in gaps), (time_of(last), ends)]
            part.raw = joined(edge for edge in edges if edge[0] < edge[1])
        parts.append(part)
    return parts


def cover(
    conn: sqlite3.Connection,
    kind: str,
    first: int,
    last: int,
    level: int,
    blocks: list[Block],
    gaps: list[tuple[int, int]],
) -> None:
    """Fill the hours first..last with the largest periods there are, in order; what is left goes to `gaps`."""
    if level < 0:
        gaps.append((first, last))
        return
    size = 4**level
    at = first
    for begins, ends in found_blocks(conn, kind, level, -(-first // size), last // size):
        if begins * size > at:
            cover(conn, kind, at, begins * size, level - 1, blocks, gaps)
        blocks.append((level, begins, ends))
        at = ends * size
    if at < last:
        cover(conn, kind, at, last, level - 1, blocks, gaps)


def found_blocks(conn: sqlite3.Connection, kind: str, level: int, first: int, last: int) -> Iterator[tuple[int, int]]:
    """Runs of periods with sums of this kind."""
    if first >= last:
        return
    head, _, name = kind.partition(":")
    values: list[Any] = [level, first, last, json.dumps(head)]
    sql = "SELECT start FROM rollup_periods WHERE level = ? AND start >= ? AND start < ? AND instr(kinds, ?)"
    if name:
        sql += " AND NOT instr(kinds, ?)"
        values.append(json.dumps(LEFT_OUT + kind))
    begins = ends = None
    for (start,) in conn.execute(f"{sql} ORDER BY start", values):
        if start != ends:
            if begins is not None and ends is not None:
                yield begins, ends
            begins = start
        ends = start + 1
    if begins is not None and ends is not None:
        yield begins, ends


def joined(ranges: Iterable[Range]) -> list[Range]:
    found: list[Range] = []
    for begins, ends in ranges:
        if found and found[-1][1] == begins:
            found[-1] = (found[-1][0], ends)
        else:
            found.append((begins, ends))
    return found


def hour_before(at: datetime) -> int:
    return (at - EPOCH) // HOUR


def hour_after(at: datetime) -> int:
    return -((EPOCH - at) // HOUR)


def time_of(hour: int) -> datetime:
    return EPOCH + hour * HOUR


# -- their sums -----------------------------------------------------------------------------------------------------


def read(
    conn: sqlite3.Connection,
    kind: str,
    columns: Sequence[str],
    parts: Sequence[Part],
    where: str = "1",
    values: Sequence[Any] = (),
    *,
    latencies: bool = True,
    waits: bool = False,
) -> Iterator[Sums]:
    """The sums of all parts, by `columns` of the kind; `where` is a condition on `requests r` about its columns."""
    blocks = [(place, *block) for place, part in enumerate(parts) for block in part.blocks]
    if not blocks:
        return
    times = [
        "group_concat(hex(r.latencies))" if latencies else "NULL",
        "group_concat(hex(r.waits))" if waits else "NULL",
    ]
    selected = [f"r.{column}" for column in columns]
    if ":" in kind:
        with_it, without = split_by_property(conn, kind, blocks)
        # There the column is NULL, as where a request has no such property.
        yield from read_blocks(conn, NAMED_KINDS[kind.partition(":")[0]], selected, times, without, where, values)
        blocks = with_it
    yield from read_blocks(conn, kind, selected, times, blocks, where, values)


def read_blocks(
    conn: sqlite3.Connection,
    kind: str,
    columns: Sequence[str],
    times: Sequence[str],
    blocks: Sequence[tuple[int, int, int, int]],
    where: str,
    values: Sequence[Any],
) -> Iterator[Sums]:
    selected = "".join(f", {column}" for column in columns)
    numbers = ", ".join(str(i + 1) for i in range(len(columns) + 1))
    sums = ", ".join(f"sum(r.{name})" for name in SUMS)
    sql = f"""
        SELECT b.value ->> '$[0]' {selected}, {sums}, {", ".join(times)}
        FROM json_each(?) b CROSS JOIN rollups r ON r.kind = ? AND r.level = b.value ->> '$[1]'
            AND r.start >= b.value ->> '$[2]' AND r.start < b.value ->> '$[3]'
        WHERE {where} GROUP BY {numbers}
    """
    width = 1 + len(columns)
    for row in conn.execute(sql, [json.dumps(blocks), kind, *values]):
        yield Sums(row[0], row[1:width], row[width:-2], packed_list(row[-2]), packed_list(row[-1]))


def packed_list(text: str | None) -> list[bytes]:
    return [bytes.fromhex(one) for one in text.split(",") if one] if text else []


def split_by_property(
    conn: sqlite3.Connection, kind: str, blocks: Sequence[tuple[int, int, int, int]]
) -> tuple[list[tuple[int, int, int, int]], list[tuple[int, int, int, int]]]:
    """The blocks, one by one, in which some request has the property, and those in which none has."""
    sql = """
        SELECT r.level, r.start FROM json_each(?) b CROSS JOIN rollups r ON r.kind = ? AND r.level = b.value ->> '$[1]'
            AND r.start >= b.value ->> '$[2]' AND r.start < b.value ->> '$[3]'
        WHERE r.number = 0
    """
    known = set(conn.execute(sql, [json.dumps(blocks), kind]).fetchall())
    single = [(place, level, start, start + 1) for place, level, a, b in blocks for start in range(a, b)]
    return (
        [block for block in single if block[1:3] in known],
        [block for block in single if block[1:3] not in known],
    )


def seen(
    conn: sqlite3.Connection, parts: Sequence[Part], where: str, values: Sequence[Any]
) -> Iterator[tuple[Any, ...]]:
    """Users, and when the first and the last request of each was made, from the kind "user"; some more than once."""
    blocks = [block for part in parts for block in part.blocks]
    sql = f"""
        SELECT r.user_id, min(r.first_at), max(r.last_at)
        FROM json_each(?) b CROSS JOIN rollups r ON r.kind = 'user' AND r.level = b.value ->> '$[0]'
            AND r.start >= b.value ->> '$[1]' AND r.start < b.value ->> '$[2]'
        WHERE {where} GROUP BY 1
    """
    yield from conn.execute(sql, [json.dumps(blocks), *values])
