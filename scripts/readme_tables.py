"""The tables of README.md that are made from the code; cog calls these functions (`scripts/check --fix`).

Every function gives Markdown that depends on the code alone: no terminal width, no home folder, no environment.
"""

from __future__ import annotations

import runpy
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "addon"))

import click

from heliproxy import cli, columns, migrations

Row = tuple[str, ...]
PROXY_COMMANDS = ("serve", "web", "run")
REPORT_COMMANDS = ("costs", "requests", "tail", "sessions")


def table(head: Row, rows: Iterable[Row]) -> str:
    """A Markdown table; a bar inside a cell is escaped."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


# -- commands and their options -------------------------------------------------------------------------------------


def commands() -> str:
    """Every command with its line of help, by section."""
    parts = []
    for title, section in cli.SECTIONS.items():
        rows = [(f"`heliproxy {name}`", entry.help) for name, entry in section.items()]
        parts.append(table((title, "what it does"), rows))
    return "\n".join(parts)


def leaves() -> Iterator[tuple[str, click.Command]]:
    """Every command that can be run, with its full name: `costs`, `budget set`, ..."""
    for name, entry in cli.COMMANDS.items():
        yield from _leaves(name, cli.load(entry.place))


def _leaves(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield name, command
        return
    for part, inner in command.commands.items():
        yield from _leaves(f"{name} {part}", inner)


def options_of(command: click.Command) -> list[click.Option]:
    return [p for p in command.params if isinstance(p, click.Option) and not p.hidden]


def option_row(option: click.Option) -> Row:
    """Names, default and meaning."""
    names = ", ".join(f"`{name}`" for name in sorted(option.opts, key=len, reverse=True))
    value = _value(option)
    return (names + (f" `{value}`" if value else ""), _default(option), (option.help or "").replace("  [", " ["))


def _value(option: click.Option) -> str:
    if option.is_flag:
        return ""
    if option.metavar:
        return option.metavar
    if isinstance(option.type, click.Choice):
        return "|".join(map(str, option.type.choices))
    if isinstance(option.type, click.Path):
        return "PATH"
    return option.type.name.upper().removesuffix(" RANGE")


def _default(option: click.Option) -> str:
    if isinstance(option.show_default, str):
        return option.show_default
    default = option.default
    # click marks "no default" with an object of its own, which differs from version to version.
    shown = isinstance(default, str | int | float) and not isinstance(default, bool) and default != ""
    return str(default) if shown else ""


def _table(rows: Iterable[Row]) -> str:
    return table(("option", "default", "meaning"), rows)


def _rows(name: str) -> list[Row]:
    command = dict(leaves())[name]
    return [option_row(o) for o in options_of(command)]


def proxy_options() -> str:
    """The options of `heliproxy serve`, which `web` and `run` share."""
    return _table(_rows("serve"))


def report_options() -> str:
    """The options that costs, requests, tail and sessions share."""
    return _table(_shared(REPORT_COMMANDS))


def costs_options() -> str:
    """The options of `costs` beside the shared ones."""
    shared = _shared(REPORT_COMMANDS)
    return _table(row for row in _rows("costs") if row not in shared)


def _shared(names: Iterable[str]) -> list[Row]:
    first, *others = (_rows(name) for name in names)
    return [row for row in first if all(row[0].split(" `")[0] in {r[0].split(" `")[0] for r in o} for o in others)]


def other_options() -> str:
    """For every command: how it is called, and the options that no table above has."""
    proxy, report = _rows("serve"), _shared(REPORT_COMMANDS)
    parts = []
    for name, command in leaves():
        if name == "costs":  # has its table in the text
            continue
        rows = _rows(name)
        own = [row for row in rows if row not in proxy and row not in report and not row[0].startswith("`--home`")]
        also = "proxy options" if name in PROXY_COMMANDS else "report options" if name in REPORT_COMMANDS else ""
        text = f"`heliproxy {usage(name, command)}`"
        text += f" and the [{also}](#{also.replace(' ', '-')})" if also else ""
        parts.append(text + "\n" + ("\n" + _table(own) if own else ""))
    return "\n".join(parts)


def usage(name: str, command: click.Command) -> str:
    words = [name]
    for param in command.params:
        if isinstance(param, click.Argument):
            word = (param.metavar or str(param.name).upper()) + ("..." if param.nargs == -1 else "")
            words.append(word if param.required else f"[{word}]")
    return " ".join(words)


# -- the addon and the database -------------------------------------------------------------------------------------


class Loader:
    """Takes the options that our addons give to mitmproxy."""

    def __init__(self) -> None:
        self.options: list[tuple[str, Any, str]] = []

    def add_option(self, name: str, kind: Any, default: Any, text: str, *_: Any, **__: Any) -> None:
        self.options.append((name, default, text))


def mitmproxy_options() -> list[tuple[str, Any, str]]:
    """(name, default, meaning) of every `heliproxy_*` option."""
    script = Path(cli.__file__).parent / "shims" / "mitmproxy" / "script.py"
    loader: Any = Loader()
    for addon in runpy.run_path(str(script))["addons"]:
        addon.load(loader)
    return list(loader.options)


def addon_options() -> str:
    rows = [
        (f"`{name}`", "" if default in ("", []) else str(default).lower(), text)
        for name, default, text in mitmproxy_options()
    ]
    return table(("option", "default", "meaning"), rows)


def schema() -> Mapping[str, Mapping[str, str]]:
    """Every table that people read, with its columns and their SQLite types."""
    conn = sqlite3.connect(":memory:", isolation_level=None)
    try:
        migrations.migrate(conn)
        names = [name for (name,) in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {
            name: {row[1]: row[2] for row in conn.execute(f"PRAGMA table_info({name})")}
            for name in names
            if not name.startswith(("_", "sqlite_", "rollup"))
        }
    finally:
        conn.close()


def requests_columns() -> str:
    types = schema()["requests"]
    rows = [(f"`{name}`", types[name].lower(), text) for name, text in columns.REQUESTS.items()]
    return table(("column", "type", "meaning"), rows)


def other_columns() -> str:
    rows = [
        (f"`{name}`", f"`{column}`", types[column].lower(), text)
        for name, types, texts in ((n, schema()[n], t) for n, t in columns.OTHERS.items())
        for column, text in texts.items()
    ]
    return table(("table", "column", "type", "meaning"), rows)
