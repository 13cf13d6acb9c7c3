"""Rate limits through a running proxy (helicone-proxy.md sections 3.2 and 5)."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes import Upstream, chat_answer, json_answer
from heliproxy.policies import ratelimit
from heliproxy.policy_store import LimitStore
from rig import CHAT, KEY, Rig, chat, error, rigged, rigged_on

LIMIT = "helicone-ratelimit-"


@pytest.fixture(scope="module")
def shared_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rigged(tmp_path_factory.mktemp("limits") / "home") as rig:
        yield rig


class Clock:
    """Seconds that pass only when they are told to."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def rig(shared_rig: Rig, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Rig:
    shared_rig.reset()
    gates = shared_rig.run.proxy.addon.services.gates  # type: ignore[union-attr]
    monkeypatch.setattr(gates, "limits", LimitStore(gates.state, clock))
    return shared_rig


@pytest.fixture
def me() -> dict[str, str]:
    """A Helicone key of this test's own, so that no other test's buckets are met."""
    return {"Helicone-Auth": f"Bearer sk-helicone-{uuid.uuid4().hex}"}


def limit(policy: str) -> dict[str, str]:
    return {"Helicone-RateLimit-Policy": policy}


def shown(response: httpx.Response) -> tuple[int, str | None, str | None]:
    """Status, Remaining and Reset."""
    return (response.status_code, response.headers.get(f"{LIMIT}remaining"), response.headers.get(f"{LIMIT}reset"))


def ask(rig: Rig, times: int, headers: dict[str, str], **body: Any) -> list[tuple[int, str | None, str | None]]:
    return [shown(rig.ask(headers, **body)) for _ in range(times)]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("2;w=60", [(200, "1", "30"), (200, "0", "60"), (429, "0", "60"), (429, "0", "60")]),
        ("10;w=60", [(200, "9", "6"), (200, "8", "12")]),
        ("5;w=300", [(200, "4", "60"), (200, "3", "120")]),
        ("1000;w=3600", [(200, "999", "4")]),
        ("1.5;w=60", [(200, "0", "40"), (429, "0", "40")]),
        ("0.5;w=60", [(429, "0", None)]),
    ],
)
def test_numbers_of_the_headers(
    rig: Rig, me: dict[str, str], policy: str, expected: list[tuple[int, str | None, str | None]]
) -> None:
    assert ask(rig, len(expected), me | limit(policy)) == expected
    assert rig.calls == sum(status == 200 for status, _, _ in expected)


def test_tokens_come_back_one_by_one(rig: Rig, me: dict[str, str], clock: Clock) -> None:
    headers = me | limit("2;w=60")
    ask(rig, 2, headers)
    clock.now += 29
    assert ask(rig, 1, headers) == [(429, "0", "31")]
    clock.now += 2
    assert ask(rig, 2, headers) == [(200, "0", "59"), (429, "0", "59")]
    clock.now += 3600
    assert ask(rig, 1, headers) == [(200, "1", "30")]


def test_clock_that_steps_back_changes_nothing(rig: Rig, me: dict[str, str], clock: Clock) -> None:
    ask(rig, 2, me | limit("2;w=60"))
    clock.now -= 30
    assert ask(rig, 1, me | limit("2;w=60")) == [(429, "0", "60")]


def test_denied_answer(rig: Rig, me: dict[str, str]) -> None:
    headers = me | limit("1;w=60")
    rig.ask(headers)
    denied = rig.ask(headers)
    assert denied.status_code == 429
    assert list(denied.json()) == ["message"]
    assert "Helicone-RateLimit-Policy" in denied.json()["message"]
    assert "https://docs.helicone.ai/" in denied.json()["message"]
    assert denied.headers["content-type"] == "application/json;charset=UTF-8"
    assert denied.headers["x-helicone-error"] == "rate_limited"
    assert denied.headers["helicone-status"] == "success"
    assert "helicone-cache" not in denied.headers
    assert "retry-after" not in denied.headers
    assert {n: v for n, v in denied.headers.items() if n.startswith(LIMIT)} == {
        f"{LIMIT}limit": "1",
        f"{LIMIT}remaining": "0",
        f"{LIMIT}policy": "1;w=60",
        f"{LIMIT}reset": "60",
    }
    row = rig.row(denied)
    assert (row["status"], row["error_type"], row["cost_usd"], row["attempts"]) == (429, "rate_limited", None, 0)
    assert rig.properties(denied)["Helicone-Rate-Limit-Status"] == "bucket_rate_limited"


def test_providers_own_429_is_told_apart(rig: Rig, me: dict[str, str]) -> None:
    rig.script = [error(429)]
    response = rig.ask(me | limit("9;w=60"))
    assert (response.status_code, response.headers[f"{LIMIT}remaining"]) == (429, "8")
    assert "x-helicone-error" not in response.headers
    assert rig.row(response)["error_type"] == "server_error"


@pytest.mark.parametrize(
    ("sent", "normalised"),
    [
        ("10;w=60", "10;w=60"),
        (" 10;w=60 ", "10;w=60"),
        ("10;W=60;U=REQUEST;S=USER", "10;w=60;s=user"),
        ("10.50;w=0060", "10.5;w=60"),
        ("1000;w=3600;u=cents;s=user", "1000;w=3600;u=cents;s=user"),
        ("10;w=60;s=My-Prop_1", "10;w=60;s=my-prop_1"),
        ("10;w=31536000", "10;w=31536000"),
    ],
)
def test_policies_are_read_in_any_case_and_shown_normalised(
    rig: Rig, me: dict[str, str], sent: str, normalised: str
) -> None:
    others = {"Helicone-User-Id": "u", "Helicone-Property-My-Prop_1": "x"}
    response = rig.ask(me | others | limit(sent.strip()))
    assert response.headers[f"{LIMIT}policy"] == normalised
    assert response.headers[f"{LIMIT}limit"] == normalised.partition(";")[0]


@pytest.mark.parametrize(
    "policy",
    [
        "10",
        "10;w=59",
        "10;w=31536001",
        "0;w=60",
        "0.0;w=60",
        "-1;w=60",
        "10;w=60;u=tokens",
        "10;w=60;s=user;u=request",
        "10; w=60",
        "10;w=60;",
        "10;w=60;x=1",
        "10;w=60.5",
        "10;w=60;s=",
        "10;w=60;s=a b",
        "1e3;w=60",
        ".5;w=60",
        "w=60;10",
        "abc",
    ],
)
def test_invalid_policy_limits_nothing_and_is_said(rig: Rig, me: dict[str, str], policy: str) -> None:
    responses = [rig.ask(me | limit(policy)) for _ in range(2)]
    for response in responses:
        assert response.status_code == 200
        assert not [n for n in response.headers if n.startswith(LIMIT)]
        assert "Helicone-RateLimit-Policy" in response.headers["heliproxy-warning"]
    assert "Helicone-RateLimit-Policy" in rig.row(responses[0])["warning"]


def test_user_segment_counts_each_user_alone(rig: Rig, me: dict[str, str]) -> None:
    headers = me | limit("1;w=60;s=user")
    for user in ("ada", "alan"):
        assert ask(rig, 2, headers | {"Helicone-User-Id": user}) == [(200, "0", "60"), (429, "0", "60")]


def test_body_user_stands_in_for_the_header(rig: Rig, me: dict[str, str]) -> None:
    headers = me | limit("1;w=60;s=user")
    assert ask(rig, 1, headers, user="ada") == [(200, "0", "60")]
    assert ask(rig, 1, headers, user="alan") == [(200, "0", "60")]
    assert ask(rig, 1, headers | {"Helicone-User-Id": "ada"}) == [(429, "0", "60")]


@pytest.mark.parametrize("segment", ["App", "APP", "app"])
def test_property_segment_in_any_case(rig: Rig, me: dict[str, str], segment: str) -> None:
    headers = me | limit(f"1;w=60;s={segment}")
    assert ask(rig, 2, headers | {"Helicone-Property-App": "a"}) == [(200, "0", "60"), (429, "0", "60")]
    assert ask(rig, 1, headers | {"Helicone-Property-App": "b"}) == [(200, "0", "60")]


def test_automatic_properties_are_segments_too(rig: Rig, me: dict[str, str]) -> None:
    headers = me | limit("1;w=60;s=helicone-session-id")
    assert ask(rig, 2, headers | {"Helicone-Session-Id": "s1"}) == [(200, "0", "60"), (429, "0", "60")]
    assert ask(rig, 1, headers | {"Helicone-Session-Id": "s2"}) == [(200, "0", "60")]


@pytest.mark.parametrize("segment", ["user", "app"])
def test_missing_segment_is_allowed_with_the_policy_header_alone(rig: Rig, me: dict[str, str], segment: str) -> None:
    for _ in range(2):
        response = rig.ask(me | limit(f"1;w=60;s={segment}"))
        assert response.status_code == 200
        assert {n: v for n, v in response.headers.items() if n.startswith(LIMIT)} == {
            f"{LIMIT}policy": f"1;w=60;s={segment}"
        }
        assert segment in response.headers["heliproxy-warning"]


def test_colons_in_segment_values_are_underscores(rig: Rig, me: dict[str, str]) -> None:
    headers = me | limit("1;w=60;s=user")
    assert ask(rig, 1, headers | {"Helicone-User-Id": "a:b"}) == [(200, "0", "60")]
    assert ask(rig, 1, headers | {"Helicone-User-Id": "a_b"}) == [(429, "0", "60")]


def test_only_the_first_256_characters_of_a_value_count(rig: Rig, me: dict[str, str]) -> None:
    headers = me | limit("1;w=60;s=user")
    assert ask(rig, 1, headers | {"Helicone-User-Id": "x" * 256 + "1"}) == [(200, "0", "60")]
    assert ask(rig, 1, headers | {"Helicone-User-Id": "x" * 256 + "2"}) == [(429, "0", "60")]


def test_keys_of_helicone_have_their_own_buckets_and_provider_keys_do_not(rig: Rig, me: dict[str, str]) -> None:
    headers = limit("1;w=60")
    assert ask(rig, 1, headers | me) == [(200, "0", "60")]
    assert ask(rig, 1, headers | me | {"authorization": "Bearer other"}) == [(429, "0", "60")]
    assert ask(rig, 1, headers | {"Helicone-Auth": KEY + uuid.uuid4().hex}) == [(200, "0", "60")]


def test_paths_models_and_providers_share_one_bucket(rig: Rig, me: dict[str, str]) -> None:
    headers = me | limit("3;w=60")
    assert ask(rig, 1, headers, path="/oai/v1/responses", model="a") == [(200, "2", "20")]
    assert ask(rig, 1, headers, path="/groq/openai/v1/chat/completions") == [(200, "1", "40")]
    assert ask(rig, 1, headers, path="/anthropic/v1/messages") == [(200, "0", "60")]
    assert ask(rig, 1, headers) == [(429, "0", "60")]


def test_two_policies_of_one_segment_and_unit_share_one_bucket(rig: Rig, me: dict[str, str]) -> None:
    assert ask(rig, 1, me | limit("2;w=60")) == [(200, "1", "30")]
    # A larger quota brings no tokens, only room: 1 of 100 is left, then 0.
    assert ask(rig, 2, me | limit("100;w=60")) == [(200, "0", "60"), (429, "0", "60")]
    # A segment is another bucket.
    assert ask(rig, 1, me | limit("2;w=60;s=user") | {"Helicone-User-Id": "u"}) == [(200, "1", "30")]


def test_smaller_quota_cuts_the_bucket(rig: Rig, me: dict[str, str]) -> None:
    ask(rig, 1, me | limit("100;w=60"))
    assert ask(rig, 2, me | limit("1;w=60")) == [(200, "0", "60"), (429, "0", "60")]


def test_failed_answers_cost_a_token_too(rig: Rig, me: dict[str, str]) -> None:
    rig.script = [error(500), error(400)]
    assert ask(rig, 3, me | limit("2;w=60")) == [(500, "1", "30"), (400, "0", "60"), (429, "0", "60")]


def test_retries_of_one_call_cost_one_token(rig: Rig, me: dict[str, str]) -> None:
    rig.script = [error(500), error(500)]
    retry = {"Helicone-Retry-Enabled": "true", "Helicone-Retry-Min-Timeout": "1", "Helicone-Retry-Max-Timeout": "2"}
    assert ask(rig, 1, me | retry | limit("5;w=300")) == [(200, "4", "60")]
    assert rig.calls == 3


def test_cents_are_charged_after_the_answer(rig: Rig, me: dict[str, str]) -> None:
    # One call costs 1000 * $0.15/M + 100 * $0.60/M = $0.00021 = 0.021 cents; the first may overdraw.
    headers = me | limit("0.03;w=60;u=cents")
    first = rig.ask(headers)
    assert (first.status_code, first.headers[f"{LIMIT}remaining"]) == (200, "0")
    assert first.headers[f"{LIMIT}policy"] == "0.03;w=60;u=cents"
    rig.row(first)  # what it cost is known now
    assert rig.ask(headers).status_code == 200
    rig.run.proxy.flush()
    denied = rig.ask(headers)
    assert shown(denied) == (429, "0", "84")  # 0.042 of 0.03 are spent; 0.0005 come back a second
    assert rig.calls == 2


def test_cents_and_requests_are_two_buckets(rig: Rig, me: dict[str, str]) -> None:
    ask(rig, 1, me | limit("1;w=60"))
    assert rig.ask(me | limit("1;w=60;u=cents")).status_code == 200


def test_unpriced_call_costs_no_cents(rig: Rig, me: dict[str, str]) -> None:
    rig.script = [json_answer(chat_answer(model="nobody-knows-me"))]
    headers = me | limit("0.01;w=60;u=cents")
    rig.ask(headers, model="nobody-knows-me")
    rig.run.proxy.flush()
    assert rig.ask(headers).status_code == 200


def test_cents_of_one_call_are_bounded_and_never_negative(rig: Rig, me: dict[str, str], clock: Clock) -> None:
    gates = rig.run.proxy.addon.services.gates  # type: ignore[union-attr]
    policy = ratelimit.parse_policy("10;w=60;u=cents")
    for cents, left in ((-5.0, 10.0), (float("nan"), 10.0), (0.0, 10.0), (2.5, 7.5), (1e12, 7.5 - 1_000_000)):
        gates.limits.charge("bucket", policy, cents)
        decision = gates.limits.take("bucket", policy)
        assert (decision.tokens, decision.allowed) == (pytest.approx(left), left > 0)


def test_policy_of_another_text_starts_the_clock_again(rig: Rig, me: dict[str, str], clock: Clock) -> None:
    ask(rig, 2, me | limit("2;w=60"))
    clock.now += 31
    # Written differently it is another policy: what would have come back since the last call does not.
    assert ask(rig, 1, me | limit("2.0;w=60")) == [(429, "0", "60")]
    clock.now += 45
    assert ask(rig, 1, me | limit("2.0;w=60")) == [(200, "0", "45")]


def test_bucket_of_a_window_is_full_again_after_it(rig: Rig, me: dict[str, str], clock: Clock) -> None:
    ask(rig, 3, me | limit("3;w=60"))
    clock.now += 61
    assert ask(rig, 4, me | limit("3;w=60")) == [(200, "2", "20"), (200, "1", "40"), (200, "0", "60"), (429, "0", "60")]


def test_no_policy_no_headers(rig: Rig) -> None:
    assert not [n for n in rig.ask().headers if n.startswith(LIMIT)]


def test_limits_need_no_helicone_key(rig: Rig) -> None:
    user = {"Helicone-User-Id": str(uuid.uuid4())}
    assert [s for s, _, _ in ask(rig, 2, user | limit("1;w=60;s=user"))] == [200, 429]


def test_a_hundred_at_once_let_exactly_ten_through(tmp_path: Path) -> None:
    with rigged(tmp_path / "home") as rig:
        with ThreadPoolExecutor(20) as pool:
            statuses = list(pool.map(lambda _: rig.ask(limit("10;w=600")).status_code, range(100)))
        assert (statuses.count(200), statuses.count(429), rig.calls) == (10, 90, 10)


def test_two_proxies_of_one_home_share_a_bucket_and_it_survives_them(tmp_path: Path) -> None:
    home = tmp_path / "home"
    headers = limit("10;w=6000")
    with Upstream(lambda asked: json_answer(chat_answer())) as up:
        with rigged_on(up, home) as one, rigged_on(up, home) as two:
            up.handler = lambda asked: json_answer(chat_answer())
            with ThreadPoolExecutor(20) as pool:
                found = pool.map(lambda i: (one, two)[i % 2].ask(headers).status_code, range(100))
                statuses = list(found)
            assert (statuses.count(200), len(up.asked)) == (10, 10)
        with rigged_on(up, home) as three:
            assert three.http.post(CHAT, json=chat(), headers=headers).status_code == 429


def test_limiter_whose_file_is_away_answers_and_says_so(tmp_path: Path) -> None:
    with rigged(tmp_path / "home") as rig:
        (rig.run.home / "state.db").unlink(missing_ok=True)
        (rig.run.home / "state.db").mkdir()
        response = rig.ask(limit("9;w=60"))
    assert (response.status_code, len(rig.up.asked)) == (200, 1)
    assert "Helicone-RateLimit-Policy" in response.headers["heliproxy-warning"]
