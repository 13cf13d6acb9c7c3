"""The first page: what it all cost, over time and by whatever it is grouped by."""

from __future__ import annotations

import sqlite3
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from heliproxy import queries, queries_pages
from heliproxy.api.pages.context import Pages
from heliproxy.api.pages.limits import budget_rows
from heliproxy.api.pages.render import link, page
from heliproxy.api.pages.welcome import welcome
from heliproxy.api.pages.window import Window, kept_params, read_filters, read_window
from heliproxy.conversation import visible
from heliproxy.queries import Filters, Line, Tally
from heliproxy.times import buckets, label, stored_time

STACKED = 7
"""Groups with a colour of their own; the others share the last."""
TOP = 8
GROUPINGS = (
    ("model", "model"),
    ("provider", "provider"),
    ("user", "user"),
    ("status", "status"),
    ("host", "host"),
    ("session", "session"),
)
NOBODY = {"user": "no user", "session": "no session", "model": "unknown model"}


def overview(pages: Pages, request: Request) -> Response:
    params = request.query_params
    now = pages.now()
    window = read_window(params, now, pages.zone)
    filters, problems = read_filters(params)
    filters = window.filters(filters)
    with pages.connection() as conn:
        if queries_pages.is_empty(conn):
            return welcome(pages, request)
        known = queries_pages.recent_properties(conn)
        groupings = [*GROUPINGS, *((f"property:{key}", key) for key in known)]
        by = params.get("by", "model")
        if by not in dict(groupings):
            by = "model"
        key: tuple[Any, ...] = ("overview", window.name, window.since_text, window.until_text, chosen(filters), by)
        if window.name == "today":
            key = (*key, window.since)
        figures = pages.kept.get(key, lambda: compute(conn, window, filters, by, now, pages))
    return page(
        request,
        "overview.html",
        window=window,
        params=kept_params(params),
        by=by,
        groupings=groupings,
        notices=[*filter(None, [window.problem]), *problems],
        budgets=budget_rows(pages)[:TOP],
        health=pages.health(),
        live="overview",
        **figures,
    )


def chosen(filters: Filters) -> tuple[Any, ...]:
    """What tells two sets of filters apart, time left out."""
    return tuple(getattr(filters, name) for name in Filters.__slots__ if name not in ("since", "until"))


def compute(
    conn: sqlite3.Connection, window: Window, filters: Filters, by: str, now: datetime, pages: Pages
) -> dict[str, Any]:
    """Everything that needs a look at every row of the window."""
    models = queries.costs(conn, ("model",), filters, zone=pages.zone)
    waits = queries_pages.first_tokens(conn, filters)
    ordered = sorted(wait for _, wait in waits)
    total = line_values(models.total)
    total |= {"ttft_p50_ms": queries.percentile(ordered, 0.5), "ttft_p95_ms": queries.percentile(ordered, 0.95)}
    tables = [table("Models", "model", models, window)]
    for group, title in (("user", "Users"), ("provider", "Providers")):
        tables.append(table(title, group, queries.costs(conn, (group,), filters, zone=pages.zone), window))
    if by not in ("model", "user", "provider"):
        name = by.removeprefix("property:")
        tables.insert(1, table(name.capitalize(), by, queries.costs(conn, (by,), filters, zone=pages.zone), window))
    return {"total": total, "tables": tables, "charts": charts(conn, window, filters, by, now, pages, waits)}


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


def table(title: str, group: str, costs: queries.Costs, window: Window, most: int = TOP) -> dict[str, Any]:
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


def charts(
    conn: sqlite3.Connection,
    window: Window,
    filters: Filters,
    by: str,
    now: datetime,
    pages: Pages,
    waits: list[tuple[str, float]] | None = None,
) -> dict[str, Any]:
    """The plots' data: one scan gives every step of time and group. `waits` are times to the first token."""
    zone = pages.zone
    span = queries_pages.time_span(conn, filters)
    if span is None:
        return dict.fromkeys(("cost", "requests", "tokens", "latency", "ttft", "errors", "saved"), empty_chart())
    unit = window.unit(span[0], now)
    start = window.since or span[0]
    # A row from a clock that runs ahead must not stretch the plot into the next century.
    end = min(window.until or now, max(now, span[1]), now + timedelta(days=1))
    steps = [begins for begins, _ in buckets(unit, start, end, zone)][-750:]
    names = [label(unit, step, zone) for step in steps]
    tallies = queries.tally(conn, (unit, by), filters if window.until else replace(filters, until=end), zone)
    groups = largest(tallies)
    axis = axis_of(steps, unit, zone)
    steps_total = merged(tallies, lambda key: key[0])
    lines = {key: tally.line(()) for key, tally in steps_total.items()}
    stacks = {
        key: tally.line(()) for key, tally in merged(tallies, lambda key: (key[0], groups.get(key[1], "other"))).items()
    }
    shown = [*dict.fromkeys(groups.values())] + (["other"] if len({k[1] for k in tallies}) > len(groups) else [])

    def stacked(title: str, field: str, form: str) -> dict[str, Any]:
        series = [
            {
                "name": name if name == "other" else group_name(by, name or None),
                "values": [value_of(stacks.get((step, name)), field) for step in names],
            }
            for name in shown
        ]
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
        "ttft": axis | {"kind": "lines", "format": "ms", "title": "", "series": waiting(steps, waits or [])},
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
    ticks = [[i, at.strftime("%-d %b" if unit == "hour" and at.hour == 0 else form)] for i, at in enumerate(local)]
    return {
        "times": list(range(len(steps))),
        "labels": [at.strftime(full) for at in local],
        "starts": [step.astimezone(UTC).isoformat(timespec="seconds") for step in steps],
        "ticks": ticks,
        "zoom": True,
    }


def largest(tallies: dict[queries.Key, Tally]) -> dict[Any, Any]:
    """The groups that get a colour, each its own name: the dearest, then the most used."""
    sums = merged(tallies, lambda key: key[1])
    lines = {key: tally.line(()) for key, tally in sums.items()}
    order = sorted(lines, key=lambda key: (-(lines[key].cost_usd or 0), -lines[key].requests, str(key)))
    return {key: "" if key is None else key for key in order[:STACKED]}


def merged(tallies: dict[queries.Key, Tally], key_of: Any) -> dict[Any, Tally]:
    found: dict[Any, Tally] = {}
    for key, one in tallies.items():
        found.setdefault(key_of(key), Tally()).merge(one)
    return found


def value_of(line: Line | None, field: str) -> float | None:
    return None if line is None else getattr(line, field)


def fresh(line: Line | None) -> int | None:
    """Input tokens that did not come from the provider's cache."""
    if line is None or line.input_tokens is None:
        return None
    return max(0, line.input_tokens - (line.cache_read_tokens or 0))
