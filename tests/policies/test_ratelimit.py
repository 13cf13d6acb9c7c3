"""Rate limits: helicone-proxy.md sections 3.2 and 5."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from heliproxy.policies.ratelimit import (
    BucketState,
    Policy,
    bucket_id,
    charge,
    denied_answer,
    js_number,
    limit_headers,
    parse_policy,
    segment_value,
    take,
    unlimited,
)


@pytest.mark.parametrize(
    ("raw", "quota", "window", "unit", "segment", "normalised"),
    [
        ("10;w=60", 10, 60, "request", None, "10;w=60"),
        ("10;w=60;s=user", 10, 60, "request", "user", "10;w=60;s=user"),
        ("10;w=60;u=request;s=User", 10, 60, "request", "user", "10;w=60;s=user"),
        ("0.5;w=60;u=cents", 0.5, 60, "cents", None, "0.5;w=60;u=cents"),
        ("1000;w=3600;u=CENTS;s=App-Name", 1000, 3600, "cents", "app-name", "1000;w=3600;u=cents;s=app-name"),
        ("  5;W=300;S=helicone-session-id ", 5, 300, "request", "helicone-session-id", "5;w=300;s=helicone-session-id"),
        ("10.0;w=31536000", 10, 31536000, "request", None, "10;w=31536000"),
        ("007;w=0060", 7, 60, "request", None, "7;w=60"),
    ],
)
def test_policies(raw: str, quota: float, window: int, unit: str, segment: str | None, normalised: str) -> None:
    found = parse_policy(raw)
    assert (found.quota, found.window_s, found.unit, found.segment) == (quota, window, unit, segment)
    assert found.normalised == normalised


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "10",
        "10;w=59",
        "10;w=31536001",
        "10;w=" + "9" * 5000,
        "0;w=60",
        "0.0;w=60",
        "-1;w=60",
        ".5;w=60",
        "5.;w=60",
        "1e3;w=60",
        "9" * 400 + ";w=60",
        "10; w=60",
        "10;w=60;",
        "10;w=60;s=user;u=cents",
        "10;w=60;u=tokens",
        "10;w=60;s=",
        "10;w=60;s=ünï",
        "10;w=60;x=1",
        "10,w=60",
        "\u0661\u0660;w=60",
    ],
)
def test_invalid_policies_say_what_is_wrong(raw: str) -> None:
    with pytest.raises(ValueError, match="nothing is limited"):
        parse_policy(raw)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1000.0, "1000"), (0.5, "0.5"), (1e21, "1e+21"), (1e-7, "1e-7"), (0.000001, "0.000001"), (2.50, "2.5")],
)
def test_numbers_are_written_as_javascript_does(value: float, text: str) -> None:
    assert js_number(value) == text


def run(raw: str, count: int) -> list[tuple[bool, dict[str, str]]]:
    policy, state, seen = parse_policy(raw), None, []
    for _ in range(count):
        decision, state = take(state, policy, 1000.0)
        seen.append((decision.allowed, {n.removeprefix("Helicone-RateLimit-"): v for n, v in decision.headers}))
    return seen


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("2;w=60", [(True, "1", "30"), (True, "0", "60"), (False, "0", "60")]),
        ("10;w=60", [(True, "9", "6")]),
        ("5;w=300", [(True, "4", "60"), (True, "3", "120")]),
        ("1000;w=3600", [(True, "999", "4")]),
    ],
)
def test_worked_examples(raw: str, expected: list[tuple[bool, str, str]]) -> None:
    found = run(raw, len(expected))
    assert [(ok, h["Remaining"], h["Reset"]) for ok, h in found] == expected
    assert found[0][1]["Policy"] == raw
    assert found[0][1]["Limit"] == raw.partition(";")[0]


def test_token_returns_after_its_share_of_the_window() -> None:
    policy = parse_policy("2;w=60")
    state = None
    for _ in range(2):
        _, state = take(state, policy, 0.0)
    assert take(state, policy, 29.0)[0].allowed is False
    assert take(state, policy, 30.5)[0].allowed is True


def test_denial_deducts_nothing() -> None:
    decision, state = take(BucketState(0.5, 0.0, "2;w=60"), parse_policy("2;w=60"), 0.0)
    assert (decision.allowed, state.tokens) == (False, 0.5)


def test_quota_below_one_never_allows_a_request() -> None:
    assert take(None, parse_policy("0.5;w=60"), 0.0)[0].allowed is False


def test_bucket_never_holds_more_than_its_capacity() -> None:
    _, state = take(BucketState(1.0, 0.0, "2;w=60"), parse_policy("2;w=60"), 10_000.0)
    assert state.tokens == 1.0


def test_reset_is_left_out_when_the_bucket_is_full() -> None:
    names = [name for name, _ in limit_headers(parse_policy("10;w=60;u=cents"), 10.0)]
    assert "Helicone-RateLimit-Reset" not in names


def test_backward_clock_changes_nothing() -> None:
    policy = parse_policy("2;w=60")
    decision, state = take(BucketState(1.5, 100.0, policy.raw), policy, 90.0)
    assert (decision.allowed, state) == (True, BucketState(0.5, 100.0, policy.raw))


def test_clock_set_back_by_more_than_a_window_does_not_freeze_the_bucket() -> None:
    policy = parse_policy("2;w=60")
    _, state = take(BucketState(0.0, 1e9, policy.raw), policy, 1000.0)
    assert (state.tokens, state.updated_s) == (0.0, 1000.0)
    assert take(state, policy, 1031.0)[0].allowed is True


def test_changed_policy_cuts_tokens_and_never_raises_them() -> None:
    larger, smaller = parse_policy("100;w=60"), parse_policy("3;w=60")
    state = BucketState(5.0, 0.0, "10;w=60")
    assert take(state, larger, 50.0)[1] == BucketState(4.0, 50.0, "100;w=60")
    assert take(state, smaller, 50.0)[1] == BucketState(2.0, 50.0, "3;w=60")


def test_cents_look_first_and_charge_afterwards() -> None:
    policy = parse_policy("10;w=60;u=cents")
    decision, state = take(None, policy, 0.0)
    assert (decision.allowed, state.tokens) == (True, 10.0)
    state = charge(state, policy, 12.5, 0.0)
    assert state.tokens == -2.5
    decision, _ = take(state, policy, 0.0)
    assert decision.allowed is False
    assert dict(decision.headers)["Helicone-RateLimit-Remaining"] == "0"
    assert take(state, policy, 16.0)[0].allowed is True


@pytest.mark.parametrize(
    ("cents", "left"), [(float("nan"), 10.0), (-5.0, 10.0), (2e6, 10.0 - 1e6), (float("inf"), 10.0 - 1e6)]
)
def test_charges_are_clamped(cents: float, left: float) -> None:
    assert charge(None, parse_policy("10;w=60;u=cents"), cents, 0.0).tokens == left


GLOBAL = parse_policy("10;w=60")


@pytest.mark.parametrize(
    ("policy", "user", "properties", "expected"),
    [
        (GLOBAL, None, {}, "ns:global:request"),
        (replace(GLOBAL, segment="user"), "a:b", {}, "ns:user:a_b:request"),
        (replace(GLOBAL, segment="user"), None, {}, None),
        (replace(GLOBAL, segment="user"), " \x00 ", {}, None),
        (replace(GLOBAL, segment="app"), None, {"App": "x"}, "ns:property:app:x:request"),
        (replace(GLOBAL, segment="helicone-session-id"), None, {"Helicone-Session-Id": "s"},
         "ns:property:helicone-session-id:s:request"),
        (replace(GLOBAL, segment="app"), "u", {}, None),
        (replace(GLOBAL, unit="cents"), None, {}, "ns:global:cents"),
    ],
)  # fmt: skip
def test_buckets(policy: Policy, user: str | None, properties: dict[str, str], expected: str | None) -> None:
    assert bucket_id(policy, "ns", user, properties) == expected


def test_quota_and_window_are_not_part_of_the_bucket() -> None:
    assert bucket_id(parse_policy("1;w=60"), "", None, {}) == bucket_id(parse_policy("9;w=99"), "", None, {})


def test_segment_values_are_cleaned() -> None:
    assert segment_value("  a:b\x00\n\x85c ") == "a_bc"
    assert segment_value("x" * 300) == "x" * 256


def test_missing_segment_allows_with_the_policy_header_alone() -> None:
    decision = unlimited(parse_policy("10;w=60;s=user"))
    assert decision.allowed
    assert decision.headers == (("Helicone-RateLimit-Policy", "10;w=60;s=user"),)
    assert "no user id" in decision.warning


def test_denied_answer() -> None:
    answer = denied_answer((("Helicone-RateLimit-Limit", "2"),))
    assert answer.status == 429
    assert dict(answer.headers) == {
        "content-type": "application/json;charset=UTF-8",
        "X-Helicone-Error": "rate_limited",
        "Helicone-RateLimit-Limit": "2",
    }
    body = json.loads(answer.body)
    assert list(body) == ["message"]
    assert "Helicone-RateLimit-Policy" in body["message"]
    assert "https://docs.helicone.ai/" in body["message"]
