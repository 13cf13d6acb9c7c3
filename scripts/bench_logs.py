#!/usr/bin/env python3
"""Offer logs at a fixed rate, and see whether all arrive and what the calls through the proxy notice of it.

    scripts/bench_logs.py
    scripts/bench_logs.py --rate 500 --seconds 20 --rounds 5 --no-pin

Runs `heliproxy serve`, a fake upstream that answers at once, a client that makes small chats through the proxy (TLS
inside CONNECT), and a client that posts logs to the REST port, each as a process of its own: the server on one core,
all others on the rest. A round is a phase without logs, one in which they are posted to the fake upstream instead, and
one with them. What the second adds is the clients' own doing, who share cores with each other. Both clients send by the
clock, whether or not the server keeps up, and count time from the moment a request was due. Ends with status 1 when a
log was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sqlite3
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from measuring import (
    address,
    cpu_seconds,
    environment,
    need_linux,
    on_cores,
    percentile,
    process,
    split_cores,
    use_project_python,
)

HOST = "api.openai.com"
QUESTION = json.dumps({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello " * 100}]}).encode()
ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "Hi. " * 100}, "finish_reason": "stop"},
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }
).encode()
LOG_PATH = "/oai/v1/log"
LOG_HOST = "api.worker.helicone.ai"
CHAT_CONNECTIONS = 4
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
PATIENCE = 60.0
"""Seconds that answers may take to arrive after the last request was due."""


# -- the three others -------------------------------------------------------------------------------------------------


async def upstream() -> None:
    """Answer every request with the same completion, at once."""
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(ANSWER)}\r\n\r\n".encode()

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await read_message(reader)
                writer.write(head + ANSWER)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(client, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    print(f"http://127.0.0.1:{port}", flush=True)
    await server.serve_forever()


async def read_message(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    """(head, body) of the next request or response with a content length."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    length = re.search(r"(?i)\r\ncontent-length: *(\d+)", head)
    return head, await reader.readexactly(int(length[1]) if length else 0)


async def chats(proxy: str, trust: str, rate: float, seconds: float) -> dict[str, Any]:
    """Make small chats through the proxy over connections that stay open."""
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer sk-fake\r\nhelicone-user-id: ada\r\ncontent-length: {len(QUESTION)}\r\n\r\n"
    ).encode()

    async def ask(streams: Streams, number: int) -> str | None:
        del number
        streams[1].write(head + QUESTION)
        answer, _ = await read_message(streams[0])
        return "" if answer.split(" ", 2)[1] == "200" else None

    connections = [await tunnel(proxy, trust, HOST) for _ in range(CHAT_CONNECTIONS)]
    for streams in connections:
        await ask(streams, 0)
    return await offer(connections, ask, rate, seconds)


async def tunnel(proxy: str, trust: str, host: str) -> Streams:
    """A connection to a host through the proxy, with TLS."""
    context = ssl.create_default_context(cafile=trust)
    reader, writer = await asyncio.open_connection(*address(proxy))
    writer.write(f"CONNECT {host}:443 HTTP/1.1\r\nhost: {host}:443\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    await writer.start_tls(context, server_hostname=host)
    return reader, writer


async def logs(at: str, trust: str, connections: int, rate: float, seconds: float) -> dict[str, Any]:
    """Post manual logs; of each that is accepted, the id it was given is told.

    `at`: the REST port, or with `trust` the proxy, which is then asked for Helicone's own host.
    """
    authority = LOG_HOST if trust else at.removeprefix("http://")
    open_streams = [
        await tunnel(at, trust, LOG_HOST) if trust else await asyncio.open_connection(*address(at))
        for _ in range(connections)
    ]

    async def post(streams: Streams, number: int) -> str | None:
        body = log_body(number)
        head = (
            f"POST {LOG_PATH} HTTP/1.1\r\nhost: {authority}\r\ncontent-type: application/json\r\nuser-agent: bench\r\n"
            f"authorization: Bearer sk-helicone-fake\r\nhelicone-user-id: user-{number % 100}\r\n"
            f"helicone-session-id: session-{number // 20}\r\nhelicone-property-app: bench\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        streams[1].write(head.encode() + body)
        answer, _ = await read_message(streams[0])
        found = re.search(r"(?i)\r\nhelicone-id: *(\S+)", answer)
        return found[1] if found and answer.split(" ", 2)[1] == "200" else None

    return await offer(open_streams, post, rate, seconds)


def log_body(number: int) -> bytes:
    now = time.time()
    return (
        b'{"providerRequest": {"url": "https://api.openai.com/v1/chat/completions", "json": %s, "meta": {}}, '
        b'"providerResponse": {"status": 200, "headers": {}, "json": %s}, "timing": {"startTime": {"seconds": %d, '
        b'"milliseconds": %d}, "endTime": {"seconds": %d, "milliseconds": 999}}}'
    ) % (QUESTION.replace(b"Hello ", b"%d " % number, 1), ANSWER, now, now % 1 * 1000, now)


async def offer(connections: Sequence[Any], send: Any, rate: float, seconds: float) -> dict[str, Any]:
    """Send `rate * seconds` requests at their due times, each on the next connection that is free.

    Returns:
        offered, ids of the accepted, milliseconds each took since it was due, seconds until the last answer.
    """
    total = round(rate * seconds)
    numbers = iter(range(total))
    ids: list[str] = []
    took: list[float] = []
    started = time.perf_counter()

    async def work(connection: Any) -> None:
        for number in numbers:
            due = started + number / rate
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            found = await send(connection, number)
            took.append((time.perf_counter() - due) * 1000)
            if found is not None:
                ids.append(found)

    tasks = [asyncio.create_task(work(connection)) for connection in connections]
    _, late = await asyncio.wait(tasks, timeout=seconds + PATIENCE)
    for task in late:
        task.cancel()
    return {"offered": total, "ids": ids, "took": took, "seconds": time.perf_counter() - started}


# -- the run ----------------------------------------------------------------------------------------------------------


def role(cores: Iterable[int], name: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--role", name, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(), preexec_fn=on_cores(cores))


def result(child: subprocess.Popen[str]) -> dict[str, Any]:
    text, _ = child.communicate()
    if child.returncode:
        raise SystemExit(f"one of the clients failed with status {child.returncode}")
    found: dict[str, Any] = json.loads(text)
    return found


def flush(api: str) -> None:
    """Return once everything accepted is committed."""
    deadline = time.monotonic() + PATIENCE
    while True:
        with urllib.request.urlopen(f"{api}/health?flush=1", timeout=PATIENCE) as answer:
            health = json.load(answer)
        if health["flushed"]:
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"what was accepted is not committed after {PATIENCE:.0f} s: {health}")


def missing(home: Path, ids: Sequence[str]) -> int:
    """How many of these calls have no row, once all have one or no more come."""
    conn = sqlite3.connect(home / "heliproxy.db")
    wanted = set(ids)
    try:
        before = -1
        while True:
            rows = {row[0] for row in conn.execute("SELECT id FROM requests WHERE source = 'log'")}
            if not wanted - rows or len(rows) == before:
                return len(wanted - rows)
            before = len(rows)
            time.sleep(2)
    finally:
        conn.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=float, default=1000, help="logs a second (1000)")
    parser.add_argument("--connections", type=int, default=16, help="that post logs (16)")
    parser.add_argument("--chats", type=float, default=50, help="chats a second through the proxy (50)")
    parser.add_argument("--seconds", type=float, default=10, help="of each phase (10)")
    parser.add_argument("--rounds", type=int, default=3, help="of a phase without, one elsewhere and one with (3)")
    parser.add_argument("--proxied", action="store_true", help="post to Helicone's host through the proxy")
    parser.add_argument("--no-pin", action="store_true", help="let every process run on all cores")
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        name, *arguments = options.role
        if name == "upstream":
            asyncio.run(upstream())
        elif name == "chats":
            proxy, trust, rate, seconds = arguments
            print(json.dumps(asyncio.run(chats(proxy, trust, float(rate), float(seconds)))))
        else:
            at, trust, connections, rate, seconds = arguments
            print(json.dumps(asyncio.run(logs(at, trust, int(connections), float(rate), float(seconds)))))
        return
    sys.exit(measure(options))


def measure(options: argparse.Namespace) -> int:
    server_cores, others = split_cores(not options.no_pin)
    quiet: list[float] = []
    elsewhere: list[float] = []
    loaded: list[float] = []
    posts: list[float] = []
    accepted: list[str] = []
    offered, chat_failures, cpu_quiet, cpu_loaded, span = 0, 0, 0.0, 0.0, 0.0
    rounds: list[list[float]] = []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        _, (target,) = stack.enter_context(process(others, __file__, "--role", "upstream"))
        serve = ("-m", "heliproxy", "serve", "--port", "0", "--api-port", "0", "--home", folder)
        server, listening = stack.enter_context(process(server_cores, *serve, "--upstream", f"{HOST}={target}"))
        proxy, api = listening
        trust = Path(folder) / "ca" / "mitmproxy-ca-cert.pem"
        chat = ("chats", proxy, trust, options.chats)
        door = (proxy, trust) if options.proxied else (api, "")
        log = ("logs", *door, options.connections, options.rate)
        away = ("logs", target, "", options.connections, options.rate)
        result(role(others, *chat, 2))
        accepted += result(role(others, *log, 1))["ids"]
        for number in range(options.rounds):
            before = cpu_seconds(server.pid)
            told = result(role(others, *chat, options.seconds))
            cpu_quiet += cpu_seconds(server.pid) - before
            quiet += told["took"]
            chat_failures += told["offered"] - len(told["ids"])
            running = role(others, *chat, options.seconds), role(others, *away, options.seconds)
            elsewhere += result(running[0])["took"]
            result(running[1])
            before = cpu_seconds(server.pid)
            running = role(others, *chat, options.seconds), role(others, *log, options.seconds)
            told, logged = result(running[0]), result(running[1])
            flush(api)
            cpu_loaded += cpu_seconds(server.pid) - before
            loaded += told["took"]
            chat_failures += told["offered"] - len(told["ids"])
            posts += logged["took"]
            offered += logged["offered"]
            accepted += logged["ids"]
            span += logged["seconds"]
            count = len(told["took"])
            p99 = [percentile(phase[-count:], 0.99) for phase in (quiet, elsewhere, loaded)]
            rounds.append(p99)
            print(
                f"round {number + 1}: chats' p99 {p99[0]:.2f} ms without logs, {p99[1]:.2f} ms with them elsewhere, "
                f"{p99[2]:.2f} ms with them",
                flush=True,
            )
        lost = missing(Path(folder), accepted)
    done = len(posts)
    print(f"logs offered {offered:,} ({options.rate:.0f}/s on {options.connections} connections), answered {done:,}")
    print(f"logs accepted {len(set(accepted)):,} (warm-up included), without a row {lost:,}")
    print(f"sustained {done / span:.0f}/s; an accepted post: p50 {statistics.median(posts):.2f} ms, ", end="")
    print(f"p99 {percentile(posts, 0.99):.2f} ms; CPU {(cpu_loaded - cpu_quiet) / done * 1000:.3f} ms a log")
    for share in (0.5, 0.9, 0.99):
        a, b, c = (percentile(phase, share) for phase in (quiet, elsewhere, loaded))
        print(
            f"chats' p{share * 100:.0f}: {a:.2f} ms without logs, {b:.2f} ms with them elsewhere ({b / a - 1:+.0%}), ",
            end="",
        )
        print(f"{c:.2f} ms with them ({c / a - 1:+.0%}; {c / b - 1:+.0%} beside the same clients)")
    print(f"chats' p99, median of the rounds: {statistics.median(c / a - 1 for a, _, c in rounds):+.0%}, ", end="")
    print(f"{statistics.median(c / b - 1 for _, b, c in rounds):+.0%} beside the same clients; ", end="")
    print(f"failed chats: {chat_failures}")
    return 1 if lost or done < offered or chat_failures else 0


if __name__ == "__main__":
    need_linux()
    use_project_python()
    main()
