"""Reports and lists over real databases."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest

from heliproxy import queries, tallies
from heliproxy.filters import Filters
from heliproxy.queries import Follower, costs
from heliproxy.store import Record, Store, open_reader

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator
    from pathlib import Path

BERLIN, TOKYO = ZoneInfo("Europe/Berlin"), ZoneInfo("Asia/Tokyo")


def record(key: str, created_at: str = "2026-09-01T12:00:00.000Z", properties: Any = None, **row: Any) -> Record:
    return Record({"id": key, "created_at": created_at, "status": 200, **row}, properties or {})


def put(path: Path, *records: Record) -> None:
    writer = Store(path).writer()
    for one in records:
        writer.add(one)
    writer.close()
    assert writer.lost_rows == 0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "heliproxy.db"


MIXED = (
    record("a", model="gpt", provider="openai", user_id="ann", input_tokens=100, cache_read_tokens=40, output_tokens=10,
           reasoning_tokens=5, cost_usd=0.25, latency_ms=100.0, usage_source="provider",
           properties={"env": "prod", "team": "x"}),
    record("b", model="gpt", provider="openai", user_id="bob", input_tokens=50, output_tokens=20, cost_usd=0.5,
           latency_ms=300.0, usage_source="estimated", properties={"env": "dev"}),
    record("c", model="gpt", provider="openai", cache="HIT", input_tokens=0, output_tokens=0, cost_usd=0.0,
           saved_usd=0.25, latency_ms=2.0, usage_source="none", properties={"env": "prod"}),
    record("d", model="gpt", provider="openai", status=429, error="slow down", latency_ms=50.0),
    record("e", model="claude", provider="anthropic", user_id="ann", input_tokens=7, output_tokens=3, latency_ms=10.0),
    record("f", model="claude", provider="anthropic", status=-3, error_type="client_cancelled", latency_ms=20.0),
    record("g", model="claude", provider="anthropic", status=200, error_type="incomplete_stream", error="cut",
           input_tokens=9, cost_usd=1.0, latency_ms=30.0),
    record("h", model="claude", provider="anthropic", status=-2, error_type="timeout"),
    record("i", model="claude", provider="anthropic", status=None, incomplete=1),
)  # fmt: skip


@pytest.fixture
def mixed(path: Path) -> Iterator[sqlite3.Connection]:
    put(path, *MIXED)
    with closing(open_reader(path)) as conn:
        yield conn


def keys(report: queries.Costs) -> list[tuple[Any, ...]]:
    return [line.key for line in report.lines]


def test_line_adds_up_what_is_known_and_keeps_unknown_apart(mixed: sqlite3.Connection) -> None:
    report = costs(mixed, ["model"])
    claude, gpt = report.lines
    assert gpt == tallies.Line(
        ("gpt",), requests=4, errors=1, hits=1, aborted=0, input_tokens=150, output_tokens=30, cache_read_tokens=40,
        cache_write_tokens=None, reasoning_tokens=5, cost_usd=0.75, saved_usd=0.25, estimated=1, unpriced=0,
        p50_ms=75.0, p95_ms=pytest.approx(270.0),
    )  # fmt: skip
    assert claude == tallies.Line(
        ("claude",), requests=5, errors=2, aborted=1, input_tokens=16, output_tokens=3, cost_usd=1.0, unpriced=2,
        p50_ms=20.0, p95_ms=29.0,
    )  # fmt: skip
    assert (report.total.requests, report.total.cost_usd, report.total.unpriced) == (9, 1.75, 2)
    assert (report.total.p50_ms, report.groups) == (30.0, 2)


@pytest.mark.parametrize("tokens", [None, 5])
def test_lost_call_is_neither_an_error_nor_unpriced(path: Path, tokens: int | None) -> None:
    lost = record("a", status=None, incomplete=1, error_type="lost", error="ended", input_tokens=tokens, session_id="s")
    put(path, lost)
    with closing(open_reader(path)) as conn:
        for by in (["model"], ["status"], []):
            found = costs(conn, by)
            total = found.total
            assert (total.requests, total.errors, total.unpriced, found.lost) == (1, 0, 0, 1)
        assert costs(conn, filters=Filters(models=("other",))).lost == 0
        (session,) = queries.session_list(conn, Filters())
        assert (session["errors"], session["unpriced"] or 0) == (0, 0)
        for form in ("error", "ok"):
            assert queries.request_list(conn, Filters(statuses=(form,))).rows == []


def test_empty_database_has_an_empty_total(path: Path) -> None:
    put(path)
    with closing(open_reader(path)) as conn:
        for by in (["model"], ["day"], ["day", "user"], []):
            report = costs(conn, by)
            assert report.lines == []
            assert report.total == tallies.Line(())


def test_no_group_is_one_line(mixed: sqlite3.Connection) -> None:
    report = costs(mixed, [])
    assert report.lines == [report.total]


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        (["provider"], [("anthropic",), ("openai",)]),
        (["user"], [(None,), ("bob",), ("ann",)]),
        (["status"], [(200,), (-3,), (-2,), (429,), (None,)]),
        (["property:env"], [(None,), ("dev",), ("prod",)]),
        (["property:ENV"], [(None,), ("dev",), ("prod",)]),
        (["provider", "user"], [
            ("anthropic", None), ("anthropic", "ann"), ("openai", "bob"), ("openai", "ann"), ("openai", None),
        ]),
        (["property:env", "property:team"], [(None, None), ("dev", None), ("prod", "x"), ("prod", None)]),
        (["day", "model"], [("2026-09-01", "claude"), ("2026-09-01", "gpt")]),
        (["model", "month"], [("claude", "2026-09"), ("gpt", "2026-09")]),
    ],
)  # fmt: skip
def test_groups_nest_dearest_first(mixed: sqlite3.Connection, by: list[str], expected: list[Any]) -> None:
    report = costs(mixed, by)
    assert set(keys(report)) == set(expected)
    assert report.total.requests == 9
    if by != ["status"]:
        assert keys(report) == expected


def test_scores_group_too(path: Path) -> None:
    put(path, *MIXED)
    writer = Store(path).writer()
    writer.add_scores("a", {"quality": 3})
    writer.close()
    with closing(open_reader(path)) as conn:
        assert keys(costs(conn, ["score:quality"])) == [(None,), (3.0,)]


@pytest.mark.parametrize("by", ["", "foo", "property", "property:", "day:x", "model:x", "id"])
def test_unknown_group_is_refused(mixed: sqlite3.Connection, by: str) -> None:
    with pytest.raises(ValueError, match="cannot group by"):
        costs(mixed, [by])


@pytest.mark.parametrize(
    ("sort", "descending", "expected"),
    [
        (None, True, ["claude", "gpt"]),
        ("cost", False, ["gpt", "claude"]),
        ("tokens", True, ["gpt", "claude"]),
        ("requests", True, ["claude", "gpt"]),
        ("p95", True, ["gpt", "claude"]),
        ("name", True, ["gpt", "claude"]),
        ("name", False, ["claude", "gpt"]),
    ],
)
def test_sort(mixed: sqlite3.Connection, sort: str | None, descending: bool, expected: list[str]) -> None:
    assert [k[0] for k in keys(costs(mixed, ["model"], sort=sort, descending=descending))] == expected


def test_top_cuts_lines_but_not_the_total(mixed: sqlite3.Connection) -> None:
    report = costs(mixed, ["model"], top=1)
    assert (keys(report), report.total.requests, report.groups) == ([("claude",)], 9, 2)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters(), "abcdefghi"),
        (Filters(models=("gpt",)), "abcd"),
        (Filters(models=("g*", "none")), "abcd"),
        (Filters(models=("gp[t]*",)), ""),
        (Filters(providers=("OpenAI",)), "abcd"),
        (Filters(users=("ann", "bob")), "abe"),
        (Filters(users=("ann",), providers=("openai",)), "a"),
        (Filters(statuses=("ok",)), "abce"),
        (Filters(statuses=("error",)), "dgh"),
        (Filters(statuses=("aborted",)), "f"),
        (Filters(statuses=("timeout",)), "h"),
        (Filters(statuses=("cached",)), "c"),
        (Filters(statuses=("incomplete",)), "i"),
        (Filters(statuses=("4xx", "-3")), "df"),
        (Filters(statuses=("429",)), "d"),
        (Filters(properties=(("env", "prod"),)), "ac"),
        (Filters(properties=(("Env", "prod"), ("team", "x"))), "a"),
        (Filters(properties=(("env", "prod' OR 1=1"),)), ""),
        (Filters(since=datetime(2026, 9, 1, 12, tzinfo=UTC)), "abcdefghi"),
        (Filters(until=datetime(2026, 9, 1, 12, tzinfo=UTC)), ""),
    ],
)
def test_filters(mixed: sqlite3.Connection, filters: Filters, expected: str) -> None:
    page = queries.request_list(mixed, filters, oldest_first=True)
    assert "".join(row["id"] for row in page.rows) == expected
    assert queries.request_count(mixed, filters) == len(expected)
    assert costs(mixed, ["model"], filters).total.requests == len(expected)
    assert costs(mixed, ["day"], filters).total.requests == len(expected)


@pytest.mark.parametrize("form", ["", "foo", "6xx", "1e3", "99999", "²"])
def test_unknown_status_is_refused(form: str) -> None:
    with pytest.raises(ValueError, match="unknown status"):
        Filters(statuses=(form,)).condition()


def test_late_evening_utc_is_the_next_day_in_tokyo(path: Path) -> None:
    put(path, record("a", "2026-09-01T23:30:00.000Z", cost_usd=1.0))
    with closing(open_reader(path)) as conn:
        assert keys(costs(conn, ["day"], zone=UTC)) == [("2026-09-01",)]
        assert keys(costs(conn, ["day"], zone=TOKYO)) == [("2026-09-02",)]
        assert keys(costs(conn, ["week", "month"], zone=TOKYO)) == [("2026-08-31", "2026-09")]


def test_days_of_23_and_25_hours_hold_exactly_their_hours(path: Path) -> None:
    put(
        path,
        *(
            record(f"{month:02}-{day}-{hour:02}", f"2026-{month:02}-{day}T{hour:02}:00:00.000Z")
            for month, days in ((3, (28, 29, 30)), (10, (24, 25, 26)))
            for day in days
            for hour in range(24)
        ),
    )
    with closing(open_reader(path)) as conn:
        counts = {line.key[0]: line.requests for line in costs(conn, ["day"], zone=BERLIN).lines}
        hours = costs(conn, ["hour"], zone=BERLIN)
    assert [counts[day] for day in ("2026-03-29", "2026-03-30", "2026-10-25")] == [23, 24, 25]
    assert len(hours.lines) == 144
    assert {line.requests for line in hours.lines} == {1}
    assert [k[0] for k in keys(hours)] == sorted((str(k[0]) for k in keys(hours)), key=datetime.fromisoformat)


def test_times_come_in_order_whatever_they_cost(path: Path) -> None:
    put(path, *(record(str(i), f"2026-09-0{i}T00:00:00.000Z", cost_usd=c) for i, c in ((1, 5.0), (2, 9.0), (3, 1.0))))
    with closing(open_reader(path)) as conn:
        assert [k[0][-1] for k in keys(costs(conn, ["day"]))] == ["1", "2", "3"]
        assert [k[0][-1] for k in keys(costs(conn, ["day"], sort="cost"))] == ["2", "1", "3"]
        assert [k[0][-1] for k in keys(costs(conn, ["day"], sort="name", descending=True))] == ["3", "2", "1"]


def test_percentiles_come_from_a_sample_when_there_are_very_many_rows(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tallies, "LATENCY_SAMPLE", 100)
    put(path, *(record(str(i), latency_ms=float(i % 100)) for i in range(1000)))
    with closing(open_reader(path)) as conn:
        total = costs(conn, ["model"]).total
    assert total.requests == 1000
    assert total.p50_ms == pytest.approx(50, abs=6)


def test_report_made_in_pieces_counts_every_row_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tallies, "PIECE_ROWS", 7)
    put(
        path,
        *(record(str(i), f"2026-09-01T00:00:00.{i:03}Z", model=f"m{i % 3}", latency_ms=1.0 * i) for i in range(100)),
        record("z", "2026-09-01T00:00:05.000Z", model="m0", latency_ms=50.0),
    )
    with closing(open_reader(path)) as conn:
        report = costs(conn, ["model"], sort="name", descending=False)
    assert [(line.key, line.requests) for line in report.lines] == [(("m0",), 35), (("m1",), 33), (("m2",), 33)]
    assert (report.total.requests, report.total.p50_ms) == (101, 50.0)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([], 0.5, None),
        ([7.0], 0.95, 7.0),
        ([1.0, 2.0], 0.5, 1.5),
        ([1.0, 2.0, 3.0], 0.5, 2.0),
        ([0.0, 100.0], 0.95, 95.0),
    ],
)
def test_percentile(values: list[float], share: float, expected: float | None) -> None:
    assert tallies.percentile(values, share) == expected


def test_pages_follow_each_other_also_within_one_millisecond(path: Path) -> None:
    put(path, *(record(key) for key in "abcde"), record("z", "2026-08-01T00:00:00.000Z"))
    seen = []
    with closing(open_reader(path)) as conn:
        after = None
        while True:
            page = queries.request_list(conn, limit=2, after=after)
            seen += [row["id"] for row in page.rows]
            after = page.next
            if after is None:
                break
    assert seen == ["e", "d", "c", "b", "a", "z"]


def test_list_has_properties(mixed: sqlite3.Connection) -> None:
    [row] = queries.request_list(mixed, Filters(properties=(("team", "x"),))).rows
    assert row["properties"] == {"env": "prod", "team": "x"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("aaaa1111", ["aaaa1111-0000"]),
        ("AAAA1", ["aaaa1111-0000"]),
        ("aaaa", ["aaaa2222-0009", "aaaa1111-0000"]),
        ("0009", ["aaaa2222-0009"]),
        ("%", []),
        ("", []),
        ("zz", []),
    ],
)
def test_ids_are_found_by_either_end(path: Path, text: str, expected: list[str]) -> None:
    put(path, record("aaaa1111-0000"), record("aaaa2222-0009"))
    with closing(open_reader(path)) as conn:
        assert queries.find_ids(conn, text) == expected


def test_detail_has_everything(path: Path) -> None:
    put(path, record("a", properties={"env": "x"}, attempts_json='[{"target": "https://one", "status": 500}, 7]'))
    writer = Store(path).writer()
    writer.add_feedback("a", False)
    writer.close()
    with closing(open_reader(path)) as conn:
        detail = queries.request_detail(conn, "a")
        assert queries.request_detail(conn, "b") is None
    assert detail is not None
    assert (detail.row["id"], detail.properties, detail.body) == ("a", {"env": "x"}, None)
    assert detail.scores == {"helicone-score-feedback": 0.0}
    assert [f["value"] for f in detail.feedback] == ["false"]
    assert detail.attempts == [{"target": "https://one", "status": 500}]


def test_sessions_are_listed_last_used_first(path: Path) -> None:
    put(
        path,
        record("a", "2026-09-01T00:00:00.000Z", session_id="s1", session_name="Chat", cost_usd=1.0, user_id="u"),
        record("b", "2026-09-03T00:00:00.000Z", session_id="s1", session_name="Chat", status=500),
        record("c", "2026-09-02T00:00:00.000Z", session_id="s2"),
        record("d"),
    )
    with closing(open_reader(path)) as conn:
        first, second = queries.session_list(conn)
        assert [s["session_id"] for s in queries.session_list(conn, search="CHA")] == ["s1"]
        assert len(queries.session_list(conn, limit=1, offset=1)) == 1
    assert (first["session_id"], first["requests"], first["errors"], first["cost_usd"]) == ("s1", 2, 1, 1.0)
    assert (first["first_at"][:10], first["last_at"][:10], first["users"]) == ("2026-09-01", "2026-09-03", 1)
    assert second["session_id"] == "s2"


def test_pages_of_sessions_hold_each_once_in_order(path: Path) -> None:
    """By id among those used at the same moment; a session under two names is listed under each."""
    put(
        path,
        *(
            record(f"{minute}-{session}", f"2026-09-01T10:{minute:02}:00.000Z", session_id=session, session_name=name,
                   cost_usd=1.0, model="gpt" if minute else "claude")
            for minute, session, name in (
                (0, "e", None), (1, "d", "Old"), (2, "b", None), (2, "c", None), (2, "a", "Trip"), (3, "d", "New"),
            )
        ),
        record("none", "2026-09-01T10:09:00.000Z"),
    )  # fmt: skip
    expected = [("d", "New"), ("a", "Trip"), ("b", None), ("c", None), ("d", "Old"), ("e", None)]
    with closing(open_reader(path)) as conn:
        for limit in range(1, 8):
            pages = [queries.session_list(conn, limit=limit, offset=offset) for offset in range(0, 7, limit)]
            assert [(row["session_id"], row["session_name"]) for page in pages for row in page] == expected
        (row,) = queries.session_list(conn, Filters(models=("claude",)))
        assert (row["session_id"], row["requests"]) == ("e", 1)
        (row, _) = queries.session_list(conn, Filters(sessions=("d",)))
        assert (row["session_name"], row["requests"], row["cost_usd"]) == ("New", 1, 1.0)
        assert queries.session_list(conn, limit=5, offset=6) == []


def test_session_tree_follows_the_paths(path: Path) -> None:
    put(
        path,
        record("a", session_id="s", session_path="/plan", cost_usd=1.0),
        record("b", session_id="s", session_path="/plan/search", cost_usd=2.0),
        record("c", session_id="s", session_path="/plan/search/"),
        record("d", session_id="s"),
    )
    with closing(open_reader(path)) as conn:
        tree = queries.session_tree(conn, "s")
        assert queries.session_tree(conn, "none") is None
    assert tree is not None
    plan = tree.children["plan"]
    assert ([r["id"] for r in tree.requests], [r["id"] for r in plan.requests]) == (["d"], ["a"])
    assert [r["id"] for r in plan.children["search"].requests] == ["b", "c"]
    assert (tree.cost_usd, plan.children["search"].cost_usd) == (3.0, 2.0)


def test_follower_gives_each_finished_request_once(path: Path) -> None:
    put(path, record("a"), record("b"), record("open", incomplete=1, status=None))
    with closing(open_reader(path)) as conn:
        follower = Follower(conn, last=1)

        def poll() -> list[str]:
            return [row["id"] for row in follower.poll()]

        assert poll() == ["b"]
        assert poll() == []
        put(path, record("c", properties={"k": "v"}), record("open2", incomplete=1, status=None))
        assert poll() == ["c"]
        put(path, record("open2"), record("open"))
        assert sorted(poll()) == ["open", "open2"]
        assert poll() == []


def test_follower_filters(path: Path) -> None:
    put(path, record("a", user_id="ann"), record("b", user_id="bob"))
    with closing(open_reader(path)) as conn:
        follower = Follower(conn, Filters(users=("ann",)), last=5)
        put(path, record("c", user_id="bob"), record("d", user_id="ann"))
        assert [row["id"] for row in follower.poll()] == ["a", "d"]
