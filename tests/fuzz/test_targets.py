"""Every target of the fuzzers, for a moment: any bytes, JSON of any shape, and seeds with damage done to them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz_targets import NUMBERS, SEEDS, TARGETS

WORDS = st.sampled_from(
    """left operator right and or all request_response_rmt properties latency model equals gte contains not-equals
    status resourceSpans scopeSpans spans attributes key value stringValue intValue arrayValue kvlistValue events
    traceId spanId gen_ai.usage.input_tokens gen_ai.input.messages choices usage prompt_tokens message content parts
    type text data target-url headers onCodes from to bodyKeyOverride role messages tool_calls function arguments
    input output""".split()  # noqa: SIM905
)
LEAVES = st.none() | st.booleans() | st.sampled_from(NUMBERS) | WORDS | st.text(max_size=5) | st.just("\ud800")
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4), max_leaves=15
)
SHAPES = VALUES.map(lambda value: json.dumps(value).encode())


def damaged(seed: bytes) -> st.SearchStrategy[bytes]:
    size = len(seed)

    def harm(places: tuple[int, int], piece: bytes) -> bytes:
        first, last = sorted(place % (size + 1) for place in places)
        return seed[:first] + piece + seed[last:]

    pieces = st.binary(max_size=6) | st.sampled_from(
        [b"9" * 5000, b"[" * 3000, b"\xed\xa0\x80", b"\0", b"-1", b"1e999"]
    )
    return st.builds(harm, st.tuples(st.integers(0, 1 << 12), st.integers(0, 1 << 12)), pieces)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(choice=st.data())
def test_target_holds(name: str, choice: st.DataObject) -> None:
    inputs: Any = st.one_of(*map(damaged, SEEDS[name]), SHAPES, st.binary(max_size=200))
    TARGETS[name](choice.draw(inputs))


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_hold(name: str) -> None:
    for seed in SEEDS[name]:
        TARGETS[name](seed)
    for deep in (b"[" * 100_000, b'{"a":' * 50_000, b"\x20data: " + b"[" * 50_000 + b"\n\n"):
        TARGETS[name](deep)
