"""Billable amounts of one call, and the arithmetic that turns them into dollars.

A price names a unit (`input`, `cache_read`, `input_audio`, ...). Units nest: audio that was read from the cache is
part of the audio read, of the cache reads and of the input. A unit is charged at the most specific price there is, so
each price applies to what no narrower price has taken (the rule of genai-prices, whose units these are). Figures
that contradict each other are clamped to what is possible: never an error, never a negative cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .exchange import Usage

Amounts = dict[str, float]

MILLION = 1_000_000.0
_MAX_AMOUNT = 1e15
"""Beyond any real call; keeps hostile integers inside what a float holds exactly."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One billable unit."""

    per: float
    """How many of it the price is for: 1e6 tokens, 3600 seconds, 1000 searches."""
    within: tuple[str, ...] = ()
    """Every wider unit it is part of."""


UNITS: Mapping[str, Unit] = {
    "input": Unit(MILLION),
    "cache_read": Unit(MILLION, ("input",)),
    "cache_write": Unit(MILLION, ("input",)),
    "cache_write_5m": Unit(MILLION, ("cache_write", "input")),
    "cache_write_1h": Unit(MILLION, ("cache_write", "input")),
    "input_audio": Unit(MILLION, ("input",)),
    "cache_audio_read": Unit(MILLION, ("input_audio", "cache_read", "input")),
    "input_image": Unit(MILLION, ("input",)),
    "input_video": Unit(MILLION, ("input",)),
    "output": Unit(MILLION),
    "output_audio": Unit(MILLION, ("output",)),
    "output_image": Unit(MILLION, ("output",)),
    "output_reasoning": Unit(MILLION, ("output",)),
    "output_citation": Unit(MILLION, ("output",)),
    "input_characters": Unit(MILLION),
    "audio_seconds": Unit(3600.0),
    "input_audio_seconds": Unit(3600.0, ("audio_seconds",)),
    "output_audio_seconds": Unit(3600.0, ("audio_seconds",)),
    "pages": Unit(1000.0),
    "annotated_pages": Unit(1000.0, ("pages",)),
    "rerank_searches": Unit(1000.0),
    "web_searches": Unit(1000.0),
    "social_searches": Unit(1000.0),
    "storage_searches": Unit(1000.0),
    "code_executions": Unit(1000.0),
    "images": Unit(1.0),
    "requests": Unit(1000.0),
}

_DURATIONS = frozenset({"audio_seconds", "input_audio_seconds", "output_audio_seconds"})
_NARROW_FIRST = sorted(UNITS, key=lambda name: -len(UNITS[name].within))

# How `Usage.units` names what is billed; formats may use either name.
UNIT_NAMES: Mapping[str, str] = {
    "characters": "input_characters",
    "search_units": "rerank_searches",
    "file_searches": "storage_searches",
    "x_searches": "social_searches",
    "citation_tokens": "output_citation",
    "document_pages": "pages",
    **{name: name for name in UNITS},
}


@dataclass(frozen=True, slots=True)
class Tier:
    """A rate that replaces the base rate for the whole call once its total input is above `above` tokens."""

    above: float
    rate: float


@dataclass(frozen=True, slots=True)
class Rate:
    """USD for one of a unit."""

    unit: str
    usd: float
    tiers: tuple[Tier, ...] = ()
    """Highest threshold first."""
    within: tuple[str, ...] = ()
    """The wider units that have a price too, and must not be charged again."""


@dataclass(frozen=True, slots=True)
class Rates:
    """The prices of one model at one time, ready to be applied."""

    rates: tuple[Rate, ...]
    """Narrowest unit first."""
    free: bool = False
    """Everything costs nothing, and that is known."""
    by_tokens: bool = False
    """The input has a price by token: audio that was counted in tokens is not charged by its length as well."""

    def charge(self, amounts: Amounts) -> dict[str, float] | None:
        """Price `amounts`, by unit in USD. None when nothing of what was used has a price."""
        if self.free:
            return {}
        left = dict(amounts)
        total_input = amounts.get("input", 0.0)
        charges: dict[str, float] = {}
        priced = self.by_tokens and not any(amounts.values())
        by_tokens = self.by_tokens and total_input > 0.0
        for rate in self.rates:
            amount = left.get(rate.unit, 0.0)
            if amount <= 0.0 or (by_tokens and rate.unit in _DURATIONS):
                continue
            priced = True
            usd = rate.usd
            for tier in rate.tiers:
                if total_input > tier.above:
                    usd = tier.rate
                    break
            charges[rate.unit] = amount * usd
            for wider in rate.within:
                if wider in left:
                    left[wider] = max(0.0, left[wider] - amount)
        return charges if priced else None


def compile_rates(prices: Mapping[str, tuple[float, Iterable[Tier]]], *, free: bool = False) -> Rates:
    """Order per-unit prices (USD per `Unit.per`) so that they can be applied in one pass."""
    rates = []
    for name in _NARROW_FIRST:
        if name in prices:
            per = UNITS[name].per
            base, tiers = prices[name]
            ordered = sorted(tiers, key=lambda tier: -tier.above)
            rates.append(
                Rate(
                    unit=name,
                    usd=base / per,
                    tiers=tuple(Tier(tier.above, tier.rate / per) for tier in ordered),
                    within=tuple(wider for wider in UNITS[name].within if wider in prices),
                )
            )
    return Rates(tuple(rates), free=free, by_tokens="input" in prices)


def scale_rates(rates: Rates, factor: float) -> Rates:
    """The same prices times `factor`, for the token units only: fees per search do not follow batch or region."""
    return Rates(
        tuple(
            Rate(rate.unit, rate.usd * factor, tuple(Tier(t.above, t.rate * factor) for t in rate.tiers), rate.within)
            if UNITS[rate.unit].per == MILLION
            else rate
            for rate in rates.rates
        ),
        free=rates.free,
        by_tokens=rates.by_tokens,
    )


def _amount(value: float | None, most: float = _MAX_AMOUNT) -> float:
    """A number between 0 and `most`; what is no number counts as 0."""
    if value is None or not value > 0:  # NaN is not > 0 either
        return 0.0
    return float(value) if value < most else most


def amounts_of(usage: Usage) -> Amounts:
    """What there is to bill, by unit. Only what is there, except that `input` and `output` stand when reported as 0.

    Contradictory figures are clamped to what is possible; cache reads beyond the input (161 of 10, as Azure reports for
    Grok) do not count as such.
    """
    amounts: Amounts = {}
    _add_input(amounts, usage)
    _add_output(amounts, usage)
    for name, value in usage.units.items():
        unit = UNIT_NAMES.get(name)
        if unit is not None and isinstance(value, int | float) and (amount := _amount(value)):
            amounts[unit] = amount
    if "output_citation" in amounts and "output" not in amounts:
        amounts["output"] = amounts["output_citation"]
    if "audio_seconds" in amounts and "output_audio_seconds" not in amounts:
        amounts.setdefault("input_audio_seconds", amounts["audio_seconds"])
    elif "input_audio_seconds" in amounts:
        amounts.setdefault("audio_seconds", amounts["input_audio_seconds"])
    elif "output_audio_seconds" in amounts:
        amounts.setdefault("audio_seconds", amounts["output_audio_seconds"])
    if "annotated_pages" in amounts:
        amounts["pages"] = max(amounts["annotated_pages"], amounts.get("pages", 0.0))
    return amounts


def _add_input(amounts: Amounts, usage: Usage) -> None:
    read, written = _amount(usage.cache_read_tokens), _amount(usage.cache_write_tokens)
    written_5m, written_1h = _amount(usage.cache_write_5m_tokens), _amount(usage.cache_write_1h_tokens)
    if usage.cache_write_tokens is None:
        written = written_5m + written_1h
    if usage.input_tokens is None:
        total = read + written
        if not total:
            return
    else:
        total = _amount(usage.input_tokens)
    amounts["input"] = total
    if read > total:
        read = 0.0  # a figure that cannot be true earns no discount
    if not (read or written or usage.input_audio_tokens or usage.input_image_tokens or usage.input_video_tokens):
        return
    read = min(read, total)
    written = min(written, total - read)
    if read:
        amounts["cache_read"] = read
    if written:
        amounts["cache_write"] = written
        if written_1h:
            amounts["cache_write_1h"] = min(written_1h, written)
        if written_5m and written > written_1h:
            amounts["cache_write_5m"] = min(written_5m, written - written_1h)
    if audio := _amount(usage.input_audio_tokens, total):
        amounts["input_audio"] = audio
        # Audio and cache reads that do not fit side by side must overlap, reported or not.
        overlap = max(_amount(usage.cache_read_audio_tokens), audio + read + written - total)
        if audio_read := min(overlap, audio, read):
            amounts["cache_audio_read"] = audio_read
    # Which modality the cached tokens had is not reported for images and video: at most the uncached rest is those.
    rest = max(0.0, total - read - written - audio)
    if image := _amount(usage.input_image_tokens, rest):
        amounts["input_image"] = image
    if video := _amount(usage.input_video_tokens, rest - image):
        amounts["input_video"] = video


def _add_output(amounts: Amounts, usage: Usage) -> None:
    if usage.output_tokens is None:
        total = _amount(usage.output_audio_tokens) + _amount(usage.output_image_tokens)
        if not total:
            return
    else:
        total = _amount(usage.output_tokens)
    amounts["output"] = total
    if audio := _amount(usage.output_audio_tokens, total):
        amounts["output_audio"] = audio
    if image := _amount(usage.output_image_tokens, total - audio):
        amounts["output_image"] = image
    if reasoning := _amount(usage.reasoning_tokens, total - audio - image):
        amounts["output_reasoning"] = reasoning
