"""The price table: genai-prices' data, found by provider and model.

The data lies in the package as a file (`price_data/genai_prices.json`, made by `scripts/price_data.py`), so the proxy
never imports genai-prices itself, which takes 0.3 s and some 15 MiB. Only where a newer genai-prices is installed than
the one that file was made from, the installed one counts and is imported.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .price_lines import head_of, provider_line, read_lines
from .price_match import is_match, with_dashed_date
from .price_models import Model, Named, Provider, StartDate, Tiered, read_models, read_provider
from .price_rates import Rates, compile_rates, scale_rates

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .price_models import Constraint
    from .price_rates import Tier

logger = logging.getLogger(__name__)

DATA_FILE = "genai_prices.json"

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
    info: Model
    own: bool
    """It is the provider's own entry; the request tiers of another provider's entry do not carry over."""
    _compiled: dict[tuple[int, tuple[int, ...], bool], Rates | None] = field(default_factory=dict)
    """Bounded by the data: one entry for each price period and set of variants."""

    @property
    def price_id(self) -> str:
        return f"{self.provider_id}:{self.info.id}"

    def rates(self, at: datetime, context: Mapping[str, str]) -> Rates | None:
        """The prices at one time under one price context (service_tier, speed, processing). None: not known."""
        period = period_at(self.info, at)
        variants = _matching_variants(self.info, at, context) if context and self.own else ()
        batch = context.get("processing") == "batch"
        key = (period, variants, batch)
        if key not in self._compiled:
            self._compiled[key] = self._compile(period, variants, batch)
        return self._compiled[key]

    def _compile(self, period: int, variants: tuple[int, ...], batch: bool) -> Rates | None:
        prices = standard_prices(self.info, period)
        if not prices:
            return Rates((), free=True) if _is_free(self.provider_id, self.info) else None
        if batch and not variants and self.provider_id in _HALF_PRICE_BATCH:
            return scale_rates(_compile_prices(prices), 0.5)
        special: Named = {}
        for index in variants:
            for key, value in _variant_prices(self.info, index, prices).items():
                special.setdefault(key, value)
        return _compile_prices({**prices, **special})


def standard_prices(info: Model, period: int) -> Named:
    return info.periods[period].prices if info.periods else {}


def period_at(info: Model, at: datetime) -> int:
    """Index of the price that holds at `at`: the last whose condition holds, else the first."""
    for index in range(len(info.periods) - 1, 0, -1):
        constraint = info.periods[index].constraint
        if constraint is None or constraint.active(at):
            return index
    return 0


def _start(constraint: Constraint | None) -> date | None:
    return constraint.day if isinstance(constraint, StartDate) else None


def _matching_variants(info: Model, at: datetime, context: Mapping[str, str]) -> tuple[int, ...]:
    """Indexes of the variants for `context`, most binding first.

    Most variants start on the day somebody verified them, not on the day they came into force, so a call from before
    that day still gets them, after all that were active then: a flex call was never billed at the standard price.
    """
    active: list[int] = []
    early: list[tuple[date, int]] = []
    for index, variant in enumerate(info.variants):
        if any(context.get(key) != value for key, value in variant.when.items()):
            continue
        if variant.constraint is None or variant.constraint.active(at):
            active.append(index)
        elif (start := _start(variant.constraint)) is not None:
            early.append((start, index))
    return (*active, *(index for _, index in sorted(early)))


def _variant_prices(info: Model, index: int, standard: Named) -> Named:
    """A variant's prices, moved along when the standard price was another one than when the variant began."""
    variant = info.variants[index]
    start = _start(variant.constraint)
    if start is None:
        return variant.prices
    began = standard_prices(info, period_at(info, datetime(start.year, start.month, start.day, tzinfo=UTC)))
    prices = dict(variant.prices)
    for key, value in variant.prices.items():
        then, now = began.get(key), standard.get(key)
        if then == now or isinstance(value, Tiered) or isinstance(then, Tiered) or isinstance(now, Tiered):
            continue
        if then and now:
            prices[key] = float(_exact(value) * _exact(now) / _exact(then))
    return prices


def _exact(price: float) -> Decimal:
    """A price as it is written in the data."""
    return Decimal(str(price))


def _compile_prices(prices: Named) -> Rates:
    named: dict[str, tuple[float, tuple[Tier, ...]]] = {}
    for key, price in prices.items():
        unit = _PRICE_KEYS.get(key)
        if unit is None:
            continue
        named[unit] = (price.base, price.tiers) if isinstance(price, Tiered) else (price, ())
    return compile_rates(named)


def _is_free(provider_id: str, info: Model) -> bool:
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
        self._by_id = {provider.id: provider for provider in reversed(providers)}

    def provider_ids(self) -> frozenset[str]:
        return frozenset(self._by_id)

    def find(self, provider_id: str, model: str) -> TableModel | None:
        """Find a model by the provider that bills it; `model` in lower case, as it stands in the request or reply."""
        provider = self._by_id.get(provider_id)
        if provider is None:
            return None
        name = model.lower()
        for form in dict.fromkeys((name, with_dashed_date(name))):
            if (info := _named(provider, form)) is not None:
                return TableModel(provider.id, info, own=True)
            for other in provider.fallbacks:
                if other in self._by_id and (info := _named(self._by_id[other], form)) is not None:
                    return TableModel(provider.id, info, own=False)
        return None

    def entry(self, provider: Provider, info: Model) -> TableModel:
        """One of a provider's own models."""
        return TableModel(provider.id, info, own=True)

    def guess_provider(self, model: str) -> str | None:
        """The vendor a bare model name belongs to (`gpt-4o`: openai)."""
        name = model.lower()
        for provider in self.providers:
            if provider.model_match is not None and is_match(provider.model_match, name):
                return provider.id
        return None


def _named(provider: Provider, name: str) -> Model | None:
    return next((model for model in provider.models if model.is_match(name)), None)


@cache
def load_bundled() -> PriceTable:
    """The table that came with the package, or the installed genai-prices' where that is newer."""
    facts, lines = read_lines((files(__package__) / "price_data" / DATA_FILE).read_bytes())
    installed = installed_version()
    if installed is not None and _number(installed) > _number(facts["version"]):
        try:
            return load_installed(installed)
        except Exception as e:  # a later package may be made in another way
            logger.warning("the prices of the installed genai-prices %s are not used: %s", installed, e)
    return from_lines(facts, lines)


def from_lines(facts: Mapping[str, Any], lines: Iterable[bytes]) -> PriceTable:
    """A table from a file that was checked when it was written; models are read as they are called."""
    dated = facts.get("dated")
    providers = [read_provider(head_of(line), line) for line in lines]
    return PriceTable(providers, facts["version"], date.fromisoformat(str(dated)) if dated else None)


def load_installed(number: str) -> PriceTable:
    """The table of the installed genai-prices, which is imported. Raises whatever that raises."""
    from genai_prices.data import providers

    from .price_dump import plain

    return load_json(plain(providers), f"genai-prices {number}")


def installed_version() -> str | None:
    """Version of the genai-prices that would be imported; told by its folder: `importlib.metadata` is slow."""
    spec = importlib.util.find_spec("genai_prices")
    if spec is None or spec.origin is None:
        return None
    packages = Path(spec.origin).parents[1].glob("genai_prices-*.dist-info")
    return max((path.name.removesuffix(".dist-info").partition("-")[2] for path in packages), key=_number, default=None)


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def load_json(raw: Any, version: str) -> PriceTable:
    """A table from genai-prices' published JSON (an array of providers). Raises ValueError when it is not that."""
    if not isinstance(raw, list) or not raw:
        raise ValueError("price data must be a non-empty array of providers")
    return load_lines(map(_line, raw), version)


def _line(raw: Any) -> bytes:
    return provider_line(raw) if isinstance(raw, dict) else json.dumps(raw).encode()


def load_lines(lines: Iterable[bytes], version: str) -> PriceTable:
    """A table from JSON of one provider each, all of it checked. Raises ValueError."""
    providers, dates = [], SnapshotDate()
    for line in lines:
        try:
            raw = json.loads(line)
            provider = read_provider(raw, line)
            dates.add(provider, read_models(raw))
        except (ValueError, RecursionError) as e:
            raise ValueError(f"price data does not validate: {e}") from e
        providers.append(provider)
    return PriceTable(providers, version, dates.newest())


_CHECKED = r"(?i)(?:checked|verified|observed|launched)\b[^.;]{0,60}?\b(20\d\d)-(\d\d)-(\d\d)\b"
_ANNOUNCED_AHEAD = timedelta(days=14)


class SnapshotDate:
    """The newest day the data itself speaks of; the package carries no date, and file times are the installation's.

    That is the newest "checked on ...", or a price change within two weeks after it; later changes are announcements.
    """

    def __init__(self) -> None:
        self._checked: list[date] = []
        self._starts: list[date] = []

    def add(self, provider: Provider, models: Iterable[Model]) -> None:
        self._checked.extend(_dates_checked(provider.price_comments))
        for info in models:
            self._checked.extend(_dates_checked(info.price_comments))
            starts = (_start(period.constraint) for period in info.periods)
            self._starts.extend(start for start in starts if start is not None)

    def newest(self) -> date | None:
        newest = max(self._checked, default=None)
        if newest is None:
            return None
        return max([newest, *(start for start in self._starts if start <= newest + _ANNOUNCED_AHEAD)])


def _dates_checked(text: str | None) -> list[date]:
    found = []
    for year, month, day in re.findall(_CHECKED, text or ""):
        try:
            found.append(date(int(year), int(month), int(day)))
        except ValueError:
            continue
    return found
