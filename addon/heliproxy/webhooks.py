"""Tell other programs of each new request: a signed POST, sampled and retried, never in the way of traffic.

The recorder names the rows it has committed; a thread of our own reads them back, asks which hooks want them, and
delivers. When hooks are slower than traffic, the oldest notes are dropped and counted.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import logging
import queue
import random
import socket
import sqlite3
import ssl
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from heliproxy import __version__
from heliproxy.api.links import BODY_PATH, signed_link
from heliproxy.policies import ssrf

if TYPE_CHECKING:
    from heliproxy.recorder import Recorder

logger = logging.getLogger(__name__)

KIND = "webhook"
"""Of the objects table."""
MAX_WAITING = 10_000
"""Notes waiting for delivery."""
RETRY_DELAYS = (1.0, 4.0, 15.0)
"""Seconds before the second, third and fourth attempt."""
TIMEOUT = 10.0
LEAVE_SECONDS = 2.0
"""How long the end waits for a delivery under way."""
BODY_LIMIT = 64 * 1024
"""Characters of a body in one note; all of it is behind its link."""


@dataclass(frozen=True, slots=True)
class Hook:
    """One webhook. `sample` is a share of 0..1; `filters` are properties that a row must have."""

    id: str
    destination: str
    key: str
    sample: float = 1.0
    filters: tuple[tuple[str, str], ...] = ()
    include_data: bool = True

    def wants(self, properties: Mapping[str, str], draw: float) -> bool:
        lower = {name.lower(): value for name, value in properties.items()}
        return draw < self.sample and all(lower.get(name.lower()) == value for name, value in self.filters)


def hook_of(value: Mapping[str, Any]) -> Hook:
    """A hook from its stored form; odd configuration counts as none."""
    config = value.get("config")
    config = config if isinstance(config, dict) else {}
    rate = config.get("sampleRate", 100)
    filters = config.get("propertyFilters")
    return Hook(
        id=str(value.get("id", "")),
        destination=str(value.get("destination", "")),
        key=str(value.get("hmac_key", "")),
        sample=min(1.0, max(0.0, rate / 100)) if isinstance(rate, int | float) and rate == rate else 1.0,
        filters=tuple(
            (str(one.get("key", "")), str(one.get("value", "")))
            for one in (filters if isinstance(filters, list) else ())
            if isinstance(one, dict)
        ),
        include_data=value.get("includeData", True) is not False,
    )


def check_destination(url: str, allowed: Collection[str] = ()) -> None:
    """Raises ValueError unless `url` is an http or https URL of a public host, or of one the operator allowed."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or len(url) > 2000 or not url.isprintable():
        raise ValueError(f"{url[:100]!r} is not an http or https URL")
    _ = parts.port
    reason = ssrf.check_url(url, allowed)
    if reason is not None:
        raise ValueError(f"{url[:100]!r} {reason}; `--allow-target HOST:PORT` makes an exception")


def sign(key: str, body: bytes) -> str:
    """The value of `helicone-signature`: HMAC-SHA256 in hexadecimal."""
    return hmac.new(key.encode(), body, hashlib.sha256).hexdigest()


def note_of(row: Mapping[str, Any], request: Any, response: Any, url: str | None, *, data: bool) -> dict[str, Any]:
    """What is sent about one request. `data`: with cost, tokens and latency."""
    note: dict[str, Any] = {
        "request_id": row["id"],
        "user_id": row["user_id"],
        "model": row["model"],
        "provider": (row["provider"] or "custom").upper(),
        "status": row["status"],
        "created_at": row["created_at"],
        "request_body": request,
        "response_body": response,
        "properties": row["properties"],
    }
    if data:
        tokens = [value for value in (row["input_tokens"], row["output_tokens"]) if value is not None]
        note["metadata"] = {
            "cost": row["cost_usd"],
            "promptTokens": row["input_tokens"],
            "completionTokens": row["output_tokens"],
            "totalTokens": sum(tokens) if tokens else None,
            "latencyMs": row["latency_ms"],
        }
        note["request_response_url"] = url
    return note


def post(hook: Hook, body: bytes, request_id: str, allowed: Collection[str] = ()) -> int:
    """One attempt; returns the status. Redirects are not followed and proxies not used.

    Raises OSError, http.client.HTTPException, or ValueError when the destination is not one to be called.
    """
    check_destination(hook.destination, allowed)
    parts = urlsplit(hook.destination)
    host, port = (parts.hostname or "").rstrip("."), parts.port or (443 if parts.scheme == "https" else 80)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT)
    if parts.scheme == "https":
        connection.default_port = 443  # so that Host leaves it out
    sock: socket.socket = socket.create_connection((_address(host, port, allowed), port), TIMEOUT)
    try:
        if parts.scheme == "https":
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
        connection.sock = sock
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {
            "content-type": "application/json",
            "user-agent": f"heliproxy/{__version__}",
            "helicone-signature": sign(hook.key, body),
            "helicone-id": request_id,
        }
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        response.read(1024)
        return response.status
    finally:
        connection.close()
        sock.close()


def _address(host: str, port: int, allowed: Collection[str]) -> str:
    """The address to dial: a name is looked up once, and it is what was found that is checked. Raises OSError."""
    if host in allowed or f"{host}:{port}" in allowed:
        return host
    found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    private = next((address for address in found if not ssrf.is_public(address)), None)
    if private is not None:
        raise OSError(f"{host} resolves to {private}, which is not a public address")
    return found[0]


@dataclass(slots=True)
class Counters:
    """What became of the notes."""

    delivered: int = 0
    failed: int = 0
    dropped: int = 0


@dataclass(slots=True, eq=False)
class Webhooks:
    """Owns the delivery thread.

    `url_for` makes the link to a request's bodies. `wait` waits up to some seconds and says whether to give up;
    `draw` gives a number of 0..1 for sampling.
    """

    path: Path
    url_for: Callable[[str], str] | None = None
    draw: Callable[[], float] = random.random
    send: Callable[[Hook, bytes, str], int] = post
    counters: Counters = field(default_factory=Counters)
    _queue: queue.Queue[Any] = field(default_factory=lambda: queue.Queue(MAX_WAITING))
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _open: tuple[tuple[int, int], sqlite3.Connection] | None = None

    def attach(self, recorder: Recorder) -> None:
        """Start to listen; a second call does nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="heliproxy-webhooks", daemon=True)
            self._thread.start()
            recorder.listeners.append(self.rows_written)

    def rows_written(self, ids: list[str]) -> None:
        """Take the ids of new rows. Called on the recorder's thread; returns at once."""
        try:
            self._queue.put_nowait(list(ids))
        except queue.Full:
            self.counters.dropped += len(ids)

    def close(self) -> None:
        """End the thread; notes that wait are dropped."""
        self._stop.set()
        if self._thread is not None:
            self.rows_written([])
            self._thread.join(LEAVE_SECONDS)
        else:
            self._leave()

    def _run(self) -> None:
        while not self._stop.is_set():
            ids = self._queue.get()
            try:
                if ids and not self._stop.is_set():
                    self.deliver(ids)
            except FileNotFoundError:
                self._leave()  # somebody removed the database; its rows went with it, and the next ones make another
            except Exception:
                logger.exception("webhooks failed")
                self._leave()
        self._leave()

    def deliver(self, ids: list[str]) -> None:
        """Send what hooks want to know about these rows."""
        conn = self._reader()
        hooks = read_hooks(conn)
        for request_id in ids if hooks else ():
            self._deliver_one(conn, hooks, request_id)

    def _reader(self) -> sqlite3.Connection:
        """A connection that is kept: most rows are nobody's business, and opening one costs more than to see that."""
        from heliproxy.store import open_reader

        info = self.path.stat()
        if self._open is None or self._open[0] != (info.st_dev, info.st_ino):
            self._leave()
            self._open = (info.st_dev, info.st_ino), open_reader(self.path)
        return self._open[1]

    def _leave(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _deliver_one(self, conn: sqlite3.Connection, hooks: list[Hook], request_id: str) -> None:
        from heliproxy.queries import request_detail

        detail = request_detail(conn, request_id)
        if detail is None or detail.row["incomplete"]:
            return
        row = {**detail.row, "properties": detail.properties}
        body = detail.body
        request, response = (_text(body.request), _text(body.response)) if body is not None else ("", "")
        for hook in hooks:
            if not hook.wants(detail.properties, self.draw()):
                continue
            url = self.url_for(request_id) if self.url_for is not None else None
            note = note_of(row, request, response, url, data=hook.include_data)
            self._send(hook, json.dumps(note, ensure_ascii=False).encode("utf-8", "replace"), request_id)

    def _send(self, hook: Hook, body: bytes, request_id: str) -> None:
        """Try until the hook takes it, or says for good that it does not want it."""
        problem = ""
        for delay in (0.0, *RETRY_DELAYS):
            if delay and self._stop.wait(delay):
                break
            try:
                status = self.send(hook, body, request_id)
            except (OSError, http.client.HTTPException, ValueError) as e:
                problem = f"{type(e).__name__}: {e}"
                continue
            if 200 <= status < 300:
                self.counters.delivered += 1
                return
            problem = f"HTTP {status}"
            if 400 <= status < 500 and status not in (408, 425, 429):
                break
        self.counters.failed += 1
        logger.warning("webhook %s did not take request %s: %s", hook.id, request_id, problem)


def open_webhooks(path: Path, secret: bytes, origin: str, allowed: Collection[str] = ()) -> Webhooks:
    """Webhooks over the database at `path`; `origin` is where links to bodies begin (`http://127.0.0.1:8585`).

    `allowed`: hosts (`host`, `host:port`) that may be told although they are no public address.
    """
    url_for = partial(signed_link, origin, secret, BODY_PATH)
    return Webhooks(path, url_for, send=partial(post, allowed=allowed))


def read_hooks(conn: sqlite3.Connection) -> list[Hook]:
    found = conn.execute("SELECT id, value FROM objects WHERE kind = ? ORDER BY id", (KIND,))
    return [hook_of({**json.loads(value), "id": hook_id}) for hook_id, value in found]


def _text(body: bytes | None) -> str:
    return (body or b"")[:BODY_LIMIT].decode("utf-8", "replace")
