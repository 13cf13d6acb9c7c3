"""The API over a real database file and a real recorder."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from starlette.testclient import TestClient

from heliproxy.api import create_app
from heliproxy.bodies import Body
from heliproxy.home import DATABASE_NAME
from heliproxy.pricing import Prices
from heliproxy.record import Pricing
from heliproxy.recorder import Recorder
from heliproxy.services import ApiServer, LazyApp
from heliproxy.settings import Settings
from heliproxy.store import Record, Store
from heliproxy.tokens import estimate

ORIGIN = "http://127.0.0.1:8585"


@dataclass
class Rig:
    """A client of the app, and what is behind it."""

    client: TestClient
    recorder: Recorder
    app: Any
    home: Path
    addon: Any

    def add(self, id: str, *, properties: dict[str, str] | None = None, body: Body | None = None, **row: Any) -> None:
        """Log a finished call."""
        defaults = {"created_at": "2026-09-01T12:00:00.000Z", "provider": "openai", "host": "api.openai.com"}
        defaults |= {
            "path": "/v1/chat/completions",
            "method": "POST",
            "status": 200,
            "source": "proxy",
            "incomplete": 0,
        }
        self.recorder.put(Record({**defaults, "id": id, **row}, properties or {}, body))

    def post(self, path: str, body: Any = None, status: int = 200, **kwargs: Any) -> Any:
        """POST JSON and give back `data`, or the whole answer where it is no envelope."""
        answer = self.client.post(path, json={} if body is None else body, **kwargs)
        assert answer.status_code == status, answer.text
        found = answer.json()
        return found["data"] if isinstance(found, dict) and "data" in found and status < 400 else found

    def get(self, path: str, status: int = 200) -> Any:
        answer = self.client.get(path)
        assert answer.status_code == status, answer.text
        found = answer.json()
        return found["data"] if isinstance(found, dict) and "data" in found and status < 400 else found

    def error(self, path: str, body: Any, status: int = 400) -> str:
        """The error that a refused POST answers."""
        answer = self.client.post(path, json=body)
        assert answer.status_code == status, answer.text
        assert answer.json()["data"] is None
        return str(answer.json()["error"])

    def ids(self, filter: Any, **more: Any) -> list[str]:
        """Ids a request query finds, sorted."""
        body = {"filter": filter, "limit": 1000, **more}
        return sorted(row["request_id"] for row in self.post("/v1/request/query", body))


def open_rig(home: Path, prices: Prices) -> Rig:
    """Start a recorder over `home` and put the app on top; the caller closes both."""
    recorder = Recorder(Store(home / DATABASE_NAME).writer, lambda: Pricing(prices, estimate, b"s" * 32))
    recorder.start()

    async def all_facts(flush: bool) -> dict[str, Any]:
        return recorder.facts() | ({"flushed": recorder.flushed()} if flush else {})

    services = SimpleNamespace(recorder=recorder, api=None, facts=dict, all_facts=all_facts)
    addon = SimpleNamespace(settings=Settings(home=home), recorder=recorder, live={}, services=services)
    app = create_app(addon)  # type: ignore[arg-type]
    return Rig(TestClient(app, base_url=ORIGIN), recorder, app, home, addon)


class Port:
    """The API's port with the server behind it, in a thread."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.app = LazyApp(rig.addon)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.server = ApiServer(self.app, "127.0.0.1", 0)
        asyncio.run_coroutine_threadsafe(self.server.start(), self.loop).result(10)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.server.stop(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()
        self.app.close()

    def send(self, *pieces: bytes, answers: int = 1) -> list[tuple[int, dict[str, str], bytes]]:
        """Send bytes in pieces on one connection; gives (status, headers, body) of each answer."""
        assert self.server.address is not None
        found = []
        with socket.create_connection(self.server.address, 10) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for piece in pieces:
                sock.sendall(piece)
            with sock.makefile("rb") as file:
                for _ in range(answers):
                    status = int(file.readline().split()[1])
                    lines = iter(lambda: file.readline().decode().strip(), "")
                    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
                    found.append((status, headers, file.read(int(headers["content-length"]))))
        return found


def log_body(**changes: Any) -> dict[str, Any]:
    """A small manual log of a chat completion; `changes` replace its top-level parts."""
    now = int(time.time())
    body: dict[str, Any] = {
        "providerRequest": {
            "url": "https://api.openai.com/v1/chat/completions",
            "json": {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]},
            "meta": {},
        },
        "providerResponse": {
            "status": 200,
            "headers": {},
            "json": {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "model": "gpt-4o-mini-2024-07-18",
                "choices": [{"index": 0, "message": {"role": "assistant", "content": "yo"}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
            },
        },
        "timing": {
            "startTime": {"seconds": now, "milliseconds": 0},
            "endTime": {"seconds": now, "milliseconds": 250},
        },
    }
    return {**body, **changes}


class Receiver:
    """A webhook's destination on loopback; answers with `statuses`, then 200."""

    def __init__(self, statuses: list[int]) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(statuses.pop(0) if statuses else 200)
                self.send_header("content-length", "0")
                self.end_headers()
                receiver.arrived.set()

            def log_message(self, *args: Any) -> None:
                pass

        self.arrived = threading.Event()
        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?x=1"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
