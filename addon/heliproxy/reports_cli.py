"""The reporting commands: costs, requests, tail, sessions. Results go to stdout, remarks to stderr."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from datetime import UTC, date, datetime, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from heliproxy import queries, report, times
from heliproxy.filters import Filters
from heliproxy.home import PRICES_DATE_NAME, PRICES_STALE_DAYS
from heliproxy.migrations import SchemaError
from heliproxy.report import Column, Table
from heliproxy.report_options import (
    NOTHING,
    TIME,
    Checked,
    common_options,
    database_path,
    filter_options,
    make_filters,
    open_database,
    use_color,
    write,
)
from heliproxy.report_rows import (
    all_columns,
    is_bad,
    local_time,
    program_columns,
    program_row,
    shown,
    status_word,
)
from heliproxy.store import open_reader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from heliproxy.queries import Costs, Node, Row
    from heliproxy.tallies import Line


def parse_groups(text: str) -> tuple[str, ...]:
    return tuple(queries.parse_group(part) for part in text.split(","))


# -- costs ----------------------------------------------------------------------------------------------------------


@click.command("costs")
@click.argument("period", required=False, type=TIME)
@click.option(
    "--by",
    type=Checked("group", parse_groups),
    multiple=True,
    help=f"Group by {queries.GROUP_FORMS}; several, in turn or with commas, nest.  [default: model]",
)
@filter_options
@click.option(
    "--sort",
    type=click.Choice([*queries.SORTS, "name"]),
    help="What to sort by.  [default: times in order, all else by cost]",
)
@click.option("--order", type=click.Choice(["desc", "asc"]), help="[default: desc; asc with --sort name]")
@click.option("--top", type=click.IntRange(min=1), help="Only so many lines; the total still counts everything.")
@common_options(*report.FORMATS)
def costs(
    period: str | None,
    by: Sequence[tuple[str, ...]],
    since: str | None,
    until: str | None,
    sort: str | None,
    order: str | None,
    top: int | None,
    form: str,
    as_json: bool,
    zone: tzinfo,
    no_color: bool,
    home: Path | None,
    db: Path | None,
    **fields: Any,
) -> None:
    """Report requests, tokens and dollars, grouped as you like.

    PERIOD is short for both --since and --until: today, yesterday, month, 2026-09, 7d.

    \b
    heliproxy costs today
    heliproxy costs --by day --by model --since 7d
    heliproxy costs --by property:feature --status ok -f csv
    """
    filters = make_filters(zone, since, until, period, **fields)
    groups = tuple(group for part in by for group in part) or ("model",)
    if order and not sort and groups[0] in times.UNITS:
        sort = "name"  # an order asked for is meant for the days
    descending = (order or default_order(sort)) == "desc"
    with closing(open_database(db, home)) as conn:
        result = queries.costs(conn, groups, filters, zone=zone, sort=sort, top=top, descending=descending)
    shown = "json" if as_json else form
    table = costs_table(result, filters, zone, price_notes(database_path(db, home).parent, datetime.now(UTC).date()))
    if shown in ("table", "md") and not result.total.fees_usd:
        table = replace(table, columns=tuple(c for c in table.columns if c.key != "fees_usd"))
    write(table, shown, no_color, NOTHING)


def price_notes(home: Path, today: date) -> list[str]:
    """How old the price data is that this home's rows are priced with; loud when it is stale."""
    try:
        made = date.fromisoformat((home / PRICES_DATE_NAME).read_text("ascii").strip())
    except (OSError, ValueError):
        return []
    age = (today - made).days
    note = f"prices of {made.isoformat()} ({age} day{'' if age == 1 else 's'} old)"
    if age > PRICES_STALE_DAYS:
        note += ": newer ones with `heliproxy prices update`"
    return [note]


def default_order(sort: str | None) -> str:
    return "asc" if sort == "name" else "desc"


def costs_table(result: Costs, filters: Filters, zone: tzinfo, notes: Sequence[str] = ()) -> Table:
    """The cost report as a table, in all its columns; `notes` are sentences to put below it."""
    rows = [cost_row(line, result.by) for line in result.lines]
    total = cost_row(result.total, ())
    keys = tuple(Column(group, group, "text") for group in result.by)
    about = {
        "command": "costs",
        "by": list(result.by),
        "since": filters.since and times.stored_time(filters.since),
        "until": filters.until and times.stored_time(filters.until),
        "timezone": str(zone),
        "groups": result.groups,
        "lost": result.lost,
    }
    return Table(
        columns=(*keys, *report.hideable(report.COST_COLUMNS, rows)),
        rows=rows,
        total=total,
        about=about,
        notes=(*cost_notes(result), *notes),
    )


def cost_row(line: Line, by: Sequence[str]) -> Row:
    row = dict(zip(by, line.key, strict=False))
    for column in report.COST_COLUMNS:
        row[column.key] = getattr(line, column.key)
    return row


def cost_notes(result: Costs) -> Iterator[str]:
    total = result.total
    if len(result.lines) < result.groups:
        yield f"{result.groups - len(result.lines):,} more groups are in the total but not shown."
    if total.unpriced:
        yield f"Cost unknown for {report.request_word(total.unpriced)}: not in the sums."
        yield "`heliproxy prices check` lists models without a price."
    if result.lost:
        yield f"Cost unknown also for {report.lost_words(result.lost)}."
    if result.approximate:
        yield "p50 and p95 are within 1 %."
    if total.estimated:
        share = report.cell(Column("", "", "share"), total.estimated_share)
        yield f"Tokens estimated for {report.request_word(total.estimated)} ({share})."


# -- requests -------------------------------------------------------------------------------------------------------

REQUEST_COLUMNS = (
    Column("id", "id", rank=0),
    Column("created_at", "time"),
    Column("status", "status", "int"),
    Column("provider", "provider", rank=6),
    Column("model", "model"),
    Column("input_tokens", "input", "int", 3),
    Column("output_tokens", "output", "int", 3),
    Column("cost_usd", "cost", "usd"),
    Column("latency_ms", "latency", "ms", 4),
    Column("cache", "cache", rank=5),
    Column("user_id", "user", rank=7),
    Column("session_id", "session", rank=8),
    Column("preview", "request", rank=2),
)
# What programs get: everything but the long texts that `show` is for.
LONG_COLUMNS = {"usage_json", "attempts_json", "error", "preview", "answer_preview", "warning", "parse_error"}


@click.command("requests")
@click.option("-n", "--limit", type=click.IntRange(1, 1_000_000), default=20, show_default=True)
@click.option("--oldest", is_flag=True, help="Oldest first.")
@filter_options
@common_options(*report.FORMATS)
def requests(
    limit: int,
    oldest: bool,
    since: str | None,
    until: str | None,
    form: str,
    as_json: bool,
    zone: tzinfo,
    no_color: bool,
    home: Path | None,
    db: Path | None,
    **fields: Any,
) -> None:
    """List requests, newest first.

    \b
    heliproxy requests --status error --since today
    heliproxy requests --user alice -n 100 -f csv > alice.csv
    """
    filters = make_filters(zone, since, until, **fields)
    with closing(open_database(db, home)) as conn:
        page = queries.request_list(conn, filters, limit=limit, oldest_first=oldest)
    form = "json" if as_json else form
    about = {"command": "requests", "more": page.next is not None}
    if form in ("json", "ndjson", "csv"):
        plain = form == "csv"
        rows = page.rows if plain else [program_row(row) for row in page.rows]
        table = Table(all_columns() if plain else program_columns(), rows, about=about)
    else:
        rows = [shown(row, zone) for row in page.rows]
        notes = (f"The newest {limit} only; more with -n.",) if page.next and not oldest else ()
        table = Table(report.hideable(REQUEST_COLUMNS, rows), rows, about=about, notes=notes, bad=is_bad)
    write(table, form, no_color, NOTHING)


# -- tail -----------------------------------------------------------------------------------------------------------


@click.command("tail")
@click.option("-n", "--last", type=click.IntRange(0, 10_000), default=10, show_default=True, help="Begin with so many.")
@click.option("--once", is_flag=True, help="Print what is there and stop.")
@filter_options
@common_options("table", "ndjson", "json")
@click.pass_context
def tail(
    ctx: click.Context,
    /,
    last: int,
    once: bool,
    since: str | None,
    until: str | None,
    form: str,
    as_json: bool,
    zone: tzinfo,
    no_color: bool,
    home: Path | None,
    db: Path | None,
    **fields: Any,
) -> None:
    """Follow requests as they are logged, one line each, until Ctrl-C. As there is no end, json means ndjson."""
    filters = make_filters(zone, since, until, **fields)
    path = database_path(db, home)
    if once:
        open_database(db, home).close()
    columns = program_columns()
    color = use_color(no_color)
    try:
        for rows in follow(path, filters, last, time.sleep, once=once):
            for row in rows:
                if as_json or form != "table":
                    click.echo(report.json_line(columns, program_row(row)), nl=False)
                else:
                    click.echo(tail_line(row, zone, color), color=color or None)
    except KeyboardInterrupt:
        ctx.exit(130)


def follow(
    path: Path, filters: Filters, last: int, sleep: Callable[[float], None], *, once: bool = False
) -> Iterator[list[Row]]:
    """Batches of finished requests as they come. Waits for the file, and changes over when it is replaced."""
    conn: sqlite3.Connection | None = None
    opened: tuple[int, int] | None = None
    try:
        while True:
            now = file_id(path)
            if now is not None and now != opened:
                if conn is not None:
                    conn.close()
                    last = 10_000  # a new file: all of it is news
                conn = None
                try:
                    conn = open_reader(path)
                    follower = queries.Follower(conn, filters, last=last)
                    opened = now
                except (OSError, SchemaError, sqlite3.Error):
                    # Being created or replaced right now.
                    if conn is not None:
                        conn.close()
                    conn = None
            if conn is not None:
                yield follower.poll()
            if once:
                return
            sleep(0.5)
    finally:
        if conn is not None:
            conn.close()


def file_id(path: Path) -> tuple[int, int] | None:
    try:
        info = path.stat()
    except OSError:
        return None
    return info.st_dev, info.st_ino


def tail_line(row: Row, zone: tzinfo, color: bool) -> str:
    at = local_time(row["created_at"], zone).partition(" ")[2]
    status = str(status_word(row["status"], row["error_type"]))
    cost = "cost unknown" if row["cost_usd"] is None and not is_bad(row) else report.dollars(row["cost_usd"])
    tokens = f"{report.count_text(row['input_tokens'])}→{report.count_text(row['output_tokens'])} tokens"
    parts = [at, f"{status:>7}", f"{row['provider'] or ''} {row['model'] or row['path'] or ''}".strip(), tokens, cost]
    parts.append(report.duration(row["latency_ms"]))
    parts += [f"{name}={row[key]}" for name, key in (("cache", "cache"), ("user", "user_id")) if row[key]]
    parts += [f"{key}={value}" for key, value in row["properties"].items()]
    if row["error"]:
        parts.append(str(row["error"])[:200])
    line = report.neutral("  ".join(parts))
    return f"{report.RED}{line}{report.PLAIN}" if color and is_bad(row) else line


# -- sessions -------------------------------------------------------------------------------------------------------

SESSION_COLUMNS = (
    Column("session_id", "session"),
    Column("session_name", "name", rank=4),
    Column("first_at", "began", rank=2),
    Column("last_at", "last", rank=3),
    Column("requests", "requests", "int"),
    Column("errors", "errors", "int", 5),
    Column("input_tokens", "input", "int", 5),
    Column("output_tokens", "output", "int", 5),
    Column("cost_usd", "cost", "usd"),
    Column("saved_usd", "saved", "usd", 6),
    Column("latency_ms", "latency", "ms", 6),
    Column("unpriced", "unpriced", "int", 6),
)


@click.command("sessions")
@click.argument("session_id", required=False)
@click.option("-n", "--limit", type=click.IntRange(1, 1_000_000), default=20, show_default=True)
@click.option("--search", default="", help="Only sessions with this in their id or name.")
@filter_options
@common_options(*report.FORMATS)
def sessions(
    session_id: str | None,
    limit: int,
    search: str,
    since: str | None,
    until: str | None,
    form: str,
    as_json: bool,
    zone: tzinfo,
    no_color: bool,
    home: Path | None,
    db: Path | None,
    **fields: Any,
) -> None:
    """List sessions, last used first, or show one as a tree of its paths."""
    form = "json" if as_json else form
    filters = make_filters(zone, since, until, **fields)
    with closing(open_database(db, home)) as conn:
        if session_id is not None:
            tree = queries.session_tree(conn, session_id)
            if tree is None:
                raise click.ClickException(f"there is no session {session_id!r}")
            text = json.dumps(tree_json(session_id, tree), indent=2) if form == "json" else tree_text(tree, zone)
            click.echo(text)
            return
        rows = queries.session_list(conn, filters, limit=limit, search=search)
    if form in ("table", "md"):
        rows = [{**r, **{k: local_time(r[k], zone) for k in ("first_at", "last_at")}} for r in rows]
    columns = report.hideable(SESSION_COLUMNS, rows) if form == "table" else SESSION_COLUMNS
    write(Table(columns, rows, about={"command": "sessions"}), form, no_color, "No sessions match.")


def tree_json(session_id: str, node: Node) -> Row:
    return {
        "schema_version": report.SCHEMA_VERSION,
        "command": "sessions",
        "session_id": session_id,
        "tree": node_json(node),
    }


def node_json(node: Node) -> Row:
    columns = [c for c in all_columns() if c.key not in LONG_COLUMNS and c.key != "properties"]
    return {
        "name": node.name,
        "cost_usd": report.json_value("usd", node.cost_usd),
        "requests": [report.json_row(columns, row) for row in node.requests],
        "children": [node_json(child) for child in node.children.values()],
    }


def tree_text(node: Node, zone: tzinfo, depth: int = 0) -> str:
    pad = "  " * depth
    cost = "cost unknown" if node.cost_usd is None else report.dollars(node.cost_usd)
    lines = [f"{pad}{report.neutral(node.name)}  {cost}"]
    lines += [f"{pad}  {tail_line({**row, 'properties': {}}, zone, color=False)}" for row in node.requests]
    lines += [tree_text(child, zone, depth + 1) for child in node.children.values()]
    return "\n".join(lines)
