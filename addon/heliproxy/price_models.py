"""Providers, models and their prices, as genai-prices publishes them in JSON.

Our own few classes instead of the package's: importing that takes 0.3 s and some 15 MiB, which a proxy that wants three
prices should not pay. Everything read here is checked, for the file may be one that the user stored.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import TYPE_CHECKING, Any

from .price_match import Clause, is_match, read_clause
from .price_rates import Tier

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Tiered:
    """A price that depends on how many tokens the whole input has."""

    base: float
    tiers: tuple[Tier, ...]


Named = dict[str, float | Tiered]
"""Prices in USD by the data's own keys (`input_mtok`: for a million tokens)."""


@dataclass(frozen=True, slots=True)
class StartDate:
    """From a day on, in UTC."""

    day: date

    def active(self, at: datetime) -> bool:
        return _utc(at).date() >= self.day


@dataclass(frozen=True, slots=True)
class TimeOfDay:
    """Between two times of every day, both in UTC; past midnight when the end is before the start."""

    start: time
    end: time

    def active(self, at: datetime) -> bool:
        now = _utc(at).time()
        if self.end < self.start:
            return now >= self.start or now < self.end
        return self.start <= now < self.end


Constraint = StartDate | TimeOfDay


@dataclass(frozen=True, slots=True)
class Period:
    """Prices that hold while their constraint does, or always."""

    prices: Named
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True)
class Variant:
    """Prices of calls made in a special way (batch, flex, fast)."""

    when: Mapping[str, str]
    prices: Named
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """One model of one provider."""

    id: str
    match: Clause
    periods: tuple[Period, ...]
    """The last whose constraint holds counts, else the first. Empty: the data has no price."""
    variants: tuple[Variant, ...] = ()
    name: str | None = None
    description: str | None = None
    context_window: int | None = None
    price_comments: str | None = None

    def is_match(self, name: str) -> bool:
        return is_match(self.match, name)


@dataclass(slots=True, eq=False)
class Provider:
    """One provider; its models are read from its JSON when they are first asked for."""

    id: str
    name: str
    text: bytes
    """JSON of the whole provider."""
    price_comments: str | None = None
    model_match: Clause | None = None
    fallbacks: tuple[str, ...] = ()
    """Ids of the providers whose models it sells too."""
    _models: tuple[Model, ...] | None = None

    @property
    def models(self) -> tuple[Model, ...]:
        """The models, kept once they are read: whoever calls one model calls it again."""
        if self._models is None:
            self._models = self.read_models()
        return self._models

    def read_models(self) -> tuple[Model, ...]:
        """The models, for a single look at them: not kept unless they are already."""
        return self._models or read_models(json.loads(self.text))


def read_provider(raw: object, text: bytes) -> Provider:
    """Read a provider without its models; `text` is the JSON of it with them. Raises ValueError."""
    entry = _mapping(raw, "a provider")
    match = entry.get("model_match")
    return Provider(
        id=_required(entry, "id"),
        name=_required(entry, "name"),
        text=text,
        price_comments=_text(entry, "price_comments"),
        model_match=None if match is None else read_clause(match),
        fallbacks=tuple(_texts(entry.get("fallback_model_providers") or [])),
    )


def read_models(raw: object) -> tuple[Model, ...]:
    """Read the models of a provider. Raises ValueError naming the one that is wrong."""
    entry = _mapping(raw, "a provider")
    return tuple(map(_model, _list(entry.get("models", []), "'models'")))


def _model(raw: object) -> Model:
    entry = _mapping(raw, "a model")
    model_id = _required(entry, "id")
    try:
        return Model(
            id=model_id,
            match=read_clause(entry.get("match")),
            periods=_periods(entry.get("prices", [])),
            variants=tuple(map(_variant, _list(entry.get("price_variants") or [], "'price_variants'"))),
            name=_text(entry, "name"),
            description=_text(entry, "description"),
            context_window=_whole(entry, "context_window"),
            price_comments=_text(entry, "price_comments"),
        )
    except ValueError as e:
        raise ValueError(f"model {model_id}: {e}") from e


def _periods(raw: object) -> tuple[Period, ...]:
    if isinstance(raw, dict):
        return (Period(_prices(raw)),)
    entries = [_mapping(entry, "a price") for entry in _list(raw, "'prices'")]
    return tuple(Period(_prices(entry.get("prices")), _constraint(entry.get("constraint"))) for entry in entries)


def _variant(raw: object) -> Variant:
    entry = _mapping(raw, "a variant")
    when = _mapping(entry.get("when"), "'when'")
    if not when:
        raise ValueError("'when' must name at least one condition")
    _texts(list(when.values()))
    return Variant(when, _prices(entry.get("prices")), _constraint(entry.get("constraint")))


def _constraint(raw: object) -> Constraint | None:
    if raw is None:
        return None
    entry = _mapping(raw, "a constraint")
    if "start_date" in entry:
        return StartDate(date.fromisoformat(_required(entry, "start_date")))
    return TimeOfDay(_time(_required(entry, "start_time")), _time(_required(entry, "end_time")))


def _time(text: str) -> time:
    """A time of day in UTC, without saying so."""
    moment = time.fromisoformat(text)
    return moment if moment.tzinfo is None else datetime.combine(date(1970, 1, 2), moment).astimezone(UTC).time()


def _prices(raw: object) -> Named:
    entries = _mapping(raw, "prices")
    return {key: _price(value) for key, value in entries.items() if value is not None}


def _price(raw: object) -> float | Tiered:
    if not isinstance(raw, dict):
        return _number(raw)
    tiers = [_mapping(entry, "a tier") for entry in _list(raw.get("tiers"), "'tiers'")]
    return Tiered(
        _number(raw.get("base")), tuple(Tier(_number(tier.get("start")), _number(tier.get("price"))) for tier in tiers)
    )


def _number(raw: object) -> float:
    """A price or a number of tokens: never negative, never NaN."""
    if isinstance(raw, int | float | str) and not isinstance(raw, bool):
        try:
            value = float(raw)
        except OverflowError:
            value = math.inf
        if 0 <= value < math.inf:
            return value
    raise ValueError(f"a price must be a number, 0 or more, not {str(raw)[:40]}")


def _mapping(raw: object, what: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise ValueError(f"{what} must be an object, not {str(raw)[:40]}")  # noqa: TRY004  (bad data, not a bad call)
    return raw


def _list(raw: object, what: str) -> list[Any]:
    if not isinstance(raw, list):
        raise ValueError(f"{what} must be a list, not {str(raw)[:40]}")  # noqa: TRY004
    return raw


def _texts(raw: object) -> list[str]:
    if any(not isinstance(entry, str) for entry in _list(raw, "these")):
        raise ValueError(f"texts are expected, not {str(raw)[:80]}")
    return list(_list(raw, "these"))


def _required(entry: Mapping[str, Any], key: str) -> str:
    value = _text(entry, key)
    if value is None:
        raise ValueError(f"'{key}' is missing")
    return value


def _text(entry: Mapping[str, Any], key: str) -> str | None:
    value = entry.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"'{key}' must be text, not {str(value)[:40]}")
    return value


def _whole(entry: Mapping[str, Any], key: str) -> int | None:
    value = entry.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise ValueError(f"'{key}' must be a whole number, not {str(value)[:40]}")
    return value


def _utc(at: datetime) -> datetime:
    return at if at.tzinfo is None else at.astimezone(UTC)
