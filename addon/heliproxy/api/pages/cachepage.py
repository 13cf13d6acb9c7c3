"""The cache: hits, money and time saved, the answers used most, and clearing it."""

from __future__ import annotations

import logging
import sqlite3
from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from heliproxy import queries_pages
from heliproxy.api.pages.cells import scan
from heliproxy.api.pages.context import Pages
from heliproxy.api.pages.figures import charts
from heliproxy.api.pages.render import HEADERS, page
from heliproxy.api.pages.window import Window, chosen, kept_params, read_filters, read_window
from heliproxy.filters import Filters
from heliproxy.policy_store import CacheStore

logger = logging.getLogger(__name__)


def cache(pages: Pages, request: Request) -> Response:
    params = request.query_params
    now = pages.now()
    window = read_window(params, now, pages.zone)
    found_filters, problems = read_filters(params)
    filters = window.filters(found_filters)
    with pages.connection() as conn:
        key = ("cache", window.key, chosen(filters))
        found = pages.kept.get(key, lambda: compute(conn, window, filters, now, pages))
    return page(
        request,
        "cache.html",
        window=window,
        problems=problems,
        params=kept_params(params),
        stats=stats(pages),
        zone=pages.zone,
        **found,
    )


def compute(conn: sqlite3.Connection, window: Window, filters: Filters, now: datetime, pages: Pages) -> dict[str, Any]:
    """Everything that the whole window goes into."""
    cells = scan(conn, window, filters, ("model",), now, pages.zone)
    costs = cells.costs("model", "saved")
    return {
        "total": costs.total,
        "models": [line for line in costs.lines if line.hits][:20],
        "entries": queries_pages.top_cached(conn, filters),
        "saved_ms": queries_pages.saved_time(conn, filters),
        "plots": charts(cells, "model", pages.zone),
    }


def stats(pages: Pages) -> dict[str, Any] | None:
    """What is stored now; None when nothing ever was, or it cannot be read."""
    try:
        with pages.state() as state:
            return None if state is None else CacheStore(state).stats(pages.now().timestamp())
    except (sqlite3.Error, OSError) as e:
        logger.warning("the cache cannot be shown: %s", e)
        return None


def clear(pages: Pages, request: Request) -> Response:
    """Remove every cached answer; JSON in and out, as the rest of the API."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return JSONResponse({"data": None, "error": "expected content-type application/json"}, 415, HEADERS)
    try:
        with pages.state() as state:
            removed = 0 if state is None else CacheStore(state).clear()
    except (sqlite3.Error, OSError) as e:
        return JSONResponse({"data": None, "error": str(e)}, 500, HEADERS)
    return JSONResponse({"data": {"removed": removed}, "error": None}, 200, HEADERS)
