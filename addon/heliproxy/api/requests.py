"""Request query, count, single requests, and the links to their bodies (helicone-api.md section 1.4)."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Mapping
from typing import Any

from starlette.responses import JSONResponse, Response

from heliproxy.api.endpoint import (
    ANY,
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
    orders,
)
from heliproxy.api.errors import bad, not_found
from heliproxy.api.fields import Fields
from heliproxy.api.filters import COMPLETION_TOKENS, KEYED, PROMPT_TOKENS, TOTAL_TOKENS, Condition, condition
from heliproxy.api.links import BODY_PATH
from heliproxy.api.rows import bodies_of, helicone_request, request_rows, rows_by_number
from heliproxy.bodies import read_body
from heliproxy.policies.prompt import INPUT_PREFIX

MAX_LIMIT = 1000
MAX_IDS = 10_000
NEWEST_FIRST = Condition("r.created_at DESC, r.rowid DESC")

# In Helicone's order: the first key that is there decides.
SORTS = {
    "cache_created_at": "r.created_at",
    "created_at": "r.created_at",
    "latency": "r.latency_ms",
    "last_active": "r.created_at",
    "total_tokens": TOTAL_TOKENS,
    "completion_tokens": COMPLETION_TOKENS,
    "prompt_tokens": PROMPT_TOKENS,
    "user_id": "r.user_id",
    "body_model": "r.model",
    "is_cached": "(r.cache IS 'HIT')",
    "request_prompt": "r.preview",
    "response_text": "r.answer_preview",
    "cost": "r.cost_usd",
    "time_to_first_token": "r.ttft_ms",
}


async def query(call: Call) -> Any:
    """One page of requests, newest first unless sorted otherwise."""
    fields = await call.fields()
    offset, limit = paging(fields)
    where, order = row_condition(fields), order_by(fields)
    pages = call.api.pages

    def page(conn: sqlite3.Connection) -> list[dict[str, Any]]:
        # Numbers first, which an index knows: the wide rows of the pages before are then never read.
        found = pages.numbers(conn, where, order, offset, limit)
        return [helicone_request(row, body_url(call, row["id"])) for row in rows_by_number(conn, found)]

    return await call.read(page)


def answers(conn: sqlite3.Connection, ids: list[str], call: Call) -> list[dict[str, Any]]:
    return [helicone_request(row, body_url(call, row["id"])) for row in request_rows(conn, ids)]


def body_url(call: Call, request_id: str) -> str:
    return call.signed_url(BODY_PATH, request_id)


async def count(call: Call) -> Any:
    where = row_condition(await call.fields())
    sql = f"SELECT count(*) FROM requests r WHERE {where.sql}"
    return await call.read(lambda conn: conn.execute(sql, where.values).fetchone()[0])


async def query_ids(call: Call) -> Any:
    ids = (await call.fields()).texts("requestIds", most=MAX_IDS)
    return await call.read(lambda conn: answers(conn, ids, call))


async def one(call: Call) -> Any:
    """One request; with `includeBody=true` its bodies are in it."""
    request_id = call.path("requestId")
    wanted = call.request.query_params.get("includeBody", "false").lower()
    if wanted not in ("true", "false", "1", "0", ""):
        raise bad(f"includeBody should be true or false, not {wanted[:40]!r}")

    def read(conn: sqlite3.Connection) -> dict[str, Any] | None:
        found = answers(conn, [request_id], call)
        if not found:
            return None
        if wanted in ("true", "1"):
            bodies = bodies_of(read_body(conn, request_id))
            found[0] |= {"request_body": bodies["request"], "response_body": bodies["response"]}
        return found[0]

    found = await call.read(read)
    if found is None:
        raise not_found("Request")
    return found


async def inputs(call: Call) -> Any:
    """The inputs that were marked in the prompt; null when none were."""
    request_id = call.path("requestId")
    found = await call.read(lambda conn: request_rows(conn, [request_id]))
    if not found:
        raise not_found("Request")
    start = len(INPUT_PREFIX)
    given = {key[start:]: value for key, value in found[0]["properties"].items() if key.startswith(INPUT_PREFIX)}
    if not given:
        return None
    # Prompts are versioned at Helicone; here there is only what was sent.
    return {"environment": None, "version_id": "", "prompt_id": found[0]["prompt_id"] or "", "inputs": given}


async def signed_body(call: Call) -> Response:
    """The bodies behind a signed link, as `{request, response}`."""
    request_id = call.check_signature(BODY_PATH)
    body = await call.read(lambda conn: read_body(conn, request_id))
    return JSONResponse(bodies_of(body))


# -- conditions and orders ------------------------------------------------------------------------------------------


def paging(fields: Fields) -> tuple[int, int]:
    """(offset, limit), refused in Helicone's words."""
    offset, limit = fields.get("offset"), fields.get("limit")
    for value in (offset, limit):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float | str)):
            raise bad("Invalid offset or limit")
    try:
        offset, limit = int(offset or 0), 10 if limit is None else int(limit)
    except (ValueError, OverflowError) as e:
        raise bad("Invalid offset or limit") from e
    if not 0 <= limit <= MAX_LIMIT:
        raise bad(f"invalid limit: {str(limit)[:20]} is not in 0..{MAX_LIMIT}")
    if not 0 <= offset < 2**62:
        raise bad("unsupport offset value: it should be 0 or more")
    return offset, limit


def row_condition(fields: Fields) -> Condition:
    """The filter of a request query, with its flags."""
    found = condition(fields.get("filter"))
    parts = [found.sql]
    cached, scored = fields.flag("isCached"), fields.flag("isScored")
    if cached:
        # Shipped clients send false when they mean all.
        parts.append("r.cache IS 'HIT'")
    if scored:
        parts.append("EXISTS (SELECT 1 FROM scores x WHERE x.request_id = r.id)")
    if fields.flag("isPartOfExperiment"):
        parts.append("0")
    return Condition(" AND ".join(parts), found.values)


def order_by(fields: Fields) -> Condition:
    """The ORDER BY of a request query. Raises ApiError(400)."""
    sort = fields.get("sort")
    if sort is None or sort == {}:
        return NEWEST_FIRST
    if not isinstance(sort, dict):
        raise bad('sort should be an object such as {"created_at": "desc"}')
    if sort.get("random") is True:
        return Condition("random()")
    for name, sql in SORTS.items():
        if sort.get(name) is not None:
            way = direction(sort[name])
            return Condition(f"{sql} {way}, r.rowid {way}")
    for name, named in KEYED.items():
        if sort.get(name) is not None:
            return keyed_order(sort[name], name, named)
    raise bad(
        f"cannot sort by {', '.join(map(str, sort))[:80]!r}; expected one of random, {', '.join(SORTS)}, properties"
    )


def keyed_order(value: Any, name: str, named: Callable[[str], str]) -> Condition:
    if not isinstance(value, Mapping) or len(value) != 1:
        raise bad(f"sort.{name} should be an object with one key")
    ((wanted, way),) = value.items()
    if not re.fullmatch(r"[a-zA-Z0-9_-]{1,200}", wanted):
        raise bad(f"sort.{name}: {wanted[:60]!r} has other characters than letters, digits, _ and -")
    sql = "(SELECT x.value FROM properties x WHERE x.request_id = r.id AND x.key = ? COLLATE NOCASE LIMIT 1)"
    return Condition(f"{sql} {direction(way)}, r.rowid DESC", (named(wanted),))


def direction(value: Any) -> str:
    if value not in ("asc", "desc"):
        raise bad(f"Invalid sort direction: {str(value)[:40]}; expected asc or desc")
    return str(value).upper()


REQUEST = an_object(
    "response_status request_id request_created_at request_path provider properties assets target_url model "
    "cache_enabled",
    request_id=TEXT,
    request_created_at=TEXT,
    response_id=nullable(TEXT),
    response_created_at=nullable(TEXT),
    response_status=NUMBER,
    request_path=TEXT,
    provider=TEXT,
    model=TEXT,
    target_url=TEXT,
    cost=nullable(NUMBER),
    total_tokens=nullable(INTEGER),
    prompt_tokens=nullable(INTEGER),
    completion_tokens=nullable(INTEGER),
    delay_ms=nullable(NUMBER),
    time_to_first_token=nullable(NUMBER),
    properties={"type": "object"},
    scores=nullable({"type": "object"}),
    assets=a_list(TEXT),
    cache_enabled=FLAG,
    signed_body_url=nullable(TEXT),
    request_body=ANY,
    response_body=ANY,
    feedback_rating=nullable(FLAG),
)
INPUTS = an_object(
    "environment version_id prompt_id inputs",
    environment=NULL,
    version_id=TEXT,
    prompt_id=TEXT,
    inputs={"type": "object"},
)
QUERY = an_object(
    filter=FILTER,
    offset={"type": "integer", "minimum": 0, "default": 0},
    limit={"type": "integer", "minimum": 0, "maximum": MAX_LIMIT, "default": 10},
    sort={**orders(*SORTS), "description": "One key; the first in Helicone's order counts."},
    isCached=FLAG,
    isScored=FLAG,
    isPartOfExperiment=FLAG,
    includeInputs=FLAG,
)
ENDPOINTS = (
    Endpoint("POST", "/v1/request/query", query, "Query requests", QUERY, a_list(REQUEST)),
    Endpoint("POST", "/v1/request/query-clickhouse", query, "Query requests in bulk", QUERY, a_list(REQUEST)),
    Endpoint("POST", "/v1/request/count/query", count, "Count requests", QUERY, INTEGER),
    Endpoint(
        "POST",
        "/v1/request/query-ids",
        query_ids,
        "Get requests by their ids",
        an_object("requestIds", requestIds=a_list(TEXT)),
        a_list(REQUEST),
    ),
    Endpoint("GET", "/v1/request/{requestId}", one, "Get one request", data=REQUEST, query=(("includeBody", FLAG),)),
    Endpoint("GET", "/v1/request/{requestId}/inputs", inputs, "Get the inputs of a prompt", data=nullable(INPUTS)),
    Endpoint(
        "GET",
        BODY_PATH,
        signed_body,
        "Get the bodies behind a signed link",
        raw=an_object("request response", request=ANY, response=ANY),
        query=(("id", TEXT), ("signature", TEXT)),
    ),
)
