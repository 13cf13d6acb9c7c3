"""The fake provider of `scripts/bench.py`: OpenAI chat completions over TLS, of canned bytes.

    bench_upstream.py CERTIFICATE_AND_KEY.pem      prints https://localhost:PORT

The request header `x-bench` says what to answer, as words `NAME=NUMBER`:
    bytes=N      a JSON answer of N bytes
    events=N     instead, a stream of N events; gap=MS apart, each at its due time from the first whatever came between
    think=MS     begin after a while
    failing=N    every Nth answer is a 500
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import sys
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

MODEL = "gpt-4o-mini-2024-07-18"
USAGE = {"prompt_tokens": 200, "completion_tokens": 100, "total_tokens": 300}
LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
WANTED = re.compile(rb"(?i)\r\nx-bench: *([^\r]*)")
ENDING_EVENTS = 2
"""After those asked for: the one with the usage, and [DONE]."""


@dataclass(slots=True)
class Behaviour:
    """What one value of `x-bench` asks for; times in seconds."""

    answer: bytes
    events: tuple[bytes, ...]
    gap: float
    think: float
    failing: int
    served: int = field(default=0)

    def fails(self) -> bool:
        self.served += 1
        return self.failing > 0 and self.served % self.failing == 0


@cache
def behaviour(wanted: str) -> Behaviour:
    """Raises: ValueError, for anything but words `NAME=NUMBER`."""
    told = {name: int(number) for name, _, number in (word.partition("=") for word in wanted.split())}
    gap, think = told.get("gap", 0) / 1000, told.get("think", 0) / 1000
    return Behaviour(
        json_answer(told.get("bytes", 1024)), events(told.get("events", 0)), gap, think, told.get("failing", 0)
    )


def json_answer(size: int) -> bytes:
    def body(content: str) -> bytes:
        choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
        return json.dumps(
            {"id": "chatcmpl-bench", "object": "chat.completion", "model": MODEL, "choices": [choice], "usage": USAGE}
        ).encode()

    return response("200 OK", body(prose(size - len(body("")))))


def prose(size: int) -> str:
    return ("Measure first, then decide. " * (size // 28 + 1))[: max(0, size)]


def response(status: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


FAILURE = response("500 Internal Server Error", b'{"error": {"message": "overloaded", "type": "server_error"}}')
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def events(number: int) -> tuple[bytes, ...]:
    """Chunks of a chunked body, one event in each; the last ends the body."""
    if not number:
        return ()
    common = {"id": "chatcmpl-bench", "object": "chat.completion.chunk", "model": MODEL}
    one = chunk({**common, "choices": [{"index": 0, "delta": {"content": " word"}, "finish_reason": None}]})
    last = chunk({**common, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": USAGE})
    return (*([one] * (number - 1)), one + last + framed(b"data: [DONE]\n\n") + b"0\r\n\r\n")


def chunk(event: object) -> bytes:
    return framed(f"data: {json.dumps(event)}\n\n".encode())


def framed(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Client(asyncio.Protocol):
    """One connection, one request after the other."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._needed = 0
        self._behaviour: Behaviour | None = None
        self._due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._due is not None:
            self._due.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._needed:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._received[:end])
            length, wanted = LENGTH.search(head), WANTED.search(head)
            self._needed = end + 4 + (int(length[1]) if length else 0)
            self._behaviour = behaviour(wanted[1].decode("latin-1") if wanted else "")
        if len(self._received) >= self._needed:
            del self._received[: self._needed]
            self._needed = 0
            self._answer()

    def _answer(self) -> None:
        asked = self._behaviour
        assert asked is not None
        if asked.fails():
            self._transport.write(FAILURE)
        elif asked.think:
            self._due = self._loop.call_later(asked.think, self._begin, asked)
        else:
            self._begin(asked)

    def _begin(self, asked: Behaviour) -> None:
        if not asked.events:
            self._transport.write(asked.answer)
            return
        self._transport.write(STREAM_HEAD)
        self._event(asked, self._loop.time(), 0)

    def _event(self, asked: Behaviour, began: float, number: int) -> None:
        self._transport.write(asked.events[number])
        if number + 1 < len(asked.events):
            due = began + (number + 1) * asked.gap
            self._due = self._loop.call_at(due, partial(self._event, asked, began, number + 1))


def write_certificate(folder: Path) -> Path:
    """Make an authority and with it `upstream.pem` for localhost, valid for a day; returns the authority's file."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def draft(name: str, issuer: str, key: ec.EllipticCurvePrivateKey, is_ca: bool) -> x509.CertificateBuilder:
        subject, by = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in (name, issuer))
        builder = x509.CertificateBuilder(by, subject, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(is_ca, None), critical=True)
        own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        return builder.add_extension(own, critical=False).add_extension(by_authority, critical=False)

    now = datetime.now(UTC)
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    by_authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    signing = x509.KeyUsage(
        **dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False),
        **dict.fromkeys(("encipher_only", "decipher_only", "crl_sign"), False),
        digital_signature=True,
        key_cert_sign=True,
    )
    authority = draft("bench authority", "bench authority", authority_key, True).add_extension(signing, critical=True)
    leaf = (
        draft("localhost", "bench authority", key, False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    both = leaf.sign(authority_key, hashes.SHA256()).public_bytes(Encoding.PEM)
    both += key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "upstream.pem").write_bytes(both)
    trusted = folder / "authority.pem"
    trusted.write_bytes(authority.sign(authority_key, hashes.SHA256()).public_bytes(Encoding.PEM))
    return trusted


async def main() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1])
    server = await asyncio.get_running_loop().create_server(Client, "127.0.0.1", 0, ssl=context, backlog=512)
    print(f"https://localhost:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
