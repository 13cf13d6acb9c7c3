"""Print the data of a genai-prices wheel as JSON. Run as a script, in a process of its own: `price_dump.py WHEEL`."""

from __future__ import annotations

import dataclasses
import json
import sys
from datetime import date, time
from decimal import Decimal
from typing import Any


def plain(value: Any) -> Any:
    """genai-prices' objects in the shape of its published JSON."""
    if type(value).__name__ == "ModelPrice":
        return {key: plain(item) for key, item in value.__dict__.items() if item is not None}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        kept = {name: item for name, item in fields.items() if item is not None and not name.startswith("_")}
        kept.pop("extractors", None)
        return {name.rstrip("_"): plain(item) for name, item in kept.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, date | time):
        return value.isoformat()
    return value


def main(wheel: str) -> None:
    sys.path.insert(0, wheel)
    from importlib.metadata import version

    from genai_prices import data

    if not str(data.__file__).startswith(wheel):
        raise SystemExit("it does not hold the package genai_prices")
    json.dump({"version": f"genai-prices {version('genai-prices')}", "providers": plain(data.providers)}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
