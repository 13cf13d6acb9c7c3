"""Resumes TLS sessions with upstreams, so that a host dialled again need not prove itself by a full handshake.

A program that makes one call and ends, or a new connection for each call, costs us a new connection to the same host
each time. The host's certificate was checked when the session began, and who resumes it knows its secret (RFC 8446
section 2.2), so what was checked then must be all that would be checked now: a session is offered only for the same
host, port and protocols, under the same settings (trusted roots, our own certificate, ciphers). It is kept no longer
than `LIFETIME`, nor than the certificate is valid; being resumed does not prolong that. Nothing is ever sent ahead of
the handshake (0-RTT).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cachetools import FIFOCache
from cryptography import x509
from mitmproxy.connection import Server
from OpenSSL import SSL

logger = logging.getLogger(__name__)

LIFETIME = 3600.0
"""Seconds after which a host proves itself anew. A ticket may live for seven days; revoked certificates should not."""
CAPACITY = 128
_STATE = "heliproxy_tls"
"""Under this name an upstream connection keeps its `_Begun`."""
_lib: Any = getattr(SSL, "_lib", None)
_MARK: Any = getattr(_lib, "SSL_set_shutdown", None)
_VERIFIED = 0  # X509_V_OK


class Way(NamedTuple):
    """All that decides whether a certificate is accepted, and what is spoken."""

    context: SSL.Context
    """mitmproxy makes one for each set of settings, and keeps it."""
    name: str
    address: tuple[str, int]
    protocols: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Kept:
    """A session to resume."""

    session: SSL.Session
    until: float
    """When the host has to prove itself anew, in seconds since the epoch."""
    chain: tuple[_Certificate, ...]
    """What the host proved itself with."""


@dataclass(frozen=True, slots=True)
class _Certificate:
    """One certificate, as mitmproxy asks pyOpenSSL for it: reading it again costs more than the rest of resuming."""

    parsed: x509.Certificate

    def to_cryptography(self) -> x509.Certificate:
        return self.parsed


class ResumableConnection(SSL.Connection):
    """Instances are switched to this class, so there is no `__init__`."""

    offered: Kept | None = None

    def is_resumed(self) -> bool:
        return self.offered is not None and bool(_lib.SSL_session_reused(self._ssl))

    def get_peer_cert_chain(self, **kind: bool) -> Any:
        if self.offered is not None and not kind and self.is_resumed():
            return list(self.offered.chain)
        return super().get_peer_cert_chain(**kind)  # type: ignore[call-overload]

    def __del__(self, mark: Any = _MARK, sent: int = SSL.SENT_SHUTDOWN) -> None:
        # OpenSSL takes a connection that ends without a shutdown for broken, and its session with it. By defaults,
        # because modules may be gone when the last of them end with the process.
        if "_ssl" in vars(self):
            mark(self._ssl, sent)


@dataclass(frozen=True, slots=True)
class _Begun:
    way: Way
    tls: ResumableConnection


class Sessions:
    """The last session of each way, at most `CAPACITY` of them.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._kept: FIFOCache[Way, Kept] = FIFOCache(CAPACITY)

    def __len__(self) -> int:
        return len(self._kept)

    def offer(self, server: Server, tls: SSL.Connection) -> None:
        """Before a handshake: have it resume what is known of this way, and remember how it is begun."""
        way = _way(server, tls)
        if way is None:
            return
        tls.__class__ = ResumableConnection
        assert isinstance(tls, ResumableConnection)
        vars(server)[_STATE] = _Begun(way, tls)
        kept = self._kept.get(way)
        if kept is None:
            return
        if kept.until <= self._clock():
            del self._kept[way]
            return
        try:
            tls.set_session(kept.session)
        except SSL.Error as e:
            logger.debug("a session with %s cannot be resumed: %s", way.name, e)
            del self._kept[way]
        else:
            tls.offered = kept

    def keep(self, server: Server) -> None:
        """When a connection has ended: keep its session. A ticket (TLS 1.3) comes with the first answer."""
        begun: _Begun | None = vars(server).pop(_STATE, None)
        if begun is None or not server.tls_established or not server.certificate_list:
            return
        tls = begun.tls
        session = tls.get_session()
        if session is None or _lib.SSL_get_verify_result(tls._ssl) != _VERIFIED:
            return
        if tls.offered is not None and tls.is_resumed():
            kept = Kept(session, tls.offered.until, tls.offered.chain)
        else:
            expires = server.certificate_list[0].notafter.timestamp()
            until = min(self._clock() + LIFETIME, expires)
            kept = Kept(session, until, tuple(_Certificate(c.to_cryptography()) for c in server.certificate_list))
        self._kept[begun.way] = kept

    def drop(self, server: Server) -> None:
        """After a handshake that failed: the next one is a full one."""
        begun: _Begun | None = vars(server).pop(_STATE, None)
        if begun is not None:
            self._kept.pop(begun.way, None)


def _way(server: Server, tls: SSL.Connection) -> Way | None:
    """The way of a connection whose host will be verified; None for others, and for those through another proxy: their
    end is not told."""
    if not server.sni or server.address is None or server.via is not None or server.transport_protocol != "tcp":
        return None
    context = tls.get_context()
    if type(tls) is not SSL.Connection or not context.get_verify_mode() & SSL.VERIFY_PEER:
        return None
    protocols: Sequence[bytes] = server.alpn_offers
    return Way(context, server.sni, (server.address[0], server.address[1]), tuple(protocols))


def problem() -> str | None:
    """Why sessions cannot be resumed with the installed pyOpenSSL, or None if they can."""
    for name in ("SSL_session_reused", "SSL_get_verify_result", "SSL_set_shutdown"):
        if not hasattr(_lib, name):
            return f"OpenSSL.SSL._lib has no {name}"
    for name in ("get_session", "set_session", "get_peer_cert_chain", "get_context"):
        if not hasattr(SSL.Connection, name):
            return f"OpenSSL.SSL.Connection has no {name}"
    if "_ssl" not in vars(SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)):
        return "OpenSSL.SSL.Connection is not as it was"
    return None
