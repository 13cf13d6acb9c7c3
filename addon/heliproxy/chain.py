"""The proxy that was set before ours: a company's, which all traffic must take, with the exceptions it allows.

Read from the same variables as everywhere (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY, in either case), when
heliproxy starts. Programs below it get our address in those variables; calls of ours go on to the company's.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote, urlsplit

CHAIN = "HELIPROXY_UPSTREAM_PROXY"
"""Overrides the usual variables: a proxy's URL, or empty for none. `run` sets it, so that a `run` inside a `run`
takes the same way out and does not count every call twice."""
LOCAL = ("localhost", "0.0.0.0", "::", "host.docker.internal")  # noqa: S104 - names to match
Scheme = Literal["http", "https"]
Spec = tuple[Scheme, tuple[str, int]]
"""A proxy as mitmproxy names it: scheme, and host with port."""


@dataclass(frozen=True, slots=True)
class Hop:
    """One proxy."""

    scheme: Scheme
    host: str
    port: int
    authorization: str | None = None
    """Value for Proxy-Authorization."""

    @property
    def spec(self) -> Spec:
        return self.scheme, (self.host, self.port)


@dataclass(frozen=True, slots=True)
class Chain:
    """Which proxy comes after ours, and for which hosts."""

    https: Hop | None
    http: Hop | None
    exceptions: tuple[str, ...] = ()
    url: str = ""
    """The proxy for https as it was written, for programs below us."""

    def hop(self, scheme: str, host: str, port: int) -> Hop | None:
        """The proxy to take to this server; None: go there directly."""
        if is_local(host) or any(covers(entry, host, port) for entry in self.exceptions):
            return None
        return self.https if scheme == "https" else self.http

    def spec(self, scheme: str, host: str, port: int) -> Spec | None:
        """As `hop`, in mitmproxy's form."""
        found = self.hop(scheme, host, port)
        return None if found is None else found.spec


def chain_of(environ: Mapping[str, str], own_port: int = 0) -> Chain | None:
    """Read the chain from an environment; None when there is none, or when it is we ourselves on `own_port`.

    Raises:
        ValueError: a variable names no http or https proxy; the message names it.
    """
    if CHAIN in environ:
        both = hop_of(environ[CHAIN], CHAIN)
        written, hops = environ[CHAIN], (both, both)
    else:
        names = (("https_proxy", "HTTPS_PROXY"), ("http_proxy", "HTTP_PROXY"))
        named = [next(((n, environ[n]) for n in pair if environ.get(n)), None) for pair in names]
        rest = next(((n, environ[n]) for n in ("all_proxy", "ALL_PROXY") if environ.get(n)), None)
        https, http = (pair or rest for pair in named)
        written = https[1] if https else ""
        hops = (hop_of(https[1], https[0]) if https else None, hop_of(http[1], http[0]) if http else None)
    kept = [None if hop is not None and hop.port == own_port and is_local(hop.host) else hop for hop in hops]
    if not any(kept):
        return None
    entries = re.split(r"[\s,]+", f"{environ.get('no_proxy', '')},{environ.get('NO_PROXY', '')}")
    return Chain(kept[0], kept[1], tuple(dict.fromkeys(e.lower() for e in entries if e)), written)


def hop_of(url: str, name: str) -> Hop | None:
    """Read one proxy's URL; None when it is empty. `name` is what an error message calls it. Raises ValueError."""
    if not url.strip():
        return None
    text = url.strip() if "://" in url else f"http://{url.strip()}"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as e:
        raise ValueError(f"{name}: {e}") from e
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{name} names {_without_password(text)!r}; only http and https proxies can be chained")
    authorization = None
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(pair.encode("utf-8", "surrogateescape")).decode()
    scheme: Scheme = "https" if parts.scheme == "https" else "http"
    return Hop(scheme, parts.hostname, port or (443 if scheme == "https" else 80), authorization)


def _without_password(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//***@", url)


def is_local(host: str) -> bool:
    """Whether a host is this machine, which no proxy leads to."""
    name = host.lower().strip("[]").rstrip(".")
    if name in LOCAL or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def covers(entry: str, host: str, port: int) -> bool:
    """Whether one entry of NO_PROXY (a domain and all below it, an address, a network, each perhaps with a port, or
    `*`) covers a server."""
    name = host.lower().strip("[]").rstrip(".")
    if entry == "*":
        return True
    found = re.fullmatch(r"(\[.*\]|[^:]*):(\d{1,5})", entry)
    if found is not None:
        if int(found[2]) != port:
            return False
        entry = found[1]
    entry = entry.strip("[]").removeprefix("*").lstrip(".")
    try:
        return ipaddress.ip_address(name) in ipaddress.ip_network(entry, strict=False)
    except (ValueError, TypeError):
        return bool(entry) and (name == entry or name.endswith("." + entry))
