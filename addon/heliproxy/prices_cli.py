"""The commands `heliproxy prices` and `heliproxy recost`."""

from __future__ import annotations

import json
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from heliproxy.home import DATABASE_NAME, default_home
from heliproxy.report import request_word

if TYPE_CHECKING:
    from heliproxy.pricing import Prices

home_option = click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="HELIPROXY_HOME",
    help="Folder that holds heliproxy.db and prices.toml.",
)
_MOST_CHANGES = 50


def _prices(home: Path) -> Prices:
    from heliproxy.pricing import Prices

    return Prices(home)


@click.group()
def prices() -> None:
    """Show prices, check them, update them, and name models yourself.

    \b
    Your own prices stand in prices.toml in heliproxy's home and win over all others:

    \b
    [[price]]
    model = "gpt-4o*"          # a glob
    provider = "azure"         # optional
    valid_from = 2026-01-01    # optional
    input = 2.50               # USD per million tokens; also cache_read, cache_write, output, ...
    output = 10.00
    request = 0.001            # USD each; also web_search, image, page, ...
    """


@prices.command("show")
@click.argument("model")
@click.option("--provider", help="Who bills the model; guessed from its name without this.")
@click.option("--at", metavar="TIME", help="Show the price at this time (2026-03-01) instead of now.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@home_option
def show_command(model: str, provider: str | None, at: str | None, as_json: bool, home: Path | None) -> None:
    """Show what a model costs and where that price comes from.

    \b
    heliproxy prices show gpt-4o-mini
    heliproxy prices show us.anthropic.claude-sonnet-4-5-20250929-v1:0 --provider bedrock
    """
    when = _time(at, "--at") if at else datetime.now(UTC)
    table = _prices(home or default_home())
    _warn(table)
    quotes = table.quotes(provider, model, when)
    if not quotes:
        raise click.ClickException(f"no source knows a price for {model!r}{f' at {provider}' if provider else ''}")
    if as_json:
        keys = ("source", "price_id", "version", "prices")
        click.echo(json.dumps([dict(zip(keys, quote, strict=True)) for quote in quotes], indent=2))
        return
    for source, price_id, version, text in quotes:
        click.echo(f"{price_id}  ({source}, {version})\n  {text}")
    click.echo(
        "USD per million tokens, per 1,000 searches or pages, per hour of audio. The first price counts.", err=True
    )


@prices.command("check")
@home_option
def check_command(home: Path | None) -> None:
    """Report the age of the prices, mistakes in prices.toml, and logged models without a price.

    Exits with 1 when something needs attention.
    """
    from heliproxy.pricing import STALE_DAYS

    folder = home or default_home()
    table = _prices(folder)
    age = table.snapshot_age(datetime.now(UTC))
    dated = f"data of {table.snapshot_date}, {age} days old" if age is not None else "of unknown age"
    click.echo(f"prices: {table.table.version}, {dated}")
    stale = age is not None and age > STALE_DAYS
    if stale:
        click.echo(f"older than {STALE_DAYS} days; see `heliproxy prices update --help`")
    for problem in table.problems:
        click.echo(f"ignored: {problem}")
    overrides = table.overrides
    click.echo(
        f"your own: {len(overrides.prices)} prices, {len(overrides.aliases)} aliases, {len(table.problems)} ignored"
    )
    missing = _unpriced(folder / DATABASE_NAME)
    if missing:
        click.echo("without a price:")
        width = max(len(f"{provider}:{model}") for provider, model, _ in missing)
        for provider, model, count in missing:
            click.echo(f"  {f'{provider}:{model}':<{width}}  {request_word(count)}")
        click.echo("Give them a price in prices.toml or an alias (`heliproxy prices alias`), then `heliproxy recost`.")
    if stale or missing or table.problems:
        raise SystemExit(1)


def _unpriced(path: Path) -> list[tuple[str, str, int]]:
    if not path.exists():
        return []
    sql = """
        SELECT coalesce(provider, '?'), coalesce(response_model, request_model, model, '?'), count(*) FROM requests
        WHERE cost_usd IS NULL AND usage_source IN ('provider', 'header', 'estimated')
        GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2 LIMIT 200
    """
    from heliproxy.migrations import SchemaError
    from heliproxy.store import open_reader

    try:
        conn = open_reader(path)
        try:
            return [tuple(row) for row in conn.execute(sql)]
        finally:
            conn.close()
    except (sqlite3.Error, SchemaError, OSError) as e:
        raise click.ClickException(f"{path.name}: {e}") from e


@prices.command("update")
@click.option(
    "--from", "file", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="genai-prices' data.json."
)
@click.option(
    "--wheel",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A genai-prices wheel; its code is run.",
)
@click.option("--online", is_flag=True, help="Fetch the data genai-prices publishes on GitHub.")
@click.option("--revert", is_flag=True, help="Go back to the table before the last update.")
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@home_option
def update_command(
    file: Path | None, wheel: Path | None, online: bool, revert: bool, dry_run: bool, home: Path | None
) -> None:
    """Replace the price table by a newer one. Nothing is ever fetched without this command.

    \b
    heliproxy prices update --online
    heliproxy prices update --wheel genai_prices-0.3.0-py3-none-any.whl

    The new table is checked and the changes are shown. Logged requests keep their cost; see `heliproxy recost`.
    """
    from heliproxy import price_update

    if sum(map(bool, (file, wheel, online, revert))) != 1:
        raise click.UsageError("choose one of --from FILE, --wheel FILE, --online, --revert")
    folder = home or default_home()
    current = _prices(folder).table
    try:
        if file is not None:
            name, content = file.name, file.read_bytes()
        elif wheel is not None:
            name, content = wheel.name, price_update.read_wheel(wheel)
        elif online:
            name, content = price_update.DATA_URL, price_update.download()
        else:
            name, content = price_update.LAST_GOOD_FILE, (folder / price_update.LAST_GOOD_FILE).read_bytes()
        new = price_update.parse_table(content, name)
        price_update.check_table(new, current)
    except (OSError, ValueError) as e:
        raise click.ClickException(f"the prices in use stay: {e}") from e
    changes = price_update.describe_changes(new, current)
    for line in changes[:_MOST_CHANGES]:
        click.echo(line)
    if len(changes) > _MOST_CHANGES:
        click.echo(f"... and {len(changes) - _MOST_CHANGES} more")
    click.echo(f"{current.version} -> {new.version}: {len(changes)} models change", err=True)
    if dry_run:
        return
    try:
        price_update.store_table(folder, content, name)
    except OSError as e:
        raise click.ClickException(f"the prices in use stay: {e}") from e
    if _prices(folder).table.version != new.version:
        click.echo("stored, but the installed genai-prices is newer and stays in use", err=True)


@prices.command("alias")
@click.argument("name", required=False)
@click.argument("model", required=False)
@click.option("--remove", is_flag=True, help="Forget NAME.")
@home_option
def alias_command(name: str | None, model: str | None, remove: bool, home: Path | None) -> None:
    """Price NAME (an Azure deployment, a Bedrock profile ARN, a glob) as MODEL. Without arguments, list the aliases.

    \b
    heliproxy prices alias my-deployment gpt-4o-mini
    heliproxy prices alias 'arn:aws:bedrock:*/abc123' anthropic.claude-sonnet-4-5-20250929-v1:0
    heliproxy prices alias house-model openai:gpt-4o
    """
    from heliproxy.price_overrides import write_alias

    folder = home or default_home()
    table = _prices(folder)
    if name is None:
        for alias, target in sorted(table.overrides.aliases.items()):
            click.echo(f"{alias} = {target}")
        return
    if (model is None) != remove:
        raise click.UsageError("give NAME and MODEL, or NAME and --remove")
    if remove and name.strip().lower() not in table.overrides.aliases:
        raise click.ClickException(f"there is no alias {name!r}; `heliproxy prices alias` lists them")
    try:
        write_alias(folder, name, model)
    except (OSError, ValueError) as e:
        raise click.ClickException(str(e)) from e
    click.echo(f"{name} is priced as {model} from now on" if model is not None else f"forgot the alias {name}")
    if model is not None and not any(
        _prices(folder).quotes(provider, name, datetime.now(UTC)) for provider in (None, "azure", "bedrock", "openai")
    ):
        click.echo(f"note: no source knows a price for {model!r} yet", err=True)


@click.command("recost")
@click.argument("database", required=False, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--since", metavar="TIME", help="Only requests from then on: 2026-09-01, 7d, today, month.")
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@home_option
def recost(database: Path | None, since: str | None, dry_run: bool, home: Path | None) -> None:
    """Price logged requests again, from their stored usage, with the prices known now for the time of each call.

    Costs that a provider reported itself stay. Safe while the proxy runs.

    \b
    heliproxy recost --since 30d --dry-run
    """
    from heliproxy.recost import recost_rows

    begin = _stored(since)
    folder = home or default_home()
    table = _prices(folder)
    _warn(table)
    path = database or folder / DATABASE_NAME
    try:
        totals = recost_rows(path, table, since=begin, dry_run=dry_run)
    except (OSError, sqlite3.Error) as e:
        raise click.ClickException(f"{path.name}: {e}") from e
    click.echo(
        f"{request_word(totals.rows)} looked at, {totals.changed} {'would change' if dry_run else 'changed'} "
        f"({totals.newly_priced} had no price before), {totals.unpriced} still without a price"
    )
    click.echo(f"${totals.before_usd:.6f} -> ${totals.after_usd:.6f}")


def _warn(table: Prices) -> None:
    for problem in table.problems:
        click.echo(f"ignored: {problem}", err=True)


def _time(text: str, option: str) -> datetime:
    from heliproxy.times import SystemZone, parse_span

    try:
        return parse_span(text, datetime.now(UTC), SystemZone())[0]
    except ValueError as e:
        raise click.BadParameter(str(e), param_hint=option) from e


def _stored(text: str | None) -> str:
    from heliproxy.times import stored_time

    return stored_time(_time(text, "--since")) if text else ""
