"""Greetings of TLS clients say the same whether we read them or mitmproxy does."""

from __future__ import annotations

import json
import ssl
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mitmproxy.proxy.layers import tls
from mitmproxy.tls import ClientHello

from heliproxy import client_hello
from heliproxy.client_hello import QuickClientHello, parse_client_hello

HELLOS = {
    name: bytes.fromhex(text)
    for name, text in json.loads((Path(__file__).parent / "data" / "client_hellos.json").read_text())["hellos"].items()
}
stock = client_hello._stock


def seen(hello: ClientHello | None) -> Any:
    """All that mitmproxy and its addons can ask of a greeting."""
    if hello is None:
        return None
    wire = hello.raw_bytes(wrap_in_record=False), hello.raw_bytes()
    return hello.sni, list(hello.alpn_protocols), hello.cipher_suites, hello.extensions, *wire, repr(hello)


def read_by(parse: Any, data: bytes | bytearray) -> Any:
    try:
        return seen(parse(data))
    except ValueError as e:
        return "ValueError", str(e)


def test_this_mitmproxy_fits() -> None:
    assert client_hello.problem() is None


@pytest.mark.parametrize("name", HELLOS)
def test_real_clients_greetings_are_read_here(name: str) -> None:
    hello = parse_client_hello(bytearray(HELLOS[name]))
    assert isinstance(hello, QuickClientHello)
    assert seen(hello) == seen(stock(HELLOS[name]))


def test_what_they_say_is_what_the_clients_were_told_to() -> None:
    found = {name: parse_client_hello(data) for name, data in HELLOS.items()}
    said = {name: (hello.sni, hello.alpn_protocols) for name, hello in found.items() if hello is not None}
    assert said["curl"] == ("api.openai.com", [b"h2", b"http/1.1"])
    assert said["openssl tls1.2"] == ("api.openai.com", [])
    assert said["python ssl"] == ("api.anthropic.com", [])
    assert said["python by address"] == (None, [b"http/1.1"])
    assert said["chromium"] == ("api.openai.com", [b"h2", b"http/1.1"])
    assert len(said) == len(HELLOS)


@pytest.mark.parametrize("name", HELLOS)
def test_a_greeting_that_is_not_complete_is_waited_for(name: str) -> None:
    data = HELLOS[name]
    for size in (*range(64), len(data) - 1):
        assert read_by(parse_client_hello, data[:size]) == read_by(stock, data[:size])
    assert read_by(parse_client_hello, data + b"\x14\x03\x03\x00\x01\x01") == read_by(stock, data)


def test_a_greeting_in_several_records_is_read() -> None:
    data = HELLOS["curl"]
    body = data[5:]
    records = [body[:100], body[100:101], body[101:]]
    split = b"".join(b"\x16\x03\x01" + len(part).to_bytes(2) + part for part in records)
    assert read_by(parse_client_hello, split) == read_by(stock, split) != None  # noqa: E711 - compared, not tested
    assert read_by(parse_client_hello, split)[0] == "api.openai.com"


def hello(extensions: bytes | None, suites: bytes = b"\x13\x01", session: bytes = b"", methods: bytes = b"\0") -> bytes:
    body = b"\x03\x03" + bytes(32) + bytes((len(session),)) + session
    body += len(suites).to_bytes(2) + suites + bytes((len(methods),)) + methods
    if extensions is not None:
        body += len(extensions).to_bytes(2) + extensions
    return record(b"\x01" + len(body).to_bytes(3) + body)


def record(message: bytes) -> bytes:
    return b"\x16\x03\x01" + len(message).to_bytes(2) + message


def extension(kind: int, body: bytes) -> bytes:
    return kind.to_bytes(2) + len(body).to_bytes(2) + body


def names(*hosts: bytes, kind: int = 0) -> bytes:
    entries = b"".join(bytes((kind,)) + len(host).to_bytes(2) + host for host in hosts)
    return extension(0, len(entries).to_bytes(2) + entries)


def protocols(*offers: bytes) -> bytes:
    entries = b"".join(bytes((len(offer),)) + offer for offer in offers)
    return extension(16, len(entries).to_bytes(2) + entries)


ODD: dict[str, bytes] = {
    "no extensions": hello(None),
    "an empty list of extensions": hello(b""),
    "nothing": record(b"\x01\0\0\0"),
    "another message": b"\x16\x03\x01\x00\x05\x02\0\0\x01\0",
    "an odd number of bytes of suites": hello(names(b"a.example"), suites=b"\x13\x01\x02"),
    "no suites": hello(names(b"a.example"), suites=b""),
    "two names": hello(names(b"a.example", b"b.example")),
    "two extensions of names": hello(names(b"a.example") + names(b"b.example")),
    "two extensions of names, the first not valid": hello(names(b"a b") + names(b"b.example")),
    "two extensions of protocols": hello(protocols(b"h2") + protocols(b"http/1.1")),
    "a name of another kind": hello(names(b"a.example", kind=1)),
    "a name that is not valid": hello(names(b"a b.example")),
    "a name with bytes of no host": hello(names(b"a\xff.example")),
    "an empty name": hello(names(b"")),
    "no name in the list": hello(names()),
    "a dot at the end": hello(names(b"a.example.")),
    "two dots": hello(names(b"a..example")),
    "an underscore": hello(names(b"a_b.example")),
    "a hyphen in front": hello(names(b"-a.example")),
    "a name of one label": hello(names(b"localhost")),
    "an address": hello(names(b"127.0.0.1")),
    "an IPv6 address": hello(names(b"::1")),
    "punycode": hello(names(b"xn--bcher-kva.example")),
    "punycode in capitals": hello(names(b"XN--bcher-kva.example")),
    "bad punycode": hello(names(b"xn--\xff.example")),
    "bad punycode of letters": hello(names(b"xn--a-.example")),
    "a label of 64": hello(names(b"a" * 64 + b".example")),
    "a name of 255": hello(names(b".".join([b"a" * 31] * 8)[:255])),
    "a newline at the end": hello(names(b"a.example\n")),
    "a name that is longer than its extension": hello(extension(0, b"\x00\x06\x00\x00\x09abc")),
    "a list of names that is longer than its extension": hello(extension(0, b"\x00\x99\x00\x00\x03abc")),
    "bytes after the name": hello(extension(0, b"\x00\x06\x00\x00\x03abcd")),
    "no protocols": hello(protocols()),
    "an empty protocol": hello(protocols(b"", b"h2")),
    "a protocol longer than its list": hello(extension(16, b"\x00\x03\x09h2")),
    "a list of protocols longer than its extension": hello(extension(16, b"\x00\x99\x02h2")),
    "an empty extension of protocols": hello(extension(16, b"")),
    "an extension longer than the greeting": hello(b"\x00\x2b\x00\x99\x00"),
    "half a head of an extension": hello(b"\x00\x2b\x00"),
    "a session id longer than the greeting": record(b"\x01\x00\x00\x23" + bytes(34) + b"\xff"),
    "bytes after the extensions": hello(names(b"a.example"))[:-1],
    "a record of another version": b"\x16\x03\x04" + HELLOS["curl"][3:],
    "no record": b"GET / HTTP/1.1\r\n\r\n",
    "an empty record": b"\x16\x03\x01\x00\x00" + HELLOS["curl"],
    "bytes after the greeting in its record": record(HELLOS["go"][5:] + b"\x01\x02"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_greetings_are_what_mitmproxy_takes_them_for(name: str) -> None:
    data = ODD[name]
    for size in {len(data), len(data) - 1, len(data) // 2}:
        assert read_by(parse_client_hello, data[:size]) == read_by(stock, data[:size])


@given(st.sampled_from(sorted(HELLOS)), st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), max_size=4))
def test_changed_bytes_change_what_both_see(name: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(HELLOS[name])
    for place, byte in changes:
        data[place % len(data)] = byte
    assert read_by(parse_client_hello, bytes(data)) == read_by(stock, bytes(data))


LABEL = st.text(st.sampled_from("ab-_.xnXN0\u00e9 \n"), max_size=12).map(lambda text: text.encode())


@given(
    st.lists(
        st.one_of(
            LABEL.map(names),
            st.lists(st.binary(max_size=5)).map(lambda o: protocols(*o)),
            st.tuples(st.sampled_from([0, 16, 43]), st.binary(max_size=9)).map(lambda e: extension(*e)),
        ),
        max_size=4,
    ),
    st.binary(max_size=6),
    st.binary(max_size=3),
)
@example([names(b"xn--")], b"\x13\x01", b"")
def test_greetings_of_any_make_say_the_same_to_both(parts: list[bytes], suites: bytes, session: bytes) -> None:
    data = hello(b"".join(parts), suites, session)
    assert read_by(parse_client_hello, data) == read_by(stock, data)


def test_the_rest_of_a_greeting_is_read_only_when_asked_for() -> None:
    found = parse_client_hello(HELLOS["curl"])
    assert found is not None
    assert (found.sni, found.alpn_protocols) == ("api.openai.com", [b"h2", b"http/1.1"])
    assert "_client_hello" not in vars(found)
    assert found.cipher_suites
    assert "_client_hello" in vars(found)
    with pytest.raises(AttributeError):
        _ = found.nothing  # type: ignore[attr-defined]


def test_mitmproxy_reads_greetings_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "parse_client_hello", stock)
    client_hello.use()
    assert tls.parse_client_hello is parse_client_hello
    monkeypatch.setattr(tls, "parse_client_hello", stock)
    monkeypatch.setattr(client_hello, "problem", lambda: "it is not as it was")
    client_hello.use()
    assert tls.parse_client_hello is stock


def test_this_pythons_own_greeting_is_read_here() -> None:
    outgoing = ssl.MemoryBIO()
    end = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="api.mistral.ai")
    with pytest.raises(ssl.SSLWantReadError):
        end.do_handshake()
    found = parse_client_hello(outgoing.read())
    assert isinstance(found, QuickClientHello)
    assert found.sni == "api.mistral.ai"
