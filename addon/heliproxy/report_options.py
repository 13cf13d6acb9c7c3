"""The options that all reports share, and what they lead to: filters, a database to read, a place to write to."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from heliproxy import filters, report, times
from heliproxy.filters import Filters
from heliproxy.home import DATABASE_NAME, default_home
from heliproxy.migrations import SchemaError
from heliproxy.store import open_reader

if TYPE_CHECKING:
    from collections.abc import Callable

    from heliproxy.report import Table

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
