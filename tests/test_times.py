"""Times as people write them, and the calendar of time zones."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from heliproxy.times import buckets, label, parse_span, parse_zone, period, stored_time

NOW = datetime(2026, 9, 23, 22, 30, tzinfo=UTC)  # Wednesday; in Tokyo already Thursday
BERLIN, TOKYO = ZoneInfo("Europe/Berlin"), ZoneInfo("Asia/Tokyo")


@pytest.mark.parametrize(
    ("text", "zone", "start", "end"),
    [
        ("now", UTC, "2026-09-23T22:30:00.000Z", "2026-09-23T22:30:00.000Z"),
        ("7d", UTC, "2026-09-16T22:30:00.000Z", "2026-09-16T22:30:00.000Z"),
        ("2h", UTC, "2026-09-23T20:30:00.000Z", "2026-09-23T20:30:00.000Z"),
        ("30m", UTC, "2026-09-23T22:00:00.000Z", "2026-09-23T22:00:00.000Z"),
        ("2W", UTC, "2026-09-09T22:30:00.000Z", "2026-09-09T22:30:00.000Z"),
        ("today", UTC, "2026-09-23T00:00:00.000Z", "2026-09-24T00:00:00.000Z"),
        ("today", TOKYO, "2026-09-23T15:00:00.000Z", "2026-09-24T15:00:00.000Z"),
        ("yesterday", TOKYO, "2026-09-22T15:00:00.000Z", "2026-09-23T15:00:00.000Z"),
        ("week", UTC, "2026-09-21T00:00:00.000Z", "2026-09-28T00:00:00.000Z"),
        ("month", BERLIN, "2026-08-31T22:00:00.000Z", "2026-09-30T22:00:00.000Z"),
        ("year", UTC, "2026-01-01T00:00:00.000Z", "2027-01-01T00:00:00.000Z"),
        ("2026-10-25", BERLIN, "2026-10-24T22:00:00.000Z", "2026-10-25T23:00:00.000Z"),
        ("20261025", UTC, "2026-10-25T00:00:00.000Z", "2026-10-26T00:00:00.000Z"),
        ("2026-12", UTC, "2026-12-01T00:00:00.000Z", "2027-01-01T00:00:00.000Z"),
        ("2026-09-01T12:00", BERLIN, "2026-09-01T10:00:00.000Z", "2026-09-01T10:00:00.000Z"),
        ("2026-09-01 12:00:30", UTC, "2026-09-01T12:00:30.000Z", "2026-09-01T12:00:30.000Z"),
        ("2026-09-01T12:00:00Z", BERLIN, "2026-09-01T12:00:00.000Z", "2026-09-01T12:00:00.000Z"),
        ("2026-09-01T12:00:00+02:00", UTC, "2026-09-01T10:00:00.000Z", "2026-09-01T10:00:00.000Z"),
    ],
)
def test_span_of(text: str, zone: ZoneInfo, start: str, end: str) -> None:
    begins, ends = parse_span(text, NOW, zone)
    assert (stored_time(begins), stored_time(ends)) == (start, end)


@pytest.mark.parametrize(
    "text", ["", "foo", "7", "7x", "-7d", "999999999w", "2026-13", "2026-02-30", "0000-01-01", "d"]
)
def test_anything_else_names_the_expected_forms(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a time; expected a date or time"):
        parse_span(text, NOW, UTC)


@pytest.mark.parametrize("name", ["Mars/Olympus", "../etc/passwd", "/etc/passwd", "", "Europe"])
def test_unknown_zone_is_named(name: str) -> None:
    with pytest.raises(ValueError, match="unknown time zone"):
        parse_zone(name)


def test_days_of_a_zone_with_dst_have_23_and_25_hours() -> None:
    spans = [period("day", day, BERLIN) for day in (date(2026, 3, 29), date(2026, 10, 25), date(2026, 7, 1))]
    lengths = [(end - start).total_seconds() / 3600 for start, end in spans]
    assert lengths == [23, 25, 24]


def test_hours_of_an_autumn_night_carry_their_offset() -> None:
    start = datetime(2026, 10, 24, 23, 30, tzinfo=UTC)
    end = datetime(2026, 10, 25, 2, 0, tzinfo=UTC)
    assert [label("hour", begins, BERLIN) for begins, _ in buckets("hour", start, end, BERLIN)] == [
        "2026-10-25T01:00+02:00",
        "2026-10-25T02:00+02:00",
        "2026-10-25T02:00+01:00",
        "2026-10-25T03:00+01:00",
    ]


@pytest.mark.parametrize(
    "zone", ["Asia/Kolkata", "Australia/Lord_Howe", "America/Havana", "Asia/Beirut", "Pacific/Apia"]
)
@pytest.mark.parametrize("unit", ["hour", "day", "week", "month"])
@pytest.mark.parametrize("year", [2011, 2026])
def test_buckets_follow_each_other_without_gap(zone: str, unit: str, year: int) -> None:
    start, end = datetime(year, 1, 1, 7, 13, tzinfo=UTC), datetime(year + 1, 1, 2, tzinfo=UTC)
    found = list(buckets(unit, start, end, ZoneInfo(zone)))
    assert found[0][0] <= start < found[0][1]
    assert found[-1][0] <= end < found[-1][1]
    assert all(before[1] == after[0] for before, after in pairwise(found))
    assert all(begins < ends for begins, ends in found)


@pytest.mark.parametrize("name", ["Europe/Berlin", "America/New_York", "UTC", "Australia/Lord_Howe"])
def test_local_zone_is_that_of_the_machine(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", name)
    time.tzset()
    try:
        local = parse_zone(None)
        for unit in ("day", "hour"):
            start, end = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 10, tzinfo=UTC)
            assert list(buckets(unit, start, end, local)) == list(buckets(unit, start, end, ZoneInfo(name)))
            assert label(unit, end, local) == label(unit, end, ZoneInfo(name))
    finally:
        monkeypatch.undo()
        time.tzset()
