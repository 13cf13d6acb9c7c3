"""Opening files of every schema there has been, and of those that are not ours."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from heliproxy import migrations
from heliproxy.migrations import SchemaError
from heliproxy.store import Store, open_reader

if TYPE_CHECKING:
    from pathlib import Path


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
