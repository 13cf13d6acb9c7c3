"""Fallbacks and gateway model strings: helicone-proxy.md sections 3.4 and 6, second half."""

from __future__ import annotations

import json
from typing import Any

import pytest

from heliproxy.policies.answers import DirectiveError
from heliproxy.policies.fallback import (
    Failure,
    Fallback,
    GatewayEntry,
    gateway_failure,
    merge,
    next_index,
    override_body,
    parse_fallbacks,
    parse_model_string,
    plan_models,
)

GOOD: dict[str, Any] = {
    "target-url": "https://a.example/v1",
    "headers": {"Authorization": "Bearer a"},
    "onCodes": [429],
}


def with_entry(**changes: Any) -> str:
    return json.dumps([{**GOOD, **changes}])


def test_entries_are_read() -> None:
    raw = with_entry(onCodes=[401, {"from": 500, "to": 504}], bodyKeyOverride={"model": "m"})
    (found,) = parse_fallbacks(raw)
    assert found == Fallback(
        "https://a.example/v1", (("Authorization", "Bearer a"),), ((401, 401), (500, 504)), {"model": "m"}
    )
    assert "Bearer a" not in repr(found)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("{}", "expected a JSON array"),
        ("[]", "no entries"),
        ("[1]", "entry 0 is not an object"),
        (json.dumps([GOOD, {}]), "entry 1 has no 'target-url'"),
        (json.dumps([{k: v for k, v in GOOD.items() if k != "headers"}]), "no 'headers'"),
        (json.dumps([{k: v for k, v in GOOD.items() if k != "onCodes"}]), "no 'onCodes'"),
        (with_entry(**{"target-url": ""}), "non-empty string"),
        (with_entry(**{"target-url": 5}), "non-empty string"),
        (with_entry(**{"target-url": "api.openai.com"}), "absolute http or https URL"),
        (with_entry(**{"target-url": "file:///etc/passwd"}), "absolute http or https URL"),
        (with_entry(headers=[]), "object of strings"),
        (with_entry(headers={"a": 1}), "object of strings"),
        (with_entry(onCodes=429), "must be an array"),
        (with_entry(onCodes=["429"]), "whole numbers"),
        (with_entry(onCodes=[True]), "whole numbers"),
        (with_entry(onCodes=[{"from": 1}]), "whole numbers"),
        (with_entry(bodyKeyOverride=[]), "must be an object"),
    ],
)
def test_errors_name_what_is_wrong(raw: str, words: str) -> None:
    with pytest.raises(DirectiveError) as caught:
        parse_fallbacks(raw)
    answer = caught.value.answer
    assert answer.status == 500
    assert dict(answer.headers)["helicone-error"] == "true"
    assert words in json.loads(answer.body)["helicone-message"]


def test_header_values_cannot_smuggle_lines() -> None:
    (found,) = parse_fallbacks(with_entry(headers={"x-a": "x\r\ny: z\ud800", "Content-Length": "5", "host": "other"}))
    assert found.headers == (("x-a", "xy: z"),)


@pytest.mark.parametrize(
    ("index", "status", "following"),
    [(0, 429, 1), (0, 503, 1), (0, 200, None), (0, 505, None), (1, 429, None)],
)
def test_next_entry_by_status(index: int, status: int, following: int | None) -> None:
    entries = parse_fallbacks(json.dumps([{**GOOD, "onCodes": [429, {"from": 500, "to": 504}]}, GOOD]))
    assert next_index(entries, index, status) == following


@pytest.mark.parametrize(
    ("body", "override", "merged"),
    [
        ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
        ({"a": {"x": 1, "y": 2}}, {"a": {"y": 3, "z": {"k": 1}}}, {"a": {"x": 1, "y": 3, "z": {"k": 1}}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": 1}, {"a": None}, {"a": None}),
        ({"a": 1}, {"a": {"b": 2}}, {"a": {"b": 2}}),
        ({"a": {"b": 2}}, {"a": 1}, {"a": 1}),
        ({}, {"__proto__": {"x": 1}, "constructor": 1, "a": {"prototype": 1, "b": 2}}, {"a": {"b": 2}}),
    ],
)
def test_deep_merge(body: dict[str, Any], override: dict[str, Any], merged: dict[str, Any]) -> None:
    assert merge(body, override) == merged
    assert json.loads(override_body(json.dumps(body).encode(), override)) == merged


def test_override_leaves_the_original_for_the_next_entry() -> None:
    body = b'{"model": "a", "n": {"x": 1}}'
    assert override_body(body, {"model": "b", "n": {"x": 2}}) == b'{"model":"b","n":{"x":2}}'
    assert override_body(body, None) is body


@pytest.mark.parametrize("body", [b"", b"text", b"[1]", b"\xff"])
def test_override_of_a_body_that_is_no_object_is_an_error(body: bytes) -> None:
    with pytest.raises(DirectiveError):
        override_body(body, {"a": 1})


# --- AI gateway -------------------------------------------------------------------------------------------------------

ENV = {"OPENAI_API_KEY": "ok", "ANTHROPIC_API_KEY": "ak", "GROQ_API_KEY": "gk", "OPENROUTER_API_KEY": "rk"}


@pytest.mark.parametrize(
    ("text", "entries", "excluded"),
    [
        ("gpt-4o", (GatewayEntry("gpt-4o"),), set()),
        ("gpt-4o/openai", (GatewayEntry("gpt-4o", "openai"),), set()),
        (
            " gpt-4o/OpenAI , claude-sonnet-4/anthropic ,, ",
            (GatewayEntry("gpt-4o", "openai"), GatewayEntry("claude-sonnet-4", "anthropic")),
            set(),
        ),
        ("gpt-4o/azure/my-dep", (GatewayEntry("gpt-4o", "azure", "my-dep"),), set()),
        ("gpt-4o:online/openrouter", (GatewayEntry("gpt-4o", "openrouter", online=True),), set()),
        ("!openai,gpt-4o", (GatewayEntry("gpt-4o"),), {"openai"}),
        ("meta-llama/llama-3/groq", (GatewayEntry("meta-llama/llama-3", "groq"),), set()),
        ("x/unknown", (GatewayEntry("x", "unknown"),), set()),
    ],
)
def test_model_strings(text: str, entries: tuple[GatewayEntry, ...], excluded: set[str]) -> None:
    assert parse_model_string(text) == (entries, excluded)


def test_provider_that_is_no_text_is_a_400() -> None:
    with pytest.raises(DirectiveError) as caught:
        parse_model_string("gpt-4o/openai,!\ud800")
    assert caught.value.answer.status == 400


@pytest.mark.parametrize("text", ["!", "gpt-4o,!", "!nobody"])
def test_exclusion_needs_a_known_provider(text: str) -> None:
    with pytest.raises(DirectiveError) as caught:
        parse_model_string(text)
    assert caught.value.answer.status == 400


def test_targets_come_in_order_with_their_own_keys() -> None:
    plan = plan_models("gpt-4o/openai,claude-x/anthropic,llama/groq,gpt-4o/openai", ENV)
    assert [(t.provider, t.model, t.key, t.format) for t in plan.targets] == [
        ("openai", "gpt-4o", "ok", "openai"),
        ("anthropic", "claude-x", "ak", "anthropic"),
        ("groq", "llama", "gk", "openai"),
    ]
    assert plan.targets[0].auth_headers == (("authorization", "Bearer ok"),)
    assert plan.targets[1].auth_headers[0] == ("x-api-key", "ak")
    assert plan.error is None
    assert "ok" not in repr(plan.targets[0]).replace("openai", "")


def test_model_without_provider_goes_to_its_maker() -> None:
    assert [t.provider for t in plan_models("claude-sonnet-4,gpt-4o", ENV).targets] == ["anthropic", "openai"]


@pytest.mark.parametrize("model", [None, "", 0, False, [], {}])
def test_missing_model_is_a_400_in_plain_text(model: object) -> None:
    error = plan_models(model, ENV).error
    assert error is not None
    assert (error.status, error.headers) == (400, (("content-type", "text/plain;charset=UTF-8"),))
    assert error.text.startswith("Invalid body or missing model")


@pytest.mark.parametrize("model", [5, True, ["gpt-4o"], {"a": 1}])
def test_model_that_is_no_string_is_a_400_in_plain_text(model: object) -> None:
    error = plan_models(model, ENV).error
    assert error is not None
    assert (error.status, error.text) == (400, "Invalid model type: 'model' must be a string")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("x/unknown", "unknown provider 'unknown'"),
        ("mystery", "names no provider"),
        ("gpt-4o/openai,!openai", "'openai' is excluded"),
        ("grok-4/xai", "XAI_API_KEY is not set"),
        ("m/vertex", "more than a key"),
        (",", "no model was named"),
    ],
)
def test_nothing_to_try_is_a_400_that_says_why(model: str, words: str) -> None:
    error = plan_models(model, ENV).error
    assert error is not None
    assert error.status == 400
    body = json.loads(error.body)
    assert body["success"] is False
    assert set(body["error"]) == {"code", "message", "details", "param"}
    assert body["error"]["message"].startswith("No available providers")
    assert words in body["error"]["message"]
    (detail,) = body["error"]["details"]
    assert (detail["source"], detail["statusCode"]) == ("No available providers", 400)


def test_online_is_openrouters_and_said_to_have_no_effect_elsewhere() -> None:
    plan = plan_models("gpt-4o:online/openrouter,gpt-4o:online/openai", ENV)
    assert [(t.provider, t.model) for t in plan.targets] == [("openrouter", "gpt-4o:online"), ("openai", "gpt-4o")]
    assert plan.skipped == ("':online' has no effect at 'openai'",)


@pytest.mark.parametrize(
    ("statuses", "status", "message"),
    [
        ([500, 403, 401], 403, "why 403"),
        ([500, 401], 401, "Authentication failed"),
        ([401, 429], 401, "Authentication failed"),
        ([429, 429], 429, "Rate limited"),
        ([429, 500], 500, "why 500"),
        ([429, 404, 500], 500, "why 404"),
        ([400], 500, "why 400"),
        ([], 500, "All attempts failed"),
    ],
)
def test_failure_of_all_attempts(statuses: list[int], status: int, message: str) -> None:
    answer = gateway_failure([Failure("openai", s, f"why {s}") for s in statuses])
    error = json.loads(answer.body)["error"]
    assert (answer.status, error["message"]) == (status, message)
    assert error["code"] == {429: "rate_limited"}.get(status, "request_failed" if statuses else "all_attempts_failed")
    assert [d["statusCode"] for d in error["details"]] == statuses


@pytest.mark.parametrize(
    ("other", "status"), [((), 400), ((429,), 400), ((500,), 500), ((401,), 401), ((403, 500), 403)]
)
def test_entries_of_the_wrong_format_count_after_what_providers_said(other: tuple[int, ...], status: int) -> None:
    wrong = Failure("anthropic", 400, "another format", "invalid_format")
    assert gateway_failure([wrong, *(Failure("openai", s, "why") for s in other)]).status == status
