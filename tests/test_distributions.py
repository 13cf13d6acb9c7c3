"""Distributions of times: what is put in comes out again, within 1 %."""

from __future__ import annotations

import random

import pytest

from heliproxy.distributions import LAST, distribution, middle, pack, quantile, step_of, unpack
from heliproxy.tallies import percentile


@pytest.mark.parametrize(
    ("ms", "step"),
    [(-5.0, 0), (0.0, 0), (0.1, 0), (0.1001, 1), (0.103, 2), (float("nan"), 0), (1e18, LAST), (float("inf"), LAST)],
)
def test_odd_times_have_a_step(ms: float, step: int) -> None:
    assert step_of(ms) == step


@pytest.mark.parametrize("ms", [0.11, 0.5, 1.0, 2.5, 17.3, 99.99, 812.4, 12_345.6, 3_600_000.0])
def test_middle_of_a_step_is_within_one_percent(ms: float) -> None:
    assert middle(step_of(ms)) == pytest.approx(ms, rel=0.01)


def samples(seed: int) -> list[float]:
    draw = random.Random(seed)
    number = draw.choice((1, 2, 30, 99, 100, 700, 20_000))
    spread = draw.choice((0.0, 0.4, 2.0))
    return [0.2 + draw.lognormvariate(draw.choice((1.0, 6.0)), spread) for _ in range(number)]


@pytest.mark.parametrize("seed", range(25))
def test_quantiles_are_within_one_percent(seed: int) -> None:
    values = sorted(samples(seed))
    for share in (0.0, 0.01, 0.5, 0.95, 1.0):
        assert quantile(distribution(values), share) == pytest.approx(percentile(values, share), rel=0.01)


def test_nothing_has_no_quantile() -> None:
    assert distribution([]) == 0
    assert quantile(0, 0.5) is None
    assert pack(0) is None
    assert unpack([]) == 0


@pytest.mark.parametrize("seed", range(25))
def test_packing_keeps_every_count(seed: int) -> None:
    values, more = samples(seed), samples(seed + 100)
    whole = distribution(values) + distribution(more)
    for packed in (pack(whole), pack(distribution(values), more)):
        assert packed is not None
        assert unpack([packed]) == whole
    parts = [pack(0, values), pack(distribution(more))]
    assert unpack([part for part in parts if part]) == whole


@pytest.mark.parametrize("count", [255, 256, 65_535, 65_536, 5_000_000])
def test_large_counts_survive(count: int) -> None:
    many = distribution([100.0]) * count + distribution([5.0])
    packed = pack(many)
    assert packed is not None
    assert unpack([packed]) == many
