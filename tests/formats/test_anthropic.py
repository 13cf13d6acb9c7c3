import json
from typing import Any

import pytest

from heliproxy.exchange import ModelUsage, Reply, Usage
from heliproxy.formats import FORMATS

MESSAGES = FORMATS["anthropic_messages"]


def parse(body: Any) -> Reply:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return MESSAGES.parse_response(data, {})


def stream(*events: dict[str, Any]) -> bytes:
    return "".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in events).encode()


def message(usage: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "message", "id": "msg_1", "model": "claude-opus-4-8", "content": [], "usage": usage, **more}


def start(usage: dict[str, Any]) -> dict[str, Any]:
    return {"type": "message_start", "message": message(usage, stop_reason=None)}


def text(piece: str) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}


def delta(usage: dict[str, Any]) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}


STOP = {"type": "message_stop"}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"input_tokens": 5, "output_tokens": 2}, Usage(5, output_tokens=2)),
        (
            {
                "input_tokens": 25,
                "cache_creation_input_tokens": 1000,
                "cache_read_input_tokens": 2000,
                "output_tokens": 9,
            },
            Usage(
                3025,
                cache_read_tokens=2000,
                cache_write_tokens=1000,
                cache_write_5m_tokens=1000,
                cache_write_1h_tokens=0,
                output_tokens=9,
            ),
        ),
        (
            {
                "input_tokens": 1,
                "cache_creation_input_tokens": 30,
                "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
                "output_tokens": 9,
                "output_tokens_details": {"thinking_tokens": 4},
                "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 0},
            },
            Usage(
                31,
                cache_write_tokens=30,
                cache_write_5m_tokens=10,
                cache_write_1h_tokens=20,
                output_tokens=9,
                reasoning_tokens=4,
                units={"web_searches": 2.0},
            ),
        ),
        ({"input_tokens": None, "output_tokens": -3}, None),
    ],
)
def test_input_is_the_sum_of_fresh_read_and_written(raw: Any, expected: Usage | None) -> None:
    assert parse(message(raw)).usage == expected


def test_what_changes_the_price_is_noted() -> None:
    raw = {"input_tokens": 1, "output_tokens": 1, "service_tier": "priority", "speed": "fast", "inference_geo": "us"}
    assert parse(message(raw)).pricing == {"tier": "priority", "speed": "fast", "geo": "us"}
    assert parse(message({"input_tokens": 1, "inference_geo": "not_available"})).pricing == {}


def test_a_stream_overlays_its_start_with_every_delta() -> None:
    first = {
        "input_tokens": 2,
        "cache_creation_input_tokens": 300,
        "cache_read_input_tokens": 0,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 300},
        "output_tokens": 69,
        "service_tier": "standard",
    }
    last = {
        "input_tokens": 6,
        "cache_read_input_tokens": 700,
        "cache_creation_input_tokens": None,
        "output_tokens": 198,
    }
    ping = {"type": "ping"}
    reply = parse(
        stream(start(first), ping, text("Hi "), text("you"), delta({"output_tokens": 100}), delta(last), STOP)
    )
    assert reply.usage == Usage(
        1006,
        cache_read_tokens=700,
        cache_write_tokens=300,
        cache_write_5m_tokens=0,
        cache_write_1h_tokens=300,
        output_tokens=198,
    )
    assert (reply.preview, reply.finish_reason, reply.complete) == ("Hi you", "end_turn", True)
    assert (reply.model, reply.response_id, reply.pricing) == ("claude-opus-4-8", "msg_1", {"tier": "standard"})


def test_a_cut_stream_knows_its_input() -> None:
    reply = parse(stream(start({"input_tokens": 17, "output_tokens": 1}), text("par"), text("tial")))
    assert not reply.complete
    assert reply.usage == Usage(17, output_tokens=1)
    assert reply.text == "partial"


@pytest.mark.parametrize(
    ("kind", "status"),
    [("overloaded_error", 529), ("api_error", 500), ("rate_limit_error", 429), ("something_new", None)],
)
def test_an_error_inside_a_stream_has_the_status_it_stands_for(kind: str, status: int | None) -> None:
    error = {"type": "error", "error": {"type": kind, "message": "Overloaded"}}
    reply = parse(stream(start({"input_tokens": 1, "output_tokens": 1}), error))
    assert (reply.error_type, reply.error, reply.error_status) == (kind, "Overloaded", status)


def test_tool_calls_and_thinking_are_output() -> None:
    reply = parse(
        stream(
            start({"input_tokens": 1, "output_tokens": 1}),
            {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
            {
                "type": "content_block_start",
                "index": 1,
                "content_block": {"type": "tool_use", "name": "f", "input": {}},
            },
            {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"a"'}},
            {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": ":1}"}},
        )
    )
    assert (reply.text, reply.preview, reply.tool_calls) == ('hmf{"a":1}', 'f: {"a":1}', 1)


def call(kind: str, before: int, after: int, model: str | None = None) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": kind, "input_tokens": before, "output_tokens": after}
    return entry if model is None else {**entry, "model": model}


def test_sub_calls_are_parts_of_the_whole_on_their_own_models() -> None:
    calls = [
        call("message", 100, 10),
        call("advisor_message", 2000, 300, "claude-opus-4-7"),
        call("compaction", 9000, 50),
    ]
    raw = {
        "input_tokens": 100,
        "output_tokens": 10,
        "output_tokens_details": {"thinking_tokens": 3},
        "iterations": calls,
    }
    usage = parse(message(raw)).usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens, usage.reasoning_tokens) == (11_100, 360, 3)
    assert usage.parts == (
        ModelUsage(None, Usage(100, output_tokens=10)),
        ModelUsage("claude-opus-4-7", Usage(2000, output_tokens=300)),
        ModelUsage(None, Usage(9000, output_tokens=50)),
    )


def test_a_single_iteration_is_the_call_itself() -> None:
    raw = {"input_tokens": 54, "output_tokens": 14, "iterations": [call("message", 54, 14)]}
    assert parse(message(raw)).usage == Usage(54, output_tokens=14)


def test_iterations_that_leave_something_out_do_not_lower_the_bill() -> None:
    raw = {"input_tokens": 500, "output_tokens": 14, "iterations": [call("message", 54, 7), call("message", 54, 7)]}
    assert parse(message(raw)).usage == Usage(500, output_tokens=14)


def test_the_request_is_read() -> None:
    body = {
        "model": "claude-sonnet-5",
        "stream": True,
        "metadata": {"user_id": "u"},
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    }
    ask = MESSAGES.parse_request(json.dumps(body).encode(), "/v1/messages?beta=true")
    assert (ask.model, ask.stream, ask.user, ask.preview) == ("claude-sonnet-5", True, "u", "hi")
    ask = MESSAGES.parse_request(b"{}", "/v1/projects/p/publishers/anthropic/models/claude-x@1:streamRawPredict")
    assert (ask.model, ask.stream) == ("claude-x@1", True)


@pytest.mark.parametrize(
    ("user_id", "user"),
    [
        ('{"device_id":"d1","account_uuid":"a1","session_id":"s1"}', "a1"),
        ('{"device_id":"d1","account_uuid":"","session_id":"s1"}', "d1"),
        ("user_d1_account_a1_session_s1", "user_d1_account_a1"),
        ("user_d1_account__session_s1", "user_d1_account_"),
        ("ada_session_1", "ada_session_1"),
        ("user_session_", "user_session_"),
        ('{"a":1}', '{"a":1}'),
        ('{"device_id":', '{"device_id":'),
        ('{"device_id":[1]}', None),
        (7, "7"),
    ],
)
def test_the_session_is_no_part_of_claude_codes_user(user_id: object, user: str | None) -> None:
    body = json.dumps({"metadata": {"user_id": user_id}}).encode()
    assert MESSAGES.parse_request(body, "/v1/messages").user == user


def test_legacy_completions_have_no_usage() -> None:
    form = FORMATS["anthropic_complete"]
    body = b'{"completion":" Hello!","stop_reason":"stop_sequence","model":"claude-2"}'
    reply = form.parse_response(body, {})
    assert (reply.usage, reply.preview, reply.finish_reason, reply.model) == (
        None,
        "Hello!",
        "stop_sequence",
        "claude-2",
    )
    streamed = (
        b'event: completion\ndata: {"completion":" Hel","stop_reason":null,"model":"claude-2"}\n\n'
        b'event: completion\ndata: {"completion":"lo","stop_reason":"max_tokens","model":"claude-2"}\n\n'
    )
    reply = form.parse_response(streamed, {})
    assert (reply.text, reply.finish_reason, reply.complete) == (" Hello", "max_tokens", True)
