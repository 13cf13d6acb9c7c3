"""What is prepared once for connections that are alike is what mitmproxy prepares for each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mitmproxy import options
from mitmproxy.addons import tlsconfig
from mitmproxy.certs import Cert
from mitmproxy.connection import Client, Server
from mitmproxy.master import Master
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.modes import HttpProxy
from mitmproxy.test import taddons
from mitmproxy.tls import TlsData
from OpenSSL import SSL

from heliproxy import dispatch, quick_tls
from heliproxy.certs import ensure_ca
from heliproxy.quick_tls import QuickTlsConfig
from tls_rig import shake_hands


def test_this_mitmproxy_fits() -> None:
    assert quick_tls.problem() is None


class Side:
    """One of the two addons, with options of its own."""

    def __init__(self, addon: tlsconfig.TlsConfig, confdir: Path) -> None:
        self.addon = addon
        self.context = taddons.context(addon)
        self.context.__enter__()
        self.context.configure(addon, confdir=str(confdir))

    def close(self) -> None:
        self.context.__exit__(None, None, None)


@pytest.fixture
def confdir(tmp_path: Path) -> Path:
    return ensure_ca(tmp_path / "home", ["openai.com", "anthropic.com", "127.0.0.1", "::1"]).folder


def quick() -> QuickTlsConfig:
    addon = QuickTlsConfig()
    addon.start()
    return addon


@pytest.fixture
def ours(confdir: Path) -> Iterator[Side]:
    side = Side(quick(), confdir)
    yield side
    side.close()


def opened(
    sni: str | None = "api.openai.com", address: tuple[str, int] | None = ("api.openai.com", 443), **client: Any
) -> Context:
    made = Client(peername=("127.0.0.1", 50000), sockname=("127.0.0.1", 8080), timestamp_start=0, **client)
    made.sni = sni
    context = Context(made, options.Options())
    context.server.address = address
    return context


def start(side: Side, context: Context) -> SSL.Connection:
    data = TlsData(context.client, context)
    side.addon.tls_start_client(data)
    assert data.ssl_conn is not None
    return data.ssl_conn


def agreed(server: SSL.Connection, offers: list[bytes], newest: int = SSL.TLS1_3_VERSION) -> dict[str, Any]:
    """What a client finds out about the other end of its connection."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_max_proto_version(newest)
    client = SSL.Connection(context)
    if offers:
        client.set_alpn_protos(offers)
    client.set_connect_state()
    shake_hands(client, server)
    chain = [Cert.from_pyopenssl(c) for c in client.get_peer_cert_chain() or []]
    return {
        "alpn": client.get_alpn_proto_negotiated(),
        "version": client.get_protocol_version_name(),
        "cipher": client.get_cipher_name(),
        "names": [str(name) for name in chain[0].altnames],
        "cn": chain[0].cn,
        "issuer": chain[0].issuer,
        "chain": len(chain),
    }


CLIENTS: dict[str, dict[str, Any]] = {
    "named": {},
    "without a name": {"sni": None},
    "with a name other than the host": {"sni": "api.anthropic.com"},
    "at an address": {"sni": None, "address": ("127.0.0.1", 443)},
    "at an IPv6 address": {"sni": None, "address": ("::1", 443)},
    "before a host is known": {"address": None},
}


@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS.keys())
@pytest.mark.parametrize("offers", [[], [b"http/1.1"], [b"h2", b"http/1.1"], [b"strange"]], ids=str)
@pytest.mark.parametrize("newest", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
def test_clients_find_what_mitmproxy_would_show_them(
    confdir: Path, client: dict[str, Any], offers: list[bytes], newest: int
) -> None:
    found = []
    for addon in (tlsconfig.TlsConfig(), quick()):
        side = Side(addon, confdir)
        try:
            found += [agreed(start(side, opened(**client)), offers, newest) for _ in range(2)]
        finally:
            side.close()
    assert found[1:] == found[:1] * 3


OPTIONS: tuple[dict[str, Any], ...] = (
    {"http2": False},
    {"tls_version_client_max": "TLS1_2"},
    {"tls_version_client_min": "TLS1_3"},
    {"ciphers_client": "ECDHE-ECDSA-AES256-GCM-SHA384", "tls_version_client_max": "TLS1_2"},
    {"request_client_cert": True},
    {"tls_ecdh_curve_client": "secp384r1"},
    {"add_upstream_certs_to_client_chain": True},
)


@pytest.mark.parametrize("changed", OPTIONS, ids=str)
def test_options_that_change_hold_from_the_next_connection_on(confdir: Path, changed: dict[str, Any]) -> None:
    found = []
    for addon in (tlsconfig.TlsConfig(), quick()):
        side = Side(addon, confdir)
        try:
            agreed(start(side, opened()), [b"h2", b"http/1.1"])
            side.context.configure(addon, **changed)
            found.append(agreed(start(side, opened()), [b"h2", b"http/1.1"]))
        finally:
            side.close()
    assert found[0] == found[1]


def test_alpn_is_the_servers_where_that_is_known(ours: Side) -> None:
    context = opened()
    context.server.alpn = b"http/1.1"
    assert agreed(start(ours, context), [b"h2", b"http/1.1"])["alpn"] == b"http/1.1"
    assert agreed(start(ours, opened()), [b"h2", b"http/1.1"])["alpn"] == b"h2"


def test_tls_to_the_proxy_itself_is_for_http_1(ours: Side) -> None:
    context = opened()
    HttpProxy(context)
    context.layers.append(context.layers[0])
    assert agreed(start(ours, context), [b"h2", b"http/1.1"])["alpn"] == b"http/1.1"


def test_each_leaf_is_kept_and_its_connections_share_what_is_prepared(ours: Side) -> None:
    one, other, same = (start(ours, opened(sni=name)) for name in ("a.openai.com", "b.openai.com", "a.openai.com"))
    assert one.get_context() is same.get_context()
    assert one.get_context() is not other.get_context()
    assert agreed(other, [])["cn"] == "b.openai.com"
    assert agreed(one, [])["cn"] == agreed(same, [])["cn"] == "a.openai.com"


def test_no_more_leaves_are_kept_than_mitmproxy_keeps(ours: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick_tls, "CAPACITY", 3)
    assert isinstance(ours.addon, QuickTlsConfig)
    ours.addon.start()
    for number in range(5):
        start(ours, opened(sni=f"h{number}.openai.com"))
    assert [leaf[0] for leaf in ours.addon._contexts] == [f"h{n}.openai.com" for n in (2, 3, 4)]


def test_an_authority_that_is_replaced_signs_from_then_on(ours: Side, tmp_path: Path) -> None:
    before = agreed(start(ours, opened()), [])
    other = ensure_ca(tmp_path / "other", ["openai.com"])
    ours.context.configure(ours.addon, confdir=str(other.folder))
    after = agreed(start(ours, opened()), [])
    assert before["issuer"] != after["issuer"]


def test_what_another_addon_has_prepared_is_left(ours: Side) -> None:
    context = opened()
    given = SSL.Connection(SSL.Context(SSL.TLS_SERVER_METHOD))
    data = TlsData(context.client, context, ssl_conn=given)
    ours.addon.tls_start_client(data)
    assert data.ssl_conn is given
    server = TlsData(Server(address=("api.openai.com", 443)), context, ssl_conn=given)
    ours.addon.tls_start_server(server)
    assert server.ssl_conn is given
    assert type(given) is SSL.Connection


def test_ciphers_of_a_single_client_are_heeded(ours: Side) -> None:
    context = opened(cipher_list=["ECDHE-ECDSA-AES256-GCM-SHA384"])
    assert agreed(start(ours, context), [], SSL.TLS1_2_VERSION)["cipher"] == "ECDHE-ECDSA-AES256-GCM-SHA384"


@pytest.mark.parametrize("newest", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
def test_a_client_that_comes_back_resumes_its_session(ours: Side, newest: int) -> None:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_max_proto_version(newest)
    session = None
    reused = []
    for _ in range(3):
        client = SSL.Connection(context)
        client.set_connect_state()
        if session is not None:
            client.set_session(session)
        shake_hands(client, start(ours, opened()))
        reused.append(SSL._lib.SSL_session_reused(client._ssl))
        session = client.get_session()
        client.set_shutdown(SSL.SENT_SHUTDOWN)
    assert reused == [0, 1, 1]


def test_sessions_of_clients_are_kept_by_them_alone(ours: Side) -> None:
    context = start(ours, opened()).get_context()
    assert context.get_session_cache_mode() == SSL.SESS_CACHE_OFF


def test_only_mitmproxys_own_addon_is_switched() -> None:
    class Theirs(tlsconfig.TlsConfig):
        name = "tlsconfig"

    async def run() -> None:
        for addon, expected in ((tlsconfig.TlsConfig(), QuickTlsConfig), (Theirs(), Theirs), (None, None)):
            master = Master(options.Options())
            dispatch.use(master)
            if addon is not None:
                master.addons.add(addon)
            quick_tls.use(master)
            quick_tls.use(master)
            found = master.addons.get("tlsconfig")
            assert (type(found) if found else None) is expected
            master._legacy_log_events.uninstall()

    asyncio.run(run())
