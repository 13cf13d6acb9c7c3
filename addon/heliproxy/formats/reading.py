"""Read untrusted JSON: every function here takes anything and raises nothing.

Providers send nulls for objects, floats for counts, lone surrogates, numbers of ten thousand digits. What is not
what it should be counts as not reported.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from heliproxy import quick_json
from heliproxy.exchange import Usage

if TYPE_CHECKING:
    from collections.abc import Mapping

Json = dict[str, Any]

MAX_COUNT = 2**53
"""No provider counts this far; a larger number would not fit into SQLite or a float."""
MAX_NAME = 500
"""Characters kept of model names, ids and the like."""
MAX_MESSAGE = 4000
"""Characters kept of an error message."""

_decode = json.JSONDecoder(parse_constant=lambda _name: None).decode


def load(data: bytes | str) -> Any:
    """The JSON value in `data`, or None. Bad UTF-8 inside strings is replaced, NaN and infinities become None."""
    try:
        return quick_json.read(data)
    except quick_json.REFUSED:
        pass
    try:
        text = data if isinstance(data, str) else data.decode("utf-8", "replace")
        return _decode(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return None


def load_object(data: bytes | str) -> Json:
    """The JSON object in `data`; empty when there is none."""
    return as_object(load(data))


def as_object(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def objects(value: Any) -> list[Json]:
    """The objects among the items of a list."""
    return [item for item in as_list(value) if isinstance(item, dict)]


def count(value: Any) -> int | None:
    """A token count: a non-negative integer (also written 3.0); anything else is not reported."""
    if type(value) is int:
        return value if 0 <= value <= MAX_COUNT else None
    if type(value) is float and value.is_integer() and 0 <= value <= MAX_COUNT:
        return int(value)
    return None


def first_count(*values: Any) -> int | None:
    """The first of these that is a count."""
    for value in values:
        found = count(value)
        if found is not None:
            return found
    return None


def amount(value: Any) -> float | None:
    """A non-negative, finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def header_count(headers: Mapping[str, str], name: str) -> int | None:
    """A count in a response header; names are in lower case."""
    text = headers.get(name, "").strip()
    return count(int(text)) if text.isascii() and text.isdigit() and len(text) <= 16 else None


def total(*counts: int | None) -> int | None:
    """The sum of the counts that are reported; None when none is."""
    known = [value for value in counts if value is not None]
    return sum(known) if known else None


def clean(text: str) -> str:
    """The text without lone surrogates, which no encoding and no database takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def string(value: Any, limit: int = MAX_NAME) -> str | None:
    """A non-empty string, cut to `limit` characters; numbers are written out, anything else is None."""
    if type(value) in (int, float) and abs(value) <= MAX_COUNT:
        value = str(value)
    return clean(value[:limit]) if isinstance(value, str) and value else None


def text_of(content: Any) -> str:
    """The text of a message's content: a string, or a list of parts of which some have `text`."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        content = [content]
    found: list[str] = []
    for part in as_list(content):
        if isinstance(part, str):
            found.append(part)
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            found.append(part["text"])
    return "\n".join(found)


COUNTS = tuple(name for name in Usage.__slots__ if name not in ("units", "parts"))
"""The fields of `Usage` that count tokens."""


def sum_usages(usages: list[Usage]) -> Usage:
    """One usage that is the sum of several, field by field; a field nobody reports stays None."""
    sums: dict[str, Any] = {name: total(*(getattr(usage, name) for usage in usages)) for name in COUNTS}
    units: dict[str, float] = {}
    for usage in usages:
        for unit, number in usage.units.items():
            units[unit] = units.get(unit, 0) + number
    return Usage(**sums, units=units)
