"""Reports from sums of the past say what the requests themselves say."""

from __future__ import annotations

import os
import random
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest

from heliproxy import queries, queries_pages, rollup_filler, rollups, tallies
from heliproxy.filters import Filters
from heliproxy.queries import Costs
from heliproxy.rollup_filler import fill_all
from heliproxy.rollup_thread import Filler
from heliproxy.store import Record, Store, open_reader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

START = datetime(2026, 9, 1, 3, 20, tzinfo=UTC)
HOURS = 70
NOW = START + timedelta(hours=HOURS)
ROWS = 4000
EXACTLY = (
    "key", "requests", "errors", "hits", "aborted", "input_tokens", "output_tokens", "cache_read_tokens",
    "cache_write_tokens", "reasoning_tokens", "estimated", "unpriced",
)  # fmt: skip
MONEY = ("cost_usd", "fees_usd", "saved_usd")
TIMES = ("p50_ms", "p95_ms")


def records(seed: int = 7) -> Iterator[Record]:
    draw = random.Random(seed)
    for number in range(ROWS):
        # Busy and quiet hours, and one without any request.
        hour = draw.choice([h for h in range(HOURS) if h != 31 and (h % 9 or draw.random() < 0.05)])
        at = START + timedelta(hours=hour, milliseconds=draw.randrange(3_600_000))
        status = draw.choices((200, 200, 429, 500, -2, -3, -4, 0, None), (60, 10, 4, 3, 2, 2, 1, 1, 1))[0]
        hit = draw.random() < 0.1
        known = draw.random() < 0.9
        row: dict[str, Any] = {
            "id": f"r{number:05}",
            "created_at": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "status": status,
            "provider": draw.choice(("openai", "anthropic", None)),
            "model": draw.choice(("gpt-5", "claude[1]", "Ünïcode", "", None)),
            "host": draw.choice(("api.openai.com", "api.anthropic.com")),
            "error_type": draw.choice((None, None, None, "incomplete_stream")),
            "cache": "HIT" if hit else draw.choice((None, "MISS")),
            "user_id": draw.choice(("ann", "bob", "o'neil", None)),
            "key_fingerprint": draw.choice(("0a", "0b")),
            "client": draw.choice(("curl", "node")),
            "prompt_id": draw.choice(("greet", None)),
            "run_id": draw.choice(("run1", None)),
            "session_id": draw.choice((None, f"s{number // 50}")),
            "usage_source": draw.choice(("provider", "estimated", "none")),
            "input_tokens": draw.randrange(10_000) if known else None,
            "output_tokens": draw.randrange(3_000) if known else None,
            "cache_read_tokens": draw.choice((None, draw.randrange(500))),
            "reasoning_tokens": draw.choice((None, 7)),
            "cost_usd": draw.lognormvariate(-6, 2) if draw.random() < 0.8 else None,
            "saved_usd": draw.random() if hit else None,
            "latency_ms": draw.choice((draw.lognormvariate(6, 1.2), None)),
            "ttft_ms": draw.choice((draw.lognormvariate(5, 0.5), None)),
        }
        properties = {"env": draw.choice(("prod", "dev"))} if draw.random() < 0.7 else {}
        if hour > 40:
            properties["team"] = draw.choice(("x", "y"))
        if number == 100:
            properties |= {"env": "dev", "Env": "twice"}
        yield Record(row, properties | {"trace": f"t{number}"})


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rollups") / "heliproxy.db"
    writer = Store(path).writer()
    for record in records():
        writer.add(record)
    for number in (5, 6, 1000, 3999):
        writer.add_scores(f"r{number:05}", {"good": number / 10})
    writer.close()
    assert fill_all(path, NOW) > HOURS / 2
    assert fill_all(path, NOW) == 0
    return path


@pytest.fixture
def path(filled: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    copy = tmp_path / "heliproxy.db"
    with closing(sqlite3.connect(filled)) as old, closing(sqlite3.connect(copy)) as new:
        old.backup(new)
    return copy


def both(path: Path, by: list[str], filters: Filters, zone: Any, monkeypatch: pytest.MonkeyPatch) -> list[Costs]:
    """A report from sums and one from requests."""
    found = []
    for exact_rows in (0, 10**9):
        monkeypatch.setattr(tallies, "EXACT_ROWS", exact_rows)
        with closing(open_reader(path)) as conn:
            found.append(queries.costs(conn, by, filters, zone=zone, sort="name", descending=False))
    return found


def assert_equal(sums: Costs, requests: Costs) -> None:
    assert [line.key for line in sums.lines] == [line.key for line in requests.lines]
    for one, other in zip([*sums.lines, sums.total], [*requests.lines, requests.total], strict=True):
        for name in EXACTLY:
            assert getattr(one, name) == getattr(other, name), name
        for name in MONEY:
            assert close(getattr(one, name), getattr(other, name), 1e-9), name
        for name in TIMES:
            assert close(getattr(one, name), getattr(other, name), 0.01), name


def close(one: float | None, other: float | None, share: float) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= share * abs(other)


ZONES = {name: ZoneInfo(name) for name in ("Europe/Berlin", "Asia/Kolkata", "Australia/Lord_Howe")} | {"UTC": UTC}
GROUPS = [
    *([group] for group in (*tallies.DIMENSIONS, "property:env", "property:ENV", "property:team", "property:none")),
    ["property:trace"], [], ["provider", "model"], ["user", "model", "status"], ["client", "prompt"],
    ["client", "model"], ["property:env", "property:team"], ["property:env", "model"], ["user", "property:ENV"],
    ["property:team", "status"], ["property:env", "user", "model"], ["property:none", "model"],
    ["property:env", "client"], ["score:good"], ["score:GOOD", "model"], ["score:none"],
    ["property:env", "score:good", "user"],
]  # fmt: skip
TIMED = [
    ["day"], ["hour"], ["week"], ["month"], ["day", "model"], ["model", "day"], ["hour", "user"],
    ["day", "property:env"], ["month", "hour", "day"], ["day", "model", "property:team"],
    ["day", "score:good"],
]  # fmt: skip
FILTERS = [
    Filters(),
    Filters(since=START + timedelta(hours=5, minutes=13, seconds=7, milliseconds=1), until=NOW - timedelta(hours=9)),
    Filters(since=START + timedelta(hours=60)),
    Filters(until=START + timedelta(minutes=1)),
    Filters(models=("gpt-5",)), Filters(models=("claude[1]", "*code")), Filters(providers=("OpenAI",), users=("ann",)),
    Filters(statuses=("error",)), Filters(statuses=("ok", "429")), Filters(statuses=("cached",)),
    Filters(statuses=("aborted", "timeout", "incomplete", "5xx")), Filters(users=("o'neil",), statuses=("200",)),
    Filters(sessions=("s3",)), Filters(properties=(("env", "prod"),)), Filters(prompts=("greet",), runs=("run1",)),
    Filters(hosts=("*.com",), keys=("0a",)), Filters(models=("absent",)),
    Filters(properties=(("ENV", "dev"),), models=("gpt*",)), Filters(properties=(("team", "x"),), users=("ann",)),
    Filters(properties=(("env", "prod"),), statuses=("error", "cached")),
    Filters(properties=(("env", "prod"), ("team", "x"))), Filters(properties=(("env", "prod"), ("env", "dev"))),
    Filters(properties=(("env", "twice"),)), Filters(properties=(("trace", "t7"),)),
]  # fmt: skip


CASES = [(by, "UTC") for by in GROUPS] + [(by, zone) for by in TIMED for zone in ZONES]


@pytest.mark.parametrize(("by", "zone"), CASES, ids=lambda case: case if isinstance(case, str) else ",".join(case))
def test_sums_equal_requests_by_any_group(
    filled: Path, by: list[str], zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for filters in FILTERS[:3]:
        assert_equal(*both(filled, by, filters, ZONES[zone], monkeypatch))


@pytest.mark.parametrize("number", range(len(FILTERS)))
@pytest.mark.parametrize("by", [[], ["model"], ["day", "user"], ["property:env"], ["status", "provider"]], ids=",".join)
def test_sums_equal_requests_with_any_filter(
    filled: Path, by: list[str], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_equal(*both(filled, by, FILTERS[number], UTC, monkeypatch))


CHANGES: dict[str, Any] = {
    "late row": lambda w: w.add(
        Record({"id": "late", "created_at": "2026-09-02T08:00:00.000Z", "status": 200, "model": "new", "cost_usd": 5.0})
    ),
    "row sent again": lambda w: w.add(
        Record({"id": "r00017", "created_at": "2026-09-09T08:00:00.000Z", "status": 200, "model": "moved"})
    ),
    "price": lambda w: w.write([("UPDATE requests SET cost_usd = 9.0 WHERE id IN ('r00003', 'r04000')", ())]),
    "deletion": lambda w: w.write([("DELETE FROM requests WHERE user_id = 'bob' AND status = 500", ())]),
    "property": lambda w: w.set_property("r00005", "env", "staging"),
    "feedback": lambda w: w.add_feedback("r00005", True),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "by", [["model"], ["day"], ["property:env"], ["user"], ["score:helicone-score-feedback"]], ids=",".join
)
def test_change_of_the_past_is_seen_at_once(
    path: Path, change: str, by: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Store(path).writer()
    CHANGES[change](writer)
    writer.close()
    assert_equal(*both(path, by, Filters(), UTC, monkeypatch))
    fill_all(path, NOW)
    assert_equal(*both(path, by, Filters(), UTC, monkeypatch))


def test_sums_are_what_is_read(filled: Path) -> None:
    """Else all of the above would hold without them."""
    with closing(open_reader(filled)) as conn:
        (part,) = rollups.plan(conn, "user", [(START, NOW)])
        assert {level for level, _, _ in part.blocks} == {0, 1, 2}
        left = sum(((end - begin) for begin, end in part.raw), timedelta())
        assert left < timedelta(hours=14)
        (cut,) = rollups.plan(conn, "property:trace", [(START, NOW)])
        assert cut.blocks == []
        for kind in ("property-model:env", "property-user:team", "property-model:none"):
            (part,) = rollups.plan(conn, kind, [(START, NOW)])
            assert sum(4**level * (ends - begins) for level, begins, ends in part.blocks) > HOURS / 2, kind


KIND_CASES = [
    ([], {}, False, "total"),
    (["model"], {}, False, "model"),
    (["model"], {}, True, "traffic"),
    (["session"], {}, False, None),
    (["client"], {"users": ("ann",)}, False, None),
    (["property:Env"], {}, False, "property:env"),
    ([], {"properties": (("Env", "x"),)}, True, "property:env"),
    (["model"], {"properties": (("Env", "x"),)}, False, "property-model:env"),
    (["property:env", "user"], {"properties": (("ENV", "x"), ("env", "y"))}, False, "property-user:env"),
    (["property:a:b"], {"statuses": ("ok",)}, False, "property-traffic:a:b"),
    (["user"], {"properties": (("env", "x"),), "models": ("gpt*",)}, True, "property-people:env"),
    (["client"], {"properties": (("env", "x"),)}, False, None),
    (["property:env"], {"properties": (("team", "x"),)}, False, None),
    (["property:env"], {"sessions": ("s1",)}, False, None),
]  # fmt: skip


@pytest.mark.parametrize(("groups", "filters", "waits", "kind"), KIND_CASES)
def test_smallest_kind_that_answers_is_read(groups: list[str], filters: Any, waits: bool, kind: str | None) -> None:
    assert rollups.kind_of(groups, Filters(**filters), waits=waits) == kind


def test_hours_with_scores_are_read_from_the_requests(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(open_reader(filled)) as conn:
        holes = rollups.scored_hours(conn, ["Good"])
        assert holes is not None
        assert len(holes) == 4
        (part,) = rollups.plan(conn, "total", [(START, NOW)], holes)
        summed = {hour for level, a, b in part.blocks for hour in range(a * 4**level, b * 4**level)}
        assert len(summed) > HOURS / 2
        assert not summed & set(holes)
        assert rollups.scored_hours(conn, ["none"]) == []
        monkeypatch.setattr(rollups, "MOST_SCORES", 3)
        assert rollups.scored_hours(conn, ["Good"]) is None


def test_hour_in_which_a_request_has_a_property_twice_is_read_from_the_requests(filled: Path) -> None:
    with closing(open_reader(filled)) as conn:
        ((at,),) = conn.execute("SELECT created_at FROM requests WHERE id = 'r00100'")
        hour = rollups.hour_before(datetime.fromisoformat(at))
        (part,) = rollups.plan(conn, "property:env", [(rollups.time_of(hour), rollups.time_of(hour + 1))])
        (other,) = rollups.plan(conn, "property:none", [(rollups.time_of(hour), rollups.time_of(hour + 1))])
    assert (part.blocks, other.blocks) == ([], [(0, hour, hour + 1)])


@pytest.mark.parametrize("filters", [*FILTERS[:4], FILTERS[4], FILTERS[11], Filters(users=("ann", "o*"))])
def test_times_of_users_are_those_of_the_requests(
    path: Path, filters: Filters, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    with closing(open_reader(path)) as conn:
        for exact_rows in (0, 10**9):
            monkeypatch.setattr(tallies, "EXACT_ROWS", exact_rows)
            found.append(queries_pages.seen_times(conn, filters))
    assert found[0] == found[1]
    assert None not in found[0]
    # A period's own times follow the changes.
    writer = Store(path).writer()
    writer.write([("DELETE FROM requests WHERE created_at < '2026-09-01T18:00:00.000Z'", ())])
    writer.close()
    fill_all(path, NOW)
    monkeypatch.setattr(tallies, "EXACT_ROWS", 0)
    with closing(open_reader(path)) as conn:
        after = queries_pages.seen_times(conn, Filters())
    assert min(first for first, _ in after.values()) >= "2026-09-01T18:00:00.000Z"


def test_hour_under_way_and_hours_just_over_are_not_summed_up(filled: Path) -> None:
    with closing(open_reader(filled)) as conn:
        last = conn.execute("SELECT max(start) FROM rollup_periods WHERE level = 0").fetchone()[0]
    assert rollups.time_of(last + 1) <= NOW - rollup_filler.SETTLED


def test_change_while_a_period_is_summed_up_discards_the_sums(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hour = (0, rollups.hour_before(START) + 5)
    real = rollup_filler.sum_up

    def changed_meanwhile(conn: sqlite3.Connection, period: Any) -> Any:
        found = real(conn, period)
        writer = Store(path).writer()
        writer.write([("UPDATE requests SET model = 'x' WHERE created_at >= '2026-09-01T08:00:00.000Z'", ())])
        writer.close()
        return found

    with closing(rollup_filler.connect(path)) as conn:
        monkeypatch.setattr(rollup_filler, "sum_up", changed_meanwhile)
        assert not rollup_filler.fill(conn, hour)
        assert conn.execute("SELECT * FROM rollup_periods WHERE level = ? AND start = ?", hour).fetchone() is None
        monkeypatch.undo()
        assert rollup_filler.fill(conn, hour)


def test_file_without_room_for_sums_is_read_as_before(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(sqlite3.connect(path)) as conn, conn:
        for name in ("rollup_periods", "rollups", "rollup_horizon"):
            conn.execute(f"DROP TABLE {name}")
        for (name,) in conn.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            conn.execute(f"DROP TRIGGER {name}")
        conn.execute("DELETE FROM _sqlite_migrations WHERE name >= 'm003'")
    assert_equal(*both(path, ["model"], Filters(), UTC, monkeypatch))


def test_reading_writes_nothing(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = filled.read_bytes()
    both(filled, ["day", "model"], Filters(), UTC, monkeypatch)
    assert filled.read_bytes() == before


def test_thread_has_made_what_is_missing_and_ends_when_told(path: Path) -> None:
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("DELETE FROM rollup_periods WHERE level = 0 AND start % 2 = 0")
        conn.execute("DELETE FROM rollups")
        before = conn.execute("SELECT count(*) FROM rollup_periods").fetchone()[0]
    filler = Filler(path, clock=NOW.timestamp)
    filler.fill()
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("SELECT count(*) FROM rollup_periods").fetchone()[0] > before
    filler.start()
    filler.close()


def test_nothing_is_made_while_nothing_is_written(path: Path) -> None:
    """The second look starts nothing, which would find the gap."""
    filler = Filler(path, clock=NOW.timestamp)
    filler.fill()
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("DELETE FROM rollup_periods")
    quiet, written = NOW.timestamp() - 10_000, NOW.timestamp() + 10
    os.utime(path, (quiet, quiet))
    filler.fill()
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("SELECT count(*) FROM rollup_periods").fetchone()[0] == 0
    os.utime(path, (written, written))
    filler.fill()
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("SELECT count(*) FROM rollup_periods").fetchone()[0] > 0


def test_missing_file_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"heliproxy\.db"):
        Filler(tmp_path / "heliproxy.db").fill()
    with pytest.raises(sqlite3.OperationalError):
        fill_all(tmp_path / "heliproxy.db", NOW)
    assert list(tmp_path.iterdir()) == []


def test_process_that_asked_is_gone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("DELETE FROM rollup_periods")
    assert fill_all(path, NOW, lambda: False) == 0


def test_report_says_when_percentiles_are_approximate(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sums, requests = both(filled, ["model"], Filters(), UTC, monkeypatch)
    assert (sums.approximate, requests.approximate) == (True, False)


@pytest.mark.parametrize("filters", FILTERS[:5])
def test_groupings_read_together_are_those_read_alone(
    filled: Path, filters: Filters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tallies, "EXACT_ROWS", 0)
    groupings: list[tuple[str, ...]] = [(), ("day",), ("day", "model"), ("user",), ("property:env",), ("session",)]
    with closing(open_reader(filled)) as conn:
        together = tallies.tallies(conn, groupings, filters, ZONES["Asia/Kolkata"], waits=True)
        for by, found in zip(groupings, together, strict=True):
            (alone,) = tallies.tallies(conn, [by], filters, ZONES["Asia/Kolkata"], waits=True)
            assert found.keys() == alone.keys()
            for key, one in found.items():
                assert one.sums[:9] == alone[key].sums[:9]
                assert close(one.line(key).p95_ms, alone[key].line(key).p95_ms, 0.02)
            assert sum(one.sums[0] for one in found.values()) == queries.request_count(conn, filters)


def test_times_to_the_first_token_are_summed_up(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for exact_rows in (0, 10**9):
        monkeypatch.setattr(tallies, "EXACT_ROWS", exact_rows)
        with closing(open_reader(filled)) as conn:
            (by_day,) = tallies.tallies(conn, [("day",)], Filters(statuses=("ok",)), UTC, waits=True)
        found.append({key: one.wait_quantiles((0.5, 0.95)) for key, one in by_day.items()})
    sums, requests = found
    assert sums.keys() == requests.keys()
    for key, values in sums.items():
        assert values == pytest.approx(requests[key], rel=0.01)
