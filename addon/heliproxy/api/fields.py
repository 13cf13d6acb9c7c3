"""JSON bodies in, checked values out. Every complaint names the field and what was expected of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from heliproxy import quick_json
from heliproxy.api.errors import ApiError, bad
from heliproxy.decode import decode
from heliproxy.times import stored_time

if TYPE_CHECKING:
    from starlette.requests import Request

MAX_BODY = 10 * 1024 * 1024
"""Bytes of a request body, before and after decoding."""
TOO_LARGE = "Payload too large"
MAX_TEXT = 10_000
UNIX_SECONDS_BELOW = 100_000_000_000
"""Smaller numbers are seconds, greater ones milliseconds (1e11 s is the year 5138, 1e11 ms is 1973)."""


async def read_body(request: Request) -> bytes:
    """The decoded body. Raises ApiError(400) when it is longer than `MAX_BODY`."""
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:15]) > MAX_BODY:
        raise bad(TOO_LARGE)
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY:
            raise bad(TOO_LARGE)
        parts.append(part)
    raw = b"".join(parts)
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("", "identity") or not raw:
        return raw
    body = decode(raw, encoding, MAX_BODY + 1)
    if len(body) > MAX_BODY:
        raise bad(TOO_LARGE)
    if not body or encoding not in ("gzip", "x-gzip", "deflate", "br", "zstd"):
        raise bad(f"the body cannot be decoded as {encoding[:40]!r}")
    return body


def parse_json(raw: bytes) -> Any:
    """The JSON value in a body. Raises ApiError(400)."""
    try:
        return quick_json.read(raw)
    except quick_json.REFUSED:
        pass  # so that what is wrong is told in the standard library's words
    try:
        text = raw.decode("utf-8-sig")
        value = _DECODER.decode(text)
    except UnicodeDecodeError as e:
        raise bad("the body is not UTF-8") from e
    except (ValueError, RecursionError) as e:
        raise bad(f"the body is not valid JSON: {e}") from e
    # Half of a surrogate pair is valid in JSON but in no encoding, so not in a database either.
    return _without_surrogates(value) if b"\\ud" in raw or b"\\uD" in raw else value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_without_surrogates(name): _without_surrogates(item) for name, item in value.items()}
    return value


class Fields:
    """A JSON object that is asked for typed fields. `where` is its own name in messages."""

    def __init__(self, values: Mapping[str, Any], where: str = "") -> None:
        self.values = values
        self.where = where

    def _name(self, name: str) -> str:
        return f"'{self.where}.{name}'" if self.where else f"'{name}'"

    def _wrong(self, name: str, expected: str) -> ApiError:
        value = self.values.get(name)
        shown = json.dumps(value)[:60] if name in self.values else "nothing"
        return ApiError(422, f"{self._name(name)} should be {expected}, not {shown}")

    def get(self, name: str) -> Any:
        return self.values.get(name)

    def text(self, name: str, default: str | None = None, *, limit: int = MAX_TEXT) -> str:
        """A string; required when there is no default."""
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or len(value) > limit:
            raise self._wrong(name, f"a string of at most {limit} characters")
        return value

    def required_text(self, name: str, *, limit: int = MAX_TEXT) -> str:
        """A string that is not empty."""
        value = self.text(name, limit=limit)
        if not value:
            raise self._wrong(name, "a string that is not empty")
        return value

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        """An integer of low..high; integral floats and numbers in strings count."""
        value = self.values.get(name)
        if value is None:
            return default
        if isinstance(value, str) and value.strip().lstrip("-").isdecimal() and len(value) < 20:
            value = int(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._wrong(name, f"an integer from {low} to {high}")
        return value

    def number(self, name: str) -> float:
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(name, "a number")
        try:
            number = float(value)
        except OverflowError as e:
            raise self._wrong(name, "a smaller number") from e
        if not math.isfinite(number):
            raise self._wrong(name, "a finite number")
        return number

    def flag(self, name: str) -> bool | None:
        """true or false, also as text; None when absent or null."""
        value = self.values.get(name)
        if value in (None, ""):
            return None
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        raise self._wrong(name, "true or false")

    def object(self, name: str, *, required: bool = False) -> Fields:
        value = self.values.get(name)
        if value is None and not required:
            return Fields({}, name)
        if not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return Fields(value, f"{self.where}.{name}" if self.where else name)

    def texts(self, name: str, *, most: int = 10_000, required: bool = True) -> list[str]:
        """A list of strings, each once, in order."""
        value = self.values.get(name)
        if value is None and not required:
            return []
        if not isinstance(value, list) or len(value) > most or not all(isinstance(item, str) for item in value):
            raise self._wrong(name, f"a list of at most {most} strings")
        return list(dict.fromkeys(value))

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        value = self.values.get(name, default)
        if value is None:
            return default
        if value not in choices:
            raise self._wrong(name, f"one of {', '.join(choices)}")
        return str(value)

    def moment(self, name: str) -> datetime | None:
        """A time: ISO text, or Unix seconds or milliseconds."""
        value = self.values.get(name)
        if value is None:
            return None
        found = moment(value)
        if found is None:
            raise self._wrong(name, "a time such as 2026-01-31T23:59:59Z")
        return found


def moment(value: Any) -> datetime | None:
    """A time as clients send it: ISO 8601 (UTC unless it says otherwise), or Unix seconds or milliseconds."""
    try:
        if isinstance(value, str):
            text = value.strip()
            if text.lstrip("-").replace(".", "", 1).isdecimal() and len(text) < 20:
                return moment(float(text))
            at = datetime.fromisoformat(text)
            at = at if at.tzinfo else at.replace(tzinfo=UTC)
            return at.astimezone(UTC)
        if isinstance(value, int | float) and not isinstance(value, bool):
            seconds = value if abs(value) < UNIX_SECONDS_BELOW else value / 1000
            return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return None


def time_bounds(fields: Fields, start: str = "start", end: str = "end") -> tuple[str | None, str | None]:
    """The stored forms of a time filter's two ends (both inclusive); None where it is open."""
    since, until = fields.moment(start), fields.moment(end)
    return (None if since is None else stored_time(since), None if until is None else stored_time(until))


def page(fields: Fields, limit: int = 10, most: int = 1000) -> tuple[int, int]:
    """(offset, limit)."""
    return fields.integer("offset", 0, 0, 2**53), fields.integer("limit", limit, 0, most)
