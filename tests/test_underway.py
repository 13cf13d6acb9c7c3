"""Who is alive, and whose calls are lost."""

from __future__ import annotations

import stat
import threading
from contextlib import closing
from pathlib import Path

import pytest

from heliproxy import underway
from heliproxy.store import Record, Writer, open_reader
from heliproxy.underway import Presence, is_alive, lost_ids, mark_lost


def opened(home: Path, process: str | None, *ids: str) -> Writer:
    writer = Writer(home / "heliproxy.db")
    writer.open()
    writer.process = process
    for key in ids:
        writer.add(Record({"id": key, "created_at": "2026-09-01T00:00:00.000Z", "incomplete": 1}))
    writer.flush()
    return writer


def test_presence_is_a_private_locked_file(home: Path) -> None:
    presence = Presence(home)
    presence.take()
    file = home / "running" / presence.name
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert is_alive(home, presence.name)
    underway.sweep(home)
    assert file.exists()
    presence.drop()
    assert not is_alive(home, presence.name)
    assert not file.exists()


@pytest.mark.parametrize("name", ["../secret", ".", "..", "a/b", "gone", ""])
def test_marks_that_name_no_process_are_not_alive(home: Path, name: str) -> None:
    (home / "running").mkdir(parents=True)
    assert not is_alive(home, name)


def test_presences_that_are_taken_while_others_look_are_kept(home: Path) -> None:
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            underway.sweep(home)

    looking = threading.Thread(target=look)
    looking.start()
    presences = [Presence(home) for _ in range(50)]
    for presence in presences:
        presence.take()
    over.set()
    looking.join()
    assert all(is_alive(home, presence.name) for presence in presences)
    for presence in presences:
        presence.drop()


def test_rows_of_dead_processes_are_lost_and_those_of_living_ones_are_not(home: Path) -> None:
    mine, other = Presence(home), Presence(home)
    mine.take()
    other.take()
    opened(home, "1-dead", "a", "b").close()
    opened(home, other.name, "c").close()
    writer = opened(home, mine.name, "d")
    with closing(open_reader(writer.path)) as conn:
        rows = [{"id": key, "incomplete": 1, "status": None, "error_type": None} for key in "abcd"]
        assert lost_ids(conn, home, rows) == {"a", "b"}
        assert lost_ids(conn, home, [rows[0] | {"status": 200}, rows[1] | {"incomplete": 0}]) == set()
    assert writer.run(lambda conn: mark_lost(conn, home, mine.name)) == 2
    assert writer.run(lambda conn: mark_lost(conn, home, mine.name)) == 0
    with closing(open_reader(writer.path)) as conn:
        found = conn.execute("SELECT id, status, error_type, incomplete FROM requests ORDER BY id").fetchall()
        assert found == [("a", None, "lost", 1), ("b", None, "lost", 1), ("c", None, None, 1), ("d", None, None, 1)]
        assert conn.execute("SELECT request_id FROM under_way ORDER BY 1").fetchall() == [("c",), ("d",)]
    writer.add(Record({"id": "a", "created_at": "2026-09-01T00:00:00.000Z", "incomplete": 0, "status": 200}))
    writer.close()
    with closing(open_reader(writer.path)) as conn:  # it was not lost after all: the end replaces what was thought
        assert conn.execute("SELECT status, error_type FROM requests WHERE id = 'a'").fetchone() == (200, None)
    mine.drop()
    other.drop()


def test_row_that_nobody_is_noted_for_is_not_called_lost(home: Path) -> None:
    opened(home, None, "a").close()
    with closing(open_reader(home / "heliproxy.db")) as conn:
        row = {"id": "a", "incomplete": 1, "status": None, "error_type": None}
        assert lost_ids(conn, home, [row]) == set()


def test_folder_that_cannot_be_made_is_said(home: Path) -> None:
    home.mkdir()
    (home / "running").write_text("in the way")
    with pytest.raises(OSError, match="running"):
        Presence(home).take()
    assert [path.name for path in home.iterdir()] == ["running"]
