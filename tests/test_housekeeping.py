"""Removing, vacuuming, copying: on real files, and beside a running `heliproxy serve`."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fakes import Answer, Asked, Upstream, chat_answer, json_answer
from heliproxy import housekeeping
from heliproxy.bodies import Body
from heliproxy.cli import main
from heliproxy.housekeeping import Keeper, Pruned, count_old, keep, open_for_upkeep, prune
from heliproxy.housekeeping_cli import megabytes
from heliproxy.retention import Retention, parse_days, parse_retention, parse_size
from heliproxy.store import Record, Writer, open_reader
from heliproxy.times import stored_time
from served import Load, integrity, query, served

NOW = datetime(2026, 9, 30, 12, 0, tzinfo=UTC)


@pytest.fixture
def path(home: Path) -> Path:
    return home / "heliproxy.db"


def fill(path: Path, days: range, rows: int = 10, size: int = 2000, now: datetime = NOW) -> None:
    """`rows` requests for each of these days before now, with bodies that do not compress."""
    writer = Writer(path)
    writer.open()
    for day in days:
        at = stored_time(now - timedelta(days=day, hours=1))
        for number in range(rows):
            key = f"d{day:03}-{number:03}"
            row = {
                "id": key,
                "created_at": at,
                "status": 200,
                "cost_usd": 0.5,
                "provider": "openai",
                "source": "import",
            }
            writer.add(Record(row, {"env": "test"}, Body(os.urandom(size), os.urandom(size))))
    writer.flush()
    for day in days:
        writer.add_feedback(f"d{day:03}-000", True)
    writer.close()
    assert writer.lost_rows == 0


def counts(path: Path) -> dict[str, int]:
    tables = ("requests", "bodies", "properties", "scores", "feedback")
    with closing(open_reader(path)) as conn:
        return {table: conn.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}


def run(home: Path, *arguments: str) -> Any:
    result = CliRunner().invoke(main, [*arguments, "--home", str(home), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1MB", 1_000_000), ("500 mb", 500_000_000), ("2GiB", 2 << 30), ("1.5G", 1_500_000_000), ("3000000", 3_000_000),
     ("", None)],
)  # fmt: skip
def test_sizes(text: str, size: int | None) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["1", "-5GB", "large", "1KB", "1e9", "nan", "٣GB"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="500MB"):
        parse_size(text)


@pytest.mark.parametrize(("text", "days"), [("30", 30.0), ("30d", 30.0), ("0.5", 0.5), (" ", None)])
def test_days(text: str, days: float | None) -> None:
    assert parse_days(text) == days


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "x", "1e9"])
def test_days_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="days above 0"):
        parse_days(text)


def test_retention_names_the_option_that_is_wrong() -> None:
    assert not parse_retention("", "", "")
    assert parse_retention("30", "7d", "1GB") == Retention(30.0, 7.0, 1_000_000_000)
    with pytest.raises(ValueError, match="keep-bodies-days"):
        parse_retention("", "soon", "")


def test_prune_removes_old_requests_and_all_that_belongs_to_them(path: Path) -> None:
    fill(path, range(40), rows=3)
    with closing(open_for_upkeep(path)) as conn:
        before = NOW - timedelta(days=30)
        expected = count_old(conn, before)
        assert (expected.rows, expected.bodies) == (30, 30)
        assert prune(conn, before, pause=lambda _: None) == expected
        assert prune(conn, before) == Pruned()
        assert conn.execute("SELECT min(created_at) >= ? FROM requests", (stored_time(before),)).fetchone() == (1,)
    assert counts(path) == {"requests": 90, "bodies": 90, "properties": 90, "scores": 30, "feedback": 30}
    assert integrity(path) == "ok"


def test_prune_of_bodies_keeps_rows_and_costs(path: Path) -> None:
    fill(path, range(40), rows=3)
    with closing(open_for_upkeep(path)) as conn:
        removed = prune(conn, NOW - timedelta(days=30), bodies_only=True, pause=lambda _: None)
    assert (removed.rows, removed.bodies) == (0, 30)
    assert counts(path) == {"requests": 120, "bodies": 90, "properties": 120, "scores": 40, "feedback": 40}
    with closing(open_reader(path)) as conn:
        assert conn.execute("SELECT sum(cost_usd) FROM requests").fetchone() == (60.0,)


def test_database_is_kept_below_its_size_bodies_going_first(path: Path) -> None:
    fill(path, range(60, 0, -1), rows=10, size=5000)
    with closing(open_for_upkeep(path)) as conn:
        removed = keep(conn, Retention(max_bytes=3_000_000), NOW, lambda _: None)
        assert housekeeping.used_bytes(conn) <= 3_000_000
        assert keep(conn, Retention(max_bytes=3_000_000), NOW, lambda _: None) == Pruned()
    assert (removed.rows, removed.bodies > 100) == (0, True)
    assert path.stat().st_size <= 3_000_000
    with closing(open_reader(path)) as conn:  # the newest bodies are the ones that are left
        assert conn.execute("SELECT max(request_id) FROM bodies").fetchone() < ("d060-000",)
        kept = {row[0] for row in conn.execute("SELECT DISTINCT substr(request_id, 1, 4) FROM bodies")}
    assert "d001" in kept
    assert "d060" not in kept


def test_rows_go_when_there_are_no_bodies_left(path: Path) -> None:
    fill(path, range(60, 0, -1), rows=100, size=10)
    with closing(open_for_upkeep(path)) as conn:
        removed = keep(conn, Retention(max_bytes=1_000_000), NOW, lambda _: None)
        assert housekeeping.used_bytes(conn) <= 1_000_000
        assert conn.execute("SELECT max(id) FROM requests").fetchone() < ("d060-000",)
    assert removed.rows > 0


def test_a_month_of_traffic_stays_bounded(path: Path) -> None:
    retention, sizes = Retention(keep_days=5, keep_bodies_days=2), []
    for day in range(30):
        now = NOW + timedelta(days=day)
        fill(path, range(1), rows=200, now=now)
        with closing(sqlite3.connect(path)) as conn, conn:  # ids of their own
            conn.execute("UPDATE requests SET id = ? || id WHERE id LIKE 'd0%'", (f"{day:02}",))
            conn.execute("UPDATE bodies SET request_id = ? || request_id WHERE request_id LIKE 'd0%'", (f"{day:02}",))
        with closing(open_for_upkeep(path)) as conn:
            keep(conn, retention, now, lambda _: None)
        sizes.append(path.stat().st_size)
    assert max(sizes[10:]) <= 1.1 * max(sizes[:10])
    assert counts(path)["requests"] <= 6 * 200


def test_space_is_given_back_in_steps(path: Path) -> None:
    fill(path, range(20), rows=20, size=5000)
    before = path.stat().st_size
    with closing(open_for_upkeep(path)) as conn:
        prune(conn, NOW, pause=lambda _: None)
        assert housekeeping.give_back(conn, pause=lambda _: None) > 100
        housekeeping.shorten_wal(conn)
    assert path.stat().st_size < before / 4


def test_file_of_an_early_version_gives_space_back_after_one_vacuum(path: Path) -> None:
    fill(path, range(20), rows=20, size=5000)
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("PRAGMA journal_mode = DELETE")
        conn.execute("PRAGMA auto_vacuum = NONE")
        conn.execute("VACUUM")
    assert run(path.parent, "prune", "--older-than", "2026-10-01")["rows"] == 400
    found = run(path.parent, "vacuum")
    assert found["bytes_after"] < found["bytes_before"] / 4
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("PRAGMA auto_vacuum").fetchone() == (2,)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_backup_is_private_whole_and_one_file(path: Path, tmp_path: Path, umask: int) -> None:
    fill(path, range(3))
    old = os.umask(umask)
    try:
        found = run(path.parent, "backup", str(tmp_path / "copy.db"))
    finally:
        os.umask(old)
    copy = Path(found["file"])
    assert (stat.S_IMODE(copy.stat().st_mode), copy.stat().st_size) == (0o600, found["bytes"])
    assert integrity(copy) == "ok"
    assert counts(copy) == counts(path)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("copy")] == ["copy.db"]
    again = CliRunner().invoke(main, ["backup", str(copy), "--home", str(path.parent)])
    assert (again.exit_code, "exists" in again.output) == (1, True)


@pytest.mark.parametrize("arguments", [["prune", "--older-than", "1d"], ["vacuum"], ["backup", "x.db"]])
def test_without_a_database_a_sentence_says_so(home: Path, arguments: list[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(home.parent)
    result = CliRunner().invoke(main, [*arguments, "--home", str(home)])
    assert (result.exit_code, "no database at" in result.output) == (1, True)
    assert not home.exists()
    assert not Path("x.db").exists()


def test_prune_wants_an_age(path: Path) -> None:
    result = CliRunner().invoke(main, ["prune", "--older-than", "long ago", "--home", str(path.parent)])
    assert (result.exit_code, "is not a time" in result.output) == (2, True)


def test_dry_run_changes_nothing(path: Path) -> None:
    fill(path, range(3))
    before = path.read_bytes()
    said = run(path.parent, "prune", "--older-than", "2026-09-29", "--dry-run")
    assert (said["rows"], said["bodies"], said["dry_run"]) == (10, 10, True)
    assert path.read_bytes() == before
    result = CliRunner().invoke(main, ["prune", "--older-than", "2026-09-29", "--home", str(path.parent)])
    assert result.stdout.startswith("removed 10 requests and 10 bodies (")


# -- beside a running proxy --------------------------------------------------------------------------------------------


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    def answer(asked: Asked) -> Answer:
        return json_answer(chat_answer())

    with Upstream(answer) as up:
        yield up


def test_commands_work_beside_a_proxy_under_load(path: Path, upstream: Upstream, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    fill(path, range(1, 30), rows=50, now=now)
    with served(path.parent, upstream.url) as running, Load(running.port, clients=3) as load:
        assert run(path.parent, "prune", "--older-than", "10d", "--bodies-only")["bodies"] == 1000
        assert run(path.parent, "prune", "--older-than", "20d")["rows"] == 500
        run(path.parent, "backup", str(tmp_path / "copy.db"))
        run(path.parent, "vacuum")
        run(path.parent, "vacuum", "--full")
        assert running.wait_for(lambda: len(load.answered) > 50)
        running.health(flush=True)
    assert (load.wrong, load.failures) == ([], [])
    assert b"sk-test-canary" not in (tmp_path / "copy.db").read_bytes()
    assert {key for key, _ in load.answered[:50]} <= {
        row["id"] for row in query(path.parent, "SELECT id FROM requests")
    }
    assert (integrity(path), integrity(tmp_path / "copy.db")) == ("ok", "ok")


def test_proxy_removes_what_is_too_old_by_itself(path: Path, upstream: Upstream) -> None:
    fill(path, range(1, 30), rows=5, now=datetime.now(UTC))
    with served(path.parent, upstream.url, "--keep-days", "20", "--keep-bodies-days", "10d") as running:
        running.ask()
        assert running.wait_for(lambda: counts(path)["requests"] < 101 and counts(path)["bodies"] < 60)
        running.health(flush=True)
        found = counts(path)
    assert found["requests"] in (96, 101)
    assert found["bodies"] in (46, 51)
    assert integrity(path) == "ok"


def test_proxy_keeps_the_file_below_its_size(path: Path, upstream: Upstream) -> None:
    fill(path, range(1, 30), rows=20, size=5000, now=datetime.now(UTC))
    with served(path.parent, upstream.url, "--max-db-size", "3MB") as running:
        assert running.wait_for(lambda: path.stat().st_size <= 3_000_000)
        assert running.ask().status == 200
        assert counts(path)["requests"] == 580


@pytest.mark.parametrize("option", [("--keep-days", "0"), ("--max-db-size", "big"), ("--keep-bodies-days", "-3")])
def test_bad_option_is_named(home: Path, option: tuple[str, str]) -> None:
    result = CliRunner().invoke(main, ["serve", "--home", str(home), *option])
    assert (result.exit_code, option[0] in result.output) == (2, True)


def test_one_of_several_proxies_does_it(path: Path) -> None:
    fill(path, range(40), rows=1)
    keeper = Keeper(path, Retention(keep_days=30), clock=NOW.timestamp)
    with housekeeping.alone(path.parent) as first:
        assert first
        keeper.work()
    assert counts(path)["requests"] == 40
    keeper.work()
    assert counts(path)["requests"] == 30


def test_keeper_ends_with_the_proxy_and_survives_a_missing_file(path: Path) -> None:
    keeper = Keeper(path, Retention(keep_days=1))
    path.parent.mkdir()
    with pytest.raises(FileNotFoundError):
        keeper.work()
    keeper.start()
    keeper.stop()
    assert not keeper._thread.is_alive()


@pytest.mark.parametrize(
    ("size", "text"), [(4096, "0.004 MB"), (1_234_567, "1.235 MB"), (250_000_000, "250.0 MB"), (0, "0.000 MB")]
)
def test_small_sizes_have_more_digits(size: int, text: str) -> None:
    assert megabytes(size) == text
