"""OTLP spans as exchanges."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from heliproxy.ingest_otlp import OtlpError, read_json, read_protobuf, span_exchanges
from heliproxy.pricing import Prices
from heliproxy.record import Pricing, build_record
from heliproxy.store import Record
from heliproxy.tokens import estimate

NOW = 1_780_000_000.0
START = 1_780_000_000_000_000_000


@pytest.fixture(scope="module")
def pricing() -> Pricing:
    return Pricing(Prices(None), estimate, b"s" * 32)


def attribute(key: str, value: Any) -> dict[str, Any]:
    kinds = {bool: "boolValue", int: "intValue", float: "doubleValue", str: "stringValue"}
    if isinstance(value, list):
        return {"key": key, "value": {"arrayValue": {"values": [{"stringValue": item} for item in value]}}}
    return {"key": key, "value": {kinds[type(value)]: value}}


def export(told: dict[str, Any], **span: Any) -> bytes:
    one = {
        "traceId": "aa" * 16,
        "spanId": "bb" * 8,
        "name": "openai.chat",
        "startTimeUnixNano": str(START),
        "endTimeUnixNano": str(START + 500_000_000),
        "attributes": [attribute(key, value) for key, value in told.items()],
        **span,
    }
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [one]}]}]}).encode()


def records(data: bytes, pricing: Pricing, headers: tuple[tuple[str, str], ...] = ()) -> list[Record]:
    return [build_record(one, pricing)[0] for one in span_exchanges(read_json(data), headers, NOW)]


CURRENT = {
    "gen_ai.provider.name": "anthropic",
    "gen_ai.operation.name": "chat",
    "gen_ai.request.model": "claude-3-5-haiku-20241022",
    "gen_ai.response.model": "claude-3-5-haiku-20241022",
    "gen_ai.response.id": "msg_1",
    "gen_ai.response.finish_reasons": ["end_turn"],
    "gen_ai.usage.input_tokens": 1000,
    "gen_ai.usage.cache_read.input_tokens": 800,
    "gen_ai.usage.output_tokens": 50,
    "gen_ai.system_instructions": '[{"type":"text","content":"be brief"}]',
    "gen_ai.input.messages": '[{"role":"user","parts":[{"type":"text","content":"hi"}]}]',
    "gen_ai.output.messages": '[{"role":"assistant","parts":[{"type":"text","content":"yo"},'
    '{"type":"tool_call","id":"t1","name":"f","arguments":{"a":1}}],"finish_reason":"stop"}]',
    "gen_ai.conversation.id": "conv-1",
}


def test_current_conventions_are_read(pricing: Pricing) -> None:
    (stored,) = records(export(CURRENT), pricing)
    row = stored.row
    assert (row["provider"], row["model"], row["source"]) == ("anthropic", "claude-3-5-haiku-20241022", "otlp")
    assert (row["input_tokens"], row["cache_read_tokens"], row["output_tokens"]) == (1000, 800, 50)
    assert row["cost_usd"] == pytest.approx((200 * 0.8 + 800 * 0.08 + 50 * 4) / 1e6)
    assert (row["preview"], row["session_id"], row["response_id"]) == ("hi", "conv-1", "msg_1")
    assert row["answer_preview"].startswith("yo")
    assert stored.body is not None
    answer = json.loads(stored.body.response or b"")
    assert answer["choices"][0]["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}
    assert json.loads(stored.body.request or b"")["messages"][0] == {"role": "system", "content": "be brief"}


def test_association_properties_win_over_headers(pricing: Pricing) -> None:
    attributes = {
        "gen_ai.system": "OpenAI",
        "gen_ai.request.model": "gpt-4o-mini",
        "traceloop.association.properties.Helicone-User-Id": "span-user",
        "traceloop.association.properties.Helicone-Property-Env": "dev",
        "traceloop.association.properties.plain": "x",
    }
    headers = (("Helicone-User-Id", "header-user"), ("Helicone-Property-App", "demo"))
    (stored,) = records(export(attributes), pricing, headers)
    assert stored.row["user_id"] == "span-user"
    assert stored.properties["env"] == "dev"
    assert stored.properties["app"] == "demo"
    assert stored.properties["plain"] == "x"


def test_status_and_place_in_the_trace_are_kept(pricing: Pricing) -> None:
    data = export(
        {"gen_ai.system": "OpenAI", "gen_ai.request.model": "gpt-4o-mini", "error.type": "RateLimitError"},
        parentSpanId="cc" * 8,
        status={"code": 2, "message": "too many requests"},
    )
    (stored,) = records(data, pricing)
    row = stored.row
    assert (row["status"], row["error_type"], row["error"]) == (500, "RateLimitError", "too many requests")
    assert row["usage_source"] == "none"
    assert stored.properties["otel-trace-id"] == "aa" * 16
    assert stored.properties["otel-parent-span-id"] == "cc" * 8


def test_a_stream_without_counts_is_estimated(pricing: Pricing) -> None:
    attributes = {
        "gen_ai.system": "OpenAI",
        "gen_ai.request.model": "gpt-4o-mini",
        "llm.is_streaming": True,
        "gen_ai.prompt.0.role": "user",
        "gen_ai.prompt.0.content": "hi",
        "gen_ai.completion.0.role": "assistant",
        "gen_ai.completion.0.content": "Hello there",
    }
    chunk = {"name": "llm.content.completion.chunk", "timeUnixNano": str(START + 20_000_000)}
    (stored,) = records(export(attributes, events=[chunk]), pricing)
    row = stored.row
    assert (row["stream"], row["usage_source"], row["input_tokens"], row["output_tokens"]) == (1, "estimated", 8, 2)
    assert row["ttft_ms"] == pytest.approx(20, abs=0.1)


def test_spans_that_are_no_calls_make_no_rows(pricing: Pricing) -> None:
    assert records(export({"http.method": "GET"}), pricing) == []
    assert records(export({**CURRENT, "gen_ai.operation.name": "execute_tool"}), pricing) == []


def test_a_span_sent_again_has_the_same_id(pricing: Pricing) -> None:
    (first,), (second,) = records(export(CURRENT), pricing), records(export(CURRENT), pricing)
    assert first.row["id"] == second.row["id"]


def test_one_request_id_is_not_given_to_several_spans(pricing: Pricing) -> None:
    both = json.loads(export(CURRENT))
    spans = both["resourceSpans"][0]["scopeSpans"][0]["spans"]
    spans.append({**spans[0], "spanId": "cd" * 8})
    wanted = "11111111-2222-4333-8444-555555555555"
    found = records(json.dumps(both).encode(), pricing, (("Helicone-Request-Id", wanted),))
    assert len({one.row["id"] for one in found}) == 2
    (single,) = records(export(CURRENT), pricing, (("Helicone-Request-Id", wanted),))
    assert single.row["id"] == wanted


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "body is not an object"),
        (b'{"resourceSpans": 1}', "resourceSpans is not a list"),
        (b'{"resourceSpans": [1]}', "resourceSpans[0] is not an object"),
        (b'{"resourceSpans": [null]}', "is not an object"),
        (b'{"resourceSpans": [{"scopeSpans": {}}]}', "scopeSpans is not a list"),
        (export({}, traceId=5), "traceId is not a string"),
        (export({}, traceId="not hex"), "traceId is not in hexadecimal"),
        (export({}, startTimeUnixNano="soon"), "startTimeUnixNano is not a time"),
        (export({}, attributes=[{"key": 1}]), "attributes[0].key is not a string"),
        (export({}, attributes={}), "attributes is not a list"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_json_that_is_no_export_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(OtlpError) as caught:
        read_json(body)
    assert message in str(caught.value)


def captured(shared: Path) -> list[Any]:
    folder = shared / "sdk-captures"
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json")) if path.name != "INDEX.json"]
    return [one for one in found if "/trace/" in one["path"]]


def test_every_captured_export_is_understood(pricing: Pricing, shared: Path) -> None:
    seen = captured(shared)
    assert seen
    for capture in seen:
        raw = base64.b64decode(capture.get("body_base64", ""))
        spans = read_protobuf(raw) if raw else read_json(json.dumps(capture["body_json"]).encode())
        for exchange in span_exchanges(spans, [tuple(pair) for pair in capture["headers"]], NOW):
            row = build_record(exchange, pricing)[0].row
            assert row["status"] == 200, capture["label"]
            assert row["preview"] == "hi", capture["label"]
            assert row["output_tokens"] == 2, capture["label"]
            assert row["cost_usd"] is not None, capture["label"]


def test_protobuf_cut_anywhere_is_refused_or_whole(shared: Path) -> None:
    capture = next(one for one in captured(shared) if "body_base64" in one)
    raw = base64.b64decode(capture["body_base64"])
    for end in range(1, len(raw)):
        with pytest.raises(OtlpError):
            read_protobuf(raw[:end])
    with pytest.raises(OtlpError):
        read_protobuf(b'{"resourceSpans": []}')
