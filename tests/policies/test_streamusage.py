"""Stream usage and forced chunk format: helicone-proxy.md section 2.1."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliproxy.policies.streamusage import ChunkJoiner, UsageHider, ask_for_usage


@pytest.mark.parametrize(
    ("body", "changed"),
    [
        (b'{"stream": true}', b'{"stream_options":{"include_usage":true},"stream": true}'),
        (b' {\n"stream":true,"t":1.50}', b' {"stream_options":{"include_usage":true},\n"stream":true,"t":1.50}'),
        (b'{"stream":true,"stream_options":null}', b'{"stream":true,"stream_options":{"include_usage":true}}'),
        (
            b'{"stream":true,"stream_options":{"x":1,"include_usage":false}}',
            b'{"stream":true,"stream_options":{"x":1,"include_usage":true}}',
        ),
        (b'{"stream":true,"stream_options":{"include_usage":true}}', None),
        (b'{"stream":false}', None),
        (b"{}", None),
        (b'{"stream":"true"}', None),
        (b"[true]", None),
        (b"not json", None),
        (b"", None),
    ],
)
def test_asking_for_usage(body: bytes, changed: bytes | None) -> None:
    assert ask_for_usage(body) == changed


CHUNK = b'data: {"choices":[{"delta":{"content":"hi"}}],"usage":null}\n\n'
USAGE = b'data: {"id":"x","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'
FILTER = b'data: {"choices":[],"prompt_filter_results":[]}\n\n'
DONE = b"data: [DONE]\n\n"


def through(data: bytes, size: int) -> bytes:
    hider = UsageHider()
    return b"".join([hider.feed(data[i : i + size]) for i in range(0, len(data), size)] + [hider.end()])


@pytest.mark.parametrize("size", [1, 2, 7, 64, 10_000])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_usage_chunk_is_hidden_and_nothing_else(size: int, newline: bytes) -> None:
    events = [b": ping\n\n", FILTER, CHUNK, CHUNK, USAGE, DONE, b"tail"]
    whole = b"".join(events).replace(b"\n", newline)
    expected = b"".join(e for e in events if e is not USAGE).replace(b"\n", newline)
    assert through(whole, size) == expected


def test_usage_chunk_without_its_last_blank_line_is_hidden_too() -> None:
    assert through(CHUNK + USAGE.rstrip(), 5) == CHUNK


def test_finished_events_are_not_held_back() -> None:
    assert UsageHider().feed(CHUNK + b"data: ") == CHUNK


def test_endless_event_flows_on() -> None:
    hider = UsageHider()
    big = b"data: " + b"x" * (1 << 20) + b"y"
    assert hider.feed(big) == big
    assert hider.feed(b"z\n\n" + USAGE + DONE) == b"z\n\n" + DONE


@given(st.lists(st.binary(max_size=30)))
def test_other_bytes_pass_unchanged(chunks: list[bytes]) -> None:
    hider = UsageHider()
    assert b"".join([hider.feed(c) for c in chunks] + [hider.end()]) == b"".join(chunks)


def test_short_chunks_are_joined_with_the_next_and_none_is_lost() -> None:
    joiner = ChunkJoiner()
    assert [
        joiner.feed(b"a" * 10),
        joiner.feed(b"b" * 10),
        joiner.feed(b"c" * 50),
        joiner.feed(DONE),
        joiner.end(),
    ] == [
        b"",
        b"",
        b"a" * 10 + b"b" * 10 + b"c" * 50,
        b"",
        DONE,
    ]


def test_asking_keeps_the_body_valid() -> None:
    changed = ask_for_usage(b'{"stream":true,"messages":[{"role":"user","content":"{"}]}')
    assert changed is not None
    assert json.loads(changed)["stream_options"] == {"include_usage": True}
