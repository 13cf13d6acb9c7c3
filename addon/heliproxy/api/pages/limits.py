"""Rate limits and budgets: what was refused, and how much of each budget is spent."""

from __future__ import annotations

import logging
import sqlite3
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from heliproxy import queries, queries_pages
from heliproxy.api.pages.context import Pages
from heliproxy.api.pages.render import page
from heliproxy.api.pages.window import kept_params, read_window
from heliproxy.policy_store import BudgetStore

REFUSERS = {"rate_limited": "a rate limit of yours", "budget": "a budget of yours"}
"""Error types of refusals made here, and who made them."""

logger = logging.getLogger(__name__)


def budget_rows(pages: Pages) -> list[dict[str, Any]]:
    """Every budget with what is spent of it, the most used first; none when the file cannot be read."""
    try:
        with pages.state() as state:
            if state is None:
                return []
            states = BudgetStore(state, pages.log).states(pages.now().astimezone(pages.zone))
    except (sqlite3.Error, OSError) as e:
        logger.warning("budgets cannot be shown: %s", e)
        return []
    return [
        {
            "title": one.budget.description + (f": {one.value}" if one.value else ""),
            "spent_usd": one.spent_usd,
            "limit_usd": one.budget.amount_usd,
            "over": one.over,
            "action": one.budget.action,
        }
        for one in states
    ]


def limits(pages: Pages, request: Request) -> Response:
    params = request.query_params
    window = read_window(params, pages.now(), pages.zone)
    filters = replace(window.filters(), statuses=("429",))
    with pages.connection() as conn:
        limited = queries.costs(conn, ("user",), filters, sort="requests", zone=pages.zone)
        by_provider = queries.costs(conn, ("provider",), filters, sort="requests", zone=pages.zone)
        found = queries_pages.search(conn, filters, limit=25)
        refused = queries_pages.refusals(conn, window.filters())
    return page(
        request,
        "limits.html",
        window=window,
        params=kept_params(params),
        budgets=budget_rows(pages),
        limited=limited,
        by_provider=by_provider,
        refused=refused,
        refusers=REFUSERS,
        rows=found.rows,
        columns=[],
        zone=pages.zone,
    )
