"""Rows of requests as programs and people read them."""

from __future__ import annotations

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
