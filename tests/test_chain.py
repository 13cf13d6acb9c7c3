from __future__ import annotations

import pytest

from heliproxy.chain import Hop, chain_of, covers, hop_of

COMPANY = Hop("http", "proxy.corp", 3128)


@pytest.mark.parametrize(
    ("environ", "https", "http"),
    [
        ({"HTTPS_PROXY": "http://proxy.corp:3128"}, COMPANY, None),
        ({"https_proxy": "proxy.corp:3128", "HTTPS_PROXY": "http://other:1"}, COMPANY, None),
        ({"http_proxy": "http://proxy.corp:3128/"}, None, COMPANY),
        ({"ALL_PROXY": "http://proxy.corp:3128"}, COMPANY, COMPANY),
        ({"HTTPS_PROXY": "https://proxy.corp"}, Hop("https", "proxy.corp", 443), None),
        ({"HELIPROXY_UPSTREAM_PROXY": "http://proxy.corp:3128", "HTTPS_PROXY": "http://o:1"}, COMPANY, COMPANY),
        ({"HTTPS_PROXY": "http://al%40x:p%3Aw@c:1"}, Hop("http", "c", 1, "Basic YWxAeDpwOnc="), None),
    ],
)
def test_the_usual_variables_name_the_proxy(environ, https, http):
    chain = chain_of(environ)
    assert chain is not None
    assert (chain.https, chain.http) == (https, http)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"HTTPS_PROXY": ""},
        {"HELIPROXY_UPSTREAM_PROXY": "", "HTTPS_PROXY": "http://proxy.corp:3128"},
        {"HTTPS_PROXY": "http://127.0.0.1:8080"},
        {"https_proxy": "http://localhost:8080", "http_proxy": "http://[::1]:8080"},
    ],
)
def test_no_proxy_or_ourselves_is_no_chain(environ):
    assert chain_of(environ, 8080) is None


def test_another_proxy_on_loopback_is_one():
    chain = chain_of({"HTTPS_PROXY": "http://127.0.0.1:3128"}, 8080)
    assert chain is not None
    assert chain.spec("https", "a.example", 443) == ("http", ("127.0.0.1", 3128))


@pytest.mark.parametrize("url", ["socks5://c:1", "http://", "http://c:99999", "ftp://u:secret@c"])
def test_what_cannot_be_chained_is_named_without_its_password(url):
    with pytest.raises(ValueError, match="ALL_PROXY") as caught:
        hop_of(url, "ALL_PROXY")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.1", "::1", "[::1]", "x.localhost", "LOCALHOST."])
def test_this_machine_is_never_reached_through_a_proxy(host):
    chain = chain_of({"ALL_PROXY": "http://proxy.corp:3128"})
    assert chain is not None
    assert chain.hop("http", host, 11434) is None


@pytest.mark.parametrize(
    ("entry", "host", "port", "covered"),
    [
        ("*", "a.b", 443, True),
        ("corp.example", "corp.example", 443, True),
        ("corp.example", "api.corp.example", 443, True),
        (".corp.example", "api.corp.example", 443, True),
        ("*.corp.example", "api.corp.example", 443, True),
        ("corp.example", "notcorp.example", 443, False),
        ("corp.example:8443", "corp.example", 8443, True),
        ("corp.example:8443", "corp.example", 443, False),
        ("10.0.0.0/8", "10.1.2.3", 443, True),
        ("10.0.0.0/8", "11.1.2.3", 443, False),
        ("10.1.2.3", "10.1.2.3", 443, True),
        ("fd00::/8", "[fd00::1]", 443, True),
        ("[fd00::1]:443", "fd00::1", 443, True),
        ("", "a.b", 443, False),
        ("10.0.0.0/99", "10.0.0.1", 443, False),
    ],
)
def test_exceptions_are_domains_addresses_networks_and_ports(entry, host, port, covered):
    assert covers(entry, host, port) is covered


def test_exceptions_of_both_variables_count():
    chain = chain_of({"HTTPS_PROXY": "http://c:1", "no_proxy": "a.example, B.example", "NO_PROXY": "c.example"})
    assert chain is not None
    assert [chain.spec("https", f"{x}.example", 443) is None for x in "abcd"] == [True, True, True, False]
