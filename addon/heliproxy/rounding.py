"""Numbers as programs and people read them, without what binary arithmetic leaves in them."""

from __future__ import annotations

from typing import Any

DIGITS = 14
"""Significant digits: a sum of floats is good to about so many, and no price has more."""


def without_noise(value: Any) -> Any:
    """The value; a float without the digits behind those that mean something: 0.1 + 0.2 is 0.3."""
    return float(f"{value:.{DIGITS}g}") if type(value) is float else value


def decimal_text(usd: float) -> str:
    """Dollars in full, never in exponent form: "0.000135". To 1e-10, far below the price of one token."""
    text = f"{usd:.10f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def amount_text(usd: float) -> str:
    """Dollars to four decimals, small amounts to as many as show two digits: "0.0135", "0.00000012"."""
    if usd and abs(usd) < 0.01:
        digits = next((d for d in range(4, 10) if round(abs(usd), d) >= 9.5 / 10**d), 10)
        return f"{usd:.{digits}f}"
    return f"{usd:.4f}"
