"""What mitmproxy prepares for every TLS connection, prepared once for all that are alike.

mitmproxy has one OpenSSL context for all clients, and at each connection looks up a dozen options, finds the leaf
certificate, and writes it and its key as DER and reads them again. Here each leaf has a context of its own, with both
loaded. Connections to upstreams are left to mitmproxy, and then offered the session to resume.
"""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING, Any

from cachetools import FIFOCache
from mitmproxy import ctx
from mitmproxy.connection import Client, Server
from mitmproxy.net import tls as net_tls
from mitmproxy.proxy.layers.modes import HttpProxy
from OpenSSL import SSL

from heliproxy import tls_sessions
from heliproxy.dispatch import DirectDispatch
from heliproxy.lean import tlsconfig
from heliproxy.tls_sessions import Sessions

if TYPE_CHECKING:
    from mitmproxy.master import Master
    from mitmproxy.proxy.context import Context
    from mitmproxy.proxy.server_hooks import ServerConnectionHookData
    from mitmproxy.tls import TlsData

logger = logging.getLogger(__name__)

CAPACITY = 100
"""Leaves whose contexts are kept: as many as mitmproxy keeps leaves."""
Leaf = tuple[str, str | None]
"""What a leaf certificate is for: the name that the client gave, or the address it came to, and the host it named."""


class QuickTlsConfig(tlsconfig.TlsConfig):
    """mitmproxy's addon for TLS. Instances are switched to this class, so there is no `__init__`."""

    name = "tlsconfig"
    sessions: Sessions
    _contexts: FIFOCache[Leaf, SSL.Context]
    _plain: bool | None = None
    """Whether options ask for nothing that concerns single clients; None: to be looked up."""
    _http2: bool = True

    def start(self) -> None:
        self.sessions = Sessions()
        self._contexts = FIFOCache(CAPACITY)

    def configure(self, updated: Any) -> None:
        self._contexts.clear()
        self._plain = None
        super().configure(updated)  # type: ignore[no-untyped-call]

    def tls_start_client(self, tls_start: TlsData) -> None:
        client, context = tls_start.conn, tls_start.context
        if self._plain is None:
            self._look_up_options()
        if tls_start.ssl_conn is not None or tls_start.is_dtls or not self._plain or client.cipher_list:
            super().tls_start_client(tls_start)
            return
        server = context.server
        if server.certificate_list and ctx.options.upstream_cert:
            super().tls_start_client(tls_start)  # the leaf is to look like that one
            return
        assert isinstance(client, Client)
        leaf = (client.sni or client.sockname[0], server.address[0] if server.address else None)
        ssl_conn = SSL.Connection(self._contexts.get(leaf) or self._prepare(leaf, context))
        # A client's TLS to the proxy itself, in which CONNECT follows.
        over_tls = len(context.layers) == 2 and isinstance(context.layers[0], HttpProxy)
        ssl_conn.set_app_data(
            tlsconfig.AppData(
                client_alpn=b"http/1.1" if over_tls else client.alpn, server_alpn=server.alpn, http2=self._http2
            )
        )
        ssl_conn.set_accept_state()
        tls_start.ssl_conn = ssl_conn

    def _look_up_options(self) -> None:
        options = ctx.options
        self._http2 = options.http2
        self._plain = not (
            options.ciphers_client or options.request_client_cert or options.add_upstream_certs_to_client_chain
        )

    def _prepare(self, leaf: Leaf, context: Context) -> SSL.Context:
        """An OpenSSL context with the settings that mitmproxy uses, and the leaf's certificate and key."""
        entry = self.get_cert(context)
        options = ctx.options
        oldest = net_tls.Version[options.tls_version_client_min]
        # Past its cache, which would give the same context to all leaves.
        made: SSL.Context = net_tls.create_client_proxy_context.__wrapped__(
            method=net_tls.Method.TLS_SERVER_METHOD,
            min_version=oldest,
            max_version=net_tls.Version[options.tls_version_client_max],
            cipher_list=tlsconfig._default_ciphers(oldest),
            ecdh_curve=net_tls.get_curve(options.tls_ecdh_curve_client),
            chain_file=entry.chain_file,
            request_client_cert=False,
            alpn_select_callback=tlsconfig.alpn_select_callback,
            extra_chain_certs=tuple(entry.chain_certs) if not entry.chain_file and len(entry.chain_certs) > 1 else (),
            dhparams=self.certstore.dhparams,
        )
        made.use_certificate(entry.cert.to_cryptography())
        made.use_privatekey(entry.privatekey)
        # Clients resume by tickets, which they keep; each context would keep 20,000 sessions of those that cannot.
        made.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        self._contexts[leaf] = made
        return made

    def tls_start_server(self, tls_start: TlsData) -> None:
        given = tls_start.ssl_conn
        super().tls_start_server(tls_start)
        if given is None and tls_start.ssl_conn is not None and not tls_start.is_dtls:
            assert isinstance(tls_start.conn, Server)
            self.sessions.offer(tls_start.conn, tls_start.ssl_conn)

    def tls_failed_server(self, tls_failed: TlsData) -> None:
        assert isinstance(tls_failed.conn, Server)
        self.sessions.drop(tls_failed.conn)

    def server_disconnected(self, data: ServerConnectionHookData) -> None:
        self.sessions.keep(data.server)


def problem() -> str | None:
    """Why this does not fit the installed mitmproxy or pyOpenSSL, or None if it does."""
    expected = {
        "method", "min_version", "max_version", "cipher_list", "ecdh_curve", "chain_file", "alpn_select_callback",
        "request_client_cert", "extra_chain_certs", "dhparams",
    }  # fmt: skip
    make = getattr(net_tls.create_client_proxy_context, "__wrapped__", None)
    if make is None or set(inspect.signature(make).parameters) != expected:
        return "create_client_proxy_context is not as it was"
    for owner, name, parameters in (
        (tlsconfig.TlsConfig, "tls_start_client", ("self", "tls_start")),
        (tlsconfig.TlsConfig, "tls_start_server", ("self", "tls_start")),
        (tlsconfig.TlsConfig, "get_cert", ("self", "conn_context")),
        (tlsconfig, "_default_ciphers", ("min_tls_version",)),
        (tlsconfig, "alpn_select_callback", ("conn", "options")),
    ):
        found = getattr(owner, name, None)
        if found is None or tuple(inspect.signature(found).parameters) != parameters:
            return f"{owner.__name__}.{name} is not as it was"
    if set(tlsconfig.AppData.__annotations__) != {"client_alpn", "server_alpn", "http2"}:
        return "tlsconfig.AppData is not as it was"
    return tls_sessions.problem()


def use(master: Master) -> None:
    """Switch a running master's addon for TLS to this one; one that is not mitmproxy's own is left alone."""
    addon = master.addons.get("tlsconfig")
    if type(addon) is not tlsconfig.TlsConfig:
        return
    reason = problem()
    if reason is not None:
        logger.info("TLS is prepared by mitmproxy: %s", reason)
        return
    addon.__class__ = QuickTlsConfig
    assert isinstance(addon, QuickTlsConfig)
    addon.start()
    if isinstance(master.addons, DirectDispatch):
        master.addons.forget()
