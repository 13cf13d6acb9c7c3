"""The table of requests, and the same as CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from heliproxy import queries_pages
from heliproxy.api.pages.context import Pages
from heliproxy.api.pages.render import HEADERS, link, page
from heliproxy.api.pages.window import ONE, STATUSES, kept_params, read_filters, read_window
from heliproxy.csv_cells import safe_cell
from heliproxy.filters import Filters
from heliproxy.queries import Row
from heliproxy.rounding import without_noise

SHOWN = 50
EXPORTED = 100_000
"""Rows of one download."""
EXPORT_STEP = 500
CSV_COLUMNS = (
    "id", "created_at", "provider", "model", "status", "error", "stream", "latency_ms", "ttft_ms", "input_tokens",
    "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens", "usage_source", "cost_usd",
    "saved_usd", "cache", "user_id", "session_id", "session_name", "session_path", "finish_reason", "preview",
    "answer_preview",
)  # fmt: skip


def parse_place(text: str | None) -> tuple[str, str] | None:
    """Where a page begins, from the URL: `created_at~id`."""
    created_at, mark, request_id = (text or "").partition("~")
    return (created_at[:40], request_id[:200]) if mark else None


def place_text(place: tuple[str, str] | None) -> str | None:
    return None if place is None else f"{place[0]}~{place[1]}"


def requests(pages: Pages, request: Request) -> Response:
    params = request.query_params
    window = read_window(params, pages.now(), pages.zone, default="all")
    filters, problems = read_filters(params)
    before = parse_place(params.get("before"))
    text = params.get("q", "").strip()[:200]
    kept = kept_params(params)
    with pages.connection() as conn:
        found = queries_pages.search(conn, window.filters(filters), text, after=before, limit=SHOWN)
        models = queries_pages.recent_values(conn, "model")
        users = queries_pages.recent_values(conn, "user_id")
        known = queries_pages.recent_properties(conn)
    return page(
        request,
        "requests.html",
        window=window,
        params={name: kept.get(name) for name in ("q", *ONE, "range", "since", "until", "before")} | kept,
        filters={"property": params.getlist("property")[:20]},
        statuses=STATUSES,
        columns=params.getlist("column")[:10],
        known_properties=known,
        models=models,
        users=users,
        chips=chips(kept),
        problems=problems,
        rows=found.rows,
        older=place_text(found.next),
        searched_to=found.searched_to,
        zone=pages.zone,
        live=None if before or window.until else "requests",
    )


def chips(kept: dict[str, Any]) -> list[tuple[str, str]]:
    """Each filter as a title and the URL without it."""
    found: list[tuple[str, str]] = []
    for name in (*ONE, "q"):
        values = as_list(kept.get(name))
        for value in values:
            title = f"contains “{value}”" if name == "q" else f"{name}: {value}"
            rest = [other for other in values if other != value]
            found.append((title, link("/requests", kept, before=None, **{name: rest})))
    for item in kept.get("property", []):
        rest = [other for other in kept["property"] if other != item]
        found.append((item.replace("=", ": ", 1), link("/requests", kept, before=None, property=rest)))
    return found


def as_list(value: Any) -> list[str]:
    return [] if not value else [value] if isinstance(value, str) else value


def export_rows(pages: Pages, filters: Filters, text: str) -> Iterator[Row]:
    """Matching rows, newest first, at most `EXPORTED`; read in pages so that nothing waits and little is held."""
    place: tuple[str, str] | None = None
    sent = 0
    while sent < EXPORTED:
        with pages.connection() as conn:
            found = queries_pages.search(conn, filters, text, after=place, limit=EXPORT_STEP)
        yield from found.rows
        sent += len(found.rows)
        place = found.next
        if place is None:
            return


def export_csv(pages: Pages, request: Request) -> Response:
    """The rows the page shows, all of them, as CSV; text that a spreadsheet would run as a formula is quoted."""
    rows = _exported(pages, request)

    def lines() -> Iterator[str]:
        yield ",".join(CSV_COLUMNS) + "\r\n"
        for row in rows:
            out = io.StringIO()
            csv.writer(out).writerow([safe_cell(row[name]) for name in CSV_COLUMNS])
            yield out.getvalue().encode("utf-8", "replace").decode()

    return StreamingResponse(lines(), media_type="text/csv; charset=utf-8", headers=_download("requests.csv"))


def export_json(pages: Pages, request: Request) -> Response:
    """The same as newline-delimited JSON objects in a list."""
    rows = _exported(pages, request)

    def lines() -> Iterator[str]:
        mark = "["
        for row in rows:
            yield mark + "\n" + json.dumps({name: without_noise(value) for name, value in row.items()})
            mark = ","
        yield "[]\n" if mark == "[" else "\n]\n"

    return StreamingResponse(lines(), media_type="application/json", headers=_download("requests.json"))


def _exported(pages: Pages, request: Request) -> Iterator[Row]:
    params = request.query_params
    window = read_window(params, pages.now(), pages.zone, default="all")
    filters, _ = read_filters(params)
    return export_rows(pages, window.filters(filters), params.get("q", "").strip()[:200])


def _download(name: str) -> dict[str, str]:
    return HEADERS | {"Content-Disposition": f'attachment; filename="{name}"'}
