"""A stored request as Helicone's `HeliconeRequest` (helicone-api.md section 1.4)."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from heliproxy.api.answer import whole_response
from heliproxy.api.database import fetch_rows
from heliproxy.api.filters import ENDED
from heliproxy.bodies import Body
from heliproxy.formats.reading import load
from heliproxy.queries import Row, add_properties

NEEDED = (
    "id", "created_at", "provider", "host", "path", "model", "request_model", "response_model", "status",
    "latency_ms", "ttft_ms", "input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens",
    "reasoning_tokens", "input_audio_tokens", "output_audio_tokens", "cost_usd", "cache", "cache_reference_id",
    "user_id", "prompt_id", "response_id", "target_url",
)  # fmt: skip
"""Columns `helicone_request` reads: half as many as there are, half the time."""
_PART = 500


def request_rows(conn: sqlite3.Connection, ids: Sequence[str], columns: Sequence[str] = NEEDED) -> list[Row]:
    """The rows of these requests with `properties`, `scores` and `rating`, in the order of `ids`; unknown ids are
    left out."""
    return _rows(conn, "id", ids, columns)


def rows_by_number(conn: sqlite3.Connection, numbers: Sequence[int]) -> list[Row]:
    """The same by rowid."""
    return _rows(conn, "rowid", numbers, NEEDED)


def _rows(conn: sqlite3.Connection, key: str, keys: Sequence[Any], columns: Sequence[str]) -> list[Row]:
    found: dict[Any, Row] = {}
    for i in range(0, len(keys), _PART):
        part = list(keys[i : i + _PART])
        marks = ", ".join("?" * len(part))
        selected = ", ".join(f"r.{name}" for name in columns)
        sql = f"SELECT {selected}, {ENDED} AS ended_at, r.{key} AS key FROM requests r WHERE r.{key} IN ({marks})"
        rows = fetch_rows(conn, sql, part)
        for row in rows:
            row["scores"], row["rating"] = {}, None
            found[row.pop("key")] = row
        add_properties(conn, rows)
        _add_said(conn, {row["id"]: row for row in rows})
    return [found[one] for one in dict.fromkeys(keys) if one in found]


def _add_said(conn: sqlite3.Connection, rows: Mapping[str, Row]) -> None:
    """Give rows their `scores` and, as (value, time), their `rating`."""
    marks, ids = ", ".join("?" * len(rows)), list(rows)
    scores = f"SELECT request_id, name, value FROM scores WHERE request_id IN ({marks}) ORDER BY request_id, name"
    for request_id, name, value in conn.execute(scores, ids):
        rows[request_id]["scores"][name] = value
    ratings = f"SELECT request_id, value, created_at FROM feedback WHERE name = 'rating' AND request_id IN ({marks})"
    for request_id, value, at in conn.execute(ratings, ids):
        rows[request_id]["rating"] = (value, at)


def helicone_request(row: Row, body_url: str | None) -> dict[str, Any]:
    """One row in Helicone's words. Bodies are placeholders; the real ones are at `body_url`."""
    rating, rated_at = row["rating"] or (None, None)
    cost = finite(row["cost_usd"])
    return {
        "response_id": row["response_id"] or row["id"],
        "response_created_at": None if row["status"] is None else row["ended_at"],
        "response_body": {},
        "response_status": row["status"] if row["status"] is not None else 0,
        "response_model": row["response_model"],
        "request_id": row["id"],
        "request_created_at": row["created_at"],
        "request_body": {},
        "request_path": target_url(row),
        "request_user_id": row["user_id"],
        "request_properties": row["properties"] or None,
        "request_model": row["request_model"],
        "model_override": None,
        "helicone_user": None,
        "provider": (row["provider"] or "custom").upper(),
        "delay_ms": rounded(row["latency_ms"]),
        "time_to_first_token": rounded(row["ttft_ms"]),
        "total_tokens": total(row["input_tokens"], row["output_tokens"]),
        "prompt_tokens": less(
            row["input_tokens"], row["cache_read_tokens"], row["cache_write_tokens"], row["input_audio_tokens"]
        ),
        "prompt_cache_write_tokens": row["cache_write_tokens"],
        "prompt_cache_read_tokens": row["cache_read_tokens"],
        "completion_tokens": less(row["output_tokens"], row["reasoning_tokens"], row["output_audio_tokens"]),
        "reasoning_tokens": row["reasoning_tokens"],
        "prompt_audio_tokens": row["input_audio_tokens"],
        "completion_audio_tokens": row["output_audio_tokens"],
        "cost": cost,
        "costUSD": cost,
        "prompt_id": row["prompt_id"],
        "prompt_version": None,
        "feedback_created_at": rated_at,
        "feedback_id": None if rating is None else row["id"],
        "feedback_rating": None if rating is None else rating == "true",
        "signed_body_url": body_url,
        "llmSchema": None,
        "country_code": None,
        "asset_ids": None,
        "asset_urls": None,
        "scores": row["scores"] or None,
        "properties": row["properties"],
        "assets": [],
        "target_url": target_url(row),
        "model": row["model"] or "",
        "cache_reference_id": row["cache_reference_id"],
        "cache_enabled": row["cache"] is not None,
        "updated_at": row["created_at"],
        "request_referrer": None,
        "ai_gateway_body_mapping": None,
        "storage_location": "sqlite",
    }


def bodies_of(body: Body | None) -> dict[str, Any]:
    """Both bodies as `{request, response}`: JSON where they are JSON, text otherwise, {} where nothing is kept.

    A streamed response is put together to what the same call would have answered without streaming; the stream
    itself is beside it as `streamed_data`.
    """
    if body is None:
        return {"request": {}, "response": {}}
    return {
        "request": value_of(body.request),
        "response": whole_response(body.response, body.response_type, value_of),
    }


def value_of(raw: bytes | None) -> Any:
    if not raw:
        return {}
    value = load(raw)
    return raw.decode("utf-8", "replace") if value is None else without_odd_numbers(value)


def without_odd_numbers(value: Any) -> Any:
    """A JSON value without infinities (1e999), which JSON cannot hold."""
    if isinstance(value, float):
        return finite(value)
    if isinstance(value, list):
        return [without_odd_numbers(item) for item in value]
    if isinstance(value, dict):
        return {name: without_odd_numbers(item) for name, item in value.items()}
    return value


def finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def rounded(value: float | None) -> int | None:
    return None if value is None else round(value)


def total(*counts: int | None) -> int | None:
    known = [value for value in counts if value is not None]
    return sum(known) if known else None


def less(whole: int | None, *parts: int | None) -> int | None:
    """What is left of a count without its parts."""
    return None if whole is None else max(0, whole - sum(part or 0 for part in parts))


def target_url(row: Mapping[str, Any]) -> str:
    """The address the call went to."""
    if row["target_url"]:
        return f"{row['target_url']}{row['path'] or ''}"
    return f"https://{row['host']}{row['path'] or ''}" if row["host"] else row["path"] or ""
