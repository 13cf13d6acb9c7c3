"""What the pages ask of the log."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from heliproxy import queries_pages
from heliproxy.filters import Filters
from heliproxy.queries_pages import search
from heliproxy.store import Record, Store, open_reader


def row(number: int, **more: Any) -> Record:
    stamp = f"2026-01-01T00:00:{number % 60:02}.{number // 60:03}Z"
    return Record({"id": f"r{number:04}", "created_at": stamp, "status": 200, "preview": f"number {number}", **more})


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    writer = Store(tmp_path / "heliproxy.db").writer()
    for number in range(300):
        writer.add(
            row(
                number,
                model="a" if number % 3 else "b",
                session_id="s" if number < 10 else None,
                session_path="/x" if number % 2 else "/y",
            )
        )
    writer.close()
    found = open_reader(tmp_path / "heliproxy.db")
    yield found
    found.close()


def all_pages(conn: sqlite3.Connection, filters: Filters, text: str = "", **kw: Any) -> list[str]:
    ids: list[str] = []
    after = None
    for _ in range(2000):
        page = search(conn, filters, text, after=after, **kw)
        ids += [found["id"] for found in page.rows]
        after = page.next
        if after is None:
            return ids
    raise AssertionError("paging does not end")


def test_search_out_of_time_says_how_far_it_got_and_goes_on(
    conn: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries_pages, "SEARCH_STEP", 40)
    ticks = iter(range(10_000))
    first = search(conn, Filters(models=("b",)), "number 299", seconds=0.5, clock=lambda: float(next(ticks)))
    assert first.searched_to is not None
    assert first.next == (first.searched_to, "")
    found = all_pages(conn, Filters(models=("b",)), seconds=0.5, limit=7, clock=lambda: float(next(ticks)))
    assert sorted(found) == [f"r{n:04}" for n in range(300) if n % 3 == 0]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("limit", [1, 7, 50, 1000])
def test_pages_are_newest_first_and_complete(conn: sqlite3.Connection, limit: int) -> None:
    for filters in (Filters(), Filters(models=("a",)), Filters(sessions=("s",))):
        found = all_pages(conn, filters, limit=limit)
        where, values = filters.condition()
        wanted = conn.execute(f"SELECT id FROM requests r WHERE {where} ORDER BY created_at DESC, id DESC", values)
        assert found == [request_id for (request_id,) in wanted]


def test_search_takes_no_wildcards_from_the_text(conn: sqlite3.Connection) -> None:
    assert all_pages(conn, Filters(), "%") == []
    assert all_pages(conn, Filters(), "_umber") == []
    assert all_pages(conn, Filters(), "NUMBER 17") == all_pages(conn, Filters(), "number 17")
    assert all_pages(conn, Filters(), "r0042") == ["r0042"]


def test_neighbours_and_the_request_before_in_the_session(conn: sqlite3.Connection) -> None:
    conn.row_factory = sqlite3.Row
    one = dict(conn.execute("SELECT * FROM requests WHERE id = 'r0005'").fetchone())
    newer, older = queries_pages.neighbours(conn, one)
    assert (newer, older) == ("r0065", "r0244")
    assert queries_pages.before_in_session(conn, one) == "r0003"
    last = dict(conn.execute("SELECT * FROM requests WHERE id = 'r0000'").fetchone())
    assert queries_pages.before_in_session(conn, last) is None


def test_suggestions_come_from_known_columns_only(conn: sqlite3.Connection) -> None:
    assert queries_pages.recent_values(conn, "model") == ["a", "b"]
    with pytest.raises(ValueError, match="expected model, provider or user_id"):
        queries_pages.recent_values(conn, "id; DROP TABLE requests")
