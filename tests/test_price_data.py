"""The price data in the package: it is genai-prices' own, and our reading of it finds what genai-prices finds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from genai_prices import data_snapshot, types
from genai_prices.data import providers as their_providers
from hypothesis import example, given
from hypothesis import strategies as st

from heliproxy import price_table
from heliproxy.exchange import Usage
from heliproxy.home import PRICES_DATE_NAME
from heliproxy.policies.tokenlimit import context_size
from heliproxy.price_dump import plain
from heliproxy.price_lines import provider_line, read_lines
from heliproxy.price_models import Named, Tiered, TimeOfDay
from heliproxy.price_rates import Tier
from heliproxy.price_table import PriceTable, load_bundled, load_json, period_at, standard_prices
from heliproxy.services import _pricing
from heliproxy.settings import Settings

REMAKE = "run scripts/price_data.py"
CONTENT = (files("heliproxy") / "price_data" / price_table.DATA_FILE).read_bytes()
FACTS, LINES = read_lines(CONTENT)
INSTALLED = f"genai-prices {version('genai-prices')}"
same_data = pytest.mark.skipif(FACTS["version"] != INSTALLED, reason=f"another genai-prices is installed: {INSTALLED}")


# ------------------------------------------------------------------------------------------------------------------
# The file


def test_file_is_of_the_locked_genai_prices() -> None:
    lock = Path(__file__).parents[1] / "requirements.lock"
    [locked] = re.findall(r"^genai-prices==(\S+)", lock.read_text(encoding="utf-8"), re.MULTILINE)
    assert FACTS["version"] == f"genai-prices {locked}", REMAKE


@same_data
def test_file_holds_all_that_genai_prices_knows() -> None:
    assert [json.loads(line) for line in LINES] == plain(their_providers), REMAKE
    table = load_json(plain(their_providers), "x")
    assert FACTS["dated"] == str(table.dated), REMAKE


def test_file_is_written_as_it_is_read() -> None:
    """A provider's models stand last in its line, which is where its head is cut off."""
    assert [provider_line(json.loads(line)) for line in LINES] == LINES
    assert json.loads(CONTENT)["providers"] == [json.loads(line) for line in LINES]


def test_licence_of_the_data_lies_beside_it() -> None:
    text = (files("heliproxy") / "price_data" / "genai_prices.LICENSE").read_text(encoding="utf-8")
    assert text.startswith("The MIT License (MIT)\n\nCopyright (c) Pydantic Services Inc.")


# ------------------------------------------------------------------------------------------------------------------
# What is imported

PRICE_ONE_CALL = """
import sys
from datetime import UTC, datetime
from pathlib import Path

from heliproxy.exchange import Usage
from heliproxy.pricing import Prices
from heliproxy.exchange import Usage
from heliproxy.home import PRICES_DATE_NAME
from heliproxy.policies.tokenlimit import context_size

prices = Prices(Path(sys.argv[1]))
cost = prices.cost("openai", ["gpt-4o-mini"], Usage(1_000_000, output_tokens=0), datetime(2026, 8, 1, tzinfo=UTC), {})
heavy = {"genai_prices", "pydantic", "pydantic_core", "httpx2", "importlib.metadata", "subprocess"}
print(cost.usd, prices.table.version, context_size("gpt-4o-mini"), sorted(heavy & sys.modules.keys()))
"""


@pytest.mark.parametrize("stored", [False, True])
def test_pricing_a_call_imports_nothing_heavy(tmp_path: Path, stored: bool) -> None:
    if stored:
        (tmp_path / "prices.json").write_bytes(CONTENT.replace(FACTS["version"].encode(), b"mine", 1))
    command = [sys.executable, "-c", PRICE_ONE_CALL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"0.15 {'mine' if stored else load_bundled().version} 128000 []\n", done.stderr


def test_version_of_the_installed_package_is_found_without_importing_it() -> None:
    assert price_table.installed_version() == version("genai-prices")


@pytest.mark.parametrize(
    ("installed", "used"), [("0.0.9", FACTS["version"]), (None, FACTS["version"]), ("99.10", "genai-prices 99.10")]
)
def test_newer_of_file_and_installed_package_counts(
    monkeypatch: pytest.MonkeyPatch, installed: str | None, used: str
) -> None:
    monkeypatch.setattr(price_table, "installed_version", lambda: installed)
    table = load_bundled.__wrapped__()
    assert table.version == used
    assert len(table.providers) > 40
    assert len(table.providers[0].models) > 20


def test_newer_package_that_cannot_be_read_is_told_and_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(number: str) -> PriceTable:
        raise AttributeError("there are no providers any more")

    monkeypatch.setattr(price_table, "installed_version", lambda: "99.0")
    monkeypatch.setattr(price_table, "load_installed", fail)
    assert load_bundled.__wrapped__().version == FACTS["version"]
    assert "the prices of the installed genai-prices 99.0 are not used: there are no providers any more" in caplog.text


def test_models_are_kept_only_when_they_are_looked_up() -> None:
    table = load_bundled.__wrapped__()
    openai = next(provider for provider in table.providers if provider.id == "openai")
    assert len(openai.read_models()) > 100
    assert openai._models is None
    assert table.find("openai", "gpt-4o") is not None
    assert openai._models is not None
    assert openai.read_models() is openai.models


# ------------------------------------------------------------------------------------------------------------------
# The same models, at the same prices

EAST, WEST = timezone(timedelta(hours=9)), timezone(timedelta(hours=-5))


@pytest.fixture(scope="module")
def table() -> PriceTable:
    return load_bundled()


def named(price: types.ModelPrice) -> Named:
    return {key: value_of(value) for key, value in price.__dict__.items() if value is not None}


def value_of(price: Any) -> float | Tiered:
    if isinstance(price, Decimal):
        return float(price)
    return Tiered(float(price.base), tuple(Tier(float(tier.start), float(tier.price)) for tier in price.tiers))


def moments(info: types.ModelInfo) -> list[datetime]:
    """Just before, at and just after each change of price, in several time zones."""
    constraints = [price.constraint for price in info.prices] if isinstance(info.prices, list) else []
    constraints += [variant.constraint for variant in info.price_variants or ()]
    found = [datetime(2026, 8, 1, 12, tzinfo=UTC)]
    for constraint in constraints:
        if isinstance(constraint, types.StartDateConstraint):
            found.append(datetime.combine(constraint.start_date, time(), UTC))
        elif constraint is not None:
            found += [datetime.combine(date(2026, 8, 1), edge) for edge in (constraint.start_time, constraint.end_time)]
    near = [at + timedelta(microseconds=step) for at in found for step in (-1, 0, 1)]
    return [
        *near,
        *(at.astimezone(zone) for at in near for zone in (EAST, WEST)),
        *(at.replace(tzinfo=None) for at in near),
    ]


@same_data
def test_every_model_has_its_prices_at_every_time(table: PriceTable) -> None:
    checked = 0
    for ours, theirs in zip(table.providers, their_providers, strict=True):
        for entry, info in zip(ours.models, theirs.models, strict=True):
            for at in moments(info):
                assert standard_prices(entry, period_at(entry, at)) == named(info.get_prices(at)), (info.id, at)
                checked += 1
            variants = [(dict(v.when), named(v.prices)) for v in info.price_variants or ()]
            assert [(dict(v.when), v.prices) for v in entry.variants] == variants
            assert entry.context_window == info.context_window
    assert checked > 20_000


def names() -> list[str]:
    """All names that the data lists."""
    found: set[str] = set()

    def collect(clause: Any) -> None:
        for operand in vars(clause).values():
            if isinstance(operand, list):
                for one in operand:
                    collect(one)
            else:
                found.add(operand)

    for provider in their_providers:
        for info in provider.models:
            found.add(info.id)
            collect(info.match)
    return sorted(found)


NAMES = names()
IDS = [provider.id for provider in their_providers]
CHANGES = (
    "{}", "{}-20251211", "{}-2025-12-11", "{}-20250231", "{}-20260101:free", "{}-latest", "{}-v1:0", "us.{}", "eu.{}",
    "global.{}", "models/{}", "publishers/google/models/{}", "openai/{}", "{}x", "x{}", "{}\n",
)  # fmt: skip


def their_find(provider_id: str, name: str) -> tuple[str, bool] | None:
    provider = next(provider for provider in their_providers if provider.id == provider_id)
    info = provider.find_model(name, all_providers=their_providers)
    return None if info is None else (f"{provider_id}:{info.id}", any(info is own for own in provider.models))


def our_find(table: PriceTable, provider_id: str, name: str) -> tuple[str, bool] | None:
    found = table.find(provider_id, name)
    return None if found is None else (found.price_id, found.own)


@same_data
def test_every_listed_name_is_found_where_genai_prices_finds_it(table: PriceTable) -> None:
    for number, name in enumerate(NAMES):
        assert table.guess_provider(name.lower()) == their_guess(name.lower()), name
        for provider_id in (("openai", "azure", "google", "aws")[number % 4], IDS[number % len(IDS)]):
            assert our_find(table, provider_id, name) == their_find(provider_id, name), (provider_id, name)


def their_guess(name: str) -> str | None:
    for provider in their_providers:
        if provider.model_match is not None and provider.model_match.is_match(name):
            return provider.id
    return None


spellings = st.builds(
    lambda change, name, cut: change.format(name[: len(name) - cut]),
    st.sampled_from(CHANGES),
    st.sampled_from([*NAMES, *(name.upper() for name in NAMES[::5])]),
    st.sampled_from((0, 0, 0, 1, 5)),
)


@same_data
@given(provider_id=st.sampled_from(IDS), name=spellings | st.text(max_size=30))
@example("azure", "gpt-4o-20240806")
@example("azure", "claude-sonnet-4-5-20250929")
@example("google", "claude-sonnet-4-5@20250929")
@example("openai", "gpt-5.2-2025\u0661211")
@example("openai", "\ud800")
def test_other_spellings_are_found_where_genai_prices_finds_them(provider_id: str, name: str) -> None:
    table = load_bundled()
    assert our_find(table, provider_id, name) == their_find(provider_id, name)
    assert table.guess_provider(name.lower()) == their_guess(name.lower())


@same_data
@pytest.mark.parametrize("step", range(7))
def test_context_sizes_are_those_of_genai_prices(step: int) -> None:
    for name in (*NAMES[step::7], "no-such-model", ""):
        assert context_size(name) == their_context_size(name), name


def their_context_size(model: str) -> int | None:
    for name in dict.fromkeys((model, model.rpartition("/")[2])):
        try:
            _, found = data_snapshot.DataSnapshot(their_providers, False).find_provider_model(name, None, None, None)
        except (LookupError, ValueError):
            continue
        return found.context_window
    return None


def test_times_of_day_of_other_zones_are_utc_times() -> None:
    [provider] = load_json(
        [{"id": "p", "name": "P", "models": [{"id": "m", "match": {"equals": "m"}, "prices": [
            {"prices": {"input_mtok": 2}},
            {"constraint": {"start_time": "01:30:00+09:00", "end_time": "18:00:00"}, "prices": {"input_mtok": 1}},
        ]}]}],
        "x",
    ).providers  # fmt: skip
    [model] = provider.models
    assert model.periods[1].constraint == TimeOfDay(time(16, 30), time(18, 0))


# ------------------------------------------------------------------------------------------------------------------
# The proxy


def test_day_of_the_prices_is_noted_in_the_home(tmp_path: Path) -> None:
    assert _pricing(Settings(home=tmp_path), b"secret").prices.snapshot_date == date.fromisoformat(
        (tmp_path / PRICES_DATE_NAME).read_text("ascii")
    )


def test_home_that_takes_no_file_is_no_reason_not_to_price(tmp_path: Path) -> None:
    (tmp_path / PRICES_DATE_NAME).mkdir()
    pricing = _pricing(Settings(home=tmp_path), b"secret")
    at = datetime(2026, 8, 1, tzinfo=UTC)
    assert pricing.prices.cost("openai", ["gpt-4o-mini"], Usage(1000, output_tokens=0), at, {}) is not None
