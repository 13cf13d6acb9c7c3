#!/usr/bin/env python3
"""Make addon/heliproxy/price_data/genai_prices.json: the data of the installed genai-prices, as our own price table.

    .venv/bin/python scripts/price_data.py

Run it after requirements.lock has moved to another genai-prices and that is installed; a test fails until it was run.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "addon" / "heliproxy"
TARGET = PACKAGE / "price_data" / "genai_prices.json"
sys.path.insert(0, str(ROOT / "addon"))

from heliproxy.price_lines import write_lines  # noqa: E402
from heliproxy.price_table import load_json  # noqa: E402


def make() -> bytes:
    """The file's content."""
    from importlib.metadata import version

    from genai_prices.data import providers

    from heliproxy.price_dump import plain

    raw: list[dict[str, Any]] = plain(providers)
    number = f"genai-prices {version('genai-prices')}"
    return write_lines(number, raw, load_json(raw, number).dated)


if __name__ == "__main__":
    TARGET.write_bytes(make())
    print(f"{TARGET.relative_to(ROOT)}: {TARGET.stat().st_size:,} bytes", file=sys.stderr)
