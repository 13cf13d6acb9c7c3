"""From a finished exchange to the row, the properties and the bodies that are kept of it.

exchange -> decoded bodies -> what the format reads -> usage (reported or estimated) -> cost -> record.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from heliproxy.bodies import Body
from heliproxy.decode import Decoder
from heliproxy.exchange import (
    STATUS_CANCELLED,
    STATUS_TIMEOUT,
    Ask,
    Exchange,
    Format,
    HeaderFields,
    Outcome,
    Reply,
    StreamParser,
    Usage,
)
from heliproxy.formats import FORMATS
from heliproxy.header_names import lower_name
from heliproxy.policies.cache import MAX_ENTRY_BYTES
from heliproxy.redact import redact_body, redact_form
from heliproxy.secrets import (
    REDACTED,
    STORED_REQUEST_HEADERS,
    STORED_RESPONSE_HEADERS,
    carried_secrets,
    credential,
    fingerprint,
    is_hidden,
    redact_path,
    redact_text,
    scrub,
    scrub_bytes,
    stored_headers,
)
from heliproxy.store import Record

DECODE_LIMIT = 16 * 1024 * 1024
"""Bytes of one decoded body we are willing to read; a longer one is passed on but not understood."""
STORED_LIMIT = 1024 * 1024
"""Bytes of one body that are kept."""
STREAM_LIMIT = 256 * 1024 * 1024
"""Decoded bytes of one stream we read before giving up on it (hours of tokens; a bomb is stopped)."""
PIECE = 4096
"""Bytes of a stream that are read in one go; some tenths of a millisecond."""
PLAUSIBLE_RATIO = 250
"""Decoded bytes for one encoded that a long body may have; event streams have about 20, bombs a thousand."""

USAGE_LIMIT = 64 * 1024
"""Characters of a provider's usage object that are kept."""

STREAM_TYPES = (
    "text/event-stream",
    "application/x-ndjson",
    "application/stream+json",
    "application/vnd.amazon.eventstream",
)


class Prices(Protocol):
    """The part of `pricing.Prices` that a record needs."""

    def cost(
        self, provider: str | None, models: Sequence[str], usage: Usage, at: datetime, pricing: Mapping[str, str]
    ) -> Any: ...


@dataclass(frozen=True, slots=True)
class Pricing:
    """What stays the same from record to record: the price table, the estimator, the install's secret."""

    prices: Prices
    estimate: Callable[..., Any]
    secret: bytes


@dataclass(slots=True)
class Twin:
    """The record of the first of some calls that are the same to the byte and were answered the same; None: not yet."""

    record: Record | None = None


Pause = Callable[[], None]
"""Called every few tenths of a millisecond by what takes longer, so that its thread can let others go first."""


def no_pause() -> None:
    """For a thread that nobody waits for."""


class Sink:
    """Takes a streamed response piece by piece: keeps its head, feeds the format's parser with the rest."""

    __slots__ = ("bomb", "broken", "decoded", "decoder", "head", "parser", "raw", "truncated")

    def __init__(self, exchange: Exchange, headers: Mapping[str, str] | None = None) -> None:
        headers = lower_headers(exchange.response_headers) if headers is None else headers
        content_type = headers.get("content-type", "")
        self.parser: StreamParser | None = None
        format = FORMATS.get(exchange.route.format)
        # Some servers stream without saying so: what the request asked for counts too.
        streamed = is_stream_type(content_type) or asked(exchange).stream
        if format is not None and is_success(exchange.status) and streamed:
            self.parser = format.stream(content_type)
        # One byte more than is read, so that what was cut off shows.
        limit = STREAM_LIMIT if self.parser is not None else DECODE_LIMIT + 1
        self.decoder = Decoder(headers.get("content-encoding"), limit)
        self.decoded = 0
        self.bomb = False
        self.head = bytearray()
        self.truncated = False
        self.broken: str | None = None
        self.raw: bytearray | None = bytearray() if exchange.keep_raw else None

    def feed(self, chunks: list[bytes], pause: Pause = no_pause) -> None:
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if self.raw is not None:
            self.raw += data
            if len(self.raw) > MAX_ENTRY_BYTES:
                self.raw = None
        for decoded in self.decoder.pieces(data):
            self._take(decoded, pause)
            self.decoded += len(decoded)
            taken = self.decoder.taken
            if self.decoded > DECODE_LIMIT and self.decoded > PLAUSIBLE_RATIO * taken:
                self.bomb = self.decoder.broken = self.truncated = True
                self.broken = self.broken or f"{taken} bytes decode to more than {DECODE_LIMIT}"

    def _take(self, decoded: bytes, pause: Pause) -> None:
        limit = STORED_LIMIT if self.parser is not None else DECODE_LIMIT
        room = limit - len(self.head)
        if len(decoded) > room:
            self.truncated = True
        if room > 0:
            self.head += decoded[:room]
        if self.parser is not None and self.broken is None:
            try:
                for piece in _pieces(decoded):
                    self.parser.feed(piece)
                    pause()
            except Exception as e:
                self.broken = f"{type(e).__name__}: {e}"


def _pieces(data: bytes) -> Iterator[bytes]:
    """The data in pieces of `PIECE` bytes at most, each with whole events where they fit into one."""
    start = 0
    while len(data) - start > PIECE:
        end = data.rfind(b"\n\n", start, start + PIECE) + 2
        if end < start + 2:
            end = start + PIECE
        yield data[start:end]
        start = end
    yield data[start:] if start else data


def asked(exchange: Exchange, headers: Mapping[str, str] | None = None) -> Ask:
    """What the request asks for, read once; empty when its format is unknown or cannot read it."""
    if exchange.ask is None:
        headers = lower_headers(exchange.request_headers) if headers is None else headers
        exchange.request_decoded = _decoded(exchange.request_body or b"", headers.get("content-encoding"))
        format = FORMATS.get(exchange.route.format)
        exchange.ask = Ask()
        if format is not None:
            try:
                exchange.ask = format.parse_request(exchange.request_decoded, exchange.path)
            except Exception as e:
                exchange.parse_error = f"request: {type(e).__name__}: {e}"
    return exchange.ask


def _decoded(body: bytes, encoding: str | None) -> bytes:
    """A body as it was meant; of one that is too long to be read, the part that is kept."""
    decoder = Decoder(encoding, DECODE_LIMIT, PLAUSIBLE_RATIO)
    pieces = list(decoder.pieces(body))
    if not decoder.full:
        return b"".join(pieces)
    return b"".join(pieces[: STORED_LIMIT // max(1, len(pieces[0])) + 1])[: STORED_LIMIT + 1]


def is_success(status: int | None) -> bool:
    return status is not None and 200 <= status < 300


def is_stream_type(content_type: str) -> bool:
    """Whether a response of this type is read piece by piece."""
    return content_type.partition(";")[0].strip().lower() in STREAM_TYPES


def lower_headers(fields: HeaderFields) -> dict[str, str]:
    """Header fields as a plain mapping with lower-case names; the first of several wins."""
    found: dict[str, str] = {}
    for name, value in fields:
        found.setdefault(lower_name(name), value.decode("utf-8", "surrogateescape"))
    return found


def utc_text(seconds: float) -> str:
    """Unix seconds as `2026-01-31T23:59:59.123Z`."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def build_record(exchange: Exchange, pricing: Pricing, pause: Pause = no_pause) -> tuple[Record, Outcome]:
    """Turn a finished exchange into what is stored of it, and into what after-the-fact policies need to know.

    A format that fails gives a record with `parse_error`; this function itself does not raise on any body.
    """
    request_headers = lower_headers(exchange.request_headers)
    response_headers = lower_headers(exchange.response_headers)
    ask = asked(exchange, request_headers)
    request = exchange.request_decoded
    reply, response, parse_error, truncated = _read(exchange, response_headers, pause)
    pause()
    truncated = truncated or len(request) > STORED_LIMIT or exchange.size_request is not None
    status, error_type, error = _status(exchange, reply)
    hit = exchange.cache == "HIT"
    row = _facts(exchange, ask, request_headers) | {
        "status": status,
        "error": error,
        "error_type": error_type,
        "stream": int(ask.stream or is_stream_type(response_headers.get("content-type", ""))),
        "cache": exchange.cache,
        "cache_reference_id": exchange.cache_reference_id,
        "attempts": len(exchange.attempts) or (0 if exchange.answered_here or exchange.answer_reason == "mock" else 1),
        "attempts_json": _attempts_json(exchange),
        "fallback_index": exchange.fallback_index,
        "parse_error": parse_error,
        "truncated": int(truncated),
        "incomplete": 0,
        "answer_preview": None if exchange.directives.omit_response else reply.preview or None,
        "finish_reason": reply.finish_reason,
        "response_id": reply.response_id,
        "service_tier": reply.pricing.get("tier") or ask.tier,
        "size_response": exchange.size_response,
    }
    row.update(_models(exchange, ask, reply))
    row.update(_times(exchange))
    row.update(_who(exchange, ask, request_headers, pricing.secret))
    if hit:
        row.update(usage_source="none", input_tokens=0, output_tokens=0, cache_read_tokens=0, cache_write_tokens=0)
        saved = exchange.find_saved() if exchange.find_saved is not None else exchange.saved_usd
        row.update(reasoning_tokens=0, cost_usd=0.0, cost_source="cache", saved_usd=saved)
        usage = reply.usage
    else:
        usage = _price(row, exchange, request, reply, pricing)
    pause()
    row["warning"] = "; ".join(exchange.warnings) or None
    secrets = _secrets_of(exchange)
    _keep_out(secrets, row)
    if response and is_hidden(f"{reply.text}\n{reply.error or ''}", response, secrets):
        response = REDACTED.encode()
    pause()
    body = _bodies(exchange, request, response, request_headers, response_headers, row, secrets)
    outcome = Outcome(
        status=status,
        # A client that hangs up right after the last event has the whole answer; any other early end is an error.
        complete=reply.complete and error is None,
        cost_usd=_total(row),
        usage=usage,
        row=row,
    )
    return Record(row, _properties(exchange, secrets), body), outcome


def twin_record(exchange: Exchange, first: Record) -> Record:
    """The record of a call that is the same to the byte as the one whose record this is."""
    own = {"id": exchange.id, "created_at": utc_text(exchange.created_at), **_times(exchange)}
    return Record({**first.row, **own}, first.properties, first.body)


def open_record(exchange: Exchange, secret: bytes) -> tuple[Record, Exchange]:
    """The row for the time being of a call that is not over, and the copy of the exchange it was made of.

    The event loop is at work on the exchange itself meanwhile, which is left as it is.
    """
    now = replace(exchange, ask=None, request_decoded=b"", chunks=[], warnings=[], attempts=[], after=[], sink=None)
    headers = lower_headers(now.request_headers)
    ask = asked(now, headers)
    row = _facts(now, ask, headers) | _models(now, ask, Reply()) | _who(now, ask, headers, secret)
    row["incomplete"] = 1
    row["stream"] = int(ask.stream)
    secrets = _secrets_of(now)
    _keep_out(secrets, row)
    return Record(row, _properties(now, secrets)), now


def bare_record(exchange: Exchange, reason: str, secret: bytes | None) -> tuple[Record, Outcome]:
    """The row of a call of which something could not be read: who, when, how long, and what HTTP says of it."""
    headers = lower_headers(exchange.request_headers)
    row = _facts(exchange, Ask(), headers) | _times(exchange) | _models(exchange, Ask(), Reply())
    try:
        row |= _who(exchange, Ask(), headers, secret) if secret is not None else {}
    except Exception as e:
        reason = f"{reason}; {type(e).__name__}: {e}"
    status, error_type, error = _status(exchange, Reply())
    row |= {
        "status": status,
        "error_type": error_type,
        "error": error,
        "cache": exchange.cache,
        "cache_reference_id": exchange.cache_reference_id,
        "attempts": len(exchange.attempts) or int(not exchange.answered_here),
        "fallback_index": exchange.fallback_index,
        "usage_source": "none",
        "parse_error": reason,
        "incomplete": 0,
        "size_response": exchange.size_response,
    }
    secrets = _secrets_of(exchange)
    _keep_out(secrets, row)
    record = Record(row, _properties(exchange, secrets))
    return record, Outcome(status=status, complete=False, cost_usd=None, usage=None, row=row)


def _facts(exchange: Exchange, ask: Ask, headers: Mapping[str, str]) -> dict[str, Any]:
    """What is the same from the beginning of a call to its end."""
    return {
        "id": exchange.id,
        "created_at": utc_text(exchange.created_at),
        "provider": exchange.route.provider,
        "host": exchange.route.host,
        "path": redact_path(exchange.path),
        "method": exchange.method,
        "format": exchange.route.format or None,
        "source": exchange.source,
        "run_id": exchange.run_id,
        "client": headers.get("user-agent"),
        "target_url": exchange.target_url,
        "preview": None if exchange.directives.omit_request else ask.preview or None,
        "size_request": len(exchange.request_body or b"") if exchange.size_request is None else exchange.size_request,
    }


_SAID = ("error", "warning", "parse_error")
"""Columns that quote a provider, or a header of the client's: perhaps a key that was put into the wrong one."""
_WORDS = ("preview", "answer_preview", "error")
"""Columns with a piece of a body: a tool's arguments, for one."""
_NO_ECHO = frozenset(
    ("id", "created_at", "provider", "host", "method", "format", "model", "request_model", "response_model")
)
"""Columns that a made-up key such as `lm-studio` must not take a word out of."""


def _secrets_of(exchange: Exchange) -> tuple[str, ...]:
    return carried_secrets((*exchange.request_headers, *(exchange.credential_headers or ())), exchange.path)


def _keep_out(secrets: Sequence[str], row: dict[str, Any]) -> None:
    """Providers and policies may echo a key in what they say about it."""
    for name in _SAID:
        if words := row.get(name):
            row[name] = redact_text(words)
    for name in _WORDS:
        if (words := row.get(name)) and '":' in words:
            row[name] = redact_body(words.encode("utf-8", "replace")).decode("utf-8", "replace")
    said = "\n".join([value for value in row.values() if type(value) is str])
    if any(map(said.__contains__, secrets)):
        for name, value in row.items():
            if type(value) is str and name not in _NO_ECHO:
                row[name] = scrub(value, secrets)


def _properties(exchange: Exchange, secrets: Sequence[str]) -> dict[str, str]:
    found = {**exchange.directives.properties, **exchange.properties}
    return {name: scrub(value, secrets) for name, value in found.items()} if secrets else found


def echoes_key(exchange: Exchange, raw: bytes) -> bool:
    """Whether an answer says a key of its request back: such a one is not kept for others. As for `is_whole`.

    `raw`: the answer as sent, looked into as far as it was decoded.
    """
    secrets = _secrets_of(exchange)
    if not secrets:
        return False
    reply, response, _, _ = _read(exchange, lower_headers(exchange.response_headers))
    said = b"\n".join((raw, response, *(value for _, value in exchange.response_headers)))
    return any(key in said for key in (secret.encode("utf-8", "surrogateescape") for secret in secrets)) or is_hidden(
        reply.text, said, secrets
    )


def is_whole(exchange: Exchange) -> bool:
    """Whether an answer is complete and no error. Reads what was collected of it, for good: call it when it is over."""
    reply, _, _, _ = _read(exchange, lower_headers(exchange.response_headers))
    _, _, error = _status(exchange, reply)
    return reply.complete and error is None


def _total(row: Mapping[str, Any]) -> float | None:
    """Everything the call cost, fees of hosted tools included; None when its price is not known."""
    cost: float | None = row.get("cost_usd")
    return None if cost is None else cost + (row.get("fees_usd") or 0.0)


def _read(
    exchange: Exchange, response_headers: Mapping[str, str], pause: Pause = no_pause
) -> tuple[Reply, bytes, str | None, bool]:
    """What the format makes of the response: (reply, decoded response, parse error, truncated)."""
    parse_error = exchange.parse_error
    if exchange.repeated:
        return _reply_again(exchange.repeated), b"", parse_error, False
    format = FORMATS.get(exchange.route.format)
    reply = Reply()
    sink: Sink | None = exchange.sink
    if sink is None:
        sink = exchange.sink = Sink(exchange, response_headers)
    if exchange.chunks:
        sink.feed(exchange.chunks, pause)
        exchange.chunks = []
    cut = sink.truncated and sink.parser is None
    response = bytes(sink.head[: STORED_LIMIT + 1]) if cut else bytes(sink.head)
    if format is not None and exchange.status is not None:
        try:
            # What was cut off is no JSON any more; reading 16 MiB of it only costs memory.
            reply = _reply(format, sink, exchange.status, b"" if cut else response, response_headers)
        except Exception as e:
            parse_error = f"response: {type(e).__name__}: {e}"
        if sink.broken or cut:
            parse_error = parse_error or sink.broken or f"response body is longer than {DECODE_LIMIT} bytes"
    return reply, response, parse_error, sink.truncated or len(response) > STORED_LIMIT


REPEATED = ("model", "response_model", "finish_reason", "answer_preview", "input_tokens", "output_tokens")
"""Columns of an answer's row that its cache entry keeps."""


def _reply_again(row: Mapping[str, Any]) -> Reply:
    model, reason, preview = (row.get(name) for name in ("response_model", "finish_reason", "answer_preview"))
    return Reply(model=model, finish_reason=reason, preview=preview or "")


def _reply(format: Format, sink: Sink, status: int, body: bytes, headers: Mapping[str, str]) -> Reply:
    if sink.parser is not None:
        return sink.parser.result()
    if not is_success(status):
        return format.parse_error(body)
    return format.parse_response(body, headers) if body else Reply()


def _status(exchange: Exchange, reply: Reply) -> tuple[int, str | None, str | None]:
    """The worst of HTTP status, in-stream error and early end, as (status, error type, error)."""
    if exchange.status_override is not None:
        return exchange.status_override, "prompt_threat", exchange.error
    if exchange.aborted == "timeout" and exchange.answered_here:
        return STATUS_TIMEOUT, "timeout", exchange.error
    if exchange.answered_here and exchange.error is not None:
        return exchange.status or 0, exchange.answer_reason, exchange.error
    if exchange.status is not None and not is_success(exchange.status):
        return exchange.status, reply.error_type, reply.error or exchange.error or f"HTTP {exchange.status}"
    if reply.error is not None or reply.error_type is not None:
        return reply.error_status or 500, reply.error_type, reply.error or reply.error_type
    if exchange.aborted == "timeout":
        return STATUS_TIMEOUT, "timeout", exchange.error or "timed out"
    streamed = exchange.sink is not None and exchange.sink.parser is not None
    whole = exchange.status is not None and streamed and reply.complete
    if exchange.aborted == "client" and not whole:
        return STATUS_CANCELLED, "client_cancelled", exchange.error or "client disconnected"
    if exchange.aborted == "upstream" and not whole:
        return exchange.status or 502, "upstream_failed", exchange.error or "upstream failed"
    if streamed and not reply.complete:
        return exchange.status or 502, "incomplete_stream", "the stream ended before its last event"
    return exchange.status or 0, None, None


def _attempts_json(exchange: Exchange) -> str | None:
    if len(exchange.attempts) < 2 and exchange.fallback_index is None:
        return None
    return json.dumps(
        [
            {
                "target": a.target,
                "status": a.status,
                "error": a.error,
                "duration_ms": round(a.duration_ms, 1),
                "fallback_index": a.fallback_index,
                "delay_ms": round(a.delay_ms, 1),
            }
            for a in exchange.attempts
        ]
    )


def _models(exchange: Exchange, ask: Ask, reply: Reply) -> dict[str, str | None]:
    request_model = ask.model or exchange.route.model
    override = exchange.directives.model_override
    return {
        "model": override or reply.model or request_model,
        "request_model": request_model,
        "response_model": reply.model,
    }


def _times(exchange: Exchange) -> dict[str, float | None]:
    ended = exchange.ended if exchange.ended is not None else exchange.started
    streamed = exchange.sink is not None and exchange.sink.parser is not None
    first = exchange.first_byte if streamed else None
    return {
        "latency_ms": round((ended - exchange.started) * 1000, 2),
        "ttft_ms": None if first is None else round((first - exchange.started) * 1000, 2),
    }


def _who(exchange: Exchange, ask: Ask, headers: Mapping[str, str], secret: bytes) -> dict[str, str | None]:
    directives = exchange.directives
    carried = headers if exchange.credential_headers is None else lower_headers(exchange.credential_headers)
    key = credential(carried, exchange.path)
    auth = directives.auth_value
    return {
        "user_id": directives.user_id or ask.user,
        "session_id": directives.session_id or _own_session(headers),
        "session_name": directives.session_name,
        "session_path": directives.session_path,
        "prompt_id": directives.prompt.id,
        "key_fingerprint": fingerprint(secret, key) if key else None,
        "auth_fingerprint": fingerprint(secret, auth) if auth else None,
    }


# Where coding agents name their own sessions: Claude Code, Codex, opencode.
_SESSION_HEADERS = ("x-claude-code-session-id", "session-id", "session_id", "x-session-id")


def _own_session(headers: Mapping[str, str]) -> str | None:
    return next((headers[name][:256] for name in _SESSION_HEADERS if headers.get(name)), None)


def _price(
    row: dict[str, Any],
    exchange: Exchange,
    request: bytes,
    reply: Reply,
    pricing: Pricing,
) -> Usage | None:
    """Fill in usage and cost; returns the usage the row was priced by."""
    usage, source, lower_bound = reply.usage, "none", 0
    mock = exchange.answer_reason == "mock"
    billable = exchange.status is not None and is_success(exchange.status) and not exchange.answered_here and not mock
    if mock:
        row.update(cost_usd=0.0, cost_source="mock")
    cut = not reply.complete and reply.error is None
    if usage is not None and not cut and usage.input_tokens is not None:
        source = "provider"
    elif billable and reply.error is None and exchange.route.format and not getattr(exchange.sink, "bomb", False):
        estimate = pricing.estimate(exchange.route.format, exchange.route.provider, row["model"], request, reply)
        if estimate is not None:
            usage, source, lower_bound = estimate.usage, "estimated", int(estimate.lower_bound or cut)
        elif usage is not None:
            source = "provider"
    row["usage_source"] = source
    row["lower_bound"] = lower_bound
    if reply.usage_json is not None:
        row["usage_json"] = _json_text(reply.usage_json)
    if usage is None:
        return None
    row.update(
        input_tokens=usage.input_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        cache_write_1h_tokens=usage.cache_write_1h_tokens,
        output_tokens=usage.output_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        input_audio_tokens=usage.input_audio_tokens,
        cache_read_audio_tokens=usage.cache_read_audio_tokens,
        output_audio_tokens=usage.output_audio_tokens,
        input_image_tokens=usage.input_image_tokens,
        output_image_tokens=usage.output_image_tokens,
    )
    if mock:
        return usage
    if reply.cost_usd is not None:
        row.update(cost_usd=reply.cost_usd, cost_source="provider")
        return usage
    context = dict(reply.pricing)
    if exchange.route.batch:
        context.setdefault("processing", "batch")
    models = _price_models(row, exchange)
    cost = pricing.prices.cost(
        exchange.route.price_provider or exchange.route.provider,
        models,
        usage,
        datetime.fromtimestamp(exchange.created_at, UTC),
        context,
    )
    if cost is not None:
        row.update(
            cost_usd=cost.usd,
            fees_usd=sum(cost.inferred.values()) or None,
            cost_source=cost.source,
            price_id=cost.price_id,
            price_version=cost.version,
        )
    return usage


def _json_text(value: Any) -> str | None:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))[:USAGE_LIMIT]
    except (ValueError, RecursionError):
        return None


def _price_models(row: Mapping[str, Any], exchange: Exchange) -> list[str]:
    """Model names to look a price up by, best first: the override, what answered, what was asked for."""
    names = [exchange.directives.model_override, row["response_model"], row["request_model"], exchange.route.model]
    if exchange.route.provider == "bedrock":
        # The path names the model as it is sold, region prefix included; bodies name it in other words or not at all.
        names.insert(1, exchange.route.model)
    return list(dict.fromkeys(name for name in names if name))


def _bodies(
    exchange: Exchange,
    request: bytes,
    response: bytes,
    request_headers: Mapping[str, str],
    response_headers: Mapping[str, str],
    row: Mapping[str, Any],
    secrets: Sequence[str],
) -> Body | None:
    directives = exchange.directives
    if directives.omit_request and directives.omit_response:
        return None
    if directives.omit_request:
        request = _omitted(row["request_model"])
    if directives.omit_response:
        response = _omitted(row["response_model"] or row["model"])
    if exchange.cache == "HIT":
        response = b""
    request = redact_body(scrub_bytes(request[:STORED_LIMIT], secrets))
    return Body(
        request=redact_form(request, request_headers.get("content-type", "").lower()),
        response=redact_body(scrub_bytes(response[:STORED_LIMIT], secrets)),
        request_type=request_headers.get("content-type"),
        response_type=response_headers.get("content-type"),
        request_headers=stored_headers(exchange.request_headers, STORED_REQUEST_HEADERS, secrets),
        response_headers=stored_headers(exchange.response_headers, STORED_RESPONSE_HEADERS, secrets),
    )


def _omitted(model: str | None) -> bytes:
    return json.dumps({"model": model}).encode()
