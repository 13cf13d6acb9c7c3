"""`heliproxy serve` as a process of its own, its API, its rows, and a simple load on it: for crashes and faults."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HOST = "api.openai.com"
CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]}
PATH = "/oai/v1/chat/completions"
_READY = re.compile(r"heliproxy ready: proxy http://127\.0\.0\.1:(\d+)(?: dashboard http://127\.0\.0\.1:(\d+))?\n")


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Served:
    """A running `heliproxy serve`."""

    def __init__(self, running: subprocess.Popen[bytes], home: Path, log: Path) -> None:
        assert running.stdout is not None
        self.running, self.home, self._log = running, home, log
        line = running.stdout.readline().decode()
        found = _READY.fullmatch(line)
        if found is None:
            raise RuntimeError(f"heliproxy serve did not start: {line!r} {self.errors!r}")
        self.port, self.api_port = int(found[1]), int(found[2])

    @property
    def errors(self) -> str:
        """What it said on stderr so far."""
        return self._log.read_text("utf-8", "replace")

    def ask(
        self,
        body: Mapping[str, Any] = CHAT,
        headers: Mapping[str, str] | None = None,
        timeout: float = 60.0,
        path: str = PATH,
    ) -> Reply:
        """POST through the proxy's own port, on a connection of its own."""
        sent = {"content-type": "application/json", "authorization": "Bearer sk-test-canary"} | dict(headers or {})
        return self._fetch(self.port, "POST", path, json.dumps(body).encode(), sent, timeout)

    def health(self, *, flush: bool = False) -> Any:
        """What `/health` says; with `flush` after everything handed over is committed."""
        return self._fetch(self.api_port, "GET", f"/health{'?flush=1' if flush else ''}", None, {}, 60.0).json

    def get(self, path: str) -> Reply:
        return self._fetch(self.api_port, "GET", path, None, {}, 60.0)

    @staticmethod
    def _fetch(
        port: int, method: str, path: str, body: bytes | None, headers: Mapping[str, str], timeout: float
    ) -> Reply:
        conn = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        try:
            conn.request(method, path, body, dict(headers))
            response = conn.getresponse()
            return Reply(response.status, {n.lower(): v for n, v in response.getheaders()}, response.read())
        finally:
            conn.close()

    def wait_for(self, met: Callable[[], bool], seconds: float = 20.0) -> bool:
        """Whether it comes true in time."""
        deadline = time.monotonic() + seconds
        while not met():
            if time.monotonic() > deadline:
                return False
            threading.Event().wait(0.05)
        return True

    def kill(self) -> None:
        """As a crash or the kernel would: nothing is written any more."""
        self.running.send_signal(signal.SIGKILL)
        self.running.wait(20)

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        self.running.send_signal(signal.SIGTERM)
        return self.running.wait(40)

    def resident_mib(self) -> float:
        text = Path(f"/proc/{self.running.pid}/status").read_text("ascii")
        return int(re.findall(r"VmRSS:\s+(\d+) kB", text)[0]) / 1024


@contextmanager
def served(
    home: Path,
    upstream: str,
    *options: str,
    env: Mapping[str, str] | None = None,
    python: Sequence[str] = ("-m", "heliproxy"),
    before: Callable[[], None] | None = None,
) -> Iterator[Served]:
    """Start one. `before` runs in the child (limits, another user); `python` are the interpreter's arguments."""
    command = [
        *(sys.executable, *python, "serve", "--home", str(home), "--port", "0", "--api-port", "0"),
        *("--upstream", f"{HOST}={upstream}", *options),
    ]
    environment = {"PATH": os.environ["PATH"], "HOME": str(home.parent), "PYTHONPATH": str(ROOT / "addon")}
    log = home.parent / f"{home.name}-{uuid.uuid4().hex[:8]}.log"
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            command, env=environment | dict(env or {}), stdout=subprocess.PIPE, stderr=errors, preexec_fn=before
        ) as running,
    ):
        try:
            yield Served(running, home, log)
        finally:
            if running.poll() is None:
                running.kill()


def query(home: Path, sql: str = "SELECT * FROM requests ORDER BY created_at", *values: Any) -> list[dict[str, Any]]:
    conn = sqlite3.connect(f"file:{home / 'heliproxy.db'}?mode=ro", uri=True, timeout=10)
    conn.row_factory = sqlite3.Row
    try:
        return [dict(row) for row in conn.execute(sql, values)]
    finally:
        conn.close()


def integrity(path: Path) -> str:
    """ "ok", or what SQLite finds wrong."""
    with contextlib.closing(sqlite3.connect(path, timeout=10)) as conn:
        return "; ".join(row[0] for row in conn.execute("PRAGMA integrity_check(5)"))


@dataclass
class Load:
    """Clients that ask one question after the other: `with Load(port, clients=8): ...`."""

    port: int
    clients: int = 8
    expected: bytes = b"Hello!"
    """Stands in every good answer."""
    headers: Mapping[str, str] = field(default_factory=dict)
    pause: float = 0.0
    answered: list[tuple[str, float]] = field(default_factory=list)
    """(request id, monotonic seconds) of every answer taken in full."""
    latencies: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """Answers that were not what the upstream sent."""

    def __enter__(self) -> Load:
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._client, daemon=True) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def _client(self) -> None:
        conn = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        body = json.dumps(CHAT).encode()
        fixed = {"content-type": "application/json", "authorization": "Bearer sk-test-canary"} | dict(self.headers)
        while not self._over.wait(self.pause) if self.pause else not self._over.is_set():
            key = str(uuid.uuid4())
            started = time.monotonic()
            try:
                conn.request("POST", PATH, body, fixed | {"Helicone-Request-Id": key})
                response = conn.getresponse()
                got = response.read()
            except (OSError, http.client.HTTPException) as e:
                conn.close()
                if not self._over.wait(0.02):
                    self.failures.append(f"{type(e).__name__}: {e}")
                continue
            now = time.monotonic()
            self.latencies.append(now - started)
            if response.status == 200 and self.expected in got:
                self.answered.append((key, now))
            else:
                self.wrong.append(f"{response.status} {got[:200]!r}")
        conn.close()

    failures: list[str] = field(default_factory=list)
    """Connections that broke: to be expected while the proxy is being killed, at no other time."""
