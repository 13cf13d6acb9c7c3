"""New rows as server-sent events: at most two batches a second, each of a bounded size."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from heliproxy.api.pages.context import Pages
from heliproxy.api.pages.render import HEADERS, environment
from heliproxy.api.pages.window import read_filters
from heliproxy.filters import Filters
from heliproxy.migrations import SchemaError
from heliproxy.queries import Follower, Row
from heliproxy.store import open_reader

logger = logging.getLogger(__name__)

EVERY_SECONDS = 0.5
ROWS = 60
"""Rows drawn of one batch: more than fit on a screen are not worth drawing."""
BEAT_SECONDS = 15.0
"""A comment is sent after this long without news, so that a dead connection is noticed."""
MOST = 32
"""Streams at once."""


class Live:
    """The endpoint, and how many listen to it."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._listening = 0

    async def __call__(self, request: Request) -> Response:
        if self._listening >= MOST:
            return Response("too many open pages\n", 503, HEADERS, "text/plain")
        filters, _ = read_filters(request.query_params)
        text = request.query_params.get("q", "").strip().lower()[:200]
        columns = request.query_params.getlist("column")[:10]
        draw = request.query_params.get("page") == "requests"
        return StreamingResponse(
            self._events(filters, text, columns, draw), media_type="text/event-stream", headers=HEADERS
        )

    async def _events(self, filters: Filters, text: str, columns: list[str], draw: bool) -> AsyncIterator[str]:
        self._listening += 1
        source = Source(self._pages.log, filters)
        silent = 0.0
        try:
            yield "retry: 3000\n\n"
            while not self._pages.stopping():
                rows = [row for row in await run_in_threadpool(source.poll) if not text or contains(row, text)]
                if rows:
                    silent = 0.0
                    yield event(rows, columns, draw, self._pages.zone)
                else:
                    silent += EVERY_SECONDS
                    if silent >= BEAT_SECONDS:
                        silent = 0.0
                        yield ": still here\n\n"
                await asyncio.sleep(EVERY_SECONDS)
        finally:
            self._listening -= 1
            source.close()


class Source:
    """The new rows of one log, for one listener; waits for a log that is not there yet, or was replaced."""

    def __init__(self, path: Path, filters: Filters) -> None:
        self._path = path
        self._filters = filters
        self._conn: sqlite3.Connection | None = None
        self._follower: Follower | None = None

    def poll(self) -> list[Row]:
        """Rows finished since the last call. Never raises for what is wrong with the file."""
        try:
            if self._follower is None:
                self._conn = open_reader(self._path)
                self._follower = Follower(self._conn, self._filters)
            return self._follower.poll()
        except (OSError, sqlite3.Error, SchemaError):
            self.close()
            return []

    def close(self) -> None:
        if self._conn is not None:
            self._conn.close()
        self._conn = self._follower = None


def contains(row: Row, text: str) -> bool:
    return any(
        text in (row[name] or "").lower() for name in ("preview", "answer_preview", "error", "session_name", "id")
    )


def event(rows: list[Row], columns: list[str], draw: bool, zone: Any) -> str:
    """One event: how many rows are new, and the last of them as table rows, newest first."""
    html = ""
    if draw:
        template = environment().get_template("rows.html")
        html = template.render(rows=rows[: -ROWS - 1 : -1], columns=columns, zone=zone)
    return f"event: rows\ndata: {json.dumps({'count': len(rows), 'html': html})}\n\n"
