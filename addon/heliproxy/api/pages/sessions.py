"""Sessions: the list, and one session as tree, timeline or chat."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from heliproxy import queries
from heliproxy.api.pages.context import Pages
from heliproxy.api.pages.render import duration, link, money, page, status_word
from heliproxy.api.pages.window import kept_params, read_filters, read_window
from heliproxy.conversation import Conversation, conversation
from heliproxy.queries import Node, Row
from heliproxy.statuses import is_failed

SHOWN = 50
CHAT = 60
"""Requests whose conversation is shown; the last ones of a longer session."""
LANES = 400
"""Bars of a timeline."""


def sessions(pages: Pages, request: Request) -> Response:
    params = request.query_params
    window = read_window(params, pages.now(), pages.zone)
    filters, problems = read_filters(params)
    text = params.get("q", "").strip()[:200]
    start = int(params["offset"]) if params.get("offset", "").isascii() and params.get("offset", "").isdigit() else 0
    with pages.connection() as conn:
        rows = queries.session_list(
            conn, window.filters(filters), limit=SHOWN + 1, offset=min(start, 1_000_000), search=text
        )
    kept = kept_params(params)
    return page(
        request,
        "sessions.html",
        window=window,
        problems=problems,
        params=kept,
        q=text,
        rows=rows[:SHOWN],
        newer=link("/sessions", kept, offset=max(0, start - SHOWN) or None) if start else None,
        older=link("/sessions", kept, offset=start + SHOWN) if len(rows) > SHOWN else None,
        top=max((row["cost_usd"] or 0.0 for row in rows), default=0.0),
        zone=pages.zone,
    )


def session(pages: Pages, request: Request) -> Response:
    session_id = request.path_params["session_id"]
    view = request.query_params.get("view", "tree")
    with pages.connection() as conn:
        root = queries.session_tree(conn, session_id)
        if root is None:
            return page(request, "error.html", 404, title="No such session", text="No request carries this session id.")
        rows = sorted(in_tree(root), key=lambda row: (row["created_at"], row["id"]))
        talks = [(row, read(conn, row)) for row in rows[-CHAT:]] if view == "chat" else []
    bars, shortened = lanes(rows) if view == "timeline" else ([], False)
    return page(
        request,
        "session.html",
        session_id=session_id,
        name=next((row["session_name"] for row in reversed(rows) if row["session_name"]), None),
        view=view if view in ("tree", "timeline", "chat") else "tree",
        root=root,
        rows=rows,
        total=totals(rows),
        lanes=bars,
        shortened=shortened,
        chat=chat(talks),
        skipped=max(0, len(rows) - CHAT),
        zone=pages.zone,
    )


def in_tree(node: Node) -> list[Row]:
    found = list(node.requests)
    for child in node.children.values():
        found += in_tree(child)
    return found


def read(conn: Any, row: Row) -> Conversation:
    from heliproxy.bodies import read_body

    body = read_body(conn, row["id"])
    if body is None:
        return Conversation()
    return conversation(body.request, body.response, body.request_type, body.response_type)


def totals(rows: list[Row]) -> dict[str, Any]:
    """The session's own sums; None where nothing is known."""

    def total(name: str) -> Any:
        known = [row[name] for row in rows if row[name] is not None]
        return sum(known) if known else None

    spans = [span(row) for row in rows]
    return {
        "requests": len(rows),
        "errors": sum(1 for row in rows if is_failed(row["status"], row["error_type"])),
        "cost_usd": total("cost_usd"),
        "saved_usd": total("saved_usd"),
        "input_tokens": total("input_tokens"),
        "output_tokens": total("output_tokens"),
        "busy_ms": total("latency_ms"),
        "length_ms": max(end for _, end in spans) - min(start for start, _ in spans),
        "first_at": rows[0]["created_at"],
    }


def span(row: Row) -> tuple[float, float]:
    """When a request ran, as Unix milliseconds."""
    try:
        start = datetime.fromisoformat(row["created_at"]).timestamp() * 1000
    except ValueError:
        start = 0.0
    return start, start + (row["latency_ms"] or 0.0)


def lanes(rows: list[Row]) -> tuple[list[dict[str, Any]], bool]:
    """The timeline: one bar a request, on a scale of 0..1000; and whether idle times had to be shortened."""
    shown = rows[:LANES]
    spans = [span(row) for row in shown]
    drawn, shortened = without_idle(spans)
    length = max(max(end for _, end in drawn), 1.0)
    found = []
    for row, (start, end), (real, _) in zip(shown, drawn, spans, strict=True):
        x = min(1000 * start / length, 997.0)
        width = min(max(1000 * (end - start) / length, 3.0), 1000 - x)
        wait = width * min(1.0, (row["ttft_ms"] or 0.0) / row["latency_ms"]) if row["latency_ms"] else 0.0
        title = (
            f"{row['model'] or ''} · {status_word(row['status'], row['error_type'])} · {duration(row['latency_ms'])}"
        )
        found.append(
            {
                "row": row,
                "x": round(x, 2),
                "width": round(width, 2),
                "wait": round(wait, 2),
                "title": f"{title} · {money(row['cost_usd'])}",
                "at": duration(real - spans[0][0]),
            }
        )
    return found, shortened


def without_idle(spans: list[tuple[float, float]]) -> tuple[list[tuple[float, float]], bool]:
    """The same spans (in order of their starts) from 0, every idle time cut to a tenth of the time at work."""
    most = max(sum(end - start for start, end in spans) / 10, 1.0)
    moved, shortened, cut = [], False, spans[0][0]
    busy_until = spans[0][0]
    for start, end in spans:
        idle = start - busy_until
        if idle > most:
            cut += idle - most
            shortened = True
        busy_until = max(busy_until, end)
        moved.append((start - cut, end - cut))
    return moved, shortened


def chat(talks: list[tuple[Row, Conversation]]) -> list[dict[str, Any]]:
    """Each request's new turns: what the one before did not already contain."""
    found = []
    known: set[Any] = set()
    for row, talk in talks:
        news = [turn for turn in talk.turns if turn not in known]
        known.update(talk.turns)
        known.update(talk.answers)
        found.append({"row": row, "turns": news, "answers": talk.answers})
    return found
