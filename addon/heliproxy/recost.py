"""Price logged requests again, from the usage that is stored with them."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from .exchange import Usage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from .pricing import Cost, Prices

_PAGE = 500
_BUSY_SECONDS = 30.0

# The provider's own figure stands, and what a cache answered cost nothing.
SELECT = """
SELECT rowid, id, created_at, provider, host, path, method, model, request_model, response_model, format, status,
    input_tokens, cache_read_tokens, cache_write_tokens, cache_write_1h_tokens, output_tokens, reasoning_tokens,
    input_audio_tokens, cache_read_audio_tokens, output_audio_tokens, input_image_tokens, output_image_tokens,
    usage_json, usage_source, service_tier, cost_usd, cost_source, price_id, price_version
FROM requests
WHERE rowid > :after AND created_at >= :since AND created_at < :until
    AND usage_source IN ('provider', 'header', 'estimated')
    AND cost_source IS NOT 'provider' AND cost_source IS NOT 'cache' AND cache IS NOT 'HIT'
ORDER BY rowid LIMIT :page
"""
UPDATE = """
UPDATE requests SET cost_usd = ?, cost_source = ?, price_id = ?, price_version = ?
WHERE id = ? AND cost_usd IS ? AND cost_source IS ?
"""
COLUMNS = {
    "input_tokens": "input_tokens",
    "cache_read_tokens": "cache_read_tokens",
    "cache_write_tokens": "cache_write_tokens",
    "cache_write_1h_tokens": "cache_write_1h_tokens",
    "output_tokens": "output_tokens",
    "reasoning_tokens": "reasoning_tokens",
    "input_audio_tokens": "input_audio_tokens",
    "cache_read_audio_tokens": "cache_read_audio_tokens",
    "output_audio_tokens": "output_audio_tokens",
    "input_image_tokens": "input_image_tokens",
    "output_image_tokens": "output_image_tokens",
}


@dataclass(slots=True)
class Totals:
    """What a run did; dollars over all rows it looked at."""

    rows: int = 0
    changed: int = 0
    newly_priced: int = 0
    unpriced: int = 0
    before_usd: float = 0.0
    after_usd: float = 0.0


def recost_rows(path: Path, prices: Prices, since: str = "", until: str = "9999", *, dry_run: bool = False) -> Totals:
    """Re-price the rows created in [since, until), times as stored. A price once known is never replaced by none.

    Raises FileNotFoundError or sqlite3.Error; what was done until then stays done.
    """
    if not path.exists():
        raise FileNotFoundError(f"no database at {path}")
    totals = Totals()
    conn = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
    conn.row_factory = sqlite3.Row
    try:
        for page in _pages(conn, since, until):
            updates = [update for row in page if (update := _reprice(row, prices, totals)) is not None]
            if updates and not dry_run:
                conn.execute("BEGIN IMMEDIATE")
                conn.executemany(UPDATE, updates)
                conn.execute("COMMIT")
    finally:
        conn.close()
    return totals


def _pages(conn: sqlite3.Connection, since: str, until: str) -> Iterator[list[sqlite3.Row]]:
    after = -1
    while True:
        values = {"after": after, "since": since, "until": until, "page": _PAGE}
        page = conn.execute(SELECT, values).fetchall()
        if not page:
            return
        yield page
        after = page[-1]["rowid"]


def _reprice(row: sqlite3.Row, prices: Prices, totals: Totals) -> tuple[Any, ...] | None:
    cost = price_row(dict(row), prices)
    old = row["cost_usd"]
    totals.rows += 1
    totals.before_usd += old or 0.0
    if cost is None:
        totals.unpriced += old is None
        totals.after_usd += old or 0.0
        return None
    totals.after_usd += cost.usd
    if old is not None and abs(old - cost.usd) <= 1e-12 and row["price_version"] == cost.version:
        return None
    totals.newly_priced += old is None
    totals.changed += old is None or abs(old - cost.usd) > 1e-12
    return (cost.usd, cost.source, cost.price_id, cost.version, row["id"], old, row["cost_source"])


def price_row(row: Mapping[str, Any], prices: Prices) -> Cost | None:
    """The price of one stored row, from its columns and the provider's usage object."""
    route = _route(row)
    provider = (route.price_provider if route is not None else None) or row["provider"]
    names = [row["response_model"], row["request_model"], row["model"], route.model if route is not None else None]
    if row["provider"] == "bedrock" and route is not None:
        names.insert(0, route.model)
    if row["model"] not in (row["response_model"], row["request_model"]):
        names.insert(0, row["model"])  # set by the caller (Helicone-Model-Override)
    usage, pricing = _usage(row)
    if route is not None and route.batch:
        pricing.setdefault("processing", "batch")
    models = list(dict.fromkeys(name for name in names if name))
    return prices.cost(provider, models, usage, datetime.fromisoformat(row["created_at"]).astimezone(UTC), pricing)


def _route(row: Mapping[str, Any]) -> Any:
    from .hosts import route

    if not row["host"] or not row["path"]:
        return None
    return route(row["method"] or "POST", row["host"], row["path"])


def _usage(row: Mapping[str, Any]) -> tuple[Usage, dict[str, str]]:
    """Usage from the columns; from the provider's own object where that agrees and says more (sub-calls, searches)."""
    stored = Usage(**{name: row[column] for column, name in COLUMNS.items()})
    pricing = {"tier": row["service_tier"]} if row["service_tier"] else {}
    if row["usage_source"] != "provider" or not row["usage_json"] or not row["format"]:
        return stored, pricing
    reply = _reread(row)
    if reply is None or reply.usage is None:
        return stored, pricing
    again = reply.usage
    if (again.input_tokens, again.output_tokens) != (stored.input_tokens, stored.output_tokens):
        return stored, pricing
    return again, {**pricing, **reply.pricing}


def _reread(row: Mapping[str, Any]) -> Any:
    """Let the row's format read the stored usage object again, wrapped as its responses wrap it."""
    from .formats import FORMATS

    form = FORMATS.get(row["format"])
    if form is None:
        return None
    try:
        usage = json.loads(row["usage_json"])
    except ValueError:
        return None
    keys = ("usage", "usageMetadata", "meta")
    body = {"model": row["response_model"], **dict.fromkeys(keys, usage)}
    return form.parse_response(json.dumps(body).encode(), {})
