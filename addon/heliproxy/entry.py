"""Who may use the proxy's port: every program on this machine, no web page; beyond this machine, whoever has the token.

On loopback there is nobody to keep out but web pages: a browser sends requests to a loopback port for any page it
shows, and the gateway lends the operator's own keys. A proxy that listens on any other address asks each client for
its token, and does not start without one.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from urllib.parse import urlsplit

from heliproxy.hosts import is_helicone_host
from heliproxy.policies.answers import Answer, error_answer, text_answer

Fields = Iterable[tuple[bytes, bytes]]

_INSIDE = (".localhost", ".local", ".internal", ".lan", ".intranet", ".home.arpa", ".svc", ".test")
_ASKABLE = ("regular", "reverse", "upstream")
"""Modes of mitmproxy in which each client sends HTTP, and can be asked for a token."""
PROXY_HEADERS = (b"proxy-authorization",)
OWN_HEADERS = (b"proxy-authorization", b"helicone-auth", b"authorization")
"""Where a base-URL client may put the token: most can set nothing but a key or a header."""
NO_TOKEN = "set HELIPROXY_TOKEN to a secret that every client then has to send, or listen on 127.0.0.1"  # noqa: S105


def token_of(text: str | None) -> str | None:
    """A token that was given; one of white space alone, which no client can send, is none."""
    return text if text and text.strip() else None


def exposure(listen_host: str, modes: Sequence[str] = ()) -> str | None:
    """The first address beyond loopback that mitmproxy would listen on; None when there is none.

    `listen_host` is mitmproxy's option; "" is every interface. `modes` are its mode specifications: `regular`,
    `regular@8081`, `regular@0.0.0.0:8080`, `reverse:https://api.openai.com@[::]:8082`.
    """
    for mode in modes or ("regular",):
        host = _own_host(mode)
        address = listen_host if host is None else host
        if not is_loopback_name(address):
            return address or "every interface"
    return None


def unaskable(modes: Sequence[str]) -> str | None:
    """The first mode in which clients cannot be asked for a token."""
    names = ((mode.rpartition("@")[0] or mode).partition(":")[0].lower() for mode in modes)
    return next((name for name in names if name not in _ASKABLE), None)


def _own_host(mode: str) -> str | None:
    """The address a mode brings itself (after `@`), read as mitmproxy reads it."""
    head, _, listen_at = mode.rpartition("@")
    if not head or ":" not in listen_at:
        return None
    return listen_at.rpartition(":")[0]


def is_loopback_name(host: str) -> bool:
    """Whether a listening address is this machine's alone."""
    name = host.strip().lower().strip("[]").rstrip(".")
    if name == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


@lru_cache(maxsize=256)
def is_inside_name(host: str) -> bool:
    """Whether a `Host` can be a name of our own port: loopback, a name without a public domain, one of Helicone's.

    A name in the public DNS is its owner's, who may have it lead to 127.0.0.1 while a page of his is open in the
    user's browser (DNS rebinding). That is no name of ours.
    """
    name = host.strip().lower().strip("[]").rstrip(".")
    if is_loopback_name(name) or name.endswith(_INSIDE) or is_helicone_host(name):
        return True
    return bool(name) and "." not in name and ":" not in name


def foreign_page(fields: Fields) -> str | None:
    """Why a request to our own port was made by a page of some website; None when it was not.

    Pages served on this machine, and programs with a browser inside (`app://`, `vscode-webview://`), are let in.
    """
    origin = site = None
    for name, value in fields:
        lower = name.lower()
        if lower == b"origin":
            origin = value
        elif lower == b"sec-fetch-site":
            site = value.strip().lower()
    if origin is not None:
        text = origin.decode("latin-1")
        return None if _is_local_origin(text) else f"requests from pages of {text[:100]!r} are refused"
    if site in (b"cross-site", b"same-site"):
        return "requests from other sites' pages are refused"
    return None


def _is_local_origin(origin: str) -> bool:
    try:
        parts = urlsplit(origin.strip())
        host = parts.hostname or ""
    except ValueError:
        return False
    if parts.scheme in ("http", "https"):
        return is_loopback_name(host) or host.endswith(".localhost")
    # "null" is what a page in a sandbox sends, whosoever's it is.
    return parts.scheme != ""


def has_token(fields: Fields, token: str, names: Sequence[bytes]) -> bool:
    """Whether one of the headers `names` (lower case) holds the token: as bearer, or as a proxy's user or password."""
    expected = token.encode("utf-8", "surrogateescape")
    found = False
    for name, value in fields:
        if name.lower() in names:
            found = found or any(hmac.compare_digest(one, expected) for one in _secrets(value))
    return found


def _secrets(value: bytes) -> list[bytes]:
    scheme, _, rest = value.strip().partition(b" ")
    if scheme.lower() == b"bearer":
        return [rest.strip()]
    if scheme.lower() != b"basic":
        return []
    try:
        user, _, password = base64.b64decode(rest.strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return []
    # `run --attach` names its run in front of the token.
    return [user, password, password.partition(b":")[2]]


def ask_for_token(*, proxied: bool) -> Answer:
    """The answer to a client without it: of a proxy (407) or of the gateway on our own port (401)."""
    if proxied:
        answer = text_answer(407, "this proxy needs its token as password: http://heliproxy:TOKEN@HOST:PORT")
        return replace(answer, headers=(*answer.headers, ("Proxy-Authenticate", 'Basic realm="heliproxy"')))
    message = "this gateway needs its token: `Helicone-Auth: Bearer TOKEN`"
    return error_answer(401, message, "token_required", (("WWW-Authenticate", 'Bearer realm="heliproxy"'),))
