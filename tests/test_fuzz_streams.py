"""Damaged streams through tap, sink and record: nothing raises, and the client's bytes stay as they came."""

from __future__ import annotations

import base64
import itertools
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mitmproxy import http

from fakes import chat_chunks, message_events
from heliproxy import hosts
from heliproxy.directives import parse
from heliproxy.exchange import Exchange
from heliproxy.formats.eventstream import encode_message
from heliproxy.record import Pricing, Sink, build_record
from heliproxy.tap import tap

CORPUS = Path(__file__).resolve().parents[2] / "shared" / "corpus" / "public.jsonl"
MUTATIONS = 10_000
TOKENS = (
    *("input_tokens", "cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens"),
    *("output_tokens", "reasoning_tokens", "input_audio_tokens", "output_audio_tokens"),
)


@dataclass(frozen=True)
class Seed:
    """One whole streamed answer."""

    url: str
    content_type: str
    body: bytes
    request: bytes = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}'


def sse(*events: dict[str, Any]) -> bytes:
    return b"".join(f"event: {e.get('type', 'x')}\ndata: {json.dumps(e)}\n\n".encode() for e in events)


def ours() -> list[Seed]:
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "prompt_tokens_details": {"cached_tokens": 40}}
    chat = b"".join(chat_chunks(["Grüße", " 😀", "!"], usage=usage))
    messages = b"".join(message_events(["Grüße", " 😀"], cache_read_input_tokens=50, cache_creation_input_tokens=7))
    spent = {"input_tokens": 12, "output_tokens": 5, "output_tokens_details": {"reasoning_tokens": 2}}
    responses = sse(
        {"type": "response.created", "response": {"id": "resp_1", "model": "gpt-5", "usage": None}},
        {"type": "response.output_text.delta", "delta": "Grüße 😀"},
        {"type": "response.completed", "response": {"id": "resp_1", "model": "gpt-5", "usage": spent}},
    )
    parts = [{"candidates": [{"content": {"parts": [{"text": "Grüße 😀"}]}, "finishReason": "STOP"}]}]
    parts[0] |= {"usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 3, "thoughtsTokenCount": 1}}  # type: ignore[dict-item]
    done = {"inputTokens": 11, "outputTokens": 4, "totalTokens": 15}
    converse = encode_message({":event-type": "contentBlockDelta"}, b'{"delta":{"text":"hi"}}') + encode_message(
        {":event-type": "metadata"}, json.dumps({"usage": done}).encode()
    )
    ollama = b'{"message":{"content":"hi"},"done":false}\n{"done":true,"prompt_eval_count":8,"eval_count":3}\n'
    return [
        Seed("https://api.openai.com/v1/chat/completions", "text/event-stream", chat),
        Seed("https://api.anthropic.com/v1/messages", "text/event-stream; charset=utf-8", messages),
        Seed("https://api.openai.com/v1/responses", "text/event-stream", responses),
        Seed(
            "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse",
            "text/event-stream",
            sse(*parts),
        ),
        Seed(
            "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash:streamGenerateContent",
            "application/json",
            json.dumps(parts, indent=1).encode(),
        ),
        Seed(
            "https://bedrock-runtime.us-east-1.amazonaws.com/model/amazon.nova-lite-v1%3A0/converse-stream",
            "application/vnd.amazon.eventstream",
            converse,
        ),
        Seed("http://localhost:11434/api/chat", "application/x-ndjson", ollama),
    ]


def recorded(limit: int = 2500) -> list[Seed]:
    """A short recorded stream of every provider and flavour, where the corpus is there."""
    found: dict[tuple[str, str], Seed] = {}
    if CORPUS.is_file():
        with CORPUS.open(encoding="utf-8") as file:
            for line in map(json.loads, file):
                seed = Seed(
                    line["request"]["url"],
                    {n.lower(): v for n, v in line["response"]["headers"].items()}.get("content-type", ""),
                    _body(line["response"]),
                    _body(line["request"]),
                )
                if line["stream"] and line["kind"] == "usage" and len(seed.body) < limit:
                    found.setdefault((line["provider"], line["flavor"]), seed)
    return list(found.values())


def _body(part: dict[str, Any]) -> bytes:
    body = part.get("body") or {}
    return base64.b64decode(body["b64"]) if "b64" in body else (body.get("text") or "").encode()


@cache
def seeds() -> tuple[Seed, ...]:
    return (*ours(), *recorded())


# ------------------------------------------------------------------------------------------------------------------
# Damage: every place is a number that is taken modulo what there is to choose from.

Damage = Callable[[bytes], bytes]
PLACES = st.integers(0, 1 << 16)
HOSTILE = (
    *(b"-1", b"1e999", b"-1e999", b"NaN", b"Infinity", b"1.5", b'"7"', b"null", b"true", b"[]", b"{}"),
    *(b"9" * 5000, b"18446744073709551616", b"9223372036854775808", b"-0", b"00", b"[" * 2000),
)
NOISE = ("é€😀".encode(), b"\xed\xa0\x80", b"\xff\xfe", b"\0", b"\n\n", b"\r", b": ping\n\n", b"data: ", b'"', b"}")


def put(body: bytes, start: int, stop: int, piece: bytes) -> bytes:
    size = len(body) + 1
    first, last = sorted((start % size, stop % size))
    return body[:first] + piece + body[last:]


def hostile(place: int, number: bytes) -> Damage:
    def damage(body: bytes) -> bytes:
        found = list(re.finditer(rb"\d+", body))
        if not found:
            return body
        match = found[place % len(found)]
        return body[: match.start()] + number + body[match.end() :]

    return damage


def repeated(start: int, stop: int) -> Damage:
    def damage(body: bytes) -> bytes:
        first, last = sorted((start % (len(body) + 1), stop % (len(body) + 1)))
        return body[:last] + body[first:]

    return damage


def unterminated(place: int) -> Damage:
    def damage(body: bytes) -> bytes:
        events = body.split(b"\n\n")
        at = place % len(events)
        return b"\n\n".join(events[:at]) + b"".join(events[at:])

    return damage


def with_endings(endings: Sequence[bytes]) -> Damage:
    def damage(body: bytes) -> bytes:
        lines = body.replace(b"\r\n", b"\n").split(b"\n")
        return b"".join(line + endings[n % len(endings)] for n, line in enumerate(lines[:-1])) + lines[-1]

    return damage


ENDINGS = st.lists(st.sampled_from([b"\n", b"\r\n"]), min_size=1, max_size=3).map(with_endings)
DAMAGE = st.one_of(
    st.builds(lambda n: lambda body: body[: n % (len(body) + 1)], PLACES),
    st.builds(lambda a, b: lambda body: put(body, a, b, b""), PLACES, PLACES),
    st.builds(lambda a, piece: lambda body: put(body, a, a, piece), PLACES, st.sampled_from(NOISE)),
    st.builds(lambda a, byte: lambda body: put(body, a, a + 1, bytes([byte])), PLACES, st.integers(0, 255)),
    st.builds(hostile, PLACES, st.sampled_from(HOSTILE)),
    st.builds(repeated, PLACES, PLACES),
    st.builds(unterminated, PLACES),
    ENDINGS,
    st.just(with_endings([b"\r"])),
)
SIZES = st.one_of(
    st.lists(st.integers(20, 700), min_size=1, max_size=4),
    st.builds(lambda first: [first, *[1] * 40], st.integers(20, 700)),
    st.just([1 << 20]),
)
"""Sizes of chunks, over and over: single bytes one stretch at a time, or ten thousand streams would take minutes."""


# ------------------------------------------------------------------------------------------------------------------
# The path


class NoPrices:
    def cost(self, *_: Any) -> None:
        return None


def ignore(_: object) -> None:
    """Neither is there a recorder to hand over to, nor a stream that stays open."""


PRICING = Pricing(NoPrices(), lambda *_: None, b"secret")
HEADERS = ((b"user-agent", b"fuzz"),)


def row_of(seed: Seed, body: bytes, sizes: Sequence[int]) -> dict[str, Any]:
    """Let a body pass in chunks of these sizes, over and over; returns the row. Asserts that each passes unchanged."""
    url = urlsplit(seed.url)
    path = url.path + (f"?{url.query}" if url.query else "")
    route = hosts.route("POST", url.netloc, path)
    assert route is not None
    response = http.Response.make(200, b"", {"content-type": seed.content_type})
    exchange = Exchange(
        *("id", time.time(), time.perf_counter(), route, parse([]), "POST", path, HEADERS),
        request_body=seed.request,
        status=200,
        response_headers=response.headers.fields,
    )
    tapped = tap("flow", exchange, response, ignore, ignore)
    at = 0
    for size in itertools.cycle(sizes):
        chunk = body[at : at + size]
        assert tapped(chunk) == chunk
        if not chunk:
            break
        at += size
    assert exchange.size_response == len(body)
    # As the recorder does it with a stream under way, only more often.
    exchange.sink = Sink(exchange)
    for chunk in exchange.chunks:
        exchange.sink.feed([chunk])
    exchange.chunks = []
    return build_record(exchange, PRICING)[0].row


def check(row: dict[str, Any]) -> None:
    for name in TOKENS:
        value = row.get(name)
        assert value is None or (type(value) is int and 0 <= value < 1 << 63), (name, value)
    for value in row.values():
        if isinstance(value, str):
            value.encode()  # SQLite takes no lone surrogates
    assert row["status"] == 200 or 400 <= row["status"] < 600


@settings(max_examples=-(-MUTATIONS // len(seeds())), deadline=None)
@given(damage=st.lists(DAMAGE, min_size=1, max_size=3), sizes=SIZES)
def test_damaged_streams_pass_untouched_and_give_a_row(damage: list[Damage], sizes: list[int]) -> None:
    for seed in seeds():
        body = seed.body
        for harm in damage:
            body = harm(body)
        row = row_of(seed, body, sizes)
        check(row)
        assert row["parse_error"] is None, (seed.url, row["parse_error"])


@settings(max_examples=30, deadline=None)
@given(endings=ENDINGS, sizes=SIZES | st.just([1]))
def test_chunks_and_line_endings_change_no_figure(endings: Damage, sizes: list[int]) -> None:
    for seed in seeds():
        body = seed.body if "amazon" in seed.content_type else endings(seed.body)
        row, whole = row_of(seed, body, sizes), row_of(seed, seed.body, [1 << 20])
        assert {name: row[name] for name in row if name in TOKENS} == {n: whole[n] for n in whole if n in TOKENS}
        assert (row["status"], row["finish_reason"], row["answer_preview"]) == (
            *(whole["status"], whole["finish_reason"], whole["answer_preview"]),
        )


@pytest.mark.parametrize("seed", ours(), ids=lambda seed: urlsplit(seed.url).path)
def test_whole_streams_are_read(seed: Seed) -> None:
    row = row_of(seed, seed.body, [1 << 20])
    assert row["usage_source"] == "provider"
    assert row["input_tokens"] > 0
    assert row["output_tokens"] > 0
