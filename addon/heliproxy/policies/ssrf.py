"""Guard for targets that a request names itself: public addresses only, unless the operator allowed the host.

`check_url` looks at the URL; names can resolve to anything, so the address that is about to be dialled must be
asked about with `is_public` again, at connect time.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from heliproxy.policies.answers import one_line

if TYPE_CHECKING:
    from collections.abc import Collection

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_METADATA_NAMES = (
    "metadata",
    "metadata.google.internal",
    "metadata.goog",
    "instance-data",
    "instance-data.ec2.internal",
)
_PRIVATE_SUFFIXES = (".localhost", ".local", ".internal", ".intranet", ".lan", ".home.arpa", ".corp", ".svc")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = ipaddress.IPv6Network("64:ff9b:1::/48")
_COMPATIBLE = ipaddress.IPv6Network("::/96")
_RELAY_6TO4 = ipaddress.IPv4Network("192.88.99.0/24")
_NUMERIC = re.compile(r"(?:0[xX][0-9a-fA-F]*|[0-9]+)(?:\.(?:0[xX][0-9a-fA-F]*|[0-9]+)){0,3}", re.ASCII)


def check_url(url: str, allowed_hosts: Collection[str] = ()) -> str | None:
    """Why this URL must not be called, or None. `allowed_hosts`: lower-case `host` or `host:port`."""
    try:
        parts = urlsplit(url.strip())
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return "is not a valid URL"
    if parts.scheme not in ("http", "https"):
        return "is not an http or https URL"
    if not host:
        return "names no host"
    if parts.username is not None or parts.password is not None:
        return "holds a user name or password"
    number = port or (443 if parts.scheme == "https" else 80)
    return check_host(host, number, allowed_hosts)


def check_host(host: str, port: int | None = None, allowed_hosts: Collection[str] = ()) -> str | None:
    """Why this host must not be dialled, or None: as `check_url`, without a URL around it."""
    name = _ascii(host.lower().strip("[]").rstrip("."))
    if name is None:
        return "names no valid host"
    if name in allowed_hosts or f"{name}:{port}" in allowed_hosts:
        return None
    address = parse_address(name)
    if address is not None:
        return None if is_public(address) else f"points to {address}, which is not a public address"
    if name in _METADATA_NAMES or name == "localhost" or name.endswith(_PRIVATE_SUFFIXES):
        return f"names {one_line(name)}, which is a local host"
    if "." not in name:
        return f"names {one_line(name)[:80]}, which is not a public host name"
    return None


def _ascii(name: str) -> str | None:
    """The name as it is resolved: full-width digits and dots, for one, become plain ones."""
    if name.isascii():
        return name if name and not re.search(r"[\s\x00-\x20%\\]", name.partition("%")[0]) else None
    try:
        return name.encode("idna").decode("ascii").lower()
    except UnicodeError:
        return None


def parse_address(host: str) -> Address | None:
    """The address a host text means, in every spelling the C library takes: 127.1, 2130706433, 0x7f.1, 0177.0.0.1."""
    text = host.strip("[]").partition("%")[0]
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        pass
    if not _NUMERIC.fullmatch(text):
        return None
    try:
        return ipaddress.IPv4Address(socket.inet_aton(text))
    except (OSError, ValueError):
        return ipaddress.IPv4Address(0)  # digits that are no address: never a public host


def is_public(address: Address | str) -> bool:
    """Whether an address is out on the internet, looking through every way of writing IPv4 inside IPv6."""
    if isinstance(address, str):
        parsed = parse_address(address)
        if parsed is None:
            return False
        address = parsed
    if isinstance(address, ipaddress.IPv6Address):
        inner = _embedded(address)
        if inner is not None:
            return all(is_public(ip) for ip in inner)
        if address in _NAT64_LOCAL or address.is_site_local:
            return False
    elif address in _RELAY_6TO4:
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved and not address.is_unspecified


def _embedded(address: ipaddress.IPv6Address) -> tuple[Address, ...] | None:
    """The IPv4 addresses an IPv6 one leads to, None when there is none inside."""
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    if address.sixtofour is not None:
        return (address.sixtofour,)
    if address.teredo is not None:
        return address.teredo
    if address in _NAT64 or (address in _COMPATIBLE and int(address) > 0xFFFF):
        return (ipaddress.IPv4Address(int(address) & 0xFFFFFFFF),)
    return None
