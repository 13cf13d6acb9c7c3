"""Read-only SQL over the log: a question in the URL, its answer as a table and a plot."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from itertools import islice
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from heliproxy.api import sql
from heliproxy.api.pages.context import Pages
from heliproxy.api.pages.render import page
from heliproxy.rounding import without_noise

ROWS = 1000
SECONDS = 5.0
CELL = 2000
"""Characters shown of one value."""
LENGTH = 20_000
"""Characters of one question."""

EXAMPLES = (
    (
        "Cost by day and model",
        """SELECT date(created_at) AS day, model, count(*) AS requests, round(sum(cost_usd), 6) AS usd
FROM requests GROUP BY 1, 2 ORDER BY 1 DESC, 4 DESC""",
    ),
    (
        "Slowest calls",
        """SELECT id, model, round(latency_ms) AS ms, output_tokens, preview
FROM requests ORDER BY latency_ms DESC LIMIT 20""",
    ),
    (
        "Cost by hour",
        """SELECT strftime('%Y-%m-%d %H:00', created_at) AS hour, sum(cost_usd) AS usd, count(*) AS requests
FROM requests GROUP BY 1 ORDER BY 1""",
    ),
    (
        "Errors",
        """SELECT status, error_type, count(*) AS requests, max(created_at) AS last
FROM requests WHERE status >= 400 OR status < 0 GROUP BY 1, 2 ORDER BY 3 DESC""",
    ),
    (
        "Prompt cache",
        """SELECT model, sum(input_tokens) AS input, sum(cache_read_tokens) AS cached,
       round(100.0 * sum(cache_read_tokens) / sum(input_tokens), 1) AS percent
FROM requests WHERE input_tokens > 0 GROUP BY 1 ORDER BY 2 DESC""",
    ),
    (
        "Cost by a property",
        """SELECT p.value AS app, count(*) AS requests, sum(r.cost_usd) AS usd
FROM requests r JOIN properties p ON p.request_id = r.id AND p.key = 'App'
GROUP BY 1 ORDER BY 3 DESC""",
    ),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a question, or why there is none."""

    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()
    more: bool = False
    """There were more than `ROWS` rows."""
    seconds: float = 0.0
    error: str = ""


def ask(conn: sqlite3.Connection, question: str, limit: int = ROWS, seconds: float = SECONDS) -> Answer:
    """Run one SELECT, by the rules of Helicone's SQL, within limits of rows and time. Never raises for what it says.

    The connection is no use for anything else afterwards.
    """
    started = time.monotonic()
    deadline = started + seconds
    try:
        sql.lock(conn, deadline)
        cursor = conn.execute(sql.clickhouse_words(question).strip().rstrip(";"))
        rows = [tuple(map(_cell, row)) for row in islice(cursor, limit + 1)]
    except (sqlite3.Error, sqlite3.Warning, ValueError, MemoryError, OverflowError) as e:
        late = time.monotonic() > deadline
        return Answer(error=f"stopped after {seconds:g} s" if late else str(e) or type(e).__name__)
    columns = tuple(column[0] for column in cursor.description or ())
    return Answer(columns, tuple(rows[:limit]), len(rows) > limit, time.monotonic() - started)


def _cell(value: Any) -> Any:
    if isinstance(value, bytes):
        return f"({len(value):,} bytes)"
    return value[:CELL] if isinstance(value, str) else without_noise(value)


def schema(conn: sqlite3.Connection) -> list[tuple[str, list[str]]]:
    """The tables and views that may be read, with their columns."""
    return [(name, [row[1] for row in conn.execute(f'PRAGMA table_info("{name}")')]) for name in sorted(sql.TABLES)]


def plot(answer: Answer) -> dict[str, Any] | None:
    """A plot: the first column across, every column of numbers as a line; None when that makes no sense."""
    rows = answer.rows[:500]
    numeric = [
        i
        for i in range(1, len(answer.columns))
        if all(isinstance(row[i], int | float) or row[i] is None for row in rows)
        and any(row[i] is not None for row in rows)
    ]
    if len(rows) < 2 or not numeric:
        return None
    names = [str(row[0])[:40] for row in rows]
    return {
        "kind": "lines",
        "format": "money"
        if all("usd" in answer.columns[i] or "cost" in answer.columns[i] for i in numeric)
        else "count",
        "title": "",
        "zoom": False,
        "times": list(range(len(rows))),
        "labels": names,
        "starts": [],
        "ticks": [[i, name[:12]] for i, name in enumerate(names)],
        "series": [{"name": answer.columns[i], "values": [row[i] for row in rows]} for i in numeric[:8]],
    }


def sql_page(pages: Pages, request: Request) -> Response:
    question = request.query_params.get("q", "").strip()[:LENGTH]
    with pages.connection() as conn:
        tables = schema(conn)
        answer = ask(conn, question) if question else None
    return page(
        request,
        "sql.html",
        question=question or EXAMPLES[0][1],
        answer=answer,
        plot=plot(answer) if answer is not None else None,
        tables=tables,
        examples=EXAMPLES,
        limit=ROWS,
    )
