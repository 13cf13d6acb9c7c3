"""Calls told as OpenTelemetry spans: OTLP over HTTP, JSON or protobuf, as Exchanges.

Attribute names: Traceloop's (`gen_ai.prompt.0.content`, `llm.usage.*`, `traceloop.association.properties.*`) and the
GenAI semantic conventions, old (`gen_ai.system`, `prompt_tokens`) and current (`gen_ai.provider.name`,
`input_tokens`, `gen_ai.input.messages`). Input tokens include cached ones in both. A span that is no model's call
makes no row. Trace, span and parent ids are kept as properties, and sending a span again replaces its row.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from heliproxy import hosts
from heliproxy.exchange import Exchange, Reply, Usage
from heliproxy.formats.reading import MAX_MESSAGE, amount, clean, count, first_count, string
from heliproxy.hosts import Route
from heliproxy.ids import new_request_id
from heliproxy.ingest import LATEST, Told, directives_of, kept_headers, provider_name
from heliproxy.redact import redact

if TYPE_CHECKING:
    from heliproxy.directives import Directives

MAX_SPANS = 10_000
_IDS = uuid.UUID("6d1c1f0e-3c1b-4d0a-9a53-0f6e3b1d2c4e")
"""Namespace of request ids made of a trace and a span id."""
_ASSOCIATION = "traceloop.association.properties."
_PROVIDERS = {
    "az.ai.openai": "azure", "azure.ai.openai": "azure", "azure.ai.inference": "azure", "aws.bedrock": "bedrock",
    "awsbedrock": "bedrock", "aws": "bedrock", "gcp.gemini": "google", "gemini": "google", "gcp.gen-ai": "google",
    "gcp.vertex-ai": "vertex", "vertexai": "vertex", "vertex-ai": "vertex", "mistral-ai": "mistral",
    "mistralai": "mistral", "x-ai": "x-ai", "xai": "x-ai",
}  # fmt: skip
_KEYS = ("gen_ai.system", "gen_ai.provider.name", "gen_ai.request.model", "gen_ai.operation.name", "llm.request.type")
_NO_CALLS = ("execute_tool", "invoke_agent", "create_agent", "invoke_workflow")
"""Operations of the GenAI conventions that are not themselves a call to a model."""
_INDEXED = re.compile(r"(?:gen_ai|llm)\.(prompt|completion)s?\.(\d{1,5})\.(.+)")


class OtlpError(ValueError):
    """A body that is no trace export; the message says where it goes wrong."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened during a span."""

    time_ns: int
    name: str
    attributes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Span:
    """One span, ids in hex, attribute values as plain JSON values."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Any]
    events: tuple[Event, ...] = ()
    failed: bool = False
    message: str = ""
    resource: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_call(self) -> bool:
        """Whether the span is one call to a model."""
        if self.attributes.get("gen_ai.operation.name") in _NO_CALLS:
            return False
        return any(key in self.attributes for key in _KEYS)


# -- reading: protobuf ----------------------------------------------------------------------------------------------


def read_protobuf(data: bytes) -> list[Span]:
    """Spans of a binary ExportTraceServiceRequest. Raises OtlpError."""
    # Imported when the first such body comes: protobuf is slow to load, and most people never send one.
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    request = ExportTraceServiceRequest()
    try:
        request.ParseFromString(data)
    except (DecodeError, RecursionError, ValueError) as e:
        raise OtlpError("the body is not an OTLP ExportTraceServiceRequest in protobuf") from e
    spans: list[Span] = []
    for resource_spans in request.resource_spans:
        resource = {pair.key: _any_value(pair.value) for pair in resource_spans.resource.attributes}
        for scope_spans in resource_spans.scope_spans:
            spans += [_span_of_message(span, resource) for span in scope_spans.spans]
            if len(spans) > MAX_SPANS:
                raise OtlpError(f"more than {MAX_SPANS} spans in one export")
    return spans


def _span_of_message(span: Any, resource: Mapping[str, Any]) -> Span:
    return Span(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        name=span.name,
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes={pair.key: _any_value(pair.value) for pair in span.attributes},
        events=tuple(
            Event(event.time_unix_nano, event.name, {pair.key: _any_value(pair.value) for pair in event.attributes})
            for event in span.events
        ),
        failed=span.status.code == 2,
        message=span.status.message,
        resource=resource,
    )


def _any_value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [_any_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {pair.key: _any_value(pair.value) for pair in value.kvlist_value.values}
    found = getattr(value, kind)
    return found.decode("utf-8", "replace") if isinstance(found, bytes) else found


# -- reading: JSON --------------------------------------------------------------------------------------------------


def read_json(data: bytes) -> list[Span]:
    """Spans of an OTLP/JSON body: ids in hex, times as strings or numbers, enums as numbers or names.

    Raises OtlpError.
    """
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise OtlpError("the body is not valid JSON") from e
    spans: list[Span] = []
    for i, resource_spans in enumerate(_list(_object(body, "body"), "resourceSpans", "")):
        where = f"resourceSpans[{i}]"
        resource = _attributes(_object(resource_spans.get("resource"), f"{where}.resource"), f"{where}.resource")
        scopes = _list(resource_spans, "scopeSpans", f"{where}.")
        scopes += _list(resource_spans, "instrumentationLibrarySpans", f"{where}.")
        for j, scope_spans in enumerate(scopes):
            inner = f"{where}.scopeSpans[{j}]"
            for k, span in enumerate(_list(scope_spans, "spans", f"{inner}.")):
                spans.append(_span_of_json(span, f"{inner}.spans[{k}]", resource))
                if len(spans) > MAX_SPANS:
                    raise OtlpError(f"more than {MAX_SPANS} spans in one export")
    return spans


def _span_of_json(span: dict[str, Any], where: str, resource: Mapping[str, Any]) -> Span:
    status = _object(span.get("status"), f"{where}.status")
    code = status.get("code")
    return Span(
        trace_id=_hex(span, "traceId", where),
        span_id=_hex(span, "spanId", where),
        parent_id=_hex(span, "parentSpanId", where),
        name=_text(span, "name", where),
        start_ns=_nanoseconds(span, "startTimeUnixNano", where),
        end_ns=_nanoseconds(span, "endTimeUnixNano", where),
        attributes=_attributes(span, where),
        events=tuple(
            Event(
                _nanoseconds(event, "timeUnixNano", f"{where}.events[{i}]"),
                _text(event, "name", f"{where}.events[{i}]"),
                _attributes(event, f"{where}.events[{i}]"),
            )
            for i, event in enumerate(_list(span, "events", f"{where}."))
        ),
        failed=code in (2, "2", "STATUS_CODE_ERROR"),
        message=_text(status, "message", f"{where}.status"),
        resource=resource,
    )


def _object(value: Any, where: str) -> dict[str, Any]:
    if value is None and where != "body":
        return {}
    if not isinstance(value, dict):
        raise OtlpError(f"{where} is not an object")
    return value


def _list(holder: dict[str, Any], name: str, where: str) -> list[dict[str, Any]]:
    value = holder.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise OtlpError(f"{where}{name} is not a list")
    return [_object(item, "body" if item is None else f"{where}{name}[{i}]") for i, item in enumerate(value)]


def _text(holder: dict[str, Any], name: str, where: str) -> str:
    value = holder.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise OtlpError(f"{where}.{name} is not a string")
    return clean(value)


def _hex(holder: dict[str, Any], name: str, where: str) -> str:
    text = _text(holder, name, where).lower()
    if len(text) > 64 or re.search(r"[^0-9a-f]", text):
        raise OtlpError(f"{where}.{name} is not in hexadecimal")
    return text


def _nanoseconds(holder: dict[str, Any], name: str, where: str) -> int:
    value = holder.get(name)
    if value is None:
        return 0
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 20:
        return int(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**64:
        return int(value)
    raise OtlpError(f"{where}.{name} is not a time in nanoseconds")


def _attributes(holder: dict[str, Any], where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for i, pair in enumerate(_list(holder, "attributes", f"{where}.")):
        key = pair.get("key")
        if not isinstance(key, str):
            raise OtlpError(f"{where}.attributes[{i}].key is not a string")
        found[clean(key)] = _json_value(pair.get("value"), f"{where}.attributes[{i}].value")
    return found


def _json_value(value: Any, where: str, depth: int = 0) -> Any:
    """An AnyValue; an empty one is no value."""
    value = _object(value, where)
    if depth > 50:
        raise OtlpError(f"{where} is nested too deeply")
    for kind, inner in value.items():
        if kind in ("stringValue", "boolValue", "doubleValue", "bytesValue"):
            return clean(inner) if isinstance(inner, str) else inner if isinstance(inner, bool | int | float) else None
        if kind == "intValue":
            if isinstance(inner, str) and re.fullmatch(r"-?\d{1,20}", inner):
                return int(inner)
            return inner if isinstance(inner, int | float) else None
        if kind == "arrayValue":
            items = _list(_object(inner, where), "values", f"{where}.")
            return [_json_value(item, where, depth + 1) for item in items]
        if kind == "kvlistValue":
            pairs = _list(_object(inner, where), "values", f"{where}.")
            return {str(p.get("key")): _json_value(p.get("value"), where, depth + 1) for p in pairs}
    return None


# -- spans to exchanges ---------------------------------------------------------------------------------------------


def span_exchanges(spans: Iterable[Span], headers: Iterable[tuple[str, str]], now: float) -> list[Exchange]:
    """The exchanges of all spans that are calls to a model. The export's own `Helicone-*` headers hold for all of
    them, unless a span's association properties say otherwise."""
    fields = [(name, value) for name, value in headers if isinstance(value, str)]
    calls = [span for span in spans if span.is_call]
    if len(calls) > 1:  # one id cannot be that of several calls
        fields = [(name, value) for name, value in fields if name.lower() != "helicone-request-id"]
    return [span_exchange(span, fields, now) for span in calls]


def span_exchange(span: Span, fields: list[tuple[str, str]], now: float) -> Exchange:
    """The exchange of one span."""
    get = span.attributes.get
    directives = _directives(span, fields)
    start, end, ttft = _times(span, now)
    form = _format(span)
    provider, host = _provider(span)
    asked = redact(_request_body(span, form))
    answer = _Answer(span, form)
    body = answer.body()
    exchange = Exchange(
        id=directives.request_id or _request_id(span, start),
        created_at=start,
        started=0.0,
        route=Route(provider, host, form, None, inference=True, model=string(get("gen_ai.request.model"))),
        directives=directives,
        method="POST",
        path="/" + span.name,
        request_headers=kept_headers(fields, "application/json"),
        request_body=json.dumps(asked, ensure_ascii=False).encode("utf-8", "replace"),
        source="otlp",
        status=answer.status,
        response_headers=((b"content-type", b"application/json"),),
        size_response=len(body),
        ended=max(0.0, end - start),
        first_byte=ttft,
        finished=True,
        properties=_trace_properties(span),
        warnings=list(directives.warnings),
    )
    exchange.sink = Told(body, answer.reply)
    return exchange


def _request_id(span: Span, start: float) -> str:
    if span.trace_id.strip("0") and span.span_id.strip("0"):
        return str(uuid.uuid5(_IDS, f"{span.trace_id}:{span.span_id}"))
    return new_request_id(int(start * 1000))


def _times(span: Span, now: float) -> tuple[float, float, float | None]:
    """(start, end, seconds to the first chunk of a stream)."""
    start, end = span.start_ns / 1e9, span.end_ns / 1e9
    if not 0 < start < LATEST:
        start = now
    if not start <= end < LATEST:
        end = start
    chunks = [e.time_ns / 1e9 for e in span.events if e.name.endswith("content.completion.chunk")]
    told = amount(span.attributes.get("gen_ai.response.time_to_first_chunk"))
    ttft = told if told is not None else min(chunks) - start if chunks and min(chunks) >= start else None
    return start, end, ttft


def _directives(span: Span, fields: list[tuple[str, str]]) -> Directives:
    """HTTP headers, over them the span's association properties; plain ones become properties as well."""
    merged = {name.lower(): value for name, value in fields if name[:9].lower() == "helicone-"}
    authorization = next((value for name, value in fields if name.lower() == "authorization"), "")
    for key, value in span.attributes.items():
        if not key.startswith(_ASSOCIATION) or not isinstance(value, str | int | float) or len(key) > 200:
            continue
        name = key.removeprefix(_ASSOCIATION)
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if name[:9].lower() == "helicone-":
            merged[name.lower()] = text
        elif name:
            merged.setdefault(f"helicone-property-{name.lower()}", text)
    merged.setdefault("helicone-session-id", _first_text(span, "session.id", "gen_ai.conversation.id") or "")
    user = _first_text(span, "llm.user", "gen_ai.request.user", "enduser.id", "user.id")
    if user is not None and user != "None":
        merged.setdefault("helicone-user-id", user)
    return directives_of(None, [*((n, v) for n, v in merged.items() if v), ("authorization", authorization)])


def _first_text(span: Span, *names: str) -> str | None:
    return next((found for name in names if (found := string(span.attributes.get(name))) is not None), None)


def _trace_properties(span: Span) -> dict[str, str]:
    """Where the span stands in its trace."""
    service = string(span.resource.get("service.name"))
    found = {
        "otel-trace-id": span.trace_id,
        "otel-span-id": span.span_id,
        "otel-parent-span-id": span.parent_id.strip("0") and span.parent_id,
        "otel-span-name": span.name[:200],
        "otel-service-name": service,
    }
    return {name: value for name, value in found.items() if value}


def _provider(span: Span) -> tuple[str, str]:
    """(provider, host): by the span's own words, else by the address it called."""
    host = _first_text(span, "server.address", "gen_ai.openai.api_base", "llm.base_url") or ""
    host = host.partition("://")[2].partition("/")[0] or host.partition("/")[0]
    host = host.partition("?")[0].rpartition("@")[2]
    named = provider_name(_first_text(span, "gen_ai.provider.name", "gen_ai.system", "llm.vendor", "llm.system"))
    if named is not None:
        return _PROVIDERS.get(named, named), host
    return hosts.provider_for_host(host) or "custom", host


def _format(span: Span) -> str:
    kind = str(span.attributes.get("gen_ai.operation.name") or span.attributes.get("llm.request.type") or "").lower()
    if kind.startswith("embed"):
        return "openai_embeddings"
    if kind == "rerank":
        return "cohere_rerank"
    return "openai_chat"


# -- bodies ---------------------------------------------------------------------------------------------------------


def _request_body(span: Span, form: str) -> dict[str, Any]:
    """The request as an OpenAI-style body, which is what Helicone shows for a span."""
    get = span.attributes.get
    body: dict[str, Any] = {"model": get("gen_ai.request.model")}
    messages = _prompts(span)
    if form != "openai_chat":
        texts = [message["content"] for message in messages if isinstance(message.get("content"), str)]
        body["query" if form == "cohere_rerank" else "input"] = texts[0] if len(texts) == 1 else texts
    else:
        body["messages"] = messages
        tools = _tools(span)
        if tools:
            body["tools"] = tools
    for name in ("max_tokens", "temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty", "seed"):
        value = get(f"gen_ai.request.{name}")
        if isinstance(value, int | float):
            body[name] = value
    if _streams(span):
        body["stream"] = True
    return {name: value for name, value in body.items() if value is not None}


def _streams(span: Span) -> bool:
    get = span.attributes.get
    told = get("llm.is_streaming", get("gen_ai.request.stream", get("gen_ai.request.is_stream")))
    if isinstance(told, bool):
        return told
    return any(event.name.endswith("content.completion.chunk") for event in span.events)


def _prompts(span: Span) -> list[dict[str, Any]]:
    found = _instructions(span) + _messages(span, "gen_ai.input.messages")
    if found:
        return found
    found = [_flat_message(part, "user") for part in _indexed(span, "prompt")]
    if found:
        return found
    for event in span.events:
        if re.fullmatch(r"gen_ai\.(system|user|assistant|tool)\.message", event.name):
            content = event.attributes.get("content", event.attributes.get("gen_ai.prompt"))
            found.append({"role": event.attributes.get("role") or event.name.split(".")[1], "content": content})
        elif event.name == "gen_ai.content.prompt":
            found += _parsed_messages(event.attributes.get("gen_ai.prompt"))
    return found


def _instructions(span: Span) -> list[dict[str, Any]]:
    parts = _parsed(_anywhere(span, "gen_ai.system_instructions"))
    if not parts:
        return []
    return [{"role": "system", "content": _text_of_parts(parts if isinstance(parts, list) else [parts])}]


def _anywhere(span: Span, name: str) -> Any:
    """An attribute of the span, or of one of its events (the conventions allow both)."""
    if name in span.attributes:
        return span.attributes[name]
    return next((event.attributes[name] for event in span.events if name in event.attributes), None)


def _parsed(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value


def _messages(span: Span, name: str) -> list[dict[str, Any]]:
    return _parsed_messages(_anywhere(span, name))


def _parsed_messages(value: Any) -> list[dict[str, Any]]:
    """`[{role, parts: [{type, content}]}]` (current conventions) or OpenAI's own messages, as OpenAI's."""
    found = _parsed(value)
    messages = []
    for item in found if isinstance(found, list) else ():
        if not isinstance(item, dict):
            continue
        message: dict[str, Any] = {"role": item.get("role", "user")}
        parts = item.get("parts")
        if not isinstance(parts, list):
            message["content"] = item.get("content")
            if isinstance(item.get("tool_calls"), list):
                message["tool_calls"] = item["tool_calls"]
        else:
            message["content"] = _text_of_parts(parts)
            calls = [_tool_call(p) for p in parts if isinstance(p, dict) and p.get("type") == "tool_call"]
            if calls:
                message["tool_calls"] = calls
        if item.get("finish_reason") is not None:
            message["finish_reason"] = item["finish_reason"]
        messages.append(message)
    return messages


def _text_of_parts(parts: list[Any]) -> str:
    texts = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict):
            value = part.get("content", part.get("text", part.get("response", part.get("result"))))
            if value is not None and part.get("type") != "tool_call":
                texts.append(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return "\n".join(texts)


def _tool_call(part: Mapping[str, Any]) -> dict[str, Any]:
    arguments = part.get("arguments")
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"id": part.get("id"), "type": "function", "function": {"name": part.get("name"), "arguments": text}}


def _indexed(span: Span, what: str) -> list[dict[str, Any]]:
    """`gen_ai.prompt.{i}.{name}` attributes, gathered by i."""
    found: dict[int, dict[str, Any]] = {}
    for key, value in span.attributes.items():
        match = _INDEXED.fullmatch(key)
        if match is not None and match[1] == what:
            found.setdefault(int(match[2]), {})[match[3]] = value
    return [found[i] for i in sorted(found)]


def _flat_message(part: Mapping[str, Any], role: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": part.get("role") or role, "content": part.get("content")}
    calls: dict[str, dict[str, Any]] = {}
    for key, value in part.items():
        match = re.fullmatch(r"(?:tool_calls\.(\d{1,4})|function_call)\.(name|arguments|id)", key)
        if match is not None:
            calls.setdefault(match[1] or "0", {})[match[2]] = value
    if calls:
        message["tool_calls"] = [_tool_call(calls[i]) for i in sorted(calls, key=int)]
    if part.get("tool_call_id"):
        message["tool_call_id"] = part["tool_call_id"]
    return message


def _tools(span: Span) -> list[dict[str, Any]]:
    told = _parsed(_anywhere(span, "gen_ai.tool.definitions"))
    if isinstance(told, list):
        return [tool for tool in told if isinstance(tool, dict)]
    found: dict[int, dict[str, Any]] = {}
    for key, value in span.attributes.items():
        match = re.fullmatch(r"llm\.request\.functions\.(\d{1,4})\.(name|description|parameters)", key)
        if match is not None:
            found.setdefault(int(match[1]), {})[match[2]] = _parsed(value) if match[2] == "parameters" else value
    return [{"type": "function", "function": found[i]} for i in sorted(found)]


class _Answer:
    """The answer a span tells of."""

    def __init__(self, span: Span, form: str) -> None:
        self.span = span
        self.form = form
        self.choices = self._choices()
        self.error, self.error_type, self.status = self._failure()

    def _choices(self) -> list[dict[str, Any]]:
        span = self.span
        found = _messages(span, "gen_ai.output.messages")
        if not found:
            found = []
            for part in _indexed(span, "completion"):
                message = _flat_message(part, "assistant")
                message["finish_reason"] = part.get("finish_reason")
                found.append(message)
        if not found:
            for event in span.events:
                if event.name == "gen_ai.choice":
                    found.append(self._choice_event(event))
                elif event.name == "gen_ai.content.completion":
                    found += _parsed_messages(event.attributes.get("gen_ai.completion"))
        return found

    def _choice_event(self, event: Event) -> dict[str, Any]:
        told = _parsed(event.attributes.get("message"))
        message = dict(told) if isinstance(told, dict) else {"content": event.attributes.get("content", told)}
        message.setdefault("role", "assistant")
        message["finish_reason"] = event.attributes.get("finish_reason")
        return message

    def _failure(self) -> tuple[str | None, str | None, int]:
        """(error, its type, HTTP status)."""
        span, get = self.span, self.span.attributes.get
        status = first_count(get("http.response.status_code"), get("http.status_code"))
        if status is None and isinstance(kind := get("error.type"), str) and kind.isdigit() and len(kind) == 3:
            status = int(kind)
        raised = next((e.attributes for e in span.events if e.name == "exception"), {})
        failed = span.failed or (status is not None and not 200 <= status < 300)
        if not failed:
            return None, None, 200
        kind = string(get("error.type")) or string(raised.get("exception.type")) or "error"
        message = span.message or string(raised.get("exception.message"), MAX_MESSAGE) or kind
        known = status if status is not None and 300 <= status < 600 else 500
        return clean(message[:MAX_MESSAGE]), kind, known

    def usage(self) -> tuple[Usage | None, dict[str, Any] | None]:
        get = self.span.attributes.get
        told = {
            name.rpartition("usage.")[2] or name: value
            for name, value in self.span.attributes.items()
            if (name.startswith(("gen_ai.usage.", "llm.usage.", "llm.token_count."))) and count(value) is not None
        }

        def first(*names: str) -> int | None:
            return first_count(*(get(name) for name in names))

        found = Usage(
            input_tokens=first(
                "gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.usage.prompt_tokens",
                "llm.token_count.prompt",
            ),
            output_tokens=first(
                "gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.usage.completion_tokens",
                "llm.token_count.completion",
            ),
            cache_read_tokens=first(
                "gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cache_read_input_tokens",
                "llm.usage.cache_read_input_tokens",
            ),
            cache_write_tokens=first(
                "gen_ai.usage.cache_creation.input_tokens", "gen_ai.usage.cache_creation_input_tokens",
                "llm.usage.cache_creation_input_tokens",
            ),
            reasoning_tokens=first(
                "gen_ai.usage.reasoning.output_tokens", "gen_ai.usage.reasoning_tokens", "llm.usage.reasoning_tokens"
            ),
        )  # fmt: skip
        if found == Usage() or (found.input_tokens is None and found.output_tokens is None):
            return None, None
        return found, told

    def text(self) -> str:
        return "\n".join(_said(choice) for choice in self.choices)

    def reply(self) -> Reply:
        usage, told = self.usage()
        text = clean(self.text())
        reasons = self.span.attributes.get("gen_ai.response.finish_reasons")
        reason = next((c["finish_reason"] for c in self.choices if c.get("finish_reason")), None)
        if reason is None and isinstance(reasons, list) and reasons:
            reason = reasons[0]
        tier = string(self.span.attributes.get("gen_ai.openai.response.service_tier"))
        return Reply(
            model=string(self.span.attributes.get("gen_ai.response.model")),
            response_id=string(self.span.attributes.get("gen_ai.response.id")),
            usage=usage,
            usage_json=told,
            finish_reason=string(reason),
            error_type=self.error_type,
            error=self.error,
            error_status=self.status if self.error is not None else None,
            pricing={"tier": tier} if tier else {},
            text=text,
            preview=text[:500],
            tool_calls=sum(len(c.get("tool_calls") or ()) for c in self.choices),
        )

    def body(self) -> bytes:
        """The answer as an OpenAI-style body."""
        if self.error is not None and not self.choices:
            body: dict[str, Any] = {"error": {"message": self.error, "type": self.error_type}}
        else:
            body = {
                "id": self.span.attributes.get("gen_ai.response.id"),
                "object": "chat.completion",
                "model": self.span.attributes.get("gen_ai.response.model"),
                "choices": [
                    {
                        "index": i,
                        "finish_reason": choice.get("finish_reason"),
                        "message": {name: value for name, value in choice.items() if name != "finish_reason"},
                    }
                    for i, choice in enumerate(self.choices)
                ],
            }
            usage, _ = self.usage()
            if usage is not None:
                body["usage"] = {"prompt_tokens": usage.input_tokens, "completion_tokens": usage.output_tokens}
            if self.form != "openai_chat":
                body = {"object": "list", "model": body["model"], "usage": body.get("usage"), "data": []}
        return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")


def _said(choice: Mapping[str, Any]) -> str:
    """What a choice says, for reading and for counting: text, then the names and arguments of its tool calls."""
    content = choice.get("content")
    parts: list[str] = []
    blocks = _parsed(content) if isinstance(content, str) and content.startswith('[{"') else content
    if isinstance(blocks, list):  # Anthropic's blocks, as text
        for block in blocks:
            if isinstance(block, dict):
                value = block.get("text", block.get("thinking", block.get("input")))
                parts.append(value if isinstance(value, str) else "" if value is None else json.dumps(value))
    elif isinstance(content, str):
        parts.append(content)
    calls = choice.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            parts.append(f"{function.get('name') or ''}{function.get('arguments') or ''}")
    return "\n".join(part for part in parts if part)
