"""The load of `scripts/bench.py`: callers in a closed loop, over TLS, straight or inside a CONNECT tunnel.

Each line on stdin is a `Job` as JSON. It warms up, waits until every caller is idle, prints WARM, reads a line, and
measures; so all the requests it then tells of, and no others, fall between that line and its result, which is one line
of JSON on stdout. Times in the result are milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from typing import Any

from measuring import percentile

PATH = "/v1/chat/completions"
MODEL = "gpt-4o-mini"
STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")
LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
END_OF_CHUNKS = b"\r\n0\r\n\r\n"
EVENT = b"data: "
SLOWEST = 30.0
"""Seconds that the answers still under way may take."""
PAUSE = 0.05
"""Seconds before a caller whose connection failed tries again."""
NUMBERS = count(1)
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Job:
    """One measurement: where to, what to send, what to expect, how long."""

    connect: tuple[str, int]
    """Of the proxy, or of the upstream itself."""
    target: str
    """HOST:PORT, as CONNECT names it."""
    tunnel: bool
    trust: str
    """PEM file of the authority that signs for the target."""
    headers: Sequence[str]
    prompt: int
    """Bytes of the request's body."""
    unique: bool
    """A prompt of its own for every request."""
    connections: int
    fresh: bool
    """A new connection for every request."""
    size: int
    """Bytes of a good answer; 0 for streams."""
    events: int
    """Events of a good stream; 0 for other answers."""
    warm_up: float
    seconds: float

    @property
    def host(self) -> str:
        return self.target.rpartition(":")[0]


@cache
def trusting(path: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(path)
    return context


def request_parts(job: Job) -> tuple[bytes, bytes]:
    """What comes before and after the sixteen digits that tell one request from another."""
    question: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "#"}], "temperature": 0.2}
    if job.events:
        question |= {"stream": True, "stream_options": {"include_usage": True}}
    before, after = json.dumps(question).encode().split(b"#")
    words = b" consider a small proxy and count what it costs" * (job.prompt // 40 + 1)
    after = words[: max(0, job.prompt - len(before) - 16 - len(after))] + after
    fields = [f"host: {job.target.removesuffix(':443')}", "content-type: application/json", *job.headers]
    head = "\r\n".join([f"POST {PATH} HTTP/1.1", *fields, f"content-length: {len(before) + 16 + len(after)}"])
    return head.encode() + b"\r\n\r\n" + before, after


@dataclass(slots=True)
class Tally:
    """What happened to the requests of one phase; times in seconds."""

    took: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    sent: int = 0


class Load:
    """The callers of one job; they ask for as long as `until` is not past."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._before, self._after = request_parts(job)
        self.tally = Tally()
        self.until = 0.0
        self._idle: list[Connection] = []

    def request(self) -> bytes:
        self.tally.sent += 1
        return b"%s%016d%s" % (self._before, next(NUMBERS) if self.job.unique else 0, self._after)

    async def phase(self, seconds: float) -> Tally:
        """Have all callers ask for a while, and each at least once; returns when all have their answers."""
        self.tally = Tally()
        self.until = time.perf_counter() + seconds
        callers = [asyncio.create_task(self._caller()) for _ in range(self.job.connections)]
        _, late = await asyncio.wait(callers, timeout=seconds + SLOWEST)
        for caller in late:
            caller.cancel()
            self.tally.failures["no answer"] += 1
        return self.tally

    async def _caller(self) -> None:
        while True:
            began = time.perf_counter()
            try:
                connection = self._open_already() or await self._open()
            except (OSError, EOFError) as e:
                self.tally.failures[f"cannot connect: {e or type(e).__name__}"] += 1
                await asyncio.sleep(PAUSE)
            else:
                await connection.call(began)
                if not self.job.fresh:
                    self._idle.append(connection)
            if time.perf_counter() >= self.until:
                return

    def _open_already(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                return connection
        return None

    async def _open(self) -> Connection:
        loop = asyncio.get_running_loop()
        sock = socket.socket()
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(sock, self.job.connect)
            if self.job.tunnel:
                await self._ask_for_tunnel(sock)
            _, connection = await loop.create_connection(
                lambda: Connection(self), sock=sock, ssl=trusting(self.job.trust), server_hostname=self.job.host
            )
        except BaseException:
            sock.close()
            raise
        return connection

    async def _ask_for_tunnel(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        target = self.job.target
        await loop.sock_sendall(sock, f"CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n".encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            part = await loop.sock_recv(sock, 4096)
            if not part:
                raise EOFError("the proxy hung up on CONNECT")
            answer += part
        if b" 200" not in answer[:12]:
            raise EOFError(answer.split(b"\r\n", 1)[0].decode("latin-1"))

    def close(self) -> None:
        for connection in self._idle:
            connection.transport.close()


class Connection(asyncio.Protocol):
    """One connection to the target; asks, reads, and checks."""

    transport: asyncio.Transport

    def __init__(self, load: Load) -> None:
        self._load = load
        self._fresh, self._size, self._events = load.job.fresh, load.job.size, load.job.events
        self._done: asyncio.Future[None] | None = None
        self._head = b""
        self._status = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._load.tally.failures["connection lost"] += 1
            self._done.set_result(None)

    async def call(self, began: float) -> None:
        """Ask once, or again and again while it is time; `began` counts the connecting in."""
        self._done = asyncio.get_running_loop().create_future()
        self._ask(began)
        await self._done
        self._done = None
        if self._fresh:
            self.transport.close()

    def _ask(self, began: float) -> None:
        self._began = began
        self._head, self._status, self._body, self._seen = b"", 0, 0, 0
        self._length, self._last, self._tail = -1, 0.0, b""
        self.transport.write(self._load.request())

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if not self._status:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            status, length = STATUS.match(self._head), LENGTH.search(self._head[:end])
            self._status = int(status[1]) if status else 999
            self._length = int(length[1]) if length else -1
            data = self._head[end + 4 :]
        if not data:
            return
        if not self._body:
            self._load.tally.first.append(now - self._began)
        self._body += len(data)
        if self._length >= 0:
            if self._body >= self._length:
                self._ended(now)
            return
        self._chunks(data, now)

    def _chunks(self, data: bytes, now: float) -> None:
        """Count the events of a stream, which may be cut anywhere."""
        seen = (self._tail[-len(EVENT) + 1 :] + data).count(EVENT)
        if seen:
            if self._last:
                self._load.tally.gaps += [now - self._last, *[0.0] * (seen - 1)]
            self._last = now
            self._seen += seen
        self._tail = (self._tail + data)[-len(END_OF_CHUNKS) :]
        if self._tail == END_OF_CHUNKS:
            self._ended(now)

    def _ended(self, now: float) -> None:
        tally = self._load.tally
        tally.took.append(now - self._began)
        if self._status != 200:
            tally.failures[f"status {self._status}"] += 1
        elif self._seen != self._events:
            tally.failures[f"{self._seen} events, not {self._events}"] += 1
        elif self._size and self._length != self._size:
            tally.failures[f"{self._length} bytes, not {self._size}"] += 1
        if not self._fresh and now < self._load.until and not self.transport.is_closing():
            self._ask(now)
        elif self._done is not None and not self._done.done():
            self._done.set_result(None)


def in_ms(values: Sequence[float]) -> dict[str, float]:
    return {name: percentile(values, share) * 1000 for name, share in SHARES.items()} if values else {}


def line_of_stdin() -> str:
    return sys.stdin.readline()


async def run(job: Job) -> dict[str, Any]:
    load = Load(job)
    warm = await load.phase(job.warm_up)
    print("WARM", flush=True)
    line_of_stdin()  # nothing is under way
    cpu = time.process_time()
    tally = await load.phase(job.seconds)
    cpu = time.process_time() - cpu
    load.close()
    await asyncio.sleep(0.01)  # for the closing to be sent
    return {
        "requests": tally.sent,
        "sent_warming_up": warm.sent,
        # Each caller always has one request under way; counting answers in a short window would cut through bursts.
        "per_second": job.connections / statistics.fmean(tally.took) if tally.took else 0.0,
        "failures": dict(tally.failures),
        "latency": in_ms(tally.took),
        "first_byte": in_ms(tally.first),
        "gap": in_ms(tally.gaps),
        "load_cpu_seconds": cpu,
    }


def main() -> None:
    while line := line_of_stdin():
        told = json.loads(line)
        job = Job(**{**told, "connect": tuple(told["connect"])})
        print(json.dumps(asyncio.run(run(job))), flush=True)


if __name__ == "__main__":
    main()
