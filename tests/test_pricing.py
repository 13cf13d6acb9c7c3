"""What a call costs: sources in order, tiers, context, nonsense, and agreement with genai-prices itself."""

from __future__ import annotations

import random
import socket
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from heliproxy.exchange import ModelUsage, Usage
from heliproxy.price_overrides import load_overrides, write_alias
from heliproxy.price_rates import amounts_of
from heliproxy.pricing import Cost, Prices, name_forms, price_context

if TYPE_CHECKING:
    from pathlib import Path

AT = datetime(2026, 8, 1, tzinfo=UTC)
USAGE = Usage(input_tokens=1000, cache_read_tokens=100, output_tokens=50)


@pytest.fixture(scope="module")
def prices() -> Prices:
    return Prices(None)


def usd(cost: Cost | None) -> float:
    assert cost is not None
    return cost.usd


@pytest.mark.parametrize(
    ("provider", "models", "usage", "pricing", "expected"),
    [
        ("openai", ["gpt-4o-mini-2024-07-18"], USAGE, {}, 900 * 0.15e-6 + 100 * 0.075e-6 + 50 * 0.6e-6),
        # Claude Code computes this figure itself: 25 new, 1000 written for 5 minutes, 2000 read, 9 out.
        ("anthropic", ["claude-opus-4-8"], Usage(3025, 2000, 1000, 1000, 0, 9), {}, 0.0076),
        ("anthropic", ["claude-opus-4-8"], Usage(3025, 2000, 1000, 0, 1000, 9), {}, 0.0076 + 1000 * 3.75e-6),
        ("anthropic", ["claude-opus-4-8"], Usage(3025, 2000, 1000, 1000, 0, 9), {"geo": "us"}, 0.0076 * 1.1),
        ("anthropic", ["claude-opus-4-8"], Usage(3025, 2000, 1000, 1000, 0, 9), {"geo": "global"}, 0.0076),
        ("anthropic", ["claude-haiku-4-5"], Usage(1000, output_tokens=0), {"geo": "us"}, 0.001),
        ("anthropic", ["claude-opus-4-8"], Usage(3025, 2000, 1000, 1000, 0, 9), {"speed": "fast"}, 0.0152),
        ("anthropic", ["claude-sonnet-4-5"], Usage(200_000, output_tokens=0), {}, 0.6),
        ("anthropic", ["claude-sonnet-4-5"], Usage(200_001, output_tokens=0), {}, 200_001 * 6e-6),
        ("openai", ["gpt-5"], Usage(1000, output_tokens=100), {"tier": "flex"}, 1000 * 0.625e-6 + 100 * 5e-6),
        ("openai", ["gpt-5"], Usage(1000, output_tokens=100), {"tier": "default"}, 1000 * 1.25e-6 + 100 * 10e-6),
        ("openai", ["gpt-5"], Usage(1000, output_tokens=100), {"tier": "priority"}, 1000 * 2.5e-6 + 100 * 20e-6),
        ("openai", ["gpt-5"], Usage(1000, output_tokens=100), {"processing": "batch"}, 1000 * 0.625e-6 + 100 * 5e-6),
        ("anthropic", ["claude-3-opus-20240229"], Usage(1000, output_tokens=100), {"tier": "batch"}, 0.01125),
        ("azure", ["gpt-4o-2024-08-06"], Usage(1000, output_tokens=100), {"processing": "batch"}, 0.00175),
        ("bedrock", ["us.anthropic.claude-sonnet-4-5-20250929-v1:0"], Usage(1000, output_tokens=100), {}, 0.00495),
        ("aws", ["anthropic.claude-3-haiku-20240307-v1:0"], Usage(1000, output_tokens=100), {}, 0.000375),
        (
            "bedrock",
            ["arn:aws:bedrock:us-east-1::foundation-model/anthropic.claude-3-haiku-20240307-v1:0"],
            Usage(1000, output_tokens=100),
            {},
            0.000375,
        ),
        ("bedrock", ["us.cohere.embed-v4:0"], Usage(5), {}, 6e-07),
        ("vertex", ["publishers/google/models/gemini-2.5-flash"], Usage(1000, output_tokens=100), {}, 0.00055),
        ("google", ["models/gemini-2.5-flash"], Usage(1000, output_tokens=100), {}, 0.00055),
        ("portkey", ["gpt-4o-mini"], Usage(1000, output_tokens=0), {}, 0.00015),
        ("portkey", ["@openai/gpt-4o-mini"], Usage(1000, output_tokens=0), {}, 0.00015),
        (None, ["gpt-4o-mini"], Usage(1000, output_tokens=0), {}, 0.00015),
        ("xai", ["grok-4-0709"], Usage(1000, output_tokens=0), {}, 0.003),
        ("openrouter", ["anthropic/claude-4.5-haiku-20251001"], Usage(1000, output_tokens=0), {}, 0.001),
        ("anthropic", ["claude-sonnet-4-5"], Usage(1000, output_tokens=0, units={"web_searches": 2}), {}, 0.023),
        ("perplexity", ["sonar-pro"], Usage(1000, output_tokens=0), {}, 0.003 + 0.014),
        ("mistral", ["mistral-ocr-2503"], Usage(units={"pages": 3}), {}, 0.003),
        ("groq", ["whisper-large-v3"], Usage(units={"audio_seconds": 3600}), {}, 0.111),
    ],
)
def test_known_prices(
    prices: Prices, provider: str | None, models: list[str], usage: Usage, pricing: dict[str, str], expected: float
) -> None:
    assert usd(prices.cost(provider, models, usage, AT, pricing)) == pytest.approx(expected, rel=1e-9)


def test_price_says_where_it_comes_from(prices: Prices) -> None:
    cost = prices.cost("openai", ["gpt-4o-mini-2024-07-18"], USAGE, AT, {})
    assert cost is not None
    assert (cost.source, cost.price_id) == ("genai-prices", "openai:gpt-4o-mini")
    assert cost.version.startswith("genai-prices ")
    assert cost.components.keys() == {"input", "cache_read", "output"}
    assert sum(cost.components.values()) == cost.usd


def test_tool_calls_that_were_only_seen_are_not_in_the_sum(prices: Prices) -> None:
    usage = Usage(1000, output_tokens=0, units={"web_searches": 2, "file_searches": 1})
    cost = prices.cost("openai", ["gpt-4o"], usage, AT, {})
    assert cost is not None
    assert (cost.usd, cost.inferred) == (0.0025, {"web_searches": 0.02, "storage_searches": 0.0025})


def test_audio_is_charged_by_tokens_or_by_length_but_not_twice(prices: Prices) -> None:
    usage = Usage(1000, input_audio_tokens=900, output_tokens=0, units={"audio_seconds": 60})
    assert usd(prices.cost("mistral", ["voxtral-small-latest"], usage, AT, {})) == pytest.approx(0.0001)
    assert usd(prices.cost("mistral", ["voxtral-mini-2602"], usage, AT, {})) == pytest.approx(0.003)


def test_price_of_the_time_of_the_call_counts(prices: Prices) -> None:
    before = prices.cost("openai", ["o3"], Usage(1000, output_tokens=0), datetime(2025, 6, 9, tzinfo=UTC), {})
    after = prices.cost("openai", ["o3"], Usage(1000, output_tokens=0), datetime(2025, 6, 10, tzinfo=UTC), {})
    assert (usd(before), usd(after)) == (0.01, 0.002)


def test_tier_before_its_price_was_recorded_follows_the_standard_price(prices: Prices) -> None:
    """o3 cost five times as much at first; its flex price was half of that as well."""
    at = datetime(2025, 6, 1, tzinfo=UTC)
    assert usd(prices.cost("openai", ["o3"], Usage(1000, output_tokens=0), at, {"tier": "flex"})) == pytest.approx(
        0.005
    )


@pytest.mark.parametrize("models", [[], [""], ["no-such-model"], ["x" * 100_000], ["\ud800"]])
def test_unknown_model_costs_none(prices: Prices, models: list[str]) -> None:
    for provider in ("openai", "azure", "nobody", "", None, "huggingface"):
        assert prices.cost(provider, models, USAGE, AT, {}) is None


def test_nothing_reported_costs_none(prices: Prices) -> None:
    assert prices.cost("openai", ["gpt-4o"], Usage(), AT, {}) is None
    assert prices.cost("perplexity", ["sonar"], Usage(), AT, {}) is None


def test_reported_zero_costs_zero(prices: Prices) -> None:
    assert usd(prices.cost("openai", ["gpt-4o"], Usage(0, output_tokens=0), AT, {})) == 0


def test_usage_in_a_unit_without_price_costs_none(prices: Prices) -> None:
    """Voxtral transcription is priced by the hour; tokens say nothing about that."""
    assert prices.cost("mistral", ["voxtral-mini-2602"], Usage(100, output_tokens=5), AT, {}) is None


@pytest.mark.parametrize("provider", ["ollama", "lmstudio", "vllm", "llamacpp"])
def test_local_models_cost_nothing(prices: Prices, provider: str) -> None:
    cost = prices.cost(provider, ["llama3.2"], USAGE, AT, {})
    assert cost is not None
    assert (cost.usd, cost.source, cost.price_id) == (0.0, "local", f"{provider}:llama3.2")


def test_first_model_with_a_price_counts(prices: Prices) -> None:
    cost = prices.cost("openai", ["my-deployment", "gpt-4o-mini"], USAGE, AT, {})
    assert cost is not None
    assert cost.price_id == "openai:gpt-4o-mini"


def test_unknown_date_falls_back_to_the_undated_model(prices: Prices) -> None:
    cost = prices.cost("openai", ["gpt-5.6-sol-2031-01-01"], Usage(1000, output_tokens=0), AT, {})
    assert cost is not None
    assert cost.price_id == "openai:gpt-5.6-sol"


@pytest.mark.parametrize(
    "usage",
    [
        Usage(10, cache_read_tokens=161, output_tokens=1),
        Usage(2168, cache_read_tokens=2161, cache_write_tokens=2161, output_tokens=1),
        Usage(10, cache_write_tokens=5, cache_write_1h_tokens=500, cache_write_5m_tokens=500, output_tokens=1),
        Usage(10, input_audio_tokens=500, cache_read_audio_tokens=700, output_tokens=1, output_audio_tokens=90),
        Usage(-5, cache_read_tokens=-1, output_tokens=-7),
        Usage(10**400, cache_read_tokens=10**401, output_tokens=10**500),
        Usage(None, cache_read_tokens=5, cache_write_1h_tokens=5),
        Usage(5, output_tokens=5, units={"web_searches": float("nan"), "pages": -3, "nonsense": 1e300}),
        Usage(5, output_tokens=5, units={"web_searches": float("inf"), "pages": "x"}),  # type: ignore[dict-item]
        Usage(100, 50, input_audio_tokens=100, input_image_tokens=100, input_video_tokens=100, output_tokens=0),
    ],
)
def test_nonsense_is_clamped(prices: Prices, usage: Usage) -> None:
    for provider, model in (
        ("anthropic", "claude-sonnet-4-5"),
        ("openai", "gpt-realtime"),
        ("google", "gemini-2.5-pro"),
    ):
        cost = prices.cost(provider, [model], usage, AT, {})
        assert cost is not None
        assert cost.usd >= 0
        assert all(part >= 0 for part in cost.components.values())
        assert cost.usd < 1e15


def test_cache_reads_beyond_the_input_earn_no_discount(prices: Prices) -> None:
    assert (
        usd(prices.cost("openai", ["gpt-4o"], Usage(10, cache_read_tokens=161, output_tokens=0), AT, {})) == 10 * 2.5e-6
    )


def test_units_are_disjoint_after_clamping() -> None:
    amounts = amounts_of(Usage(2168, cache_read_tokens=2161, cache_write_tokens=2161))
    assert amounts == {"input": 2168, "cache_read": 2161, "cache_write": 7}


def test_every_part_is_priced_on_its_own_model(prices: Prices) -> None:
    parts = (
        ModelUsage(None, Usage(150_000, output_tokens=0)),
        ModelUsage("claude-opus-4-8", Usage(150_000, output_tokens=0)),
    )
    usage = Usage(300_000, output_tokens=0, parts=parts, units={"web_searches": 1})
    # No part reaches the long-context price of 200k, though their sum does.
    assert usd(prices.cost("anthropic", ["claude-sonnet-4-5"], usage, AT, {})) == pytest.approx(0.45 + 0.75 + 0.01)


def test_unknown_part_makes_the_whole_unknown(prices: Prices) -> None:
    parts = (ModelUsage(None, Usage(10, output_tokens=1)), ModelUsage("claude-unheard-of", Usage(10, output_tokens=1)))
    assert prices.cost("nobody", ["claude-sonnet-4-5"], Usage(20, output_tokens=2, parts=parts), AT, {}) is None


def test_free_models_cost_zero_but_priceless_ones_none(prices: Prices) -> None:
    assert usd(prices.cost("openrouter", ["cohere/north-mini-code:free"], USAGE, AT, {})) == 0
    assert prices.cost("cerebras", ["qwen-3-coder-480b"], USAGE, datetime(2026, 11, 1, tzinfo=UTC), {}) is None


def test_naive_times_are_utc_and_zones_are_heeded(prices: Prices) -> None:
    late = datetime(2025, 6, 9, 23, tzinfo=UTC) + timedelta(hours=2)
    for at in (late, late.replace(tzinfo=None)):
        assert usd(prices.cost("openai", ["o3"], Usage(1000, output_tokens=0), at, {})) == 0.002


@pytest.mark.parametrize(
    ("pricing", "context"),
    [
        ({"tier": "ON_DEMAND_FLEX"}, {"service_tier": "flex"}),
        ({"tier": "standard", "speed": "fast"}, {"speed": "fast"}),
        ({"tier": "batch"}, {"processing": "batch"}),
        ({"tier": "priority", "processing": "batch"}, {"processing": "batch"}),
        ({"tier": "scale"}, {}),
        ({}, {}),
    ],
)
def test_price_context_names_what_genai_prices_knows(pricing: dict[str, str], context: dict[str, str]) -> None:
    assert price_context(pricing)[0] == context


def test_name_forms() -> None:
    assert name_forms("models/gemini-2.5-pro", exact=True) == ["gemini-2.5-pro"]
    assert name_forms("claude-sonnet-4@20250514", exact=True) == [
        "claude-sonnet-4@20250514",
        "claude-sonnet-4-20250514",
    ]
    assert name_forms("gpt-9-2031-01-01", exact=False) == ["gpt-9"]
    assert name_forms("gpt-9", exact=False) == []


def test_arithmetic_equals_genai_prices_on_every_model(prices: Prices) -> None:
    """Every model, several times and contexts, with usage that genai-prices itself accepts."""
    from genai_prices import Usage as TheirUsage
    from genai_prices.data import providers

    chance = random.Random(7)
    checked = 0
    for ours, provider in zip(prices.table.providers, providers, strict=True):
        for entry, info in zip(ours.models, provider.models, strict=True):
            model = prices.table.entry(ours, entry)
            at = AT + timedelta(days=chance.randrange(-500, 100), seconds=chance.randrange(86_400))
            context = chance.choice(({}, {"service_tier": "flex"}, {"speed": "fast"}, {"processing": "batch"}))
            if any(variant.constraint is not None for variant in info.price_variants or ()) or "processing" in context:
                context = {}  # recorded variants are applied earlier here, on purpose
            rates = model.rates(at, context)
            if rates is None or provider.id == "groq":
                continue
            usage, theirs = random_usage(chance)
            if rates.by_tokens:
                usage = replace(usage, units={**usage.units, "audio_seconds": 0})
                theirs |= {"audio_seconds": 0, "input_audio_seconds": 0}
            charges = rates.charge({**amounts_of(usage), "requests": 1.0}) or {}
            expected = info.calc_price(
                TheirUsage(**theirs), provider, genai_request_timestamp=at, price_context=context
            ).total_price
            assert sum(charges.values()) == pytest.approx(float(expected), rel=1e-9), (provider.id, info.id, usage)
            checked += 1
    assert checked > 2000


def random_usage(chance: random.Random) -> tuple[Usage, dict[str, int]]:
    uncached, read, write, hour, audio, image = (chance.randrange(100_000) for _ in range(6))
    output, spoken, thought = chance.randrange(9000, 20_000), chance.randrange(1000), chance.randrange(5000)
    total = uncached + read + write + hour + audio + image
    usage = Usage(
        input_tokens=total,
        cache_read_tokens=read,
        cache_write_tokens=write + hour,
        cache_write_1h_tokens=hour,
        input_audio_tokens=audio,
        input_image_tokens=image,
        output_tokens=output,
        output_audio_tokens=spoken,
        reasoning_tokens=thought,
        units={"web_searches": 3, "pages": 7, "audio_seconds": 42.0},
    )
    theirs = {
        "input_tokens": total,
        "cache_read_tokens": read,
        "cache_write_tokens": write + hour,
        "cache_write_1h_tokens": hour,
        "input_audio_tokens": audio,
        "cache_audio_read_tokens": 0,
        "cache_image_read_tokens": 0,
        "input_image_tokens": image,
        "output_tokens": output,
        "output_audio_tokens": spoken,
        "output_reasoning_tokens": thought,
        "web_searches": 3,
        "input_document_pages": 7,
        "audio_seconds": 42,
        "input_audio_seconds": 42,
    }
    return usage, theirs


def test_lookups_are_bounded(prices: Prices) -> None:
    from genai_prices.data_snapshot import get_snapshot

    # Other tests may have asked genai-prices itself; what counts is that we do not.
    before = len(get_snapshot()._lookup_cache), len(get_snapshot()._provider_misses)
    for number in range(5000):
        prices.cost("openai", [f"unknown-{number}"], USAGE, AT, {})
    assert prices._resolve.cache_info().currsize <= 4096
    assert (len(get_snapshot()._lookup_cache), len(get_snapshot()._provider_misses)) == before


def test_no_network_and_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    before = threading.active_count()
    assert Prices(None).cost("openai", ["gpt-4o"], USAGE, AT, {}) is not None
    assert threading.active_count() == before


def test_snapshot_has_an_age(prices: Prices) -> None:
    dated = prices.snapshot_date
    assert dated is not None
    assert prices.snapshot_age(datetime(dated.year, dated.month, dated.day, tzinfo=UTC) + timedelta(days=46)) == 46
    assert prices.snapshot_age(datetime(2020, 1, 1, tzinfo=UTC)) == 0


# Overrides and aliases


def overridden(home: Path, text: str) -> Prices:
    home.mkdir(exist_ok=True)
    (home / "prices.toml").write_text(text, encoding="utf-8")
    return Prices(home)


OVERRIDE = """
[[price]]
model = "GPT-4o*"
input = 1.0
cache_read = 0.5
output = 2.0
request = 0.25

[[price]]
model = "gpt-4o"
provider = "azure"
valid_from = 2026-07-01
input = 10
output = 20

[[price]]
model = "llama3*"
provider = "ollama"
input = 0.01
web_search = 0.005

[aliases]
"my-deployment" = "gpt-4o"
"arn:aws:bedrock:*/abc" = "anthropic.claude-3-haiku-20240307-v1:0"
"house" = "openai:gpt-4.1-mini"

"""


@pytest.mark.parametrize(
    ("provider", "model", "at", "expected"),
    [
        ("openai", "gpt-4o-2024-08-06", AT, 0.25 + 900 * 1e-6 + 100 * 0.5e-6 + 50 * 2e-6),
        ("azure", "gpt-4o", AT, 1000 * 10e-6 + 50 * 20e-6),
        ("azure", "my-deployment", AT, 1000 * 10e-6 + 50 * 20e-6),
        ("azure", "gpt-4o", datetime(2026, 6, 30, tzinfo=UTC), 0.25 + 900 * 1e-6 + 100 * 0.5e-6 + 50 * 2e-6),
        ("ollama", "llama3.2", AT, 1000 * 0.01e-6),
        ("ollama", "qwen3", AT, 0.0),
        ("bedrock", "arn:aws:bedrock:us-east-1:1:application-inference-profile/abc", AT, 1000 * 0.25e-6 + 50 * 1.25e-6),
        ("nobody", "house", AT, 900 * 0.4e-6 + 100 * 0.1e-6 + 50 * 1.6e-6),
    ],
)
def test_users_prices_go_first(tmp_path: Path, provider: str, model: str, at: datetime, expected: float) -> None:
    prices = overridden(tmp_path, OVERRIDE)
    assert prices.problems == ()
    usage = USAGE if "arn" not in model else Usage(1000, output_tokens=50)
    assert usd(prices.cost(provider, [model], usage, at, {})) == pytest.approx(expected)


def test_override_names_its_edition(tmp_path: Path) -> None:
    cost = overridden(tmp_path, OVERRIDE).cost("azure", ["gpt-4o"], USAGE, AT, {})
    assert cost is not None
    assert (cost.source, cost.price_id) == ("override", "azure:gpt-4o")
    assert cost.version.startswith("prices.toml ")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[price]]\nmodel = 5\ninput = 1\n", "prices.toml, line 1: 'model' must be a glob"),
        ('[[price]]\nmodel = "m"\ninput = -1\n', "'input' must be a number of dollars"),
        ('[[price]]\nmodel = "m"\ninput = nan\n', "'input' must be a number of dollars"),
        ('[[price]]\nmodel = "m"\ninput = "1"\n', "'input' must be a number of dollars"),
        ('[[price]]\nmodel = "m"\ninput = true\n', "'input' must be a number of dollars"),
        (f'[[price]]\nmodel = "m"\ninput = 1{"0" * 400}\n', "'input' must be a number of dollars"),
        ('[[price]]\nmodel = "m"\ninptu = 1\n', "'inptu' is not a price; expected one of input, cache_read"),
        ('[[price]]\nmodel = "m"\n', "no price"),
        ('[[price]]\nmodel = "m"\nprovider = 1\ninput = 1\n', "'provider' must be"),
        ('[[price]]\nmodel = "m"\ninput = 1\nvalid_from = "soon"\n', "'valid_from' must be a date"),
        ('[[price]]\nmodel = "m"\ninput = 1\nvalid_from = 3\n', "'valid_from' must be a date"),
        ("price = 3\n", "'price' must be written as [[price]]"),
        ("[[price]]\nmodel = \n", "prices.toml: not valid TOML, nothing of it is used: "),
        ("[prices]\n", "'prices' is not known"),
        ("aliases = 3\n", "'aliases' must be a table"),
        ("[aliases]\na = 3\n", "alias 'a' must name a model"),
    ],
)
def test_bad_entry_is_told_and_the_rest_used(tmp_path: Path, text: str, problem: str) -> None:
    overrides = load_overrides_of(tmp_path, text)
    assert len(overrides.problems) == 1
    assert problem in overrides.problems[0]
    if text.startswith("[["):
        good = '\n[[price]]\nmodel = "good"\ninput = 1\n'
        kept = load_overrides_of(tmp_path, text + good).prices
        assert [entry.model for entry in kept] == ([] if "TOML" in problem else ["good"])


def load_overrides_of(home: Path, text: str) -> Any:
    (home / "prices.toml").write_text(text, encoding="utf-8")
    return load_overrides(home)


def test_unreadable_files_are_problems(tmp_path: Path) -> None:
    (tmp_path / "prices.toml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "aliases.toml").mkdir()
    assert len(load_overrides(tmp_path).problems) == 2


def test_aliases_are_written_and_removed(tmp_path: Path) -> None:
    name = 'odd "name" \\ with\ttab'
    write_alias(tmp_path, name, "gpt-4o")
    write_alias(tmp_path, "other", "gpt-4o-mini")
    assert load_overrides(tmp_path).aliases == {name: "gpt-4o", "other": "gpt-4o-mini"}
    write_alias(tmp_path, name, None)
    assert load_overrides(tmp_path).aliases == {"other": "gpt-4o-mini"}


def test_stored_table_that_is_broken_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "prices.json").write_text('{"version": "x", "providers": [1]}', encoding="utf-8")
    assert Prices(tmp_path).cost("openai", ["gpt-4o"], USAGE, AT, {}) is not None
    assert "stored price table is not used" in caplog.text
