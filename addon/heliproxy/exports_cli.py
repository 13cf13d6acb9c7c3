"""`heliproxy export` and `heliproxy import`: the flags of Helicone's export tool, on our own file."""

from __future__ import annotations

import sqlite3
import sys
import time
from contextlib import closing, nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from heliproxy import times
from heliproxy.home import DATABASE_NAME, default_home, make_private_file
from heliproxy.migrations import SchemaError
from heliproxy.report import request_word
from heliproxy.store import COLUMNS, Store, open_reader

if TYPE_CHECKING:
    from heliproxy.export import Progress, Wanted

STATE_FILE = ".helicone-export-state.json"
DEFAULT_DAYS = 30
FORMS = ("jsonl", "json", "csv", "otlp")
LEVELS = ("quiet", "normal", "verbose")
IMPORT_BATCH = 500


@click.command("export")
@click.option("--start-date", help=f"From then on: {times.TIME_FORMS}.  [default: {DEFAULT_DAYS} days ago]")
@click.option("--end-date", help="Up to then; a day or month is included whole.  [default: now]")
@click.option("--limit", type=click.IntRange(min=1), help="At most this many requests.")
@click.option("--format", "form", type=click.Choice(FORMS), default="jsonl", show_default=True, help="Output format.")
@click.option("--include-body", is_flag=True, help="With request and response bodies.")
@click.option("-o", "--output", help="File to write; - is stdout.  [default: output.{format}]")
@click.option("-p", "--property", "properties", multiple=True, metavar="KEY=VALUE", help="Only with this property.")
@click.option("--batch-size", type=click.IntRange(1, 10_000), default=1000, show_default=True, help="Rows a step.")
@click.option("--resume", is_flag=True, help=f"Go on with an export that was interrupted ({STATE_FILE}).")
@click.option("--clean-state", is_flag=True, help="Forget an interrupted export.")
@click.option("--log-level", type=click.Choice(LEVELS), default="normal", show_default=True, help="How much is said.")
@click.option("--max-retries", type=click.IntRange(0, 20), default=5, show_default=True, help="For --format otlp.")
@click.option("--region", type=click.Choice(("us", "eu")), help="Taken and ignored: everything is here.")
@click.option("--endpoint", default="http://localhost:4318/v1/traces", show_default=True, help="For --format otlp.")
@click.option("--header", "headers", multiple=True, metavar="NAME=VALUE", help="Sent with --format otlp. Repeatable.")
@click.option("--follow", is_flag=True, help="With --format otlp: then send each new request, until stopped.")
@click.option("--db", type=click.Path(path_type=Path), help="Read this database file.")
@click.option("--home", type=click.Path(path_type=Path), help="Folder of heliproxy.db.  [env: HELIPROXY_HOME]")
def export(
    start_date: str | None,
    end_date: str | None,
    limit: int | None,
    form: str,
    include_body: bool,
    output: str | None,
    properties: tuple[str, ...],
    batch_size: int,
    resume: bool,
    clean_state: bool,
    log_level: str,
    max_retries: int,
    region: str | None,  # noqa: ARG001 - a flag of the tool we stand in for
    endpoint: str,
    headers: tuple[str, ...],
    follow: bool,
    db: Path | None,
    home: Path | None,
) -> None:
    """Write logged requests to a file, or send them to an OpenTelemetry collector.

    \b
    heliproxy export --start-date 2026-09-01 --include-body
    heliproxy export --format csv -o - -p environment=prod
    heliproxy export --format otlp --endpoint http://localhost:4318/v1/traces
    """
    state = Path(STATE_FILE)
    if clean_state:
        state.unlink(missing_ok=True)
    wanted = parse_wanted(start_date, end_date, properties)
    say = Speaker(log_level)
    with closing(open_database(db or (home or default_home()) / DATABASE_NAME)) as conn:
        if form == "otlp":
            send_spans(conn, wanted, limit, batch_size, max_retries, endpoint, headers, include_body, follow, say)
        else:
            write_file(conn, wanted, limit, form, include_body, output, batch_size, resume, state, say)


class Speaker:
    """Says on stderr what the log level lets through."""

    def __init__(self, level: str) -> None:
        self._level = LEVELS.index(level)

    def normal(self, text: str) -> None:
        if self._level >= 1:
            click.echo(text, err=True)

    def verbose(self, text: str) -> None:
        if self._level >= 2:
            click.echo(text, err=True)


def open_database(path: Path) -> sqlite3.Connection:
    try:
        return open_reader(path)
    except FileNotFoundError as e:
        raise click.ClickException(f"there is no database at {path}: nothing has been logged there yet") from e
    except (SchemaError, sqlite3.Error) as e:
        raise click.ClickException(f"cannot read {path}: {e}") from e


def parse_wanted(start: str | None, end: str | None, properties: tuple[str, ...]) -> Wanted:
    """Which requests are meant. Raises click.BadParameter."""
    from heliproxy.export import Wanted

    now = datetime.now(UTC)
    zone = times.SystemZone()
    try:
        since = times.parse_span(start, now, zone)[0] if start else now - timedelta(days=DEFAULT_DAYS)
        until = times.parse_span(end, now, zone)[1] if end else now
    except ValueError as e:
        raise click.BadParameter(str(e)) from e
    pairs = []
    for text in properties:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{text!r} is not a property; expected KEY=VALUE", param_hint="--property")
        pairs.append((name, value))
    return Wanted(times.stored_time(since), times.stored_time(until), tuple(pairs))


def write_file(
    conn: sqlite3.Connection,
    wanted: Wanted,
    limit: int | None,
    form: str,
    bodies: bool,
    output: str | None,
    batch_size: int,
    resume: bool,
    state: Path,
    say: Speaker,
) -> None:
    """Write one file, leaving a state file behind when interrupted."""
    from heliproxy.export import Output, Progress, batches, load_progress, save_progress

    target = output or f"output.{form}"
    progress = Progress(wanted, form, target, bodies)
    resumed = None
    if resume:
        try:
            resumed = load_progress(state)
        except ValueError as e:
            raise click.ClickException(f"{e}; start again with --clean-state") from e
        progress = resumable(resumed, progress, say)
    going_on = progress.after is not None
    keeps_state = target != "-" and form != "json"  # a JSON array has an end that cannot be gone on from
    with opened(target, progress.size if going_on else None) as stream:
        out = Output(stream, form)
        if not going_on:
            out.start()
        for rows in batches(conn, progress.wanted, batch_size, progress.after, bodies=progress.bodies):
            left = rows if limit is None else rows[: limit - progress.written]
            for row in left:
                out.write(row)
            if left:
                last = left[-1]
                stream.flush()
                progress = replace(
                    progress,
                    written=progress.written + len(left),
                    after=(last["request_created_at"], last["request_id"]),
                    size=stream.tell() if keeps_state else 0,
                )
                if keeps_state:
                    save_progress(state, progress)
            say.verbose(f"{request_word(progress.written)}")
            if limit is not None and progress.written >= limit:
                break
        out.end()
    if keeps_state:
        state.unlink(missing_ok=True)
    place = "stdout" if target == "-" else target
    say.normal(f"{request_word(progress.written)} written to {place}")


def resumable(saved: Progress | None, asked: Progress, say: Speaker) -> Progress:
    """The saved export when it can be gone on with, else the one asked for."""
    if saved is None:
        say.normal("there is no interrupted export here; starting a new one")
        return asked
    if saved.form != asked.form or saved.form == "json" or not Path(saved.output).is_file():
        say.normal(f"the interrupted export ({saved.form}, {saved.output}) is another one; starting anew")
        return asked
    say.normal(f"going on after {request_word(saved.written)}")
    return saved


def opened(target: str, size: int | None) -> Any:
    """The output stream: stdout, a new file, or an old one cut to `size` bytes."""
    if target == "-":
        return nullcontext(sys.stdout)
    try:
        if size is None:
            if Path(target).is_file() or not Path(target).exists():
                make_private_file(Path(target))
            return Path(target).open("w", encoding="utf-8", newline="")
        stream: TextIO = Path(target).open("r+", encoding="utf-8", newline="")  # noqa: SIM115 - the caller closes it
        stream.seek(size)
        stream.truncate()
        return stream
    except OSError as e:
        raise click.ClickException(f"cannot write {target}: {e.strerror}") from e


# -- OTLP -----------------------------------------------------------------------------------------------------------


def send_spans(
    conn: sqlite3.Connection,
    wanted: Wanted,
    limit: int | None,
    batch_size: int,
    max_retries: int,
    endpoint: str,
    headers: tuple[str, ...],
    bodies: bool,
    follow: bool,
    say: Speaker,
) -> None:
    """Send requests as spans; with `follow`, go on with new ones until interrupted."""
    from heliproxy import export_otlp
    from heliproxy.export import request_ids
    from heliproxy.queries import Follower

    try:
        exporter = export_otlp.make_exporter(endpoint, export_otlp.parse_headers(headers))
    except (ValueError, export_otlp.NotInstalledError) as e:
        raise click.ClickException(str(e)) from e
    follower = Follower(conn) if follow else None
    sent = 0
    for ids in request_ids(conn, wanted, min(batch_size, 500)):
        part = ids if limit is None else ids[: limit - sent]
        send_part(conn, exporter, part, bodies, max_retries, endpoint)
        sent += len(part)
        say.verbose(f"{request_word(sent)}")
        if limit is not None and sent >= limit:
            break
    say.normal(f"{request_word(sent)} sent to {endpoint}")
    try:
        while follower is not None:
            rows = follower.poll()
            if rows:
                send_part(conn, exporter, [row["id"] for row in rows], bodies, max_retries, endpoint)
                say.verbose(f"{len(rows):,} more")
            time.sleep(1)
    except KeyboardInterrupt:
        pass
    finally:
        exporter.shutdown()


def send_part(
    conn: sqlite3.Connection, exporter: Any, ids: list[str], bodies: bool, max_retries: int, endpoint: str
) -> None:
    from heliproxy import export_otlp
    from heliproxy.api.rows import request_rows
    from heliproxy.bodies import read_body

    spans = [
        export_otlp.make_span(row, read_body(conn, row["id"]) if bodies else None)
        for row in request_rows(conn, ids, COLUMNS)
    ]
    for attempt in range(max_retries + 1):
        if not spans or export_otlp.send(exporter, spans):
            return
        if attempt < max_retries:
            time.sleep(min(16, 2**attempt))
    raise click.ClickException(f"{endpoint} did not take the spans")


# -- import ---------------------------------------------------------------------------------------------------------


@click.command("import")
@click.argument("file", type=click.File("r", encoding="utf-8"))
@click.option("--home", type=click.Path(path_type=Path), help="Folder of heliproxy.db.  [env: HELIPROXY_HOME]")
def import_command(file: TextIO, home: Path | None) -> None:
    """Read an export (JSON lines, from Helicone or from us) into the database. Requests that are there already stay.

    \b
    heliproxy import output.jsonl
    """
    from heliproxy.export import Imported, read_lines, store

    path = (home or default_home()) / DATABASE_NAME
    try:
        writer = Store(path).writer()
    except (SchemaError, sqlite3.Error, OSError) as e:
        raise click.ClickException(f"cannot write {path}: {e}") from e
    new = old = bad = 0
    try:
        with closing(open_database(path)) as conn:

            def known(request_id: str) -> bool:
                return conn.execute("SELECT 1 FROM requests WHERE id = ?", (request_id,)).fetchone() is not None

            batch: list[Imported] = []
            for number, found in read_lines(file):
                if isinstance(found, ValueError):
                    bad += 1
                    if bad <= 10:
                        click.echo(f"line {number} is left out: {found}", err=True)
                    continue
                batch.append(found)
                if len(batch) >= IMPORT_BATCH:
                    added = store(writer, batch, known)
                    new, old, batch = new + added, old + len(batch) - added, []
            added = store(writer, batch, known)
            new, old = new + added, old + len(batch) - added
    except UnicodeDecodeError as e:
        raise click.ClickException(f"{file.name} is not UTF-8") from e
    except (sqlite3.Error, OSError) as e:
        raise click.ClickException(f"cannot write {path}: {e}") from e
    finally:
        writer.close()
    click.echo(f"{request_word(new)} imported, {old:,} were there already, {bad:,} lines left out", err=True)
    if bad and not new and not old:
        raise click.ClickException(
            f"{file.name} holds no exported requests: import reads what export writes as jsonl or json"
        )
