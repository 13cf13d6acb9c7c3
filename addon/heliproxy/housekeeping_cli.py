"""The commands `heliproxy prune`, `backup` and `vacuum`."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from heliproxy.home import DATABASE_NAME
from heliproxy.options import home_option
from heliproxy.report import request_word

if TYPE_CHECKING:
    from heliproxy.housekeeping import Pruned

MB = 1_000_000
SHOW_AFTER_SECONDS = 1.0
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@contextlib.contextmanager
def plain_errors(path: Path) -> Iterator[None]:
    """What the disk or SQLite refuses, as a sentence."""
    from heliproxy.migrations import SchemaError

    try:
        yield
    except FileExistsError as e:
        raise click.ClickException(f"{e}; name another file") from e
    except (sqlite3.Error, OSError, SchemaError) as e:
        raise click.ClickException(f"{path}: {e}") from e


@contextlib.contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A line on a terminal that says how far it is, once it takes longer than a second."""
    started, shown = time.monotonic(), False

    def tell(done: int, total: int) -> None:
        nonlocal shown
        if sys.stderr.isatty() and time.monotonic() - started > SHOW_AFTER_SECONDS:
            shown = True
            click.echo(f"\r{what}: {100 * done // max(total, 1):3} %", nl=False, err=True)

    try:
        yield tell
    finally:
        if shown:
            click.echo("\r\033[K", nl=False, err=True)


@click.command("prune")
@click.option("--older-than", required=True, metavar="AGE", help="Such as 30d, 12h, or a day: 2026-09-01.")
@click.option("--bodies-only", is_flag=True, help="Remove bodies; keep rows, tokens and costs.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@json_option
@home_option
def prune_command(older_than: str, bodies_only: bool, dry_run: bool, as_json: bool, home: Path) -> None:
    """Remove requests that are older than AGE, with everything that belongs to them.

    May run beside `serve`. The space is used again, and given back to the disk where the file allows it; see `vacuum`.

    \b
    heliproxy prune --older-than 90d
    heliproxy prune --older-than 7d --bodies-only --dry-run
    """
    from datetime import UTC, datetime

    from heliproxy import housekeeping
    from heliproxy.store import open_reader
    from heliproxy.times import parse_span, parse_zone

    try:
        before = parse_span(older_than, datetime.now(UTC), parse_zone(None))[0]
    except ValueError as e:
        raise click.BadParameter(str(e), param_hint="--older-than") from e
    path = home / DATABASE_NAME
    with plain_errors(path):
        if dry_run:
            with contextlib.closing(open_reader(path)) as conn:
                found = housekeeping.count_old(conn, before, bodies_only=bodies_only)
        else:
            with contextlib.closing(housekeeping.open_for_upkeep(path)) as conn, progress("removing") as tell:
                found = housekeeping.prune(conn, before, bodies_only=bodies_only, tell=tell)
                housekeeping.give_back(conn)
                housekeeping.shorten_wal(conn)
    click.echo(json.dumps(asdict(found) | {"dry_run": dry_run}) if as_json else sentence(found, dry_run))


def sentence(found: Pruned, dry_run: bool) -> str:
    verb = "would remove" if dry_run else "removed"
    bodies = f"{found.bodies:,} bod{'y' if found.bodies == 1 else 'ies'}"
    return f"{verb} {request_word(found.rows)} and {bodies} ({megabytes(found.bytes)})"


@click.command("backup")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@json_option
@home_option
def backup_command(file: Path, as_json: bool, home: Path) -> None:
    """Copy the database as it is now to FILE, also while `serve` runs. The copy is for you alone to read.

    It can be read with `heliproxy --home` when it is named heliproxy.db, and with any SQLite tool.

    \b
    heliproxy backup ~/heliproxy-2026-09.db
    """
    from heliproxy import housekeeping

    with plain_errors(file), progress("copying") as tell:
        size = housekeeping.backup(home / DATABASE_NAME, file, tell=tell)
    click.echo(json.dumps({"file": str(file), "bytes": size}) if as_json else f"{file}: {size / MB:,.1f} MB")


@click.command("vacuum")
@click.option("--full", is_flag=True, help="Write the whole file anew; nothing else can be written meanwhile.")
@json_option
@home_option
def vacuum_command(full: bool, as_json: bool, home: Path) -> None:
    """Give space that is no longer used back to the disk.

    In small steps that a running `serve` does not notice. A file of an early version has to be written anew once,
    as with --full; a running proxy keeps its rows in memory for that time.

    \b
    heliproxy vacuum
    """
    from heliproxy import housekeeping

    path = home / DATABASE_NAME
    with plain_errors(path):
        with contextlib.closing(housekeeping.open_for_upkeep(path)) as conn, progress("vacuuming") as tell:
            before = path.stat().st_size
            if full or conn.execute("PRAGMA auto_vacuum").fetchone()[0] != 2:
                housekeeping.vacuum(conn)
            else:
                housekeeping.give_back(conn, tell=tell)
            housekeeping.shorten_wal(conn)
        after = path.stat().st_size
    if as_json:
        click.echo(json.dumps({"bytes_before": before, "bytes_after": after}))
    else:
        click.echo(f"{path}: {megabytes(before)} before, {megabytes(after)} now")


def megabytes(size: int) -> str:
    """Bytes as MB; small sizes with the digits that tell two apart."""
    return f"{size / MB:,.1f} MB" if size >= 100 * MB else f"{size / MB:,.3f} MB"
