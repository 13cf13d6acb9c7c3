"""Budgets: issue 3."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest

from heliproxy.policies.budget import (
    Budget,
    BudgetState,
    Spender,
    block_answer,
    make_budget,
    period_start,
    strictest,
    utc_text,
    warning,
)
from heliproxy.times import local_now

START = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("per", "start"),
    [("day", "2026-03-19T00:00:00.000Z"), ("week", "2026-03-16T00:00:00.000Z"), ("month", "2026-03-01T00:00:00.000Z")],
)
def test_periods(per: str, start: str) -> None:
    assert utc_text(period_start(per, datetime(2026, 3, 19, 15, 30, tzinfo=UTC))) == start


def test_days_begin_in_the_zone_of_the_clock() -> None:
    zone = timezone(timedelta(hours=-5))
    assert utc_text(period_start("day", datetime(2026, 3, 19, 2, 0, tzinfo=zone))) == "2026-03-19T05:00:00.000Z"


@pytest.mark.parametrize(
    ("budget", "name", "description"),
    [
        (make_budget(20, "day"), "day", "20 USD per day"),
        (make_budget(0.5, "month", "User", "block"), "month:user", "0.5 USD per month by user"),
        (make_budget(1, "week", "Property:App"), "week:property:app", "1 USD per week by property:app"),
    ],
)
def test_names(budget: Budget, name: str, description: str) -> None:
    assert (budget.name, budget.description) == (name, description)


@pytest.mark.parametrize(
    ("amount", "per", "by", "action"),
    [
        (-1, "day", None, "warn"),
        (float("nan"), "day", None, "warn"),
        (float("inf"), "day", None, "warn"),
        (1, "hour", None, "warn"),
        (1, "day", "team", "warn"),
        (1, "day", "property:", "warn"),
        (1, "day", None, "stop"),
    ],
)
def test_wrong_budgets_are_refused(amount: float, per: str, by: str | None, action: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        make_budget(amount, per, by, action)


@pytest.mark.parametrize(
    ("by", "value"),
    [(None, ""), ("user", "u"), ("model", "m"), ("session", None), ("property:app", "x"), ("property:team", None)],
)
def test_spender_values(by: str | None, value: str | None) -> None:
    assert Spender("u", "m", None, {"App": "x"}).value(make_budget(1, "day", by)) == value


def state(spent: float, amount: float = 1.0, action: str = "warn", value: str = "") -> BudgetState:
    return BudgetState(make_budget(amount, "day", "user" if value else None, action), value, spent, START)


def test_budget_is_over_once_all_is_spent() -> None:
    assert [state(s).over for s in (0.99, 1.0, 1.5)] == [False, True, True]
    assert state(0.0, amount=0.0).over


def test_blocking_budget_decides_before_a_warning_one() -> None:
    blocking, warning_ = state(1.1, action="block"), state(9.0)
    assert strictest([state(0.1), warning_, blocking]) is blocking
    assert strictest([state(0.1), warning_]) is warning_
    assert strictest([state(0.1)]) is None


def test_block_answer_names_the_budget() -> None:
    answer = block_answer(state(1.25, action="block", value="ann"))
    assert answer.status == 429
    assert dict(answer.headers)["x-should-retry"] == "false"
    error = json.loads(answer.body)["error"]
    assert error["type"] == "budget_exceeded"
    assert error["budget"] == {
        "name": "day:user",
        "amount_usd": 1.0,
        "per": "day",
        "by": "user",
        "value": "ann",
        "spent_usd": 1.25,
        "since": "2026-03-01T00:00:00.000Z",
    }


def test_warning_is_one_line() -> None:
    assert warning(state(1.5, value="a\r\nb")) == "budget of 1 USD per day by user (ab) is used up: 1.5000 USD spent"


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This machine stands in Berlin."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("berlin")
def test_month_begins_at_midnight_although_clocks_have_changed_since() -> None:
    zone = local_now().tzinfo
    assert utc_text(period_start("month", datetime(2026, 3, 31, 12, tzinfo=zone))) == "2026-02-28T23:00:00.000Z"
    assert utc_text(period_start("month", datetime(2026, 10, 31, 12, tzinfo=zone))) == "2026-09-30T22:00:00.000Z"


@pytest.mark.parametrize(
    ("now", "start"),
    [
        ("2026-03-29T12:00+02:00", "2026-03-28T23:00:00.000Z"),  # summer time began that night
        ("2026-03-29T01:30+01:00", "2026-03-28T23:00:00.000Z"),
        ("2026-10-25T02:30+02:00", "2026-10-24T22:00:00.000Z"),  # the hour that comes twice
        ("2026-10-25T02:30+01:00", "2026-10-24T22:00:00.000Z"),
        ("2026-10-25T12:00+01:00", "2026-10-24T22:00:00.000Z"),
    ],
)
def test_day_begins_at_midnight_when_clocks_change(now: str, start: str) -> None:
    moment = datetime.fromisoformat(now).astimezone(ZoneInfo("Europe/Berlin"))
    assert utc_text(period_start("day", moment)) == start
