"""The `heliproxy` command: names, one-line descriptions, and where each subcommand lives.

Nothing but click is imported until a subcommand is chosen; `heliproxy --help` must feel instant.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import click

from heliproxy import __version__


class Entry(NamedTuple):
    """One subcommand: its place as `module:attribute` below heliproxy, and its line in `--help`."""

    place: str
    help: str


SECTIONS: dict[str, dict[str, Entry]] = {
    "Proxy": {
        "run": Entry("run:run_command", "Run a program through a proxy and print what its calls cost."),
        "serve": Entry("serve_cli:serve_command", "Run the proxy, dashboard and REST API until stopped."),
        "web": Entry("serve_cli:web_command", "Run mitmweb with heliproxy inside, to look into each flow."),
        "env": Entry("environment:env_command", "Print the shell lines that send a session through the proxy."),
        "demo": Entry("demo:demo_command", "Make a dozen calls to a built-in fake provider and show the result."),
    },
    "Reports": {
        "costs": Entry("reports_cli:costs", "Report requests, tokens and dollars, grouped as you like."),
        "requests": Entry("reports_cli:requests", "List requests."),
        "show": Entry("show_cli:show", "Show one request with everything known about it."),
        "tail": Entry("reports_cli:tail", "Follow requests as they are logged."),
        "sessions": Entry("reports_cli:sessions", "List sessions, or show one as a tree."),
        "statusline": Entry("terminal_cli:statusline_command", "Print what was spent on one line, for a status bar."),
        "open": Entry("terminal_cli:open_command", "Open the dashboard, or one request in it, in the browser."),
        "export": Entry("exports_cli:export", "Write requests to a file, or send them to an OTLP collector."),
        "import": Entry("exports_cli:import_command", "Read requests from an export into the database."),
    },
    "Policies and prices": {
        "cache": Entry("policies_cli:cache", "Show or clear cached answers."),
        "budget": Entry("policies_cli:budget", "Set, show and check spending limits."),
        "prices": Entry("prices_cli:prices", "Show prices and override them."),
        "recost": Entry("prices_cli:recost", "Price logged requests again."),
    },
    "Housekeeping": {
        "prune": Entry("housekeeping_cli:prune_command", "Remove old requests, or only their bodies."),
        "backup": Entry("housekeeping_cli:backup_command", "Copy the database, also while it is in use."),
        "vacuum": Entry("housekeeping_cli:vacuum_command", "Give unused space back to the disk."),
    },
    "Set-up": {
        "doctor": Entry("doctor:doctor_command", "Find what keeps calls from being logged, and say the cure."),
        "service": Entry("service:service_command", "Print the systemd or launchd file that starts serve at login."),
        "certs": Entry("certs_cli:certs_command", "Show, export and renew the certificate authority."),
        "addon-path": Entry("cli:addon_path_command", "Print the script for `mitmdump -s` and `mitmweb -s`."),
        "version": Entry("cli:version_command", "Print the versions of heliproxy and what it stands on."),
    },
}


COMMANDS = {name: entry for section in SECTIONS.values() for name, entry in section.items()}


class LazyGroup(click.Group):
    """A group that imports a subcommand's module when it is used, not when it is listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return load(COMMANDS[cmd_name].place) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections from the table; asking each command would import it."""
        width = max(map(len, COMMANDS))
        for title, section in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), entry.help) for name, entry in section.items()])


def load(place: str) -> click.Command:
    """Import the command at `module:attribute`."""
    module, attribute = place.split(":")
    command: click.Command = getattr(importlib.import_module(f"heliproxy.{module}"), attribute)
    return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="heliproxy", message="%(prog)s %(version)s")
def main() -> None:
    """A local Helicone: see, price, cache and limit the LLM calls of any program.

    \b
    heliproxy run -- python app.py     one program, nothing to set up
    heliproxy costs --by model         what it all cost
    """


@click.command("addon-path")
def addon_path_command() -> None:
    """Print the script that loads heliproxy into any mitmproxy.

    \b
    mitmdump -s "$(heliproxy addon-path)"
    """
    from pathlib import Path

    click.echo(Path(__file__).parent / "shims" / "mitmproxy" / "script.py")


@click.command("version")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def version_command(as_json: bool) -> None:
    """Print the versions of heliproxy and what it stands on."""
    import platform
    from importlib.metadata import version

    names = ("mitmproxy", "genai-prices", "tiktoken", "sqlite-utils")
    versions: dict[str, Any] = {"heliproxy": __version__, "python": platform.python_version()}
    versions |= {name: version(name) for name in names}
    if as_json:
        import json

        click.echo(json.dumps(versions))
    else:
        for name, value in versions.items():
            click.echo(f"{name} {value}")
