"""Where calls are told that were made elsewhere: manual logs, OTLP traces, legacy runs (helicone-api.md 1.8, 2)."""

from __future__ import annotations

import marshal
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from anyio import to_thread
from starlette.responses import JSONResponse, PlainTextResponse, Response

from heliproxy.api.endpoint import ANY, FLAG, TEXT, Api, Call, Endpoint, a_list, an_object, failure
from heliproxy.api.errors import ApiError, bad
from heliproxy.api.fields import TOO_LARGE, parse_json
from heliproxy.api.objects import get_object, put_object
from heliproxy.exchange import Exchange
from heliproxy.ids import new_request_id
from heliproxy.ingest import PATH_PROVIDERS, LogError, ManualLog, check_log
from heliproxy.ingest_otlp import OtlpError, Span, read_json, read_protobuf, span_exchanges

if TYPE_CHECKING:
    from heliproxy.recorder import Recorder

BIG = 64 * 1024
"""Bytes of a body past which it is not decoded on the event loop."""
HUGE = 1024 * 1024
"""Bytes of a body past which it is not decoded in this process."""
KEPT_HEADERS = frozenset(("authorization", "user-agent", "content-type"))

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


async def take_logs(call: Call) -> Response:
    """A manual log or an OTLP export."""
    path = call.request.scope["path"]
    try:
        raw = await call.body()
    except ApiError as e:
        return refusal(LOG_PATHS.get(path), e)
    return await answer_anywhere(call.api, path, call.headers, raw)


async def answer_anywhere(api: Api, path: str, headers: Sequence[tuple[str, str]], raw: bytes) -> Response:
    """Answer logs where it holds up calls least: beside this process once logs are read there, large ones always.

    To decode JSON of some megabytes takes a tenth of a second in which nothing else moves in a process.
    """
    posted = Posted(path, tuple(kept(headers)), raw, api.clock())
    beside = api.recorder.beside
    if beside is not None and (beside.counts_one() or len(raw) > HUGE):
        # Should it fail after it has taken the log, there will be one row of this id all the same.
        posted = replace(posted, id=new_request_id(int(posted.now * 1000)))
        answer = await beside.ask(posted)
        if answer is not None:
            return answer
    take = taker(api.recorder)
    return await to_thread.run_sync(answer_log, posted, take) if len(raw) > BIG else answer_log(posted, take)


@dataclass(frozen=True, slots=True)
class Posted:
    """Logs as they came, with all that is needed to read them again in another process to the same rows."""

    path: str
    headers: tuple[tuple[str, str], ...]
    raw: bytes
    now: float
    """Unix seconds at their arrival."""
    id: str | None = None
    """Of a manual log that brings none of its own."""

    def dump(self) -> bytes:
        return marshal.dumps((self.path, self.headers, self.raw, self.now, self.id))


def load_posted(data: bytes) -> Posted:
    """What `dump` gave, in this process or another one of the same Python."""
    return Posted(*marshal.loads(data))  # noqa: S302 - from our own process, by memory that is ours alone


Read = Callable[[], Iterable[Exchange]]
Take = Callable[[Posted, Read], bool]
"""Takes logs that were found to be in order, and what reads them; False when there is no room."""


def taker(recorder: Recorder) -> Take:
    """For logs that are read in this process."""
    return lambda posted, read: recorder.take(read, len(posted.raw))


def kept(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those header fields that mean something to a log."""
    return [pair for pair in headers if pair[0].lower() in KEPT_HEADERS or pair[0][:9].lower() == "helicone-"]


def answer_log(posted: Posted, take: Take) -> Response:
    """Check logs and hand them to `take`; the answer says what became of them."""
    path = LOG_PATHS.get(posted.path)
    if path is None:
        return answer_traces(posted, take)
    try:
        log = check(posted, path)
    except LogError as e:
        if path.typed:
            return JSONResponse({"isValid": False, "errors": [{"field": e.field, "message": str(e)}]}, 400)
        return JSONResponse({"error": str(e)}, 400)
    except ApiError as e:
        return refusal(path, e)
    if not take(replace(posted, id=log.id), lambda: (log.exchange(posted.raw),)):
        return busy(path)
    if path.typed:
        return JSONResponse({"isValid": True, "errors": []}, headers={"helicone-id": log.id})
    return PlainTextResponse("ok", headers={"helicone-id": log.id})


def check(posted: Posted, path: LogPath) -> ManualLog:
    """Raises LogError or ApiError."""
    value = parse_json(posted.raw)
    return check_log(value, path.provider, posted.headers, posted.now, strict=path.strict, fresh_id=posted.id)


def answer_traces(posted: Posted, take: Take) -> Response:
    """An OTLP export, JSON or protobuf by its content type; nothing is stored of one that cannot be read whole."""
    try:
        spans = read_spans(posted)
    except OtlpError as e:
        return failure(str(e), 400)
    if not take(posted, lambda: span_exchanges(spans, posted.headers, posted.now)):
        return busy()
    if is_json(posted):
        return JSONResponse({})
    return Response(b"", media_type="application/x-protobuf")


def is_json(posted: Posted) -> bool:
    kind = next((value for name, value in posted.headers if name.lower() == "content-type"), "")
    return kind.partition(";")[0].strip().lower().endswith("json")


def read_spans(posted: Posted) -> list[Span]:
    """Raises OtlpError."""
    return read_json(posted.raw) if is_json(posted) else read_protobuf(posted.raw)


def read_again(posted: Posted) -> Iterable[Exchange]:
    """The exchanges of logs that were found to be in order before, in this process or another one."""
    path = LOG_PATHS.get(posted.path)
    if path is None:
        return span_exchanges(read_spans(posted), posted.headers, posted.now)
    return (check(posted, path).exchange(posted.raw),)


def refusal(path: LogPath | None, error: ApiError) -> Response:
    """The answer to a body that cannot be read."""
    if path is None or path.envelope:
        return failure(error.message, error.status)
    if error.message == TOO_LARGE:
        return PlainTextResponse(TOO_LARGE, 400)
    return JSONResponse({"error": error.message}, error.status)


def busy(path: LogPath | None = None) -> Response:
    """The answer to logs for which there is no room: nothing of them is kept, and they may be sent again."""
    response = failure(BUSY, 503) if path is None or path.envelope else JSONResponse({"error": BUSY}, 503)
    response.headers["retry-after"] = "1"
    return response


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
        Endpoint("POST", f"/{name}/v1/log", take_logs, f"Log a call ({name})", LOG, raw=TEXT, media=PLAIN)
        for name in PATH_PROVIDERS
    ),
    Endpoint("POST", "/v1/trace/custom/log", take_logs, "Log a call", LOOSE_LOG, raw=TEXT, media=PLAIN),
    Endpoint("POST", "/v1/trace/custom/v1/log", take_logs, "Log a call", LOOSE_LOG, raw=TEXT, media=PLAIN),
    Endpoint("POST", "/v1/trace/custom/log/typed", take_logs, "Log a call, checked", LOOSE_LOG, raw=VALID),
    *(
        Endpoint(
            "POST", path, take_logs, "Take OTLP spans", an_object(resourceSpans=a_list(ANY)), raw={"type": "object"}
        )
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
