"""What a call cost, in USD.

Sources in order: the user's own prices (`prices.toml`), genai-prices' data as of the time of the call, a bundled
supplement for models it lacks; else None, which means "not known" and is never 0. A cost the provider itself reports
goes before all of them and is the caller's to use. Local providers cost nothing.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from .exchange import Usage
from .home import PRICES_STALE_DAYS
from .price_overrides import Override, Overrides, load_overrides
from .price_rates import Rates, amounts_of, scale_rates
from .price_supplement import Supplement, load_supplement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from .price_table import PriceTable, TableModel

logger = logging.getLogger(__name__)

STALE_DAYS = PRICES_STALE_DAYS
_MAX_NAME = 256
_CACHED_MODELS = 4096

LOCAL_PROVIDERS = frozenset({"ollama", "lmstudio", "lm-studio", "vllm", "llamacpp", "llama.cpp", "localai", "local"})

# Names for a provider that the price data knows under another one.
_PROVIDER_IDS: Mapping[str, str] = {
    "bedrock": "aws",
    "aws-bedrock": "aws",
    "bedrock-mantle": "aws",
    "amazon-bedrock": "aws",
    "vertex": "google",
    "vertexai": "google",
    "vertex-ai": "google",
    "gemini": "google",
    "google-ai-studio": "google",
    "code-assist": "google",
    "xai": "x-ai",
    "grok": "x-ai",
    "moonshot": "moonshotai",
    "voyage": "voyageai",
    "copilot": "github-copilot",
    "chatgpt": "openai",
    "azure-openai": "azure",
    "azure-ai": "azure",
    "togetherai": "together",
    "together-ai": "together",
    "fireworks-ai": "fireworks",
    "z-ai": "zai",
    "z.ai": "zai",
    "bigmodel": "zhipuai",
    "hf": "huggingface",
}
# They bill at the price of the provider behind them, which the model's name tells.
_PASS_THROUGH = frozenset(
    {"portkey", "pydantic-gateway", "pydantic", "helicone", "litellm", "vercel", "cloudflare-gateway", "gateway"}
)

_TIERS: Mapping[str, str] = {
    "on_demand_flex": "flex",
    "on_demand_priority": "priority",
    "flex": "flex",
    "priority": "priority",
    "fast": "fast",
    "batch": "batch",
}
# Words a request adds to a model's name without changing its token price.
_ROUTING_SUFFIX = re.compile(r":(?:nitro|floor|online|exacto|beta|extended|thinking)$")
_DATE_SUFFIX = re.compile(r"[-@](?:20\d{6}|20\d\d-\d\d-\d\d|latest)$")
_ARN = re.compile(r"^arn:aws[\w-]*:bedrock:[^/]*[:/](?:foundation-model|inference-profile|imported-model)/(.+)$")
_PREFIX = re.compile(r"^(?:models/|(?:projects/.*/)?publishers/[^/]+/models/)")
_ANTHROPIC_US_FACTOR = 1.1
"""`inference_geo: us` on Claude 4.6 and later, on every token price."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The price of one call and where it comes from."""

    usd: float
    source: str
    """override, genai-prices, supplement or local."""
    price_id: str
    """Which price: provider and model as the source names them (`openai:gpt-4o-mini`)."""
    version: str
    """Which edition of the source (`genai-prices 0.2.3`)."""
    components: Mapping[str, float] = field(default_factory=dict)
    """USD by unit, summing up to `usd`: input, cache_read, cache_write, output, web_searches, requests, ..."""
    inferred: Mapping[str, float] = field(default_factory=dict)
    """Fees of tool calls that were seen in the answer but not reported as used: what they cost if each was billed.
    Not in `usd`, which holds nothing the provider did not report."""


@dataclass(frozen=True, slots=True)
class _Resolved:
    """Where the price of one (provider, models) is to be found; each in the order it is tried."""

    overrides: tuple[Override, ...]
    models: tuple[TableModel, ...]
    supplement: tuple[tuple[str, Rates], ...]
    us_factor: float


class Prices:
    """All sources of prices, with what has been looked up. One instance serves a process; lookups are thread-safe."""

    def __init__(self, home: Path | None) -> None:
        self._home = home
        self._overrides: Overrides | None = None
        self._table: PriceTable | None = None
        self._supplement: Supplement | None = None
        self._resolve = lru_cache(_CACHED_MODELS)(self._resolve_uncached)

    @property
    def overrides(self) -> Overrides:
        """The user's prices and aliases, read on first use."""
        if self._overrides is None:
            self._overrides = load_overrides(self._home)
            for problem in self._overrides.problems:
                logger.warning("ignored: %s", problem)
        return self._overrides

    @property
    def problems(self) -> tuple[str, ...]:
        """What was left out of the user's price files, one line each."""
        return self.overrides.problems

    @property
    def supplement(self) -> Supplement:
        if self._supplement is None:
            self._supplement = load_supplement()
        return self._supplement

    @property
    def table(self) -> PriceTable:
        """The price table: the one `heliproxy prices update` stored, else the installed package's."""
        if self._table is None:
            self._table = load_table(self._home)
        return self._table

    def cost(
        self, provider: str | None, models: Sequence[str], usage: Usage, at: datetime, pricing: Mapping[str, str]
    ) -> Cost | None:
        """Price one call. None when no source knows the price; never raises, never negative.

        `models` are the names to try: the one in the reply first, then the one asked for. `pricing` holds what
        changes the price: tier, speed, geo, processing.
        """
        try:
            if usage.parts:
                return self._cost_of_parts(provider, models, usage, at, pricing)
            return self._cost(provider, models, usage, at, pricing)
        except Exception:  # a price must never cost a row; the row says "unpriced" and the log says why
            logger.exception("no price for %r %r", provider, list(models)[:3])
            return None

    def quotes(self, provider: str | None, model: str, at: datetime) -> list[tuple[str, str, str, str]]:
        """Every price known for one model at one time, the one that counts first: source, id, edition, prices."""
        from .price_update import describe_rates

        at = _utc(at)
        resolved = self._resolve(provider, (model,))
        found = [
            ("override", entry.price_id, self.overrides.version, entry.rates)
            for entry in resolved.overrides
            if entry.valid_from is None or entry.valid_from <= at
        ]
        found += [
            ("genai-prices", entry.price_id, self.table.version, rates)
            for entry in resolved.models
            if (rates := entry.rates(at, _NO_CONTEXT)) is not None
        ]
        found += [("supplement", name, self.supplement.version, rates) for name, rates in resolved.supplement]
        return [(source, name, version, describe_rates(rates)) for source, name, version, rates in found]

    def reload(self) -> None:
        """Read the user's files and the stored table again."""
        self._overrides = self._table = None
        self._resolve.cache_clear()

    def snapshot_age(self, now: datetime) -> int | None:
        """Days since the price table was made, at most; None when that cannot be told."""
        dated = self.table.dated
        return None if dated is None else max(0, (_utc(now).date() - dated).days)

    @property
    def snapshot_date(self) -> date | None:
        return self.table.dated

    def _cost_of_parts(
        self, provider: str | None, models: Sequence[str], usage: Usage, at: datetime, pricing: Mapping[str, str]
    ) -> Cost | None:
        """Price every sub-call on its own model: each has its own total input, so its own long-context tier."""
        total, components, inferred, first = 0.0, dict[str, float](), dict[str, float](), None
        for part in usage.parts:
            names = models if part.model is None else (part.model,)
            cost = self._cost(provider, names, part.usage, at, pricing, fees=first is None)
            if cost is None:
                return None  # a sum without one of its parts would be a wrong price, not an unknown one
            first = first or cost
            total += cost.usd
            for charges, sums in ((cost.components, components), (cost.inferred, inferred)):
                for unit, usd in charges.items():
                    sums[unit] = sums.get(unit, 0.0) + usd
        if first is None:
            return None
        if usage.units and not any(part.usage.units for part in usage.parts):
            extra = self._cost(provider, models, Usage(units=usage.units), at, pricing, fees=False)
            if extra is not None:
                total += extra.usd
                components.update(extra.components)
                inferred.update(extra.inferred)
        return Cost(total, first.source, first.price_id, first.version, components, inferred)

    def _cost(
        self,
        provider: str | None,
        models: Sequence[str],
        usage: Usage,
        at: datetime,
        pricing: Mapping[str, str],
        *,
        fees: bool = True,
    ) -> Cost | None:
        amounts = amounts_of(usage)
        if not amounts:
            return None
        if fees and any(amounts.values()):
            amounts["requests"] = 1.0
        at = _utc(at)
        context, us = price_context(pricing) if pricing else (_NO_CONTEXT, False)
        resolved = self._resolve(provider, tuple(models))
        for entry in resolved.overrides:
            if entry.valid_from is None or entry.valid_from <= at:
                charges = entry.rates.charge(amounts)
                if charges is not None:
                    return _costed(charges, "override", entry.price_id, self.overrides.version)
        if provider is not None and provider.lower() in LOCAL_PROVIDERS:
            return Cost(0.0, "local", f"{provider.lower()}:{models[0] if models else ''}", "")
        factor = resolved.us_factor if us else 1.0
        for model in resolved.models:
            charges = _charge(model.rates(at, context), amounts, factor)
            if charges is not None:
                return _costed(charges, "genai-prices", model.price_id, self.table.version)
        for price_id, rates in resolved.supplement:
            charges = _charge(rates, amounts, factor)
            if charges is not None:
                return _costed(charges, "supplement", price_id, self.supplement.version)
        return None

    def _resolve_uncached(self, provider: str | None, models: tuple[str, ...]) -> _Resolved:
        names = self._aliased(models)
        asked = provider.strip().lower() if provider else None
        if asked == "custom":
            asked = None  # a manual log that names no vendor: the model's name alone decides
        overrides: list[Override] = []
        for named, name in names:
            seller = named or asked
            overrides += self.overrides.matching(_either(seller, _provider_id(seller)), name)
        if asked in LOCAL_PROVIDERS and not overrides:
            return _Resolved((), (), (), 1.0)
        found: dict[int, TableModel] = {}
        extra: dict[str, Rates] = {}
        places = [self._place(named or asked, name) for named, name in names]
        for exact in (True, False):
            for provider_id, name in places:
                self._look_up(provider_id, name_forms(name, exact=exact), found, extra)
        us = any(self.supplement.has_us_factor(name) for _, name in places) and _provider_id(asked) == "anthropic"
        return _Resolved(
            tuple(overrides), tuple(found.values()), tuple(extra.items()), _ANTHROPIC_US_FACTOR if us else 1.0
        )

    def _aliased(self, models: tuple[str, ...]) -> list[tuple[str | None, str]]:
        """Clean names to try, each with the provider its alias names, if it does."""
        names: dict[tuple[str | None, str], None] = {}
        for model in models:
            if not isinstance(model, str) or not (name := model.strip().lower()[:_MAX_NAME]):
                continue
            target = self.overrides.alias(name)
            if target is not None:
                prefix, colon, rest = target.lower().partition(":")
                known = bool(colon) and (_provider_id(prefix) or "") in self.table.provider_ids()
                names.setdefault((prefix, rest) if known else (None, target.lower()))
            names.setdefault((None, name))
        return list(names)

    def _place(self, provider: str | None, name: str) -> tuple[str | None, str]:
        """The price data's provider for a model, and the model's name there."""
        provider_id = _provider_id(provider)
        if provider_id == "huggingface":
            base, colon, router = name.rpartition(":")
            return (f"huggingface_{router}", base) if colon else (provider_id, name)
        if provider_id is not None and provider_id not in _PASS_THROUGH:
            return provider_id, name
        vendor, slash, rest = name.lstrip("@").partition("/")
        if slash and (vendor_id := _provider_id(vendor)) in self.table.provider_ids():
            return vendor_id, rest
        return self.table.guess_provider(name), name

    def _look_up(
        self, provider_id: str | None, forms: list[str], found: dict[int, TableModel], extra: dict[str, Rates]
    ) -> None:
        if provider_id is None:
            return
        for form in forms:
            model = self.table.find(provider_id, form)
            if model is not None:
                found.setdefault(id(model.info), model)
            rates = self.supplement.find(provider_id, form)
            if rates is not None:
                extra.setdefault(f"{provider_id}:{form}", rates)


_TOOL_UNITS = ("web_searches", "storage_searches", "social_searches", "code_executions")
_NO_CONTEXT: Mapping[str, str] = {}


def _utc(at: datetime) -> datetime:
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def _either(*ids: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in ids if name))


def _provider_id(provider: str | None) -> str | None:
    if provider is None:
        return None
    name = provider.strip().lower().replace("_", "-") if not provider.startswith("huggingface_") else provider
    return _PROVIDER_IDS.get(name, name)


def _charge(rates: Rates | None, amounts: dict[str, float], factor: float) -> dict[str, float] | None:
    if rates is None:
        return None
    return (scale_rates(rates, factor) if factor != 1.0 else rates).charge(amounts)


def _costed(charges: dict[str, float], source: str, price_id: str, version: str) -> Cost:
    inferred: dict[str, float] = {}
    if not _reports_tool_use(price_id):
        inferred = {unit: charges.pop(unit) for unit in _TOOL_UNITS if unit in charges}
    return Cost(sum(charges.values(), 0.0), source, price_id, version, charges, inferred)


def _reports_tool_use(price_id: str) -> bool:
    """Whether the usage object itself counts billed searches: Anthropic's `server_tool_use`, Perplexity's queries.

    OpenAI's does not, and which of the calls in an answer is billed (a search, not the opening of a page) is a guess.
    """
    return "claude" in price_id or price_id.startswith("perplexity:")


def price_context(pricing: Mapping[str, str]) -> tuple[Mapping[str, str], bool]:
    """genai-prices' price context for a call, and whether it is billed as US-only inference."""
    context: dict[str, str] = {}
    tier = _TIERS.get(str(pricing.get("tier") or pricing.get("service_tier") or "").lower())
    processing = str(pricing.get("processing") or "").lower()
    if tier == "batch" or processing == "batch":
        context["processing"] = "batch"
    elif tier is not None:
        context["service_tier"] = tier
    if str(pricing.get("speed") or "").lower() == "fast":
        context["speed"] = "fast"
    geo = str(pricing.get("geo") or pricing.get("inference_geo") or "").lower()
    context.update({key: pricing[key] for key in ("search_type", "route") if key in pricing})
    return context, geo == "us"


def name_forms(model: str, *, exact: bool) -> list[str]:
    """Spellings to look a model up by. `exact`: the same model; else also without its date or `-latest`."""
    name = _PREFIX.sub("", model)
    if (arn := _ARN.match(name)) is not None:
        name = arn.group(1)
    forms = [name]
    if (plain := _ROUTING_SUFFIX.sub("", name)) != name:
        forms.append(plain)
    if "@" in name:
        forms.append(name.replace("@", "-"))
    if exact:
        return forms
    undated = [_DATE_SUFFIX.sub("", form) for form in forms]
    return [form for form in dict.fromkeys(undated) if form not in forms]


def load_table(home: Path | None) -> PriceTable:
    """The newest usable table: the stored one unless it is broken or older than the installed package's data."""
    from .price_table import load_bundled
    from .price_update import STORED_FILE, read_stored

    bundled = load_bundled()
    if home is None:
        return bundled
    try:
        stored = read_stored(home / STORED_FILE)
    except (OSError, ValueError) as e:
        logger.warning("the stored price table is not used: %s", e)
        return bundled
    if stored is None or (stored.dated is not None and bundled.dated is not None and stored.dated < bundled.dated):
        return bundled
    return stored
