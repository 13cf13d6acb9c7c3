"""Reads the greeting of a TLS client without the some hundred objects that mitmproxy's parser makes of it.

What mitmproxy asks of a greeting, the server's name and the protocols offered, is read here (RFC 8446 section 4.1.2,
RFC 6066 section 3, RFC 7301 section 3.1). Who asks for more gets it by mitmproxy's own parser, which reads the greeting
then; and one that is not in perfect order is left to it altogether.
"""

from __future__ import annotations

import inspect
import logging
import re
from struct import Struct
from struct import error as struct_error
from typing import Any

from mitmproxy.proxy.layers import tls
from mitmproxy.tls import ClientHello

logger = logging.getLogger(__name__)

_RECORD = re.compile(rb"\x16\x03[\x00-\x03](..)\x01(...)", re.DOTALL)
"""The head of a record that a client's greeting begins in, and that of the greeting."""
_TWO = Struct("!H").unpack_from
_EXTENSION = Struct("!HH").unpack_from
_AFTER_RANDOM = 34
_NAME, _PROTOCOLS = 0, 16
_HOST = re.compile(rb"[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*")
"""Names of hosts that mitmproxy takes, and no IDNA decoding changes; it decides on any other."""


class QuickClientHello(ClientHello):
    """A greeting of which only the name and the protocols are read; mitmproxy's parser gives the rest when asked."""

    def __init__(self, raw: bytes, sni: str | None, protocols: list[bytes]) -> None:
        self._raw_bytes = raw
        self._sni = sni
        self._protocols = protocols

    @property
    def sni(self) -> str | None:
        return self._sni

    @property
    def alpn_protocols(self) -> list[bytes]:
        return list(self._protocols)

    def __getattr__(self, name: str) -> Any:
        """mitmproxy's parser's view, on first use."""
        if name != "_client_hello":
            raise AttributeError(name)
        self._client_hello = ClientHello(self._raw_bytes)._client_hello
        return self._client_hello


def parse_client_hello(data: bytes) -> ClientHello | None:
    """What mitmproxy's function of this name gives: the greeting, or None if it is not complete.

    Raises:
        ValueError: the bytes are no greeting.
    """
    head = _RECORD.match(data)
    if head is None:
        return _stock(data)
    record, size = int.from_bytes(head[1]), int.from_bytes(head[2])
    if size + 4 > record or 5 + record > len(data):
        return _stock(data)  # in several records, or not all there
    raw = bytes(data[9 : 9 + size])
    return read(raw) or _stock(data)


def read(raw: bytes) -> QuickClientHello | None:
    """Read a greeting without its heads; None when anything in it is odd."""
    try:
        place = _AFTER_RANDOM
        place += 1 + raw[place]  # the session's id
        suites = _TWO(raw, place)[0]
        if suites & 1:
            return None
        place += 2 + suites
        place += 1 + raw[place]  # compression methods
        end = len(raw)
        if _TWO(raw, place)[0] != end - place - 2:
            return None
        place += 2
        sni, protocols, seen = None, [], 0
        while place < end:
            kind, size = _EXTENSION(raw, place)
            place += 4
            after = place + size
            if after > end:
                return None
            if kind == _NAME:
                sni = _host(raw[place:after])
                if sni is None or seen & 1:
                    return None
                seen |= 1
            elif kind == _PROTOCOLS:
                found = _protocols(raw[place:after])
                if found is None or seen & 2:
                    return None
                protocols, seen = found, seen | 2
            place = after
    except (IndexError, struct_error):
        return None
    return QuickClientHello(raw, sni, protocols)


def _host(body: bytes) -> str | None:
    """The name in an extension that holds one host's name; None for any other."""
    size = len(body)
    if size < 6 or body[2] != 0 or _TWO(body, 0)[0] != size - 2 or _TWO(body, 3)[0] != size - 5:
        return None
    name = body[5:]
    if size - 5 <= 253 and _HOST.fullmatch(name) and b"xn--" not in name.lower():
        return name.decode("ascii")
    return None


def _protocols(body: bytes) -> list[bytes] | None:
    size = len(body)
    if size < 2 or _TWO(body, 0)[0] != size - 2:
        return None
    place, found = 2, []
    while place < size:
        after = place + 1 + body[place]
        if after > size:
            return None
        found.append(body[place + 1 : after])
        place = after
    return found


_stock = tls.parse_client_hello


def problem() -> str | None:
    """Why this does not fit the installed mitmproxy, or None if it does."""
    if tuple(inspect.signature(_stock).parameters) != ("data",):
        return "parse_client_hello is not as it was"
    if tuple(inspect.signature(ClientHello.__init__).parameters) != ("self", "raw_client_hello", "dtls"):
        return "ClientHello is not as it was"
    probe = read(bytes(34) + b"\0\0\2\x13\1\1\0\0\0")
    if (
        probe is None
        or probe.cipher_suites != [0x1301]
        or probe.extensions
        or probe.raw_bytes(False) != probe._raw_bytes
    ):
        return "ClientHello is not as it was"
    return None


def use() -> None:
    """Have mitmproxy read greetings by this."""
    reason = problem()
    if reason is None:
        tls.parse_client_hello = parse_client_hello
    else:
        logger.info("greetings of TLS are read by mitmproxy: %s", reason)
