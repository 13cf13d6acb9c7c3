"""The options that mitmproxy knows us by, and what is read from them and set among its own.

Command line options of `heliproxy` itself are in options.py.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mitmproxy import exceptions

from heliproxy import hosts
from heliproxy.chain import Chain, chain_of
from heliproxy.entry import token_of
from heliproxy.environment import original_env
from heliproxy.home import default_home
from heliproxy.retention import Retention, parse_retention
from heliproxy.settings import INCREASED_TIMEOUT, Settings, parse_allowed_target, parse_upstreams

if TYPE_CHECKING:
    from mitmproxy.options import Options

logger = logging.getLogger(__name__)

FOREVER = 365 * 86400
MARGIN_SECONDS = 60

OPTIONS: tuple[tuple[str, Any, Any, str], ...] = (
    (
        "heliproxy_home",
        str,
        "",
        "Folder of the database, the CA and the configuration. Default: HELIPROXY_HOME, else the user's data folder.",
    ),
    (
        "heliproxy_api_port",
        int,
        8585,
        "Port of the dashboard and the REST API on 127.0.0.1. 0 picks a free one, -1 turns it off.",
    ),
    (
        "heliproxy_upstream",
        Sequence[str],
        [],
        "Send a provider host's traffic elsewhere: HOST=URL, http or https. Repeatable.",
    ),
    ("heliproxy_upstream_ca", str, "", "PEM file of a CA to trust for upstreams, beside the usual ones."),
    (
        "heliproxy_default_header",
        Sequence[str],
        [],
        "`Helicone-...: value` for calls that do not carry the header themselves. Repeatable.",
    ),
    (
        "heliproxy_allow_target",
        Sequence[str],
        [],
        "HOST or HOST:PORT that a request may name as its target although it is no public address. Repeatable.",
    ),
    (
        "heliproxy_stream_usage",
        bool,
        False,
        "Ask OpenAI-style chat streams for their usage, and hide the extra chunk from clients that did not ask.",
    ),
    (
        "heliproxy_upstream_timeout",
        str,
        "1800",
        "Seconds an upstream may be silent, while connecting, before its answer and within it. 0: for ever.",
    ),
    ("heliproxy_keep_days", str, "", "Remove requests that are older than this many days. Default: keep all."),
    ("heliproxy_keep_bodies_days", str, "", "Remove bodies that are older than this many days; rows stay."),
    (
        "heliproxy_max_db_size",
        str,
        "",
        "Such as 2GB: above it the oldest bodies are removed, then the oldest requests.",
    ),
    ("heliproxy_run_id", str, "", "Tag every row with this run."),
    (
        "heliproxy_token",
        str,
        "",
        "Bearer token that the REST API and the pages ask for. Default: HELIPROXY_TOKEN, else none.",
    ),
)


def settings_from(options: Options) -> Settings:
    """What our options say, and the environment where they say nothing.

    Raises:
        OptionsError: names the option, the value and what is expected.
    """
    try:
        upstreams = parse_upstreams(options.heliproxy_upstream)
    except ValueError as e:
        raise exceptions.OptionsError(f"heliproxy_{e}") from e
    try:
        for target in options.heliproxy_allow_target:
            parse_allowed_target(target)
    except ValueError as e:
        raise exceptions.OptionsError(f"heliproxy_allow_target {e}") from e
    ca = Path(options.heliproxy_upstream_ca).expanduser() if options.heliproxy_upstream_ca else None
    if ca is not None and not ca.is_file():
        raise exceptions.OptionsError(f"heliproxy_upstream_ca: {ca} is not a file; expected a PEM file")
    api_port = options.heliproxy_api_port
    return Settings(
        home=Path(options.heliproxy_home).expanduser() if options.heliproxy_home else default_home(),
        port=options.listen_port or 8080,
        api_port=None if api_port < 0 else api_port,
        upstreams=upstreams,
        upstream_ca=ca,
        default_headers=tuple(options.heliproxy_default_header),
        allowed_targets=tuple(options.heliproxy_allow_target),
        stream_usage=options.heliproxy_stream_usage,
        upstream_timeout=_seconds(options.heliproxy_upstream_timeout),
        retention=_retention(options),
        run_id=options.heliproxy_run_id or None,
        token=token_of(options.heliproxy_token) or token_of(os.environ.get("HELIPROXY_TOKEN")),
        chain=_chain(options.listen_port or 8080),
    )


def _seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found <= FOREVER:
        raise exceptions.OptionsError(f"heliproxy_upstream_timeout: {text!r} is not a number of seconds, 0 or more")
    return found


def _retention(options: Options) -> Retention:
    names = ("heliproxy_keep_days", "heliproxy_keep_bodies_days", "heliproxy_max_db_size")
    try:
        return parse_retention(*(getattr(options, name) for name in names))
    except ValueError as e:
        raise exceptions.OptionsError(f"heliproxy: {e}") from e


def _chain(own_port: int) -> Chain | None:
    try:
        return chain_of(original_env(os.environ), own_port)
    except ValueError as e:
        logger.warning("%s: upstreams are called directly", e)
        return None


def hosts_to_intercept(settings: Settings) -> str:
    """The known hosts and the operator's own, as one pattern for `host:port`."""
    own = [f"^{host.replace('.', '[.]')}:" for host in settings.upstreams]
    return "(?i)" + "|".join(p.removeprefix("(?i)") for p in [*hosts.LLM_HOST_PATTERNS, *own])


def let_ours_time_out_first(options: Options, settings: Settings) -> None:
    """mitmproxy's own timeout ends whole client connections: it must be above ours of single calls."""
    seconds = round(max(settings.upstream_timeout or FOREVER, INCREASED_TIMEOUT)) + MARGIN_SECONDS
    if "tcp_timeout" in options and options.tcp_timeout < seconds:
        options.update(tcp_timeout=seconds)


def trust_for_upstreams(options: Options, home: Path, ca: Path) -> None:
    """Have mitmproxy trust upstreams by the operator's CA, beside the usual ones."""
    from heliproxy.certs import upstream_trust

    options.update(ssl_verify_upstream_trusted_ca=str(upstream_trust(home, ca)))
