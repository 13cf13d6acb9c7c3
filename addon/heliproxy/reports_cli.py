"""The reporting commands: costs, requests, show, tail, sessions. Results go to stdout, remarks to stderr."""

from __future__ import annotations

import base64
import json
import os
import shutil
import sqlite3
import sys
import time
from contextlib import closing
from dataclasses import replace
from datetime import UTC, date, datetime, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from heliproxy import filters, queries, report, times
from heliproxy.filters import Filters
from heliproxy.home import DATABASE_NAME, PRICES_DATE_NAME, PRICES_STALE_DAYS, default_home
from heliproxy.migrations import SchemaError
from heliproxy.report import Column, Table
from heliproxy.statuses import failure_mark, open_word
from heliproxy.store import open_reader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from heliproxy.bodies import Body
    from heliproxy.queries import Costs, Detail, Node, Row
    from heliproxy.tallies import Line

    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # not generic before click 8.4


class Checked(ParamType):
    """A parameter that a parsing function accepts; its ValueError becomes a usage error."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as e:
            self.fail(str(e), param, ctx)


def check_span(text: str) -> str:
    times.parse_span(text, datetime.now(UTC), UTC)
    return text


def check_status(text: str) -> str:
    filters.status_condition(text)
    return text


def parse_groups(text: str) -> tuple[str, ...]:
    return tuple(queries.parse_group(part) for part in text.split(","))


def parse_property(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ValueError(f"{text!r} is not a property; expected NAME=VALUE")
    return name, value


TIME = Checked("time", check_span)
FilterOption = tuple[str, str, Any, str]
FILTER_OPTIONS: tuple[FilterOption, ...] = (
    ("--model", "models", click.STRING, "Only this model; * matches anything. Repeatable, as all filters are."),
    ("--provider", "providers", click.STRING, "Only this provider."),
    ("--user", "users", click.STRING, "Only this user."),
    ("--session", "sessions", click.STRING, "Only this session."),
    ("--property", "properties", Checked("name=value", parse_property), "Only requests with this property."),
    ("--status", "statuses", Checked("status", check_status), f"Only {filters.STATUS_FORMS}."),
    ("--host", "hosts", click.STRING, "Only this provider host."),
    ("--run", "runs", click.STRING, "Only this `heliproxy run`."),
    ("--key", "keys", click.STRING, "Only calls made with the API key of this fingerprint."),
)


def filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for name, target, kind, text in reversed(FILTER_OPTIONS):
        command = click.option(name, target, type=kind, multiple=True, help=text)(command)
    command = click.option("--until", type=TIME, help="Up to then; a day or month is included whole.")(command)
    return click.option("--since", type=TIME, help=f"From then on: {times.TIME_FORMS}.")(command)


def common_options(*formats: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options of every report: output format, colour, time zone, and which database."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        path = click.Path(path_type=Path)
        for option in (
            click.option("--db", type=path, help="Read this database file, for example a copy of one."),
            click.option("--home", type=path, help="Folder of heliproxy.db.  [env: HELIPROXY_HOME]"),
            click.option("--no-color", is_flag=True, help="No colours, as with the variable NO_COLOR."),
            click.option(
                "-z",
                "--timezone",
                "zone",
                type=Checked("zone", times.parse_zone),
                default="local",
                show_default=True,
                help="Time zone of days and times, such as Europe/Berlin or UTC.",
            ),
            click.option("-j", "--json", "as_json", is_flag=True, help="Short for -f json."),
            click.option("-f", "--format", "form", type=click.Choice(formats), default=formats[0], show_default=True),
        ):
            command = option(command)
        return command

    return add


def database_path(db: Path | None, home: Path | None) -> Path:
    return db or (home or default_home()) / DATABASE_NAME


def open_database(db: Path | None, home: Path | None) -> sqlite3.Connection:
    """Open for reading, or end with a sentence saying why not."""
    path = database_path(db, home)
    try:
        return open_reader(path)
    except FileNotFoundError as e:
        raise click.ClickException(
            f"there is no database at {path}: nothing has been logged there yet. "
            "Try `heliproxy demo`, or name another place with --home or --db."
        ) from e
    except (SchemaError, sqlite3.Error) as e:
        raise click.ClickException(f"cannot read {path}: {e}") from e


def make_filters(
    zone: tzinfo, since: str | None, until: str | None, period: str | None = None, **fields: Any
) -> Filters:
    now = datetime.now(UTC)
    start = end = None
    if period:
        start, end = times.parse_span(period, now, zone)
        if start == end:  # an instant or an age: from then on
            end = None
    return Filters(
        since=times.parse_span(since, now, zone)[0] if since else start,
        until=times.parse_span(until, now, zone)[1] if until else end,
        **{name: tuple(values) for name, values in fields.items()},
    )


def terminal() -> tuple[int | None, bool]:
    """The width to fit into, None when the output is not read on a terminal; and whether it is one."""
    is_terminal = sys.stdout.isatty()
    if is_terminal or os.environ.get("COLUMNS", "").isdecimal():
        return max(40, shutil.get_terminal_size((80, 24)).columns), is_terminal
    return None, False


def use_color(no_color: bool) -> bool:
    return not no_color and not os.environ.get("NO_COLOR") and terminal()[1]


def write(table: Table, form: str, no_color: bool, hint: str = "") -> None:
    color = use_color(no_color)
    # Colours are only there when wanted; click shall not decide again.
    click.echo(report.render(table, form, width=terminal()[0], color=color), nl=False, color=color or None)
    if not table.rows and hint:
        click.echo(hint, err=True)


NOTHING = "No requests match. `heliproxy requests --limit 5` shows the newest ones there are."


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
        table = Table(all_columns(), page.rows, about=about)
    else:
        rows = [shown(row, zone) for row in page.rows]
        notes = (f"The newest {limit} only; more with -n.",) if page.next and not oldest else ()
        table = Table(report.hideable(REQUEST_COLUMNS, rows), rows, about=about, notes=notes, bad=is_bad)
    write(table, form, no_color, NOTHING)


def all_columns() -> tuple[Column, ...]:
    from heliproxy.store import COLUMNS

    usd = ("cost_usd", "saved_usd")
    names = [*COLUMNS, "properties"]
    return tuple(Column(n, n, "usd" if n in usd else "json" if n == "properties" else "text") for n in names)


def shown(row: Row, zone: tzinfo) -> Row:
    """The row as a person reads it: local time, the status in words where it is not HTTP's."""
    return {
        **row,
        "created_at": local_time(row["created_at"], zone),
        "status": status_word(row["status"], row["error_type"]),
    }


def local_time(text: str | None, zone: tzinfo) -> str:
    try:
        at = datetime.fromisoformat(text or "")
    except ValueError:
        return text or ""
    return at.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S")


def status_word(status: int | None, error_type: str | None) -> str | int:
    """HTTP's status, or a word; "200 cut" for an answer that broke off after its good status."""
    if status is None:
        return open_word(error_type)
    mark = failure_mark(status, error_type)
    return f"{status} {mark}" if mark else {-2: "timeout", -3: "aborted", -4: "threat", 0: "failed"}.get(status, status)


def is_bad(row: Any) -> bool:
    status = row.get("status")
    return bool(row.get("error_type")) or not isinstance(status, int) or status >= 400


# -- show -----------------------------------------------------------------------------------------------------------


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
    row = {c.key: report.json_value(c.kind, detail.row.get(c.key)) for c in all_columns() if c.key != "properties"}
    for name in ("usage_json", "attempts_json"):
        row[name.removesuffix("_json")] = parsed(row.pop(name))
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


def parsed(text: str | None) -> Any:
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return text


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
    cost = "unknown" if row["cost_usd"] is None else f"${report.decimal_text(row['cost_usd'])}"
    pairs: list[tuple[str, Any]] = [("cost", cost)]
    if row["fees_usd"]:
        pairs.append(("tool fees", f"${report.decimal_text(row['fees_usd'])} on top"))
    pairs += facts(row, (("from", "cost_source"), ("price", "price_id"), ("prices of", "price_version")))
    if row["saved_usd"]:
        pairs.append(("saved", f"${report.decimal_text(row['saved_usd'])}"))
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


# -- tail -----------------------------------------------------------------------------------------------------------


@click.command("tail")
@click.option("-n", "--last", type=click.IntRange(0, 10_000), default=10, show_default=True, help="Begin with so many.")
@click.option("--once", is_flag=True, help="Print what is there and stop.")
@filter_options
@common_options("table", "ndjson")
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
    """Follow requests as they are logged, one line each, until Ctrl-C."""
    filters = make_filters(zone, since, until, **fields)
    path = database_path(db, home)
    if once:
        open_database(db, home).close()
    columns = all_columns()
    color = use_color(no_color)
    try:
        for rows in follow(path, filters, last, time.sleep, once=once):
            for row in rows:
                if as_json or form == "ndjson":
                    click.echo(report.json_line(columns, row), nl=False)
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
