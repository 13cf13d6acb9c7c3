"""TLS over memory gives what pyOpenSSL's own methods give."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mitmproxy.certs import CertStore
from OpenSSL import SSL

from heliproxy import fast_tls
from tls_rig import shake_hands

SIZES = (1, 100, 16_384, 16_385, 70_000, 300_000)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Any:
    store = CertStore.from_store(tmp_path_factory.mktemp("ca"), "mitmproxy", 2048)
    return store.get_cert("localhost", [])


@pytest.fixture(params=[True, False], ids=["low", "public"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fast_tls.problem() is None
    if not request.param:
        monkeypatch.setattr(fast_tls, "_buffer", None)


def connected(certificate: Any) -> tuple[SSL.Connection, SSL.Connection]:
    """A client and a server that have shaken hands."""
    here = SSL.Context(SSL.TLS_METHOD)
    here.use_certificate(certificate.cert.to_cryptography())
    here.use_privatekey(certificate.privatekey)
    server, client = SSL.Connection(here, None), SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
    server.set_accept_state()
    client.set_connect_state()
    shake_hands(client, server)
    return client, server


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("size", SIZES)
def test_what_one_side_encrypts_the_other_reads(certificate: Any, size: int) -> None:
    client, server = connected(certificate)
    text = bytes(range(256)) * (size // 256 + 1)
    plain, ended, error = fast_tls.decrypt(server, fast_tls.encrypt(client, text))
    assert (plain, ended, error) == (text, False, None)


@pytest.mark.usefixtures("_way")
def test_records_may_come_in_pieces(certificate: Any) -> None:
    client, server = connected(certificate)
    data = fast_tls.encrypt(client, b"x" * 40_000)
    found = b"".join(fast_tls.decrypt(server, data[at : at + 999])[0] for at in range(0, len(data), 999))
    assert found == b"x" * 40_000


@pytest.mark.usefixtures("_way")
def test_the_end_of_a_session_is_told_with_what_came_before(certificate: Any) -> None:
    client, server = connected(certificate)
    data = fast_tls.encrypt(client, b"last words")
    client.shutdown()
    assert fast_tls.decrypt(server, data + fast_tls.outgoing(client)) == (b"last words", True, None)


@pytest.mark.usefixtures("_way")
def test_nothing_is_sent_after_the_end(certificate: Any) -> None:
    _, server = connected(certificate)
    fast_tls.outgoing(server)
    assert fast_tls.outgoing(server) == b""


def test_errors_are_those_of_pyopenssl(certificate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> tuple[bytes, bool, str | None]:
        client, server = connected(certificate)
        data = bytearray(fast_tls.encrypt(client, b"hello"))
        data[-1] ^= 1
        return fast_tls.decrypt(server, bytes(data))

    low = broken()
    monkeypatch.setattr(fast_tls, "_buffer", None)
    assert low == broken()
    assert low[0] == b""
    assert str(low[2]).startswith("TLS Error: ")


@given(st.binary(min_size=1, max_size=2000))
@settings(max_examples=50, deadline=None)
def test_garbage_is_an_error_or_waited_for(certificate: Any, data: bytes) -> None:
    _, server = connected(certificate)
    plain, ended, error = fast_tls.decrypt(server, data)
    assert plain == b""
    assert not ended
    assert error is None or error.startswith("TLS Error: ")
