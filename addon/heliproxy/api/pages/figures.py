"""What the pages with plots show of a window of time: one scan of its rows gives totals, tables and plots alike."""

from __future__ import annotations

import sqlite3
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

from heliproxy import queries, queries_pages
from heliproxy.api.pages.render import link
from heliproxy.api.pages.window import Window
from heliproxy.conversation import visible
from heliproxy.queries import Costs, Filters, Line, Tally
from heliproxy.times import buckets, label, stored_time

STACKED = 7
"""Groups with a colour of their own; the others share the last."""
TOP = 8
STEPS = 750
"""Steps of time that a plot has at most."""
NOBODY = {"user": "no user", "session": "no session", "model": "unknown model"}
CHARTS = ("cost", "requests", "tokens", "latency", "ttft", "errors", "saved")


@dataclass(frozen=True, slots=True)
class Cells:
    """The window's rows summed up by step of time and by every combination of `dims`."""

    dims: tuple[str, ...]
    unit: str
    steps: list[datetime]
    """When each step begins."""
    names: list[str]
    """The steps as the keys have them."""
    tallies: dict[queries.Key, Tally]
    total: Tally

    def merged(self, key_of: Callable[[queries.Key], Any], latencies: bool = True) -> dict[Any, Tally]:
        """The cells put together by what `key_of` makes of their keys; without latencies when nobody asks for them."""
        found: dict[Any, Tally] = {}
        for key, one in self.tallies.items():
            tally = found.setdefault(key_of(key), Tally())
            if latencies:
                tally.merge(one)
            else:
                tally.add(one.sums, None)
        return found

    def place(self, dim: str) -> int:
        """Where a dimension stands in the keys; the first place is the step's."""
        return self.dims.index(dim) + 1

    def costs(self, dim: str, sort: str | None = None) -> Costs:
        """What `queries.costs` would say for one dimension."""
        place = self.place(dim)
        lines = [one.line((value,)) for value, one in self.merged(lambda key: key[place]).items()]
        return Costs((dim,), queries.arranged(lines, (dim,), sort, True), self.total.line(()), len(lines))


def scan(
    conn: sqlite3.Connection, window: Window, filters: Filters, dims: Sequence[str], now: datetime, zone: tzinfo
) -> Cells:
    """Read the window once."""
    dims = tuple(dict.fromkeys(dims))
    span = queries_pages.time_span(conn, filters)
    if span is None:
        return Cells(dims, "day", [], [], {}, Tally())
    unit = window.unit(span[0], now)
    # A row from a clock that runs ahead must not stretch the plot into the next century.
    latest = now + timedelta(days=1)
    end = min(window.until or max(now, span[1]), latest)
    steps = [begins for begins, _ in buckets(unit, window.since or span[0], end, zone)]
    shown = filters if span[1] <= latest else replace(filters, until=latest)
    tallies = queries.tally(conn, (unit, *dims), shown, zone)
    total = Tally()
    for one in tallies.values():
        total.merge(one)
    if shown is not filters:
        total = next(iter(queries.tally(conn, (), filters, zone).values()), total)
    return Cells(dims, unit, steps[-STEPS:], [label(unit, step, zone) for step in steps[-STEPS:]], tallies, total)


def line_values(line: Line) -> dict[str, Any]:
    return {name: getattr(line, name) for name in Line.__slots__}


def group_name(group: str, value: Any) -> str:
    if value is None or value == "":
        return NOBODY.get(group, f"no {group.removeprefix('property:')}")
    return visible(str(value))


def group_url(group: str, value: Any, window: Window) -> str | None:
    """The requests of one group, in the same window."""
    if value is None:
        return None
    times = (
        {"range": window.name} if window.name != "custom" else {"since": window.since_text, "until": window.until_text}
    )
    if group.startswith("property:"):
        return link("/requests", times, property=f"{group.removeprefix('property:')}={value}")
    return link("/requests", times, **{group: value})


def table(title: str, group: str, costs: Costs, window: Window, most: int = TOP) -> dict[str, Any]:
    rows = [
        line_values(line) | {"name": group_name(group, line.key[0]), "url": group_url(group, line.key[0], window)}
        for line in costs.lines[:most]
    ]
    more = {"user": "/users"}.get(group)
    if group.startswith("property:"):
        more = link("/properties", {"key": group.removeprefix("property:")})
    column = group.removeprefix("property:").capitalize()
    top = max((line.cost_usd or 0.0 for line in costs.lines[:most]), default=0.0)
    return {"title": title, "column": column, "rows": rows, "top": top, "more": more}


def charts(cells: Cells, by: str, zone: tzinfo, waits: list[tuple[str, float]] | None = None) -> dict[str, Any]:
    """The plots' data, stacked by one dimension of the cells. `waits` are times to the first token."""
    if not cells.tallies:
        return dict.fromkeys(CHARTS, empty_chart())
    place, names = cells.place(by), cells.names
    groups = largest(cells.merged(lambda key: key[place], latencies=False))
    axis = axis_of(cells.steps, cells.unit, zone)
    steps_total = cells.merged(lambda key: key[0])
    lines = {key: tally.line(()) for key, tally in steps_total.items()}
    parts = cells.merged(lambda key: (key[0], groups.get(key[place], "other")), latencies=False)
    stacks = {key: tally.line(()) for key, tally in parts.items()}
    shown = [*dict.fromkeys(groups.values())] + (["other"] if any(key[1] == "other" for key in parts) else [])

    def stacked(title: str, field: str, form: str) -> dict[str, Any]:
        # A group keeps its colour in every plot, and is named only where there is something of it to see.
        series = []
        for colour, name in enumerate(shown):
            values = [value_of(stacks.get((step, name)), field) for step in names]
            if any(values):
                title = name if name == "other" else group_name(by, name or None)
                series.append({"name": title, "values": values, "colour": colour})
        return axis | {"kind": "bars", "format": form, "series": series, "title": title}

    def whole(fields: Iterable[tuple[str, str]], form: str, kind: str = "bars") -> dict[str, Any]:
        series = [
            {"name": name, "values": [value_of(lines.get(step), field) for step in names]} for name, field in fields
        ]
        return axis | {"kind": kind, "format": form, "series": series, "title": ""}

    tokens = axis | {
        "kind": "bars",
        "format": "count",
        "title": "",
        "series": [
            {"name": "input, fresh", "values": [fresh(lines.get(step)) for step in names]},
            {"name": "input, cached", "values": [value_of(lines.get(step), "cache_read_tokens") for step in names]},
            {"name": "output", "values": [value_of(lines.get(step), "output_tokens") for step in names]},
        ],
    }
    return {
        "cost": stacked("Cost", "cost_usd", "money"),
        "requests": stacked("Requests", "requests", "count"),
        "tokens": tokens,
        "latency": whole((("p50", "p50_ms"), ("p95", "p95_ms")), "ms", "lines"),
        "ttft": axis | {"kind": "lines", "format": "ms", "title": "", "series": waiting(cells.steps, waits or [])},
        "errors": stacked("Errors", "errors", "count"),
        "saved": whole((("saved", "saved_usd"),), "money"),
    }


def waiting(steps: list[datetime], waits: list[tuple[str, float]]) -> list[dict[str, Any]]:
    """p50 and p95 of the first token in each step."""
    starts = [stored_time(step) for step in steps]
    found: list[list[float]] = [[] for _ in steps]
    for at, wait in waits:
        place = bisect_right(starts, at) - 1
        if place >= 0:
            found[place].append(wait)
    for values in found:
        values.sort()
    return [
        {"name": name, "values": [queries.percentile(values, share) for values in found]}
        for name, share in (("p50", 0.50), ("p95", 0.95))
    ]


def empty_chart() -> dict[str, Any]:
    return {
        "kind": "bars",
        "format": "count",
        "series": [],
        "times": [],
        "labels": [],
        "starts": [],
        "ticks": [],
        "zoom": False,
        "title": "",
    }


def axis_of(steps: list[datetime], unit: str, zone: Any) -> dict[str, Any]:
    """Steps are drawn side by side, whatever their length: a day of 23 hours is as wide as the others."""
    local = [step.astimezone(zone) for step in steps]
    form = "%H:%M" if unit == "hour" else "%b %Y" if unit == "month" else "%-d %b"
    full = "%a %-d %b %H:%M" if unit == "hour" else "%B %Y" if unit == "month" else "%a %-d %b %Y"
    # Of hours, the plot also needs to know which day they belong to, and which of them divide it evenly.
    ticks = [
        [i, at.strftime(form), at.hour, at.strftime("%-d %b")] if unit == "hour" else [i, at.strftime(form)]
        for i, at in enumerate(local)
    ]
    return {
        "times": list(range(len(steps))),
        "labels": [at.strftime(full) for at in local],
        "starts": [step.astimezone(UTC).isoformat(timespec="seconds") for step in steps],
        "ticks": ticks,
        "zoom": True,
    }


def largest(tallies: dict[Any, Tally]) -> dict[Any, Any]:
    """The groups that get a colour, each with the name it is stacked by: the dearest, then the most used."""
    lines = {key: tally.line(()) for key, tally in tallies.items()}
    order = sorted(lines, key=lambda key: (-(lines[key].cost_usd or 0), -lines[key].requests, str(key)))
    return {key: "" if key is None else key for key in order[:STACKED]}


def value_of(line: Line | None, field: str) -> float | None:
    return None if line is None else getattr(line, field)


def fresh(line: Line | None) -> int | None:
    """Input tokens that did not come from the provider's cache."""
    if line is None or line.input_tokens is None:
        return None
    return max(0, line.input_tokens - (line.cache_read_tokens or 0))
