"""Users and properties: requests, tokens and dollars by value."""

from __future__ import annotations

import sqlite3
from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from heliproxy import queries, queries_pages, tallies
from heliproxy.api.pages.cells import scan
from heliproxy.api.pages.context import Pages
from heliproxy.api.pages.figures import charts, group_name, group_url, line_values
from heliproxy.api.pages.render import page
from heliproxy.api.pages.window import Window, chosen, kept_params, read_filters, read_window
from heliproxy.filters import Filters
from heliproxy.queries import Costs

SHOWN = 200


def users(pages: Pages, request: Request) -> Response:
    params = request.query_params
    now = pages.now()
    window = read_window(params, now, pages.zone)
    found_filters, problems = read_filters(params)
    filters = window.filters(found_filters)
    with pages.connection() as conn:
        sort = _sort(params.get("sort"))
        costs, plots = grouped(pages, conn, window, filters, "user", sort, now)
        key = ("seen", window.key, chosen(filters))
        seen = pages.kept.get(key, lambda: queries_pages.seen_times(conn, filters))
    rows = [row | {"seen": seen.get(row["key"][0] or "")} for row in values("user", costs, window)]
    return page(
        request,
        "groups.html",
        title="Users",
        column="User",
        path="/users",
        key=None,
        keys=[],
        window=window,
        problems=problems,
        params=kept_params(params),
        rows=rows,
        total=costs.total,
        groups=costs.groups,
        top=_top(costs),
        plots=plots,
        sort=_sort(params.get("sort")) or "cost",
        zone=pages.zone,
        hint="Set the header Helicone-User-Id, or the API's own user field.",
    )


def properties(pages: Pages, request: Request) -> Response:
    params = request.query_params
    now = pages.now()
    window = read_window(params, now, pages.zone)
    found_filters, problems = read_filters(params)
    filters = window.filters(found_filters)
    with pages.connection() as conn:
        keys = queries_pages.property_keys(conn, filters)
        key = params.get("key", "")[:64] or (keys[0][0] if keys else "")
        costs = Costs((), [], tallies.Line(()), 0)
        plots: dict[str, Any] = {}
        if key:
            sort = _sort(params.get("sort"))
            costs, plots = grouped(pages, conn, window, filters, f"property:{key}", sort, now)
    return page(
        request,
        "groups.html",
        title="Properties",
        column=key,
        path="/properties",
        key=key,
        keys=keys,
        window=window,
        problems=problems,
        params=kept_params(params) | ({"key": key} if key else {}),
        rows=[row | {"seen": None} for row in values(f"property:{key}", costs, window)],
        total=costs.total,
        groups=costs.groups,
        top=_top(costs),
        plots=plots,
        sort=_sort(params.get("sort")) or "cost",
        zone=pages.zone,
        hint="Set headers such as Helicone-Property-Environment: production; each becomes a column.",
    )


def grouped(
    pages: Pages,
    conn: sqlite3.Connection,
    window: Window,
    filters: Filters,
    group: str,
    sort: str | None,
    now: datetime,
) -> tuple[Costs, dict[str, Any]]:
    """The report and the plots by one group."""

    def compute() -> tuple[Costs, dict[str, Any]]:
        cells = scan(conn, window, filters, (group,), now, pages.zone)
        return cells.costs(group, sort), charts(cells, group, pages.zone)

    key = ("groups", window.key, chosen(filters), group, sort)
    found: tuple[Costs, dict[str, Any]] = pages.kept.get(key, compute)
    return found


def _sort(name: str | None) -> str | None:
    return name if name in queries.SORTS else None


def _top(costs: Costs) -> float:
    return max((line.cost_usd or 0.0 for line in costs.lines), default=0.0)


def values(group: str, costs: Costs, window: Window) -> list[dict[str, Any]]:
    return [
        line_values(line)
        | {"name": group_name(group, line.key[0]), "url": group_url(group, line.key[0], window), "tokens": line.tokens}
        for line in costs.lines[:SHOWN]
    ]
