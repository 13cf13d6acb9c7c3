"""One request: what was said, how long it took, what it cost, and everything else that is known about it."""

from __future__ import annotations

import json
import shlex
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from heliproxy import queries, queries_pages
from heliproxy.api.pages.context import Pages
from heliproxy.api.pages.render import HEADERS, duration, link, page, status_word
from heliproxy.bodies import Body, read_body
from heliproxy.conversation import Conversation, conversation, difference
from heliproxy.pricing import Prices
from heliproxy.queries import Detail, Row
from heliproxy.recost import price_row
from heliproxy.rounding import without_noise

CURL_LIMIT = 100_000
"""Bytes of a body that still make sense on a command line."""
SECRET_HEADERS = ("authorization", "x-api-key", "api-key", "x-goog-api-key")
KEY_VARIABLES = {"anthropic": ("x-api-key", "ANTHROPIC_API_KEY"), "google": ("x-goog-api-key", "GEMINI_API_KEY")}
KEY_VARIABLES |= {"azure": ("api-key", "AZURE_OPENAI_API_KEY")}


def request_page(pages: Pages, request: Request) -> Response:
    with pages.connection() as conn:
        detail = queries.request_detail(conn, request.path_params["request_id"])
        if detail is None:
            return _missing(request)
        newer, older = queries_pages.neighbours(conn, detail.row)
        previous = queries_pages.before_in_session(conn, detail.row)
        earlier = read_body(conn, previous) if previous else None
    row, body = detail.row, detail.body or Body()
    talk = read(body)
    change = difference(read(earlier), talk) if earlier is not None and talk.turns else None
    bars = timing(row, detail.attempts)
    lines, stale = breakdown(row, pages.prices)
    return page(
        request,
        "request.html",
        row=row,
        body=body,
        has_request=bool(body.request),
        talk=talk,
        change=change,
        shared=change.shared if change else 0,
        previous=previous,
        newer=newer,
        older=older,
        bars=bars,
        timing_text=timing_text(row, detail.attempts),
        breakdown=lines,
        priced=any(line["usd"] is not None for line in lines),
        stale=stale,
        speed=speed(row),
        facts=facts(row),
        properties=detail.properties,
        scores=detail.scores,
        feedback={item["name"]: item["value"] for item in detail.feedback},
        rating=next((item["value"] for item in detail.feedback if item["name"] == "rating"), None),
        curl=curl(row, body),
        zone=pages.zone,
    )


def _missing(request: Request) -> Response:
    return page(request, "error.html", 404, title="No such request", text="No request in the log has this id.")


def read(body: Body | None) -> Conversation:
    if body is None:
        return Conversation()
    return conversation(body.request, body.response, body.request_type, body.response_type)


def request_json(pages: Pages, request: Request) -> Response:
    """Everything about the request as JSON; bodies that are JSON as such, others as text."""
    with pages.connection() as conn:
        detail = queries.request_detail(conn, request.path_params["request_id"])
    if detail is None:
        return JSONResponse({"error": "no request has this id"}, 404, HEADERS)
    return Response(json.dumps(detail_values(detail), indent=2), media_type="application/json", headers=HEADERS)


def detail_values(detail: Detail) -> dict[str, Any]:
    body = detail.body or Body()
    row = {name: without_noise(value) for name, value in detail.row.items()}
    values = row | {"properties": detail.properties, "scores": detail.scores, "feedback": detail.feedback}
    return values | {
        "attempt_list": detail.attempts,
        "request": _value(body.request),
        "response": _value(body.response),
        "request_headers": body.request_headers,
        "response_headers": body.response_headers,
    }


def _value(data: bytes | None) -> Any:
    if data is None:
        return None
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return data.decode("utf-8", "replace")


def body_text(pages: Pages, request: Request) -> Response:
    """A stored body as it is, as plain text whatever it was: the browser must not run it."""
    with pages.connection() as conn:
        body = read_body(conn, request.path_params["request_id"])
    data = None if body is None else body.request if request.path_params["side"] == "request" else body.response
    if data is None:
        return Response("nothing stored\n", 404, HEADERS, "text/plain; charset=utf-8")
    headers = HEADERS | {"Content-Security-Policy": "default-src 'none'; sandbox"}
    return Response(data, headers=headers, media_type="text/plain; charset=utf-8")


def speed(row: Row) -> float | None:
    """Output tokens a second from the first byte on; None when that cannot be told."""
    if not row["output_tokens"] or not row["latency_ms"] or row["ttft_ms"] is None or row["cache"] == "HIT":
        return None
    writing = row["latency_ms"] - row["ttft_ms"]
    return float(row["output_tokens"] * 1000 / writing) if row["stream"] and writing > 20 else None


def timing(row: Row, attempts: list[Row]) -> list[dict[str, Any]]:
    """Bars on a scale of 0..400: the whole call, then each attempt of several."""
    total = row["latency_ms"] or 0.0
    ttft = min(row["ttft_ms"] if row["ttft_ms"] is not None else total, total)

    def x(ms: float) -> float:
        return round(400 * min(ms, total) / total, 2) if total else 0.0

    if row["cache"] == "HIT":
        parts = [{"kind": "hit", "x": 0, "width": 400, "title": "answered from the cache"}]
    else:
        parts = [
            {"kind": "wait", "x": 0, "width": x(ttft), "title": f"waiting {duration(ttft)}"},
            {
                "kind": "stream",
                "x": x(ttft),
                "width": max(x(total) - x(ttft), 1),
                "title": f"answering {duration(total - ttft)}",
            },
        ]
    bars = [{"title": "whole call", "note": duration(row["latency_ms"]), "parts": parts}]
    at = 0.0
    for number, attempt in enumerate(attempts[:20], 1):
        wait, length = milliseconds(attempt.get("delay_ms")), milliseconds(attempt.get("duration_ms"))
        failed = attempt.get("error") or not 200 <= (attempt.get("status") or 0) < 400
        found = [{"kind": "gap", "x": x(at), "width": x(wait), "title": f"waited {duration(wait)}"}] if wait else []
        at += wait
        width = max(min(x(length), 400 - x(at)), 1)
        kind = "failed" if failed else "stream"
        outcome = str(attempt.get("status") or attempt.get("error") or "no answer")
        found.append({"kind": kind, "x": x(at), "width": width, "title": outcome})
        at += length
        target = str(attempt.get("target") or "").rpartition("://")[2]
        bars.append({"title": f"{number}. {target}", "note": f"{outcome[:24]} · {duration(length)}", "parts": found})
    return bars


def milliseconds(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and value > 0 else 0.0


def timing_text(row: Row, attempts: list[Row]) -> str:
    if row["cache"] == "HIT":
        return f"Answered from the cache in {duration(row['latency_ms'])}."
    text = f"done after {duration(row['latency_ms'])}"
    if row["ttft_ms"] is not None:
        text = f"first byte after {duration(row['ttft_ms'])}, {text}"
    text = text[0].upper() + text[1:]
    return f"{text}, {len(attempts)} attempts." if len(attempts) > 1 else f"{text}."


# The buckets that do not overlap, in the order a bill lists them: title, unit in `Cost.components`.
BUCKETS = (
    ("Input", "input"),
    ("Input read from cache", "cache_read"),
    ("Input written to cache", "cache_write"),
    ("Input written to cache, 5 min", "cache_write_5m"),
    ("Input written to cache, 1 h", "cache_write_1h"),
    ("Audio input", "input_audio"),
    ("Image input", "input_image"),
    ("Output", "output"),
    ("Reasoning", "output_reasoning"),
    ("Audio output", "output_audio"),
    ("Image output", "output_image"),
)
KNOWN_UNITS = frozenset(unit for _, unit in BUCKETS)


def disjoint(row: Row) -> dict[str, int | None]:
    """Tokens by unit, none counted twice. `reasoning` is a part of the output, and has no price of its own here."""

    def less(whole: str, *subsets: str) -> int | None:
        value = row[whole]
        return None if value is None else max(0, value - sum(row[name] or 0 for name in subsets))

    written_1h = row["cache_write_1h_tokens"]
    return {
        "input": less(
            "input_tokens", "cache_read_tokens", "cache_write_tokens", "input_audio_tokens", "input_image_tokens"
        ),
        "cache_read": less("cache_read_tokens", "cache_read_audio_tokens"),
        "cache_write": less("cache_write_tokens", "cache_write_1h_tokens"),
        "cache_write_1h": written_1h or None,
        "input_audio": row["input_audio_tokens"] or None,
        "input_image": row["input_image_tokens"] or None,
        "output": less("output_tokens", "output_audio_tokens", "output_image_tokens"),
        "output_audio": row["output_audio_tokens"] or None,
        "output_image": row["output_image_tokens"] or None,
    }


def breakdown(row: Row, prices: Prices) -> tuple[list[dict[str, Any]], bool]:
    """Lines of the bill: title, tokens, USD per million, USD; and whether today's prices give another sum.

    Rows whose cost the provider or the cache stated have no lines with prices.
    """
    counts = disjoint(row)
    cost = None
    if row["cost_usd"] is not None and row["cost_source"] not in ("provider", "cache") and row["cache"] != "HIT":
        cost = price_row(row, prices)
    components = dict(cost.components) if cost is not None else {}
    # A price list without a price for 5-minute writes charges them as writes, and the other way round.
    if "cache_write_5m" in components:
        components.setdefault("cache_write", components.pop("cache_write_5m"))
    lines = []
    for title, unit in BUCKETS:
        tokens, usd = counts.get(unit), components.pop(unit, None)
        if tokens or usd or (unit in ("input", "output") and tokens is not None):
            rate = usd / tokens * 1e6 if usd is not None and tokens else None
            lines.append({"title": title, "tokens": tokens, "rate": rate, "usd": usd})
    for unit, usd in components.items():
        if usd:
            lines.append({"title": unit.replace("_", " "), "tokens": None, "rate": None, "usd": usd})
    if row["reasoning_tokens"]:
        lines.append(
            {"title": "of the output, reasoning", "tokens": row["reasoning_tokens"], "rate": None, "usd": None}
        )
    stale = cost is not None and abs(cost.usd - (row["cost_usd"] or 0.0)) > 1e-12
    return lines, stale


def facts(row: Row) -> list[tuple[str, str, str | None]]:
    """Name, value and link of what is known, absent things left out."""
    session = row["session_id"]
    found = [
        ("Id", row["id"], None),
        ("Provider", row["provider"], link("/requests", {"provider": row["provider"]})),
        ("Asked for", row["request_model"], link("/requests", {"model": row["model"]})),
        ("Answered by", row["response_model"], None),
        ("Path", f"{row['method'] or ''} {row['host'] or ''}{row['path'] or ''}", None),
        ("Sent to", row["target_url"], None),
        ("User", row["user_id"], link("/requests", {"user": row["user_id"]})),
        ("Session", row["session_name"] or session, f"/sessions/{_quoted(session)}" if session else None),
        ("Session path", row["session_path"], None),
        ("Run", row["run_id"], link("/requests", {"run": row["run_id"]})),
        ("Prompt", row["prompt_id"], link("/requests", {"prompt": row["prompt_id"]})),
        ("Key", row["key_fingerprint"], link("/requests", {"key": row["key_fingerprint"]})),
        ("Client", row["client"], None),
        ("Tier", row["service_tier"], None),
        ("Fallback", None if row["fallback_index"] is None else f"target {row['fallback_index'] + 1}", None),
        ("Cached as", row["cache_reference_id"], f"/requests/{_quoted(row['cache_reference_id'])}"),
        ("Usage", row["usage_source"], None),
        ("Logged by", row["source"], None),
        ("Format", row["format"], None),
        ("Response id", row["response_id"], None),
        ("Status", status_word(row["status"], row["error_type"]), None),
    ]
    return [(name, str(value), url) for name, value, url in found if value not in (None, "")]


def _quoted(text: str | None) -> str:
    from urllib.parse import quote

    return quote(text or "", safe="")


def curl(row: Row, body: Body) -> str | None:
    """The request as a curl command; the key is named, not told, as it is not stored. None for a body that is gone."""
    if body.request is None or len(body.request) > CURL_LIMIT or row["truncated"] or not row["host"]:
        return None
    try:
        data = body.request.decode()
    except UnicodeDecodeError:
        return None
    if "\0" in data:
        return None
    lines = [f"curl {shlex.quote('https://' + row['host'] + (row['path'] or '/'))}"]
    if row["method"] not in (None, "POST"):
        lines[0] += f" -X {shlex.quote(row['method'])}"
    header, variable = KEY_VARIABLES.get(row["provider"] or "", ("authorization", "OPENAI_API_KEY"))
    prefix = "Bearer " if header == "authorization" else ""
    lines.append(f'-H "{header}: {prefix}${variable}"')
    lines.append(f"-H {shlex.quote('content-type: ' + (body.request_type or 'application/json'))}")
    for name, value in (body.request_headers or {}).items():
        if name.lower() in ("anthropic-version", "anthropic-beta", "openai-beta"):
            lines.append(f"-H {shlex.quote(f'{name}: {value}')}")
    lines.append(f"--data-raw {shlex.quote(data)}")
    return " \\\n  ".join(lines)
