"""What a request through the proxy may reach on this machine: nothing that the operator has not named.

Whoever can use the proxy could otherwise use it to get at what listens on loopback and trusts it: our own API, a
database, a debugger. Local model servers at their usual ports are what people use heliproxy for, and are let through;
`--upstream` and `--allow-target` name others.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from enum import Enum, auto
from functools import lru_cache

from heliproxy import hosts
from heliproxy.policies import ssrf
from heliproxy.policies.answers import one_line

_SPELLINGS = ("localhost", "127.0.0.1", "::1", "[::1]")


class Verdict(Enum):
    """What is known of an address before it is dialled."""

    OUTSIDE = auto()
    """Not on this machine."""
    HERE = auto()
    """On this machine."""
    UNKNOWN = auto()
    """A name: only its address will tell."""


@lru_cache(maxsize=1024)
def verdict(host: str) -> Verdict:
    """Where a host is, by its name alone. A known provider's name is its owner's to keep."""
    name = host.lower().strip("[]").rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return Verdict.HERE
    address = ssrf.parse_address(name)
    if address is not None:
        return Verdict.HERE if is_here(address) else Verdict.OUTSIDE
    if hosts.provider_for_host(name) is not None or hosts.is_helicone_host(name):
        return Verdict.OUTSIDE
    return Verdict.UNKNOWN


def is_here(address: ssrf.Address | str) -> bool:
    """Whether an address is this machine's own: loopback, or unspecified, which is the same when dialled."""
    if isinstance(address, str):
        parsed = ssrf.parse_address(address)
        if parsed is None:
            return False
        address = parsed
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or (ipaddress.IPv4Address(int(address)) if 1 < int(address) <= 0xFFFFFFFF else None)
        if inner is None:
            return address.is_loopback or address.is_unspecified
        address = inner
    return address.is_loopback or int(address) >> 24 == 0


def is_named(host: str, port: int, allowed: Collection[str]) -> bool:
    """Whether the operator named a place on this machine, as `host` or `host:port`.

    Loopback has several spellings; one that is named names them all.
    """
    name = host.lower().strip("[]").rstrip(".")
    return any(one in allowed or f"{one}:{port}" in allowed for one in (name, *_SPELLINGS))


def refusal(host: str, port: int) -> str:
    """What the client is told."""
    where = one_line(f"[{host}]:{port}" if ":" in host.strip("[]") else f"{host}:{port}")[:200]
    return f"{where} is on this machine; `--allow-target {where}` lets requests through the proxy reach it"


DIALLED_PORTS = frozenset((*hosts.LOCAL_PORTS, *hosts.LOCAL_LABELS.values())) - {0}
"""Ports of this machine that our own routes lead to (`/vllm/...`)."""
