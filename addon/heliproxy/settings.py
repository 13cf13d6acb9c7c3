"""What one running proxy is told: by options of the command line, of mitmproxy, or of the environment."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from heliproxy.chain import Chain
from heliproxy.home import default_home
from heliproxy.retention import Retention

_NAME = re.compile(r"(?!-)[\w-]+(?:\.[\w-]+)*\.?")
DEFAULT_UPSTREAM_TIMEOUT = 1800.0
"""Seconds an upstream may be silent: models that think say nothing for long."""
INCREASED_TIMEOUT = DEFAULT_UPSTREAM_TIMEOUT
"""The same for a call with Helicone-Increase-Timeout, when the operator allows less."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where one provider host's traffic is really sent."""

    scheme: str
    host: str
    port: int
    prefix: str = ""
    """Path put before the request's own path; empty or starting with a slash, without one at its end."""

    @property
    def origin(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.prefix}"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a proxy process needs to know before it starts."""

    home: Path = field(default_factory=default_home)
    host: str = "127.0.0.1"
    port: int = 8080
    api_port: int | None = 8585
    """None: no dashboard and REST port."""
    upstreams: dict[str, Upstream] = field(default_factory=dict)
    upstream_ca: Path | None = None
    mitm_options: tuple[str, ...] = ()
    """mitmproxy options as `NAME=VALUE`."""
    default_headers: tuple[str, ...] = ()
    """`Name: value` lines added to every call that does not carry the header itself."""
    allowed_targets: tuple[str, ...] = ()
    """`host` or `host:port` that a request may name as its target although it is no public address."""
    stream_usage: bool = False
    upstream_timeout: float = DEFAULT_UPSTREAM_TIMEOUT
    """Seconds an upstream may be silent; 0: for ever."""
    retention: Retention = field(default_factory=Retention)
    worker: int | None = None
    """The number of this process among those of `--workers`; None when there is just one."""
    workers: int = 1
    run_id: str | None = None
    token: str | None = None
    chain: Chain | None = None
    """The company's proxy behind ours; read from the environment when a proxy starts."""


def allowed_names(settings: Settings) -> frozenset[str]:
    """What the operator allowed as targets, in the form that targets are compared with. Raises ValueError."""
    return frozenset(map(parse_allowed_target, settings.allowed_targets))


def parse_upstreams(values: Iterable[str]) -> dict[str, Upstream]:
    """Read `HOST=URL` pairs (`api.openai.com=http://127.0.0.1:9000`).

    Raises:
        ValueError: names the pair, what is wrong with it, and the form expected.
    """
    found: dict[str, Upstream] = {}
    for value in values:
        host, equals, url = value.partition("=")
        host = host.strip().lower().rstrip(".")
        if not equals or not host or "/" in host:
            raise ValueError(f"upstream {value!r}: expected HOST=URL, for example api.openai.com=http://127.0.0.1:9000")
        found[host] = parse_upstream_url(url.strip(), value)
    return found


def parse_upstream_url(url: str, value: str) -> Upstream:
    """Read one target URL; `value` is what an error message quotes.

    Raises:
        ValueError: the URL is not http(s) with a host, or has a query or credentials.
    """
    expected = "expected HOST=URL with an http or https URL, for example api.openai.com=http://127.0.0.1:9000"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as e:
        raise ValueError(f"upstream {value!r}: {e}; {expected}") from e
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"upstream {value!r}: {url!r} is not an http or https URL; {expected}")
    if parts.query or parts.fragment or parts.username is not None:
        raise ValueError(f"upstream {value!r}: a query, fragment or credentials cannot be part of the URL; {expected}")
    return Upstream(
        scheme=parts.scheme,
        host=parts.hostname,
        port=port or (443 if parts.scheme == "https" else 80),
        prefix=parts.path.rstrip("/"),
    )


def parse_allowed_target(value: str) -> str:
    """Read `HOST`, `HOST:PORT`, `[ADDRESS]` or `[ADDRESS]:PORT` into what targets are compared with.

    Raises:
        ValueError: names the value and what is expected.
    """
    error = ValueError(f"{value!r}: expected HOST or HOST:PORT, for example gpu.lan:8000 or [fd00::1]:8000")
    text = value.strip().lower()
    host, colon, port = text.rpartition(":")
    if text.count(":") > 1 and not host.endswith("]"):
        host, colon, port = text, "", ""
    elif not colon:
        host, port = text, ""
    if colon and not (port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536):
        raise error
    if host.startswith("[") or ":" in host:
        try:
            host = str(ipaddress.IPv6Address(host[1:-1] if host.startswith("[") and host.endswith("]") else host))
        except ValueError:
            raise error from None
    elif _NAME.fullmatch(host) is None:
        raise error
    return host.rstrip(".") + (f":{int(port)}" if colon else "")
