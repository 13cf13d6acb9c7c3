"""Scores over time and their distributions (helicone-api.md section 1.2)."""

from __future__ import annotations

import sqlite3
from typing import Any

from heliproxy.api.database import fetch_rows
from heliproxy.api.endpoint import FILTER, INTEGER, NUMBER, TEXT, TIME_FILTER, Call, Endpoint, a_list, an_object
from heliproxy.api.fields import page
from heliproxy.api.timeframe import INCREMENTS, Series, scope, series
from heliproxy.rounding import without_noise

BINS = 10
SCORED = "FROM scores s JOIN requests r ON r.id = s.request_id WHERE {}"


async def names(call: Call) -> Any:
    found = await call.read(lambda conn: conn.execute("SELECT DISTINCT name FROM scores ORDER BY name").fetchall())
    return [name for (name,) in found]


async def query(call: Call) -> Any:
    fields = await call.fields()
    where = scope(fields)
    offset, limit = page(fields, 100)
    days = Series("day", fields.integer("timeZoneDifference", 0, -1440, 1440))
    source = SCORED.format(where.sql)

    def read(conn: sqlite3.Connection) -> list[dict[str, Any]]:
        rows = fetch_rows(
            conn,
            f"SELECT s.name, avg(s.value) AS averageScore, min(s.value) AS minScore, max(s.value) AS maxScore, "
            f"count(*) AS count {source} GROUP BY s.name ORDER BY s.name LIMIT ? OFFSET ?",
            [*where.values, limit, offset],
        )
        by_name = {row["name"]: row for row in rows}
        for row in rows:
            row["overTime"], row["averageOverTime"] = [], []
        sql = f"SELECT s.name, {days.sql}, count(*), avg(s.value) {source} GROUP BY 1, 2 ORDER BY 1, 2"
        for name, day, count, average in conn.execute(sql, where.values):
            if name in by_name:
                by_name[name]["overTime"].append({"date": day, "count": count})
                by_name[name]["averageOverTime"].append({"date": day, "value": without_noise(average)})
        return rows

    return await call.read(read)


async def distributions(call: Call) -> Any:
    fields = await call.fields()
    where = scope(fields)
    sql = f"SELECT s.name, s.value {SCORED.format(where.sql)} AND s.value IS NOT NULL ORDER BY 1, 2"

    def read(conn: sqlite3.Connection) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for name, value in conn.execute(sql, where.values):
            found.setdefault(name, []).append(value)
        return found

    found = await call.read(read)
    return [{"name": name, "distribution": distribution(values)} for name, values in found.items()]


def distribution(values: list[float]) -> list[dict[str, float]]:
    """Counts of sorted values in equal ranges."""
    low, high = values[0], values[-1]
    width = (high - low) / BINS
    if width <= 0:
        return [{"lower": low, "upper": high, "value": len(values)}]
    counts = [0] * BINS
    for value in values:
        counts[min(BINS - 1, int((value - low) / width))] += 1
    return [{"lower": low + i * width, "upper": low + (i + 1) * width, "value": n} for i, n in enumerate(counts)]


async def dashboard(call: Call) -> Any:
    """Averages by period; Helicone calls them sums."""
    fields = await call.fields()
    steps, where = series(fields), scope(fields, "userFilter")
    sql = (
        f"SELECT {steps.sql} AS period, s.name AS score_key, avg(s.value) AS score_sum "
        f"{SCORED.format(where.sql)} GROUP BY 1, 2 ORDER BY 1, 2"
    )
    rows = await call.read(lambda conn: fetch_rows(conn, sql, where.values))
    for row in rows:
        row["created_at_trunc"] = steps.time(row.pop("period"))
    return rows


QUERY = an_object(filter=FILTER, timeFilter=TIME_FILTER, offset=INTEGER, limit=INTEGER, timeZoneDifference=INTEGER)
DASHBOARD = an_object(
    userFilter=FILTER, timeFilter=TIME_FILTER, dbIncrement={"enum": list(INCREMENTS)}, timeZoneDifference=INTEGER
)
SCORE = an_object(
    "name averageScore minScore maxScore count overTime averageOverTime",
    name=TEXT,
    averageScore=NUMBER,
    minScore=NUMBER,
    maxScore=NUMBER,
    count=INTEGER,
    overTime=a_list(an_object("date count", date=TEXT, count=INTEGER)),
    averageOverTime=a_list(an_object("date value", date=TEXT, value=NUMBER)),
)
RANGE = an_object("lower upper value", lower=NUMBER, upper=NUMBER, value=NUMBER)
ENDPOINTS = (
    Endpoint("GET", "/v1/evals/scores", names, "List names of scores", data=a_list(TEXT)),
    Endpoint("POST", "/v1/evals/query", query, "Query scores", QUERY, a_list(SCORE)),
    Endpoint(
        "POST",
        "/v1/evals/score-distributions/query",
        distributions,
        "Distributions of scores",
        QUERY,
        a_list(an_object("name distribution", name=TEXT, distribution=a_list(RANGE))),
    ),
    Endpoint(
        "POST",
        "/v1/dashboard/scores/query",
        dashboard,
        "Scores over time",
        DASHBOARD,
        a_list(
            an_object("created_at_trunc score_key score_sum", created_at_trunc=TEXT, score_key=TEXT, score_sum=NUMBER)
        ),
    ),
)
