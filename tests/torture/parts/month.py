"""A month of traffic at a call a second, with its limits kept: the file stays bounded, reports stay fast."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from heliproxy import queries
from heliproxy.bodies import Body
from heliproxy.housekeeping import keep, open_for_upkeep
from heliproxy.retention import Retention
from heliproxy.store import Record, Writer, open_reader
from heliproxy.times import stored_time
from torture.figures import Figure

SHARE = 1.0
DAYS = 30
A_DAY = 86_400
ROWS_A_SECOND = 12_000
"""What this part writes in a second, about: a shorter budget takes fewer rows a day."""
RETENTION = Retention(keep_days=10, keep_bodies_days=1, max_bytes=2_000_000_000)
BODY = os.urandom(200)


def run(budget_seconds: float) -> list[Figure]:
    rows = min(A_DAY, int(budget_seconds * ROWS_A_SECOND * 0.5 / DAYS))
    first = datetime(2026, 9, 1, tzinfo=UTC)
    sizes: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "heliproxy.db"
        slowest = 0.0
        for day in range(DAYS):
            write_day(path, first + timedelta(days=day), day, rows)
            with closing(open_for_upkeep(path)) as conn:
                started = time.monotonic()
                keep(conn, RETENTION, first + timedelta(days=day + 1), lambda _: None)
                slowest = max(slowest, time.monotonic() - started)
            sizes.append(path.stat().st_size)
        with closing(open_reader(path)) as conn:
            count = conn.execute("SELECT count(*) FROM requests").fetchone()[0]
            started = time.monotonic()
            total = queries.costs(conn, ("model",)).total
            report = time.monotonic() - started
    bound = 1.1 * max(sizes[:12])
    return [
        Figure("rows written", rows * DAYS, f"{rows:,} a day"),
        Figure("rows kept", count, "of ten days", holds=count <= 11 * rows),
        Figure("size after 12 days", sizes[11] / 1e6, "MB"),
        Figure("size at most after that", max(sizes[12:]) / 1e6, "MB", holds=max(sizes[12:]) <= bound),
        Figure("longest housekeeping of a day", slowest, "s"),
        Figure("costs --by model", report, "s", holds=report < 5 and total.requests == count),
    ]


def write_day(path: Path, day: datetime, number: int, rows: int) -> None:
    writer = Writer(path, max_rows=10_000)
    writer.open()
    for n in range(rows):
        at = stored_time(day + timedelta(seconds=n * A_DAY / rows))
        row = {
            "id": f"{number:03}-{n:06}",
            "created_at": at,
            "provider": "openai",
            "model": ("gpt-4o-mini", "gpt-4o")[n % 2],
            "status": 200,
            "input_tokens": 100,
            "output_tokens": 10,
            "cost_usd": 0.001,
            "latency_ms": 300.0,
            "source": "proxy",
        }
        writer.add(Record(row, {}, Body(BODY, BODY)))
        if writer.buffered >= 5000:
            writer.flush()
    writer.close()
