"""Cohere, Ollama, OCR."""

import json
from typing import Any

import pytest

from heliproxy.exchange import Reply, Usage
from heliproxy.formats import FORMATS


def parse(form: str, body: Any) -> Reply:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return FORMATS[form].parse_response(data, {})


BILLED = {"billed_units": {"input_tokens": 6, "output_tokens": 33.0}, "tokens": {"input_tokens": 501}}


@pytest.mark.parametrize(
    ("form", "body", "expected"),
    [
        ("cohere_chat", {"text": "hi", "meta": BILLED}, Usage(6, output_tokens=33)),
        ("cohere_chat", {"message": {"content": [{"text": "hi"}]}, "usage": BILLED}, Usage(6, output_tokens=33)),
        ("cohere_chat", {"usage": {"tokens": {"input_tokens": 5, "output_tokens": 1}}}, Usage(5, output_tokens=1)),
        ("cohere_chat", {"usage": {}}, None),
        ("cohere_embed", {"meta": {"billed_units": {"input_tokens": 4}}}, Usage(4)),
        ("cohere_embed", {"meta": {"billed_units": {"images": 2, "input_tokens": 0}}}, Usage(0, units={"images": 2.0})),
        ("cohere_rerank", {"meta": {"billed_units": {"search_units": 1}}}, Usage(units={"search_units": 1.0})),
        ("cohere_rerank", {"model": "rerank-2", "usage": {"total_tokens": 26}}, Usage(26)),
        ("ollama_chat", {"done": True, "prompt_eval_count": 310, "eval_count": 145}, Usage(310, output_tokens=145)),
        ("ollama_chat", {"done": True, "eval_count": 145}, Usage(None, output_tokens=145)),
        ("ollama_embed", {"embeddings": [], "prompt_eval_count": 8}, Usage(8)),
        ("mistral_ocr", {"pages": [], "usage_info": {"pages_processed": 3}}, Usage(units={"pages": 3.0})),
    ],
)
def test_usage(form: str, body: Any, expected: Usage | None) -> None:
    assert parse(form, body).usage == expected


V2 = [
    {"id": "c1", "type": "message-start", "delta": {"message": {"role": "assistant"}}},
    {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "Hel"}}}},
    {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "lo"}}}},
    {"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": BILLED}},
]
V1 = [
    {"is_finished": False, "event_type": "stream-start", "generation_id": "c1"},
    {"is_finished": False, "event_type": "text-generation", "text": "Hel"},
    {"is_finished": False, "event_type": "text-generation", "text": "lo"},
    {"is_finished": True, "event_type": "stream-end", "finish_reason": "COMPLETE", "response": {"meta": BILLED}},
]


@pytest.mark.parametrize(
    "body",
    [
        "".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in V2).encode(),
        "".join(f"event: {e['event_type']}\ndata: {json.dumps(e)}\n\n" for e in V1).encode(),
        "".join(json.dumps(e) + "\n" for e in V1).encode(),
    ],
    ids=["v2", "v1-sse", "v1-lines"],
)
def test_cohere_streams(body: bytes) -> None:
    wanted = (Usage(6, output_tokens=33), "Hello", "COMPLETE", "c1", True)
    parser = FORMATS["cohere_chat"].stream("")
    for start in range(0, len(body), 11):
        parser.feed(body[start : start + 11])
    for reply in (parse("cohere_chat", body), parser.result()):
        assert (reply.usage, reply.preview, reply.finish_reason, reply.response_id, reply.complete) == wanted
    assert not parse("cohere_chat", body[:150]).complete


def test_ollama_streams_unless_told_otherwise() -> None:
    form = FORMATS["ollama_chat"]
    assert form.parse_request(b'{"model":"m","messages":[]}', "/api/chat").stream
    assert not form.parse_request(b'{"model":"m","stream":false}', "/api/chat").stream


def test_ollama_lines() -> None:
    lines = [
        {"model": "llama3", "message": {"content": "Hel"}, "done": False},
        {"model": "llama3", "message": {"content": "lo", "tool_calls": [{"function": {"name": "f"}}]}, "done": False},
        {"model": "llama3", "done": True, "done_reason": "stop", "prompt_eval_count": 3, "eval_count": 2},
    ]
    body = "".join(json.dumps(line) + "\n" for line in lines).encode()
    reply = parse("ollama_chat", body)
    assert (reply.usage, reply.preview, reply.tool_calls) == (Usage(3, output_tokens=2), "Hello", 1)
    assert (reply.model, reply.finish_reason, reply.complete) == ("llama3", "stop", True)
    cut = parse("ollama_chat", body[:120])
    assert (cut.usage, cut.complete) == (None, False)
    assert parse("ollama_chat", b'{"error":"model not found"}\n').error == "model not found"
