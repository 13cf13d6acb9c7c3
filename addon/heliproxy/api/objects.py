"""Things people make through the API that are no requests: one table of JSON values by kind and id."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Sequence
from typing import Any

from heliproxy.record import utc_text
from heliproxy.store import Writer

PUT = (
    "INSERT INTO objects (kind, id, created_at, updated_at, value) VALUES (?, ?, ?, ?, ?) "
    "ON CONFLICT (kind, id) DO UPDATE SET updated_at = excluded.updated_at, value = excluded.value"
)
DELETE = "DELETE FROM objects WHERE kind = ? AND id = ?"
DELETE_BELOW = "DELETE FROM objects WHERE kind = ? AND id >= ? AND id < ?"


def below(prefix: str) -> tuple[str, str]:
    """The range of ids that begin with `prefix/`."""
    return f"{prefix}/", f"{prefix}0"  # 0 comes after the slash


def put_object(writer: Writer, kind: str, object_id: str, value: dict[str, Any]) -> None:
    put_objects(writer, kind, [(object_id, value)])


def put_objects(writer: Writer, kind: str, values: Sequence[tuple[str, dict[str, Any]]]) -> None:
    now = utc_text(time.time())
    writer.write([(PUT, (kind, object_id, now, now, json.dumps(value))) for object_id, value in values])


def get_object(conn: sqlite3.Connection, kind: str, object_id: str) -> dict[str, Any] | None:
    """The value with its `created_at` and `updated_at`."""
    sql = "SELECT value, created_at, updated_at FROM objects WHERE kind = ? AND id = ?"
    row = conn.execute(sql, (kind, object_id)).fetchone()
    return None if row is None else {**json.loads(row[0]), "created_at": row[1], "updated_at": row[2]}


def list_objects(conn: sqlite3.Connection, kind: str) -> list[dict[str, Any]]:
    """All values of a kind with `id`, `created_at` and `updated_at`, oldest first."""
    sql = "SELECT id, value, created_at, updated_at FROM objects WHERE kind = ? ORDER BY created_at, id"
    return [
        {**json.loads(value), "id": object_id, "created_at": created, "updated_at": updated}
        for object_id, value, created, updated in conn.execute(sql, (kind,))
    ]
