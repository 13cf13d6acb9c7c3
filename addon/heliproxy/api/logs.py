"""Where calls are told that were made elsewhere: manual logs, OTLP traces, legacy runs (helicone-api.md 1.8, 2)."""

from __future__ import annotations

import uuid
from typing import Any

from starlette.responses import JSONResponse, PlainTextResponse, Response

from heliproxy.api.endpoint import ANY, FLAG, TEXT, Call, Endpoint, a_list, an_object
from heliproxy.api.errors import ApiError, bad
from heliproxy.api.fields import TOO_LARGE, parse_json
from heliproxy.api.objects import get_object, put_object
from heliproxy.exchange import Exchange
from heliproxy.ingest import PATH_PROVIDERS, LogError, log_exchange
from heliproxy.ingest_otlp import OtlpError, read_json, read_protobuf, span_exchanges

STATUSES = ("PENDING", "RUNNING", "SUCCESS", "FAILED", "CANCELLED")


async def manual(call: Call) -> Response:
    """A manual log: 200 `ok`, with the id of the new request in a header."""
    provider = PATH_PROVIDERS[call.request.url.path.split("/")[1]]
    try:
        exchange = log_exchange(await _log_body(call), provider, call.headers, call.api.clock())
    except LogError as e:
        return JSONResponse({"error": str(e)}, 400)
    except ApiError as e:
        if e.message == TOO_LARGE:
            return PlainTextResponse(TOO_LARGE, 400)
        return JSONResponse({"error": e.message}, e.status)
    call.api.recorder.finish(exchange)
    return _ok(exchange)


async def _log_body(call: Call) -> Any:
    return parse_json(await call.body())


def _ok(exchange: Exchange) -> Response:
    return PlainTextResponse("ok", headers={"helicone-id": exchange.id})


async def custom(call: Call) -> Response:
    """The same body on the trace paths; times may be left out."""
    try:
        exchange = log_exchange(await _log_body(call), "custom", call.headers, call.api.clock(), strict=False)
    except LogError as e:
        return JSONResponse({"error": str(e)}, 400)
    call.api.recorder.finish(exchange)
    return _ok(exchange)


async def typed(call: Call) -> Response:
    """The same again; what is wrong is answered as a list of fields."""
    try:
        exchange = log_exchange(await _log_body(call), "custom", call.headers, call.api.clock(), strict=False)
    except LogError as e:
        errors = [{"field": e.field, "message": str(e)}]
        return JSONResponse({"isValid": False, "errors": errors}, 400)
    call.api.recorder.finish(exchange)
    return JSONResponse({"isValid": True, "errors": []}, headers={"helicone-id": exchange.id})


async def traces(call: Call) -> Response:
    """An OTLP export, JSON or protobuf by its content type; nothing is stored of one that cannot be read whole."""
    raw = await call.body()
    kind = call.request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        spans = read_json(raw) if kind.endswith("json") else read_protobuf(raw)
    except OtlpError as e:
        raise bad(str(e)) from e
    for exchange in span_exchanges(spans, call.headers, call.api.clock()):
        call.api.recorder.finish(exchange)
    if kind.endswith("json"):
        return JSONResponse({})
    return Response(b"", media_type="application/x-protobuf")


# -- legacy runs ----------------------------------------------------------------------------------------------------


async def create_run(call: Call) -> Response:
    """A job, or a node of one."""
    kind = call.request.url.path.strip("/").split("/")[-1]
    fields = await call.fields()
    run_id = fields.text("id", "", limit=200) or str(uuid.uuid4())
    run = {**fields.values, "id": run_id, "status": fields.choice("status", STATUSES, "PENDING")}
    await call.write(lambda writer: put_object(writer, kind, run_id, run))
    return JSONResponse({"data": run, "error": None})


async def run_status(call: Call) -> Response:
    kind = call.request.url.path.strip("/").split("/")[-3]
    run_id = call.path("runId")
    fields = await call.fields()
    status = fields.choice("status", STATUSES, "")
    if not status:
        raise bad(f"'status' should be one of {', '.join(STATUSES)}")
    known = await call.read(lambda conn: get_object(conn, kind, run_id))
    run = {**(known or {"id": run_id}), "status": status}
    await call.write(lambda writer: put_object(writer, kind, run_id, run))
    return JSONResponse({"data": run, "error": None})


LOG = an_object(
    "providerRequest providerResponse timing",
    providerRequest=an_object("url json meta", url=TEXT, json=ANY, meta={"type": "object"}),
    providerResponse=an_object(
        "status", json=ANY, textBody={"type": "string"}, status={"type": "integer"}, headers={"type": "object"}
    ),
    timing={"type": "object"},
    provider=TEXT,
)
LOOSE_LOG = {**LOG, "required": ["providerRequest", "providerResponse"]}
RUN = an_object(id=TEXT, name=TEXT, description=TEXT, customProperties={"type": "object"})
STATUS = an_object("status", status={"enum": list(STATUSES)})
VALID = an_object("isValid errors", isValid=FLAG, errors=a_list(an_object(field=TEXT, message=TEXT)))
PLAIN = "text/plain"
ENDPOINTS = (
    *(
        Endpoint("POST", f"/{name}/v1/log", manual, f"Log a call ({name})", LOG, raw=TEXT, media=PLAIN)
        for name in PATH_PROVIDERS
    ),
    Endpoint("POST", "/v1/trace/custom/log", custom, "Log a call", LOOSE_LOG, raw=TEXT, media=PLAIN),
    Endpoint("POST", "/v1/trace/custom/v1/log", custom, "Log a call", LOOSE_LOG, raw=TEXT, media=PLAIN),
    Endpoint("POST", "/v1/trace/custom/log/typed", typed, "Log a call, checked", LOOSE_LOG, raw=VALID),
    *(
        Endpoint("POST", path, traces, "Take OTLP spans", an_object(resourceSpans=a_list(ANY)), raw={"type": "object"})
        for path in ("/v1/traces", "/v1/trace/log", "/v1/trace/log-python")
    ),
    *(
        Endpoint(method, f"{prefix}/{kind}{tail}", handler, summary, body, documented=not prefix)
        for prefix in ("", "/v1")
        for kind in ("job", "node")
        for method, tail, handler, summary, body in (
            ("POST", "", create_run, f"Create a {kind}", RUN),
            ("PATCH", "/{runId}/status", run_status, f"Set the status of a {kind}", STATUS),
        )
    ),
)
