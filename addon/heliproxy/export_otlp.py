"""Requests as OpenTelemetry spans, for any collector: GenAI semantic conventions, sent with opentelemetry-sdk.

Needs the extra `heliproxy[otel]`. Sessions become traces: requests of one session share a trace id.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from heliproxy import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

    from heliproxy.bodies import Body
    from heliproxy.conversation import Turn

OPERATIONS = {
    "openai_completions": "text_completion",
    "anthropic_complete": "text_completion",
    "openai_embeddings": "embeddings",
    "gemini_embed": "embeddings",
    "cohere_embed": "embeddings",
    "ollama_embed": "embeddings",
    "gemini_generate": "generate_content",
}
PROVIDERS = {
    "google": "gcp.gemini",
    "vertex": "gcp.vertex_ai",
    "azure": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "x-ai": "x_ai",
    "mistral": "mistral_ai",
}
"""Our names -> those of the semantic conventions, where they differ."""


class NotInstalledError(RuntimeError):
    """The extra with the exporter is missing."""


def make_exporter(endpoint: str, headers: Mapping[str, str]) -> SpanExporter:
    """An OTLP/HTTP exporter. Raises NotInstalledError."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as e:
        raise NotInstalledError("sending OTLP needs more packages: pip install 'heliproxy[otel]'") from e
    return OTLPSpanExporter(endpoint=endpoint, headers=dict(headers))


def attributes(row: Mapping[str, Any], body: Body | None) -> dict[str, Any]:
    """The span attributes of a request; `row` has its properties. Bodies are included when given."""
    provider = row["provider"] or "custom"
    found: dict[str, Any] = {
        "gen_ai.operation.name": OPERATIONS.get(row["format"] or "", "chat"),
        "gen_ai.provider.name": PROVIDERS.get(provider, provider),
        "gen_ai.system": PROVIDERS.get(provider, provider),
        "gen_ai.request.model": row["request_model"] or row["model"],
        "gen_ai.response.model": row["response_model"],
        "gen_ai.response.id": row["response_id"],
        "gen_ai.response.finish_reasons": [row["finish_reason"]] if row["finish_reason"] else None,
        "gen_ai.request.stream": bool(row["stream"]) or None,
        "gen_ai.usage.input_tokens": row["input_tokens"],
        "gen_ai.usage.output_tokens": row["output_tokens"],
        "gen_ai.usage.cache_read.input_tokens": row["cache_read_tokens"],
        "gen_ai.usage.cache_creation.input_tokens": row["cache_write_tokens"],
        "gen_ai.usage.reasoning.output_tokens": row["reasoning_tokens"],
        "gen_ai.usage.cost": row["cost_usd"],
        "gen_ai.conversation.id": row["session_id"],
        "session.id": row["session_id"],
        "user.id": row["user_id"],
        "server.address": row["host"],
        "http.response.status_code": row["status"] if (row["status"] or 0) > 0 else None,
        "error.type": row["error_type"] or (str(row["status"]) if is_error(row) else None),
        "helicone.request.id": row["id"],
        "helicone.cache": row["cache"],
        "helicone.time_to_first_token_ms": row["ttft_ms"],
    }
    for name, value in row["properties"].items():
        found[f"helicone.property.{name}"] = value
    if body is not None:
        found |= content(body)
    return {name: value for name, value in found.items() if value is not None}


def is_error(row: Mapping[str, Any]) -> bool:
    status = row["status"]
    return row["error_type"] is not None or (status is not None and (status >= 400 or status < 0))


def content(body: Body) -> dict[str, str]:
    """What was said, as the conventions' messages."""
    from heliproxy.conversation import conversation

    found = conversation(body.request, body.response, body.request_type, body.response_type)
    return {
        "gen_ai.input.messages": json.dumps([message(turn) for turn in found.turns], ensure_ascii=False),
        "gen_ai.output.messages": json.dumps([message(turn) for turn in found.answers], ensure_ascii=False),
    }


def message(turn: Turn) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    for part in turn.parts:
        if part.kind == "tool_call":
            parts.append({"type": "tool_call", "id": part.id, "name": part.name, "arguments": part.text})
        elif part.kind == "tool_result":
            parts.append({"type": "tool_call_response", "id": part.id, "response": part.text})
        elif part.kind == "thinking":
            parts.append({"type": "reasoning", "content": part.text})
        else:
            parts.append({"type": "text", "content": part.text or f"({part.kind})"})
    return {"role": turn.role, "parts": parts}


def span_ids(row: Mapping[str, Any]) -> tuple[int, int]:
    """(trace id, span id): those the call came with, else made of its session and its id, the same each time."""
    properties = row["properties"]
    trace = _hex(properties.get("otel-trace-id"), 32) or _digest(row["session_id"] or row["id"], 16)
    return trace, _hex(properties.get("otel-span-id"), 16) or _digest(row["id"], 8)


def _hex(text: str | None, digits: int) -> int:
    try:
        return int(text, 16) if text and len(text) == digits else 0
    except ValueError:
        return 0


def _digest(text: str, size: int) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=size).digest())


def make_span(row: Mapping[str, Any], body: Body | None) -> ReadableSpan:
    """One request as a finished span. Needs opentelemetry-sdk."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

    trace_id, span_id = span_ids(row)
    start = nanoseconds(row["created_at"])
    found = attributes(row, body)
    failed = is_error(row)
    return ReadableSpan(
        name=f"{found['gen_ai.operation.name']} {found.get('gen_ai.request.model', '')}".strip(),
        context=SpanContext(trace_id, span_id, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED)),
        resource=Resource({"service.name": "heliproxy", "telemetry.sdk.language": "python"}),
        attributes=found,
        kind=SpanKind.CLIENT,
        status=Status(StatusCode.ERROR, row["error"]) if failed else Status(StatusCode.UNSET),
        start_time=start,
        end_time=start + round((row["latency_ms"] or 0) * 1e6),
        instrumentation_scope=InstrumentationScope("heliproxy", __version__),
    )


def nanoseconds(stored: str) -> int:
    """A stored time in Unix nanoseconds, exactly."""
    at = datetime.fromisoformat(stored) - datetime(1970, 1, 1, tzinfo=UTC)
    return (at.days * 86_400 + at.seconds) * 10**9 + at.microseconds * 1000


def send(exporter: SpanExporter, spans: Sequence[ReadableSpan]) -> bool:
    """Send some spans; False when the collector did not take them."""
    from opentelemetry.sdk.trace.export import SpanExportResult

    return exporter.export(spans) is SpanExportResult.SUCCESS


def parse_headers(values: Iterable[str]) -> dict[str, str]:
    """`NAME=VALUE` pairs. Raises ValueError that quotes what is none."""
    found = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not name.strip() or not equals:
            raise ValueError(f"{name!r} is not a header; expected NAME=VALUE")
        found[name.strip().lower()] = text.strip()
    return found
