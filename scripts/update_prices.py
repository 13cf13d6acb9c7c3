#!/usr/bin/env python3
"""Make addon/heliproxy/price_data/supplement.json: prices for models that genai-prices does not list.

    python scripts/update_prices.py model_prices_and_context_window.json 1.109.1

The input is litellm's price map (MIT; it lies in its wheel) and its version. Taken over are only token prices, only for
providers we route to, and only where the installed genai-prices has no price; the map has no history, so genai-prices
goes first. Run it by hand for a release and read the diff.
"""

from __future__ import annotations

import json
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "addon"))

from heliproxy.price_table import PriceTable, load_bundled  # noqa: E402
from heliproxy.pricing import name_forms  # noqa: E402

TARGET = ROOT / "addon" / "heliproxy" / "price_data" / "supplement.json"

# litellm's provider -> ours, and the prefixes its keys carry.
PROVIDERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "openai": ("openai", ()),
    "text-completion-openai": ("openai", ()),
    "anthropic": ("anthropic", ()),
    "bedrock": ("aws", ("bedrock/",)),
    "bedrock_converse": ("aws", ("bedrock/",)),
    "azure": ("azure", ("azure/",)),
    "azure_ai": ("azure", ("azure_ai/",)),
    "azure_text": ("azure", ("azure/",)),
    "cohere": ("cohere", ("cohere/",)),
    "cohere_chat": ("cohere", ()),
    "mistral": ("mistral", ("mistral/",)),
    "xai": ("x-ai", ("xai/",)),
    "gemini": ("google", ("gemini/",)),
    "vertex_ai-language-models": ("google", ("vertex_ai/",)),
    "vertex_ai-embedding-models": ("google", ("vertex_ai/",)),
    "vertex_ai-mistral_models": ("google", ("vertex_ai/",)),
    "vertex_ai-llama_models": ("google", ("vertex_ai/",)),
    "groq": ("groq", ("groq/",)),
    "deepseek": ("deepseek", ("deepseek/",)),
    "perplexity": ("perplexity", ("perplexity/",)),
    "together_ai": ("together", ("together_ai/",)),
    "fireworks_ai": ("fireworks", ("fireworks_ai/",)),
    "fireworks_ai-embedding-models": ("fireworks", ("fireworks_ai/",)),
    "cerebras": ("cerebras", ("cerebras/",)),
    "voyage": ("voyageai", ("voyage/",)),
    "snowflake": ("snowflake", ("snowflake/",)),
    "crusoe": ("crusoe", ("crusoe/",)),
    "moonshot": ("moonshotai", ("moonshot/",)),
    "zai": ("zai", ("zai/",)),
    "minimax": ("minimax", ("minimax/",)),
    "deepinfra": ("deepinfra", ("deepinfra/",)),
    "nebius": ("nebius", ("nebius/",)),
    "hyperbolic": ("hyperbolic", ("hyperbolic/",)),
    "sambanova": ("sambanova", ("sambanova/",)),
    "ai21": ("ai21", ()),
}
MODES = {"chat", "completion", "responses", "embedding", "audio_transcription", None}
FIELDS = {
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "cache_read_input_token_cost": "cache_read",
    "cache_creation_input_token_cost": "cache_write",
    "cache_creation_input_token_cost_above_1hr": "cache_write_1h",
    "input_cost_per_audio_token": "input_audio",
    "output_cost_per_audio_token": "output_audio",
}
TIER = re.compile(r"^(input|output)_cost_per_token_above_(\d+)k_tokens$")
REGIONAL = re.compile(r"^(?:us|eu|apac|ap|jp|au|ca|global|us-gov)\.")


def main(source: Path, version: str) -> None:
    table = load_bundled()
    models = json.loads(source.read_bytes())
    prices: dict[str, dict[str, dict[str, float]]] = {}
    for key, entry in models.items():
        found = PROVIDERS.get(str(entry.get("litellm_provider")))
        if found is None or entry.get("mode") not in MODES:
            continue
        provider, prefixes = found
        name = plain_name(key, prefixes)
        price = price_of(entry)
        if name and price and not is_priced(table, provider, name):
            prices.setdefault(provider, {}).setdefault(name, price)
    drop_regions(prices.get("aws", {}))
    us = sorted(f"{key}*" for key, entry in models.items() if is_us_priced(entry))
    data = {
        "version": f"supplement {datetime.now(UTC):%Y-%m-%d} (litellm {version})",
        "source": "Prices in USD per million tokens, read from litellm's model price map (MIT).",
        "us_factor": us,
        "prices": {provider: dict(sorted(entries.items())) for provider, entries in sorted(prices.items())},
    }
    TARGET.write_text(dump(data), encoding="utf-8")
    print(f"{sum(map(len, prices.values()))} models of {len(prices)} providers", file=sys.stderr)


def plain_name(key: str, prefixes: tuple[str, ...]) -> str | None:
    """The model as it stands in a request; None for keys that name a region or a commitment as well."""
    name = next((key[len(prefix) :] for prefix in prefixes if key.startswith(prefix)), key)
    if "*" in name or re.match(r"^(?:us|eu|global)/", name) or (prefixes == ("bedrock/",) and "/" in name):
        return None
    return name.lower()


def price_of(entry: dict[str, Any]) -> dict[str, float]:
    price: dict[str, float] = {}
    for field, unit in FIELDS.items():
        value = entry.get(field)
        if isinstance(value, int | float) and value > 0:
            price[unit] = round(value * 1e6, 6)
    for field, value in entry.items():
        if (tier := TIER.match(field)) and isinstance(value, int | float) and tier[1] in price:
            price[f"{tier[1]}>{int(tier[2]) * 1000}"] = round(value * 1e6, 6)
    return price if "input" in price or "output" in price else {}


def is_priced(table: PriceTable, provider: str, name: str) -> bool:
    forms = name_forms(name, exact=True) + name_forms(name, exact=False)
    return any(
        found is not None and found.rates(datetime.now(UTC), {}) is not None
        for found in (table.find(provider, form) for form in forms)
    )


def drop_regions(models: dict[str, dict[str, float]]) -> None:
    """An inference profile at the price of its model needs no entry of its own."""
    for name in list(models):
        plain = REGIONAL.sub("", name)
        if plain != name and models.get(plain) == models[name]:
            del models[name]


def is_us_priced(entry: dict[str, Any]) -> bool:
    special = entry.get("provider_specific_entry")
    return entry.get("litellm_provider") == "anthropic" and isinstance(special, dict) and special.get("us") == 1.1


def dump(data: dict[str, Any]) -> str:
    """One model a line, so that a new edition reads as a diff."""
    lines = ["{"]
    lines += [f" {json.dumps(key)}: {json.dumps(data[key])}," for key in ("version", "source", "us_factor")]
    lines.append(' "prices": {')
    providers = list(data["prices"].items())
    for at, (provider, models) in enumerate(providers):
        entries = [f"   {json.dumps(name)}: {json.dumps(price)}" for name, price in models.items()]
        lines += [
            f"  {json.dumps(provider)}: {{",
            ",\n".join(entries),
            "  }" + ("," if at + 1 < len(providers) else ""),
        ]
    return "\n".join([*lines, " }", "}", ""])


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2])
