"""Numbers for programs to read, without what binary arithmetic leaves in them."""

from __future__ import annotations

from typing import Any

DIGITS = 14
"""Significant digits: a sum of floats is good to about so many, and no price has more."""


def without_noise(value: Any) -> Any:
    """The value; a float without the digits behind those that mean something: 0.1 + 0.2 is 0.3."""
    return float(f"{value:.{DIGITS}g}") if type(value) is float else value
