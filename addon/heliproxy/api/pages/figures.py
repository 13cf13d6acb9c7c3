"""Tables and plots of the sums of a window of time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from typing import Any

from heliproxy.api.pages.cells import Cells
from heliproxy.api.pages.render import link
from heliproxy.api.pages.window import Window
from heliproxy.conversation import visible
from heliproxy.queries import Costs
from heliproxy.tallies import Line, Tally

STACKED = 7
"""Groups with a colour of their own; the others share the last."""
TOP = 8
NOBODY = {"user": "no user", "session": "no session", "model": "unknown model"}
CHARTS = ("cost", "requests", "tokens", "latency", "ttft", "errors", "saved")


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


def charts(cells: Cells, by: str, zone: tzinfo) -> dict[str, Any]:
    """The plots' data, stacked by one dimension of the cells."""
    if not cells.found:
        return dict.fromkeys(CHARTS, empty_chart())
    names = cells.names
    groups = largest(cells.groups(by))
    axis = axis_of(cells.steps, cells.unit, zone)
    steps_total = cells.by_step()
    lines = {step: tally.line(()) for step, tally in steps_total.items()}
    parts = cells.stacks(by, lambda value: groups.get(value, "other"))
    stacks = {key: tally.line(()) for key, tally in parts.items()}
    shown = [*dict.fromkeys(groups.values())] + (["other"] if any(key[1] == "other" for key in parts) else [])

    def stacked(title: str, field: str, form: str) -> dict[str, Any]:
        # A group keeps its colour in every plot, and is named only where there is something of it to see.
        series = []
        for colour, name in enumerate(shown):
            values = [value_of(stacks.get((step, name)), field) for step in names]
            if any(values):
                group = name if name == "other" else group_name(by, name or None)
                series.append({"name": group, "values": values, "colour": colour})
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
        "ttft": axis | {"kind": "lines", "format": "ms", "title": "", "series": waiting(names, steps_total)},
        "errors": stacked("Errors", "errors", "count"),
        "saved": whole((("saved", "saved_usd"),), "money"),
    }


def waiting(names: Sequence[str], steps: Mapping[str, Tally]) -> list[dict[str, Any]]:
    """p50 and p95 of the first token in each step."""
    found = [steps[name].wait_quantiles((0.50, 0.95)) if name in steps else (None, None) for name in names]
    return [{"name": name, "values": [pair[i] for pair in found]} for i, name in enumerate(("p50", "p95"))]


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
