"""The price of every corpus exchange, from its known usage: what pricing alone gets right."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from heliproxy.exchange import Usage
from heliproxy.pricing import Cost, Prices

CORPUS = Path(__file__).resolve().parents[2] / "shared" / "corpus" / "public.jsonl"

pytestmark = pytest.mark.skipif(not CORPUS.exists(), reason="the shared corpus is not beside the project")


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    with CORPUS.open(encoding="utf-8") as file:
        return [line for line in map(json.loads, file) if line["kind"] == "usage"]


@pytest.fixture(scope="module")
def costs(lines: list[dict[str, Any]]) -> list[tuple[dict[str, Any], Cost | None]]:
    prices = Prices(None)
    return [(line, price(prices, line)) for line in lines]


def price(prices: Prices, line: dict[str, Any]) -> Cost | None:
    expected = line["expected"]
    at = datetime.fromisoformat(line["recorded_at"]) if line["recorded_at"] else datetime(2026, 11, 20, tzinfo=UTC)
    extra = expected.get("extra") or {}
    tier = extra.get("service_tier") or extra.get("traffic_type")
    pricing = {"tier": str(tier)} if tier else {}
    return prices.cost(provider_of(line), expected["price_model_candidates"], usage_of(expected["usage"]), at, pricing)


def provider_of(line: dict[str, Any]) -> str:
    provider: str = line["provider"]
    if provider == "huggingface":
        return "huggingface_" + urlsplit(line["request"]["url"]).path.split("/")[1]
    return provider


def usage_of(known: dict[str, int]) -> Usage:
    return Usage(
        input_tokens=known["input_tokens"],
        cache_read_tokens=known["cached_input_tokens"],
        cache_write_tokens=known["cache_write_tokens"],
        cache_write_5m_tokens=known["cache_write_5m_tokens"],
        cache_write_1h_tokens=known["cache_write_1h_tokens"],
        output_tokens=known["output_tokens"],
        reasoning_tokens=known["reasoning_tokens"],
        input_audio_tokens=known["input_audio_tokens"],
        cache_read_audio_tokens=known["cached_audio_tokens"],
        output_audio_tokens=known["output_audio_tokens"],
        input_image_tokens=known["input_image_tokens"],
        output_image_tokens=known["output_image_tokens"],
        input_video_tokens=known["input_video_tokens"],
    )


def agrees(usd: float, cost: Cost | None) -> bool:
    return cost is not None and abs(cost.usd - usd) <= max(0.001 * usd, 1e-12)


def test_agreed_costs_are_met_within_a_thousandth(costs: list[tuple[dict[str, Any], Cost | None]]) -> None:
    graded = [
        (line, cost)
        for line, cost in costs
        if line["expected"]["cost_agreed"] and line["expected"]["cost_basis"] != "provider_reported"
    ]
    wrong = [
        (line["id"], line["provider"], line["expected"]["price_model_candidates"], line["expected"]["cost_usd"], cost)
        for line, cost in graded
        if not agrees(line["expected"]["cost_usd"], cost)
    ]
    assert len(graded) > 350
    assert len(wrong) <= 0.005 * len(graded), wrong


def test_models_without_any_price_cost_none(costs: list[tuple[dict[str, Any], Cost | None]]) -> None:
    unknown = [
        (line["id"], line["expected"]["price_model_candidates"], cost)
        for line, cost in costs
        if line["expected"].get("cost_usd") is None and cost is not None
    ]
    assert unknown == []


def test_disputed_costs_stay_within_the_dispute(costs: list[tuple[dict[str, Any], Cost | None]]) -> None:
    outside: Counter[str] = Counter()
    for line, cost in costs:
        expected = line["expected"]
        known = [source["usd"] for source in (expected.get("sources") or {}).values() if source.get("usd") is not None]
        if cost is None or not known or expected.get("anomaly"):
            continue
        if not min(known) * 0.999 <= cost.usd <= max(known) * 1.001:
            outside[f"{line['provider']} {expected['price_model_candidates']} {cost.usd} {known}"] += 1
    assert outside == Counter()
