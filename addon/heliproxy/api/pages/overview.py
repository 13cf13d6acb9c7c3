"""The first page: what it all cost, over time and by whatever it is grouped by."""

from __future__ import annotations

import sqlite3
from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from heliproxy import queries, queries_pages
from heliproxy.api.pages.cells import scan
from heliproxy.api.pages.context import Pages
from heliproxy.api.pages.figures import TOP, charts, line_values, table
from heliproxy.api.pages.limits import budget_rows
from heliproxy.api.pages.render import page
from heliproxy.api.pages.welcome import welcome
from heliproxy.api.pages.window import Window, chosen, kept_params, read_filters, read_window
from heliproxy.filters import Filters
from heliproxy.times import parse_span

GROUPINGS = (
    ("model", "model"),
    ("provider", "provider"),
    ("user", "user"),
    ("status", "status"),
    ("host", "host"),
    ("session", "session"),
)


def overview(pages: Pages, request: Request) -> Response:
    params = request.query_params
    now = pages.now()
    filters, problems = read_filters(params)
    with pages.connection() as conn:
        logged = queries_pages.time_span(conn, Filters())
        if logged is None:
            return welcome(pages, request)
        # On its first day a log has nothing to compare days by; its hours say more.
        today = parse_span("today", now, pages.zone)[0]
        window = read_window(params, now, pages.zone, default="today" if logged[0] >= today else "7d")
        filters = window.filters(filters)
        known = queries_pages.recent_properties(conn)
        groupings = [*GROUPINGS, *((f"property:{key}", key) for key in known)]
        by = params.get("by", "model")
        if by not in dict(groupings):
            by = "model"
        key = ("overview", window.key, chosen(filters), by)
        figures = pages.kept.get(key, lambda: compute(conn, window, filters, by, now, pages))
    return page(
        request,
        "overview.html",
        window=window,
        params=kept_params(params),
        by=by,
        groupings=groupings,
        problems=problems,
        budgets=budget_rows(pages)[:TOP],
        health=pages.health(),
        live="overview",
        **figures,
    )


def compute(
    conn: sqlite3.Connection, window: Window, filters: Filters, by: str, now: datetime, pages: Pages
) -> dict[str, Any]:
    """Everything that the whole window goes into."""
    tabled = [("model", "Models"), ("user", "Users"), ("provider", "Providers")]
    if by not in dict(tabled):
        tabled.insert(1, (by, by.removeprefix("property:").capitalize()))
    cells = scan(conn, window, filters, [dim for dim, _ in tabled], now, pages.zone, stacked=by)
    total = line_values(cells.total.line(()))
    total["approximate"] = cells.approximate
    total["lost"] = queries.lost_calls(conn, filters)
    total |= zip(("ttft_p50_ms", "ttft_p95_ms"), cells.total.wait_quantiles((0.50, 0.95)), strict=True)
    tables = [table(title, dim, cells.costs(dim), window) for dim, title in tabled]
    return {"total": total, "tables": tables, "charts": charts(cells, by, pages.zone)}
