"""The writer on real files, whole and broken."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import heliproxy
from heliproxy.bodies import Body, read_body
from heliproxy.ids import new_request_id
from heliproxy.migrations import SchemaError
from heliproxy.store import COLUMNS, Record, Store, Writer, open_reader

AT = 1_790_000_000.0  # 2026-09-21T14:13:20Z


class Clock:
    def __init__(self) -> None:
        self.now = AT

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "heliproxy.db"


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make_writer(path: Path, clock: Clock, **limits: Any) -> Writer:
    writer = Writer(path, clock=clock, monotonic=clock, busy_timeout=0.0, **limits)
    writer.open()
    return writer


def record(key: str = "a", *, properties: dict[str, str] | None = None, body: Body | None = None, **row: Any) -> Record:
    return Record({"id": key, "created_at": "2026-09-01T00:00:00.000Z", "status": 200, **row}, properties or {}, body)


def rows(path: Path, sql: str = "SELECT id FROM requests ORDER BY id") -> list[tuple[Any, ...]]:
    with closing(open_reader(path)) as conn:
        return conn.execute(sql).fetchall()


def test_row_properties_and_body_are_committed_together(path: Path, clock: Clock) -> None:
    writer = make_writer(path, clock)
    writer.add(record("a", properties={"env": "prod"}, body=Body(b"{}", b"[]"), model="m", input_tokens=3, stream=True))
    assert rows(path) == []
    assert writer.flush() == 1
    writer.close()
    assert rows(path, "SELECT id, model, input_tokens, output_tokens, stream FROM requests") == [("a", "m", 3, None, 1)]
    assert rows(path, "SELECT * FROM properties") == [("a", "env", "prod")]
    assert (writer.written, writer.lost_rows, writer.errors) == (1, 0, 0)


def test_columns_are_those_of_the_table(path: Path, clock: Clock) -> None:
    make_writer(path, clock).close()
    assert tuple(name for (name,) in rows(path, "SELECT name FROM pragma_table_info('requests')")) == COLUMNS


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_files_are_private_under_any_umask(path: Path, clock: Clock, umask: int) -> None:
    old = os.umask(umask)
    try:
        writer = make_writer(path, clock)
        writer.add(record())
        writer.flush()
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in path.parent.iterdir()}
    finally:
        os.umask(old)
        writer.close()
    assert modes == {"heliproxy.db": 0o600, "heliproxy.db-wal": 0o600, "heliproxy.db-shm": 0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_folder_that_exists_keeps_its_mode_but_the_file_is_tightened(path: Path, clock: Clock) -> None:
    path.parent.mkdir(mode=0o755)
    path.touch(mode=0o644)
    make_writer(path, clock).close()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("between", ["same batch", "two batches"])
@pytest.mark.parametrize(
    ("first", "second", "stored"),
    [
        ({"incomplete": 1, "status": None}, {"status": 200}, 200),
        ({"status": 200}, {"status": 201}, 201),
        ({"status": 200}, {"incomplete": 1, "status": None}, 200),
        ({"incomplete": 1, "status": None}, {"incomplete": 1, "status": 100}, 100),
    ],
)
def test_last_record_of_an_id_wins_unless_it_is_incomplete(
    path: Path, clock: Clock, between: str, first: dict[str, Any], second: dict[str, Any], stored: int
) -> None:
    writer = make_writer(path, clock)
    writer.add(record("a", **first))
    if between == "two batches":
        writer.flush()
    writer.add(record("a", **second))
    writer.close()
    assert rows(path, "SELECT status FROM requests") == [(stored,)]


def test_what_was_said_about_an_id_outlives_its_later_record(path: Path, clock: Clock) -> None:
    writer = make_writer(path, clock)
    writer.add_feedback("a", True)
    writer.add_scores("a", {"quality": 4, "safe": True})
    writer.set_property("a", "env", "changed")
    writer.add(record("a", properties={"env": "prod", "team": "x"}))
    writer.close()
    assert rows(path, "SELECT * FROM properties ORDER BY key") == [("a", "env", "changed"), ("a", "team", "x")]
    assert rows(path, "SELECT name, value, type FROM scores ORDER BY name") == [
        ("helicone-score-feedback", 1.0, "boolean"),
        ("quality", 4.0, "number"),
        ("safe", 1.0, "boolean"),
    ]
    assert rows(path, "SELECT * FROM feedback") == [("a", "rating", "true", "boolean", "2026-09-21T14:13:20.000Z")]


def test_set_property_is_visible_at_once_and_brings_the_row_with_it(path: Path, clock: Clock) -> None:
    writer = make_writer(path, clock)
    writer.add(record("a"))
    writer.set_property("a", "env", "dev")
    assert rows(path) == [("a",)]
    assert rows(path, "SELECT value FROM properties") == [("dev",)]
    writer.close()


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (Body(b"short", b"", "text/plain", None, {"a": "b"}, {}), ""),
        (Body(b"x" * 512, b"y", "application/json", "text/plain", None, {"z": "1"}), "zstd"),
        (Body(None, b"\xff\x00" * 400), "zstd"),
        (Body(None, None), ""),
    ],
)
def test_bodies_come_back_as_they_were(path: Path, clock: Clock, body: Body, encoding: str) -> None:
    writer = make_writer(path, clock)
    writer.add(record("a", body=body))
    writer.add(record("b", body=Body(b"other" * 300, b"")))  # the compressor is shared between frames
    writer.close()
    with closing(open_reader(path)) as conn:
        assert read_body(conn, "a") == body
        assert read_body(conn, "b") == Body(b"other" * 300, b"")
        assert read_body(conn, "none") is None
    assert rows(path, "SELECT encoding FROM bodies WHERE request_id = 'a'") == [(encoding,)]


def test_one_bad_value_does_not_lose_the_batch(path: Path, clock: Clock) -> None:
    writer = make_writer(path, clock)
    writer.add(record("a", input_tokens=2**70, model="lone \ud800 surrogate", error=["odd"]))
    writer.add(record("b", output_tokens=10**5000))
    writer.add(record("c"))
    assert writer.flush() == 3
    writer.close()
    assert rows(path, "SELECT id, input_tokens, output_tokens, model, error FROM requests") == [
        ("a", float(2**70), None, "lone ? surrogate", "['odd']"),
        ("b", None, None, None, None),
        ("c", None, None, None, None),
    ]


@pytest.mark.parametrize("row", [{}, {"id": None}, {"id": 7}, {"id": ""}, {"id": "a"}, {"id": "a", "created_at": None}])
def test_record_without_id_or_time_is_counted_as_lost(path: Path, clock: Clock, row: dict[str, Any]) -> None:
    writer = make_writer(path, clock)
    assert not writer.add(Record(row))
    writer.close()
    assert writer.lost_rows == 1


def test_buffer_drops_bodies_first_then_rows(path: Path, clock: Clock) -> None:
    writer = make_writer(path, clock, max_rows=3, max_body_bytes=200)
    added = [writer.add(record(key, body=Body(b"x" * 100))) for key in "abcd"]
    assert added == [True, True, True, False]
    writer.close()
    assert rows(path) == [("a",), ("b",), ("c",)]
    assert rows(path, "SELECT request_id FROM bodies") == [("a",), ("b",)]
    assert (writer.lost_rows, writer.lost_bodies) == (1, 2)


def test_locked_database_keeps_the_batch_for_later(path: Path, clock: Clock) -> None:
    writer = make_writer(path, clock)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        writer.add(record("a"))
        assert writer.flush() == 0
        assert "locked" in str(writer.last_error)
        other.execute("COMMIT")
        assert writer.flush() == 0  # too early for another try
        clock.now += 0.3
        assert writer.flush() == 1
    writer.close()
    assert (rows(path), writer.errors, writer.lost_rows) == ([("a",)], 1, 0)


def test_locked_to_the_end_counts_what_is_lost(path: Path, clock: Clock) -> None:
    writer = make_writer(path, clock)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        writer.add(record("a", body=Body(b"x")))
        writer.close()
    assert (writer.lost_rows, writer.lost_bodies) == (1, 1)


def test_saying_something_to_a_locked_database_raises(path: Path, clock: Clock) -> None:
    writer = make_writer(path, clock)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            writer.add_feedback("a", False)
    writer.close()


def test_full_disk_keeps_the_batch_for_later(path: Path, clock: Clock) -> None:
    writer = make_writer(path, clock)
    assert writer._conn is not None
    pages = writer._conn.execute("PRAGMA page_count").fetchone()[0]
    writer._conn.execute(f"PRAGMA max_page_count = {pages}")
    for i in range(50):
        writer.add(record(f"{i:02}", body=Body(os.urandom(5000))))
    assert writer.flush() == 0
    assert "full" in str(writer.last_error)
    writer._conn.execute("PRAGMA max_page_count = 1000000")
    clock.now += 1
    assert writer.flush() == 50
    writer.close()
    assert writer.lost_rows == writer.lost_bodies == 0


def test_deleted_database_is_made_anew(path: Path, clock: Clock) -> None:
    writer = make_writer(path, clock)
    writer.add(record("a"))
    writer.flush()
    for file in path.parent.iterdir():
        file.unlink()
    writer.add(record("b"))
    assert writer.flush() == 1
    writer.close()
    assert rows(path) == [("b",)]


def test_deleted_folder_is_made_anew(path: Path, clock: Clock) -> None:
    writer = make_writer(path, clock)
    for file in path.parent.iterdir():
        file.unlink()
    path.parent.rmdir()
    writer.add(record("b"))
    assert writer.flush() == 1
    writer.close()
    assert rows(path) == [("b",)]


def test_folder_that_cannot_be_made_is_tried_again(path: Path, clock: Clock) -> None:
    writer = make_writer(path, clock)
    for file in path.parent.iterdir():
        file.unlink()
    path.parent.rmdir()
    path.parent.write_text("a file is in the way")
    writer.add(record("b"))
    assert writer.flush() == 0
    path.parent.unlink()
    clock.now += 1
    assert writer.flush() == 1
    writer.close()


@pytest.mark.parametrize("damage", [b"not a database at all, " * 500, b""])
def test_damaged_database_is_replaced_while_running(path: Path, clock: Clock, damage: bytes) -> None:
    writer = make_writer(path, clock)
    writer.add(record("a"))
    writer.flush()
    assert writer._conn is not None
    writer._conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # else SQLite mends the damage from the WAL
    other = path.with_name("other")
    other.write_bytes(damage)
    other.replace(path)
    writer.add(record("b"))
    assert writer.flush() == 1
    writer.close()
    assert rows(path) == [("b",)]
    aside = path.with_name("heliproxy.db.corrupt-20260921T141320")
    assert (aside.read_bytes() if aside.exists() else b"") == damage


def test_overwritten_database_is_set_aside_and_logging_goes_on(path: Path, clock: Clock) -> None:
    writer = make_writer(path, clock)
    for i in range(500):
        writer.add(record(f"{i:03}", preview="x" * 400))
    writer.flush()
    assert writer._conn is not None
    writer._conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    writer._disconnect()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * 4096 * 20)
    for i in range(500):
        writer.add(record(f"b{i:03}"))
    for _ in range(5):
        clock.now += 10
        writer.flush()
    assert writer.buffered == 0
    writer.close()
    assert writer.lost_rows == 0
    assert len(rows(path)) == 500
    assert list(path.parent.glob("heliproxy.db.corrupt-*"))


def test_changes_of_a_process_of_ours_are_not_looked_at_for_a_moment(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[bool] = []
    real = Writer.check

    def check(self: Writer, *, deep: bool = True) -> bool:
        looks.append(deep)
        return real(self, deep=deep)

    monkeypatch.setattr(Writer, "check", check)
    writer, other = make_writer(path, clock), make_writer(path, clock)

    def both_write(key: str) -> int:
        other.add(record(f"other {key}"))
        other.flush()
        looks.clear()
        writer.add(record(key))
        writer.flush()
        return len(looks)

    assert both_write("a") == 1
    writer.leave_checks_to_another()
    assert both_write("b") == 0
    clock.now += 2
    assert both_write("c") == 1
    assert looks == [False]
    clock.now += 120
    assert both_write("d") == 1
    assert looks == [True]
    other.close()
    writer.close()


def test_damaged_database_is_set_aside_at_the_start(path: Path, clock: Clock) -> None:
    path.parent.mkdir()
    path.write_bytes(b"\x00garbage" * 1000)
    make_writer(path, clock).close()
    assert rows(path) == []
    assert [p.read_bytes()[:8] for p in path.parent.glob("*.corrupt-*")] == [b"\x00garbage"]


def test_reader_needs_a_file_and_makes_none(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no database at"):
        Store(path).reader()
    assert not path.parent.exists()


def test_reader_refuses_what_is_not_a_database(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("hello " * 100)
    with pytest.raises(SchemaError, match="not a SQLite database"):
        open_reader(file)


def test_reader_cannot_write(path: Path) -> None:
    Store(path).writer().close()
    with closing(open_reader(path)) as conn, pytest.raises(sqlite3.OperationalError, match="readonly"):
        conn.execute("DELETE FROM requests")


def test_reader_sees_commits_while_the_writer_is_open(path: Path, clock: Clock) -> None:
    writer = make_writer(path, clock)
    with closing(open_reader(path)) as conn:
        writer.add(record("a"))
        writer.flush()
        assert conn.execute("SELECT count(*) FROM requests").fetchone() == (1,)
    writer.close()


def test_path_with_odd_characters_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a?b#c%41 d" / "heliproxy.db"
    Store(path).writer().close()
    assert rows(path) == []


def test_view_has_helicones_columns_and_units(path: Path, clock: Clock) -> None:
    writer = make_writer(path, clock)
    writer.add(
        record(
            "a", properties={"env": "prod"}, provider="openai", latency_ms=1500.4, ttft_ms=None, cost_usd=0.00123,
            input_tokens=100, cache_read_tokens=40, output_tokens=50, reasoning_tokens=20, cache="HIT",
        )
    )  # fmt: skip
    writer.add(record("b"))
    writer.add_scores("a", {"quality": 3})
    writer.close()
    with closing(open_reader(path)) as conn:
        conn.row_factory = sqlite3.Row
        a, b = map(dict, conn.execute("SELECT * FROM request_response_rmt ORDER BY request_id"))
    assert {name: a[name] for name in ("cost", "latency", "time_to_first_token", "provider", "cache_enabled")} == {
        "cost": 1_230_000,
        "latency": 1500,
        "time_to_first_token": 0,
        "provider": "OPENAI",
        "cache_enabled": 1,
    }
    tokens = ("prompt_tokens", "prompt_cache_read_tokens", "completion_tokens", "reasoning_tokens", "total_tokens")
    assert [a[name] for name in tokens] == [60, 40, 30, 20, 150]
    assert a["response_created_at"] == "2026-09-01T00:00:01.500Z"
    assert json.loads(a["properties"]) == {"env": "prod"}
    assert json.loads(a["scores"]) == {"quality": 3.0}
    assert (b["cost"], b["properties"], b["cache_enabled"]) == (None, "{}", 0)


def test_ids_sort_by_time_and_are_version_4_uuids() -> None:
    early, late = new_request_id(1_790_000_000_000), new_request_id(1_790_000_000_001)
    assert early < late
    assert early[14] == "4"
    assert early != new_request_id(1_790_000_000_000)


WRITE_FOR_EVER = """
import itertools, sys
from pathlib import Path
from heliproxy.bodies import Body
from heliproxy.store import Record, Store
writer = Store(Path(sys.argv[1])).writer()
for batch in itertools.count():
    for i in range(20):
        key = f"{batch:06}-{i:02}"
        writer.add(Record({"id": key, "created_at": "2026-09-01T00:00:00.000Z"}, {"k": "v"}, Body(b"x" * 3000)))
    writer.flush()
    print(writer.written, flush=True)
"""


def test_killed_process_leaves_every_flushed_row_and_whole_batches(path: Path) -> None:
    source = str(Path(heliproxy.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE_FOR_EVER, str(path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": source},
    )
    assert process.stdout is not None
    for _ in range(10):
        acknowledged = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().split()
    process.wait()
    process.stdout.close()
    acknowledged = max([acknowledged, *map(int, rest)])
    Store(path).writer().close()
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]
    [(stored, properties, bodies)] = rows(
        path, "SELECT (SELECT count(*) FROM requests), (SELECT count(*) FROM properties), (SELECT count(*) FROM bodies)"
    )
    assert stored >= acknowledged
    assert stored % 20 == 0
    assert stored == properties == bodies


# -- sums of the past -----------------------------------------------------------------------------------------------


def sum_up(path: Path) -> None:
    """Pretend that the hours of 2026-09-01 up to 13:00 are summed up, in two levels."""
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("UPDATE rollup_horizon SET until = '2026-09-01T13:00:00.000Z'")
        first = 1788220800 // 3600  # 2026-09-01T00:00Z
        conn.executemany(
            "INSERT OR REPLACE INTO rollup_periods (level, start, rows, kinds) VALUES (?, ?, 0, '')",
            [(0, first + hour) for hour in range(13)] + [(2, first // 16)],
        )


def forgotten(path: Path) -> list[int]:
    """The hours of that day whose sums are gone; -1 for the block of sixteen that holds them."""
    with closing(sqlite3.connect(path)) as conn:
        kept = set(conn.execute("SELECT level, start FROM rollup_periods").fetchall())
    first = 1788220800 // 3600
    hours = [hour for hour in range(13) if (0, first + hour) not in kept]
    return hours if (2, first // 16) in kept else [-1, *hours]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda w: w.add(Record({"id": "new", "created_at": "2026-09-01T13:00:00.000Z"})), []),
        (lambda w: w.add(Record({"id": "late", "created_at": "2026-09-01T04:59:59.999Z"})), [-1, 4]),
        (lambda w: w.add(Record({"id": "old", "created_at": "2026-09-01T14:00:00.000Z"})), [-1, 2]),
        (lambda w: w.add(Record({"id": "old", "created_at": "2026-09-01T05:00:00.000Z"})), [-1, 2, 5]),
        (lambda w: w.set_property("old", "team", "x"), [-1, 2]),
        (lambda w: w.set_property("unknown", "team", "x"), []),
        (lambda w: w.add_feedback("old", True), []),
        (lambda w: w.write([("DELETE FROM requests WHERE id = ?", ("old",))]), [-1, 2]),
        (lambda w: w.write([("DELETE FROM properties WHERE request_id = ?", ("old",))]), [-1, 2]),
        (lambda w: w.write([("UPDATE requests SET cost_usd = 1 WHERE id = ?", ("old",))]), [-1, 2]),
        (lambda w: w.write([("UPDATE properties SET value = 1 WHERE request_id = ?", ("old",))]), [-1, 2]),
    ],
)
def test_change_of_the_past_forgets_its_sums(path: Path, change: Any, expected: list[int]) -> None:
    writer = Store(path).writer()
    writer.add(Record({"id": "old", "created_at": "2026-09-01T02:30:00.000Z"}, {"env": "prod"}))
    writer.flush(force=True)
    sum_up(path)
    change(writer)
    writer.close()
    assert forgotten(path) == expected


def test_damage_in_the_middle_is_noticed_when_the_file_was_changed(path: Path, clock: Clock) -> None:
    writer = make_writer(path, clock)
    for i in range(500):
        writer.add(record(f"{i:03}", preview="x" * 400))
    writer.flush()
    assert writer._conn is not None
    writer._conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    writer.add(record("early"))
    writer.flush()
    writer._conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    clock.now += 100
    with path.open("r+b") as file:  # not its beginning, and pages that SQLite may have in memory
        file.seek(4096 * 20)
        file.write(b"\xa5" * 4096 * 20)
    writer.add(record("late"))
    assert writer.flush() == 1
    assert writer.set_aside == 1
    writer.close()
    assert rows(path) == [("late",)]


def test_damage_found_after_a_crash_is_replaced(path: Path, clock: Clock) -> None:
    writer = make_writer(path, clock)
    for i in range(500):
        writer.add(record(f"{i:03}", preview="x" * 400))
    writer.close()
    with path.open("r+b") as file:
        file.seek(4096 * 20)
        file.write(b"\xa5" * 4096 * 20)
    Path(f"{path}-wal").touch()
    writer = make_writer(path, clock)
    writer.check_after_crash()
    writer.add(record("late"))
    writer.close()
    assert writer.set_aside == 1
    assert rows(path) == [("late",)]
