"""Attacks: bombs, half requests, a thousand streams, odd bodies; memory and the next client's wait.

Other clients are served all the time; their answers must be right.
"""

from __future__ import annotations

import contextlib
import random
import resource
import socket
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fakes import Answer, Asked, Upstream, chat_answer, chat_chunks, json_answer, sse_answer
from security.bombs import ENCODINGS, bomb
from served import CHAT, PATH, Load, Served, served
from torture.figures import Figure

STREAMS = 1000
HALVES = 500
BOMB_MIB = 64
BOMBS_AT_ONCE = 20


def answer(asked: Asked) -> Answer:
    encoding = asked.header("x-bomb")
    if encoding:
        return Answer(200, bomb(encoding), [("content-type", "application/json"), ("content-encoding", encoding)])
    if b'"stream": true' in asked.body:
        return sse_answer(chat_chunks(["Hello!"]))
    return json_answer(chat_answer("Hello!"))


def run(budget_seconds: float) -> list[Figure]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192) if hard > 0 else 8192, hard))
    deadline = time.monotonic() + budget_seconds
    with (
        tempfile.TemporaryDirectory() as folder,
        Upstream(answer) as up,
        served(Path(folder) / "home", up.url) as proxy,
    ):
        try:
            return attack(proxy, deadline)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def attack(proxy: Served, deadline: float) -> list[Figure]:
    for path in ("/requests", "/v1/evals/scores"):
        proxy.get(path)
    for _ in range(20):
        proxy.ask()
    proxy.health(flush=True)
    before = proxy.resident_mib()
    rounds = bombs = odd = 0
    found = random.Random(8)
    with Load(proxy.port, clients=2, pause=0.05) as load:
        while rounds == 0 or time.monotonic() < deadline - 15:
            for encoding in ENCODINGS:
                proxy.ask(headers={"x-bomb": encoding})
                bombs += 1
            for _ in range(50):
                odd += send_odd(proxy, found)
            rounds += 1
            # Bombs are made faster than they are read: what waits is bounded, but would outlast our time.
            proxy.health(flush=True)
        with ThreadPoolExecutor(BOMBS_AT_ONCE) as clients:
            for encoding in ENCODINGS:
                sent = [clients.submit(proxy.ask, headers={"x-bomb": encoding}) for _ in range(BOMBS_AT_ONCE)]
                bombs += sum(each.result().status == 200 for each in sent)
        proxy.health(flush=True)
        bombed = proxy.resident_mib() - before
        waited = half_requests(proxy)
        whole = streams(proxy)
    health = proxy.health(flush=True)
    grown = proxy.resident_mib() - before
    return [
        Figure("bombs passed on", bombs),
        Figure("odd requests", odd),
        Figure("memory grown by bombs", bombed, "MiB", holds=bombed < BOMB_MIB / 2),
        Figure("memory grown by all", grown, "MiB: 45 of them for counting tokens", holds=grown < 2 * BOMB_MIB),
        Figure(f"wait beside {HALVES} half requests", waited * 1000, "ms", holds=waited < 5),
        Figure(f"of {STREAMS} streams at once, whole", whole, holds=whole == STREAMS),
        Figure("answers to others", len(load.answered), holds=len(load.answered) > 0),
        Figure(
            "wrong answers to others", len(load.wrong) + len(load.failures), holds=not (load.wrong or load.failures)
        ),
        Figure("errors of our own", health["errors"] + health["hook_errors"], holds=health["recorder"] == "running"),
    ]


def send_odd(proxy: Served, found: random.Random) -> int:
    """One request of random bytes around a sensible beginning, to either port."""
    starts = (
        b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nHelicone-" % PATH.encode(),
        b"CONNECT 127.0.0.1:",
        b"GET http://",
        b"POST /v1/traces HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 40\r\nContent-Type: application/json\r\n\r\n",
        b"",
    )
    port = found.choice((proxy.port, proxy.api_port))
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as conn:
        conn.sendall(found.choice(starts) + found.randbytes(found.randrange(200)) + b"\r\n\r\n")
        conn.shutdown(socket.SHUT_WR)
        conn.settimeout(0.05)
        conn.recv(4096)
    return 1


def half_requests(proxy: Served) -> float:
    """Seconds that a whole request takes beside many half ones."""
    with contextlib.ExitStack() as stack:
        for index in range(HALVES):
            conn = stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port), timeout=20))
            conn.sendall(b"POST /oai/x HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Le"[: index % 50])
        started = time.monotonic()
        proxy.ask(timeout=60)
        return time.monotonic() - started


def streams(proxy: Served) -> int:
    """How many of many streams at once arrive whole."""
    good: list[bool] = []

    def one() -> None:
        with contextlib.suppress(OSError):
            reply = proxy.ask({**CHAT, "stream": True}, timeout=120)
            good.append(reply.status == 200 and reply.body.endswith(b"data: [DONE]\n\n"))

    threads = [threading.Thread(target=one) for _ in range(STREAMS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(150)
    return sum(good)
