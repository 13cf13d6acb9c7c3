"""Estimates when a provider reports no usage."""

from __future__ import annotations

import base64
import json
import socket
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliproxy import encodings
from heliproxy.encodings import CL100K, O200K, Budget, count_tokens
from heliproxy.exchange import Reply, Usage
from heliproxy.token_prompt import Image, image_size
from heliproxy.tokens import MAX_CHARACTERS, estimate, image_tokens, render_tools

CORPUS = Path(__file__).resolve().parents[2] / "shared" / "corpus" / "public.jsonl"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"a socket was opened: {args}")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def tokens(
    request: Any, model: str, text: str = "", shape: str = "openai_chat", provider: str = "other", **reply: Any
) -> tuple[Any, Any, bool]:
    found = estimate(shape, provider, model, json.dumps(request).encode(), Reply(text=text, **reply))
    assert found is not None
    return found.usage.input_tokens, found.usage.output_tokens, found.lower_bound


def chat(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": list(messages), **more}


HELLO = {"role": "user", "content": "Hello, world!"}


@pytest.mark.parametrize(
    ("encoding", "text", "count"), [(O200K, "Hello, world!", 4), (CL100K, "tiktoken is great!", 6)]
)
def test_encodings_load_without_a_network(encoding: str, text: str, count: int) -> None:
    encodings.load.cache_clear()
    assert count_tokens(text, encoding, Budget(100)) == count


def test_encodings_equal_those_of_tiktoken() -> None:
    from tiktoken_ext import openai_public

    source = Path(openai_public.__file__).read_text(encoding="utf-8")
    assert encodings.SHA256[O200K] in source
    assert encodings.SHA256[CL100K] in source


@pytest.mark.parametrize(
    ("model", "request_", "count"),
    [
        ("gpt-4o", chat(HELLO), 11),
        ("gpt-4o-2024-08-06", chat({"role": "system", "content": "You are helpful."}, HELLO), 19),
        ("gpt-4", chat(HELLO), 11),
        ("gpt-3.5-turbo-0125", chat({**HELLO, "name": "bob"}), 13),
        ("gpt-5-mini", chat(HELLO), 10),
        ("o3", chat(HELLO), 10),
        ("gpt-4o", {"input": "Hello, world!", "instructions": None, "stream": True}, 11),
    ],
)
def test_openai_chat_framing_is_counted(model: str, request_: dict[str, Any], count: int) -> None:
    assert tokens(request_, model)[0] == count


@pytest.mark.parametrize(
    ("format_", "request_", "count"),
    [
        ("openai_completions", {"prompt": "Hello, world!"}, 4),
        ("openai_completions", {"prompt": ["Hello", "world"]}, 2),
        ("openai_completions", {"prompt": [1, 2, 3]}, 3),
        ("openai_embeddings", {"input": "Hello, world!", "model": "text-embedding-3-small"}, 4),
        ("openai_embeddings", {"input": [[1, 2], [3]]}, 3),
    ],
)
def test_text_without_chat_framing_is_counted_alone(format_: str, request_: dict[str, Any], count: int) -> None:
    assert tokens(request_, "text-embedding-3-small", shape=format_)[0] == count


def test_embeddings_have_no_output() -> None:
    assert tokens({"input": "Hello"}, "text-embedding-3-small", shape="openai_embeddings")[1] is None


@pytest.mark.parametrize(
    "request_",
    [
        {"system": "Be brief.", "messages": [{"role": "user", "content": [{"type": "text", "text": "word " * 100}]}]},
        {"contents": [{"role": "user", "parts": [{"text": "word " * 100}]}]},
        {"request": {"contents": [{"parts": [{"text": "word " * 100}]}]}},
        {"messages": [{"role": "user", "content": [{"text": "word " * 100}]}], "inferenceConfig": {}},
        {"message": "word " * 100, "chat_history": []},
        {"prompt": "word " * 100, "stream": True},
        {"inputText": "word " * 100},
        {"input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "word " * 100}]}]},
        {"input": [{"type": "function_call_output", "call_id": "c", "output": "word " * 100}]},
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "word " * 100}]}]},
        {"contents": [{"parts": [{"functionResponse": {"name": "f", "response": {"x": "word " * 100}}}]}]},
    ],
)
def test_every_request_shape_is_read(request_: dict[str, Any]) -> None:
    counted = tokens(request_, "some-model", shape="any")[0]
    assert 100 <= counted <= 125


def test_output_counts_text_and_tool_calls() -> None:
    assert tokens(chat(HELLO), "gpt-4o", "Hello, world!")[1] == 4
    assert tokens(chat(HELLO), "gpt-4o", "Hello, world!", tool_calls=1)[1] == 11
    assert tokens(chat(HELLO), "gpt-4o", "Hello, world!", tool_calls=2)[1] == 32


@pytest.mark.parametrize(
    ("model", "factor"),
    [("claude-sonnet-4-5", 1.16), ("claude-opus-4-8", 1.49), ("gemini-2.5-flash", 1.06), ("x", 1.0)],
)
def test_other_vendors_count_more_tokens_than_openai(model: str, factor: float) -> None:
    assert tokens(chat(HELLO), model, "word " * 1000)[1] == pytest.approx(1001 * factor, abs=2)


@pytest.mark.parametrize(("provider", "count"), [("azure", 11), ("anthropic", 12), ("other", 10)])
def test_names_that_tell_nothing_count_as_the_providers_usual_model(provider: str, count: int) -> None:
    assert tokens(chat(HELLO), "my-deployment", provider=provider)[0] == count


def test_hidden_reasoning_makes_a_lower_bound() -> None:
    assert tokens(chat(HELLO), "gpt-5-mini", "Hi")[2] is True
    assert tokens(chat(HELLO, reasoning_effort="none"), "gpt-5.1", "Hi")[2] is False
    assert tokens(chat(HELLO), "gpt-4o", "Hi")[2] is False
    assert tokens(chat(HELLO), "grok-4-1-fast-non-reasoning", "Hi")[2] is False


def test_input_kept_by_the_provider_makes_a_lower_bound() -> None:
    assert tokens({"input": "Hi", "previous_response_id": "resp_1"}, "gpt-4o", "Hi")[2] is True
    assert tokens(chat({"role": "user", "content": [{"type": "file", "file": {"file_id": "x"}}]}), "gpt-4o")[2] is True


def test_reported_input_of_a_cut_stream_is_kept() -> None:
    known = Usage(input_tokens=762, cache_read_tokens=10, output_tokens=1)
    reply = Reply(usage=known, complete=False, text="word " * 10)
    found = estimate("anthropic_messages", "anthropic", "claude-3-opus", json.dumps(chat(HELLO)).encode(), reply)
    assert found is not None
    assert (found.usage.input_tokens, found.usage.cache_read_tokens, found.usage.output_tokens) == (762, 10, 13)
    assert found.lower_bound


def test_reported_output_is_never_lowered() -> None:
    reply = Reply(usage=Usage(input_tokens=5, output_tokens=99), complete=False, text="Hi")
    found = estimate("openai_chat", "openai", "gpt-4o", b"{}", reply)
    assert found is not None
    assert found.usage.output_tokens == 99


@pytest.mark.parametrize(
    "format_", ["openai_images", "openai_speech", "openai_transcription", "cohere_rerank", "mistral_ocr"]
)
def test_calls_not_billed_by_text_are_not_estimated(format_: str) -> None:
    assert estimate(format_, "openai", "m", b'{"prompt": "a cat"}', Reply()) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"[1]",
        b"{",
        b"[" * 100_000,
        b'{"messages": 5, "tools": "x", "input": {"a": 1}, "contents": 7, "prompt": {}}',
        b'{"messages": [null, 1, "x", [], {"content": {"type": "image"}}, {"content": [null, {"source": 3}]}]}',
        b'{"messages": [{"role": 5, "content": "\\ud800"}], "tools": [{"function": {"name": 1, "parameters": []}}, 4]}',
        (
            b'{"messages": [{"content": "x"}], "tools": [{"name": "f", "parameters": {"properties": {"a": 1, "b": '
            b'{"enum": 5, "type": ["string", null]}, "c": {"anyOf": [1]}, '
            b'"d": {"type": "array", "items": []}}, "required": 3}}]}'
        ),
        b'{"input": [true, null, [[]], {"type": []}], "response_format": {"type": "json_schema", "json_schema": 5}}',
    ],
)
def test_odd_requests_never_raise(body: bytes) -> None:
    for model in ("gpt-4o", "claude-3-opus", None):
        estimate("openai_chat", "openai", model, body, Reply(text="Hi \ud800"))


WORDS = (  # noqa: SIM905  (every key the reader looks at)
    "messages content role parts text type image_url url source data tools function name parameters properties enum "
    "anyOf items required input output contents prompt system instructions tool_calls arguments response_format "
    "json_schema schema request requests inlineData mimeType toolConfig toolSpec inputSchema json functions "
    "tool_choice detail"
).split()
odd_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=5),
    max_leaves=25,
)


@settings(max_examples=300, deadline=None)
@given(body=st.dictionaries(st.sampled_from(WORDS), odd_json, max_size=6))
def test_any_json_is_survived(body: dict[str, Any]) -> None:
    for model in ("gpt-4o", "claude-opus-4-8"):
        found = estimate("openai_chat", "openai", model, json.dumps(body).encode(), Reply(text="x"))
        assert found is not None
        assert found.usage.input_tokens is None or found.usage.input_tokens >= 0


def test_no_request_means_no_input_rather_than_zero() -> None:
    found = estimate("openai_chat", "openai", "gpt-4o", b'{"model": "gpt-4o"}', Reply(text="Hello, world!"))
    assert found is not None
    assert (found.usage.input_tokens, found.usage.output_tokens, found.lower_bound) == (None, 4, True)
    assert estimate("openai_chat", "openai", "gpt-4o", b"", Reply()) is None


def test_very_long_text_is_extrapolated_in_bounded_time() -> None:
    text = "word " * (MAX_CHARACTERS // 5 * 4)
    began = time.process_time()
    found = estimate(
        "openai_chat", "openai", "gpt-4o", json.dumps(chat({"role": "user", "content": text})).encode(), Reply()
    )
    assert time.process_time() - began < 20
    assert found is not None
    assert found.extrapolated
    assert found.usage.input_tokens == pytest.approx(len(text) / 5, rel=0.01)


@pytest.mark.parametrize("text", ["a" * 300_000, " " * 300_000, "🙂" * 50_000, "é" * 300_000, "^" * 300_000])
def test_runs_of_one_character_stay_cheap(text: str) -> None:
    began = time.process_time()
    count_tokens(text, O200K, Budget(MAX_CHARACTERS))
    assert time.process_time() - began < 10


def test_damaged_rank_file_falls_back_to_characters(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(encodings.SHA256, O200K, "0" * 64)
    encodings.load.cache_clear()
    assert count_tokens("x" * 400, O200K, Budget(1000)) == 100
    assert "cannot be loaded" in caplog.text
    encodings.load.cache_clear()


def test_tools_are_rendered_as_typescript() -> None:
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Where"},
            "unit": {"type": "string", "enum": ["c", "f"]},
            "days": {"type": "array", "items": {"type": "integer"}},
        },
        "required": ["city"],
    }
    assert render_tools([{"name": "weather", "description": "Look it up", "parameters": schema}, {"name": "now"}]) == (
        "namespace functions {\n\n// Look it up\ntype weather = (_: {\n// Where\ncity: string,\n"
        'unit?: "c" | "f",\ndays?: number[],\n}) => any;\n\ntype now = () => any;\n\n} // namespace functions'
    )


def png(width: int, height: int) -> str:
    return base64.b64encode(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height) + b"\0" * 20).decode()


@pytest.mark.parametrize(
    ("model", "size", "low", "count"),
    [
        ("gpt-4o", (512, 512), False, 255),
        ("gpt-4o", (1024, 1024), False, 765),
        ("gpt-4o", (2048, 4096), False, 1105),
        ("gpt-4o", (4096, 8192), True, 85),
        ("gpt-4o-mini", (512, 512), False, 8500),
        ("gpt-4.1-mini", (512, 512), False, 415),
        ("o4-mini", (1024, 1024), False, 1762),
        ("gpt-4o", None, False, 765),
    ],
)
def test_images_are_sized_as_openai_does(model: str, size: tuple[int, int] | None, low: bool, count: int) -> None:
    assert image_tokens(Image(size, low), model) == count


def test_image_sizes_are_read_from_their_headers() -> None:
    jpeg = b"\xff\xd8\xff\xe0\x00\x04ab\xff\xc0\x00\x11\x08" + struct.pack(">HH", 20, 30) + b"\0" * 20
    gif = b"GIF89a" + struct.pack("<HH", 5, 6)
    assert image_size(png(7, 9)) == (7, 9)
    assert image_size(base64.b64encode(jpeg).decode()) == (30, 20)
    assert image_size(base64.b64encode(gif).decode()) == (5, 6)
    assert image_size("not an image") is None
    assert image_size("") is None


def corpus(kinds: tuple[str, ...]) -> list[dict[str, Any]]:
    if not CORPUS.exists():
        pytest.skip("the shared corpus is not beside the project")
    with CORPUS.open(encoding="utf-8") as file:
        return [line for line in map(json.loads, file) if line["kind"] in kinds]


def test_openai_estimates_meet_the_corpus() -> None:
    text: list[tuple[int, int]] = []
    tools: list[float] = []
    for line in corpus(("derived_no_usage", "no_usage")):
        truth = (line["expected"].get("truth") or {}).get("input_tokens")
        model = line["response"]["model"] or line["request"]["model"] or ""
        if not truth or not model.startswith(("gpt-", "o1", "o3", "o4", "davinci")):
            continue
        counted = tokens(json.loads(line["request"]["body"]["text"]), model)[0]
        if "tools" in line["features"]:
            tools.append(abs(counted - truth) / truth)
        else:
            text.append((counted, truth))
    exact = sum(counted == truth for counted, truth in text)
    assert len(text) >= 19
    assert exact >= 0.98 * len(text), [pair for pair in text if pair[0] != pair[1]]
    assert sorted(tools)[len(tools) // 2] <= 0.05


def test_no_corpus_request_raises() -> None:
    for line in corpus(("usage", "error", "no_usage", "derived_no_usage", "derived_truncated", "non_billable")):
        body = (line["request"].get("body") or {}).get("text") or ""
        estimate(line["flavor"] or "", line["provider"], line["request"]["model"], body.encode(), Reply(text="x"))
