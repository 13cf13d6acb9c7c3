"""Cells of the CSV files that we write: what somebody else said must not run as a formula in a spreadsheet."""

from __future__ import annotations

from typing import Any

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""With them a spreadsheet takes a cell for a formula; the last four are the first four in full width (OWASP)."""


def safe_cell(value: Any) -> Any:
    """The value; a text that would be a formula with a quote before it, which spreadsheets read as "text"."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value
