"""Reading, checking and replacing the stored price table. Nothing here runs unless the user asks for it."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .price_lines import digest, is_in_lines, read_lines, write_lines
from .price_overrides import write_atomically

if TYPE_CHECKING:
    from .price_table import PriceTable

STORED_FILE = "prices.json"
LAST_GOOD_FILE = "prices.previous.json"
DATA_URL = "https://raw.githubusercontent.com/pydantic/genai-prices/refs/heads/main/prices/new_data/v2/data.json"
_MAX_BYTES = 64 * 1024 * 1024
_SECONDS = 60
# A table without these, or with far fewer models than the one in use, is not a better one.
_MUST_PRICE = (("openai", "gpt-4o"), ("anthropic", "claude-sonnet-4-5"), ("google", "gemini-2.5-pro"))


def read_stored(path: Path) -> PriceTable | None:
    """The table stored by an update, None when there is none. Raises OSError, ValueError."""
    from .price_table import from_lines, load_json, load_lines

    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    if is_in_lines(content):
        facts, lines = read_lines(content)
        if not isinstance(facts.get("version"), str):
            raise ValueError(f"{path.name} is not a price table: no 'version'")
        return from_lines(facts, lines) if facts.get("sha256") == digest(lines) else load_lines(lines, facts["version"])
    providers, version = unpack(content, path.name)
    return load_json(providers, version)


def parse_table(content: bytes, name: str) -> PriceTable:
    """A table from genai-prices' data.json or from our stored form of it. Raises ValueError.

    For data that comes from outside: it must please us and genai-prices itself, which is imported for that.
    """
    from .price_table import load_json

    providers, version = unpack(content, name)
    table = load_json(providers, version)
    _validate(providers)
    return table


def _validate(providers: Any) -> None:
    from genai_prices import types

    try:
        types._providers_from_raw(providers)
    except Exception as e:  # pydantic's errors, and whatever else odd data makes it raise
        raise ValueError(f"price data does not validate: {e}") from e


def unpack(content: bytes, name: str) -> tuple[Any, str]:
    """The array of providers in a file, and its version. Raises ValueError."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{name} is not JSON: {e}") from e
    if isinstance(data, dict):
        if not isinstance(data.get("version"), str):
            raise ValueError(f"{name} is not a price table: no 'version'")  # noqa: TRY004  (bad data, not a bad call)
        return data.get("providers"), data["version"]
    return data, f"genai-prices data of {datetime.now(UTC):%Y-%m-%d}"


def read_wheel(path: Path) -> bytes:
    """The data of a genai-prices wheel, in our stored form; its code runs in another process. Raises ValueError."""
    import subprocess

    script = Path(__file__).with_name("price_dump.py")
    # -P: our own modules (secrets.py, ...) must not stand in for the standard library's there.
    command = [sys.executable, "-P", str(script), str(path)]
    done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
    if done.returncode != 0:
        reason = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise ValueError(f"{path.name} is not a usable genai-prices wheel: {reason[-1] if reason else 'no output'}")
    return done.stdout


def download(url: str = DATA_URL) -> bytes:
    """GET the published data. Raises OSError, ValueError."""
    from urllib.request import Request, urlopen

    if not url.startswith("https://"):
        raise ValueError(f"prices are only fetched over https, not from {url}")
    with urlopen(Request(url, headers={"User-Agent": "heliproxy"}), timeout=_SECONDS) as response:  # noqa: S310
        content: bytes = response.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"the answer of {url} is too long to be price data")
    return content


def check_table(new: PriceTable, current: PriceTable) -> None:
    """Raise ValueError when `new` is not fit to replace `current`."""
    for provider, model in _MUST_PRICE:
        found = new.find(provider, model)
        if found is None or found.rates(datetime.now(UTC), {}) is None:
            raise ValueError(f"it has no price for {provider}:{model}")
    before, after = len(_prices(current)), len(_prices(new))
    if after < before // 2:
        raise ValueError(f"it has {after} models where the table in use has {before}")


def describe_changes(new: PriceTable, current: PriceTable) -> list[str]:
    """What would change, one model a line: + new, - gone, ~ another price now."""
    before, after = _prices(current), _prices(new)
    lines = [f"+ {key}  {after[key]}" for key in after.keys() - before.keys()]
    lines += [f"- {key}  {before[key]}" for key in before.keys() - after.keys()]
    lines += [f"~ {key}  {before[key]} -> {after[key]}" for key in after if key in before and before[key] != after[key]]
    return sorted(lines, key=lambda line: (line[2:], line[0]))


def _prices(table: PriceTable) -> dict[str, str]:
    """Today's price of every model, as text."""
    now = datetime.now(UTC)
    return {
        f"{provider.id}:{info.id}": describe_rates(found.rates(now, {}))
        for provider in table.providers
        for info in provider.read_models()
        for found in (table.entry(provider, info),)
    }


def describe_rates(rates: Any) -> str:
    """Prices as people quote them: USD per million tokens, thousand searches, hour."""
    from .price_rates import UNITS

    if rates is None:
        return "no price"
    if rates.free:
        return "free"
    quoted = {rate.unit: rate for rate in rates.rates}
    parts = []
    for unit in (unit for unit in UNITS if unit in quoted):
        rate = quoted[unit]
        text = f"{unit} ${_number(rate.usd * UNITS[unit].per)}"
        for tier in reversed(rate.tiers):
            text += f" (>{tier.above:,.0f}: ${_number(tier.rate * UNITS[unit].per)})"
        parts.append(text)
    return ", ".join(parts)


def _number(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


def store_table(home: Path, content: bytes, name: str) -> None:
    """Put a table in place; the one it replaces is kept beside it. Raises OSError, ValueError."""
    from .price_table import load_json

    providers, version = unpack(content, name)
    packed = write_lines(version, providers, load_json(providers, version).dated)
    path = home / STORED_FILE
    try:
        old = path.read_bytes()
    except FileNotFoundError:
        old = None
    if old is not None:
        write_atomically(home / LAST_GOOD_FILE, old)
    write_atomically(path, packed)
