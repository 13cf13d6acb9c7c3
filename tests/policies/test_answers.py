from __future__ import annotations

import json

import pytest

from heliproxy.policies.answers import Answer, error_answer, exception_answer, text_answer, transport_answer


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b'{"error":{"message":"no","code":"x"}}', "no"),
        (b'{"message":"slow down"}', "slow down"),
        (b'{"error":"Request timeout","message":"","helicone-message":"late"}', "late"),
        (b'{"error":"gone"}', "gone"),
        (b'{"error":{"error":{"message":"deep"}}}', "deep"),
        (b'{"error":7}', '{"error":7}'),
        (b"[1]", "[1]"),
        (b"plain", "plain"),
        (b"\xff", "\N{REPLACEMENT CHARACTER}"),
        (b"[" * 100_000, "[" * 100_000),
    ],
)
def test_sentence_of_an_answer(body: bytes, sentence: str) -> None:
    assert Answer(400, (), body).sentence == sentence


def test_sentences_of_our_own_answers() -> None:
    assert exception_answer("odd").sentence == "Helicone ran into an error servicing your request: odd"
    assert text_answer(500, "Unknown path").sentence == "Unknown path"
    assert transport_answer("connection refused", "lost").sentence == "connection refused"


def test_refusal_of_ours_has_the_shape_that_sdks_show() -> None:
    answer = error_answer(403, "not\nhere", "refused", (("a", "b"),))
    (error,) = json.loads(answer.body).values()
    assert sorted(error) == ["code", "message", "type"]
    assert (error["type"], error["code"], answer.reason) == ("heliproxy_error", "refused", "refused")
    assert "\n" not in error["message"]
    assert ("a", "b") in answer.headers
