import base64
import json
from typing import Any

import pytest

from heliproxy.exchange import Reply, Usage
from heliproxy.formats import FORMATS
from heliproxy.formats.eventstream import encode_message


def parse(form: str, body: Any, headers: dict[str, str] | None = None) -> Reply:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return FORMATS[form].parse_response(data, headers or {})


def event(kind: str, payload: Any) -> bytes:
    return encode_message({":message-type": "event", ":event-type": kind}, json.dumps(payload).encode())


def chunk(native: Any) -> bytes:
    return event("chunk", {"bytes": base64.b64encode(json.dumps(native).encode()).decode(), "p": "abc"})


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"inputTokens": 28, "outputTokens": 26, "totalTokens": 54}, Usage(28, output_tokens=26)),
        (
            {"inputTokens": 11, "outputTokens": 2, "cacheReadInputTokens": 100, "cacheWriteInputTokens": 1000},
            Usage(
                1111,
                cache_read_tokens=100,
                cache_write_tokens=1000,
                cache_write_5m_tokens=1000,
                cache_write_1h_tokens=0,
                output_tokens=2,
            ),
        ),
        (
            {
                "inputTokens": 3,
                "outputTokens": 2,
                "cacheWriteInputTokens": 30,
                "cacheDetails": [{"ttl": "5m", "inputTokens": 10}, {"ttl": "1h", "inputTokens": 20}],
            },
            Usage(
                33,
                cache_write_tokens=30,
                cache_write_5m_tokens=10,
                cache_write_1h_tokens=20,
                output_tokens=2,
            ),
        ),
    ],
)
def test_converse_input_excludes_the_cache(raw: Any, expected: Usage) -> None:
    body = {
        "output": {"message": {"content": [{"text": "hi"}, {"toolUse": {"name": "f", "input": {"a": 1}}}]}},
        "stopReason": "tool_use",
        "usage": raw,
        "serviceTier": {"type": "priority"},
    }
    reply = parse("bedrock_converse", body)
    assert reply.usage == expected
    assert (reply.preview, reply.tool_calls, reply.finish_reason) == ("hi", 1, "tool_use")
    assert reply.pricing == {"tier": "priority"}


CONVERSE = (
    event("messageStart", {"role": "assistant"})
    + event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "Hel"}})
    + event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "lo"}})
    + event("messageStop", {"stopReason": "end_turn"})
    + event("metadata", {"usage": {"inputTokens": 5, "outputTokens": 2}, "metrics": {"latencyMs": 1}})
)


@pytest.mark.parametrize("size", [1, 100, 100_000])
def test_a_converse_stream_ends_with_its_usage(size: int) -> None:
    parser = FORMATS["bedrock_converse"].stream("application/vnd.amazon.eventstream")
    for start in range(0, len(CONVERSE), size):
        parser.feed(CONVERSE[start : start + size])
    reply = parser.result()
    assert (reply.usage, reply.preview, reply.finish_reason) == (Usage(5, output_tokens=2), "Hello", "end_turn")
    assert reply.complete
    assert parse("bedrock_converse", CONVERSE) == reply


def test_a_cut_converse_stream_is_incomplete() -> None:
    reply = parse("bedrock_converse", CONVERSE[:-20])
    assert (reply.usage, reply.text, reply.complete) == (None, "Hello", False)


@pytest.mark.parametrize("form", ["bedrock_converse", "bedrock_invoke"])
def test_an_exception_inside_a_stream_is_an_error(form: str) -> None:
    headers = {":message-type": "exception", ":exception-type": "throttlingException"}
    reply = parse(form, encode_message(headers, b'{"message":"Too many"}'))
    assert (reply.error_type, reply.error, reply.error_status) == ("throttlingException", "Too many", 429)


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        (
            {"type": "message", "model": "claude", "content": [], "usage": {"input_tokens": 12, "output_tokens": 8}},
            {},
            Usage(12, output_tokens=8),
        ),
        (
            {"output": {}, "stopReason": "end_turn", "usage": {"inputTokens": 5, "outputTokens": 6}},
            {"x-amzn-bedrock-output-token-count": "99"},
            Usage(5, output_tokens=6),
        ),
        (
            {"inputTextTokenCount": 5, "results": [{"tokenCount": 60}, {"tokenCount": 1}]},
            {},
            Usage(5, output_tokens=61),
        ),
        ({"embedding": [], "inputTextTokenCount": 5}, {}, Usage(5)),
        ({"generation": "x", "prompt_token_count": 10, "generation_token_count": 60}, {}, Usage(10, output_tokens=60)),
        (
            {"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": 3, "completion_tokens": 4}},
            {},
            Usage(3, output_tokens=4),
        ),
        (
            {"outputs": [{"text": "x", "stop_reason": "stop"}]},
            {"x-amzn-bedrock-input-token-count": "40", "x-amzn-bedrock-output-token-count": "20"},
            Usage(40, output_tokens=20),
        ),
        ({"results": [{"index": 1, "relevance_score": 0.5}]}, {}, None),
        ({"x": 1}, {"x-amzn-bedrock-input-token-count": "-1"}, None),
    ],
)
def test_invoked_models_report_in_their_own_way(body: Any, headers: dict[str, str], expected: Usage | None) -> None:
    reply = parse("bedrock_invoke", body, headers)
    assert reply.usage == expected
    assert reply.model is None


METRICS = {"inputTokenCount": 20, "outputTokenCount": 10, "invocationLatency": 347}


def test_invoke_streams_of_claude() -> None:
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 9, "output_tokens": 1}}}
    text = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}}
    delta = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 4}}
    stop = {"type": "message_stop", "amazon-bedrock-invocationMetrics": METRICS}
    reply = parse("bedrock_invoke", b"".join(map(chunk, (start, text, delta, stop))))
    assert (reply.usage, reply.preview, reply.complete) == (Usage(9, output_tokens=4), "hi", True)


@pytest.mark.parametrize(
    "natives",
    [
        [{"is_finished": False, "text": "a"}, {"is_finished": True, "finish_reason": "MAX_TOKENS"}],
        [{"generation": "a", "stop_reason": None}, {"generation": "", "stop_reason": "length"}],
        [{"outputText": "a", "index": 0}, {"outputText": "", "completionReason": "FINISH"}],
        [{"outputs": [{"text": "a"}]}, {"outputs": [{"text": "", "stop_reason": "stop"}]}],
    ],
)
def test_invoke_streams_of_others_end_with_metrics(natives: list[Any]) -> None:
    natives = [natives[0], {**natives[1], "amazon-bedrock-invocationMetrics": METRICS}]
    reply = parse("bedrock_invoke", b"".join(map(chunk, natives)))
    assert (reply.usage, reply.text, reply.complete) == (Usage(20, output_tokens=10), "a", True)
    assert reply.finish_reason


def test_invoke_streams_of_nova_are_converse_events() -> None:
    natives = [
        {"messageStart": {"role": "assistant"}},
        {"contentBlockDelta": {"delta": {"text": "hi"}, "contentBlockIndex": 0}},
        {"messageStop": {"stopReason": "end_turn"}},
        {"metadata": {"usage": {"inputTokens": 12, "outputTokens": 13}}, "amazon-bedrock-invocationMetrics": METRICS},
    ]
    reply = parse("bedrock_invoke", b"".join(map(chunk, natives)))
    assert (reply.usage, reply.text, reply.finish_reason) == (Usage(12, output_tokens=13), "hi", "end_turn")


@pytest.mark.parametrize(
    ("path", "model", "stream"),
    [
        ("/model/us.anthropic.claude-v2%3A1/converse", "us.anthropic.claude-v2:1", False),
        ("/model/amazon.nova-lite-v1:0/invoke-with-response-stream", "amazon.nova-lite-v1:0", True),
        ("/model/arn%3Aaws%3Abedrock%3Aus%3A1%3Aprofile%2Fx/converse-stream", "arn:aws:bedrock:us:1:profile/x", True),
        ("/model/arn:aws:bedrock:us:1:profile/x/converse", "arn:aws:bedrock:us:1:profile/x", False),
    ],
)
def test_the_model_is_in_the_path(path: str, model: str, stream: bool) -> None:
    ask = FORMATS["bedrock_converse"].parse_request(b'{"messages":[{"role":"user","content":[{"text":"q"}]}]}', path)
    assert (ask.model, ask.stream, ask.preview) == (model, stream, "q")
