import json
from typing import Any

import pytest

from heliproxy.exchange import Reply, Usage
from heliproxy.formats import FORMATS


def parse(form: str, body: Any) -> Reply:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return FORMATS[form].parse_response(data, {})


def reply_of(text: str, usage: dict[str, Any] | None = None, finish: str | None = None) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": [{"text": text}], "role": "model"}}
    if finish:
        candidate["finishReason"] = finish
    body: dict[str, Any] = {"candidates": [candidate], "modelVersion": "gemini-3-pro", "responseId": "r"}
    return body if usage is None else {**body, "usageMetadata": usage}


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({"promptTokenCount": 27, "candidatesTokenCount": 10, "totalTokenCount": 37}, Usage(27, output_tokens=10)),
        # Thoughts and tool prompts stand beside, the cache inside.
        (
            {
                "promptTokenCount": 100,
                "cachedContentTokenCount": 64,
                "toolUsePromptTokenCount": 7,
                "candidatesTokenCount": 10,
                "thoughtsTokenCount": 90,
            },
            Usage(107, cache_read_tokens=64, output_tokens=100, reasoning_tokens=90),
        ),
        (
            {
                "promptTokenCount": 521,
                "candidatesTokenCount": 5,
                "promptTokensDetails": [
                    {"modality": 2, "tokenCount": 500},
                    {"modality": "AUDIO", "tokenCount": 16},
                    {"modality": 1, "tokenCount": 5},
                ],
                "cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 4}],
                "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 5}],
            },
            Usage(
                521,
                output_tokens=5,
                input_audio_tokens=16,
                cache_read_audio_tokens=4,
                input_image_tokens=500,
                output_image_tokens=5,
            ),
        ),
        ({"promptTokenCount": 9}, Usage(9, output_tokens=0)),
        ({"promptTokenCount": 9, "responseTokenCount": 3}, Usage(9, output_tokens=3)),
        ({"candidatesTokenCount": 18, "thoughtsTokenCount": 58}, Usage(None, output_tokens=76, reasoning_tokens=58)),
        ({"trafficType": "ON_DEMAND"}, None),
        ({"promptTokenCount": "x", "promptTokensDetails": [None, 7, {"modality": []}]}, None),
        ([], None),
    ],
)
def test_usage_metadata(meta: Any, expected: Usage | None) -> None:
    assert parse("gemini_generate", reply_of("a", meta, "STOP")).usage == expected


@pytest.mark.parametrize(
    ("meta", "tier"),
    [
        ({"promptTokenCount": 1, "trafficType": "ON_DEMAND_FLEX"}, "flex"),
        ({"promptTokenCount": 1, "trafficType": "PROVISIONED_THROUGHPUT"}, "provisioned"),
        ({"promptTokenCount": 1, "serviceTier": "standard"}, "standard"),
        ({"promptTokenCount": 1, "trafficType": 1}, None),
    ],
)
def test_the_kind_of_traffic_is_the_tier(meta: Any, tier: str | None) -> None:
    assert parse("gemini_generate", reply_of("a", meta)).pricing.get("tier") == tier


CHUNKS = [
    reply_of("Hel", {"promptTokenCount": 8, "totalTokenCount": 8}),
    reply_of("lo", {"promptTokenCount": 8, "candidatesTokenCount": 1, "totalTokenCount": 9}),
    reply_of(" you", {"promptTokenCount": 8, "candidatesTokenCount": 3, "thoughtsTokenCount": 20}, "STOP"),
]
SSE = "".join(f"data: {json.dumps(c)}\r\n\r\n" for c in CHUNKS).encode()


@pytest.mark.parametrize("body", [SSE, json.dumps(CHUNKS, indent=1).encode()], ids=["sse", "array"])
def test_the_last_usage_of_a_stream_counts(body: bytes) -> None:
    reply = parse("gemini_generate", body)
    assert reply.usage == Usage(8, output_tokens=23, reasoning_tokens=20)
    assert (reply.preview, reply.finish_reason, reply.complete) == ("Hello you", "STOP", True)
    parser = FORMATS["gemini_generate"].stream("application/json")
    for start in range(0, len(body), 7):
        parser.feed(body[start : start + 7])
    assert parser.result() == reply


def test_cut_streams_keep_their_input() -> None:
    for body in (SSE[:300], json.dumps(CHUNKS).encode()[:300]):
        parser = FORMATS["gemini_generate"].stream("application/json")
        parser.feed(body)
        reply = parser.result()
        assert not reply.complete
        assert reply.usage == Usage(8)
        assert reply.text == "Hel"


def test_code_assist_wraps_its_replies() -> None:
    body = {"response": reply_of("hi", {"promptTokenCount": 4, "candidatesTokenCount": 1}, "STOP"), "traceId": "t"}
    assert parse("gemini_generate", body).usage == Usage(4, output_tokens=1)
    assert parse("gemini_generate", f"data: {json.dumps(body)}\n\n".encode()).usage == Usage(4, output_tokens=1)
    request = {"model": "gemini-2.5-pro", "request": {"contents": [{"role": "user", "parts": [{"text": "hey"}]}]}}
    ask = FORMATS["gemini_generate"].parse_request(json.dumps(request).encode(), "/v1internal:streamGenerateContent")
    assert (ask.model, ask.stream, ask.preview) == ("gemini-2.5-pro", True, "hey")


def test_thoughts_and_calls_are_output() -> None:
    parts = [{"text": "hm", "thought": True}, {"text": "ok"}, {"functionCall": {"name": "f", "args": {"a": 1}}}]
    reply = parse("gemini_generate", {"candidates": [{"content": {"parts": parts}}]})
    assert (reply.text, reply.preview, reply.tool_calls) == ('hmokf{"a": 1}', "ok", 1)


def test_a_blocked_prompt_says_so() -> None:
    body = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 3}}
    assert parse("gemini_generate", body).finish_reason == "SAFETY"


def test_the_model_is_in_the_path() -> None:
    form = FORMATS["gemini_generate"]
    ask = form.parse_request(
        b'{"contents":[{"parts":[{"text":"x"}]}]}', "/v1beta/models/gemini-3-pro:generateContent?key=k"
    )
    assert (ask.model, ask.stream, ask.preview) == ("gemini-3-pro", False, "x")


@pytest.mark.parametrize(
    ("form", "body", "expected"),
    [
        ("gemini_embed", {"embeddings": [{"values": [0.1]}]}, None),
        ("gemini_embed", {"embeddings": [], "usageMetadata": {"promptTokenCount": 8}}, 8),
        ("vertex_predict", {"predictions": [{"embeddings": {"statistics": {"token_count": 3.0}}}] * 2}, 6),
        ("vertex_predict", {"predictions": ["text"]}, None),
    ],
)
def test_embeddings_count_their_input(form: str, body: Any, expected: int | None) -> None:
    usage = parse(form, body).usage
    assert (usage and usage.input_tokens) == expected


def test_images_of_predict_are_counted() -> None:
    body = {"predictions": [{"bytesBase64Encoded": "AA", "mimeType": "image/png"}] * 3}
    assert parse("vertex_predict", body).usage == Usage(units={"images": 3})


INTERACTION = {
    "id": "v1_x",
    "model": "gemini-3-flash",
    "status": "completed",
    "steps": [
        {"type": "thought", "summary": [{"type": "text", "text": "hm"}]},
        {"type": "model_output", "content": [{"type": "text", "text": "Hello"}]},
    ],
    "usage": {
        "total_input_tokens": 9,
        "total_cached_tokens": 2,
        "total_tool_use_tokens": 5,
        "total_output_tokens": 7,
        "total_thought_tokens": 12,
        "input_tokens_by_modality": [{"modality": "text", "tokens": 9}],
    },
}


def test_interactions_have_their_own_names() -> None:
    wanted = Usage(14, cache_read_tokens=2, output_tokens=19, reasoning_tokens=12)
    reply = parse("gemini_interactions", INTERACTION)
    assert (reply.usage, reply.preview, reply.text) == (wanted, "Hello", "hmHello")
    events = [
        {"event_type": "interaction.created", "interaction": {"id": "v1_x", "status": "in_progress"}},
        {"event_type": "step.delta", "index": 0, "delta": {"type": "text", "text": "Hello"}},
        {"event_type": "interaction.completed", "interaction": INTERACTION},
    ]
    body = "".join(f"event: {e['event_type']}\ndata: {json.dumps(e)}\n\n" for e in events).encode()
    reply = parse("gemini_interactions", body)
    assert (reply.usage, reply.preview, reply.complete) == (wanted, "Hello", True)
    assert not parse("gemini_interactions", body[:200]).complete
