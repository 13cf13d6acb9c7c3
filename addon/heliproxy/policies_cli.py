"""The commands `heliproxy cache` and `heliproxy budget`."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from heliproxy.home import DATABASE_NAME, default_home
from heliproxy.policies.budget import ACTIONS, PERIODS, BudgetState, make_budget, parse_scope
from heliproxy.rounding import amount_text, decimal_text

if TYPE_CHECKING:
    from collections.abc import Iterator

if TYPE_CHECKING:
    from heliproxy.policy_store import BudgetStore, StateFile

home_option = click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="HELIPROXY_HOME",
    help="Folder that holds state.db and heliproxy.db.",
)


@contextlib.contextmanager
def _state(home: Path | None) -> Iterator[StateFile]:
    """The open state file; what the disk refuses becomes a plain error message."""
    from heliproxy.policy_store import STATE_NAME, StateFile

    state = StateFile((home or default_home()) / STATE_NAME)
    try:
        yield state
    except (sqlite3.Error, OSError) as e:
        raise click.ClickException(f"{STATE_NAME}: {e}") from e
    finally:
        state.close()


@contextlib.contextmanager
def _budgets(home: Path | None) -> Iterator[BudgetStore]:
    from heliproxy.policy_store import BudgetStore

    with _state(home) as state:
        yield BudgetStore(state, (home or default_home()) / DATABASE_NAME)


@click.group()
def cache() -> None:
    """Show or clear cached answers."""


@cache.command("stats")
@home_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def cache_stats(home: Path | None, as_json: bool) -> None:
    """Show how much is cached.

    Example: heliproxy cache stats --json
    """
    from heliproxy.policy_store import CacheStore

    with _state(home) as state:
        stats = CacheStore(state).stats(time.time())
    if as_json:
        click.echo(json.dumps(stats))
        return
    answers = f"{stats['entries']} answer{'' if stats['entries'] == 1 else 's'}"
    requests = f"{stats['keys']} request{'' if stats['keys'] == 1 else 's'}"
    click.echo(f"{answers} to {requests}, {stats['bytes'] / 1e6:.1f} MB", nl=False)
    click.echo(f" of at most {stats['max_bytes'] / 1e6:.0f} MB; {stats['expired']} more have expired")
    if stats["oldest"] is not None:
        click.echo(f"oldest {_moment(stats['oldest'])}, newest {_moment(stats['newest'])}")


def _moment(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


@cache.command("clear")
@home_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def cache_clear(home: Path | None, yes: bool) -> None:
    """Remove all cached answers; running proxies forget theirs at once.

    Example: heliproxy cache clear --yes
    """
    from heliproxy.policy_store import CacheStore

    if not yes:
        click.confirm("Remove all cached answers?", abort=True, err=True)
    with _state(home) as state:
        removed = CacheStore(state).clear()
    click.echo(f"removed {removed} cached answer{'' if removed == 1 else 's'}")


@click.group()
def budget() -> None:
    """Set, show and check spending limits.

    A period begins at midnight, on Monday, or on the first, in this machine's time zone.
    """


def _now() -> datetime:
    from heliproxy.times import local_now

    return local_now()


def _scope(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    try:
        return parse_scope(value) if value is not None else None
    except ValueError as e:
        raise click.BadParameter(str(e), ctx, param) from e


@budget.command("set")
@click.argument("amount", type=float)
@click.option("--per", type=click.Choice(PERIODS), required=True, help="Period the amount is for.")
@click.option("--by", callback=_scope, help="Give each user, model, session or property:NAME this amount of its own.")
@click.option(
    "--action", type=click.Choice(ACTIONS), default="warn", show_default=True, help="What happens when it is used up."
)
@home_option
def budget_set(amount: float, per: str, by: str | None, action: str, home: Path | None) -> None:
    """Set a budget of AMOUNT dollars.

    Example: heliproxy budget set 20 --per day --by user --action block
    """
    try:
        made = make_budget(amount, per, by, action)
    except ValueError as e:
        raise click.BadParameter(str(e), param_hint="AMOUNT") from e
    with _budgets(home) as store:
        store.set(made, _now())
    click.echo(f"budget '{made.name}': {made.description}, then {made.action}")


@budget.command("list")
@home_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def budget_list(home: Path | None, as_json: bool) -> None:
    """List budgets with what is spent of them.

    Example: heliproxy budget list --json
    """
    with _budgets(home) as store:
        states = store.states(_now())
    _print(states, as_json)


@budget.command("check")
@home_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def budget_check(ctx: click.Context, home: Path | None, as_json: bool) -> None:
    """Exit with 3 when any budget is used up, with 0 otherwise.

    Example: heliproxy budget check || echo over budget
    """
    with _budgets(home) as store:
        over = [state for state in store.states(_now()) if state.over]
    _print(over, as_json, nothing="all budgets hold")
    if over:
        ctx.exit(3)


@budget.command("remove")
@click.argument("name")
@home_option
def budget_remove(name: str, home: Path | None) -> None:
    """Remove the budget NAME, as `list` shows it.

    Example: heliproxy budget remove day:user
    """
    with _budgets(home) as store:
        removed = store.remove(name)
    if not removed:
        raise click.ClickException(f"no budget is named '{name}'; `heliproxy budget list` shows the names")
    click.echo(f"removed budget '{name}'")


def _print(states: list[BudgetState], as_json: bool, nothing: str = "no budgets") -> None:
    from heliproxy.policy_store import budget_json

    if as_json:
        click.echo(json.dumps([budget_json(state) for state in states]))
        return
    if not states:
        click.echo(nothing)
    for state in states:
        kind = state.budget
        whom = f" {state.value}" if state.value else ""
        cents = f"{kind.amount_usd:.2f}"
        amount = cents if kind.amount_usd and float(cents) == kind.amount_usd else decimal_text(kind.amount_usd)
        mark = f"  USED UP ({kind.action})" if state.over else ""
        click.echo(f"{kind.name}{whom}: {amount_text(state.spent_usd)} of {amount} USD{mark}")
