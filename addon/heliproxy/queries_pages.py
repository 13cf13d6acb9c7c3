"""What only the pages ask of the database; everything they share with the reports is in `queries`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from heliproxy import rollups, tallies
from heliproxy.filters import Filters
from heliproxy.queries import Row, add_properties, fetch_rows, request_list
from heliproxy.times import stored_time

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable

SEARCH_SECONDS = 0.7
"""How long one page of a search may take before it shows what it has."""
SEARCH_STEP = 40_000
"""Rows looked at between two looks at the clock."""
RECENT = 2_000
"""Newest rows that suggestions are taken from."""


@dataclass(frozen=True, slots=True)
class Found:
    """One page of a search, newest first."""

    rows: list[Row]
    next: tuple[str, str] | None = None
    """Where the following page begins."""
    searched_to: str | None = None
    """Set when time ran out: everything from here on was looked at."""


def text_condition(text: str) -> tuple[str, list[Any]]:
    """A condition on `requests r` for a search text: a part of previews or error, in any case, or a whole id."""
    pattern = "%" + text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
    columns = ("r.preview", "r.answer_preview", "r.error", "r.session_name")
    likes = " OR ".join(f"{column} LIKE ? ESCAPE '\\'" for column in columns)
    return f"({likes} OR r.id = ? OR r.response_id = ?)", [pattern] * len(columns) + [text, text]


def search(
    conn: sqlite3.Connection,
    filters: Filters,
    text: str = "",
    *,
    after: tuple[str, str] | None = None,
    limit: int = 50,
    seconds: float = SEARCH_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """Requests that match, newest first, with `properties`; stops looking after `seconds` and says how far it got.

    Raises ValueError for an unknown status form.
    """
    narrow = any("*" not in name for name in (*filters.sessions, *filters.runs))
    if not text and (narrow or filters == Filters(since=filters.since, until=filters.until)):
        page = request_list(conn, filters, limit=limit, after=after)
        return Found(page.rows, page.next)
    where, values = filters.condition()
    if text:
        condition, more = text_condition(text)
        where, values = f"{where} AND {condition}", values + more
    oldest = stored_time(filters.since) if filters.since else ""
    deadline = clock() + seconds
    top = after or (stored_time(filters.until) if filters.until else "9999", "")
    rows: list[Row] = []
    while True:
        bottom = _step_down(conn, top[0], oldest)
        rows += fetch_rows(
            conn,
            f"SELECT r.* FROM requests r WHERE {where} AND r.created_at >= ? AND (r.created_at, r.id) < (?, ?) "
            "ORDER BY r.created_at DESC, r.id DESC LIMIT ?",
            [*values, bottom, *top, limit + 1 - len(rows)],
        )
        # Everything at `bottom` itself was looked at: "" sorts before every id.
        top = (bottom, "")
        if len(rows) > limit or bottom == oldest or clock() > deadline:
            break
    full = len(rows) > limit
    rows = rows[:limit]
    add_properties(conn, rows)
    if full:
        return Found(rows, (rows[-1]["created_at"], rows[-1]["id"]))
    return Found(rows) if bottom == oldest else Found(rows, top, bottom)


def _step_down(conn: sqlite3.Connection, top: str, oldest: str) -> str:
    """The creation time `SEARCH_STEP` rows below `top`, not below `oldest`."""
    row = conn.execute(
        "SELECT created_at FROM requests WHERE created_at <= ? AND created_at >= ? "
        "ORDER BY created_at DESC LIMIT 1 OFFSET ?",
        (top, oldest, SEARCH_STEP),
    ).fetchone()
    # A whole step within one millisecond would never get further.
    return row[0] if row and row[0] < top else oldest


def time_span(conn: sqlite3.Connection, filters: Filters) -> tuple[datetime, datetime] | None:
    """When the first and the last matching request began; None when there is none."""
    where, values = filters.condition()
    first = conn.execute(f"SELECT min(r.created_at) FROM requests r WHERE {where}", values).fetchone()[0]
    if first is None:
        return None
    last = conn.execute(f"SELECT max(r.created_at) FROM requests r WHERE {where}", values).fetchone()[0]
    return _time(first), _time(last)


def _time(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return datetime.now(UTC)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def recent_values(conn: sqlite3.Connection, column: str, limit: int = 40) -> list[str]:
    """The values of "model", "provider" or "user_id" among the newest requests, the most used first."""
    if column not in ("model", "provider", "user_id"):
        raise ValueError(f"no suggestions for {column!r}; expected model, provider or user_id")
    rows = conn.execute(
        f"SELECT {column} FROM (SELECT {column} FROM requests ORDER BY created_at DESC LIMIT {RECENT}) "
        f"WHERE {column} IS NOT NULL GROUP BY 1 ORDER BY count(*) DESC LIMIT ?",
        (limit,),
    )
    return [value for (value,) in rows]


def recent_properties(conn: sqlite3.Connection, limit: int = 30) -> list[str]:
    """Names of properties of the newest requests, the most used first."""
    rows = conn.execute(
        f"SELECT p.key FROM (SELECT id FROM requests ORDER BY created_at DESC LIMIT {RECENT}) r "
        "JOIN properties p ON p.request_id = r.id GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT ?",
        (limit,),
    )
    return [key for (key,) in rows]


def neighbours(conn: sqlite3.Connection, row: Row) -> tuple[str | None, str | None]:
    """Ids of the next newer and the next older request."""
    place = (row["created_at"], row["id"])
    newer = conn.execute(
        "SELECT id FROM requests WHERE created_at >= ? AND (created_at, id) > (?, ?) ORDER BY created_at, id LIMIT 1",
        (place[0], *place),
    ).fetchone()
    older = conn.execute(
        "SELECT id FROM requests WHERE created_at <= ? AND (created_at, id) < (?, ?) "
        "ORDER BY created_at DESC, id DESC LIMIT 1",
        (place[0], *place),
    ).fetchone()
    return newer[0] if newer else None, older[0] if older else None


def before_in_session(conn: sqlite3.Connection, row: Row) -> str | None:
    """The id of the request before this one in the same session, on the same path if there is one there."""
    if not row["session_id"]:
        return None
    found = conn.execute(
        "SELECT id FROM requests WHERE session_id = ? AND (created_at, id) < (?, ?) "
        "ORDER BY session_path IS ? DESC, created_at DESC, id DESC LIMIT 1",
        (row["session_id"], row["created_at"], row["id"], row["session_path"]),
    ).fetchone()
    return found[0] if found else None


def seen_times(
    conn: sqlite3.Connection, filters: Filters, *, everybody: bool = False
) -> dict[str | None, tuple[str, str]]:
    """First and last request of each user; with `everybody`, of requests without a user as well, at None."""
    named = "1" if everybody else "r.user_id IS NOT NULL"
    where, values = filters.condition()
    with tallies.snapshot(conn):
        window = tallies.time_window(conn, filters)
        if rollups.kind_of(("user",), filters) != "user" or window is None or not tallies.uses_sums(conn, window):
            return merged(conn.execute(f"{SEEN} WHERE {where} AND {named} GROUP BY 1", values))
        where, values = rollups.condition(filters)
        parts = rollups.plan(conn, "user", [window])
        found = list(rollups.seen(conn, parts, f"{where} AND {named}", values))
        for raw in parts[0].raw:
            sql = f"{SEEN} WHERE {where} AND {named} AND r.created_at >= ? AND r.created_at < ? GROUP BY 1"
            found += conn.execute(sql, [*values, *map(stored_time, raw)])
    return merged(found)


SEEN = "SELECT r.user_id, min(r.created_at), max(r.created_at) FROM requests r"


def merged(spans: Iterable[tuple[str | None, str, str]]) -> dict[str | None, tuple[str, str]]:
    """The earliest and the latest time of each user."""
    found: dict[str | None, tuple[str, str]] = {}
    for user, first, last in spans:
        old = found.get(user, (first, last))
        found[user] = (min(old[0], first), max(old[1], last))
    return found


def property_keys(conn: sqlite3.Connection, filters: Filters, limit: int = 200) -> list[tuple[str, int, int]]:
    """Properties of the newest matching requests as (name, requests, different values), the most used first."""
    where, values = filters.condition()
    rows = conn.execute(
        f"SELECT p.key, count(*), count(DISTINCT p.value) FROM (SELECT r.id FROM requests r WHERE {where} "
        "ORDER BY r.created_at DESC LIMIT 20000) r JOIN properties p ON p.request_id = r.id "
        "GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT ?",
        [*values, limit],
    )
    return list(rows)


def top_cached(conn: sqlite3.Connection, filters: Filters, limit: int = 25) -> list[Row]:
    """Stored answers by what they saved: id, hits, saved_usd, saved_ms, last_at, model, preview."""
    where, values = filters.condition()
    return fetch_rows(
        conn,
        f"""
        SELECT h.*, o.model, o.preview, o.answer_preview,
               h.hits * o.latency_ms - h.hit_ms AS saved_ms
        FROM (SELECT r.cache_reference_id AS id, count(*) AS hits, sum(r.saved_usd) AS saved_usd,
                     sum(r.latency_ms) AS hit_ms, max(r.created_at) AS last_at
              FROM requests r WHERE r.cache = 'HIT' AND {where}
              GROUP BY 1 ORDER BY saved_usd DESC, hits DESC LIMIT ?) h
        LEFT JOIN requests o ON o.id = h.id
        """,
        [*values, limit],
    )


def saved_time(conn: sqlite3.Connection, filters: Filters) -> float | None:
    """Milliseconds that cache hits saved: the first call's latency less the hit's own, summed up."""
    where, values = filters.condition()
    saved: float | None = conn.execute(
        "SELECT sum(o.latency_ms - r.latency_ms) FROM requests r JOIN requests o ON o.id = r.cache_reference_id "
        f"WHERE r.cache = 'HIT' AND {where}",
        values,
    ).fetchone()[0]
    return saved


def refusals(conn: sqlite3.Connection, filters: Filters) -> list[Row]:
    """Requests refused with 429, by who refused them: error_type, requests, users, last_at."""
    where, values = filters.condition()
    return fetch_rows(
        conn,
        "SELECT r.error_type, count(*) AS requests, count(DISTINCT r.user_id) AS users, max(r.created_at) AS last_at "
        f"FROM requests r WHERE r.status = 429 AND {where} GROUP BY 1 ORDER BY 2 DESC",
        values,
    )
