"""What several recorders or processes say of themselves, as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def together(names: Iterable[str], each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The facts of these names: numbers added up; of everything else the first that says something."""
    found: dict[str, Any] = {}
    for name in names:
        values = [facts[name] for facts in each if facts.get(name) is not None]
        counts = all(isinstance(value, int | float) for value in values)
        found[name] = sum(values) if values and counts else next(iter(values), None)
    return found
