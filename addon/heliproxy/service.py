"""`heliproxy service`: the file that has systemd or launchd start `heliproxy serve` at each login."""

from __future__ import annotations

import os
import plistlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

LABEL = "dev.heliproxy.serve"
KEPT = ("HELIPROXY_HOME", "HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy", "NO_PROXY", "no_proxy")
KEPT_FILES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
"""Of the environment: the home, and how this machine reaches the world. A service inherits nothing of a shell's."""


@click.command("service", context_settings={"ignore_unknown_options": True})
@click.option(
    "--kind",
    type=click.Choice(("systemd", "launchd")),
    default="launchd" if sys.platform == "darwin" else "systemd",
    show_default=True,
    help="Whose file.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def service_command(kind: str, arguments: tuple[str, ...]) -> None:
    """Print the file that has `heliproxy serve ARGUMENTS` started at each login. Nothing is installed.

    \b
    heliproxy service > ~/.config/systemd/user/heliproxy.service
    systemctl --user enable --now heliproxy
    heliproxy service --kind launchd > ~/Library/LaunchAgents/dev.heliproxy.serve.plist
    launchctl bootstrap gui/$UID ~/Library/LaunchAgents/dev.heliproxy.serve.plist
    """
    from heliproxy.environment import original_env
    from heliproxy.serve_cli import serve_command

    try:
        # Only to find mistakes now, not in a log at the next login.
        serve_command.make_context("heliproxy serve", list(arguments))
    except click.exceptions.Exit:
        raise click.UsageError("ARGUMENTS are those of a proxy that runs, not --help") from None
    command = [*own_command(sys.argv[0]), "serve", *arguments]
    environ = kept(original_env(os.environ))
    click.echo(unit(command, environ) if kind == "systemd" else plist(command, environ), nl=False)


def own_command(invoked: str) -> list[str]:
    """How to start this very heliproxy from anywhere."""
    found = shutil.which(invoked) if invoked.endswith(("heliproxy", "heliproxy.exe")) else None
    return [str(Path(found).absolute())] if found is not None else [sys.executable, "-m", "heliproxy"]


def kept(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that the service needs, those with files only while the files are there."""
    found = {name: environ[name] for name in KEPT if environ.get(name)}
    return found | {name: environ[name] for name in KEPT_FILES if Path(environ.get(name, "")).is_file()}


def unit(command: Sequence[str], environ: Mapping[str, str]) -> str:
    """A systemd user unit."""
    variables = "".join(f"Environment={quoted(f'{name}={value}')}\n" for name, value in environ.items())
    return f"""\
[Unit]
Description=heliproxy, a local Helicone

[Service]
ExecStart={" ".join(quoted(part, dollar="$$") for part in command)}
{variables}Restart=on-failure
RestartSec=2
TimeoutStopSec=20
UMask=0077
NoNewPrivileges=yes

[Install]
WantedBy=default.target
"""


def quoted(text: str, dollar: str = "$") -> str:
    """One word for systemd: quoted where needed, its specifiers (and in commands, variables) taken literally."""
    plain = text.replace("%", "%%").replace("$", dollar)
    if plain and not any(c in plain for c in " \t\"'\\;\n"):
        return plain
    return '"{}"'.format(plain.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n"))


def plist(command: Sequence[str], environ: Mapping[str, str]) -> str:
    """A launchd agent."""
    log = str(Path.home() / "Library" / "Logs" / "heliproxy.log")
    return plistlib.dumps(
        {
            "Label": LABEL,
            "ProgramArguments": list(command),
            "EnvironmentVariables": dict(environ),
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ExitTimeOut": 20,
            "Umask": 0o077,
            "StandardOutPath": log,
            "StandardErrorPath": log,
        },
        sort_keys=False,
    ).decode()
