"""Where calls are told that were made elsewhere: manual logs, OTLP traces, legacy runs (helicone-api.md 1.8, 2)."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.responses import JSONResponse, PlainTextResponse, Response

from heliproxy.api.endpoint import ANY, FLAG, TEXT, Api, Call, Endpoint, a_list, an_object, failure
from heliproxy.api.errors import ApiError, bad
from heliproxy.api.fields import TOO_LARGE, parse_json
from heliproxy.api.objects import get_object, put_object
from heliproxy.ingest import PATH_PROVIDERS, LogError, check_log
from heliproxy.ingest_otlp import OtlpError, read_json, read_protobuf, span_exchanges

BUSY = "logs come faster than they can be written; send this one again"
STATUSES = ("PENDING", "RUNNING", "SUCCESS", "FAILED", "CANCELLED")


@dataclass(frozen=True, slots=True)
class LogPath:
    """What one path of manual logs asks of them, and how it answers."""

    provider: str
    strict: bool = False
    envelope: bool = True
    """Of a body that is no JSON at all: told in the envelope of the REST API, else as the worker tells it."""
    typed: bool = False
    """What is wrong is answered as a list of fields."""


LOG_PATHS = {f"/{name}/v1/log": LogPath(provider, True, False) for name, provider in PATH_PROVIDERS.items()} | {
    "/v1/trace/custom/log": LogPath("custom"),
    "/v1/trace/custom/v1/log": LogPath("custom"),
    "/v1/trace/custom/log/typed": LogPath("custom", typed=True),
}


async def manual(call: Call) -> Response:
    """A manual log: 200 `ok`, with the id of the new request in a header, or what is wrong with it."""
    path = LOG_PATHS[call.request.scope["path"]]
    try:
        raw = await call.body()
    except ApiError as e:
        return refusal(path, e)
    return answer_log(call.api, path, call.headers, raw)


def answer_log(api: Api, path: LogPath, headers: Sequence[tuple[str, str]], raw: bytes) -> Response:
    """Check a log and hand it to the recorder; the answer says what became of it."""
    try:
        log = check_log(parse_json(raw), path.provider, headers, api.clock(), strict=path.strict)
    except LogError as e:
        if path.typed:
            return JSONResponse({"isValid": False, "errors": [{"field": e.field, "message": str(e)}]}, 400)
        return JSONResponse({"error": str(e)}, 400)
    except ApiError as e:
        return refusal(path, e)
    if not api.recorder.take(lambda: (log.exchange(raw),), len(raw)):
        return busy(path)
    if path.typed:
        return JSONResponse({"isValid": True, "errors": []}, headers={"helicone-id": log.id})
    return PlainTextResponse("ok", headers={"helicone-id": log.id})


def refusal(path: LogPath, error: ApiError) -> Response:
    """The answer to a body that cannot be read."""
    if path.envelope:
        return failure(error.message, error.status)
    if error.message == TOO_LARGE:
        return PlainTextResponse(TOO_LARGE, 400)
    return JSONResponse({"error": error.message}, error.status)


def busy(path: LogPath | None = None) -> Response:
    """The answer to logs for which there is no room: nothing of them is kept, and they may be sent again."""
    response = failure(BUSY, 503) if path is None or path.envelope else JSONResponse({"error": BUSY}, 503)
    response.headers["retry-after"] = "1"
    return response


async def traces(call: Call) -> Response:
    """An OTLP export, JSON or protobuf by its content type; nothing is stored of one that cannot be read whole."""
    raw = await call.body()
    kind = call.request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        spans = read_json(raw) if kind.endswith("json") else read_protobuf(raw)
    except OtlpError as e:
        raise bad(str(e)) from e
    headers, now = call.headers, call.api.clock()
    if not call.api.recorder.take(lambda: span_exchanges(spans, headers, now), len(raw)):
        return busy()
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
    Endpoint("POST", "/v1/trace/custom/log", manual, "Log a call", LOOSE_LOG, raw=TEXT, media=PLAIN),
    Endpoint("POST", "/v1/trace/custom/v1/log", manual, "Log a call", LOOSE_LOG, raw=TEXT, media=PLAIN),
    Endpoint("POST", "/v1/trace/custom/log/typed", manual, "Log a call, checked", LOOSE_LOG, raw=VALID),
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
