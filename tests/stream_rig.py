"""A whole proxy between a client and an upstream that each speak the HTTP version a test wants, byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h2.events

from attempts_wire import Answer, Certificate, H1Client, H2Client, Handler, Headers, Upstream, h1_client, h2_client
from attempts_wire import upstream as wire_upstream
from heliproxy.serve import ProxyThread
from heliproxy.settings import Settings

CHAT = "https://api.openai.com/v1/chat/completions"
GATEWAY = "http://api.openai.com/oai/v1/chat/completions"
RETRY = [("Helicone-Retry-Enabled", "true"), ("Helicone-Retry-Num", "2"), ("Helicone-Retry-Min-Timeout", "1")]
JSON = [("content-type", "application/json")]
Sides = tuple[str, str]
"""What client and upstream speak: "h1", "h2"; for a client also "gateway" (HTTP/1 to the proxy's own port), for an
upstream also "plain" (HTTP/1 without TLS)."""


def within(seconds: float) -> Callable[[Callable[..., Awaitable[None]]], Callable[..., None]]:
    """A test that is a coroutine, and has that long."""

    def decorate(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(**kwargs: Any) -> None:
            async def limited() -> None:
                async with asyncio.timeout(seconds):
                    await test(**kwargs)

            asyncio.run(limited())

        return run

    return decorate


def chat_body(stream: bool = False) -> bytes:
    return json.dumps(
        {"model": "gpt-4o-mini", "stream": stream, "messages": [{"role": "user", "content": "hi"}]}
    ).encode()


class Proxies:
    """Running proxies, one for each choice of settings; they stay for the tests that follow."""

    def __init__(self, folder: Path, certificate: Certificate) -> None:
        self.certificate = certificate
        self._folder = folder
        self._running: dict[str, ProxyThread] = {}

    def get(self, **settings: Any) -> ProxyThread:
        key = repr(sorted(settings.items()))
        if key not in self._running:
            home = self._folder / str(len(self._running))
            trust = self.certificate.path
            thread = ProxyThread(
                Settings(home=home, port=0, api_port=None, upstreams={}, upstream_ca=trust, **settings)
            )
            self._running[key] = thread.__enter__()
        return self._running[key]

    def close(self) -> None:
        for thread in self._running.values():
            thread.__exit__()


@dataclass
class Product:
    """What a test has in hand: the client, the upstream and the rows."""

    proxy: ProxyThread
    upstream: Upstream
    client: H1Client | H2Client
    url: str
    before: int
    """The last row that was there before the test."""

    def send(self, body: bytes, headers: Headers | None = None, url: str = "") -> int:
        """Send a request; returns its HTTP/2 stream, or 0."""
        fields = [("content-type", "application/json"), ("authorization", "Bearer sk-test"), *(headers or [])]
        if isinstance(self.client, H2Client):
            return self.client.send(url or self.url, body, [(n.lower(), v) for n, v in fields])
        self.client.send(url or self.url, body, fields)
        return 0

    async def head(self, stream: int = 0) -> int:
        return await (self.client.head(stream) if isinstance(self.client, H2Client) else self.client.head())

    async def chunk(self, stream: int = 0) -> bytes:
        return await (self.client.chunk(stream) if isinstance(self.client, H2Client) else self.client.chunk())

    async def answer(self, stream: int = 0) -> Answer:
        return await (self.client.answer(stream) if isinstance(self.client, H2Client) else self.client.answer())

    async def post(self, body: bytes, headers: Headers | None = None, url: str = "") -> Answer:
        return await self.answer(self.send(body, headers, url))

    async def received(self, stream: int = 0) -> bytes:
        """What comes of a body until it breaks off. That it ended well would be an error."""
        body = b""
        while True:
            if isinstance(self.client, H2Client):
                event = await self.client.event(stream)
                if isinstance(event, h2.events.StreamReset):
                    return body
                assert isinstance(event, h2.events.DataReceived), event
                body += event.data
            else:
                try:
                    chunk = await self.client.chunk()
                except (asyncio.IncompleteReadError, ConnectionError, ValueError):
                    return body
                assert chunk
                body += chunk

    async def leave(self, stream: int = 0) -> None:
        """Break off: reset the stream, or drop the connection."""
        if isinstance(self.client, H2Client):
            self.client.reset(stream)
        else:
            self.client.writer.transport.abort()

    async def rows(self, n: int = 1) -> list[dict[str, Any]]:
        """The rows of this test, once there are `n`: a row may be finished a moment after the client has its answer."""
        for _ in range(250):
            rows = await asyncio.to_thread(_rows, self.proxy, self.before)
            if len(rows) >= n:
                break
            await asyncio.sleep(0.02)
        assert len(rows) == n
        return rows

    async def row(self) -> dict[str, Any]:
        (row,) = await self.rows()
        return row


def lead(proxy: ProxyThread, url: str) -> None:
    """Have the proxy send what is meant for OpenAI to this URL from now on."""

    async def update() -> None:
        assert proxy.proxy is not None
        assert proxy.proxy.master is not None
        proxy.proxy.master.options.update(heliproxy_upstream=[f"api.openai.com={url}"])

    assert proxy._loop is not None
    asyncio.run_coroutine_threadsafe(update(), proxy._loop).result(5)


def _rows(proxy: ProxyThread, after: int) -> list[dict[str, Any]]:
    proxy.flush()
    assert proxy.proxy is not None
    conn = sqlite3.connect(proxy.proxy.settings.home / "heliproxy.db")
    conn.row_factory = sqlite3.Row
    try:
        return [dict(r) for r in conn.execute("SELECT rowid, * FROM requests WHERE rowid > ? ORDER BY rowid", (after,))]
    finally:
        conn.close()


@asynccontextmanager
async def product(proxies: Proxies, sides: Sides, script: Sequence[Handler], **settings: Any) -> AsyncIterator[Product]:
    """A client at a proxy whose OpenAI is an upstream that answers by the script."""
    client, upstream = sides
    tls = proxies.certificate if upstream != "plain" else None
    thread = await asyncio.to_thread(proxies.get, **settings)
    async with wire_upstream(*script, tls=tls, http2=upstream == "h2") as up:
        lead(thread, up.url)
        rows = await asyncio.to_thread(_rows, thread, 0)
        connect = h2_client if client == "h2" else h1_client
        async with connect(thread.port, "" if client == "gateway" else "https://api.openai.com:443/") as connected:
            if isinstance(connected, H1Client):
                connected.tunnelled = True  # the proxy's own port takes requests in origin form too
            url = GATEWAY if client == "gateway" else CHAT
            yield Product(thread, up, connected, url, rows[-1]["rowid"] if rows else 0)


def open_files() -> Counter[str]:
    """What this process has open, with how often: "socket", or the path of a file.

    Not the databases, nor the pipes to processes of ours: those come and go with work in the background.
    """
    found: Counter[str] = Counter()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            name = str(entry.readlink()).partition(":")[0]
            if name != "pipe" and ".db" not in name:
                found[name] += 1
    return found
