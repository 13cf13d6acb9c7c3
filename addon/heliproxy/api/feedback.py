"""What is said about a request afterwards: feedback, scores, properties (helicone-api.md sections 1.1 to 1.3).

All of it may come before the request's row: while its stream still runs, or before another process has logged it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from starlette.responses import JSONResponse, Response

from heliproxy.api.endpoint import ANY, FLAG, NULL, NUMBER, TEXT, Call, Endpoint, an_object, envelope, nullable
from heliproxy.api.errors import ApiError, bad
from heliproxy.api.fields import Fields
from heliproxy.hosts import normal_host
from heliproxy.store import FEEDBACK_SCORE, Writer

MAX_SCORES = 100
MAX_NAME = 200
FORGET_FEEDBACK = "DELETE FROM feedback WHERE request_id = ? AND name = ?"
FORGET_SCORE = "DELETE FROM scores WHERE request_id = ? AND name = ?"
DATA_TYPES = ("boolean", "numerical", "string", "categorical")
UNKNOWN = "no request with this id is logged yet; this is kept until it is"


async def rate(call: Call) -> Response:
    """Set or, with `rating: null`, clear the rating of a request."""
    fields = await call.fields()
    return await put_rating(call, call.path("requestId"), rating_of(fields))


def rating_of(fields: Fields) -> bool | None:
    rating = fields.get("rating")
    if "rating" not in fields.values or not (rating is None or isinstance(rating, bool)):
        raise bad("Invalid rating format. Expected a boolean.")
    return rating


async def put_rating(call: Call, request_id: str, rating: bool | None, body: Any = None) -> Response:
    def store(writer: Writer) -> None:
        if rating is None:
            writer.write([(FORGET_FEEDBACK, (request_id, "rating")), (FORGET_SCORE, (request_id, FEEDBACK_SCORE))])
        else:
            writer.add_feedback(request_id, rating)

    return await said(call, request_id, store, body=body)


async def said(
    call: Call, request_id: str, store: Callable[[Writer], None], status: int = 200, body: Any = None
) -> Response:
    """Store something about a request, and note in a header when there is no such request yet.

    One that is still under way gets its row now, marked incomplete, so that what was said can be read at once.
    """
    live = next((one for one in list(call.api.addon.live.values()) if one.id == request_id), None)

    def write(writer: Writer) -> None:
        if live is not None:
            call.api.addon.recorder.open(live)
        store(writer)

    await call.write(write)
    known = await call.read(
        lambda conn: conn.execute("SELECT 1 FROM requests WHERE id = ?", (request_id,)).fetchone() is not None
    )
    response = envelope(None, status) if body is None else JSONResponse(body, status)
    if not known:
        response.headers["Helicone-Warning"] = UNKNOWN
    return response


async def legacy(call: Call) -> Response:
    """`/v1/feedback` of the first clients: the id is in the body; feedback may have a name and any value."""
    fields = await call.fields()
    request_id = fields.required_text("helicone-id", limit=MAX_NAME)
    name = fields.get("name")
    if name is None:
        return await put_rating(call, request_id, rating_of(fields), added(request_id))
    name = fields.required_text("name", limit=MAX_NAME)
    value, kind = named_value(fields)

    sql = "SELECT type FROM feedback WHERE name = ? LIMIT 1"
    old = await call.read(lambda conn: conn.execute(sql, (name,)).fetchone())
    if old is not None and old[0] != kind:
        raise ApiError(409, "Data type does not match the existing feedback metric.")

    def store(writer: Writer) -> None:
        writer.add_feedback(request_id, value, name)

    return await said(call, request_id, store, body=added(request_id))


def added(request_id: str) -> dict[str, str | None]:
    """What Helicone's proxy hosts answer, inside the envelope of its API hosts."""
    return {"message": "Feedback added successfully.", "helicone_id": request_id, "data": None, "error": None}


def named_value(fields: Fields) -> tuple[bool | float | str, str]:
    """(value, stored type) of named feedback. Raises ApiError(400)."""
    told = fields.get("data-type")
    if told is not None and told not in DATA_TYPES:
        raise bad(f"'data-type' should be one of {', '.join(DATA_TYPES)}, not {str(told)[:40]!r}")
    value = fields.get("value")
    if isinstance(value, bool):
        kind = "boolean"
    elif isinstance(value, int | float) and math.isfinite(value):
        kind = "number"
    elif isinstance(value, str):
        kind = "text"
    else:
        raise bad("'value' should be a boolean, a number or a string")
    expected = {"boolean": "boolean", "numerical": "number", "string": "text", "categorical": "text"}.get(told, kind)
    if expected != kind:
        raise bad(f"'value' should be {told}, not {json.dumps(value)[:60]}")
    return value, kind


# -- scores ---------------------------------------------------------------------------------------------------------


async def score(call: Call) -> Response:
    scores = (await call.fields()).object("scores", required=True).values
    if len(scores) > MAX_SCORES:
        raise bad(f"at most {MAX_SCORES} scores at once")
    checked = {checked_name(name): checked_score(name, value) for name, value in scores.items()}
    request_id = call.path("requestId")
    return await said(call, request_id, lambda writer: writer.add_scores(request_id, checked), 201)


async def evaluation(call: Call) -> Response:
    fields = await call.fields()
    name = checked_name(fields.required_text("name"))
    value = checked_score(name, fields.get("score"))
    request_id = call.path("requestId")
    return await said(call, request_id, lambda writer: writer.add_scores(request_id, {name: value}), 201)


def checked_name(name: str) -> str:
    if not name or len(name) > MAX_NAME:
        raise bad(f"a score's name has 1 to {MAX_NAME} characters, not {len(name)}")
    return name


def checked_score(name: str, value: Any) -> float | bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return value
    raise bad(f"score {name[:60]!r} should be a number or a boolean, not {json.dumps(value)[:60]}")


# -- properties -----------------------------------------------------------------------------------------------------


async def put_property(call: Call) -> Response:
    """Set one property. The worker host answers in its own words."""
    fields = await call.fields()
    for name in ("key", "value"):
        if fields.get(name) in (None, ""):
            if name == "value" and fields.get(name) == "":
                continue
            raise bad(f"Invalid request body. '{name}' is required.")
    key = fields.text("key", limit=MAX_NAME)
    value = fields.get("value")
    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, int | float):
        value = str(value)
    if not isinstance(value, str):
        raise bad("'value' should be a string")
    request_id = call.path("requestId")
    host, _ = normal_host(call.request.headers.get("host", ""))
    body = {"ok": "true"} if host.startswith("api.worker.") or host == "api.hconeai.com" else None
    return await said(call, request_id, lambda writer: set_property(writer, request_id, key, value), body=body)


def set_property(writer: Writer, request_id: str, key: str, value: str) -> None:
    """Set a property; one whose name differs only in case is the same one."""
    writer.write(
        [
            ("DELETE FROM properties WHERE request_id = ? AND key = ? COLLATE NOCASE", (request_id, key)),
            ("INSERT INTO properties (request_id, key, value) VALUES (?, ?, ?)", (request_id, key, value)),
        ]
    )


RATING = an_object("rating", rating=nullable(FLAG))
ENDPOINTS = (
    Endpoint("POST", "/v1/request/{requestId}/feedback", rate, "Rate a request; null clears", RATING, NULL),
    Endpoint(
        "POST",
        "/v1/feedback",
        legacy,
        "Rate a request, the old way",
        {
            "type": "object",
            "required": ["helicone-id"],
            "properties": {
                "helicone-id": TEXT,
                "rating": nullable(FLAG),
                "name": TEXT,
                "value": ANY,
                "data-type": {"enum": list(DATA_TYPES)},
            },
        },
        NULL,
    ),
    Endpoint("POST", "/feedback", legacy, "Rate a request, the old way", None, NULL, documented=False),
    Endpoint(
        "POST",
        "/v1/request/{requestId}/score",
        score,
        "Add scores to a request",
        an_object("scores", scores={"type": "object", "additionalProperties": {"anyOf": [NUMBER, FLAG]}}),
        NULL,
        status=201,
    ),
    Endpoint(
        "POST",
        "/v1/evals/{requestId}",
        evaluation,
        "Add one score to a request",
        an_object("name score", name=TEXT, score=NUMBER),
        NULL,
        status=201,
    ),
    Endpoint(
        "PUT",
        "/v1/request/{requestId}/property",
        put_property,
        "Set a property of a request",
        an_object("key value", key=TEXT, value=TEXT),
        NULL,
    ),
)
