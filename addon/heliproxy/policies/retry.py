"""Retries: when, how often, how long to wait (helicone-proxy.md section 6).

`Helicone-Retry-Num` counts the calls after the first one, as the documents say. No call follows an answer that is
passed on, and none is made once a byte has reached the client; that part is the caller's.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from heliproxy.policies.answers import Answer, transport_answer

if TYPE_CHECKING:
    from heliproxy.directives import RetryDirectives

MAX_WAIT_S = 60.0
"""All waits of one exchange together, and one Retry-After."""
MAX_RETRIES = 100
_PEEK = 65_536

Rng = Callable[[], float]
"""Uniform in [0, 1)."""


def should_retry(status: int | None) -> bool:
    """Whether an attempt's outcome is worth another call: no answer at all, 429, or any 5xx."""
    return status is None or status == 429 or 500 <= status <= 599


def problem(directives: RetryDirectives) -> Answer | None:
    """The 500 Helicone answers before any upstream call when the waits contradict each other."""
    if directives.enabled and directives.min_ms > directives.max_ms:
        return transport_answer(
            f"Helicone-Retry-Min-Timeout ({directives.min_ms} ms) is greater than"
            f" Helicone-Retry-Max-Timeout ({directives.max_ms} ms)",
            "unknown",
        )
    return None


def delays_ms(directives: RetryDirectives, rng: Rng) -> tuple[int, ...]:
    """One wait a retry, ascending: min(round(r x max(min, 1) x factor^i), max), r uniform in [1, 2)."""
    if not directives.enabled:
        return ()
    found = []
    for i in range(min(directives.num, MAX_RETRIES)):
        try:
            wait = (1 + rng()) * max(directives.min_ms, 1) * directives.factor**i
        except OverflowError:
            wait = math.inf
        found.append(max(0, directives.max_ms if wait >= directives.max_ms else math.floor(wait + 0.5)))
    return tuple(sorted(found))


class Backoff:
    """The waits of one exchange. One object serves all fallback targets, so that their sum stays bounded."""

    def __init__(self, directives: RetryDirectives, rng: Rng) -> None:
        self._directives = directives
        self._rng = rng
        self._delays: Iterator[int] | None = None
        """Made at the first failure: most calls have none."""
        self.waited_s = 0.0

    def next_target(self) -> None:
        """Start counting again for the next fallback; what has been waited still counts."""
        self._delays = None

    def next_delay(self, status: int | None, retry_after_s: float | None = None) -> float | None:
        """Seconds to wait before the next call after this outcome, or None: pass the outcome on."""
        if not should_retry(status):
            return None
        if self._delays is None:
            self._delays = iter(delays_ms(self._directives, self._rng))
        delay = next(self._delays, None)
        left = MAX_WAIT_S - self.waited_s
        if delay is None or left <= 0:
            return None
        wait = delay / 1000
        if retry_after_s is not None and status in (429, 503):
            wait = max(wait, min(retry_after_s, MAX_WAIT_S))
        wait = min(wait, left)
        self.waited_s += wait
        return wait


def retry_after_s(value: str | None, now: datetime) -> float | None:
    """Seconds a `Retry-After` asks for, at most 60; None when absent, malformed or in the past.

    `value` is delta seconds or an HTTP date; `now` is aware.
    """
    text = (value or "").strip()
    if re.fullmatch(r"[0-9]{1,12}(?:\.[0-9]{1,9})?", text):
        seconds = float(text)
    else:
        try:
            then = parsedate_to_datetime(text)
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
        then = then if then.tzinfo else then.replace(tzinfo=UTC)
        seconds = (then - now).total_seconds()
    return min(seconds, MAX_WAIT_S) if seconds > 0 else None


_ERROR_STATUS = {
    "overloaded_error": 529,
    "api_error": 500,
    "server_error": 500,
    "internal_server_error": 500,
    "timeout_error": 504,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
}


def first_event_status(data: bytes) -> int | None:
    """What the first event of a 200 SSE stream stands for: 200, the HTTP status of an error, or None: not seen yet.

    `data` is the decoded start of the body. Comments and pings before the first event are skipped. Looks at the
    first 64 KiB only.
    """
    text = data[:_PEEK].decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
    *events, _rest = text.split("\n\n")
    for event in events:
        name, payload = _fields(event)
        if name == "ping" or (not payload and not name):
            continue
        return _event_status(name, payload)
    return 200 if len(data) >= _PEEK else None


def _fields(event: str) -> tuple[str, str]:
    name, lines = "", []
    for line in event.split("\n"):
        key, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if key == "event":
            name = value
        elif key == "data":
            lines.append(value)
    return name, "\n".join(lines)


def _event_status(name: str, payload: str) -> int:
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError):
        value = None
    value = value if isinstance(value, dict) else {}
    error = value.get("error")
    if name != "error" and value.get("type") != "error" and not error:
        return 200
    return _error_status(error if isinstance(error, dict) else value)


def _error_status(error: dict[str, Any]) -> int:
    for key in ("status", "code"):
        code = error.get(key)
        if isinstance(code, int) and not isinstance(code, bool) and 400 <= code <= 599:
            return code
    named = (error.get("type"), error.get("code"))
    return next((_ERROR_STATUS[n] for n in named if isinstance(n, str) and n in _ERROR_STATUS), 500)
