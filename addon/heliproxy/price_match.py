"""Whether a model's name is the one an entry of the price data means (`{"or": [{"equals": "gpt-4o"}, ...]}`).

The rules and their results are genai-prices'; a test compares the two on every model.
"""

from __future__ import annotations

import re
from datetime import date
from typing import Any

Clause = tuple[str, Any]
"""A kind and its operand: text in lower case, a compiled pattern, or a tuple of clauses."""

_TEXTS = frozenset({"equals", "starts_with", "ends_with", "contains"})
_MAX_DEPTH = 32
_DATED = re.compile(r"-(20\d\d)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=[-:]|$)")


def read_clause(raw: object, depth: int = 0) -> Clause:
    """Read one clause of published data. Raises ValueError when it is none that we know."""
    if not isinstance(raw, dict) or len(raw) != 1:
        raise ValueError(f"a clause must be one kind and its operand, not {str(raw)[:80]}")
    [(kind, operand)] = raw.items()
    if kind in ("or", "and") and isinstance(operand, list) and depth < _MAX_DEPTH:
        return kind, tuple(read_clause(one, depth + 1) for one in operand)
    if kind in _TEXTS and isinstance(operand, str):
        return kind, operand.lower()
    if kind == "regex" and isinstance(operand, str):
        try:
            return kind, re.compile(operand)
        except (re.error, OverflowError) as e:
            raise ValueError(f"{operand[:80]!r} is not a pattern: {e}") from e
    raise ValueError(f"a clause of an unknown kind, or too deep: {str(raw)[:80]}")


def is_match(clause: Clause, name: str) -> bool:
    """Whether a name (in lower case) is meant."""
    kind, operand = clause
    if kind == "equals":
        return bool(name == operand)
    if kind == "or":
        return any(is_match(one, name) for one in operand)
    if kind == "contains":
        return operand in name
    if kind == "starts_with":
        return name.startswith(operand)
    if kind == "ends_with":
        return name.endswith(operand)
    if kind == "regex":
        return operand.search(name) is not None
    return all(is_match(one, name) for one in operand)


def with_dashed_date(name: str) -> str:
    """The name with a date such as `-20251211` written as `-2025-12-11`, which is how the data lists most of them."""
    return _DATED.sub(_dashed, name)


def _dashed(found: re.Match[str]) -> str:
    try:
        return f"-{date(*map(int, found.groups()))}"
    except ValueError:  # 31 February
        return found[0]
