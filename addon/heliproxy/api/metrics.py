"""`/v1/metrics/*`, providers and customers: totals and series (helicone-api.md section 1.7)."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse, Response

from heliproxy.api.database import fetch_rows
from heliproxy.api.endpoint import (
    FILTER,
    FLAG,
    INTEGER,
    NUMBER,
    TEXT,
    TIME_FILTER,
    Call,
    Endpoint,
    Handler,
    Schema,
    a_list,
    an_object,
    nullable,
)
from heliproxy.api.errors import bad
from heliproxy.api.fields import page
from heliproxy.api.filters import COMPLETION_TOKENS, PROMPT_TOKENS, TOTAL_TOKENS, Condition
from heliproxy.api.requests import row_condition
from heliproxy.api.timeframe import INCREMENTS, filled, scope, series
from heliproxy.filters import ERROR
from heliproxy.rounding import without_noise
from heliproxy.tallies import percentile

TOTALS = {
    "totalRequests": "count(*)",
    "totalCost": "total(r.cost_usd)",
    "averageLatency": "coalesce(avg(r.latency_ms), 0)",
    "averageTimeToFirstToken": "coalesce(avg(r.ttft_ms), 0)",
    "totalThreats": "coalesce(sum(r.status IS -4), 0)",
    "activeUsers": "count(DISTINCT r.user_id)",
}
SERIES: Mapping[str, Mapping[str, str]] = {
    "requestOverTime": {"count": "count(*)"},
    "costOverTime": {"cost": "total(r.cost_usd)"},
    "tokensOverTime": {
        "prompt_tokens": f"coalesce(sum({PROMPT_TOKENS}), 0)",
        "completion_tokens": f"coalesce(sum({COMPLETION_TOKENS}), 0)",
    },
    "detailedTokensOverTime": {
        "prompt_tokens": f"coalesce(sum({PROMPT_TOKENS}), 0)",
        "completion_tokens": f"coalesce(sum({COMPLETION_TOKENS}), 0)",
        "prompt_cache_read_tokens": "coalesce(sum(r.cache_read_tokens), 0)",
        "prompt_cache_write_tokens": "coalesce(sum(r.cache_write_tokens), 0)",
        "prompt_audio_tokens": "coalesce(sum(r.input_audio_tokens), 0)",
        "completion_audio_tokens": "coalesce(sum(r.output_audio_tokens), 0)",
        "reasoning_tokens": "coalesce(sum(r.reasoning_tokens), 0)",
    },
    "latencyOverTime": {"duration": "coalesce(avg(r.latency_ms), 0)"},
    "timeToFirstToken": {"ttft": "coalesce(avg(r.ttft_ms), 0)"},
    "usersOverTime": {"count": "count(DISTINCT r.user_id)"},
    "threatsOverTime": {"count": "coalesce(sum(r.status IS -4), 0)"},
    "errorOverTime": {"count": f"coalesce(sum({ERROR}), 0)"},
}
QUANTILES = {
    "latency": "r.latency_ms",
    "time_to_first_token": "r.ttft_ms",
    "ttft": "r.ttft_ms",
    "prompt_tokens": PROMPT_TOKENS,
    "completion_tokens": COMPLETION_TOKENS,
    "total_tokens": TOTAL_TOKENS,
    "cost": "r.cost_usd",
}


def one_value(sql: str) -> Handler:
    async def total(call: Call) -> Any:
        where = scope(await call.fields())
        return await call.read(lambda conn: value(conn, sql, where))

    return total


def value(conn: sqlite3.Connection, sql: str, where: Condition) -> Any:
    found = conn.execute(f"SELECT {sql} FROM requests r WHERE {where.sql}", where.values).fetchone()
    return without_noise(found[0])


async def average_tokens(call: Call) -> Any:
    where = scope(await call.fields())
    names = ("prompt", "completion", "total")
    columns = ", ".join(f"coalesce(avg({sql}), 0)" for sql in (PROMPT_TOKENS, COMPLETION_TOKENS, TOTAL_TOKENS))
    sql = f"SELECT {columns} FROM requests r WHERE {where.sql}"
    found = await call.read(lambda conn: conn.execute(sql, where.values).fetchone())
    return {
        f"average_{name}_tokens_per_response": without_noise(number) for name, number in zip(names, found, strict=True)
    }


def over_time(columns: Mapping[str, str]) -> Handler:
    async def lines(call: Call) -> Any:
        fields = await call.fields()
        steps, where = series(fields), scope(fields)
        selected = ", ".join(f"{sql} AS {name}" for name, sql in columns.items())
        sql = f"SELECT {steps.sql} AS period, {selected} FROM requests r WHERE {where.sql} GROUP BY 1 ORDER BY 1"
        rows = await call.read(lambda conn: fetch_rows(conn, sql, where.values))
        return filled(fields, steps, rows, dict.fromkeys(columns, 0))

    return lines


def split_over_time(column: str, name: str, empty: Any) -> Handler:
    """Counts by period and by one column."""

    async def lines(call: Call) -> Any:
        fields = await call.fields()
        steps, where = series(fields), scope(fields)
        sql = (
            f"SELECT {steps.sql} AS period, coalesce({column}, ?) AS {name}, count(*) AS count "
            f"FROM requests r WHERE {where.sql} GROUP BY 1, 2 ORDER BY 1, 2"
        )
        rows = await call.read(lambda conn: fetch_rows(conn, sql, [empty, *where.values]))
        return filled(fields, steps, rows, {"count": 0})

    return lines


async def quantiles(call: Call) -> Any:
    fields = await call.fields()
    metric = fields.text("metric", "latency")
    if metric not in QUANTILES:
        raise bad(f"'metric' should be one of {', '.join(QUANTILES)}, not {metric[:40]!r}")
    steps, where = series(fields), scope(fields)
    sql = (
        f"SELECT {steps.sql}, {QUANTILES[metric]} FROM requests r WHERE {where.sql} AND {QUANTILES[metric]} IS NOT NULL"
    )

    def read(conn: sqlite3.Connection) -> list[dict[str, Any]]:
        found: dict[str, list[float]] = {}
        for period, number in conn.execute(sql, where.values):
            found.setdefault(period, []).append(number)
        rows = []
        for period, numbers in found.items():
            numbers.sort()
            rows.append({"period": period, **{f"p{p}": percentile(numbers, p / 100) for p in (75, 90, 95, 99)}})
        return rows

    return filled(fields, steps, await call.read(read), {"p75": 0, "p90": 0, "p95": 0, "p99": 0})


async def request_count(call: Call) -> Any:
    where = row_condition(await call.fields())
    return await call.read(lambda conn: value(conn, "count(*)", where))


def grouped(select: str, group: str, *, order: str = "total_requests") -> Handler:
    async def lines(call: Call) -> Any:
        fields = await call.fields()
        where = scope(fields)
        offset, limit = page(fields, 100)
        sql = (
            f"SELECT {select} FROM requests r WHERE {where.sql} GROUP BY {group} ORDER BY {order} DESC, 1 "
            "LIMIT ? OFFSET ?"
        )
        return await call.read(lambda conn: fetch_rows(conn, sql, [*where.values, limit, offset]))

    return lines


MODELS = grouped(
    "coalesce(r.model, '') AS model, count(*) AS total_requests, "
    f"coalesce(sum({COMPLETION_TOKENS}), 0) AS total_completion_tokens, "
    f"coalesce(sum({PROMPT_TOKENS}), 0) AS total_prompt_token, coalesce(sum({TOTAL_TOKENS}), 0) AS total_tokens, "
    "total(r.cost_usd) AS cost",
    "coalesce(r.model, '')",
)
PROVIDERS = grouped("upper(coalesce(r.provider, 'custom')) AS provider, count(*) AS total_requests", "1")


async def countries(call: Call) -> Any:
    """Nobody here looks up where a client is."""
    fields = await call.fields()
    scope(fields)
    page(fields, 100)
    return []


# -- customers ------------------------------------------------------------------------------------------------------

USAGE = (
    "total(r.cost_usd) AS cost, count(*) AS count, "
    f"coalesce(sum({PROMPT_TOKENS}), 0) AS prompt_tokens, coalesce(sum({COMPLETION_TOKENS}), 0) AS completion_tokens"
)


async def customer_usage(call: Call) -> Response:
    """What one user id used; a customer of the portal is a user here."""
    await call.fields()
    customer = call.path("customerId")
    sql = f"SELECT {USAGE} FROM requests r WHERE r.user_id = ?"
    found = await call.read(lambda conn: fetch_rows(conn, sql, (customer,))[0])
    return JSONResponse({"id": customer, "name": customer, **found})


async def customers(call: Call) -> Response:
    await call.fields()
    sql = "SELECT DISTINCT user_id FROM requests WHERE user_id IS NOT NULL ORDER BY user_id LIMIT 10000"
    found = await call.read(lambda conn: conn.execute(sql).fetchall())
    return JSONResponse([{"id": user, "name": user} for (user,) in found])


TOTAL = an_object(filter=FILTER, timeFilter=TIME_FILTER)
OVER_TIME = an_object(
    filter=FILTER, timeFilter=TIME_FILTER, dbIncrement={"enum": list(INCREMENTS)}, timeZoneDifference=INTEGER
)
PAGE: Mapping[str, Schema] = {"offset": INTEGER, "limit": INTEGER}
PAGED = an_object(filter=FILTER, timeFilter=TIME_FILTER, **PAGE)
CUSTOMER = an_object(
    "id name cost count prompt_tokens completion_tokens",
    id=TEXT,
    name=TEXT,
    cost=NUMBER,
    count=INTEGER,
    prompt_tokens=INTEGER,
    completion_tokens=INTEGER,
)
ENDPOINTS = (
    *(
        Endpoint("POST", f"/v1/metrics/{name}", one_value(sql), f"Total: {name}", TOTAL, NUMBER)
        for name, sql in TOTALS.items()
    ),
    Endpoint(
        "POST", "/v1/metrics/averageTokensPerRequest", average_tokens, "Average tokens", TOTAL, {"type": "object"}
    ),
    *(
        Endpoint(
            "POST",
            f"/v1/metrics/{name}",
            over_time(columns),
            f"Series: {name}",
            OVER_TIME,
            a_list(an_object("time", time=TEXT, **dict.fromkeys(columns, NUMBER))),
        )
        for name, columns in SERIES.items()
    ),
    Endpoint(
        "POST",
        "/v1/metrics/requestStatusOverTime",
        split_over_time("r.status", "status", 0),
        "Series: requests by status",
        OVER_TIME,
        a_list(an_object("time count", time=TEXT, count=INTEGER, status=INTEGER)),
    ),
    Endpoint(
        "POST",
        "/v1/metrics/modelUsageOverTime",
        split_over_time("r.model", "model", ""),
        "Series: requests by model",
        OVER_TIME,
        a_list(an_object("time count", time=TEXT, count=INTEGER, model=TEXT)),
    ),
    Endpoint(
        "POST",
        "/v1/metrics/quantiles",
        quantiles,
        "Series: percentiles of one metric",
        {**OVER_TIME, "properties": {**OVER_TIME["properties"], "metric": {"enum": list(QUANTILES)}}},
        a_list(an_object("time", time=TEXT)),
    ),
    Endpoint(
        "POST",
        "/v1/metrics/requestCount",
        request_count,
        "Count requests",
        an_object(filter=FILTER, isCached=FLAG),
        INTEGER,
    ),
    Endpoint("POST", "/v1/metrics/models", MODELS, "Usage by model", PAGED, a_list(an_object("model", model=TEXT))),
    Endpoint("POST", "/v1/metrics/country", countries, "Usage by country: none is known", PAGED, a_list({})),
    Endpoint(
        "POST", "/v1/providers", PROVIDERS, "Requests by provider", PAGED, a_list(an_object("provider", provider=TEXT))
    ),
    Endpoint(
        "POST",
        "/v1/customer/{customerId}/usage/query",
        customer_usage,
        "Usage of one customer",
        an_object(),
        raw=CUSTOMER,
        body_required=False,
    ),
    Endpoint(
        "POST",
        "/v1/customer/query",
        customers,
        "List customers",
        an_object(),
        raw=a_list(an_object("id name", id=TEXT, name=nullable(TEXT))),
        body_required=False,
    ),
)
