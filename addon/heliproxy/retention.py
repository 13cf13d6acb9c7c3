"""How long rows and bodies are kept, and how large the database may become; as options say it."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE | re.ASCII)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
LEAST_BYTES = 1_000_000
MAX_DAYS = 36_500


@dataclass(frozen=True, slots=True)
class Retention:
    """What is removed by itself; None: nothing is."""

    keep_days: float | None = None
    keep_bodies_days: float | None = None
    max_bytes: int | None = None
    """Of the database file."""

    def __bool__(self) -> bool:
        return any(limit is not None for limit in (self.keep_days, self.keep_bodies_days, self.max_bytes))


def parse_days(text: str) -> float | None:
    """Days as `30`, `30d`, `0.5`; None for an empty text. Raises ValueError."""
    word = text.strip().lower().removesuffix("d")
    if not word:
        return None
    try:
        days = float(word)
    except ValueError:
        days = -1.0
    if not 0 < days <= MAX_DAYS:
        raise ValueError(f"{text!r} is not a number of days above 0; expected one such as 30")
    return days


def parse_size(text: str) -> int | None:
    """Bytes as `500MB`, `2GiB`, `1.5G`; None for an empty text. Raises ValueError."""
    if not text.strip():
        return None
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * (1024 if found[3] else 1000) ** _POWERS[found[2].lower()]) if found else 0
    if size < LEAST_BYTES:
        raise ValueError(f"{text!r} is not a size of 1MB or more; expected one such as 500MB or 2GiB")
    return size


def parse_retention(keep_days: str, keep_bodies_days: str, max_size: str) -> Retention:
    """The three options together. Raises ValueError, which names the option."""
    values: list[float | None] = []
    for name, text, parse in (
        ("keep-days", keep_days, parse_days),
        ("keep-bodies-days", keep_bodies_days, parse_days),
        ("max-db-size", max_size, parse_size),
    ):
        try:
            values.append(parse(text))
        except ValueError as e:
            raise ValueError(f"{name}: {e}") from e
    return Retention(values[0], values[1], None if values[2] is None else int(values[2]))
