"""Reading genai-prices' JSON: what is refused, what a clause matches, when a price holds."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, time
from typing import Any

import pytest

from heliproxy.price_match import is_match, read_clause, with_dashed_date
from heliproxy.price_models import StartDate, Tiered, TimeOfDay, read_models, read_provider
from heliproxy.price_rates import Tier
from heliproxy.price_table import load_json

MODEL = {"id": "m", "match": {"equals": "M-1"}, "prices": {"input_mtok": 1}}


def model(**fields: Any) -> Any:
    [found] = read_models({"models": [{**MODEL, **fields}]})
    return found


@pytest.mark.parametrize(
    ("clause", "matching", "others"),
    [
        ({"equals": "GPT-4o"}, ["gpt-4o"], ["gpt-4o-mini", "", "a gpt-4o"]),
        ({"starts_with": "gpt"}, ["gpt", "gpt-4o"], ["a-gpt"]),
        ({"ends_with": "-Mini"}, ["gpt-mini"], ["mini", "gpt-mini-2"]),
        ({"contains": "Claude"}, ["us.claude-3"], ["claud"]),
        ({"regex": r"^o\d$"}, ["o3"], ["o33", "go3"]),
        ({"or": [{"equals": "a"}, {"equals": "b"}]}, ["a", "b"], ["c"]),
        ({"and": [{"starts_with": "a"}, {"ends_with": "b"}]}, ["ab", "a-b"], ["a", "b"]),
        ({"or": []}, [], ["a"]),
        ({"and": []}, ["a"], []),
    ],
)
def test_clause_matches(clause: Any, matching: list[str], others: list[str]) -> None:
    assert [name for name in (*matching, *others) if is_match(read_clause(clause), name)] == matching


@pytest.mark.parametrize(
    "clause",
    [
        *(None, 5, "gpt", [], {}, {"equals": 5}, {"like": "a"}, {"equals": "a", "regex": "b"}),
        *({"or": {"equals": "a"}}, {"or": [5]}, {"regex": "("}, {"regex": "a{99999999999}"}, {"or": ["\ud800"]}),
    ],
)
def test_clause_of_another_shape_is_refused(clause: Any) -> None:
    with pytest.raises(ValueError):
        read_clause(clause)


@pytest.mark.parametrize(
    ("name", "dashed"),
    [
        ("gpt-5.2-20251211", "gpt-5.2-2025-12-11"),
        ("claude-20251211-v1:0", "claude-2025-12-11-v1:0"),
        ("model-20251211:free", "model-2025-12-11:free"),
        ("gpt-20250231", "gpt-20250231"),
        ("gpt-20251311", "gpt-20251311"),
        ("gpt-202512110", "gpt-202512110"),
        ("gpt20251211", "gpt20251211"),
        ("gpt-19991211", "gpt-19991211"),
    ],
)
def test_dates_get_dashes(name: str, dashed: str) -> None:
    assert with_dashed_date(name) == dashed


def test_all_that_counts_of_a_model_is_read() -> None:
    found = model(
        name="One",
        context_window=1000,
        description=None,
        deprecated=True,
        prices=[
            {"prices": {"input_mtok": "0.5", "output_mtok": None}},
            {"constraint": {"start_date": "2026-01-31"}, "prices": {"input_mtok": 7}},
            {
                "constraint": {"start_time": "16:30:00Z", "end_time": "00:30:00Z"},
                "prices": {"input_mtok": {"base": 1, "tiers": [{"start": 200000, "price": 2.5}]}},
            },
        ],
        price_variants=[{"when": {"speed": "fast"}, "prices": {"input_mtok": 9}}],
    )
    assert (found.id, found.name, found.context_window, found.description) == ("m", "One", 1000, None)
    assert [period.prices for period in found.periods] == [
        {"input_mtok": 0.5},
        {"input_mtok": 7.0},
        {"input_mtok": Tiered(1.0, (Tier(200_000.0, 2.5),))},
    ]
    assert [period.constraint for period in found.periods] == [
        None,
        StartDate(date(2026, 1, 31)),
        TimeOfDay(time(16, 30), time(0, 30)),
    ]
    assert [(variant.when, variant.prices) for variant in found.variants] == [({"speed": "fast"}, {"input_mtok": 9.0})]
    assert found.is_match("m-1")


@pytest.mark.parametrize("prices", [[], {}, {"input_mtok": None}])
def test_model_without_a_price_has_none(prices: Any) -> None:
    raw = [{"id": "p", "name": "P", "models": [{**MODEL, "prices": prices}]}]
    found = load_json(raw, "x").find("p", "m-1")
    assert found is not None
    assert found.rates(datetime(2026, 8, 1, tzinfo=UTC), {}) is None


NUMBERS = [-1, float("nan"), float("inf"), 10**400, True, "many", "nan", [], {}, {"base": 1}, {"base": -1, "tiers": []}]


@pytest.mark.parametrize(
    "fields",
    [
        *({"id": 5}, {"id": None}, {"match": None}, {"name": 5}, {"context_window": "x"}, {"context_window": True}),
        *({"prices": None}, {"prices": 5}, {"prices": [5]}, {"prices": [{}]}, {"price_comments": {}}),
        *({"prices": {"input_mtok": number}} for number in NUMBERS),
        *({"prices": {"input_mtok": {"base": 1, "tiers": tiers}}} for tiers in (None, [5], [{"start": 1}])),
        *(
            {"prices": [{"constraint": constraint, "prices": {}}]}
            for constraint in (5, {}, {"start_date": "soon"}, {"start_time": "25:00", "end_time": "01:00"})
        ),
        {"prices": [{"constraint": {"start_time": "01:00"}, "prices": {}}]},
        *({"price_variants": variants} for variants in (5, [5], [{"when": {}, "prices": {}}], [{"prices": {}}])),
        {"price_variants": [{"when": {"speed": 5}, "prices": {}}]},
    ],
)
def test_model_of_another_shape_is_refused(fields: Any) -> None:
    with pytest.raises(ValueError):
        model(**fields)


@pytest.mark.parametrize(
    "provider",
    [
        *(5, None, [], {}, {"id": "p"}, {"id": "p", "name": 5}, {"id": "p", "name": "P", "model_match": {"like": "x"}}),
        *({"id": "p", "name": "P", "fallback_model_providers": other} for other in ("openai", [5])),
        *({"id": "p", "name": "P", "models": models} for models in (5, [5], None, {})),
    ],
)
def test_provider_of_another_shape_is_refused(provider: Any) -> None:
    with pytest.raises(ValueError, match="price data does not validate"):
        load_json([provider], "x")


def test_provider_too_deep_to_be_read_is_refused() -> None:
    deep: Any = {"equals": "m"}
    for _ in range(400):
        deep = {"or": [deep]}
    with pytest.raises(ValueError, match="price data does not validate"):
        load_json([{"id": "p", "name": "P", "models": [{**MODEL, "match": deep}]}], "x")


def test_wrong_model_is_named() -> None:
    with pytest.raises(ValueError, match="model m: a price must be a number, 0 or more, not -1"):
        model(prices={"input_mtok": -1})


@pytest.mark.parametrize(("hour", "active"), [(16, False), (17, True), (23, True), (0, True), (1, False), (12, False)])
def test_time_of_day_goes_past_midnight(hour: int, active: bool) -> None:
    night = TimeOfDay(time(16, 30), time(0, 30))
    assert night.active(datetime(2026, 8, 1, hour, tzinfo=UTC)) is active


def test_models_of_another_provider_are_sold_by_one_that_says_so() -> None:
    shop = {"id": "shop", "name": "Shop", "fallback_model_providers": ["nobody", "maker"], "models": []}
    mall = {"id": "mall", "name": "Mall", "fallback_model_providers": ["shop"], "models": []}
    maker = {"id": "maker", "name": "Maker", "models": [MODEL]}
    table = load_json([shop, mall, maker], "x")
    found = table.find("shop", "m-1")
    assert found is not None
    assert (found.price_id, found.own) == ("shop:m", False)
    assert table.find("mall", "m-1") is None


def test_text_of_a_provider_is_read_again_for_each_single_look() -> None:
    raw = {"id": "p", "name": "P", "models": [MODEL]}
    provider = read_provider(raw, json.dumps(raw).encode())
    assert [one.id for one in provider.read_models()] == ["m"]
    assert provider.models is provider.models
