"""Sessions with upstreams are resumed where everything that was verified is the same, and nowhere else."""

from __future__ import annotations

import gc
import ssl
import weakref
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from mitmproxy.certs import Cert
from mitmproxy.connection import Server
from mitmproxy.net import tls as net_tls
from mitmproxy.proxy.layers.tls import parse_client_hello
from OpenSSL import SSL

from fakes import chat_answer, json_answer
from heliproxy import tls_sessions
from heliproxy.serve import ProxyThread
from heliproxy.settings import Settings, parse_upstreams
from heliproxy.tls_sessions import LIFETIME, ResumableConnection, Sessions
from tls_rig import Identity, SecureUpstream, identity, pass_on, shake_hands

NAME = "api.example"
PSK, EARLY_DATA = 41, 42
CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}


def test_this_pyopenssl_fits() -> None:
    assert tls_sessions.problem() is None


# ---------------------------------------------------------------- in memory


class Ends:
    """A proxy's end and an upstream's."""

    def __init__(self, folder: Path) -> None:
        self.who = identity(folder / "good", NAME)
        self.now = datetime.now(UTC).timestamp()
        self.sessions = Sessions(lambda: self.now)
        self.upstream = self.upstream_of(self.who)
        self.trust = self.trust_in(self.who)
        self.wire = b""

    @staticmethod
    def upstream_of(who: Identity) -> SSL.Context:
        made = SSL.Context(SSL.TLS_SERVER_METHOD)
        made.use_certificate_chain_file(str(who.pem))
        made.use_privatekey_file(str(who.pem))
        return made

    @staticmethod
    def trust_in(who: Identity, verify: net_tls.Verify = net_tls.Verify.VERIFY_PEER) -> SSL.Context:
        return net_tls.create_proxy_server_context.__wrapped__(
            method=net_tls.Method.TLS_CLIENT_METHOD,
            min_version=net_tls.Version.TLS1_2,
            max_version=net_tls.Version.UNBOUNDED,
            cipher_list=None,
            ecdh_curve=None,
            verify=verify,
            ca_path=None,
            ca_pemfile=str(who.ca),
            client_cert=None,
            legacy_server_connect=False,
        )

    def connect(self, **differences: Any) -> tuple[bool, Server]:
        """One connection from begin to end: whether it was resumed, and what mitmproxy would know of it."""
        fields = {"address": ("api.example", 443), "sni": NAME, "alpn_offers": (b"http/1.1",)}
        context = differences.pop("context", self.trust)
        server = Server(**(fields | differences))
        ours = SSL.Connection(context)
        ours.set_tlsext_host_name(NAME.encode())
        if server.alpn_offers:
            ours.set_alpn_protos(list(server.alpn_offers))
        ours.set_connect_state()
        self.sessions.offer(server, ours)
        theirs = SSL.Connection(self.upstream)
        theirs.set_accept_state()
        try:
            ours.do_handshake()
        except SSL.WantReadError:
            self.wire = pass_on(ours, theirs)
        try:
            shake_hands(ours, theirs)
        except SSL.Error:
            self.sessions.drop(server)
            raise
        theirs.set_shutdown(SSL.SENT_SHUTDOWN)  # it ends in good order
        server.certificate_list = [Cert.from_pyopenssl(c) for c in ours.get_peer_cert_chain() or []]
        server.timestamp_tls_setup = self.now
        server.alpn = ours.get_alpn_proto_negotiated()
        self.sessions.keep(server)
        return isinstance(ours, ResumableConnection) and ours.is_resumed(), server


@pytest.fixture
def ends(tmp_path: Path) -> Ends:
    return Ends(tmp_path)


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
def test_the_second_connection_resumes_and_so_do_all_after_it(ends: Ends, version: int) -> None:
    ends.upstream.set_max_proto_version(version)
    found = [ends.connect() for _ in range(4)]
    assert [resumed for resumed, _ in found] == [False, True, True, True]
    leaf = found[0][1].certificate_list
    assert leaf
    assert all(server.certificate_list == leaf for _, server in found)
    assert len(ends.sessions) == 1


@pytest.mark.parametrize(
    "difference",
    [
        {"address": ("api.example", 8443)},
        {"address": ("192.0.2.1", 443)},
        {"sni": "other.example"},
        {"alpn_offers": (b"h2", b"http/1.1")},
        {"alpn_offers": ()},
    ],
    ids=str,
)
def test_any_difference_asks_for_a_full_handshake(ends: Ends, difference: dict[str, Any]) -> None:
    ends.connect()
    assert ends.connect(**difference)[0] is False
    assert ends.connect(**difference)[0] is True
    assert ends.connect()[0] is True


def test_other_settings_ask_for_a_full_handshake_even_where_they_look_the_same(ends: Ends) -> None:
    ends.connect()
    assert ends.connect(context=ends.trust_in(ends.who))[0] is False


def test_a_certificate_that_is_not_trusted_does_not_pass_by_the_session_of_one_that_is(
    ends: Ends, tmp_path: Path
) -> None:
    ends.connect()
    ends.upstream = ends.upstream_of(identity(tmp_path / "bad", NAME))
    with pytest.raises(SSL.Error, match="certificate verify failed"):
        ends.connect()
    ends.upstream = ends.upstream_of(ends.who)
    assert [ends.connect()[0] for _ in range(2)] == [False, True]


def test_connections_that_are_not_verified_leave_nothing_to_resume(ends: Ends) -> None:
    nothing = ends.trust_in(ends.who, net_tls.Verify.VERIFY_NONE)
    assert [ends.connect(context=nothing)[0] for _ in range(2)] == [False, False]
    assert len(ends.sessions) == 0


@pytest.mark.parametrize("way", [{"via": ("http", ("proxy.example", 3128))}, {"sni": None}, {"sni": ""}], ids=str)
def test_ways_whose_end_or_name_is_not_known_are_left_alone(ends: Ends, way: dict[str, Any]) -> None:
    assert [ends.connect(**way)[0] for _ in range(2)] == [False, False]
    assert len(ends.sessions) == 0


def test_a_handshake_that_failed_leaves_nothing_to_resume(ends: Ends) -> None:
    ends.connect()
    server = Server(address=("api.example", 443), sni=NAME, alpn_offers=(b"http/1.1",))
    ends.sessions.offer(server, SSL.Connection(ends.trust))
    ends.sessions.keep(server)  # it ended, but was never established
    assert len(ends.sessions) == 1
    ends.sessions.offer(server, SSL.Connection(ends.trust))
    ends.sessions.drop(server)
    assert len(ends.sessions) == 0


def test_a_host_proves_itself_anew_after_an_hour_however_often_it_was_resumed(ends: Ends) -> None:
    assert [ends.connect()[0] for _ in range(2)] == [False, True]
    ends.now += LIFETIME - 1
    assert ends.connect()[0] is True
    ends.now += 1
    assert ends.connect()[0] is False
    ends.now += LIFETIME - 1
    assert ends.connect()[0] is True


def test_a_session_does_not_outlive_the_certificate(ends: Ends) -> None:
    _, server = ends.connect()
    expires = server.certificate_list[0].notafter.timestamp()
    ends.now = expires - 60
    assert ends.connect()[0] is False
    ends.now = expires - 1
    assert ends.connect()[0] is True
    ends.now = expires
    assert ends.connect()[0] is False


def test_protocols_are_agreed_anew_when_a_session_is_resumed(ends: Ends) -> None:
    chosen = [b"h2"]
    ends.upstream.set_alpn_select_callback(lambda _, offers: chosen[0])
    offers = (b"h2", b"http/1.1")
    assert ends.connect(alpn_offers=offers)[1].alpn == b"h2"
    chosen[0] = b"http/1.1"
    resumed, server = ends.connect(alpn_offers=offers)
    assert (resumed, server.alpn) == (True, b"http/1.1")


def test_nothing_is_sent_ahead_of_the_handshake(ends: Ends) -> None:
    SSL._lib.SSL_CTX_set_max_early_data(ends.upstream._context, 16384)
    ends.connect()
    assert ends.connect()[0] is True
    hello = parse_client_hello(ends.wire)
    assert hello is not None
    kinds = {kind for kind, _ in hello.extensions}
    assert PSK in kinds
    assert EARLY_DATA not in kinds


def test_no_more_are_kept_than_a_number(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls_sessions, "CAPACITY", 3)
    ends.sessions = Sessions(lambda: ends.now)
    for port in range(5):
        ends.connect(address=("api.example", port))
    assert len(ends.sessions) == 3
    assert [ends.connect(address=("api.example", port))[0] for port in (4, 3, 2)] == [True] * 3
    assert ends.connect(address=("api.example", 0))[0] is False


def test_a_connection_that_is_over_is_not_kept(ends: Ends) -> None:
    server = Server(address=("api.example", 443), sni=NAME, alpn_offers=())
    tls = SSL.Connection(ends.trust)
    ends.sessions.offer(server, tls)
    gone = weakref.ref(tls)
    del tls
    gc.disable()
    try:
        ends.sessions.keep(server)
        assert gone() is None
    finally:
        gc.enable()


# ---------------------------------------------------------------- through the proxy


@pytest.fixture
def good(tmp_path: Path) -> Identity:
    return identity(tmp_path / "good", "localhost")


@pytest.fixture
def upstream(good: Identity) -> Iterator[SecureUpstream]:
    with SecureUpstream(lambda _: json_answer(chat_answer()), context=good.context()) as up:
        yield up


def ask(proxy: ProxyThread, home: Path, host: str = "api.openai.com") -> httpx.Response:
    """One call on connections of its own."""
    trust = ssl.create_default_context(cafile=str(home / "ca" / "mitmproxy-ca-cert.pem"))
    url = f"http://127.0.0.1:{proxy.port}"
    with httpx.Client(proxy=url, verify=trust, trust_env=False, timeout=20) as client:
        return client.post(f"https://{host}/v1/chat/completions", json=CHAT)


def settings(home: Path, trusted: Path, **upstreams: str) -> Settings:
    hosts = {"openai": "api.openai.com", "groq": "api.groq.com"}
    found = parse_upstreams(f"{hosts[name]}={url}" for name, url in upstreams.items())
    return Settings(home=home, port=0, api_port=None, upstreams=found, upstream_ca=trusted)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=str)
def test_calls_after_the_first_resume_its_session(home: Path, good: Identity, version: ssl.TLSVersion) -> None:
    with SecureUpstream(lambda _: json_answer(chat_answer()), context=good.context(version)) as up:
        with ProxyThread(settings(home, good.ca, openai=up.url)) as proxy:
            for _ in range(3):
                assert ask(proxy, home).status_code == 200
        assert up.resumed == [False, True, True]


def test_another_port_of_the_same_host_proves_itself(home: Path, good: Identity) -> None:
    context = good.context()  # one context: the second server would know the first one's tickets
    answer: Any = lambda _: json_answer(chat_answer())  # noqa: E731
    with SecureUpstream(answer, context=context) as one, SecureUpstream(answer, context=context) as other:
        with ProxyThread(settings(home, good.ca, openai=one.url, groq=other.url)) as proxy:
            for host in ("api.openai.com", "api.groq.com", "api.openai.com", "api.groq.com"):
                assert ask(proxy, home, host).status_code == 200
        assert (one.resumed, other.resumed) == ([False, True], [False, True])


def test_another_name_of_the_same_server_proves_itself(home: Path, good: Identity, upstream: SecureUpstream) -> None:
    by_address = f"https://127.0.0.1:{upstream.port}"
    with ProxyThread(settings(home, good.ca, openai=upstream.url, groq=by_address)) as proxy:
        assert ask(proxy, home).status_code == 200
        refused = ask(proxy, home, "api.groq.com")
        assert refused.status_code == 502
        assert "certificate verify failed" in refused.text.lower()
        assert ask(proxy, home).status_code == 200
    assert len(upstream.asked) == 2


def test_settings_that_change_ask_for_proof_under_the_new_ones(
    home: Path, good: Identity, upstream: SecureUpstream, tmp_path: Path
) -> None:
    other = identity(tmp_path / "other", "localhost")
    with ProxyThread(settings(home, good.ca, openai=upstream.url)) as proxy:
        assert [ask(proxy, home).status_code for _ in range(2)] == [200, 200]
        assert proxy.proxy is not None
        assert proxy.proxy.master is not None
        options: Any = proxy.proxy.master.options
        assert proxy._loop is not None
        trusted = options.ssl_verify_upstream_trusted_ca
        for ca, status in ((str(other.ca), 502), (trusted, 200)):
            proxy._loop.call_soon_threadsafe(lambda ca=ca: options.update(ssl_verify_upstream_trusted_ca=ca))
            assert ask(proxy, home).status_code == status
    assert upstream.resumed == [False, True, True]
