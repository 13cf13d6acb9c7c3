"""The command line options that several commands share, each defined once."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Command = Callable[..., Any]


def home_option(command: Command) -> Command:
    """Add `--home`; the command gets `home: Path`, the default folder when it is not given."""
    return click.option(
        "--home",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="HELIPROXY_HOME",
        default=_default_home,
        show_default="your user data folder",
        help="Folder of the database, the certificate authority and the configuration.",
    )(command)


def proxy_options(
    *, port: int = 8080, api_port: int | None = 8585, shared: bool = True
) -> Callable[[Command], Command]:
    """Add every option that says how a proxy runs; the command gets them as one `settings: Settings`.

    One that is not `shared` listens on loopback, whatever its token.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_settings(**values: Any) -> Any:
            return command(settings=_settings(values, shared), **values)

        decorated: Command = with_settings
        # The first decorator applied is the last option shown.
        for option in reversed((home_option, *_proxy_options(port, api_port, shared))):
            decorated = option(decorated)
        return decorated

    return decorate


def _proxy_options(port: int, api_port: int | None, shared: bool) -> tuple[Callable[[Command], Command], ...]:
    host = click.option(
        "--host",
        default="127.0.0.1",
        show_default=True,
        metavar="ADDRESS",
        help="Address of the proxy and gateway. One that others can reach needs a token: set HELIPROXY_TOKEN.",
    )
    return (
        *((host,) if shared else ()),
        click.option(
            "--port",
            type=click.IntRange(0, 65535),
            default=port,
            show_default=str(port) if port else "a free one",
            help="Port of the proxy and gateway.",
        ),
        click.option(
            "--api-port",
            type=click.IntRange(0, 65535),
            default=api_port,
            show_default=str(api_port) if api_port is not None else "none",
            help="Port of the dashboard and REST API.",
        ),
        click.option(
            "--upstream",
            "upstreams",
            multiple=True,
            metavar="HOST=URL",
            help="Send what is meant for HOST to URL: a mock, a local model, a company gateway. Repeatable.",
        ),
        click.option(
            "--upstream-ca",
            type=click.Path(path_type=Path, exists=True, dir_okay=False, readable=True),
            help="Certificates to trust for upstreams, beside the usual ones (PEM).",
        ),
        click.option(
            "--set",
            "mitm_options",
            multiple=True,
            metavar="NAME=VALUE",
            help="Set a mitmproxy option. Repeatable.",
        ),
        click.option(
            "--default-header",
            "default_headers",
            multiple=True,
            metavar="'NAME: VALUE'",
            help="Add a header to every call that does not carry it, for example a Helicone-Property. Repeatable.",
        ),
        click.option(
            "--allow-target",
            "allowed_targets",
            multiple=True,
            metavar="HOST[:PORT]",
            help="Let requests name this host as their target although it is no public address. Repeatable.",
        ),
        click.option(
            "--stream-usage",
            is_flag=True,
            help="Ask for usage in streamed OpenAI chats that do not, so that their tokens are exact.",
        ),
        click.option(
            "--upstream-timeout",
            type=click.FloatRange(0, 31_536_000),
            default=1800,
            show_default=True,
            metavar="SECONDS",
            help="How long an upstream may be silent: while connecting, before its answer and within it. 0: for ever.",
        ),
        click.option("--keep-days", default="", metavar="DAYS", help="Remove requests that are older. Off by default."),
        click.option("--keep-bodies-days", default="", metavar="DAYS", help="Remove bodies that are older; keep rows."),
        click.option(
            "--max-db-size",
            default="",
            metavar="SIZE",
            help="Such as 2GB: above it the oldest bodies are removed, then the oldest requests.",
        ),
    )


def _default_home() -> Path:
    from heliproxy.home import default_home

    return default_home()


def keep_door_shut(host: str, mitm_options: tuple[str, ...], shared: bool = True) -> None:
    """Refuse to listen where others can connect, unless they are asked for a token.

    Raises:
        click.UsageError: with status 2.
    """
    named = [(name.strip(), value.strip()) for name, _, value in (one.partition("=") for one in mitm_options)]
    modes = [value for name, value in named if name == "mode"]
    if host == "127.0.0.1" and not modes and not any(name == "listen_host" for name, _ in named):
        return
    from heliproxy import entry

    # mitmproxy's "" is every interface, ours is loopback (addon.py).
    listen = next((value or "127.0.0.1" for name, value in reversed(named) if name == "listen_host"), host)
    exposed = entry.exposure(listen, modes)
    if exposed is None:
        return
    where = f"listening on {exposed} lets others on the network use this proxy and its keys"
    if not shared:
        raise click.UsageError(f"{where}; a program's own proxy listens on 127.0.0.1")
    given = [os.environ.get("HELIPROXY_TOKEN"), *(value for name, value in named if name == "heliproxy_token")]
    if not any(map(entry.token_of, given)):
        raise click.UsageError(f"{where}: {entry.NO_TOKEN}")
    if (mode := entry.unaskable(modes)) is not None and not any(name == "proxyauth" for name, _ in named):
        raise click.UsageError(f"{where}: mode {mode} cannot ask for a token")


def _check_default_header(line: str) -> None:
    from heliproxy.policies.defaults import parse_header_line

    try:
        parse_header_line(line)
    except ValueError as e:
        raise click.BadParameter(str(e), param_hint="--default-header") from e


def _settings(values: dict[str, Any], shared: bool) -> Any:
    """Take the shared options out of `values` and make them one Settings."""
    from heliproxy.settings import Settings, parse_allowed_target, parse_upstreams

    host = values.pop("host", "127.0.0.1")
    if values["port"] and values["port"] == values["api_port"]:
        raise click.UsageError(f"--port and --api-port are both {values['port']}: give one of them another number")
    keep_door_shut(host, tuple(values["mitm_options"]), shared)

    try:
        upstreams = parse_upstreams(values.pop("upstreams"))
    except ValueError as e:
        raise click.BadParameter(str(e), param_hint="--upstream") from e
    headers = tuple(values.pop("default_headers"))
    for line in headers:
        name, colon, _ = line.partition(":")
        if not colon or not name.strip() or any(c in line for c in "\r\n"):
            raise click.BadParameter(f"{line!r}: expected 'Name: value'", param_hint="--default-header")
        _check_default_header(line)
    allowed = tuple(name.lower() for name in values.pop("allowed_targets"))
    try:
        for name in allowed:
            parse_allowed_target(name)
    except ValueError as e:
        raise click.BadParameter(str(e), param_hint="--allow-target") from e
    return Settings(
        home=values.pop("home"),
        host=host,
        port=values.pop("port"),
        api_port=values.pop("api_port"),
        upstreams=upstreams,
        upstream_ca=values.pop("upstream_ca"),
        mitm_options=tuple(values.pop("mitm_options")),
        default_headers=headers,
        allowed_targets=allowed,
        stream_usage=values.pop("stream_usage"),
        upstream_timeout=values.pop("upstream_timeout"),
        retention=_retention(values),
    )


def _retention(values: dict[str, Any]) -> Any:
    from heliproxy.retention import parse_retention

    try:
        return parse_retention(*(values.pop(name) for name in ("keep_days", "keep_bodies_days", "max_db_size")))
    except ValueError as e:
        raise click.UsageError(f"--{e}") from e
