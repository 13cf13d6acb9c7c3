"""`heliproxy show`: one request with everything known about it."""

from __future__ import annotations

import base64
import json
from contextlib import closing
from datetime import tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from heliproxy import queries, report
from heliproxy.report_options import common_options, open_database, use_color
from heliproxy.report_rows import local_time, parsed, program_columns, program_row, shown
from heliproxy.rounding import decimal_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from heliproxy.bodies import Body
    from heliproxy.queries import Detail, Row


@click.command("show")
@click.argument("request_id", metavar="ID")
@click.option("--raw", is_flag=True, help="Bodies as they are stored, not laid out.")
@common_options("text", "json")
def show(
    request_id: str,
    raw: bool,
    form: str,
    as_json: bool,
    zone: tzinfo,
    no_color: bool,
    home: Path | None,
    db: Path | None,
) -> None:
    """Show one request with everything known about it.

    ID is its id, or enough of the beginning or the end of it.
    """
    with closing(open_database(db, home)) as conn:
        found = queries.find_ids(conn, request_id)
        if not found:
            raise click.ClickException(f"there is no request {request_id!r}")
        if len(found) > 1:
            raise click.ClickException(f"{request_id!r} may be any of:\n  " + "\n  ".join(found))
        detail = queries.request_detail(conn, found[0])
    assert detail is not None
    if as_json or form == "json":
        click.echo(json.dumps(detail_json(detail), indent=2))
    else:
        click.echo(detail_text(detail, zone, raw, use_color(no_color)), nl=False, color=use_color(no_color) or None)


def detail_json(detail: Detail) -> Row:
    row = report.json_row(program_columns(), program_row(detail.row))
    return {
        "schema_version": report.SCHEMA_VERSION,
        "command": "show",
        **row,
        "properties": detail.properties,
        "scores": detail.scores,
        "feedback": detail.feedback,
        "request": body_json(detail.body, "request"),
        "response": body_json(detail.body, "response"),
    }


def body_json(body: Body | None, side: str) -> Row | None:
    if body is None:
        return None
    data: bytes | None = getattr(body, side)
    result: Row = {"type": getattr(body, f"{side}_type"), "headers": getattr(body, f"{side}_headers")}
    if data is None:
        return {**result, "body": None}
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return {**result, "base64": base64.b64encode(data).decode()}
    return {**result, "body": parsed(text)}


FACTS = (
    ("status", "status"),
    ("error", "error"),
    ("error type", "error_type"),
    ("provider", "provider"),
    ("model", "model"),
    ("asked for", "request_model"),
    ("answered by", "response_model"),
    ("host", "host"),
    ("path", "path"),
    ("target", "target_url"),
    ("tier", "service_tier"),
    ("finish", "finish_reason"),
    ("cache", "cache"),
    ("served from", "cache_reference_id"),
    ("user", "user_id"),
    ("session", "session_id"),
    ("session name", "session_name"),
    ("session path", "session_path"),
    ("prompt", "prompt_id"),
    ("key", "key_fingerprint"),
    ("run", "run_id"),
    ("client", "client"),
    ("source", "source"),
    ("warning", "warning"),
    ("parse error", "parse_error"),
)
TOKEN_FACTS = (
    ("input", "input_tokens"),
    ("read from cache", "cache_read_tokens"),
    ("written to cache", "cache_write_tokens"),
    ("  for 1 hour", "cache_write_1h_tokens"),
    ("output", "output_tokens"),
    ("reasoning", "reasoning_tokens"),
    ("input audio", "input_audio_tokens"),
    ("output audio", "output_audio_tokens"),
    ("input images", "input_image_tokens"),
    ("output images", "output_image_tokens"),
)


def detail_text(detail: Detail, zone: tzinfo, raw: bool, color: bool) -> str:
    row = detail.row
    lines: list[str] = [heading(row["id"], color)]
    lines += fact_lines([("time", local_time(row["created_at"], zone)), *facts(shown(row, zone), FACTS)])
    if row["latency_ms"] is not None:
        first = f", first token after {report.duration(row['ttft_ms'])}" if row["ttft_ms"] is not None else ""
        lines += fact_lines([("took", report.duration(row["latency_ms"]) + first)])
    tokens = [(name, report.count_text(row[key])) for name, key in TOKEN_FACTS if isinstance(row[key], int)]
    source = row["usage_source"] or "none"
    lines += section("Tokens", fact_lines([("counted by", source), *tokens]), color)
    lines += section("Cost", fact_lines(cost_facts(row)), color)
    lines += section("Properties", fact_lines(list(detail.properties.items())), color)
    lines += section("Scores", fact_lines([(k, f"{v:g}") for k, v in detail.scores.items()]), color)
    lines += section("Feedback", fact_lines([(f["name"], f["value"]) for f in detail.feedback]), color)
    lines += section("Attempts", [attempt_line(a) for a in detail.attempts], color)
    for side in ("request", "response"):
        lines += section(side.capitalize(), body_lines(detail.body, side, raw), color)
    return "\n".join(lines) + "\n"


def heading(text: str, color: bool) -> str:
    return f"{report.BOLD}{report.neutral(text)}{report.PLAIN}" if color else report.neutral(text)


def section(title: str, lines: list[str], color: bool) -> list[str]:
    return ["", heading(title, color), *lines] if lines else []


def facts(row: Row, names: Sequence[tuple[str, str]]) -> list[tuple[str, Any]]:
    return [(name, row[key]) for name, key in names if row[key] not in (None, "")]


def fact_lines(pairs: Sequence[tuple[str, Any]]) -> list[str]:
    width = max((report.display_width(str(name)) for name, _ in pairs), default=0)
    width = min(max(width, 16), 32)
    return [f"  {report.neutral(str(name)).ljust(width)}  {report.neutral(str(value))}" for name, value in pairs]


def cost_facts(row: Row) -> list[tuple[str, Any]]:
    cost = "unknown" if row["cost_usd"] is None else f"${decimal_text(row['cost_usd'])}"
    pairs: list[tuple[str, Any]] = [("cost", cost)]
    if row["fees_usd"]:
        pairs.append(("tool fees", f"${decimal_text(row['fees_usd'])} on top"))
    pairs += facts(row, (("from", "cost_source"), ("price", "price_id"), ("prices of", "price_version")))
    if row["saved_usd"]:
        pairs.append(("saved", f"${decimal_text(row['saved_usd'])}"))
    if row["lower_bound"]:
        pairs.append(("note", "at least this much: part of the usage was not visible"))
    return pairs


def attempt_line(attempt: Row) -> str:
    what = attempt.get("error") or attempt.get("status")
    took = attempt.get("duration_ms")
    text = f"{attempt.get('target')}  {what}  {report.duration(took if isinstance(took, int | float) else None)}"
    return f"  {report.neutral(text)}"


def body_lines(body: Body | None, side: str, raw: bool) -> list[str]:
    data: bytes | None = getattr(body, side) if body is not None else None
    if data is None:
        return ["  (not stored)"]
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return [f"  ({len(data):,} bytes that are not text; -f json has them in base64)"]
    if not raw:
        value = parsed(text)
        if isinstance(value, dict | list):
            text = json.dumps(value, indent=2, ensure_ascii=False)
    return [report.neutral(line, lines=True) for line in text.splitlines()] or ["  (empty)"]
