"""Token limit handlers: helicone-proxy.md section 7."""

from __future__ import annotations

import json
from typing import Any

import pytest

from heliproxy.policies.tokenlimit import apply, context_size, cut, estimate_tokens, normalise, split, token_budget

SIZES = {"small": 100, "large": 10_000, "gpt-3.5-turbo": 100}


def chat(model: str, *contents: Any, **more: Any) -> bytes:
    messages = [{"role": "user", "content": content} for content in contents]
    return json.dumps({"model": model, "messages": messages, **more}).encode()


def contents(body: bytes | None) -> list[Any]:
    assert body is not None
    return [m["content"] for m in json.loads(body)["messages"]]


@pytest.mark.parametrize(
    ("body", "model", "tokens"),
    [
        ({"messages": [{"content": "x" * 400}]}, "gpt-4o", 100),
        ({"messages": [{"content": "x" * 400}]}, "gpt-3.5-turbo-16k", 80),
        ({"messages": [{"content": "x" * 400}]}, "GPT-3.5-Turbo", 80),
        ({"messages": [{"content": "x" * 401}]}, "gpt-4o", 101),
        ({"messages": [{"content": "x" * 200}, {"content": "y" * 200}]}, "gpt-4o", 100),
        ({"tools": ["1234"], "messages": [{"content": "x" * 3}]}, "gpt-4o", 3),
        ({"tools": ["1234"], "messages": [{"content": "x" * 4}]}, "gpt-4o", 4),
        ({"messages": [{"content": [{"type": "text"}]}, 5, {"content": None}]}, "gpt-4o", 0),
        ({"tools": [{"a": 1}]}, "gpt-4o", 3),
        ({}, "gpt-4o", 0),
    ],
)
def test_estimates(body: dict[str, Any], model: str, tokens: int) -> None:
    assert estimate_tokens(body, model) == tokens


@pytest.mark.parametrize(
    ("body", "budget"),
    [
        ({}, 900),
        ({"max_tokens": 100}, 900),
        ({"max_completion_tokens": 300, "max_tokens": 100}, 700),
        ({"max_completion_tokens": 0, "max_tokens": 100}, 900),
        ({"max_output_tokens": 1}, 999),
        ({"maxOutputTokens": 1}, 999),
        ({"generationConfig": {"maxOutputTokens": 400}}, 600),
        ({"generation_config": {"max_output_tokens": 400}}, 600),
        ({"response": {"max_output_tokens": 400}}, 600),
        ({"max_tokens": "100"}, 900),
        ({"max_tokens": True}, 900),
        ({"max_tokens": 5000}, 0),
    ],
)
def test_budgets(body: dict[str, Any], budget: int) -> None:
    assert token_budget(body, 1000) == budget


@pytest.mark.parametrize("handler", ["truncate", "middle-out"])
@pytest.mark.parametrize(
    "body",
    [
        chat("small", "short"),
        chat("unknown", "x" * 9999),
        chat("small", [{"type": "image_url"}]),
        b"not json",
        b"[]",
        b"",
    ],
)
def test_what_fits_or_is_unknown_is_left_alone(handler: str, body: bytes) -> None:
    assert apply(body, handler, None, SIZES.get) is None


def test_truncate_gives_each_text_message_its_share() -> None:
    body = chat("small", "word " * 200, "y" * 300, [{"type": "image_url"}], "short")
    found = contents(apply(body, "truncate", None, SIZES.get))
    # (100 - 10) / 0.25 * 0.9 = 324 characters, 108 for each of three
    assert found[0] == ("word " * 22)[:-1][:108].rsplit(" ", 1)[0] + "..."
    assert found[1] == "y" * 108 + "..."
    assert found[2] == [{"type": "image_url"}]
    assert found[3] == "short"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a  b\n\nc", "a b c"),
        ("a <!-- note\nmore --> b", "a b"),
        ("id:6f6dd2f6-4a4c-4b58-8a4e-7d6a7c2f1a10 x", "x"),
        ("uuid:6f6dd2f6-4a4c-4b58-8a4e-7d6a7c2f1a10 x", "x"),
        ("UUID:6F6DD2F6-4A4C-4B58-8A4E-7D6A7C2F1A10 x", "x"),
        ("id:6f6dd2f6-4a4c-4b58-8a4e-7d6a7c2f1a10z x", "id:6f6dd2f6-4a4c-4b58-8a4e-7d6a7c2f1a10z x"),
        ("id:zzzzzzzz-4a4c-4b58-8a4e-7d6a7c2f1a10 x", "id:zzzzzzzz-4a4c-4b58-8a4e-7d6a7c2f1a10 x"),
        ("f ( a , b ) ; c = { d : [ e ] }", "f(a,b);c={d:[e]}"),
    ],
)
def test_normalising(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "abc..."),
        ("aaaaaaaaa b", 10, "aaaaaaaaa..."),
        ("a bbbbbbbbbb", 10, "a bbbbbbbb..."),
    ],
)
def test_cutting(text: str, limit: int, expected: str) -> None:
    assert cut(text, limit) == expected


def test_middle_out_keeps_both_ends() -> None:
    text = "".join(f"{i:03d}" + "x" * 96 + "." for i in range(100))
    body = apply(chat("m", text), "middle-out", None, lambda model: 2000)
    (found,) = contents(body)
    assert found.startswith("000x")
    assert found.endswith("x.")
    assert "099x" in found
    assert "050x" not in found
    assert estimate_tokens(json.loads(body or b""), "m") <= 1800


def test_middle_out_drops_emptied_messages_and_keeps_others() -> None:
    parts = ["start", *("m" * 900 for _ in range(9)), "end"]
    found = contents(apply(chat("m", *parts), "middle-out", None, lambda model: 1000))
    assert (found[0], found[-1]) == ("start", "end")
    assert len(found) < len(parts)


def test_middle_out_that_would_leave_nothing_changes_nothing() -> None:
    assert apply(chat("m", "x" * 500, tools=[{"d": "y" * 9000}]), "middle-out", None, lambda model: 100) is None


def test_split_pieces_are_the_text() -> None:
    text = "para one. " * 150 + "\n\n" + "line\n" * 300 + "z" * 2500
    pieces = split(text)
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 1000


@pytest.mark.parametrize(
    ("model", "content", "chosen"),
    [
        ("small,large", "x" * 1000, "large"),
        ("small, large", "short", "small"),
        ("unknown,large", "short", "large"),
        ("small", "x" * 1000, None),
        ("small,", "x" * 1000, "small"),
    ],
)
def test_fallback_picks_one_model(model: str, content: str, chosen: str | None) -> None:
    body = apply(chat(model, content), "fallback", None, SIZES.get)
    assert (json.loads(body)["model"] if body else None) == chosen


def test_model_override_stands_in_for_a_missing_model() -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "y" * 1000}]}).encode()
    assert apply(body, "truncate", None, SIZES.get) is None
    assert contents(apply(body, "truncate", "small", SIZES.get))[0] == "y" * 324 + "..."


def test_context_sizes_come_from_price_data() -> None:
    assert context_size("gpt-4o") == 128_000
    assert context_size("no-such-model-at-all") is None
