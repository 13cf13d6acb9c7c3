"""Pages by offset whose cost does not grow with the offset: the place where a page ended is remembered for the next."""

from __future__ import annotations

import sqlite3
import threading

from cachetools import LRUCache

from heliproxy.api.filters import Condition

REMEMBERED = 256
"""Places kept. A client that asks for another offset than the next one pays for the rows before it."""

Place = tuple[str, int]
"""Time and number of the last row of a page."""


class Pages:
    """Remembers places. May be used from several threads.

    Going on from a place, a client sees each row once, even when new ones have come since; counting from the start, it
    would see the last rows of a page again. A query that starts over forgets nothing but is not bound either: its first
    page overwrites what was remembered.
    """

    def __init__(self) -> None:
        self._places: LRUCache[tuple[object, ...], Place] = LRUCache(REMEMBERED)
        self._lock = threading.Lock()

    def numbers(
        self, conn: sqlite3.Connection, where: Condition, order: Condition, offset: int, limit: int
    ) -> list[int]:
        """Rowids of one page."""
        key = (where.sql, where.values, order.sql, order.values)
        ordered = order.sql.startswith("r.created_at ")
        with self._lock:
            place = self._places.get((*key, offset)) if ordered and offset else None
        sql, values, skipped = where.sql, list(where.values), offset
        if place is not None:
            beyond = "<" if " DESC" in order.sql else ">"
            sql, values, skipped = f"({sql}) AND (r.created_at, r.rowid) {beyond} (?, ?)", [*values, *place], 0
        rows = conn.execute(
            f"SELECT r.rowid, r.created_at FROM requests r WHERE {sql} ORDER BY {order.sql} LIMIT ? OFFSET ?",
            [*values, *order.values, limit, skipped],
        ).fetchall()
        if ordered and rows and len(rows) == limit:
            with self._lock:
                self._places[(*key, offset + limit)] = (rows[-1][1], rows[-1][0])
        return [number for number, _ in rows]
