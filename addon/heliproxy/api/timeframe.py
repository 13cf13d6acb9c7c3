"""Filters with a time frame, and time series over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from heliproxy.api.errors import bad
from heliproxy.api.fields import Fields, time_bounds
from heliproxy.api.filters import Condition, condition
from heliproxy.times import stored_time

MAX_BUCKETS = 20_000
INCREMENTS = ("min", "hour", "day", "week", "month", "year")
_DIGITS = {"min": 16, "hour": 13, "day": 10, "month": 7, "year": 4}
"""Characters of a stored time that name the period."""


def scope(
    fields: Fields, name: str = "filter", frame: str = "timeFilter", start: str = "start", end: str = "end"
) -> Condition:
    """The rows a body asks about: its filter, and its time filter where it has one."""
    found = condition(fields.get(name), name)
    since, until = time_bounds(fields.object(frame), start, end)
    return within(found, since, until)


def within(found: Condition, since: str | None, until: str | None) -> Condition:
    sql, values = found.sql, list(found.values)
    if since is not None:
        sql, values = f"{sql} AND r.created_at >= ?", [*values, since]
    if until is not None:
        sql, values = f"{sql} AND r.created_at <= ?", [*values, until]
    return Condition(sql, tuple(values))


@dataclass(frozen=True, slots=True)
class Series:
    """Periods of one length in the caller's zone. `offset` is JavaScript's: minutes from local time to UTC."""

    unit: str
    offset: int

    @property
    def sql(self) -> str:
        """The name of the period a row `r` falls into."""
        if self.unit == "week":
            return f"strftime('%Y-%m-%d', r.created_at, '{-self.offset:+d} minutes', 'weekday 0', '-6 days')"
        digits = _DIGITS[self.unit]
        if self.offset == 0:
            return f"substr(r.created_at, 1, {digits})"
        return f"substr(strftime('%Y-%m-%dT%H:%M', r.created_at, '{-self.offset:+d} minutes'), 1, {digits})"

    def start(self, name: str) -> datetime:
        """The moment at which the period of this name begins, in UTC."""
        padded = name + "0000-01-01T00:00"[len(name) :]
        return datetime.fromisoformat(padded).replace(tzinfo=UTC) + timedelta(minutes=self.offset)

    def time(self, name: str) -> str:
        return stored_time(self.start(name))

    def names(self, first: datetime, last: datetime) -> list[str]:
        """The names of all periods from `first` to `last`. Raises ApiError(400) when there are too many."""
        at = self._floor(first - timedelta(minutes=self.offset))
        end = last - timedelta(minutes=self.offset)
        found: list[str] = []
        while at <= end:
            if len(found) >= MAX_BUCKETS:
                raise bad(f"more than {MAX_BUCKETS} periods of one {self.unit}; take a longer one, or a shorter time")
            found.append(self._name(at))
            try:
                at = self._next(at)
            except (ValueError, OverflowError):
                break
        return found

    def _name(self, at: datetime) -> str:
        return at.isoformat(timespec="minutes")[: _DIGITS.get(self.unit, 10)]

    def _floor(self, at: datetime) -> datetime:
        at = at.replace(second=0, microsecond=0)
        if self.unit == "min":
            return at
        at = at.replace(minute=0)
        if self.unit == "hour":
            return at
        at = at.replace(hour=0)
        if self.unit == "week":
            return at - timedelta(days=at.weekday())
        if self.unit == "day":
            return at
        return at.replace(day=1) if self.unit == "month" else at.replace(day=1, month=1)

    def _next(self, at: datetime) -> datetime:
        steps = {"min": timedelta(minutes=1), "hour": timedelta(hours=1), "day": timedelta(days=1)}
        if self.unit in steps:
            return at + steps[self.unit]
        if self.unit == "week":
            return at + timedelta(days=7)
        if self.unit == "month":
            return self._floor(at + timedelta(days=32))
        return at.replace(year=at.year + 1)


def series(fields: Fields) -> Series:
    unit = fields.choice("dbIncrement", INCREMENTS, "hour")
    return Series(unit, fields.integer("timeZoneDifference", 0, -1440, 1440))


def filled(
    fields: Fields, steps: Series, rows: Sequence[Mapping[str, Any]], zero: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Rows by period with `time` instead of `period`; periods without rows are there with `zero`.

    Without a time filter the periods run from the first row to the last.
    """
    frame = fields.object("timeFilter")
    since, until = frame.moment("start"), frame.moment("end")
    known = {row["period"] for row in rows}
    if since is None or until is None:
        moments = [steps.start(name) for name in known]
        since = since or min(moments, default=None)
        until = until or max(moments, default=None)
    names = set(known)
    if since is not None and until is not None:
        names |= set(steps.names(since, until))
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        rest = {key: value for key, value in row.items() if key != "period"}
        by_name.setdefault(row["period"], []).append({"time": steps.time(row["period"]), **rest})
    return [line for name in sorted(names) for line in by_name.get(name) or [{"time": steps.time(name), **zero}]]
