"""Budgets: how much may be spent per day, week or month, in all or by user, model, session or property.

Decisions are pure; `policy_store.BudgetStore` keeps the budgets and adds up what was spent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from heliproxy.policies.answers import Answer, json_answer, one_line
from heliproxy.rounding import amount_text, decimal_text

if TYPE_CHECKING:
    from collections.abc import Mapping

PERIODS = ("day", "week", "month")
SCOPES = ("user", "model", "session")
ACTIONS = ("warn", "block")


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit in USD for one period; with `by`, for each value of it separately."""

    amount_usd: float
    per: str
    by: str | None = None
    """None, `user`, `model`, `session` or `property:name` (lower case)."""
    action: str = "warn"

    @property
    def name(self) -> str:
        """What identifies it: one budget per period and scope."""
        return f"{self.per}:{self.by}" if self.by else self.per

    @property
    def description(self) -> str:
        """`20 USD per day by user`."""
        by = f" by {self.by}" if self.by else ""
        return f"{decimal_text(self.amount_usd)} USD per {self.per}{by}"


@dataclass(frozen=True, slots=True)
class Spender:
    """Who a call is charged to."""

    user: str | None = None
    model: str | None = None
    session: str | None = None
    properties: Mapping[str, str] = field(default_factory=dict)

    def value(self, budget: Budget) -> str | None:
        """This spender's value of the budget's scope; `` for a budget over everything, None: not concerned."""
        if budget.by is None:
            return ""
        if budget.by == "user":
            return self.user or None
        if budget.by == "model":
            return self.model or None
        if budget.by == "session":
            return self.session or None
        wanted = budget.by.removeprefix("property:")
        return next((v for k, v in self.properties.items() if k.lower() == wanted), None) or None


@dataclass(frozen=True, slots=True)
class BudgetState:
    """What was spent of one budget, for one value of its scope, in the period that began at `start`."""

    budget: Budget
    value: str
    spent_usd: float
    start: datetime

    @property
    def over(self) -> bool:
        """Whether nothing is left."""
        return self.spent_usd >= self.budget.amount_usd


class SpendingUnknownError(Exception):
    """What was spent of a blocking budget cannot be read, and was not known before."""

    def __init__(self, budget: Budget, reason: str) -> None:
        super().__init__(reason)
        self.budget = budget


def make_budget(amount: float, per: str, by: str | None = None, action: str = "warn") -> Budget:
    """A checked budget. Raises ValueError naming the value and what is expected."""
    if not math.isfinite(amount) or amount < 0:
        raise ValueError(f"budget of {amount} USD: expected a number of dollars, 0 or more")
    if per not in PERIODS:
        raise ValueError(f"period {per!r}: expected {', '.join(PERIODS)}")
    if action not in ACTIONS:
        raise ValueError(f"action {action!r}: expected {' or '.join(ACTIONS)}")
    return Budget(amount, per, parse_scope(by) if by is not None else None, action)


def parse_scope(by: str) -> str:
    """Whom a budget is for, as `Budget.by` has it. Raises ValueError naming the value and what is expected."""
    name = by[len("property:") :].strip() if by.lower().startswith("property:") else ""
    by = f"property:{name.lower()}" if name else by.lower()
    if not name and by not in SCOPES:
        raise ValueError(f"scope {by!r}: expected {', '.join(SCOPES)} or property:NAME")
    return by


def period_start(per: str, now: datetime) -> datetime:
    """Midnight, Monday's midnight or the first's midnight, in the time zone of `now` (aware)."""
    start = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if per == "week":
        return start - timedelta(days=start.weekday())
    return start.replace(day=1) if per == "month" else start


def utc_text(moment: datetime) -> str:
    """A moment as `requests.created_at` is written: UTC, milliseconds, Z."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def strictest(states: list[BudgetState]) -> BudgetState | None:
    """Of several exhausted budgets the one that decides: blocking before warning, then the most overspent."""
    over = [state for state in states if state.over]
    return max(over, key=lambda s: (s.budget.action == "block", s.spent_usd - s.budget.amount_usd), default=None)


def warning(state: BudgetState) -> str:
    """The sentence for the log, the row and `Heliproxy-Warning`."""
    whom = f" ({one_line(state.value)[:80]})" if state.value else ""
    return f"budget of {state.budget.description}{whom} is used up: {amount_text(state.spent_usd)} USD spent"


def unknown_answer(error: SpendingUnknownError) -> Answer:
    """The 503 of a blocking budget that cannot be judged: whoever set it wants no call to pass unseen."""
    message = (
        f"heliproxy: what was spent of the blocking budget of {error.budget.description} cannot be read"
        f" ({one_line(str(error))}), so the call was not made. `heliproxy doctor` says more."
    )
    body = {"error": {"type": "budget_unknown", "code": "budget_unknown", "message": message}}
    return json_answer(503, body, (("X-Helicone-Error", "budget_unknown"), ("x-should-retry", "false")), "budget")


def block_answer(state: BudgetState) -> Answer:
    """The 429 of a blocking budget. `x-should-retry` keeps the vendors' SDKs from trying again."""
    body = {
        "error": {
            "type": "budget_exceeded",
            "code": "budget_exceeded",
            "message": f"heliproxy: the {warning(state)}. See `heliproxy budget list`.",
            "budget": {
                "name": state.budget.name,
                "amount_usd": state.budget.amount_usd,
                "per": state.budget.per,
                "by": state.budget.by,
                "value": state.value or None,
                "spent_usd": round(state.spent_usd, 9),
                "since": utc_text(state.start),
            },
        }
    }
    return json_answer(429, body, (("X-Helicone-Error", "budget_exceeded"), ("x-should-retry", "false")), "budget")
