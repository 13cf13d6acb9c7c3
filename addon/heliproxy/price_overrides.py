"""The user's own prices and model aliases: `prices.toml` in heliproxy's home.

    [[price]]
    model = "gpt-4o*"           # a glob, without regard to case
    provider = "azure"          # optional
    valid_from = 2026-01-01     # optional, UTC
    input = 2.50                # USD for a million tokens; also cache_read, cache_write, cache_write_1h, output, ...
    output = 10.00
    request = 0.001             # USD for each; also web_search, image, page, ...

    [aliases]
    "my-deployment" = "gpt-4o-mini"

A bad entry is left out and told about; the rest still counts. Among the entries that match, the one with the latest
`valid_from` not after the call wins, then the one that stands later in the file.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import tempfile
import tomllib
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .price_rates import MILLION, UNITS, Rates, compile_rates

if TYPE_CHECKING:
    from collections.abc import Mapping

OVERRIDES_FILE = "prices.toml"
ALIASES_FILE = "aliases.toml"

# Fees are written for one; the units count them by thousands or hours.
_FEES: Mapping[str, str] = {
    "request": "requests",
    "web_search": "web_searches",
    "file_search": "storage_searches",
    "x_search": "social_searches",
    "code_execution": "code_executions",
    "rerank_search": "rerank_searches",
    "image": "images",
    "page": "pages",
    "audio_second": "audio_seconds",
}
PRICE_KEYS = tuple(name for name, unit in UNITS.items() if unit.per == MILLION) + tuple(_FEES)
_OTHER_KEYS = frozenset({"model", "provider", "valid_from", "note"})
_MAX_PRICE = 1e9


@dataclass(frozen=True, slots=True)
class Override:
    """One `[[price]]` entry."""

    model: str
    provider: str | None
    valid_from: datetime | None
    rates: Rates

    @property
    def price_id(self) -> str:
        return f"{self.provider or '*'}:{self.model}"


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the user's files say."""

    prices: tuple[Override, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    """One line for each entry that was left out: file, line or entry, key, and what was expected."""
    version: str = "prices.toml"

    def matching(self, providers: tuple[str, ...], model: str) -> list[Override]:
        """The entries for one model (lower case) of a provider (any of its ids), most binding first."""
        entries = [
            entry
            for entry in reversed(self.prices)
            if (entry.provider is None or entry.provider in providers) and fnmatch.fnmatchcase(model, entry.model)
        ]
        return sorted(entries, key=_start, reverse=True)

    def alias(self, model: str) -> str | None:
        """What the user says a name stands for, by its exact name or a glob."""
        if (target := self.aliases.get(model)) is not None:
            return target
        for pattern, target in self.aliases.items():
            if fnmatch.fnmatchcase(model, pattern):
                return target
        return None


def _start(entry: Override) -> datetime:
    return entry.valid_from or datetime.min.replace(tzinfo=UTC)


def load_overrides(home: Path | None) -> Overrides:
    """Read the user's files. Never raises: what cannot be read is one of the `problems`."""
    if home is None:
        return Overrides()
    problems: list[str] = []
    data, text = _read_toml(home / OVERRIDES_FILE, problems)
    written, _ = _read_toml(home / ALIASES_FILE, problems)
    prices = tuple(_entries(data, text, problems))
    aliases = {**_aliases(data, OVERRIDES_FILE, problems), **_aliases(written, ALIASES_FILE, problems)}
    digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:8]
    return Overrides(prices, aliases, tuple(problems), f"{OVERRIDES_FILE} {digest}")


def _read_toml(path: Path, problems: list[str]) -> tuple[dict[str, Any], str]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}, ""
    except (OSError, UnicodeDecodeError) as e:
        problems.append(f"{path.name}: cannot be read: {e}")
        return {}, ""
    try:
        return tomllib.loads(text), text
    except (ValueError, RecursionError) as e:  # a number of too many digits is no TOMLDecodeError
        problems.append(f"{path.name}: not valid TOML, nothing of it is used: {e}")
        return {}, text


def _entries(data: Mapping[str, Any], text: str, problems: list[str]) -> list[Override]:
    entries = data.get("price", [])
    if not isinstance(entries, list):
        problems.append(f"{OVERRIDES_FILE}: 'price' must be written as [[price]]")
        return []
    lines = [number for number, line in enumerate(text.splitlines(), 1) if re.match(r"\s*\[\[\s*price\s*\]\]", line)]
    problems.extend(
        f"{OVERRIDES_FILE}: '{key}' is not known; expected [[price]] or [aliases]"
        for key in sorted(data.keys() - {"price", "aliases"})
    )
    kept = []
    for index, entry in enumerate(entries):
        place = f"line {lines[index]}" if len(lines) == len(entries) else f"entry {index + 1}"
        try:
            kept.append(_entry(entry))
        except ValueError as e:
            problems.append(f"{OVERRIDES_FILE}, {place}: {e}")
    return kept


def _entry(entry: Any) -> Override:
    """Read one entry. Raises ValueError naming the key."""
    if not isinstance(entry, dict):
        raise ValueError("an entry must be a table")  # noqa: TRY004  (one error for all that is wrong with an entry)
    model, provider = entry.get("model"), entry.get("provider")
    if not isinstance(model, str) or not model.strip():
        raise ValueError("'model' must be a glob such as \"gpt-4o*\"")
    if provider is not None and (not isinstance(provider, str) or not provider.strip()):
        raise ValueError("'provider' must be a provider's name such as \"azure\"")
    prices: dict[str, tuple[float, tuple[()]]] = {}
    for key, value in entry.items():
        if key in _OTHER_KEYS:
            continue
        if key not in PRICE_KEYS:
            raise ValueError(f"'{key}' is not a price; expected one of {', '.join(PRICE_KEYS)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MAX_PRICE:
            raise ValueError(f"'{key}' must be a number of dollars, 0 or more, not {value!r}")
        unit = _FEES.get(key, key)
        prices[unit] = (float(value) * (UNITS[unit].per if key in _FEES else 1.0), ())
    if not prices:
        raise ValueError("no price; give at least 'input' and 'output', in USD per million tokens")
    return Override(
        model.strip().lower(), provider and provider.strip().lower(), _valid_from(entry), compile_rates(prices)
    )


def _valid_from(entry: Mapping[str, Any]) -> datetime | None:
    value = entry.get("valid_from")
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError as e:
            raise ValueError(f"'valid_from' must be a date such as 2026-01-31, not {value!r}") from e
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    if isinstance(value, date):
        return datetime.combine(value, time(), UTC)
    raise ValueError(f"'valid_from' must be a date such as 2026-01-31, not {value!r}")


def _aliases(data: Mapping[str, Any], file: str, problems: list[str]) -> dict[str, str]:
    table = data.get("aliases", {})
    if not isinstance(table, dict):
        problems.append(f'{file}: \'aliases\' must be a table of "name" = "model"')
        return {}
    kept = {}
    for name, target in table.items():
        if isinstance(target, str) and target.strip():
            kept[name.strip().lower()] = target.strip()
        else:
            problems.append(f"{file}: alias '{name}' must name a model, not {target!r}")
    return kept


def write_alias(home: Path, name: str, model: str | None) -> None:
    """Set an alias in heliproxy's own alias file, or remove it (`model` None). Raises OSError."""
    problems: list[str] = []
    data, _ = _read_toml(home / ALIASES_FILE, problems)
    if problems:
        raise ValueError(problems[0])
    aliases = _aliases(data, ALIASES_FILE, problems)
    aliases.pop(name.strip().lower(), None)
    if model is not None:
        aliases[name.strip().lower()] = model.strip()
    lines = ["# Written by `heliproxy prices alias`.", "[aliases]"]
    lines += [f"{_toml_string(key)} = {_toml_string(value)}" for key, value in sorted(aliases.items())]
    write_atomically(home / ALIASES_FILE, ("\n".join(lines) + "\n").encode())


def _toml_string(text: str) -> str:
    escaped = "".join(
        f"\\u{ord(c):04x}" if c in '"\\' or ord(c) < 32 or ord(c) == 127 else c
        for c in text.encode("utf-8", "replace").decode()
    )
    return f'"{escaped}"'


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file in one step, readable by its owner only. Raises OSError; the old file then stands."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
