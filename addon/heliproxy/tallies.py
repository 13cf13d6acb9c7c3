"""Sums of requests by group and time, from the requests themselves and from sums of the past (`rollups`).

Functions of an open connection; nothing here writes.
"""

from __future__ import annotations

from bisect import bisect_right
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, tzinfo
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from heliproxy import rollups
from heliproxy.distributions import distribution, quantile, unpack
from heliproxy.filters import ERROR, UNPRICED, Filters
from heliproxy.times import UNITS, buckets, label, stored_time

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator, Sequence

Key = tuple[str | int | float | None, ...]

DIMENSIONS = {
    "model": "r.model",
    "provider": "r.provider",
    "user": "r.user_id",
    "session": "r.session_id",
    "host": "r.host",
    "status": "r.status",
    "run": "r.run_id",
    "key": "r.key_fingerprint",
    "prompt": "r.prompt_id",
    "client": "r.client",
}
NAMED_DIMENSIONS = {
    "property": "(SELECT p.value FROM properties p WHERE p.request_id = r.id AND p.key = ? COLLATE NOCASE LIMIT 1)",
    "score": "(SELECT s.value FROM scores s WHERE s.request_id = r.id AND s.name = ? COLLATE NOCASE LIMIT 1)",
}

LATENCY_SAMPLE = 250_000
"""Of requests, percentiles are exact up to twice this many; beyond, they come from every n-th."""
WAIT_SAMPLE = 20_000
"""Likewise, of times to the first token."""
EXACT_ROWS = 20_000
"""A report over more requests than this uses sums of the past, with percentiles within 1 %."""

PIECE_ROWS = 20_000


@dataclass(frozen=True, slots=True)
class Line:
    """What one group of requests used and cost. None: nothing in the group reported it."""

    key: Key
    requests: int = 0
    errors: int = 0
    hits: int = 0
    aborted: int = 0
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    cost_usd: float | None = None
    fees_usd: float | None = None
    """What hosted tools (web search, file search) cost on top, by the price data."""
    saved_usd: float | None = None
    estimated: int = 0
    """Requests whose tokens were estimated."""
    unpriced: int = 0
    """Requests whose cost is unknown."""
    p50_ms: float | None = None
    p95_ms: float | None = None

    @property
    def tokens(self) -> int:
        return (self.input_tokens or 0) + (self.output_tokens or 0)

    @property
    def estimated_share(self) -> float:
        return self.estimated / self.requests if self.requests else 0.0


# In the order of Line's fields from `requests` to `unpriced`. The first test of each CASE is the cheap, common one:
# this is what a report over a million rows spends its time on.
SUMS = f"""
    count(*),
    sum(CASE WHEN r.status = 200 AND r.error_type IS NULL THEN 0 ELSE {ERROR} END),
    count(CASE r.cache WHEN 'HIT' THEN 1 END),
    count(CASE r.status WHEN -3 THEN 1 END),
    sum(r.input_tokens),
    sum(r.output_tokens),
    sum(r.cache_read_tokens),
    sum(r.cache_write_tokens),
    sum(r.reasoning_tokens),
    sum(r.cost_usd),
    sum(r.fees_usd),
    sum(r.saved_usd),
    count(CASE r.usage_source WHEN 'estimated' THEN 1 END),
    sum(CASE WHEN r.cost_usd IS NULL THEN {UNPRICED} END)
"""
COUNTS = (0, 1, 2, 3, 12, 13)


class Tally:
    """Sums up partial results of one group: of requests, and of sums of the past."""

    __slots__ = ("latencies", "past_latencies", "past_waits", "sums", "waits")

    def __init__(self) -> None:
        self.sums: list[Any] = [None] * 14
        self.latencies: list[float] = []
        self.waits: list[float] = []
        """Times to the first token."""
        self.past_latencies = 0
        self.past_waits = 0
        """Distributions."""

    def add(self, sums: Sequence[Any]) -> None:
        self.sums = [a if b is None else b if a is None else a + b for a, b in zip(self.sums, sums, strict=True)]

    def add_past(self, sums: Sequence[Any], latencies: int, waits: int) -> None:
        """Add sums with the distributions of times."""
        self.add(sums)
        self.past_latencies += latencies
        self.past_waits += waits

    def merge(self, other: Tally) -> None:
        self.add(other.sums)
        self.latencies += other.latencies
        self.waits += other.waits
        self.past_latencies += other.past_latencies
        self.past_waits += other.past_waits

    def line(self, key: Key) -> Line:
        sums = list(self.sums)
        for i in COUNTS:
            sums[i] = sums[i] or 0
        return Line(key, *sums, *quantiles(self.latencies, self.past_latencies, (0.50, 0.95)))

    def wait_quantiles(self, shares: Sequence[float]) -> list[float | None]:
        """Of the times to the first token; see `quantiles`."""
        return quantiles(self.waits, self.past_waits, shares)


def quantiles(values: list[float], past: int, shares: Sequence[float]) -> list[float | None]:
    """Exact for values alone; within 1 % when some of them are known by their distribution only."""
    if past:
        whole = past + distribution(values)
        return [quantile(whole, share) for share in shares]
    values.sort()
    return [percentile(values, share) for share in shares]


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The value below which `share` of the sorted values lie, interpolated between neighbours; None without values."""
    if not ordered:
        return None
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@contextmanager
def snapshot(conn: sqlite3.Connection) -> Iterator[None]:
    """Let all queries within see the same state, whatever is written meanwhile."""
    if conn.in_transaction:
        yield
        return
    conn.execute("BEGIN")
    try:
        yield
    finally:
        conn.execute("ROLLBACK")


def tally(conn: sqlite3.Connection, by: tuple[str, ...], filters: Filters, zone: tzinfo) -> dict[Key, Tally]:
    return tallies(conn, [by], filters, zone)[0]


def tallies(
    conn: sqlite3.Connection,
    groupings: Sequence[tuple[str, ...]],
    filters: Filters,
    zone: tzinfo,
    *,
    waits: bool = False,
    untimed: Sequence[tuple[str, ...]] = (),
) -> list[dict[Key, Tally]]:
    """The same requests by several groupings, each a tuple of checked group names. With one look at each request.

    Of many requests, all that lies in whole past hours comes from sums (`rollups`) where these tell the groups apart.
    With `waits`, groupings by time alone also have times to the first token, of a sample when many requests are read.
    Groupings among `untimed` have no times at all, not even latencies.
    """
    with snapshot(conn):
        window = time_window(conn, filters)
        if window is None:
            return [{} for _ in groupings]
        units = [group for by in groupings for group in by if group in UNITS]
        # Along the index by calendar period: with little or no sorting, and any DST rule.
        ranges = [window]
        if units:
            steps = buckets(base_unit(units), window[0], window[1] - timedelta(milliseconds=1), zone)
            ranges = [(max(begins, window[0]), min(ends, window[1])) for begins, ends in steps]
        sheets = [Sheet(by, ranges, zone, waits=waits, times=by not in untimed) for by in groupings]
        if uses_sums(conn, window):
            for sheet in sheets:
                sheet.add_past(conn, filters)
        # Sheets that need the same requests share the look at them.
        for raw in {sheet.raw for sheet in sheets}:
            add_requests(conn, [sheet for sheet in sheets if sheet.raw == raw], filters)
    return [sheet.tallies for sheet in sheets]


def time_window(conn: sqlite3.Connection, filters: Filters) -> tuple[datetime, datetime] | None:
    """From the first request in the filters' time to just after the last; None when there is none."""
    where, values = Filters(since=filters.since, until=filters.until).condition()
    first = conn.execute(f"SELECT min(r.created_at) FROM requests r WHERE {where}", values).fetchone()[0]
    if first is None:
        return None
    last = conn.execute(f"SELECT max(r.created_at) FROM requests r WHERE {where}", values).fetchone()[0]
    after = datetime.fromisoformat(last) + timedelta(milliseconds=1)
    return datetime.fromisoformat(first), after if filters.until is None else min(after, filters.until)


def is_long(conn: sqlite3.Connection, window: tuple[datetime, datetime]) -> bool:
    """Whether the window holds more than `EXACT_ROWS` requests, whatever they are."""
    sql = "SELECT 1 FROM requests WHERE created_at >= ? AND created_at < ? LIMIT 1 OFFSET ?"
    return conn.execute(sql, (*map(stored_time, window), EXACT_ROWS)).fetchone() is not None


def uses_sums(conn: sqlite3.Connection, window: tuple[datetime, datetime]) -> bool:
    """Whether a report over the window takes what it can from sums of the past."""
    return is_long(conn, window) and rollups.available(conn)


class Sheet:
    """One grouping being summed up over ranges of time."""

    def __init__(
        self, by: tuple[str, ...], ranges: list[tuple[datetime, datetime]], zone: tzinfo, *, waits: bool, times: bool
    ) -> None:
        self.by = by
        self.plain = tuple(group for group in by if group not in UNITS)
        self.waits = waits and not self.plain
        self.times = times
        self.tallies: dict[Key, Tally] = {}
        self.raw = tuple(ranges)
        """All times whose requests have to be read, none across the end of a calendar period."""
        # Without a group of time, all periods are one, and larger blocks of sums fit into it.
        self._ranges = ranges if len(self.plain) < len(by) else [(ranges[0][0], ranges[-1][1])]
        self._begins = [begins for begins, _ in self._ranges]
        self._ends = [ends for _, ends in ranges]
        self._zone = zone
        self._labels: dict[int, list[str | None]] = {}

    def at(self, place: int, group: Sequence[Any]) -> Tally:
        """Where the sums of a group in one of the periods go."""
        labels = self._labels.get(place)
        if labels is None:
            begins = self._begins[place]
            labels = [label(group, begins, self._zone) if group in UNITS else None for group in self.by]
            self._labels[place] = labels
        values = iter(group)
        key = tuple(next(values) if text is None else text for text in labels)
        return self.tallies.setdefault(key, Tally())

    def place(self, at: datetime) -> int:
        """Which of the periods a time lies in."""
        return bisect_right(self._begins, at) - 1

    def add_past(self, conn: sqlite3.Connection, filters: Filters) -> None:
        """Add the sums there are, and leave the rest of the time in `raw`."""
        summed = tuple(group for group in self.plain if not group.startswith(rollups.SCORE))
        kind = rollups.kind_of(summed, filters, waits=self.waits)
        if kind is None:
            return
        # Scores have no sums. Where no request has the score, all are in the one group without it.
        scores = [group.partition(":")[2] for group in self.plain if group.startswith(rollups.SCORE)]
        holes = rollups.scored_hours(conn, scores)
        if holes is None:
            return
        parts = rollups.plan(conn, kind, self._ranges, holes)
        self.raw = tuple(split(rollups.joined(one for part in parts for one in part.raw), self._ends))
        columns = [rollups.COLUMNS_OF_GROUPS.get(group, rollups.PROPERTY) for group in summed]
        where, values = rollups.condition(filters)
        for found in rollups.read(conn, kind, columns, parts, where, values, latencies=self.times, waits=self.waits):
            values_found = iter(found.group)
            group = [next(values_found) if group in summed else None for group in self.plain]
            one = self.at(found.place, group)
            one.add_past(found.sums, unpack(found.latencies), unpack(found.waits))

    def add(self, at: datetime, group: Key, sums: Sequence[Any], latencies: list[float], waits: list[float]) -> None:
        """Add a group of requests made from `at` on, in one period."""
        one = self.at(self.place(at), group)
        one.add(sums)
        if self.times:
            one.latencies += latencies
        if self.waits:
            one.waits += waits


def add_requests(conn: sqlite3.Connection, sheets: Sequence[Sheet], filters: Filters) -> None:
    """Look at the requests of times that all these sheets have in common, once, and add them to each."""
    plain = tuple(dict.fromkeys(group for sheet in sheets for group in sheet.plain))
    # The times to be read lie within the filters', and SQLite would take the wider of two bounds to its index.
    where, values = replace(filters, since=None, until=None).condition()
    raw = shares(conn, sheets[0].raw, where, values)
    count = sum(number for _, number in raw)
    if not count:
        return
    selected, selected_values = dimension_columns(plain)
    steps = (max(1, count // LATENCY_SAMPLE), max(1, count // WAIT_SAMPLE))
    waits = any(sheet.waits for sheet in sheets)
    places = [[plain.index(group) for group in sheet.plain] for sheet in sheets]
    for (begins, ends), number in raw:
        for window in pieces(begins, ends, number) if plain else [(begins, ends)]:
            for group, sums, latencies, first_tokens in grouped_requests(
                conn, selected, selected_values, window, where, values, waits=waits, steps=steps
            ):
                for sheet, columns in zip(sheets, places, strict=True):
                    sheet.add(begins, tuple(group[i] for i in columns), sums, latencies, first_tokens)


def grouped_requests(
    conn: sqlite3.Connection,
    selected: Sequence[str],
    selected_values: Sequence[str],
    window: tuple[datetime, datetime],
    where: str = "1",
    values: Sequence[Any] = (),
    *,
    waits: bool,
    steps: tuple[int, int] = (1, 1),
) -> Iterator[tuple[Key, Sequence[Any], list[float], list[float]]]:
    """Groups of requests made in a window: their key, sums, latencies and times to the first token.

    Of the times, only those of each so manieth request as `steps` says.
    """
    # Times to the first token are not in the index: each one read costs a look at the table.
    columns = (sampled("r.latency_ms", steps[0]), sampled("r.ttft_ms", steps[1]) if waits else "NULL")
    width = len(selected)
    grouping = "GROUP BY " + ", ".join(str(i + 1) for i in range(width)) if selected else ""
    sql = (
        f"SELECT {''.join(f'{column}, ' for column in selected)} {SUMS}, "
        f"{', '.join(f'group_concat({column})' for column in columns)} FROM requests r "
        f"WHERE {where} AND r.created_at >= ? AND r.created_at < ? {grouping}"
    )
    for row in conn.execute(sql, [*selected_values, *values, *map(stored_time, window)]):
        if row[width]:
            yield row[:width], row[width:-2], times_in(row[-2]), times_in(row[-1])


def times_in(text: str | None) -> list[float]:
    return [float(one) for one in text.split(",")] if text else []


def split(ranges: Iterable[tuple[datetime, datetime]], ends: Sequence[datetime]) -> Iterator[tuple[datetime, datetime]]:
    """The ranges, cut at each of the ordered `ends`."""
    for first, last in ranges:
        while (place := bisect_right(ends, first)) < len(ends) and ends[place] < last:
            yield first, ends[place]
            first = ends[place]
        yield first, last


def shares(
    conn: sqlite3.Connection, raw: Sequence[tuple[datetime, datetime]], where: str, values: Sequence[Any]
) -> list[tuple[tuple[datetime, datetime], int]]:
    """The ranges with the numbers of matching requests in them; without those that have none."""
    sql = f"SELECT count(*) FROM requests r WHERE {where} AND r.created_at >= ? AND r.created_at < ?"
    counted = ((one, conn.execute(sql, [*values, *map(stored_time, one)]).fetchone()[0]) for one in raw)
    return [(one, number) for one, number in counted if number]


def sampled(column: str, step: int) -> str:
    return column if step == 1 else f"CASE WHEN r.rowid % {step} = 0 THEN {column} END"


def dimension_columns(groups: Sequence[str]) -> tuple[list[str], list[str]]:
    """The expressions of some dimensions, and their parameters."""
    columns = []
    values = []
    for group in groups:
        head, _, name = group.partition(":")
        columns.append(NAMED_DIMENSIONS[head] if name else DIMENSIONS[head])
        values += [name] if name else []
    return columns, values


def base_unit(units: Sequence[str]) -> str:
    """The period of which each lies in one period of every unit; weeks and months do not nest, days lie in both."""
    return "hour" if "hour" in units else units[0] if len(set(units)) == 1 else "day"


def pieces(first: datetime, end: datetime, count: int) -> Iterator[tuple[datetime, datetime]]:
    """first..end in equal parts of about `PIECE_ROWS` rows: SQLite sorts to group, and small sorts are fast."""
    number = max(1, count // PIECE_ROWS)
    edges = [first + (end - first) * i / number for i in range(number)] + [end]
    yield from pairwise(edges)
