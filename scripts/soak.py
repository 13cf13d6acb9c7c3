#!/usr/bin/env python3
"""Show that memory stays bounded and no row is lost: many requests, one WebSocket that lives long, or hours of both.

    .venv/bin/python scripts/soak.py --requests 10000
    .venv/bin/python scripts/soak.py --responses 2000
    .venv/bin/python scripts/soak.py --minutes 120 --rate 50

Runs `heliproxy serve` and a fake upstream as processes of their own and reads the proxy's resident memory (Linux) on
the way. The socket is used as Codex uses it: a warm-up, one `response.create` of 68 KB, then one per tool result, each
answered in some 35 messages. Ends with status 1 when rows are missing, or memory grew by 20 MiB or more after the
first tenth. With `--minutes` every other request is streamed, and what counts is the slope of memory after the first
quarter: it must stay under 1 MiB an hour.
"""

from __future__ import annotations

import argparse
import json
import re
import sqlite3
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException, HTTPSConnection
from pathlib import Path

from websockets.sync.client import connect

ROOT = Path(__file__).resolve().parent.parent
FAKE = ROOT / "tests" / "integration" / "agents" / "fake_llm.py"
HOST = "api.openai.com"
CHAT = "/v1/chat/completions"
QUESTION = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}
HEADERS = {"content-type": "application/json", "authorization": "Bearer sk-fake"}
LIMIT_MIB = 20
SLOPE_MIB_PER_HOUR = 1.0
CLIENTS = 8
STEADY_CLIENTS = 32
SAMPLES = 10
SECONDS_PER_SAMPLE = 30.0


@contextmanager
def process(*command: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A Python program that says on its first line where it listens."""
    with subprocess.Popen(
        [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        line = child.stdout.readline()
        found = re.search(r"http://\S+", line)
        if found is None:
            raise SystemExit(f"{' '.join(command)} did not start: {line!r}")
        try:
            yield child, found[0]
        finally:
            child.stdin.close()
            child.terminate()


def resident_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(re.findall(r"VmRSS:\s+(\d+) kB", text)[0]) / 1024


def count_rows(home: Path, wanted: int) -> int:
    """How many rows there are, once there are as many as wanted or no more come."""
    conn = sqlite3.connect(home / "heliproxy.db")
    try:
        before, deadline = -1, time.monotonic() + 60
        while True:
            rows = int(conn.execute("SELECT count(*) FROM requests").fetchone()[0])
            if rows >= wanted or (rows == before and time.monotonic() > deadline):
                return rows
            before = rows
            time.sleep(0.5)
    finally:
        conn.close()


def send_requests(proxy: str, trust: ssl.SSLContext, number: int) -> None:
    """Ask `number` small questions over a few keep-alive connections."""
    host, port = proxy.removeprefix("http://").split(":")
    body = json.dumps(QUESTION).encode()
    headers = HEADERS
    failures: list[str] = []

    def client(share: int) -> None:
        connection = HTTPSConnection(host, int(port), context=trust, timeout=60)
        connection.set_tunnel(HOST, 443)
        try:
            for _ in range(share):
                connection.request("POST", CHAT, body, headers)
                answer = connection.getresponse().read()
                if b"Hello there!" not in answer:
                    failures.append(f"unexpected answer: {answer[:200]!r}")
                    return
        except (OSError, HTTPException) as e:
            failures.append(f"{type(e).__name__}: {e}")
        finally:
            connection.close()

    shares = [number // CLIENTS + (n < number % CLIENTS) for n in range(CLIENTS)]
    threads = [threading.Thread(target=client, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise SystemExit(f"failed: {failures[0]}")


def send_steadily(proxy: str, trust: ssl.SSLContext, total: int, rate: float, sample: Callable[[], None]) -> None:
    """Ask `total` questions, `rate` of them a second, every other one streamed, and take a sample now and then.

    The fake ends each streamed answer with its connection, so new connections are made all the time.
    """
    host, port = proxy.removeprefix("http://").split(":")
    numbers, lock, started = iter(range(total)), threading.Lock(), time.monotonic()
    failures: list[str] = []

    def client() -> None:
        connection = HTTPSConnection(host, int(port), context=trust, timeout=60)
        connection.set_tunnel(HOST, 443)
        while not failures:
            with lock:
                number = next(numbers, None)
            if number is None:
                break
            time.sleep(max(0.0, started + number / rate - time.monotonic()))
            body = json.dumps({**QUESTION, "stream": True} if number % 2 else QUESTION).encode()
            try:
                connection.request("POST", CHAT, body, HEADERS)
                answer = connection.getresponse().read()
            except (OSError, HTTPException) as e:
                failures.append(f"request {number}: {type(e).__name__}: {e}")
                break
            if (b"[DONE]" if number % 2 else b"Hello there!") not in answer:
                failures.append(f"request {number}: unexpected answer: {answer[:200]!r}")
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(STEADY_CLIENTS)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        next(t for t in threads if t.is_alive()).join(SECONDS_PER_SAMPLE)
        sample()
    if failures:
        raise SystemExit(f"failed: {failures[0]}")


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the straight line through the points after the first quarter of them (least squares), in y for each x."""
    late = points[len(points) // 4 :]
    line = statistics.linear_regression([x for x, _ in late], [y for _, y in late])
    return line.slope


@contextmanager
def codex_socket(proxy: str, trust: ssl.SSLContext) -> Iterator[Callable[[int], None]]:
    """An open socket, as a function that has `number` more responses made on it."""
    with connect(
        f"wss://{HOST}/v1/responses",
        ssl=trust,
        proxy=proxy,
        max_size=None,
        additional_headers={"authorization": "Bearer sk-fake", "session-id": "soak"},
    ) as socket:

        def ask(**fields: object) -> str:
            socket.send(json.dumps({"type": "response.create", "model": "gpt-5-codex", **fields}))
            while True:
                event = json.loads(socket.recv(timeout=60))
                if event["type"] == "response.completed":
                    return str(event["response"]["id"])

        last = ask(generate=False)
        last = ask(instructions="x" * 68_000, input="Hello", previous_response_id=last)

        def more(number: int) -> None:
            nonlocal last
            for _ in range(number):
                last = ask(input=[{"type": "function_call_output", "output": "y" * 4000}], previous_response_id=last)

        yield more


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--requests", type=int, help="small HTTP requests over a few connections")
    what.add_argument("--responses", type=int, help="responses over one WebSocket")
    what.add_argument("--minutes", type=float, help="as long as that, --rate requests a second, half of them streamed")
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second with --minutes (50)")
    arguments = parser.parse_args()
    total = arguments.requests or arguments.responses or int(arguments.minutes * 60 * arguments.rate)
    with (
        tempfile.TemporaryDirectory() as folder,
        process(str(FAKE), "10") as (_, upstream),
        process(
            *("-m", "heliproxy", "serve", "--port", "0", "--api-port", "0"),
            *("--home", folder, "--upstream", f"{HOST}={upstream}"),
        ) as (server, proxy),
    ):
        trust = ssl.create_default_context(cafile=str(Path(folder) / "ca" / "mitmproxy-ca-cert.pem"))
        sizes = []

        def measure(send: Callable[[int], None], already: int) -> None:
            for part in range(1, SAMPLES + 1):
                send(total * part // SAMPLES - already)
                already = total * part // SAMPLES
                sizes.append(resident_mib(server.pid))
                print(f"{already:>7,} done  {sizes[-1]:7.1f} MiB", flush=True)

        points: list[tuple[float, float]] = []

        def sample() -> None:
            sizes.append(resident_mib(server.pid))
            points.append(((time.monotonic() - started) / 3600, sizes[-1]))
            print(f"{points[-1][0] * 60:7.1f} min  {sizes[-1]:7.1f} MiB", flush=True)

        started = time.monotonic()
        if arguments.minutes:
            send_steadily(proxy, trust, total, arguments.rate, sample)
        elif arguments.requests:
            measure(lambda number: send_requests(proxy, trust, number), 0)
        else:
            with codex_socket(proxy, trust) as more:
                measure(more, 1)
        rows = count_rows(Path(folder), total)
        sizes.append(resident_mib(server.pid))
    if arguments.minutes:
        steady = slope(points)
        print(f"{rows:,} rows of {total:,}; {steady:+.2f} MiB an hour after the first quarter")
        sys.exit(0 if rows == total and steady < SLOPE_MIB_PER_HOUR else 1)
    growth = max(sizes[1:]) - sizes[0]
    print(f"{rows:,} rows of {total:,}; {growth:+.1f} MiB at most after the first {total // SAMPLES:,}")
    sys.exit(0 if rows == total and growth < LIMIT_MIB else 1)


if __name__ == "__main__":
    main()
