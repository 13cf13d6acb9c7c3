"""What is asked of the database, by the command line, the REST API and the dashboard alike.

Functions of an open connection (see `store.open_reader`); nothing here writes.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heliproxy import rollups
from heliproxy.bodies import Body, read_body
from heliproxy.distributions import distribution, quantile, unpack
from heliproxy.statuses import LOST
from heliproxy.times import UNITS, buckets, label, stored_time

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator, Sequence

Row = dict[str, Any]
Key = tuple[str | int | float | None, ...]

# A client that went away (-3) is "aborted", not an error; no status means still in flight.
ERROR = "((r.status >= 400 OR r.status < 100 OR r.error_type IS NOT NULL) AND r.status <> -3)"
# A failed call that reported no usage costs nothing; every other call without a price has an unknown cost.
UNPRICED = (
    "(r.cost_usd IS NULL AND r.status IS NOT NULL "
    f"AND (NOT {ERROR} OR r.input_tokens IS NOT NULL OR r.output_tokens IS NOT NULL))"
)

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
GROUP_FORMS = ", ".join((*DIMENSIONS, *UNITS, "property:NAME", "score:NAME"))

STATUS_CONDITIONS = {
    "ok": f"(r.status IS NOT NULL AND r.status <> -3 AND NOT {ERROR})",
    "error": ERROR,
    "cached": "r.cache = 'HIT'",
    "aborted": "r.status = -3",
    "timeout": "r.status = -2",
    "incomplete": "r.status IS NULL",
}
STATUS_FORMS = ", ".join((*STATUS_CONDITIONS, "a code such as 429", "a class such as 5xx"))

LATENCY_SAMPLE = 250_000
"""Of requests, percentiles are exact up to twice this many; beyond, they come from every n-th."""
WAIT_SAMPLE = 20_000
"""Likewise, of times to the first token."""
EXACT_ROWS = 20_000
"""A report over more requests than this uses sums of the past, with percentiles within 1 %."""

PIECE_ROWS = 20_000


@dataclass(frozen=True, slots=True)
class Filters:
    """Which requests are meant. Several values of one field are alternatives; different fields must all hold.

    Names match whole, `*` in them anything. `since` is inclusive, `until` exclusive; both are aware.
    """

    since: datetime | None = None
    until: datetime | None = None
    models: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()
    """Forms of `STATUS_FORMS`."""
    properties: tuple[tuple[str, str], ...] = ()
    """Pairs of name and value."""

    def condition(self) -> tuple[str, list[Any]]:
        """A condition on `requests r`, with its parameters. Raises ValueError for an unknown status form."""
        terms: list[str] = []
        values: list[Any] = []
        for column, wanted in (
            ("r.model", self.models),
            ("r.provider", tuple(p.lower() for p in self.providers)),
            ("r.user_id", self.users),
            ("r.session_id", self.sessions),
            ("r.host", tuple(h.lower() for h in self.hosts)),
            ("r.run_id", self.runs),
            ("r.key_fingerprint", self.keys),
            ("r.prompt_id", self.prompts),
        ):
            if wanted:
                terms.append(any_of(f"{column} {'GLOB' if '*' in name else '='} ?" for name in wanted))
                # In GLOB, [ and ? are special too; we give a meaning to * only.
                values += [n.replace("[", "[[]").replace("?", "[?]") if "*" in n else n for n in wanted]
        if self.since is not None:
            terms.append("r.created_at >= ?")
            values.append(stored_time(self.since))
        if self.until is not None:
            terms.append("r.created_at < ?")
            values.append(stored_time(self.until))
        if self.statuses:
            terms.append(any_of(map(status_condition, self.statuses)))
        for name, value in self.properties:
            terms.append(
                "EXISTS (SELECT 1 FROM properties p WHERE p.request_id = r.id AND p.key = ? COLLATE NOCASE "
                "AND p.value = ?)"
            )
            values += [name, value]
        return " AND ".join(terms) or "1", values


def any_of(terms: Iterable[str]) -> str:
    return "(" + " OR ".join(terms) + ")"


def status_condition(form: str) -> str:
    """The condition for one of `STATUS_FORMS`. Raises ValueError."""
    word = form.strip().lower()
    if word in STATUS_CONDITIONS:
        return STATUS_CONDITIONS[word]
    if len(word) == 3 and word.endswith("xx") and word[0] in "12345":
        return f"(r.status >= {word[0]}00 AND r.status < {word[0]}00 + 100)"
    if word.removeprefix("-").isdecimal() and word.isascii() and len(word) <= 4:
        return f"r.status = {int(word)}"
    raise ValueError(f"unknown status {form!r}; expected {STATUS_FORMS}")


# -- costs ----------------------------------------------------------------------------------------------------------


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


@dataclass(frozen=True, slots=True)
class Costs:
    """A cost report: its lines in order, and the total of all groups, also of those that `top` cut off."""

    by: tuple[str, ...]
    lines: list[Line]
    total: Line
    groups: int
    approximate: bool = False
    """Whether percentiles are within 1 % only: sums of the past are among what was added up."""


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

SORTS = {
    "cost": attrgetter("cost_usd"),
    "saved": attrgetter("saved_usd"),
    "requests": attrgetter("requests"),
    "errors": attrgetter("errors"),
    "hits": attrgetter("hits"),
    "tokens": attrgetter("tokens"),
    "input": attrgetter("input_tokens"),
    "output": attrgetter("output_tokens"),
    "cached": attrgetter("cache_read_tokens"),
    "reasoning": attrgetter("reasoning_tokens"),
    "p50": attrgetter("p50_ms"),
    "p95": attrgetter("p95_ms"),
    "unpriced": attrgetter("unpriced"),
}


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


def parse_group(text: str) -> str:
    """Check and normalise the name of a group. Raises ValueError."""
    head, colon, name = text.strip().partition(":")
    head = head.lower()
    if (head in NAMED_DIMENSIONS and name) or (not colon and (head in DIMENSIONS or head in UNITS)):
        return head + colon + name
    raise ValueError(f"cannot group by {text!r}; expected one of {GROUP_FORMS}")


def costs(
    conn: sqlite3.Connection,
    by: Sequence[str] = ("model",),
    filters: Filters | None = None,
    *,
    zone: tzinfo = UTC,
    sort: str | None = None,
    descending: bool = True,
    top: int | None = None,
) -> Costs:
    """Requests, tokens and dollars by group; several groups nest. Times group by the calendar of `zone`.

    `sort` is a key of `SORTS` or "name"; without it, groups of time come in order and others by cost, dearest first.
    Raises ValueError for an unknown group or sort.
    """
    groups = tuple(map(parse_group, by))
    if sort is not None and sort != "name" and sort not in SORTS:
        raise ValueError(f"cannot sort by {sort!r}; expected one of name, {', '.join(SORTS)}")
    found = tally(conn, groups, filters or Filters(), zone)
    total = Tally()
    for one in found.values():
        total.merge(one)
    lines = [one.line(key) for key, one in found.items()]
    lines = arranged(lines, groups, sort, descending)
    return Costs(groups, lines[:top], total.line(()), len(lines), bool(total.past_latencies))


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
        if is_long(conn, window) and rollups.available(conn):
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
        kind = rollups.kind_of(self.plain, filters, waits=self.waits)
        if kind is None:
            return
        parts = rollups.plan(conn, kind, self._ranges)
        self.raw = tuple(split(rollups.joined(one for part in parts for one in part.raw), self._ends))
        columns = [rollups.COLUMNS_OF_GROUPS.get(group, rollups.PROPERTY) for group in self.plain]
        where, values = replace(filters, since=None, until=None).condition()
        for found in rollups.read(conn, kind, columns, parts, where, values, latencies=self.times, waits=self.waits):
            one = self.at(found.place, found.group)
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


def arranged(lines: list[Line], by: tuple[str, ...], sort: str | None, descending: bool) -> list[Line]:
    """Sort each level of the groups among its siblings: times by time unless a sort is asked for, others by `sort`."""
    metric = SORTS.get(sort or "cost")
    sizes: dict[Key, float] = {}
    if metric is not None:
        for line in lines:
            value = metric(line)
            for depth in range(1, len(by) + 1):
                prefix = line.key[:depth]
                # Percentiles do not add up: the highest one stands for the whole.
                old = sizes.get(prefix, -1.0 if value is None else 0.0)
                new = -1.0 if value is None else float(value)
                sizes[prefix] = max(old, new) if sort in ("p50", "p95") or new < 0 else max(old, 0.0) + new

    def place(line: Line) -> list[Any]:
        order: list[Any] = []
        for depth, group in enumerate(by, 1):
            name = name_order(group, line.key[depth - 1])
            if metric is None or (sort is None and group in UNITS):
                order.append(name)
            else:
                size = sizes[line.key[:depth]]
                order.append((-size if descending else size, name))
        return order

    return sorted(lines, key=place, reverse=metric is None and descending)


def name_order(group: str, value: str | float | None) -> tuple[int, float, str]:
    if value is None:
        return (2, 0.0, "")
    if group == "hour":  # the text of the hour that comes twice sorts the wrong way round
        return (0, datetime.fromisoformat(str(value)).timestamp(), "")
    return (1, 0.0, value) if isinstance(value, str) else (0, float(value), "")


# -- lists and single requests --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Page:
    """Some requests, newest first unless asked otherwise; `next` goes into the call for the following ones."""

    rows: list[Row]
    next: tuple[str, str] | None = None


def request_list(
    conn: sqlite3.Connection,
    filters: Filters | None = None,
    *,
    limit: int = 50,
    after: tuple[str, str] | None = None,
    oldest_first: bool = False,
) -> Page:
    """One page of requests with all their columns and `properties`. `after` is the `next` of the page before."""
    where, values = (filters or Filters()).condition()
    order, beyond = ("ASC", ">") if oldest_first else ("DESC", "<")
    if after is not None:
        where += f" AND (r.created_at, r.id) {beyond} (?, ?)"
        values += after
    rows = fetch_rows(
        conn,
        f"SELECT r.* FROM requests r WHERE {where} ORDER BY r.created_at {order}, r.id {order} LIMIT ?",
        [*values, limit + 1],
    )
    more = len(rows) > limit
    rows = rows[:limit]
    note_lost(conn, rows)
    add_properties(conn, rows)
    return Page(rows, (rows[-1]["created_at"], rows[-1]["id"]) if more and rows else None)


def request_count(conn: sqlite3.Connection, filters: Filters | None = None) -> int:
    where, values = (filters or Filters()).condition()
    count: int = conn.execute(f"SELECT count(*) FROM requests r WHERE {where}", values).fetchone()[0]
    return count


def fetch_rows(conn: sqlite3.Connection, sql: str, values: Sequence[Any]) -> list[Row]:
    cursor = conn.execute(sql, values)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def note_lost(conn: sqlite3.Connection, rows: list[Row]) -> None:
    """Say of calls that seem to be under way when nobody is at work on them any more."""
    waiting = [row for row in rows if row["incomplete"] and row["status"] is None and row["error_type"] is None]
    if not waiting:
        return
    from heliproxy.underway import LOST_ERROR, lost_ids

    file = conn.execute("SELECT file FROM pragma_database_list WHERE name = 'main'").fetchone()[0]
    lost = lost_ids(conn, Path(file).parent, waiting) if file else set()
    for row in waiting:
        if row["id"] in lost:
            row["error_type"], row["error"] = LOST, LOST_ERROR


def add_properties(conn: sqlite3.Connection, rows: list[Row]) -> None:
    """Give each row its `properties`, a mapping."""
    by_id: dict[str, Row] = {row["id"]: row for row in rows}
    for row in rows:
        row["properties"] = {}
    ids = list(by_id)
    for i in range(0, len(ids), 500):
        part = ids[i : i + 500]
        marks = ", ".join("?" * len(part))
        for request_id, key, value in conn.execute(
            f"SELECT request_id, key, value FROM properties WHERE request_id IN ({marks}) ORDER BY request_id, key",
            part,
        ):
            by_id[request_id]["properties"][key] = value


@dataclass(frozen=True, slots=True)
class Detail:
    """One request with everything known about it."""

    row: Row
    properties: dict[str, str]
    scores: dict[str, float]
    feedback: list[Row]
    attempts: list[Row]
    body: Body | None


def find_ids(conn: sqlite3.Connection, text: str, limit: int = 5) -> list[str]:
    """Ids that begin or end with `text`, newest first. Ids made close together begin alike, so the end is handy."""
    word = text.strip().lower()
    if not word:
        return []
    exact = conn.execute("SELECT id FROM requests WHERE id IN (?, ?)", (text.strip(), word)).fetchone()
    if exact:
        return [exact[0]]
    found = conn.execute(
        "SELECT id FROM requests WHERE (id >= ? AND id < ?) OR substr(id, ?) = ? ORDER BY id DESC LIMIT ?",
        (word, word + "\U0010ffff", -len(word), word, limit),
    )
    return [row[0] for row in found]


def request_detail(conn: sqlite3.Connection, request_id: str, *, body: bool = True) -> Detail | None:
    """Everything about the request with this whole id; None when there is no such request."""
    rows = fetch_rows(conn, "SELECT * FROM requests WHERE id = ?", (request_id,))
    if not rows:
        return None
    note_lost(conn, rows)
    one = (request_id,)
    return Detail(
        row=rows[0],
        properties=dict(conn.execute("SELECT key, value FROM properties WHERE request_id = ? ORDER BY key", one)),
        scores=dict(conn.execute("SELECT name, value FROM scores WHERE request_id = ? ORDER BY name", one)),
        feedback=fetch_rows(
            conn, "SELECT name, value, type, created_at FROM feedback WHERE request_id = ? ORDER BY name", one
        ),
        attempts=read_list(rows[0]["attempts_json"]),
        body=read_body(conn, request_id) if body else None,
    )


def read_list(text: str | None) -> list[Row]:
    try:
        value = json.loads(text or "[]")
    except ValueError:
        return []
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


# -- sessions -------------------------------------------------------------------------------------------------------


def session_list(
    conn: sqlite3.Connection, filters: Filters | None = None, *, limit: int = 50, offset: int = 0, search: str = ""
) -> list[Row]:
    """Sessions, last used first: session_id, session_name, first_at, last_at, requests, errors, input_tokens,
    output_tokens, cost_usd, saved_usd, unpriced, average latency_ms (of its requests), users.

    `search` is a part of the id or the name, in any case.
    """
    where, values = (filters or Filters()).condition()
    if search:
        where += " AND (instr(lower(r.session_id), lower(?)) OR instr(lower(r.session_name), lower(?)))"
        values += [search, search]
    return fetch_rows(
        conn,
        f"""
        SELECT r.session_id, r.session_name, min(r.created_at) AS first_at, max(r.created_at) AS last_at,
               count(*) AS requests, coalesce(sum({ERROR}), 0) AS errors, sum(r.input_tokens) AS input_tokens,
               sum(r.output_tokens) AS output_tokens, sum(r.cost_usd) AS cost_usd, sum(r.saved_usd) AS saved_usd,
               sum({UNPRICED}) AS unpriced, avg(r.latency_ms) AS latency_ms, count(DISTINCT r.user_id) AS users
        FROM requests r WHERE r.session_id IS NOT NULL AND {where}
        GROUP BY r.session_id, r.session_name ORDER BY last_at DESC, r.session_id LIMIT ? OFFSET ?
        """,
        [*values, limit, offset],
    )


@dataclass(slots=True)
class Node:
    """One place in a session's tree: its path segment, the requests made there, and what lies below."""

    name: str
    requests: list[Row] = field(default_factory=list)
    children: dict[str, Node] = field(default_factory=dict)

    @property
    def cost_usd(self) -> float | None:
        """The known cost here and below; None when nothing is known."""
        costs = [r["cost_usd"] for r in self.requests] + [c.cost_usd for c in self.children.values()]
        known = [cost for cost in costs if cost is not None]
        return sum(known) if known else None


def session_tree(conn: sqlite3.Connection, session_id: str) -> Node | None:
    """The session's requests by their Helicone-Session-Path, oldest first; None when there is no such session."""
    rows = fetch_rows(conn, "SELECT * FROM requests WHERE session_id = ? ORDER BY created_at, id", (session_id,))
    if not rows:
        return None
    root = Node("/")
    for row in rows:
        node = root
        for part in [p for p in (row["session_path"] or "").split("/") if p][:100]:
            node = node.children.setdefault(part, Node(part))
        node.requests.append(row)
    return root


# -- following ------------------------------------------------------------------------------------------------------


class Follower:
    """Hands out finished requests as they are stored, each once. Starts after what is there now, less `last` rows."""

    def __init__(self, conn: sqlite3.Connection, filters: Filters | None = None, *, last: int = 0) -> None:
        self._conn = conn
        self._filters = filters or Filters()
        self._version: int | None = None
        self._open: set[str] = set()
        self._rowid: int = conn.execute("SELECT coalesce(max(rowid), 0) FROM requests").fetchone()[0]
        where, values = self._filters.condition()
        sql = (
            f"SELECT r.rowid, r.* FROM requests r WHERE {where} AND r.status IS NOT NULL ORDER BY r.rowid DESC LIMIT ?"
        )
        self._first = fetch_rows(conn, sql, [*values, last])[::-1] if last else []
        self._watch("SELECT id FROM requests WHERE incomplete = 1 AND created_at > ?", [self._recent()])

    def _recent(self) -> str:
        # A row left open by a process that died is no longer waited for after a day.
        newest = self._conn.execute("SELECT max(created_at) FROM requests").fetchone()[0]
        return "" if newest is None else self._conn.execute("SELECT date(?, '-1 day')", (newest,)).fetchone()[0] or ""

    def _watch(self, sql: str, values: Sequence[Any]) -> None:
        self._open |= {row[0] for row in self._conn.execute(sql, values)}

    def poll(self) -> list[Row]:
        """Requests finished since the last call, in the order they were stored. Cheap when nothing was written."""
        rows, self._first = self._first, []
        version = self._conn.execute("PRAGMA data_version").fetchone()[0]
        if version != self._version:
            self._version = version
            rows += self._news()
        add_properties(self._conn, rows)
        return rows

    def _news(self) -> list[Row]:
        where, values = self._filters.condition()
        newest = self._conn.execute("SELECT coalesce(max(rowid), 0) FROM requests").fetchone()[0]
        sql = f"SELECT r.* FROM requests r WHERE {where} AND r.incomplete IS NOT 1"
        rows = []
        waiting = sorted(self._open)
        for i in range(0, len(waiting), 500):
            part = waiting[i : i + 500]
            marks = ", ".join("?" * len(part))
            rows += fetch_rows(self._conn, f"{sql} AND r.id IN ({marks})", [*values, *part])
        if waiting:
            still = "SELECT id FROM requests WHERE incomplete = 1"
            self._open &= {row[0] for row in self._conn.execute(still)}
        rows += fetch_rows(
            self._conn, f"{sql} AND r.rowid > ? AND r.rowid <= ? ORDER BY r.rowid", [*values, self._rowid, newest]
        )
        self._watch("SELECT id FROM requests WHERE rowid > ? AND rowid <= ? AND incomplete = 1", [self._rowid, newest])
        self._rowid = max(self._rowid, newest)
        return rows
