"""The price table: genai-prices' data, found by provider and model, without its network or its unbounded caches.

genai-prices is imported on first use (about 0.4 s and 25 MB, so only in the writer and in commands that need it). Only
its data and its model matching are used; its updater thread is never started.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from .price_rates import Rates, Tier, compile_rates, scale_rates

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from genai_prices.types import ModelInfo, ModelPrice, Provider

# genai-prices' price keys for the units of price_rates.py; keys that are missing here are not billed by any model yet.
_PRICE_KEYS: Mapping[str, str] = {
    "input_mtok": "input",
    "cache_read_mtok": "cache_read",
    "cache_write_mtok": "cache_write",
    "cache_write_5m_mtok": "cache_write_5m",
    "cache_write_1h_mtok": "cache_write_1h",
    "input_audio_mtok": "input_audio",
    "cache_audio_read_mtok": "cache_audio_read",
    "input_image_mtok": "input_image",
    "input_video_mtok": "input_video",
    "output_mtok": "output",
    "output_audio_mtok": "output_audio",
    "output_image_mtok": "output_image",
    "output_reasoning_mtok": "output_reasoning",
    "output_citation_mtok": "output_citation",
    "input_mchars": "input_characters",
    "audio_hours": "audio_seconds",
    "input_audio_hours": "input_audio_seconds",
    "output_audio_hours": "output_audio_seconds",
    "input_document_kpages": "pages",
    "input_annotated_document_kpages": "annotated_pages",
    "rerank_searches_kcount": "rerank_searches",
    "web_searches_kcount": "web_searches",
    "social_searches_kcount": "social_searches",
    "storage_searches_kcount": "storage_searches",
    "code_executions_kcount": "code_executions",
    "requests_kcount": "requests",
}

# Providers whose batch API has cost half the standard price since it exists; genai-prices records it for some models
# and from October 2026 only.
_HALF_PRICE_BATCH = frozenset({"openai", "anthropic", "azure", "aws", "google", "mistral", "groq"})


@dataclass(frozen=True, slots=True)
class TableModel:
    """One model of the table, with its prices compiled as they are asked for."""

    provider_id: str
    info: ModelInfo
    own: bool
    """It is the provider's own entry; the request tiers of another provider's entry do not carry over."""
    _compiled: dict[tuple[int, tuple[int, ...], bool], Rates | None] = field(default_factory=dict)
    """Bounded by the data: one entry for each price period and set of variants."""

    @property
    def price_id(self) -> str:
        return f"{self.provider_id}:{self.info.id}"

    def rates(self, at: datetime, context: Mapping[str, str]) -> Rates | None:
        """The prices at one time under one price context (service_tier, speed, processing). None: not known."""
        period = _period(self.info, at)
        variants = _matching_variants(self.info, at, context) if context and self.own else ()
        batch = context.get("processing") == "batch"
        key = (period, variants, batch)
        if key not in self._compiled:
            self._compiled[key] = self._compile(period, variants, batch)
        return self._compiled[key]

    def _compile(self, period: int, variants: tuple[int, ...], batch: bool) -> Rates | None:
        prices = _named_prices(_standard(self.info, period))
        if not prices:
            return Rates((), free=True) if _is_free(self.provider_id, self.info) else None
        if batch and not variants and self.provider_id in _HALF_PRICE_BATCH:
            return scale_rates(_compile_prices(prices), 0.5)
        special: dict[str, Any] = {}
        for index in variants:
            for key, value in _variant_prices(self.info, index, prices).items():
                special.setdefault(key, value)
        return _compile_prices({**prices, **special})


def _named_prices(price: ModelPrice) -> dict[str, Any]:
    return {key: value for key, value in price.__dict__.items() if value is not None}


def _standard(info: ModelInfo, period: int) -> ModelPrice:
    return info.prices[period].prices if isinstance(info.prices, list) else info.prices


def _period(info: ModelInfo, at: datetime) -> int:
    """Index of the price that holds at `at`: the last whose condition holds, else the first."""
    if not isinstance(info.prices, list):
        return 0
    for index in range(len(info.prices) - 1, -1, -1):
        constraint = info.prices[index].constraint
        if constraint is None or constraint.active(at):
            return index
    return 0


def _matching_variants(info: ModelInfo, at: datetime, context: Mapping[str, str]) -> tuple[int, ...]:
    """Indexes of the variants for `context`, most binding first.

    Most variants start on the day somebody verified them, not on the day they came into force, so a call from before
    that day still gets them, after all that were active then: a flex call was never billed at the standard price.
    """
    active: list[int] = []
    early: list[tuple[date, int]] = []
    for index, variant in enumerate(info.price_variants or ()):
        if any(context.get(key) != value for key, value in variant.when.items()):
            continue
        if variant.constraint is None or variant.constraint.active(at):
            active.append(index)
        elif (start := getattr(variant.constraint, "start_date", None)) is not None:
            early.append((start, index))
    return (*active, *(index for _, index in sorted(early)))


def _variant_prices(info: ModelInfo, index: int, standard: Mapping[str, Any]) -> dict[str, Any]:
    """A variant's prices, moved along when the standard price was another one than when the variant began."""
    variant = (info.price_variants or [])[index]
    prices = _named_prices(variant.prices)
    start = getattr(variant.constraint, "start_date", None)
    if start is None:
        return prices
    began = _named_prices(_standard(info, _period(info, datetime(start.year, start.month, start.day, tzinfo=UTC))))
    for key, value in prices.items():
        then, now = began.get(key), standard.get(key)
        if then == now or hasattr(value, "tiers") or hasattr(then, "tiers") or hasattr(now, "tiers"):
            continue
        if then and now:
            prices[key] = value * now / then
    return prices


def _compile_prices(prices: Mapping[str, Any]) -> Rates:
    named: dict[str, tuple[float, list[Tier]]] = {}
    for key, price in prices.items():
        unit = _PRICE_KEYS.get(key)
        if unit is None:
            continue
        if hasattr(price, "tiers"):
            named[unit] = (float(price.base), [Tier(float(t.start), float(t.price)) for t in price.tiers])
        else:
            named[unit] = (float(price), [])
    return compile_rates(named)


def _is_free(provider_id: str, info: ModelInfo) -> bool:
    """Whether an entry without any price means "costs nothing" rather than "not known"."""
    if ":free" in info.id or provider_id in ("openrouter", "github-copilot") or info.id == "moderation":
        return True
    comment = (info.price_comments or "").lower()
    return "free of charge" in comment or "included in the subscription" in comment


class PriceTable:
    """Providers and models of one snapshot of the price data."""

    def __init__(self, providers: Sequence[Provider], version: str, dated: date | None) -> None:
        self.providers = providers
        self.version = version
        self.dated = dated
        """When the snapshot was made, as far as it can be known."""
        self._by_id = {provider.id: provider for provider in providers}

    def provider_ids(self) -> frozenset[str]:
        return frozenset(self._by_id)

    def find(self, provider_id: str, model: str) -> TableModel | None:
        """Find a model by the provider that bills it; `model` in lower case, as it stands in the request or reply."""
        provider = self._by_id.get(provider_id)
        if provider is None:
            return None
        info = provider.find_model(model, all_providers=list(self.providers))
        if info is None:
            return None
        return TableModel(provider.id, info, any(info is own for own in provider.models))

    def entry(self, provider: Provider, info: ModelInfo) -> TableModel:
        """One of a provider's own models."""
        return TableModel(provider.id, info, own=True)

    def guess_provider(self, model: str) -> str | None:
        """The vendor a bare model name belongs to (`gpt-4o`: openai)."""
        for provider in self.providers:
            if provider.model_match is not None and provider.model_match.is_match(model):
                return provider.id
        return None


def load_bundled() -> PriceTable:
    """The table of the installed genai-prices."""
    from importlib.metadata import version

    from genai_prices.data import providers

    number = version("genai-prices")
    return PriceTable(providers, f"genai-prices {number}", snapshot_date(providers))


def load_json(raw: Any, version: str) -> PriceTable:
    """A table from genai-prices' published JSON (an array of providers). Raises ValueError when it is not that."""
    from genai_prices import types

    if not isinstance(raw, list) or not raw:
        raise ValueError("price data must be a non-empty array of providers")
    try:
        providers = types._providers_from_raw(raw)
    except Exception as e:  # pydantic's errors, and whatever odd data makes the matcher raise
        raise ValueError(f"price data does not validate: {e}") from e
    return PriceTable(providers, version, snapshot_date(providers))


_CHECKED = re.compile(r"(?:checked|verified|observed|launched)\b[^.;]{0,60}?\b(20\d\d)-(\d\d)-(\d\d)\b", re.IGNORECASE)
_ANNOUNCED_AHEAD = timedelta(days=14)


def snapshot_date(providers: Iterable[Provider]) -> date | None:
    """The newest day the data itself speaks of; the package carries no date, and file times are the installation's.

    That is the newest "checked on ...", or a price change within two weeks after it; later changes are announcements.
    """
    checked: list[date] = []
    starts: list[date] = []
    for provider in providers:
        checked.extend(_dates_checked(provider.price_comments))
        for info in provider.models:
            checked.extend(_dates_checked(info.price_comments))
            if isinstance(info.prices, list):
                begins = (getattr(priced.constraint, "start_date", None) for priced in info.prices)
                starts.extend(start for start in begins if start is not None)
    newest = max(checked, default=None)
    if newest is None:
        return None
    return max([newest, *(start for start in starts if start <= newest + _ANNOUNCED_AHEAD)])


def _dates_checked(text: str | None) -> list[date]:
    found = []
    for year, month, day in _CHECKED.findall(text or ""):
        try:
            found.append(date(int(year), int(month), int(day)))
        except ValueError:
            continue
    return found
