"""The part of time a page shows, and the filters in its URL."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

from starlette.datastructures import QueryParams

from heliproxy.filters import Filters, status_condition
from heliproxy.times import parse_span

RANGES = {"today": "today", "7d": "the last 7 days", "30d": "the last 30 days", "all": "since the beginning"}
STATUSES = (
    ("", "Any status"),
    ("ok", "ok"),
    ("error", "errors"),
    ("cached", "cache hits"),
    ("429", "429 rate limited"),
    ("5xx", "5xx"),
    ("aborted", "cancelled"),
    ("timeout", "timeouts"),
)
ONE = {"model": "models", "provider": "providers", "user": "users", "session": "sessions", "run": "runs"}
ONE |= {"host": "hosts", "key": "keys", "prompt": "prompts", "status": "statuses"}
"""URL parameters with one value each, and the field of `Filters` they go into."""


@dataclass(frozen=True, slots=True)
class Window:
    """A part of time. Both ends are aware; None is open."""

    name: str
    """A key of `RANGES`, or "custom"."""
    title: str
    since: datetime | None
    until: datetime | None
    since_text: str = ""
    until_text: str = ""
    problem: str = ""
    """What was wrong with what was asked for; the default is shown then."""

    def filters(self, other: Filters | None = None) -> Filters:
        return replace(other or Filters(), since=self.since, until=self.until)

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells two windows apart; those that move with the time are one."""
        return (self.name, self.since_text, self.until_text, self.since if self.name == "today" else None)

    def unit(self, first: datetime | None, now: datetime) -> str:
        """The width of the plots' steps; `first` is when the first request began, and counts if nothing else does."""
        start = self.since or first or now
        span = (min(self.until, now) if self.until else now) - start
        if span <= timedelta(hours=49):
            return "hour"
        return "day" if span <= timedelta(days=120) else "week" if span <= timedelta(days=730) else "month"


def read_window(params: QueryParams, now: datetime, zone: tzinfo, default: str = "7d") -> Window:
    """The window a URL asks for: `range`, or `since` and `until` in any form `heliproxy costs` takes."""
    since_text, until_text = params.get("since", "").strip()[:60], params.get("until", "").strip()[:60]
    if since_text or until_text:
        try:
            return _custom(since_text, until_text, now, zone)
        except ValueError as e:
            return replace(_named(default, now, zone), problem=str(e))
    name = params.get("range", "")
    if name and name not in RANGES:
        problem = f"{name[:60]!r} is no range; expected {', '.join(RANGES)}. Shown is {RANGES[default]}"
        return replace(_named(default, now, zone), problem=problem)
    return _named(name or default, now, zone)


def _custom(since_text: str, until_text: str, now: datetime, zone: tzinfo) -> Window:
    since = parse_span(since_text, now, zone)[0] if since_text else None
    # "until 2026-01-31" takes that day in, as `heliproxy costs` does.
    until = parse_span(until_text, now, zone)[1] if until_text else None
    title = f"{since_text or 'the beginning'} – {until_text or 'now'}"
    return Window("custom", title, since, until, since_text, until_text)


def _named(name: str, now: datetime, zone: tzinfo) -> Window:
    since = None if name == "all" else parse_span(name, now, zone)[0]
    return Window(name, RANGES[name], since, None)


def read_filters(params: QueryParams) -> tuple[Filters, list[str]]:
    """The filters in a URL, time left out, and what could not be understood, one line each."""
    problems: list[str] = []
    fields: dict[str, Any] = {}
    for name, field in ONE.items():
        wanted = tuple(value.strip()[:500] for value in params.getlist(name) if value.strip())[:20]
        if name == "status":
            wanted = tuple(value for value in wanted if _is_status(value, problems))
        fields[field] = wanted
    pairs: list[tuple[str, str]] = []
    for item in params.getlist("property")[:20]:
        key, equals, value = item.partition("=")
        if equals and key:
            pairs.append((key, value))
        else:
            problems.append(f"property {item!r}: expected NAME=VALUE")
    return Filters(**fields, properties=tuple(pairs)), problems


def _is_status(value: str, problems: list[str]) -> bool:
    try:
        status_condition(value)
    except ValueError as e:
        problems.append(str(e))
        return False
    return True


def chosen(filters: Filters) -> tuple[Any, ...]:
    """What tells two sets of filters apart, time left out."""
    return tuple(getattr(filters, name) for name in Filters.__slots__ if name not in ("since", "until"))


def kept_params(params: QueryParams) -> dict[str, Any]:
    """The parameters a link to the same page keeps: single values as text, repeated ones as lists."""
    found: dict[str, Any] = {}
    for name in ONE:
        values = [value.strip()[:500] for value in params.getlist(name) if value.strip()][:20]
        if values:
            found[name] = values if len(values) > 1 else values[0]
    for name in ("q", "range", "since", "until", "before", "by"):
        value = params.get(name, "").strip()[:500]
        if value:
            found[name] = value
    for name in ("property", "column"):
        values = [value[:1200] for value in params.getlist(name) if value][:20]
        if values:
            found[name] = values
    return found


def now_utc() -> datetime:
    return datetime.now(UTC)
