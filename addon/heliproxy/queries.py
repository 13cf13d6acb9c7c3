"""What is asked of the database, by the command line, the REST API and the dashboard alike.

Functions of an open connection (see `store.open_reader`); nothing here writes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heliproxy.bodies import Body, read_body
from heliproxy.filters import ERROR, UNPRICED, Filters
from heliproxy.statuses import LOST
from heliproxy.tallies import DIMENSIONS, NAMED_DIMENSIONS, Key, Line, Tally, snapshot, tally
from heliproxy.times import UNITS

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

Row = dict[str, Any]
GROUP_FORMS = ", ".join((*DIMENSIONS, *UNITS, "property:NAME", "score:NAME"))

# -- costs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Costs:
    """A cost report: its lines in order, and the total of all groups, also of those that `top` cut off."""

    by: tuple[str, ...]
    lines: list[Line]
    total: Line
    groups: int
    approximate: bool = False
    """Whether percentiles are within 1 % only: sums of the past are among what was added up."""
    lost: int = 0
    """Requests that were under way when heliproxy ended: counted, but no errors, and their cost is in no sum."""


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
    lost = lost_calls(conn, filters)
    return Costs(groups, lines[:top], total.line(()), len(lines), bool(total.past_latencies), lost)


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


def lost_calls(conn: sqlite3.Connection, filters: Filters | None = None) -> int:
    """How many requests were under way when heliproxy ended, so that nobody knows what became of them."""
    where, values = (filters or Filters()).condition()
    sql = (
        f"SELECT r.id, r.incomplete, r.status, r.error_type, r.error FROM requests r WHERE r.incomplete = 1 AND {where}"
    )
    rows = fetch_rows(conn, sql, values)
    note_lost(conn, rows)
    return sum(row["status"] is None and row["error_type"] == LOST for row in rows)


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
    with snapshot(conn):
        shown = last_sessions(conn, where, values, offset + limit)[offset:]
        found: dict[tuple[str, str | None], Row] = {}
        for i in range(0, len(shown), 500):
            part = [session_id for session_id, _ in shown[i : i + 500]]
            rows = fetch_rows(
                conn,
                f"""
                SELECT r.session_id, r.session_name, min(r.created_at) AS first_at, max(r.created_at) AS last_at,
                       count(*) AS requests, coalesce(sum({ERROR}), 0) AS errors, sum(r.input_tokens) AS input_tokens,
                       sum(r.output_tokens) AS output_tokens, sum(r.cost_usd) AS cost_usd,
                       sum(r.saved_usd) AS saved_usd, sum({UNPRICED}) AS unpriced, avg(r.latency_ms) AS latency_ms,
                       count(DISTINCT r.user_id) AS users
                FROM requests r WHERE r.session_id IN ({", ".join("?" * len(part))}) AND {where}
                GROUP BY r.session_id, r.session_name
                """,
                [*part, *values],
            )
            found |= {(row["session_id"], row["session_name"]): row for row in rows}
    return [found[key] for key in shown]


def last_sessions(
    conn: sqlite3.Connection, where: str, values: Sequence[Any], number: int
) -> list[tuple[str, str | None]]:
    """Ids and names of the sessions used last. Reads back in time, and stops when it has enough."""
    found: dict[tuple[str, str | None], str] = {}
    last = ""
    # The plus keeps SQLite from taking the index of sessions, and sorting them all.
    sql = (
        "SELECT r.session_id, r.session_name, r.created_at FROM requests r "
        f"WHERE +r.session_id IS NOT NULL AND {where} ORDER BY r.created_at DESC"
    )
    for session_id, name, at in conn.execute(sql, values):
        if len(found) >= number and at != last:
            break
        last = at
        found.setdefault((session_id, name), at)
    # Those used at the same moment come in the order of their ids.
    moments: dict[str, list[tuple[str, str | None]]] = {}
    for key, at in found.items():
        moments.setdefault(at, []).append(key)
    ordered = (key for keys in moments.values() for key in sorted(keys, key=lambda key: (key[0], key[1] or "")))
    return list(ordered)[:number]


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
