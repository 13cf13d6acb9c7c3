"""Times as people name them ("7d", "today", "2026-09"), and calendar periods of a time zone, DST included."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator

TIME_FORMS = (
    "a date or time (2026-09-01, 2026-09-01T12:00, 2026-09), an age (30m, 2h, 7d, 2w), "
    "now, today, yesterday, week, month or year"
)
AGE = re.compile(r"(\d{1,9})\s*(s|m|min|h|d|w)")
AGE_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
UNITS = ("hour", "day", "week", "month")


class SystemZone(tzinfo):
    """The zone this machine is set to, with its DST rules."""

    def utcoffset(self, dt: datetime | None) -> timedelta | None:
        return None if dt is None else dt.replace(tzinfo=None).astimezone().utcoffset()

    def dst(self, dt: datetime | None) -> timedelta | None:
        return None

    def tzname(self, dt: datetime | None) -> str | None:
        return None if dt is None else dt.replace(tzinfo=None).astimezone().tzname()

    def fromutc(self, dt: datetime) -> datetime:
        return dt.replace(tzinfo=UTC).astimezone().replace(tzinfo=self)

    def __str__(self) -> str:
        return "local"


def local_now() -> datetime:
    """Now, in the zone of this machine with its rules. `datetime.now().astimezone()` only knows the offset of today,
    so that a month in which the clocks change would begin an hour off."""
    return datetime.now(SystemZone())


def parse_zone(name: str | None) -> tzinfo:
    """The zone of an IANA name, "UTC", or None / "local" for the machine's own. Raises ValueError."""
    if name is None or name.lower() == "local":
        return SystemZone()
    if name.upper() in ("UTC", "Z"):
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as e:
        raise ValueError(f"unknown time zone {name!r}; expected a name such as Europe/Berlin, UTC or local") from e


def parse_span(text: str, now: datetime, zone: tzinfo) -> tuple[datetime, datetime]:
    """The (start, end) in UTC that `text` names; both are the same for an instant. Raises ValueError.

    "today" and "2026-09-01" are days of `zone`, "2026-09" and "month" calendar months; "7d" is that long before `now`.
    """
    word = text.strip().lower()
    today = now.astimezone(zone).date()
    try:
        if word == "now":
            return now, now
        if age := AGE.fullmatch(word):
            at = now - timedelta(seconds=int(age[1]) * AGE_SECONDS[age[2]])
            return at, at
        if word in ("today", "yesterday"):
            return period("day", today - timedelta(days=word == "yesterday"), zone)
        if word in ("week", "month", "year"):
            return period(word, today, zone)
        if re.fullmatch(r"\d{4}-\d{2}", word):
            return period("month", date.fromisoformat(f"{word}-01"), zone)
        at = datetime.fromisoformat(text.strip())
        if len(word) <= len("2026-09-01"):
            return period("day", at.date(), zone)
        at = (at if at.tzinfo else at.replace(tzinfo=zone)).astimezone(UTC)
    except (ValueError, OverflowError) as e:
        raise ValueError(f"{text!r} is not a time; expected {TIME_FORMS}") from e
    return at, at


def period(unit: str, day: date, zone: tzinfo) -> tuple[datetime, datetime]:
    """The calendar day, week (from Monday), month or year that holds `day`, as (start, end) in UTC."""
    first = first_day(unit, day)
    return midnight(first, zone), midnight(next_first_day(unit, first), zone)


def first_day(unit: str, day: date) -> date:
    if unit == "week":
        return day - timedelta(days=day.weekday())
    if unit == "month":
        return day.replace(day=1)
    return day.replace(month=1, day=1) if unit == "year" else day


def next_first_day(unit: str, first: date) -> date:
    if unit == "day":
        return first + timedelta(days=1)
    # 31 days reach into the next month, 366 into the next year, from the first day of one.
    return first_day(unit, first + timedelta(days={"week": 7, "month": 31, "year": 366}[unit]))


def midnight(day: date, zone: tzinfo) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)


def buckets(unit: str, start: datetime, end: datetime, zone: tzinfo) -> Iterator[tuple[datetime, datetime]]:
    """The hours, days, weeks or months of `zone` that hold start..end, in order, as (start, end) in UTC."""
    if unit == "hour":
        yield from hours(start, end, zone)
        return
    at = first_day(unit, start.astimezone(zone).date())
    while (begins := midnight(at, zone)) <= end:
        at = next_first_day(unit, at)
        ends = midnight(at, zone)
        if ends > begins:  # a date that a zone skipped (Samoa, 2011-12-30) is no bucket
            yield begins, ends


def hours(start: datetime, end: datetime, zone: tzinfo) -> Iterator[tuple[datetime, datetime]]:
    local = start.astimezone(zone)
    at = start.astimezone(UTC) - timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)
    while at <= end:
        # From its minutes, as an offset may change by half an hour (Lord Howe).
        ends = at + timedelta(minutes=60 - at.astimezone(zone).minute)
        yield at, ends
        at = ends


def label(unit: str, at: datetime, zone: tzinfo) -> str:
    """The name of the period that holds `at`. Hours carry their offset: one of them comes twice in autumn."""
    local = at.astimezone(zone)
    if unit == "hour":
        return local.replace(minute=0, second=0, microsecond=0).isoformat(timespec="minutes")
    first = first_day(unit, local.date())
    return first.isoformat()[:7] if unit == "month" else first.isoformat()


def stored_time(at: datetime) -> str:
    """`at` as `requests.created_at` has it: `2026-01-31T23:59:59.123Z`; such texts sort by time."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
