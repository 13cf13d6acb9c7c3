"""What a part of the torture measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One number with its name."""

    name: str
    value: float
    note: str = ""
    """A unit, or a few words."""
    holds: bool | None = None
    """Whether it is as promised; None: only told."""

    def __str__(self) -> str:
        number = f"{self.value:,}" if isinstance(self.value, int) else f"{self.value:,.1f}"
        mark = "" if self.holds is None else "  ok" if self.holds else "  DOES NOT HOLD"
        return f"{self.name:<44} {number:>12} {self.note}{mark}"
