"""Rows of requests as programs and people read them."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, tzinfo
from typing import TYPE_CHECKING, Any

from heliproxy.report import Column
from heliproxy.statuses import failure_mark, open_word

if TYPE_CHECKING:
    from heliproxy.queries import Row


def all_columns() -> tuple[Column, ...]:
    from heliproxy.store import COLUMNS

    usd = ("cost_usd", "saved_usd")
    names = [*COLUMNS, "properties"]
    return tuple(Column(n, n, "usd" if n in usd else "json" if n == "properties" else "text") for n in names)


PARSED = {"usage_json": "usage", "attempts_json": "attempt_details"}
"""Columns that hold JSON as text -> their names in JSON output, where they are values."""


def program_columns() -> tuple[Column, ...]:
    """The columns of JSON output; rows for them come from `program_row`."""
    return tuple(replace(c, key=PARSED[c.key], kind="json") if c.key in PARSED else c for c in all_columns())


def program_row(row: Row) -> Row:
    """The row with its JSON as values: `attempts` is how many, `attempt_details` a list, empty where none was kept."""
    details = parsed(row.get("attempts_json"))
    return {
        **row,
        "usage": parsed(row.get("usage_json")),
        "attempt_details": details if isinstance(details, list) else [],
    }


def parsed(text: str | None) -> Any:
    """The value of JSON text, null for NaN and the like; the text itself when it is no JSON."""
    try:
        return json.loads(text, parse_constant=lambda _: None) if text else None
    except (ValueError, RecursionError):
        return text


def shown(row: Row, zone: tzinfo) -> Row:
    """The row as a person reads it: local time, the status in words where it is not HTTP's."""
    return {
        **row,
        "created_at": local_time(row["created_at"], zone),
        "status": status_word(row["status"], row["error_type"]),
    }


def local_time(text: str | None, zone: tzinfo) -> str:
    try:
        at = datetime.fromisoformat(text or "")
    except ValueError:
        return text or ""
    return at.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S")


def status_word(status: int | None, error_type: str | None) -> str | int:
    """HTTP's status, or a word; "200 cut" for an answer that broke off after its good status."""
    if status is None:
        return open_word(error_type)
    mark = failure_mark(status, error_type)
    return f"{status} {mark}" if mark else {-2: "timeout", -3: "aborted", -4: "threat", 0: "failed"}.get(status, status)


def is_bad(row: Any) -> bool:
    status = row.get("status")
    return bool(row.get("error_type")) or not isinstance(status, int) or status >= 400
