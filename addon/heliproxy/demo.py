"""`heliproxy demo`: the main job on this machine alone, with no key and no network.

A stand-in provider, a real proxy, real SDK calls, and then the same reports as for real calls.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import click

from heliproxy.options import home_option

HOSTS = ("api.openai.com", "api.anthropic.com")
SDKS = ("openai", "anthropic")


@click.command("demo")
@home_option
def demo_command(home: Path) -> None:
    """Make a dozen calls to a built-in fake provider and show what heliproxy makes of them.

    Needs no key and no network. What it logs is kept apart from your own calls, in the folder `demo` of your home.

    \b
    heliproxy demo
    """
    missing = [name for name in SDKS if importlib.util.find_spec(name) is None]
    if missing:
        raise click.ClickException(
            f"the demo calls with the vendors' own SDKs; missing: {', '.join(missing)} (pip install 'heliproxy[demo]')"
        )
    demo_home = home / "demo"
    status = run_app(demo_home)
    if status != 0:
        raise click.ClickException(f"the demo's app ended with status {status}")
    show(demo_home)


def run_app(home: Path) -> int:
    """Run the demo's app through a proxy of its own, with the stand-in as every provider; return its exit status."""
    from heliproxy.demo_provider import DemoProvider
    from heliproxy.run import run
    from heliproxy.settings import Settings, parse_upstreams

    with DemoProvider() as provider:
        click.echo("A dozen calls with the official SDKs, to a stand-in provider on this machine:\n")
        sys.stdout.flush()
        upstreams = parse_upstreams(f"{host}={provider.url}" for host in HOSTS)
        settings = Settings(home=home, port=0, api_port=None, upstreams=upstreams)
        return run(settings, [sys.executable, "-m", "heliproxy.demo_app"], quiet=True)


def show(home: Path) -> None:
    """Print the cost table, and what to type next."""
    from heliproxy.reports_cli import costs

    click.echo("\nWhat they cost (heliproxy costs --by model --by user):\n")
    costs.main(["--home", str(home), "--by", "model", "--by", "user"], standalone_mode=False)
    where = f"--home {home}"
    click.echo(
        f"""
Where to look next:
  heliproxy requests {where}         every call
  heliproxy sessions {where}         the three calls of one session
  heliproxy costs --by day {where}   any other grouping
  heliproxy serve {where}            the dashboard, at http://127.0.0.1:8585

Your own program, nothing else to set up:
  heliproxy run -- python app.py"""
    )
