"""TLS in memory and on loopback: authorities, leaves, and upstreams that say whether a session was resumed."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from mitmproxy.certs import CertStore
from OpenSSL import SSL

from fakes import Upstream
from heliproxy.certs import ensure_ca


@dataclass(frozen=True)
class Identity:
    """A server's certificate and key, and the authority that vouches for it."""

    pem: Path
    ca: Path

    def context(self, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
        made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        made.load_cert_chain(self.pem)
        made.maximum_version = newest
        made.set_alpn_protocols(["http/1.1"])
        return made


def identity(folder: Path, *names: str) -> Identity:
    """A new authority, and what it says of a server with these names. Raises what `ensure_ca` raises."""
    ca = ensure_ca(folder, names)
    entry = CertStore.from_store(ca.folder, "mitmproxy", 2048).get_cert(names[0], [x509.DNSName(n) for n in names])
    pem = folder / "server.pem"
    pem.write_bytes(ca.key_and_cert.read_bytes().split(b"-----BEGIN CERTIFICATE")[0] + entry.cert.to_pem())
    return Identity(pem, ca.cert)


@dataclass
class SecureUpstream(Upstream):
    """An upstream that notes of each connection whether it resumed a session."""

    resumed: list[bool] = field(default_factory=list)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.resumed.append(writer.get_extra_info("ssl_object").session_reused)
        await super()._client(reader, writer)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"


def shake_hands(client: SSL.Connection, server: SSL.Connection) -> None:
    """A handshake in memory, with the tickets that follow it. Raises SSL.Error when a side refuses."""
    for _ in range(4):
        for one, other in ((client, server), (server, client)):
            try:
                one.do_handshake()
            except SSL.WantReadError:
                pass
            pass_on(one, other)
    try:
        client.recv(1)
    except SSL.WantReadError:
        pass


def pass_on(one: SSL.Connection, other: SSL.Connection) -> bytes:
    """Give the one side's bytes to the other; returns them."""
    found = b""
    while True:
        try:
            data = one.bio_read(65535)
        except SSL.WantReadError:
            return found
        found += data
        other.bio_write(data)
