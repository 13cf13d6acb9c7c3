"""Sessions (helicone-api.md section 1.5): requests that share `Helicone-Session-Id`, grouped by id and name."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from heliproxy.api.database import fetch_rows
from heliproxy.api.endpoint import (
    FILTER,
    FLAG,
    INTEGER,
    NULL,
    NUMBER,
    TEXT,
    Call,
    Endpoint,
    a_list,
    an_object,
    nullable,
)
from heliproxy.api.errors import not_found
from heliproxy.api.feedback import rating_of, set_property
from heliproxy.api.fields import Fields, page
from heliproxy.api.filters import COMPLETION_TOKENS, PROMPT_TOKENS, TOTAL_TOKENS, Condition
from heliproxy.api.histogram import HISTOGRAM, P_SIZES, histogram
from heliproxy.api.objects import DELETE, get_object, put_object
from heliproxy.api.timeframe import scope
from heliproxy.rounding import without_noise
from heliproxy.store import Writer

TAG = "session-tag"
FEEDBACK = "Helicone-Session-Feedback"
DURATION_S = "(julianday(max(r.created_at)) - julianday(min(r.created_at))) * 86400"


def session_scope(fields: Fields) -> Condition:
    """The requests of the sessions asked about."""
    found = scope(fields, start="startTimeUnixMs", end="endTimeUnixMs")
    sql, values = f"r.session_id IS NOT NULL AND {found.sql}", list(found.values)
    search = fields.text("search", "")
    if search:
        sql += " AND (instr(fold(r.session_id), ?) OR instr(fold(coalesce(r.session_name, '')), ?))"
        values += [search.casefold(), search.casefold()]
    if fields.get("nameEquals") is not None:
        sql, values = f"{sql} AND coalesce(r.session_name, '') = ?", [*values, fields.text("nameEquals")]
    part = fields.text("nameContains", "")
    if part:
        sql, values = f"{sql} AND instr(fold(coalesce(r.session_name, '')), ?)", [*values, part.casefold()]
    return Condition(sql, tuple(values))


async def query(call: Call) -> Any:
    """Sessions, newest first."""
    fields = await call.fields()
    where = session_scope(fields)
    offset, limit = page(fields, 50)
    sql = f"""
        SELECT min(r.created_at) AS created_at, max(r.created_at) AS latest_request_created_at, r.session_id,
               coalesce(r.session_name, '') AS session_name, total(r.cost_usd) AS total_cost,
               count(*) AS total_requests, coalesce(sum({PROMPT_TOKENS}), 0) AS prompt_tokens,
               coalesce(sum({COMPLETION_TOKENS}), 0) AS completion_tokens,
               coalesce(sum({TOTAL_TOKENS}), 0) AS total_tokens, coalesce(avg(r.latency_ms), 0) AS avg_latency,
               json_group_array(DISTINCT r.user_id) FILTER (WHERE r.user_id IS NOT NULL) AS user_ids
        FROM requests r WHERE {where.sql}
        GROUP BY r.session_id, coalesce(r.session_name, '') ORDER BY created_at DESC, r.session_id LIMIT ? OFFSET ?
    """
    rows = await call.read(lambda conn: fetch_rows(conn, sql, [*where.values, limit, offset]))
    for row in rows:
        row["user_ids"] = _list(row["user_ids"])
    return rows


def _list(text: str) -> list[str]:
    found: list[str] = json.loads(text)
    return found


async def count(call: Call) -> Any:
    where = session_scope(await call.fields())
    sql = f"""
        SELECT count(*) AS count, total(cost) AS total_cost, coalesce(avg(cost), 0) AS avg_cost,
               coalesce(avg(latency), 0) AS avg_latency, coalesce(avg(requests), 0) AS avg_requests
        FROM (SELECT total(r.cost_usd) AS cost, avg(r.latency_ms) AS latency, count(*) AS requests
              FROM requests r WHERE {where.sql} GROUP BY r.session_id, coalesce(r.session_name, ''))
    """
    return await call.read(lambda conn: fetch_rows(conn, sql, where.values)[0])


async def names(call: Call) -> Any:
    where = session_scope(await call.fields())
    sql = f"""
        SELECT coalesce(r.session_name, '') AS name, min(r.created_at) AS created_at, min(r.created_at) AS first_used,
               max(r.created_at) AS last_used, count(DISTINCT r.session_id) AS session_count,
               coalesce(avg(r.latency_ms), 0) AS avg_latency
        FROM requests r WHERE {where.sql} GROUP BY 1 ORDER BY last_used DESC, 1 LIMIT 1000
    """
    return await call.read(lambda conn: fetch_rows(conn, sql, where.values))


async def metrics(call: Call) -> Any:
    """How many requests sessions have, how long they last (seconds), what they cost (USD)."""
    fields = await call.fields()
    where = session_scope(fields)
    sql = f"""
        SELECT count(*), {DURATION_S}, total(r.cost_usd) FROM requests r WHERE {where.sql}
        GROUP BY r.session_id, coalesce(r.session_name, '')
    """
    rows = await call.read(lambda conn: conn.execute(sql, where.values).fetchall())
    columns = dict(zip(("session_count", "session_duration", "session_cost"), _columns(rows), strict=True))
    averages = {
        name: [{"average": without_noise(sum(values) / len(values)) if values else 0}]
        for name, values in columns.items()
    }
    return {**{name: histogram(fields, values) for name, values in columns.items()}, "average": averages}


def _columns(rows: list[Any]) -> list[list[float]]:
    return [[row[i] or 0 for row in rows] for i in range(3)]


async def has_session(call: Call) -> Any:
    sql = "SELECT EXISTS (SELECT 1 FROM requests WHERE session_id IS NOT NULL)"
    return bool(await call.read(lambda conn: conn.execute(sql).fetchone()[0]))


async def rate(call: Call) -> Any:
    """Rate a session: a property of its first request; null clears."""
    session_id = call.path("sessionId")
    rating = rating_of(await call.fields())
    sql = "SELECT id FROM requests WHERE session_id = ? ORDER BY created_at, rowid LIMIT 1"
    first = await call.read(lambda conn: conn.execute(sql, (session_id,)).fetchone())
    if first is None:
        raise not_found("Session")

    def store(writer: Writer) -> None:
        if rating is None:
            writer.write([("DELETE FROM properties WHERE request_id = ? AND key = ?", (first[0], FEEDBACK))])
        else:
            set_property(writer, first[0], FEEDBACK, "1" if rating else "0")

    await call.write(store)


async def get_tag(call: Call) -> Any:
    session_id = call.path("sessionId")

    def read(conn: sqlite3.Connection) -> Any:
        found = get_object(conn, TAG, session_id)
        return None if found is None else found["tag"]

    return await call.read(read)


async def set_tag(call: Call) -> Any:
    """Tag a session; the latest tag counts, an empty one clears."""
    session_id = call.path("sessionId")
    tag = (await call.fields()).text("tag", limit=200)
    if tag:
        await call.write(lambda writer: put_object(writer, TAG, session_id, {"tag": tag}))
    else:
        await call.write(lambda writer: writer.write([(DELETE, (TAG, session_id))]))


FRAME = an_object(startTimeUnixMs=NUMBER, endTimeUnixMs=NUMBER)
QUERY = an_object(
    search=TEXT,
    timeFilter=FRAME,
    nameEquals=TEXT,
    timezoneDifference=NUMBER,
    filter=FILTER,
    offset=INTEGER,
    limit=INTEGER,
)
NAMES = an_object(
    nameContains=TEXT,
    timezoneDifference=NUMBER,
    pSize={"enum": list(P_SIZES)},
    useInterquartile=FLAG,
    timeFilter=FRAME,
    filter=FILTER,
)
SESSION = an_object(
    "created_at latest_request_created_at session_id session_name total_cost total_requests",
    created_at=TEXT,
    latest_request_created_at=TEXT,
    session_id=TEXT,
    session_name=TEXT,
    total_cost=NUMBER,
    total_requests=INTEGER,
    prompt_tokens=INTEGER,
    completion_tokens=INTEGER,
    total_tokens=INTEGER,
    avg_latency=NUMBER,
    user_ids=a_list(TEXT),
)
COUNT = an_object("count", count=INTEGER, total_cost=NUMBER, avg_cost=NUMBER, avg_latency=NUMBER, avg_requests=NUMBER)
METRICS = an_object(session_count=HISTOGRAM, session_duration=HISTOGRAM, session_cost=HISTOGRAM)
RATING = an_object("rating", rating=nullable(FLAG))
ENDPOINTS = (
    Endpoint("POST", "/v1/session/query", query, "Query sessions", QUERY, a_list(SESSION)),
    Endpoint("POST", "/v1/session/count", count, "Count sessions", QUERY, COUNT),
    Endpoint("POST", "/v1/session/name/query", names, "Query session names", NAMES, a_list(an_object(name=TEXT))),
    Endpoint("POST", "/v1/session/metrics/query", metrics, "Distributions of sessions", NAMES, METRICS),
    Endpoint("GET", "/v1/session/has-session", has_session, "Whether there is any session", data=FLAG),
    Endpoint("POST", "/v1/session/{sessionId}/feedback", rate, "Rate a session", RATING, NULL),
    Endpoint("GET", "/v1/session/{sessionId}/tag", get_tag, "Get a session's tag", data=nullable(TEXT)),
    Endpoint("POST", "/v1/session/{sessionId}/tag", set_tag, "Tag a session", an_object("tag", tag=TEXT), NULL),
)
