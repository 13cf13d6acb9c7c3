"""What a page shows of a window of time: its totals, tables and plots, from one call of `tallies.tallies`."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, tzinfo
from typing import Any

from heliproxy import queries, queries_pages, tallies
from heliproxy.api.pages.window import Window
from heliproxy.filters import Filters
from heliproxy.queries import Costs
from heliproxy.tallies import Tally
from heliproxy.times import buckets, label

STEPS = 750
"""Steps of time that a plot has at most."""


@dataclass(frozen=True, slots=True)
class Cells:
    """The window's requests by several dimensions and, where plots need it, by step of time."""

    unit: str
    steps: list[datetime]
    """When each step begins."""
    names: list[str]
    """The steps as the keys have them."""
    found: dict[tuple[str, ...], dict[tallies.Key, Tally]]
    """By grouping."""
    total: Tally

    def costs(self, dim: str, sort: str | None = None) -> Costs:
        """What `queries.costs` would say for one dimension."""
        lines = [one.line(key) for key, one in self.found.get((dim,), {}).items()]
        lines = queries.arranged(lines, (dim,), sort, True)
        return Costs((dim,), lines, self.total.line(()), len(lines), self.approximate)

    @property
    def approximate(self) -> bool:
        """Whether percentiles are within 1 % only."""
        return bool(self.total.past_latencies)

    def groups(self, dim: str) -> dict[Any, Tally]:
        """By the dimension's values."""
        return {key[0]: one for key, one in self.found.get((dim,), {}).items()}

    def by_step(self) -> dict[str, Tally]:
        return {str(key[0]): one for key, one in self.found.get((self.unit,), {}).items()}

    def stacks(self, dim: str, name_of: Callable[[Any], str]) -> dict[tuple[str, str], Tally]:
        """By step of time and by what `name_of` makes of the dimension's values; sums alone, without times."""
        stacks: dict[tuple[str, str], Tally] = {}
        for (step, value), one in self.found.get((self.unit, dim), {}).items():
            stacks.setdefault((str(step), name_of(value)), Tally()).add(one.sums)
        return stacks


def scan(
    conn: sqlite3.Connection,
    window: Window,
    filters: Filters,
    dims: Sequence[str],
    now: datetime,
    zone: tzinfo,
    stacked: str | None = None,
) -> Cells:
    """Read the window, by each of `dims`; `stacked` is the one that plots are stacked by, if not the first."""
    with tallies.snapshot(conn):
        span = queries_pages.time_span(conn, filters)
        if span is None:
            return Cells("day", [], [], {}, Tally())
        unit = window.unit(span[0], now)
        # A row from a clock that runs ahead must not stretch the plot into the next century.
        latest = now + timedelta(days=1)
        end = min(window.until or max(now, span[1]), latest)
        steps = [begins for begins, _ in buckets(unit, window.since or span[0], end, zone)]
        shown = filters if span[1] <= latest else replace(filters, until=latest)
        stack = (unit, stacked or dims[0])
        groupings: list[tuple[str, ...]] = [(), (unit,), stack, *((dim,) for dim in dict.fromkeys(dims))]
        sums = tallies.tallies(conn, groupings, shown, zone, waits=True, untimed=[stack])
        found = dict(zip(groupings, sums, strict=True))
        whole = found[()] if shown is filters else tallies.tallies(conn, [()], filters, zone, waits=True)[0]
    names = [label(unit, step, zone) for step in steps[-STEPS:]]
    return Cells(unit, steps[-STEPS:], names, found, whole.get((), Tally()))
