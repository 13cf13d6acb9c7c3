"""Prices for models genai-prices does not list, from a small file of our own (`price_data/supplement.json`).

The file is made by `scripts/update_prices.py` and says where its figures come from. They carry no history, so they are
only asked when the table knows no price.
"""

from __future__ import annotations

import fnmatch
import json
import re
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING

from .price_rates import Rates, Tier, compile_rates

if TYPE_CHECKING:
    from collections.abc import Mapping

_REGION = re.compile(r"^(?:us|eu|apac|ap|jp|au|ca|global|us-gov)\.")


@dataclass(frozen=True, slots=True)
class Supplement:
    """Prices by provider and model name (lower case)."""

    version: str = "supplement"
    prices: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    """USD by unit of price_rates.py; `unit>128000` is the price above that many input tokens."""
    us_factor: tuple[str, ...] = ()
    """Globs of the models that cost more when the inference has to stay in the US."""

    def find(self, provider_id: str, model: str) -> Rates | None:
        models = self.prices.get(provider_id)
        if not models:
            return None
        entry = models.get(model) or models.get(_REGION.sub("", model))
        return None if entry is None else _rates(entry)

    def has_us_factor(self, model: str) -> bool:
        return any(fnmatch.fnmatchcase(model, pattern) for pattern in self.us_factor)


def _rates(entry: Mapping[str, float]) -> Rates:
    tiers: dict[str, list[Tier]] = {}
    for key, usd in entry.items():
        unit, above, threshold = key.partition(">")
        if above:
            tiers.setdefault(unit, []).append(Tier(float(threshold), usd))
    return compile_rates({key: (usd, tiers.get(key, ())) for key, usd in entry.items() if ">" not in key})


def load_supplement() -> Supplement:
    """Read the bundled file; an installation without it simply has no supplement."""
    try:
        text = (files(__package__) / "price_data" / "supplement.json").read_text(encoding="utf-8")
    except (FileNotFoundError, ModuleNotFoundError):
        return Supplement()
    data = json.loads(text)
    return Supplement(data["version"], data["prices"], tuple(data["us_factor"]))
