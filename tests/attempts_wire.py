"""For tests of retries: upstreams that fail on command and clients that see every byte, in the test's own loop."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from mitmproxy.options import Options
from mitmproxy.proxy.layer import NextLayer
from mitmproxy.tools.dump import DumpMaster

from heliproxy import attempts

Headers = list[tuple[str, str]]


# The addon.


class Attempts:
    """The addon that makes plans work, and does nothing else. Its place in the chain does not matter."""

    def next_layer(self, nextlayer: NextLayer) -> None:
        attempts.install(nextlayer)

    async def heliproxy_attempt_failed(self, question: attempts.Question) -> None:
        await question.settle()


# The upstream.


@dataclass
class Call:
    """One request at the upstream, and the means to answer it piece by piece."""

    path: str
    headers: dict[str, str]
    body: bytes
    connection: int
    """Number of the connection it came on, from 1."""
    _start: Callable[[int, Headers, bool], Awaitable[None]]
    _send: Callable[[bytes], Awaitable[None]]
    _end: Callable[[], Awaitable[None]]
    die: Callable[[], Awaitable[None]]
    """HTTP/1: drop the connection. HTTP/2: reset the stream."""
    gone: asyncio.Event
    """Set when the proxy has dropped the connection or reset the stream."""
    raw: Callable[[bytes], Awaitable[None]]
    """Write these bytes to the connection as they are."""
    h2: h2.connection.H2Connection | None = None
    """HTTP/2: the connection's state; `raw(h2.data_to_send())` sends what was done to it."""
    stream: int = 0

    async def start(self, status: int, headers: Headers | None = None) -> None:
        await self._start(status, headers or [], True)

    async def answer(self, status: int, body: bytes = b"", headers: Headers | None = None) -> None:
        await self._start(status, [*(headers or []), ("content-length", str(len(body)))], False)
        await self._send(body)
        await self._end()

    async def events(self, headers: Headers | None = None) -> None:
        await self.start(200, [("content-type", "text/event-stream"), *(headers or [])])

    async def send(self, data: bytes) -> None:
        await self._send(data)

    async def end(self) -> None:
        await self._end()


Handler = Callable[[Call], Awaitable[None]]


def answers(status: int, body: bytes = b"", headers: Headers | None = None) -> Handler:
    async def handler(call: Call) -> None:
        await call.answer(status, body or str(status).encode(), headers)

    return handler


async def dies(call: Call) -> None:
    await call.die()


@dataclass
class Upstream:
    """Answers its n-th call by the n-th handler; a call too many is answered 599."""

    script: list[Handler]
    port: int = 0
    calls: list[Call] = field(default_factory=list)
    connections: int = 0
    scheme: str = "http"
    arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    async def handle(self, call: Call) -> None:
        self.calls.append(call)
        async with self.arrived:
            self.arrived.notify_all()
        handler = self.script[len(self.calls) - 1] if len(self.calls) <= len(self.script) else answers(599)
        await handler(call)

    async def called(self, times: int) -> None:
        async with self.arrived:
            await self.arrived.wait_for(lambda: len(self.calls) >= times)


@asynccontextmanager
async def upstream(*script: Handler, tls: Certificate | None = None, http2: bool = False) -> AsyncIterator[Upstream]:
    up = Upstream(list(script), scheme="https" if tls else "http")
    tasks: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        writers.append(writer)
        up.connections += 1
        try:
            await (_serve_h2 if http2 else _serve_h1)(up, up.connections, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, ssl.SSLError):
            pass
        finally:
            writer.close()
            tasks.discard(task)

    server = await asyncio.start_server(client, "127.0.0.1", 0, ssl=tls.server(http2) if tls else None)
    up.port = server.sockets[0].getsockname()[1]
    try:
        yield up
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:  # TLS would wait for the other side, and the loop ends now
            writer.transport.abort()
        await asyncio.sleep(0)


async def _serve_h1(up: Upstream, connection: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.strip().split("\r\n")
        headers = {k.lower(): v.strip() for k, v in (line.split(":", 1) for line in lines)}
        body = await _read_body(reader, headers)
        chunked = False
        gone = asyncio.Event()

        async def start(status: int, fields: Headers, chunks: bool) -> None:
            nonlocal chunked
            chunked = chunks
            fields = [*fields, *([("transfer-encoding", "chunked")] if chunks else [])]
            writer.write(f"HTTP/1.1 {status} X\r\n{''.join(f'{k}: {v}\r\n' for k, v in fields)}\r\n".encode())
            await writer.drain()

        async def send(data: bytes) -> None:
            writer.write(b"%x\r\n%s\r\n" % (len(data), data) if chunked else data)  # noqa: B023
            await writer.drain()

        async def end() -> None:
            if chunked:  # noqa: B023
                writer.write(b"0\r\n\r\n")
            await writer.drain()

        async def die() -> None:
            writer.close()

        async def raw(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        call = Call(first.split(" ")[1], headers, body, connection, start, send, end, die, gone, raw)
        await _watched(up, call, reader)


async def _read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    """A request's body; trailers become headers."""
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", "0")))
    body = b""
    while size := int(await reader.readline(), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    while line := (await reader.readline()).decode().strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return body


async def _watched(up: Upstream, call: Call, reader: asyncio.StreamReader) -> None:
    """Handle the call, and note on it when the proxy drops the connection meanwhile."""

    async def watch() -> None:
        # Peeks: what a client sends next belongs to the next call.
        while not reader.at_eof():
            if reader._buffer:  # type: ignore[attr-defined]
                return
            await reader._wait_for_data("watch")  # type: ignore[attr-defined]
        call.gone.set()

    watcher = asyncio.create_task(watch())
    try:
        await up.handle(call)
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)


async def _serve_h2(up: Upstream, connection: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    h2c = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
    h2c.initiate_connection()
    writer.write(h2c.data_to_send())
    heads: dict[int, dict[str, str]] = {}
    bodies: dict[int, bytes] = defaultdict(bytes)
    gone: dict[int, asyncio.Event] = defaultdict(asyncio.Event)
    tasks: list[asyncio.Task[None]] = []

    def call(stream: int) -> Call:
        async def start(status: int, fields: Headers, _: bool) -> None:
            h2c.send_headers(stream, [(":status", str(status)), *fields])
            writer.write(h2c.data_to_send())

        async def send(data: bytes) -> None:
            h2c.send_data(stream, data)
            writer.write(h2c.data_to_send())

        async def end() -> None:
            h2c.end_stream(stream)
            writer.write(h2c.data_to_send())

        async def die() -> None:
            h2c.reset_stream(stream, 2)
            writer.write(h2c.data_to_send())

        async def raw(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        head = heads[stream]
        path = head[":path"]
        return Call(path, head, bodies[stream], connection, start, send, end, die, gone[stream], raw, h2c, stream)

    try:
        while data := await reader.read(65536):
            for event in h2c.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    heads[event.stream_id] = dict(event.headers)  # type: ignore[arg-type]
                elif isinstance(event, h2.events.DataReceived):
                    bodies[event.stream_id] += event.data
                elif isinstance(event, h2.events.StreamEnded):
                    tasks.append(asyncio.create_task(up.handle(call(event.stream_id))))
                elif isinstance(event, h2.events.StreamReset):
                    gone[event.stream_id].set()
            writer.write(h2c.data_to_send())
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert result is None or isinstance(result, asyncio.CancelledError), result


# Certificates.


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate for 127.0.0.1."""

    path: Path

    def server(self, http2: bool) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path)
        context.set_alpn_protocols(["h2"] if http2 else ["http/1.1"])
        return context


def make_certificate(folder: Path) -> Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "upstream")])
    now = dt.datetime.now(dt.UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "upstream.pem"
    pem = serialization.Encoding.PEM
    path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()) + cert.public_bytes(pem)
    )
    return Certificate(path)


# The proxy.


class _Running:
    def __init__(self) -> None:
        self.event = asyncio.Event()

    def running(self) -> None:
        self.event.set()


@asynccontextmanager
async def proxy(confdir: Path, *addons: object, **options: Any) -> AsyncIterator[int]:
    """A whole mitmproxy with these addons; gives its port."""
    settings = {
        "confdir": str(confdir),
        "listen_host": "127.0.0.1",
        "listen_port": 0,
        "connection_strategy": "lazy",
        **options,
    }
    loop_factory = asyncio.get_running_loop().get_task_factory()
    master = DumpMaster(Options(), with_termlog=False, with_dumper=False)
    master.options.update(**settings)
    running = _Running()
    master.addons.add(*addons, running)
    task = asyncio.create_task(master.run())
    try:
        await running.event.wait()
        yield master.addons.get("proxyserver").listen_addrs()[0][1]
    finally:
        # mitmproxy leaves its listening sockets to the end of the process.
        await master.addons.get("proxyserver").servers.update([])
        master.shutdown()
        await task
        asyncio.get_running_loop().set_task_factory(loop_factory)


@asynccontextmanager
async def connect_proxy(targets: list[str]) -> AsyncIterator[int]:
    """A proxy that only knows CONNECT and notes the targets; gives its port."""
    tasks: set[asyncio.Task[None]] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
        finally:
            writer.close()

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            targets.append((await reader.readuntil(b"\r\n\r\n")).decode().split(" ")[1])
            host, port = targets[-1].split(":")
            there = await asyncio.open_connection(host, int(port))
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await asyncio.gather(copy(reader, there[1]), copy(there[0], writer))
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            tasks.discard(task)

    server = await asyncio.start_server(client, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# The clients.


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class H1Client:
    """One HTTP/1 connection to the proxy, or through it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tunnelled: bool) -> None:
        self.reader, self.writer, self.tunnelled = reader, writer, tunnelled
        self.headers: dict[str, str] = {}

    def send(self, url: str, body: bytes = b"{}", headers: Headers | None = None) -> None:
        _, _, host, path = url.split("/", 3)
        target = f"/{path}" if self.tunnelled else url
        fields = [("host", host), ("content-length", str(len(body))), *(headers or [])]
        head = "".join(f"{k}: {v}\r\n" for k, v in fields)
        self.writer.write(f"POST {target} HTTP/1.1\r\n{head}\r\n".encode() + body)

    async def head(self) -> int:
        first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
        self.headers = {k.lower(): v.strip() for k, v in (line.split(":", 1) for line in lines)}
        return int(first.split(" ")[1])

    async def chunk(self) -> bytes:
        """The next chunk of a chunked body; b"" is its end."""
        size = int(await self.reader.readline(), 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    async def answer(self) -> Answer:
        status = await self.head()
        if self.headers.get("transfer-encoding") == "chunked":
            chunks = []
            while chunk := await self.chunk():
                chunks.append(chunk)
            return Answer(status, self.headers, b"".join(chunks))
        return Answer(status, self.headers, await self.reader.readexactly(int(self.headers["content-length"])))

    async def post(self, url: str, body: bytes = b"{}", headers: Headers | None = None) -> Answer:
        self.send(url, body, headers)
        return await self.answer()


class H2Client:
    """One HTTP/2 connection, through CONNECT, to an https upstream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.events: dict[int, deque[h2.events.Event]] = defaultdict(deque)

    def send(self, url: str, body: bytes = b"{}", headers: Headers | None = None) -> int:
        scheme, _, host, path = url.split("/", 3)
        stream = self.h2.get_next_available_stream_id()
        pseudo = [(":method", "POST"), (":scheme", scheme[:-1]), (":authority", host), (":path", "/" + path)]
        self.h2.send_headers(stream, [*pseudo, ("content-length", str(len(body))), *(headers or [])])
        self.h2.send_data(stream, body, end_stream=True)
        self.writer.write(self.h2.data_to_send())
        return stream

    def reset(self, stream: int) -> None:
        self.h2.reset_stream(stream, 8)
        self.writer.write(self.h2.data_to_send())

    async def event(self, stream: int) -> h2.events.Event:
        kinds = (
            *(h2.events.ResponseReceived, h2.events.DataReceived, h2.events.TrailersReceived),
            *(h2.events.StreamEnded, h2.events.StreamReset),
        )
        while not self.events[stream]:
            data = await self.reader.read(65536)
            assert data, "the proxy closed the connection"
            for event in self.h2.receive_data(data):
                if isinstance(event, kinds):
                    self.events[event.stream_id].append(event)
                if isinstance(event, h2.events.DataReceived):
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self.writer.write(self.h2.data_to_send())
        return self.events[stream].popleft()

    async def head(self, stream: int) -> int:
        event = await self.event(stream)
        assert isinstance(event, h2.events.ResponseReceived), event
        return int(dict(event.headers)[":status"])  # type: ignore[call-overload]

    async def chunk(self, stream: int) -> bytes:
        while True:
            event = await self.event(stream)
            if isinstance(event, h2.events.StreamEnded):
                return b""
            assert isinstance(event, h2.events.DataReceived), event
            if event.data:
                return event.data

    async def answer(self, stream: int) -> Answer:
        status, body = await self.head(stream), b""
        while chunk := await self.chunk(stream):
            body += chunk
        return Answer(status, {}, body)

    async def post(self, url: str, body: bytes = b"{}") -> Answer:
        return await self.answer(self.send(url, body))


@asynccontextmanager
async def h1_client(port: int, tunnel_to: str = "") -> AsyncIterator[H1Client]:
    async with _connected(port, tunnel_to, "http/1.1") as streams:
        yield H1Client(*streams, tunnelled=bool(tunnel_to))


@asynccontextmanager
async def h2_client(port: int, tunnel_to: str) -> AsyncIterator[H2Client]:
    async with _connected(port, tunnel_to, "h2") as streams:
        yield H2Client(*streams)


@asynccontextmanager
async def _connected(
    port: int, tunnel_to: str, alpn: str
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        if tunnel_to:
            host = tunnel_to.split("/")[2]
            writer.write(f"CONNECT {host} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_alpn_protocols([alpn])
            await writer.start_tls(context)
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError, ssl.SSLError, TimeoutError):
            async with asyncio.timeout(2):
                await writer.wait_closed()


@contextmanager
def closed_port() -> Iterator[int]:
    """A port that refuses connections, kept from others meanwhile: bound, but not listening."""
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]
