"""What the status of a logged call says to people, on the pages and in the terminal."""

from __future__ import annotations

CANCELLED = -3
LOST = "lost"
"""Error type of a call whose heliproxy ended before it did."""
CUT = ("incomplete_stream", "upstream_failed")
"""Error types of answers that broke off after a good status."""


def is_failed(status: int | None, error_type: str | None) -> bool:
    """Whether a finished call failed, by the rule of `queries.ERROR`: a client that left is no failure."""
    if status is None or status == CANCELLED:
        return False
    return error_type is not None or not 100 <= status < 400


def open_word(error_type: str | None) -> str:
    """What to say in place of a status that a call does not have: it is under way, or its end was never seen."""
    return "lost" if error_type == LOST else "open"


def failure_mark(status: int | None, error_type: str | None) -> str:
    """What to say beside a status that looks good though the call failed: "cut" or "failed"; else ""."""
    if status is None or not 100 <= status < 400 or error_type is None:
        return ""
    return "cut" if error_type in CUT else "failed"
