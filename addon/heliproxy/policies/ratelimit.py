"""Rate limits by `Helicone-RateLimit-Policy`: grammar, segments, token bucket, headers (helicone-proxy.md section 5).

Everything here is arithmetic on values; `policy_store.LimitStore` keeps the buckets.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from heliproxy.policies.answers import Answer, Headers, json_answer, one_line

if TYPE_CHECKING:
    from collections.abc import Mapping

MIN_WINDOW_S = 60
MAX_WINDOW_S = 31_536_000
MAX_CHARGE_CENTS = 1_000_000.0
MAX_SEGMENT_VALUE = 256
DOCS_URL = "https://docs.helicone.ai/features/advanced-usage/custom-rate-limits"
EXPECTED = "[quota];w=[seconds];u=[request|cents];s=[user or a property], for example 1000;w=3600;u=request;s=user"

_POLICY = re.compile(
    r"([0-9]+(?:\.[0-9]+)?);w=([0-9]+)(?:;u=(request|cents))?(?:;s=([A-Za-z0-9_-]+))?", re.ASCII | re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Policy:
    """A valid policy. `segment` is None (global), `user`, or the lower-case name of a property."""

    quota: float
    window_s: int
    unit: str = "request"
    segment: str | None = None
    raw: str = ""
    """As sent, trimmed: a change of this text is a change of policy."""

    @property
    def rate(self) -> float:
        """Tokens that come back per second."""
        return self.quota / self.window_s

    @property
    def normalised(self) -> str:
        """The policy as the response header states it."""
        unit = ";u=cents" if self.unit == "cents" else ""
        segment = f";s={self.segment}" if self.segment else ""
        return f"{js_number(self.quota)};w={self.window_s}{unit}{segment}"


@dataclass(frozen=True, slots=True)
class BucketState:
    """One bucket at one moment; `tokens` may be negative after a charge in cents."""

    tokens: float
    updated_s: float
    policy: str
    """`Policy.raw` of the last use."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a call may pass, and what its response headers say."""

    allowed: bool
    tokens: float = 0.0
    """What is left after this call."""
    headers: Headers = ()
    warning: str = ""
    """Why no limit was applied although one was asked for."""


def parse_policy(raw: str) -> Policy:
    """Read the header. Raises ValueError that names what is wrong and what is expected.

    Helicone lets calls with an invalid policy pass unlimited (fail-open); so do we, but the reason is to be said.
    """
    text = raw.strip()
    shown = one_line(text)[:80]
    found = _POLICY.fullmatch(text)
    if not found:
        raise ValueError(
            f"Helicone-RateLimit-Policy: '{shown}' is not understood, so nothing is limited; expected {EXPECTED}"
        )
    quota_text, window_text, unit, segment = found.groups()
    quota = float(quota_text)
    window = int(window_text) if len(window_text) <= 12 else MAX_WINDOW_S + 1
    if not 0 < quota < math.inf:
        raise ValueError(f"Helicone-RateLimit-Policy: the quota in '{shown}' must be above 0; nothing is limited")
    if not MIN_WINDOW_S <= window <= MAX_WINDOW_S:
        raise ValueError(
            f"Helicone-RateLimit-Policy: the window in '{shown}' must be {MIN_WINDOW_S} to {MAX_WINDOW_S} seconds;"
            " nothing is limited"
        )
    return Policy(quota, window, (unit or "request").lower(), segment.lower() if segment else None, text)


def js_number(value: float) -> str:
    """A positive finite number as JavaScript prints it: 1000, 0.5, 1e+21, 1e-7."""
    if value == 0:
        return "0"
    if 1e-6 <= value < 1e21:
        text = format(Decimal(repr(float(value))), "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, _, exponent = repr(float(value)).partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent):+d}"


def segment_value(text: str | None) -> str | None:
    """A user id or property value as part of a bucket's name, or None when nothing is left of it."""
    if not text:
        return None
    kept = "".join(c for c in text.replace(":", "_") if c >= " " and not "\x7f" <= c <= "\x9f")
    return kept.strip()[:MAX_SEGMENT_VALUE] or None


def bucket_id(policy: Policy, namespace: str, user_id: str | None, properties: Mapping[str, str]) -> str | None:
    """The bucket a call belongs to; None when the user or property of the segment is missing (then: no limit).

    Made of namespace, segment and unit only: quota, window, path, model and provider key play no part.
    `user_id` is the header's, else the body's.
    """
    if policy.segment is None:
        return f"{namespace}:global:{policy.unit}"
    if policy.segment == "user":
        value = segment_value(user_id)
        return value and f"{namespace}:user:{value}:{policy.unit}"
    found = properties.get(policy.segment)
    if found is None:
        found = next((text for name, text in properties.items() if name.lower() == policy.segment), None)
    value = segment_value(found)
    return value and f"{namespace}:property:{policy.segment}:{value}:{policy.unit}"


def refilled(state: BucketState | None, policy: Policy, now_s: float) -> BucketState:
    """The bucket at `now_s`: full when new, filled lazily, cut to a changed policy, unchanged by a backward clock."""
    if state is None:
        return BucketState(policy.quota, now_s, policy.raw)
    if state.policy != policy.raw:
        return BucketState(min(state.tokens, policy.quota), now_s, policy.raw)
    elapsed = now_s - state.updated_s
    if elapsed <= 0:
        # A clock set back by more than a window would freeze the bucket until it has caught up.
        return BucketState(state.tokens, now_s, state.policy) if -elapsed > policy.window_s else state
    return BucketState(min(policy.quota, state.tokens + elapsed * policy.rate), now_s, state.policy)


def take(state: BucketState | None, policy: Policy, now_s: float) -> tuple[Decision, BucketState]:
    """Decide one call and deduct its token. `u=cents` only looks; `charge` deducts the cost afterwards."""
    current = refilled(state, policy, now_s)
    if policy.unit == "cents":
        allowed, cost = current.tokens > 0, 0.0
    else:
        allowed = current.tokens >= 1
        cost = 1.0 if allowed else 0.0
    after = BucketState(current.tokens - cost, current.updated_s, current.policy)
    return Decision(allowed, after.tokens, limit_headers(policy, after.tokens)), after


def charge(state: BucketState | None, policy: Policy, cents: float, now_s: float) -> BucketState:
    """Deduct what a call really cost; the bucket may go below zero."""
    current = refilled(state, policy, now_s)
    cost = min(cents, MAX_CHARGE_CENTS) if cents > 0 else 0.0  # NaN compares false
    return BucketState(current.tokens - cost, current.updated_s, current.policy)


def full_at_s(state: BucketState, policy: Policy) -> float:
    """When the bucket will be full again."""
    return state.updated_s + max(0.0, policy.quota - state.tokens) / policy.rate


def limit_headers(policy: Policy, tokens: float) -> Headers:
    """Response headers of a limited call, allowed or denied."""
    reset = math.ceil(max(0.0, policy.quota - tokens) / policy.rate)
    headers = (
        ("Helicone-RateLimit-Limit", js_number(policy.quota)),
        ("Helicone-RateLimit-Remaining", str(math.floor(max(0.0, tokens)))),
        policy_header(policy),
    )
    return (*headers, ("Helicone-RateLimit-Reset", str(reset))) if reset > 0 else headers


def policy_header(policy: Policy) -> tuple[str, str]:
    """The one header sent when the segment has no value in the request."""
    return ("Helicone-RateLimit-Policy", policy.normalised)


def unlimited(policy: Policy) -> Decision:
    """The decision when the segment is missing: allowed, with the policy header alone, and said."""
    what = "no user id" if policy.segment == "user" else f"no property '{policy.segment}'"
    warning = f"Helicone-RateLimit-Policy: the request has {what}, so nothing is limited"
    return Decision(True, headers=(policy_header(policy),), warning=warning)


def denied_answer(headers: Headers = ()) -> Answer:
    """Our own 429 (section 3.2); `X-Helicone-Error` tells it from a provider's. `headers`: the decision's."""
    message = (
        "Helicone limited the rate of this user through the Helicone-RateLimit-Policy header of the request."
        f" How such a policy is written: {DOCS_URL}"
    )
    return json_answer(429, {"message": message}, (("X-Helicone-Error", "rate_limited"), *headers), "rate_limited")
