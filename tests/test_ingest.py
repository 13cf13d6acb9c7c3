"""Manual logs as exchanges: every shape Helicone's clients send."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliproxy.exchange import Exchange
from heliproxy.ingest import LogError, check_log, log_exchange, provider_name
from heliproxy.pricing import Prices
from heliproxy.record import Pricing, build_record
from heliproxy.redact import _SECRET_NAMES, may_hold_secrets
from heliproxy.store import Record
from heliproxy.tokens import estimate

NOW = 1_780_000_000.0


def log(
    request: Any = None,
    response: Any = None,
    timing: Any = None,
    provider: str = "openai",
    headers: tuple[tuple[str, str], ...] = (),
    meta: Any = None,
    url: str = "https://api.openai.com/v1/chat/completions",
    **more: Any,
) -> Exchange:
    body = {
        "providerRequest": {"url": url, "json": CHAT if request is None else request, "meta": meta or {}},
        "providerResponse": {"status": 200, "headers": {}, **(response or {"json": ANSWER})},
        "timing": timing
        or {
            "startTime": {"seconds": 1_780_000_000, "milliseconds": 250},
            "endTime": {"seconds": 1_780_000_001, "milliseconds": 0},
        },
        **more,
    }  # fmt: skip
    return log_exchange(body, provider, headers, NOW)


CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
ANSWER = {
    "id": "c1",
    "object": "chat.completion",
    "model": "gpt-4o-mini-2024-07-18",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "yo"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
}


@pytest.fixture(scope="module")
def pricing() -> Pricing:
    return Pricing(Prices(None), estimate, b"s" * 32)


@pytest.fixture
def record(pricing: Pricing) -> Any:
    def build(exchange: Exchange) -> Record:
        return build_record(exchange, pricing)[0]

    return build


def test_a_log_goes_the_way_of_a_proxied_call(record: Any) -> None:
    row = record(log()).row
    assert row["source"] == "log"
    assert (row["provider"], row["host"], row["path"]) == ("openai", "api.openai.com", "/v1/chat/completions")
    assert (row["input_tokens"], row["output_tokens"], row["usage_source"]) == (100, 20, "provider")
    assert row["cost_usd"] == pytest.approx(0.15e-6 * 100 + 0.6e-6 * 20)
    assert (row["latency_ms"], row["created_at"]) == (750.0, "2026-05-28T20:26:40.250Z")
    assert (row["model"], row["preview"], row["answer_preview"]) == ("gpt-4o-mini-2024-07-18", "hi", "yo")


def test_headers_win_over_meta(record: Any) -> None:
    meta = {"Helicone-User-Id": "from-meta", "Helicone-Property-Env": "prod", "other": "x", "hidden_params": {"a": []}}
    stored = record(log(meta=meta, headers=(("Helicone-User-Id", "from-header"), ("authorization", "Bearer k"))))
    assert stored.row["user_id"] == "from-header"
    assert dict(stored.properties) == {"env": "prod"}


def test_helicone_auth_in_meta_is_not_kept(record: Any) -> None:
    stored = record(log(meta={"Helicone-Auth": "Bearer sk-helicone-secret"}))
    assert "sk-helicone-secret" not in repr(stored)


def test_keys_in_bodies_are_redacted(record: Any) -> None:
    request = {
        **CHAT,
        "api_key": "sk-live-1",
        "extra": [{"Authorization": "Bearer sk-live-2"}],
        "tools": [{"api_key": {}}],
    }
    body = record(log(request=request)).body
    assert b"sk-live" not in body.request
    kept = json.loads(body.request)
    assert (kept["api_key"], kept["tools"]) == ("[redacted]", [{"api_key": {}}])


SSE = 'data: {"id":"c","object":"chat.completion.chunk","model":"gpt-4o-mini",'
SSE += '"choices":[{"index":0,"delta":{"content":"Hel"}}]}\n\n'
SSE += 'data: {"id":"c","choices":[{"index":0,"delta":{"content":"lo"},"finish_reason":"stop"}]}\n\n'
USED = 'data: {"id":"c","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}\n\n'
ANTHROPIC = "\n".join(
    "data: " + json.dumps(event)
    for event in (
        {"type": "message_start", "message": {"id": "m", "usage": {"input_tokens": 9, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    )
)  # fmt: skip


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ({"json": {}, "textBody": SSE + USED + "data: [DONE]\n\n"}, ("Hello", 7, 2, "provider", 1)),
        ({"json": {}, "textBody": SSE + "data: [DONE]\n\n"}, ("Hello", 8, 1, "estimated", 1)),
        ({"json": {}, "textBody": SSE.replace("data: ", "").replace("\n\n", "\n")}, ("Hello", 8, 1, "estimated", 1)),
        ({"json": {}, "textBody": json.dumps(ANSWER)}, ("yo", 100, 20, "provider", 0)),
        ({"json": {"_type": "unknown", "toolName": "unknown"}, "textBody": json.dumps(ANSWER)},
         ("yo", 100, 20, "provider", 0)),
        ({"textBody": "Hello there"}, ("Hello there", 8, 2, "estimated", 0)),
        ({"json": {"streamed_data": [json.loads(line[6:]) for line in SSE.splitlines() if line]}},
         ("Hello", 8, 1, "estimated", 1)),
        ({"json": {"streamed_data": SSE}}, ("Hello", 8, 1, "estimated", 1)),
        ({"json": {}, "textBody": ANTHROPIC}, ("Hello", 9, 5, "provider", 1)),
        ({"json": {"output": "x", "usage": {"input_tokens": 3, "output_tokens": 4}}}, (None, 3, 4, "provider", 0)),
        ({"json": {"prompt_token_count": 3, "generation_token_count": 4}}, (None, 3, 4, "provider", 0)),
        ({"json": {"candidates": [{"content": {"parts": [{"text": "G"}]}, "finishReason": "STOP"}],
                   "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 4, "totalTokenCount": 7}}},
         ("G", 3, 4, "provider", 0)),
    ],
    ids=["sse", "sse without usage", "one chunk a line", "JSON as text", "beside Python's _type", "prose",
         "list of chunks", "chunks as text", "anthropic without blank lines", "custom usage", "counts at the top",
         "gemini"],
)  # fmt: skip
def test_answers_of_all_shapes_are_read(record: Any, response: Any, expected: Any) -> None:
    stored = record(log(response=response))
    row = stored.row
    text = row["answer_preview"] if expected[0] is not None else None
    assert (text, row["input_tokens"], row["output_tokens"], row["usage_source"], row["stream"]) == expected
    assert (row["status"], row["error"], row["parse_error"]) == (200, None, None)


def test_a_reader_that_cancelled_is_no_error_of_the_provider(record: Any) -> None:
    row = record(log(response={"status": -3, "json": {}, "textBody": SSE.splitlines()[0][6:]})).row
    assert (row["status"], row["error_type"], row["lower_bound"], row["output_tokens"]) == (
        -3,
        "client_cancelled",
        1,
        1,
    )


def test_a_traceback_under_status_200_is_an_error(record: Any) -> None:
    text = "Traceback (most recent call last):\n  File 'a.py'\nValueError: boom\n\nKeyError: in the partial output\n"
    row = record(log(response={"json": {}, "textBody": text})).row
    assert (row["status"], row["error_type"], row["error"], row.get("cost_usd")) == (200, "ValueError", "boom", None)


@pytest.mark.parametrize(
    ("request_", "response", "model"),
    [
        ({"_type": "tool", "toolName": "weather", "input": {}}, {"output": "sunny", "_type": "tool"}, "tool:weather"),
        ({"_type": "vector_db", "operation": "search", "databaseName": "db"}, {"results": []}, "vector_db:db"),
        ({"_type": "data", "name": "step1"}, {"ok": True}, "data:step1"),
    ],
)
def test_events_that_are_no_calls_have_a_name_and_cost_nothing(
    record: Any, request_: Any, response: Any, model: str
) -> None:
    row = record(log(request=request_, response={"json": response}, provider="custom", url="custom-model-nopath")).row
    assert (row["model"], row["cost_usd"], row["input_tokens"], row["path"]) == (
        model,
        0.0,
        0,
        "custom-model-nopath",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([], "Invalid log: the body should be an object"),
        ({}, "One of the required fields is missing, providerRequest, providerResponse, or timing"),
        ({"providerRequest": {"json": {}}, "providerResponse": {"status": 200, "json": {}}, "timing": {"a": 1}},
         "Invalid providerRequest: 'url' should be a string"),
        ({"providerRequest": {"url": "x", "json": {}, "meta": 1}, "providerResponse": {"a": 1}, "timing": {"a": 1}},
         "Invalid providerRequest: 'meta' should be an object"),
        ({"providerRequest": {"url": "x", "meta": {}}, "providerResponse": {"status": 200}, "timing": {"a": 1}},
         "Invalid providerRequest: 'json' is undefined"),
        ({"providerRequest": {"url": "x", "json": {}}, "providerResponse": {"status": 200}, "timing": {"a": 1}},
         "Invalid providerResponse: 'json' is undefined"),
        ({"providerRequest": {"url": "x", "json": {}}, "providerResponse": {"json": {}}, "timing": {"a": 1}},
         "Invalid providerResponse: 'status' should be a number"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(change: Any, message: str) -> None:
    with pytest.raises(LogError) as caught:
        log_exchange(change, "openai", (), NOW)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("start", "created"),
    [
        ({"seconds": 1_780_000_000, "milliseconds": 5}, 1_780_000_000.005),
        ("1780000000", 1_780_000_000.0),
        ("1780000000250", 1_780_000_000.25),
        ("2026-05-28T20:26:40Z", 1_780_000_000.0),
        (1_780_000_000, 1_780_000_000.0),
    ],
)
def test_times_come_in_many_forms(start: Any, created: float) -> None:
    assert log(timing={"startTime": start}).created_at == created


def test_trace_logs_may_leave_times_out() -> None:
    body = {"providerRequest": {"url": "x", "json": {}}, "providerResponse": {"status": 200, "json": {}}}
    assert log_exchange(body, "custom", (), NOW, strict=False).created_at == NOW


@pytest.mark.parametrize(
    ("named", "found"),
    [("OPENAI", "openai"), ("google-ai-studio", "google"), ("xAI", "x-ai"), ("unknown", None), (7, None), ("", None)],
)
def test_providers_go_by_our_names(named: Any, found: str | None) -> None:
    assert provider_name(named) == found


def test_a_price_is_found_without_a_provider(record: Any) -> None:
    row = record(log(provider="custom", url="custom-model-nopath")).row
    assert (row["provider"], row["cost_usd"]) == ("custom", pytest.approx(0.15e-6 * 100 + 0.6e-6 * 20))


def test_the_cost_a_client_tells_counts(record: Any) -> None:
    row = record(log(response={"json": ANSWER, "cost": 0.5})).row
    assert (row["cost_usd"], row["cost_source"]) == (0.5, "provider")


NOISE: list[Any] = [None, 1, "x", [], {}, [1], {"a": None}, "data:", "{", "[{", "\ud800", 1e400, "data: [DONE]"]


@pytest.mark.parametrize("noise", NOISE, ids=repr)
def test_no_answer_breaks_it(record: Any, noise: Any) -> None:
    for response in ({"json": noise}, {"json": {"streamed_data": noise}}, {"json": {"choices": noise, "usage": noise}}):
        record(log(response=response, request=noise))
    if isinstance(noise, str):
        record(log(response={"textBody": noise}))


def captures(shared: Path) -> list[Any]:
    folder = shared / "sdk-captures"
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json")) if path.name != "INDEX.json"]
    return [one for one in found if one["path"].endswith("/v1/log")]


def test_every_captured_log_is_understood(record: Any, shared: Path) -> None:
    names = {"oai": "openai", "anthropic": "anthropic", "googleapis": "google", "custom": "custom"}
    seen = captures(shared)
    assert seen
    for capture in seen:
        headers = [tuple(pair) for pair in capture["headers"]]
        body = capture["body_json"]
        stored = record(log_exchange(body, names[capture["path"].split("/")[1]], headers, NOW))
        assert stored.row["parse_error"] is None, capture["label"]
        assert stored.row["status"] == body["providerResponse"]["status"], capture["label"]
        assert stored.row["request_model"] or stored.row["model"], capture["label"]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'{"model": "m", "usage": {"prompt_tokens": 3}}', False),
        (b'{"key": 1, "monkey": 2}', True),
        (b'{"api_key": "x"}', True),
        (b'{"API-KEY": "x"}', True),
        (b'{"a_p_i.k_e_y_": "x"}', True),
        (b'{"awsAccessKeyId": "x"}', True),
        (b'{"AWS_SESSION_TOKEN": "x"}', True),
        (b'{"Helicone-Auth": "x"}', True),
        (b'{"authorization": "x"}', True),
        (b'{"client_secret": "x"}', True),
        (b'{"Password": "x"}', True),
        (b'{"vertex_credentials": "x"}', True),
        (rb'{"api_k\u0065y": "x"}', True),
        (b'{"a": ' + b"[" * 300 + b"]" * 300 + b"}", True),
        (b"", False),
    ],
)
def test_it_is_known_quickly_that_a_text_holds_no_secret(raw: bytes, expected: bool) -> None:
    assert may_hold_secrets(raw) is expected


@given(st.sampled_from(sorted(_SECRET_NAMES)), st.data())
def test_every_name_of_a_secret_is_suspected(name: str, data: st.DataObject) -> None:
    spelled = "".join(
        (letter.upper() if data.draw(st.booleans()) else letter) + data.draw(st.sampled_from(["", "_", "-", "."]))
        for letter in name
    )
    assert may_hold_secrets(json.dumps({spelled: "x"}).encode())


def test_secrets_go_whether_or_not_the_raw_text_is_at_hand() -> None:
    body = {
        "providerRequest": {"url": "x", "json": {"model": "m", "api_key": "sk-1"}},
        "providerResponse": {"status": 200, "json": ANSWER},
    }
    checked = check_log(body, "openai", [], NOW, strict=False)
    for raw in (None, json.dumps(body).encode()):
        assert b"sk-1" not in (checked.exchange(raw).request_body or b"")
