"""`heliproxy serve` and `heliproxy web`."""

from __future__ import annotations

import sys
from typing import Any

import click

from heliproxy.options import keep_door_shut, proxy_options


@click.command("serve")
@proxy_options()
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    metavar="N",
    help="Proxy processes behind the one port: one uses one core.",
)
def serve_command(settings: Any, workers: int) -> None:
    """Run the proxy, the dashboard and the REST API until stopped.

    Prints one line on stdout when connections are accepted. Ctrl-C or SIGTERM lets calls under way end first.

    \b
    heliproxy serve
    heliproxy serve --port 9000 --upstream api.openai.com=http://127.0.0.1:11434
    """
    import asyncio

    from heliproxy.workers import WorkersError, duty, watch

    task = duty()
    if workers > 1 and task is None:
        if sys.platform == "win32":
            raise click.UsageError("--workers needs a system on which processes can share a listening socket")
        from heliproxy.log_lines import log_to_stderr

        log_to_stderr()
        try:
            watch(settings, workers, sys.argv[1:], click.echo)
        except WorkersError as e:
            raise click.ClickException(str(e)) from e
        return

    from heliproxy.early import OptionError
    from heliproxy.serve import StartError, quiet_logging, serve

    quiet_logging()
    if task is not None:
        settings = task.settle(settings)
    try:
        asyncio.run(serve(settings, _say_ready, task.listener if task is not None else None))
    except OptionError as e:
        raise click.UsageError(str(e)) from e
    except StartError as e:
        raise click.ClickException(str(e)) from e
    except OSError as e:
        raise click.ClickException(
            f"cannot use {settings.home}: {e}; name another folder with --home or HELIPROXY_HOME"
        ) from e


@click.command("web", context_settings={"ignore_unknown_options": True})
@proxy_options()
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def web_command(settings: Any, arguments: tuple[str, ...]) -> None:
    """Run mitmweb with heliproxy inside, to look into each flow. ARGUMENTS go to mitmweb.

    \b
    heliproxy web
    heliproxy web --port 9000 -- --no-web-open-browser --web-port 9001
    """
    from heliproxy.serve import web

    keep_door_shut("127.0.0.1", listening(arguments))
    web(settings, arguments)


def listening(arguments: tuple[str, ...]) -> tuple[str, ...]:
    """The options among mitmweb's arguments that say where it listens, as `NAME=VALUE`."""
    names = {"--listen-host": "listen_host=", "--mode": "mode=", "-m": "mode=", "--set": ""}
    found = []
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in names and (equals or index + 1 < len(arguments)):
            found.append(names[name] + (value if equals else arguments[index + 1]))
    return tuple(found)


def _say_ready(proxy: Any) -> None:
    click.echo(ready_line(proxy))
    chain = proxy.addon.settings.chain
    if chain is not None:
        hop = chain.https or chain.http
        click.echo(f"heliproxy: calls go on through {hop.scheme}://{hop.host}:{hop.port}, as set before", err=True)


def ready_line(proxy: Any) -> str:
    """What `serve` prints when it is ready: both addresses on one line."""
    host = proxy.settings.host
    line = f"heliproxy ready: proxy http://{host}:{proxy.port}"
    if proxy.api_port is not None:
        line += f" dashboard http://127.0.0.1:{proxy.api_port}"
    return line
