"""Users (helicone-api.md section 1.6): `Helicone-User-Id`, or the user a request's body names."""

from __future__ import annotations

from typing import Any

from heliproxy.api.database import fetch_rows
from heliproxy.api.endpoint import FILTER, FLAG, INTEGER, NUMBER, TEXT, Call, Endpoint, a_list, an_object, orders
from heliproxy.api.errors import bad
from heliproxy.api.fields import Fields, page
from heliproxy.api.filters import COMPLETION_TOKENS, PROMPT_TOKENS, TOTAL_TOKENS, Condition
from heliproxy.api.histogram import HISTOGRAM, P_SIZES, histogram
from heliproxy.api.requests import direction
from heliproxy.api.timeframe import scope

SORTS = (
    "id", "user_id", "active_for", "first_active", "last_active", "total_requests", "average_requests_per_day_active",
    "average_tokens_per_request", "total_completion_tokens", "total_prompt_tokens", "cost", "rate_limited_count",
)  # fmt: skip
DAYS = "count(DISTINCT substr(r.created_at, 1, 10))"
USERS = f"""
    SELECT r.user_id AS id, r.user_id, {DAYS} AS active_for, min(r.created_at) AS first_active,
           max(r.created_at) AS last_active, count(*) AS total_requests,
           1.0 * count(*) / {DAYS} AS average_requests_per_day_active,
           1.0 * sum({TOTAL_TOKENS}) / count(*) AS average_tokens_per_request,
           coalesce(sum({COMPLETION_TOKENS}), 0) AS total_completion_tokens,
           coalesce(sum({PROMPT_TOKENS}), 0) AS total_prompt_tokens, total(r.cost_usd) AS cost,
           sum(r.status IS 429) AS rate_limited_count
    FROM requests r
"""


def user_scope(fields: Fields) -> Condition:
    found = scope(fields, start="startTimeUnixSeconds", end="endTimeUnixSeconds")
    return Condition(f"r.user_id IS NOT NULL AND {found.sql}", found.values)


async def metrics(call: Call) -> Any:
    """One page of users, most requests first unless sorted otherwise."""
    fields = await call.fields()
    limit = fields.get("limit")
    if isinstance(limit, int | float) and not isinstance(limit, bool) and limit > 1000:
        raise bad("Limit cannot be greater than 1000")
    offset, limit = page(fields, 100)
    where, order = user_scope(fields), user_order(fields)
    sql = f"{USERS} WHERE {where.sql} GROUP BY r.user_id ORDER BY {order}, r.user_id LIMIT ? OFFSET ?"
    count = f"SELECT count(DISTINCT r.user_id) FROM requests r WHERE {where.sql}"
    some = "SELECT EXISTS (SELECT 1 FROM requests WHERE user_id IS NOT NULL)"
    users, total, known = await call.read(
        lambda conn: (
            fetch_rows(conn, sql, [*where.values, limit, offset]),
            conn.execute(count, where.values).fetchone()[0],
            conn.execute(some).fetchone()[0],
        )
    )
    return {"users": users, "count": total, "hasUsers": bool(known)}


def user_order(fields: Fields) -> str:
    sort = fields.object("sort").values
    wanted = [(name, way) for name, way in sort.items() if way is not None]
    if not wanted:
        return "total_requests DESC"
    name, way = wanted[0]
    if name not in SORTS:
        raise bad(f"cannot sort users by {name[:60]!r}; expected one of {', '.join(SORTS)}")
    return f"{'r.user_id' if name in ('id', 'user_id') else name} {direction(way)}"


async def query(call: Call) -> Any:
    """What some users, or all, used; at most 100."""
    fields = await call.fields()
    where = user_scope(fields)
    users = fields.texts("userIds", most=1000, required=False)
    sql, values = where.sql, list(where.values)
    if users:
        sql += f" AND r.user_id IN ({', '.join('?' * len(users))})"
        values += users
    select = f"""
        SELECT r.user_id, count(*) AS count, coalesce(sum({PROMPT_TOKENS}), 0) AS prompt_tokens,
               coalesce(sum({COMPLETION_TOKENS}), 0) AS completion_tokens, total(r.cost_usd) AS cost
        FROM requests r WHERE {sql} GROUP BY r.user_id ORDER BY count DESC, r.user_id LIMIT 100
    """
    return await call.read(lambda conn: fetch_rows(conn, select, values))


async def overview(call: Call) -> Any:
    """How requests and cost spread over users."""
    fields = await call.fields()
    where = user_scope(fields)
    sql = f"SELECT count(*), total(r.cost_usd) FROM requests r WHERE {where.sql} GROUP BY r.user_id"
    rows = await call.read(lambda conn: conn.execute(sql, where.values).fetchall())
    return {
        "request_count": histogram(fields, [row[0] for row in rows]),
        "user_cost": histogram(fields, [row[1] for row in rows]),
    }


FRAME = an_object(startTimeUnixSeconds=NUMBER, endTimeUnixSeconds=NUMBER)
METRICS = an_object(
    filter=FILTER,
    offset=INTEGER,
    limit=INTEGER,
    timeFilter=FRAME,
    timeZoneDifferenceMinutes=NUMBER,
    sort=orders(*SORTS),
)
USER = an_object("id user_id total_requests cost", id=TEXT, user_id=TEXT, total_requests=INTEGER, cost=NUMBER)
ENDPOINTS = (
    Endpoint(
        "POST",
        "/v1/user/metrics/query",
        metrics,
        "Query users with their usage",
        METRICS,
        an_object("users count hasUsers", users=a_list(USER), count=INTEGER, hasUsers=FLAG),
    ),
    Endpoint(
        "POST",
        "/v1/user/query",
        query,
        "Usage of some users",
        an_object(userIds=a_list(TEXT), timeFilter=FRAME),
        a_list(an_object("user_id count", user_id=TEXT, count=INTEGER, cost=NUMBER)),
    ),
    Endpoint(
        "POST",
        "/v1/user/metrics-overview/query",
        overview,
        "Distributions over users",
        an_object(filter=FILTER, pSize={"enum": list(P_SIZES)}, useInterquartile=FLAG),
        an_object("request_count user_cost", request_count=HISTOGRAM, user_cost=HISTOGRAM),
    ),
)
