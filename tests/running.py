"""A proxy in a thread with the fake upstream behind it, the clients that reach it, and the rows it wrote."""

from __future__ import annotations

import sqlite3
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai

from fakes import Upstream
from heliproxy.serve import ProxyThread
from heliproxy.settings import Settings, parse_upstreams

HOSTS = ("api.openai.com", "api.anthropic.com")


class Running:
    """A proxy in a thread, with what clients need to reach it and what it wrote."""

    def __init__(self, proxy: ProxyThread, home: Path) -> None:
        self.proxy, self.home = proxy, home
        self.url = f"http://127.0.0.1:{proxy.port}"
        self.ca = home / "ca" / "mitmproxy-ca-cert.pem"
        self._clients: list[Any] = []

    def close(self) -> None:
        for client in self._clients:
            client.close()

    @property
    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca))

    def client(self, **kw: Any) -> httpx.Client:
        client = httpx.Client(proxy=self.url, verify=self.context, timeout=20, trust_env=False, **kw)
        self._clients.append(client)
        return client

    def direct(self, **kw: Any) -> httpx.Client:
        """A client that knows nothing of a proxy."""
        client = httpx.Client(timeout=20, trust_env=False, **kw)
        self._clients.append(client)
        return client

    def openai(self, **kw: Any) -> openai.OpenAI:
        return openai.OpenAI(api_key="sk-test-canary", http_client=self.client(), max_retries=0, **kw)

    def anthropic(self, **kw: Any) -> anthropic.Anthropic:
        client = anthropic.DefaultHttpxClient(proxy=self.url, verify=self.context, timeout=20, trust_env=False)
        self._clients.append(client)
        return anthropic.Anthropic(api_key="sk-ant-canary", http_client=client, max_retries=0, **kw)

    def rows(self, sql: str = "SELECT * FROM requests ORDER BY created_at, rowid") -> list[dict[str, Any]]:
        self.proxy.flush()
        conn = sqlite3.connect(self.home / "heliproxy.db")
        conn.row_factory = sqlite3.Row
        try:
            return [dict(row) for row in conn.execute(sql)]
        finally:
            conn.close()

    def row(self) -> dict[str, Any]:
        (row,) = self.wait_rows(1)
        return row

    def wait_rows(self, n: int) -> list[dict[str, Any]]:
        """The rows, once there are `n`: a row may be finished a moment after the client has its answer."""
        deadline = time.monotonic() + 5
        while True:
            rows = self.rows()
            if len(rows) >= n or time.monotonic() > deadline:
                return rows
            threading.Event().wait(0.02)


@contextmanager
def running(home: Path, up: Upstream, hosts: Sequence[str] = HOSTS, **kw: Any) -> Iterator[Running]:
    """A proxy whose `hosts` all lead to `up`; other keywords are settings."""
    upstreams = parse_upstreams(f"{host}={up.url}" for host in hosts)
    with ProxyThread(Settings(home=home, port=0, api_port=None, upstreams=upstreams, **kw)) as proxy:
        run = Running(proxy, home)
        try:
            yield run
        finally:
            run.close()
