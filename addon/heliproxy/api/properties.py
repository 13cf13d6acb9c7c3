"""Properties: their keys, values, and what each value costs (helicone-api.md section 1.7)."""

from __future__ import annotations

import sqlite3
from typing import Any

from starlette.responses import JSONResponse, Response

from heliproxy.api.database import fetch_rows
from heliproxy.api.endpoint import (
    FILTER,
    INTEGER,
    NUMBER,
    TEXT,
    TIME_FILTER,
    Call,
    Endpoint,
    Handler,
    a_list,
    an_object,
)
from heliproxy.api.objects import DELETE, list_objects, put_object
from heliproxy.api.timeframe import INCREMENTS, scope, series
from heliproxy.rounding import without_noise

HIDDEN = "hidden-property"
TOP = 10
MAX_VALUES = 25
PER_VALUE = (
    "SELECT p.value AS value, {0} FROM properties p JOIN requests r ON r.id = p.request_id "
    "WHERE p.key = ? COLLATE NOCASE AND {1} GROUP BY p.value ORDER BY 2 DESC, 1"
)


async def keys(call: Call) -> Any:
    """All keys in use that are not hidden."""

    def read(conn: sqlite3.Connection) -> list[dict[str, str]]:
        hidden = {item["id"] for item in list_objects(conn, HIDDEN)}
        found = conn.execute("SELECT DISTINCT key FROM properties ORDER BY key")
        return [{"property": key} for (key,) in found if key not in hidden]

    await call.fields()
    return await call.read(read)


async def search(call: Call) -> Any:
    """Values of one key that hold a text."""
    term = (await call.fields()).text("searchTerm", "").casefold()
    key = call.path("propertyKey")
    sql = (
        "SELECT DISTINCT value FROM properties WHERE key = ? COLLATE NOCASE AND (? = '' OR instr(fold(value), ?)) "
        "ORDER BY value LIMIT ?"
    )
    found = await call.read(lambda conn: conn.execute(sql, (key, term, term, MAX_VALUES)).fetchall())
    return [value for (value,) in found]


def top(measure: str, name: str) -> Handler:
    """The greatest values of a key, and all others together as "Other"."""

    async def lines(call: Call) -> Any:
        where = scope(await call.fields())
        key = call.path("propertyKey")
        sql = PER_VALUE.format(f"{measure} AS {name}", where.sql)
        rows = await call.read(lambda conn: fetch_rows(conn, sql, [key, *where.values]))
        rest = without_noise(sum(row[name] for row in rows[TOP:]))
        return rows[:TOP] + ([{"value": "Other", name: rest}] if rest > 0 else [])

    return lines


async def over_time(call: Call) -> Any:
    fields = await call.fields()
    steps, where = series(fields), scope(fields, "userFilter")
    key = fields.required_text("propertyKey", limit=200)
    sql = f"""
        SELECT {steps.sql} AS period, p.value AS property, total(r.cost_usd) AS total_cost, count(*) AS request_count
        FROM properties p JOIN requests r ON r.id = p.request_id
        WHERE p.key = ? COLLATE NOCASE AND {where.sql} GROUP BY 1, 2 ORDER BY 1, 2
    """
    rows = await call.read(lambda conn: fetch_rows(conn, sql, [key, *where.values]))
    for row in rows:
        row["created_at_trunc"] = steps.time(row.pop("period"))
    return rows


async def hide(call: Call) -> Response:
    key = (await call.fields()).required_text("key", limit=200)
    await call.write(lambda writer: put_object(writer, HIDDEN, key, {}))
    return JSONResponse({"data": {"ok": True}, "error": None})


async def restore(call: Call) -> Response:
    key = (await call.fields()).required_text("key", limit=200)
    await call.write(lambda writer: writer.write([(DELETE, (HIDDEN, key))]))
    return JSONResponse({"data": {"ok": True}, "error": None})


async def hidden(call: Call) -> Any:
    await call.fields()
    return [{"property": item["id"]} for item in await call.read(lambda conn: list_objects(conn, HIDDEN))]


FRAME = an_object(timeFilter=TIME_FILTER)
OVER_TIME = an_object(
    "propertyKey",
    propertyKey={"type": "string", "minLength": 1},
    timeFilter=TIME_FILTER,
    userFilter=FILTER,
    dbIncrement={"enum": list(INCREMENTS)},
    timeZoneDifference=INTEGER,
)
KEY = an_object("key", key={"type": "string", "minLength": 1})
OK = an_object("ok", ok={"type": "boolean"})
KEYS = a_list(an_object("property", property=TEXT))
ENDPOINTS = (
    Endpoint("POST", "/v1/property/query", keys, "List property keys", an_object(), KEYS, body_required=False),
    Endpoint(
        "POST",
        "/v1/property/{propertyKey}/search",
        search,
        "Search the values of a property",
        an_object(searchTerm=TEXT),
        a_list(TEXT),
    ),
    Endpoint(
        "POST",
        "/v1/property/{propertyKey}/top-costs/query",
        top("total(r.cost_usd)", "cost"),
        "Dearest values of a property",
        FRAME,
        a_list(an_object("value cost", value=TEXT, cost=NUMBER)),
    ),
    Endpoint(
        "POST",
        "/v1/property/{propertyKey}/top-requests/query",
        top("count(*)", "count"),
        "Most used values of a property",
        FRAME,
        a_list(an_object("value count", value=TEXT, count=INTEGER)),
    ),
    Endpoint(
        "POST",
        "/v1/property/properties/over-time",
        over_time,
        "Values of a property over time",
        OVER_TIME,
        a_list(
            an_object(
                "property total_cost request_count created_at_trunc",
                property=TEXT,
                total_cost=NUMBER,
                request_count=INTEGER,
                created_at_trunc=TEXT,
            )
        ),
    ),
    Endpoint("POST", "/v1/property/hide", hide, "Hide a property key", KEY, OK),
    Endpoint("POST", "/v1/property/restore", restore, "Show a hidden key again", KEY, OK),
    Endpoint("POST", "/v1/property/hidden/query", hidden, "List hidden keys", an_object(), KEYS, body_required=False),
)
