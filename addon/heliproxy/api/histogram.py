"""Distributions as Helicone's pages draw them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from heliproxy.api.endpoint import TEXT, Schema, a_list, an_object
from heliproxy.api.fields import Fields
from heliproxy.tallies import percentile

BINS = 10
P_SIZES = ("p50", "p75", "p95", "p99", "p99.9")
HISTOGRAM: Schema = a_list(
    an_object("range_start range_end value", range_start=TEXT, range_end=TEXT, value={"type": "number"})
)


def bounds(fields: Fields, values: Sequence[float]) -> tuple[float, float] | None:
    """The range worth drawing of sorted values: up to a percentile, or the middle half; None without values."""
    if not values:
        return None
    size = fields.choice("pSize", P_SIZES, "p99.9")
    low, high = values[0], values[math.ceil(float(size[1:]) / 100 * len(values)) - 1]
    if fields.flag("useInterquartile"):
        low, high = percentile(values, 0.25) or 0.0, percentile(values, 0.75) or 0.0
    return low, high


def histogram(fields: Fields, values: Sequence[float]) -> list[dict[str, Any]]:
    """Counts in equal ranges; values beyond the bounds are left out."""
    ordered = sorted(values)
    found = bounds(fields, ordered)
    if found is None:
        return []
    low, high = found
    width = (high - low) / BINS
    if width <= 0:
        return [{"range_start": text(low), "range_end": text(high), "value": len(ordered)}]
    counts = [0] * BINS
    for value in ordered:
        if low <= value <= high:
            counts[min(BINS - 1, int((value - low) / width))] += 1
    return [
        {"range_start": text(low + i * width), "range_end": text(low + (i + 1) * width), "value": count}
        for i, count in enumerate(counts)
    ]


def text(number: float) -> str:
    return f"{number:.10g}"
