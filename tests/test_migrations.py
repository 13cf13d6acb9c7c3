"""Opening files of every schema there has been, and of those that are not ours."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from heliproxy import migrations, queries
from heliproxy.cli import main
from heliproxy.migrations import SchemaError
from heliproxy.store import Store, open_reader


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "heliproxy.db"


def test_new_file_gets_every_step_on_record(path: Path) -> None:
    Store(path).writer().close()
    with closing(open_reader(path)) as conn:
        assert migrations.applied_steps(conn) == migrations.NAMES
        tables = {name for (name,) in conn.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")}
        mode = conn.execute("PRAGMA journal_mode").fetchone()
    assert tables >= {"requests", "properties", "scores", "feedback", "bodies", "request_response_rmt"}
    assert mode == ("wal",)


def test_second_opening_changes_nothing(path: Path) -> None:
    Store(path).writer().close()
    before = path.read_bytes()
    Store(path).writer().close()
    assert path.read_bytes() == before


def test_newer_file_is_refused_unchanged_by_writer_and_reader(path: Path) -> None:
    Store(path).writer().close()
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('heliproxy', 'm999_later', '')"
        )
    before = path.read_bytes()
    with pytest.raises(SchemaError, match=r"newer heliproxy.*m999_later"):
        Store(path).writer()
    with pytest.raises(SchemaError, match=r"newer heliproxy.*m999_later"):
        open_reader(path)
    assert path.read_bytes() == before


def test_foreign_database_is_refused_unchanged(path: Path) -> None:
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("CREATE TABLE somebody_elses (id)")
    before = path.read_bytes()
    for opened in (Store(path).writer, Store(path).reader):
        with pytest.raises(SchemaError, match="not a heliproxy database"):
            opened()
    assert path.read_bytes() == before


def test_reader_reads_an_older_file_but_never_migrates_it(path: Path) -> None:
    Store(path).writer().close()
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("DELETE FROM _sqlite_migrations WHERE name <> 'm001_first_schema'")
    before = path.read_bytes()
    with closing(open_reader(path)) as conn:
        assert conn.execute("SELECT count(*) FROM requests").fetchone() == (0,)
    assert path.read_bytes() == before


def test_reader_refuses_an_empty_file_and_leaves_it_empty(path: Path) -> None:
    path.touch()
    with pytest.raises(SchemaError, match="no tables"):
        open_reader(path)
    assert path.read_bytes() == b""


def test_failed_step_leaves_the_old_schema(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(path).writer().close()

    def m900_fails(db: object) -> None:
        db.execute("CREATE TABLE half_done (id)")  # type: ignore[attr-defined]
        raise RuntimeError("stopped in the middle")

    steps = (*migrations.STEPS, m900_fails)
    monkeypatch.setattr(migrations, "STEPS", steps)
    monkeypatch.setattr(migrations, "NAMES", frozenset(step.__name__ for step in steps))
    with pytest.raises(RuntimeError, match="in the middle"):
        Store(path).writer()
    monkeypatch.undo()
    with closing(open_reader(path)) as conn:
        assert conn.execute("SELECT count(*) FROM sqlite_master WHERE name = 'half_done'").fetchone() == (0,)


def test_new_step_is_applied_once_and_keeps_the_rows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(path).writer().close()
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("INSERT INTO requests (id, created_at, cost_usd) VALUES ('a', '2026-09-01T00:00:00.000Z', 1.5)")

    def m900_adds(db: object) -> None:
        db.execute("ALTER TABLE requests ADD COLUMN extra TEXT")  # type: ignore[attr-defined]

    steps = (*migrations.STEPS, m900_adds)
    monkeypatch.setattr(migrations, "STEPS", steps)
    monkeypatch.setattr(migrations, "NAMES", frozenset(step.__name__ for step in steps))
    Store(path).writer().close()
    Store(path).writer().close()
    with closing(open_reader(path)) as conn:
        assert conn.execute("SELECT cost_usd, extra FROM requests").fetchall() == [(1.5, None)]


# -- every schema there has been ---------------------------------------------------------------------------------------

SCHEMAS = sorted((Path(__file__).parent / "data" / "schemas").glob("m*.sql"))
TOTALS = (
    "SELECT count(*), sum(input_tokens), sum(output_tokens), sum(cache_read_tokens), sum(cost_usd),"
    " count(DISTINCT user_id), min(created_at), max(latency_ms) FROM requests WHERE incomplete = 0"
)
EXPECTED = (12, 6600, 660, 20, 11.25, 3, "2026-01-10T00:30:00.000Z", 111.0)


@pytest.fixture(params=SCHEMAS, ids=lambda file: file.stem)
def old(request: pytest.FixtureRequest, path: Path) -> Path:
    """A database as the version that ended with this step left it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.executescript(request.param.read_text("utf-8"))
        conn.execute("PRAGMA journal_mode = WAL")
    return path


def test_there_is_a_file_of_every_schema() -> None:
    assert [file.stem for file in SCHEMAS] == [step.__name__ for step in migrations.STEPS]


def test_file_of_every_schema_is_brought_up_to_date_with_equal_totals(old: Path) -> None:
    Store(old).writer().close()
    with closing(open_reader(old)) as conn:
        assert migrations.applied_steps(conn) == migrations.NAMES
        assert conn.execute(TOTALS).fetchone() == EXPECTED
        assert conn.execute("SELECT count(*), sum(length(response)) FROM bodies").fetchone() == (12, 24)
        assert conn.execute("SELECT count(*) FROM properties WHERE value = 'prod'").fetchone() == (6,)
        assert conn.execute("SELECT value FROM scores").fetchone() == (0.5,)
        assert conn.execute("SELECT value FROM feedback").fetchone() == ("true",)
        total = queries.costs(conn, ("model",)).total
        assert (total.input_tokens, total.cost_usd, total.hits, total.errors) == (6600, 11.25, 1, 3)
        assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert schema(conn) == schema_of_new_file(old)


def schema(conn: sqlite3.Connection) -> list[tuple[str, str]]:
    sql = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite%' ORDER BY name"
    return [(name, " ".join(text.replace('"', "").split())) for name, text in conn.execute(sql)]


def schema_of_new_file(beside: Path) -> list[tuple[str, str]]:
    path = beside.with_name("new.db")
    Store(path).writer().close()
    with closing(open_reader(path)) as conn:
        return schema(conn)


def test_reports_read_a_file_of_every_schema_as_it_is(old: Path) -> None:
    before = old.read_bytes()
    with closing(open_reader(old)) as conn:
        total = queries.costs(conn, ("model",)).total
        assert (total.input_tokens, total.cost_usd) == (6600, 11.25)
        assert len(queries.request_list(conn, limit=100).rows) in (12, 13)
    assert old.read_bytes() == before


MIGRATE_SLOWLY = """
import sys, time
from pathlib import Path
from heliproxy import migrations
from heliproxy.store import Store

def m900_slow(db):
    db.execute("ALTER TABLE requests ADD COLUMN later TEXT")
    db.execute("UPDATE requests SET later = 'x'")
    print("in the middle", flush=True)
    time.sleep(60)

migrations.STEPS = (*migrations.STEPS, m900_slow)
migrations.NAMES = frozenset(step.__name__ for step in migrations.STEPS)
Store(Path(sys.argv[1])).writer()
"""


def test_process_killed_in_the_middle_leaves_the_old_schema(old: Path) -> None:
    with closing(open_reader(old)) as conn:
        steps, before = migrations.applied_steps(conn), schema(conn)
    command = [sys.executable, "-c", MIGRATE_SLOWLY, str(old)]
    environment = {**os.environ, "PYTHONPATH": str(Path(migrations.__file__).parents[1])}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"in the middle\n"
        child.kill()
    with closing(open_reader(old)) as conn:
        assert (migrations.applied_steps(conn), schema(conn)) == (steps, before)
        assert conn.execute(TOTALS).fetchone() == EXPECTED
        assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    Store(old).writer().close()
    with closing(open_reader(old)) as conn:
        assert migrations.applied_steps(conn) == migrations.NAMES
        assert conn.execute(TOTALS).fetchone() == EXPECTED


@pytest.mark.parametrize(
    "command", [("costs",), ("requests",), ("sessions",), ("doctor", "--quick"), ("backup", "copy.db")]
)
def test_commands_that_read_change_no_old_file(
    path: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.executescript(SCHEMAS[0].read_text("utf-8"))
    before = path.read_bytes()
    CliRunner().invoke(main, [*command, "--home", str(path.parent)])
    assert path.read_bytes() == before


def test_serve_refuses_a_newer_file_unchanged(path: Path) -> None:
    Store(path).writer().close()
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('heliproxy', 'm999_later', '')"
        )
    before = path.read_bytes()
    for command in (
        ["serve", "--port", "0", "--api-port", "0"],
        ["prune", "--older-than", "1d"],
        ["vacuum"],
        ["costs"],
    ):
        result = CliRunner().invoke(main, [*command, "--home", str(path.parent)])
        assert result.exit_code == 1, result.output
        assert "newer heliproxy" in result.output
    assert path.read_bytes() == before
