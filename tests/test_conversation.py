# ruff: noqa: E501 - tables of cases read better on one line
"""Bodies of every format as turns."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliproxy.conversation import (
    Part,
    Tool,
    Turn,
    as_text,
    conversation,
    difference,
    read_request,
    read_response,
    visible,
)
from heliproxy.conversation.loading import load_cut
from heliproxy.formats import FORMATS
from heliproxy.hosts import route


def text(role: str, said: str) -> Turn:
    return Turn(role, (Part("text", said),))


REQUESTS: list[tuple[str, Any, tuple[Turn, ...]]] = [
    (
        "openai chat",
        {
            "model": "gpt-4o",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "Look"}, {"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}]},
                {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
                {"role": "tool", "tool_call_id": "c1", "content": "42"},
            ],
        },
        (
            text("system", "Be brief."),
            Turn("user", (Part("text", "Look"), Part("image", source="https://x.example/a.png"))),
            Turn("assistant", (Part("tool_call", '{"a": 1}', name="f", id="c1"),)),
            Turn("tool", (Part("tool_result", "42", id="c1"),)),
        ),
    ),
    (
        "anthropic",
        {
            "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm", "signature": "s"}, {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "42"}]}]},
            ],
        },
        (
            text("system", "Be brief."),
            text("user", "Hi"),
            Turn("assistant", (Part("thinking", "Hm"), Part("tool_call", '{"a": 1}', name="f", id="t1"))),
            Turn("tool", (Part("tool_result", "42", id="t1"),)),
        ),
    ),
    (
        "openai responses",
        {
            "instructions": "Be brief.",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm"}]},
                {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "42"},
            ],
        },
        (
            text("system", "Be brief."),
            text("user", "Hi"),
            Turn("assistant", (Part("thinking", "Hm"),)),
            Turn("assistant", (Part("tool_call", "{}", name="f", id="c1"),)),
            Turn("tool", (Part("tool_result", "42", id="c1"),)),
        ),
    ),
    ("a prompt", {"model": "m", "prompt": "Once"}, (text("user", "Once"),)),
    ("several inputs", {"input": ["a", "b"]}, (Turn("user", (Part("text", "a"), Part("text", "b"))),)),
    ("tokens", {"input": [[1, 2], [3]]}, (Turn("user", (Part("data", "(3 tokens, sent as numbers)"),)),)),
    (
        "gemini",
        {
            "systemInstruction": {"parts": [{"text": "Be brief."}]},
            "contents": [
                {"role": "user", "parts": [{"text": "Look"}, {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}]},
                {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {"a": 1}}}]},
                {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"r": 2}}}]},
            ],
        },
        (
            text("system", "Be brief."),
            Turn("user", (Part("text", "Look"), Part("image", media="image/png", source="data:image/png;base64,AAAA"))),
            Turn("assistant", (Part("tool_call", '{"a": 1}', name="f"),)),
            Turn("tool", (Part("tool_result", '{"r": 2}', name="f"),)),
        ),
    ),
    (
        "bedrock converse",
        {
            "system": [{"text": "Be brief."}],
            "messages": [
                {"role": "user", "content": [{"text": "Hi"}, {"cachePoint": {"type": "default"}}]},
                {"role": "assistant", "content": [{"toolUse": {"toolUseId": "t1", "name": "f", "input": {}}}]},
                {"role": "user", "content": [{"toolResult": {"toolUseId": "t1", "content": [{"json": {"r": 2}}]}}]},
            ],
        },
        (
            text("system", "Be brief."),
            text("user", "Hi"),
            Turn("assistant", (Part("tool_call", "{}", name="f", id="t1"),)),
            Turn("tool", (Part("tool_result", '{"r": 2}', id="t1"),)),
        ),
    ),
    ("cohere v1", {"preamble": "P", "chat_history": [{"role": "CHATBOT", "message": "A"}], "message": "B"}, (text("system", "P"), text("assistant", "A"), text("user", "B"))),
    ("rerank", {"query": "q", "documents": ["d1", {"text": "d2"}]}, (text("user", "q"), Turn("user", (Part("file", "d1"), Part("file", '{"text": "d2"}'))))),
]  # fmt: skip


@pytest.mark.parametrize(("name", "body", "turns"), REQUESTS, ids=[name for name, _, _ in REQUESTS])
def test_request_becomes_turns(name: str, body: Any, turns: tuple[Turn, ...]) -> None:
    assert read_request(json.dumps(body).encode()).turns == turns


def test_request_tells_settings_and_tools() -> None:
    body = {
        "model": "m",
        "temperature": 0.2,
        "messages": [],
        "tools": [{"type": "function", "function": {"name": "f", "description": "D"}}],
    }
    asked = read_request(json.dumps(body).encode())
    assert asked.settings == {"model": "m", "temperature": "0.2"}
    assert asked.tools == (Tool("f", "D"),)


def test_form_shows_its_files_and_fields() -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.mp3"\r\nContent-Type: audio/mpeg\r\n\r\nxxxx\r\n--b--\r\n'
    )
    asked = read_request(body, "multipart/form-data; boundary=b")
    assert asked.turns == (Turn("user", (Part("audio", "(4 bytes)", name="a.mp3", media="audio/mpeg"),)),)
    assert asked.settings == {"model": "whisper-1"}


def sse(*events: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"


def frame(name: str, payload: Any) -> bytes:
    data = json.dumps(payload).encode()
    headers = b"\x0b:event-type\x07" + struct.pack(">H", len(name)) + name.encode()
    total = 16 + len(headers) + len(data)
    return struct.pack(">II", total, len(headers)) + bytes(4) + headers + data + bytes(4)


ANSWERS: list[tuple[str, bytes, str, tuple[Turn, ...]]] = [
    ("chat", json.dumps({"choices": [{"message": {"role": "assistant", "content": "Hi"}}]}).encode(), "", (text("assistant", "Hi"),)),
    (
        "chat stream",
        sse(
            {"choices": [{"index": 0, "delta": {"role": "assistant", "reasoning_content": "H"}}]},
            {"choices": [{"index": 0, "delta": {"reasoning_content": "m"}}]},
            {"choices": [{"index": 0, "delta": {"content": "He"}}, {"index": 1, "delta": {"content": "Yo"}}]},
            {"choices": [{"index": 0, "delta": {"content": "llo"}}]},
            {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "f", "arguments": ""}}]}}]},
            {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{\"a\""}}]}}]},
            {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]}}]},
            {"choices": [], "usage": {"total_tokens": 3}},
        ),
        "text/event-stream",
        (
            Turn("assistant", (Part("thinking", "Hm"), Part("text", "Hello"), Part("tool_call", '{"a":1}', name="f", id="c1"))),
            text("assistant", "Yo"),
        ),
    ),
    (
        "anthropic stream",
        sse(
            {"type": "message_start", "message": {"content": []}},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Hm"}},
            {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "id": "t1", "name": "f", "input": {}}},
            {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": "{\"a\":"}},
            {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": "1}"}},
            {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
        ),
        "text/event-stream",
        (
            Turn("assistant", (Part("thinking", "Hm"), Part("tool_call", '{"a":1}', name="f", id="t1"))),
            Turn("error", (Part("error", "overloaded_error: Overloaded"),)),
        ),
    ),
    (
        "responses stream, cut",
        sse(
            {"type": "response.created", "response": {"id": "r"}},
            {"type": "response.output_text.delta", "output_index": 0, "delta": "He"},
            {"type": "response.output_text.delta", "output_index": 0, "delta": "llo"},
        ),
        "text/event-stream",
        (text("assistant", "Hello"),),
    ),
    (
        "responses stream, whole",
        sse(
            {"type": "response.output_text.delta", "output_index": 0, "delta": "He"},
            {"type": "response.completed", "response": {"id": "r", "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hello"}]}]}},
        ),
        "text/event-stream",
        (text("assistant", "Hello"),),
    ),
    (
        "gemini stream",
        sse({"candidates": [{"content": {"parts": [{"text": "He"}]}}]}, {"candidates": [{"content": {"parts": [{"text": "llo"}]}, "finishReason": "STOP"}]}),
        "text/event-stream",
        (text("assistant", "Hello"),),
    ),
    ("gemini array", json.dumps([{"candidates": [{"content": {"parts": [{"text": "He"}]}}]}, {"candidates": [{"content": {"parts": [{"text": "llo"}]}}]}]).encode(), "application/json", (text("assistant", "Hello"),)),
    ("ollama", b'{"message":{"content":"He"},"done":false}\n{"message":{"content":"llo"},"done":true}\n', "application/x-ndjson", (text("assistant", "Hello"),)),
    (
        "converse stream",
        frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "He"}}) + frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "llo"}}),
        "application/vnd.amazon.eventstream",
        (text("assistant", "Hello"),),
    ),
    (
        "invoke stream",
        frame("chunk", {"bytes": base64.b64encode(b'{"type":"content_block_delta","index":0,"delta":{"text":"Hello"}}').decode()}),
        "application/vnd.amazon.eventstream",
        (text("assistant", "Hello"),),
    ),
    ("cohere v2", json.dumps({"message": {"role": "assistant", "content": [{"type": "text", "text": "Hello"}]}}).encode(), "", (text("assistant", "Hello"),)),
    ("embeddings", json.dumps({"data": [{"embedding": [0.1, 0.2]}, {"embedding": [0.3, 0.4]}]}).encode(), "", (Turn("assistant", (Part("data", "(2 vectors of 2 numbers)"),)),)),
    ("image", json.dumps({"data": [{"b64_json": "AAAA"}]}).encode(), "", (Turn("assistant", (Part("image", media="image/png", source="data:image/png;base64,AAAA"),)),)),
    ("speech", b"\xff\xfb\x90", "audio/mpeg", (Turn("assistant", (Part("audio", "(3 bytes)", media="audio/mpeg"),)),)),
    ("error", json.dumps({"error": {"type": "invalid_request_error", "message": "No"}}).encode(), "", (Turn("error", (Part("error", "invalid_request_error: No"),)),)),
    ("a page", b"<html>502</html>", "text/html", (text("assistant", "<html>502</html>"),)),
    ("nothing", b"", "", ()),
]  # fmt: skip


@pytest.mark.parametrize(("name", "body", "kind", "turns"), ANSWERS, ids=[name for name, *_ in ANSWERS])
def test_answer_becomes_turns(name: str, body: bytes, kind: str, turns: tuple[Turn, ...]) -> None:
    assert read_response(body, kind) == turns


@pytest.mark.parametrize("cut", range(1, 120, 7))
def test_cut_json_is_read_as_far_as_it_goes(cut: int) -> None:
    whole = json.dumps(
        {"model": "m", "messages": [{"role": "user", "content": 'a "quoted" \\ text é'}, {"role": "x", "n": 12.5}]}
    )
    assert isinstance(load_cut(whole[:cut].encode()), dict)


def test_cut_prompt_keeps_its_beginning() -> None:
    whole = json.dumps({"messages": [{"role": "user", "content": "lorem ipsum " * 1000}]}).encode()
    (turn,) = read_request(whole[:5000]).turns
    assert turn.text.startswith("lorem ipsum lorem")
    assert len(turn.text) > 4900


def test_difference_tells_what_a_turn_added() -> None:
    first = {"model": "a", "messages": [{"role": "user", "content": "1"}], "tools": [{"name": "x"}]}
    second = {
        "model": "b",
        "messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}],
        "tools": [{"name": "y"}],
    }
    found = difference(conversation(json.dumps(first).encode(), b""), conversation(json.dumps(second).encode(), b""))
    assert (found.shared, found.removed, found.added) == (1, (), (text("assistant", "2"),))
    assert found.settings == (("model", "a", "b"),)
    assert (found.tools_added, found.tools_removed) == (("y",), ("x",))


def test_text_is_harmless_in_a_terminal() -> None:
    shown = as_text([Turn("user\x1b[2J", (Part("text", "a\x1b[31mb\r\nc\td\u202e"),))])
    assert shown == "user␛[2J\n  a␛[31mb\n  c\td<RIGHT-TO-LEFT OVERRIDE>"
    assert visible("\x00\x7f\x9b") == "␀␡<U+009B>"
    assert visible("\u061c\u2028") == "<ARABIC LETTER MARK><LINE SEPARATOR>"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["type", "role", "content", "messages", "input", "parts", "text", "choices", "delta", "message", "output", "tool_calls", "function",
             "contents", "candidates", "response", "data", "embedding", "error", "source", "image_url", "system", "tools", "documents", "results"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=20,
)  # fmt: skip


@given(JSON)
def test_no_json_makes_it_fail(value: Any) -> None:
    body = json.dumps(value).encode()
    found = conversation(body, body)
    as_text((*found.turns, *found.answers))
    read_response(b"data: " + body + b"\n\n", "text/event-stream")
    read_response(frame("contentBlockDelta", value), "application/vnd.amazon.eventstream")


@given(st.binary(max_size=300))
def test_no_bytes_make_it_fail(body: bytes) -> None:
    for kind in (
        "",
        "text/event-stream",
        "application/x-ndjson",
        "application/vnd.amazon.eventstream",
        "multipart/form-data",
    ):
        conversation(body, body, kind, kind)


def test_recorded_answers_read_as_their_formats_do(shared: Path) -> None:
    """The beginning of every recorded answer is what the format's own preview says."""
    wrong: list[str] = []
    compared = 0
    for line in (shared / "corpus" / "public.jsonl").read_text(encoding="utf-8").splitlines():
        call = json.loads(line)
        if call["kind"] != "usage" or call["flavor"] not in (
            "chat",
            "messages",
            "responses",
            "generateContent",
            "converse",
        ):
            continue
        found = route(call["request"]["method"], *_host_and_path(call["request"]["url"]))
        headers = {name.lower(): value for name, value in dict(call["response"]["headers"]).items()}
        body = _bytes(call["response"]["body"])
        if found is None or found.format not in FORMATS or not body:
            continue
        form = FORMATS[found.format]
        kind = headers.get("content-type", "")
        if call["stream"]:
            parser = form.stream(kind)
            parser.feed(body)
            preview = parser.result().preview
        else:
            preview = form.parse_response(body, headers).preview
        said = "".join(part.text for turn in read_response(body, kind) for part in turn.parts if part.kind == "text")
        compared += 1
        if "".join(preview.split())[:60] not in "".join(said.split()) and said:
            wrong.append(f"{call['id']} {call['provider']} {call['flavor']}: {preview[:80]!r} not in {said[:80]!r}")
        if preview and not read_response(body, kind):
            wrong.append(f"{call['id']}: nothing was read")
    assert compared > 200
    assert wrong == []


def _host_and_path(url: str) -> tuple[str, str]:
    host, _, path = url.partition("://")[2].partition("/")
    return host, f"/{path}"


def _bytes(body: dict[str, str] | None) -> bytes:
    if not body:
        return b""
    return body["text"].encode() if "text" in body else base64.b64decode(body.get("b64", ""))


def test_realtime_items_are_turns() -> None:
    from heliproxy.sockets import with_items

    item = b'{"type":"conversation.item.create","item":{"type":"message","role":"user","content":[{"type":"input_text","text":"Hi"}]}}'
    create = b'{"type":"response.create","response":{"instructions":"Be kind"}} '
    for body, roles in ((create, ["system", "user"]), (b"", ["user"])):
        asked = read_request(with_items(body, [item]))
        assert [turn.role for turn in asked.turns] == roles
        assert asked.turns[-1].text == "Hi"
    assert with_items(create, []) == create
    assert with_items(b"odd", [item]) == b"odd"
    assert read_request(with_items(create, [b"odd"])).turns
