"""`heliproxy statusline`, for the status bar of an agent or a shell, and `heliproxy open`."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from heliproxy.options import home_option
from heliproxy.rounding import without_noise

if TYPE_CHECKING:
    from heliproxy.tallies import Line

PARTS = ("session", "today", "month")
STDIN_LIMIT = 1 << 20


@click.command("statusline")
@home_option
@click.option("--session", help="Show this session too. Default: the one that the agent names on stdin, as JSON.")
@click.option("--user", help="Count this user only.")
@click.option("--show", default="session,today", show_default=True, help=f"What to show: {', '.join(PARTS)}.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def statusline_command(home: Path, session: str | None, user: str | None, show: str, as_json: bool) -> None:
    """Print one line with what calls cost: for the status bar of Claude Code, tmux or a shell.

    A log that does not exist yet, or cannot be read now, gives an empty line: a status bar must not break.

    \b
    heliproxy statusline
    heliproxy statusline --show today,month --user ada
    """
    wanted = [part.strip() for part in show.split(",") if part.strip()]
    unknown = [part for part in wanted if part not in PARTS]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r}; expected {', '.join(PARTS)}", param_hint="--show")
    session = session or session_on_stdin()
    lines = spending(home, wanted, session, user, datetime.now(UTC))
    if as_json:
        click.echo(json.dumps({name: line_json(line) for name, line in lines.items()}))
    else:
        click.echo(" · ".join(f"{name} {line_text(line)}" for name, line in lines.items()))


def session_on_stdin() -> str | None:
    """The `session_id` of the JSON object that agents write to their status line command; None when there is none."""
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return None
    import select

    try:
        # A pipe that nobody writes to must not hang the bar.
        if not select.select([sys.stdin], [], [], 0.1)[0]:
            return None
        found = json.loads(sys.stdin.read(STDIN_LIMIT) or "null")
    except (OSError, ValueError, RecursionError):
        return None
    value = found.get("session_id") if isinstance(found, dict) else None
    return value if isinstance(value, str) else None


def spending(home: Path, wanted: list[str], session: str | None, user: str | None, now: datetime) -> dict[str, Line]:
    """What was used, by part of `PARTS`; the same figures as `heliproxy costs`. Empty when there is no log to read."""
    from heliproxy.filters import Filters
    from heliproxy.home import DATABASE_NAME
    from heliproxy.migrations import SchemaError
    from heliproxy.queries import costs
    from heliproxy.store import open_reader
    from heliproxy.times import SystemZone, parse_span

    users = (user,) if user else ()
    zone = SystemZone()
    found: dict[str, Line] = {}
    try:
        with closing(open_reader(home / DATABASE_NAME)) as conn:
            for part in wanted:
                if part == "session":
                    if session is None:
                        continue
                    filters = Filters(sessions=(session,), users=users)
                else:
                    filters = Filters(since=parse_span(part, now, zone)[0], users=users)
                found[part] = costs(conn, ("model",), filters, zone=zone).total
    except (OSError, SchemaError, sqlite3.Error):
        return {}
    return found


def line_text(line: Line) -> str:
    """`$0.1234 (12 calls, 2 failed, 1 unpriced)`."""
    from heliproxy.report import dollars

    notes = [f"{line.requests:,} call{'' if line.requests == 1 else 's'}"]
    notes += [f"{line.errors} failed"] if line.errors else []
    notes += [f"{line.unpriced} unpriced"] if line.unpriced else []
    return f"{dollars(line.cost_usd or 0.0)} ({', '.join(notes)})"


def line_json(line: Line) -> dict[str, Any]:
    return {name: without_noise(getattr(line, name)) for name in type(line).__slots__ if name != "key"}


@click.command("open")
@click.option("--port", type=click.IntRange(1, 65535), default=8585, show_default=True, help="Port of the dashboard.")
@click.option("--print", "print_only", is_flag=True, help="Print the address instead of opening a browser.")
@click.argument("request_id", required=False)
def open_command(port: int, print_only: bool, request_id: str | None) -> None:
    """Open the dashboard, or the page of one request, in the browser. Needs a running `heliproxy serve`.

    \b
    heliproxy open
    heliproxy open 019a2b6c-77aa-7d10-a4fd-7fb41c81a2c5
    """
    from urllib.parse import quote

    page = f"requests/{quote(request_id, safe='')}" if request_id else ""
    token = os.environ.get("HELIPROXY_TOKEN")
    # Behind the #, the token stays in the browser: it is in no log and no Referer.
    url = f"http://127.0.0.1:{port}/" + (f"login?to=/{page}#{quote(token, safe='')}" if token else page)
    if print_only:
        click.echo(url)
        return
    if not answers(port):
        raise click.ClickException(f"nothing answers on 127.0.0.1:{port}; start `heliproxy serve` first")
    import webbrowser

    if not webbrowser.open(url):
        click.echo(f"No browser found. The address is {url}", err=True)


def answers(port: int) -> bool:
    """Whether something listens on this port of this machine."""
    import socket

    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False
