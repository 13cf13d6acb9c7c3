"""What `heliproxy run --attach` needs to know of the `heliproxy serve` whose proxy it uses.

Each connection of the program names the run, as user and password of the proxy. curl, Python's clients, Node, Go, PHP
and Ruby send them with the first request. A client that waits to be asked (git), or that takes no user from the
variable (Java), is logged without the run's id; so is a base URL.
"""

from __future__ import annotations

import socket
import ssl
import time
from pathlib import Path

import click

PORT = 8080
CHECKED_HOST = "api.openai.com"
SECONDS = 3.0


def check(home: Path, port: int) -> None:
    """Make sure that a heliproxy with this home serves on `port`.

    Raises:
        click.ClickException: nothing does, or another program, or a heliproxy of another home.
    """
    from heliproxy.doctor import health, is_listening

    if not is_listening(port):
        raise click.ClickException(
            f"nothing to attach to on port {port}: start `heliproxy serve`, or leave out --attach"
        )
    if health(port) is None:
        raise click.ClickException(f"what serves on port {port} is no heliproxy, or did not answer")
    if not uses(home, port):
        raise click.ClickException(f"the heliproxy on port {port} has another home than {home}: give its --home")


def uses(home: Path, port: int) -> bool:
    """Whether the proxy on `port` signs with the authority in `home`. It dials nothing for this."""
    from heliproxy.certs import ca_paths

    cert = ca_paths(home).cert
    if not cert.exists():
        return False
    context = ssl.create_default_context(cafile=str(cert))
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as raw:
            raw.sendall(f"CONNECT {CHECKED_HOST}:443 HTTP/1.1\r\nHost: {CHECKED_HOST}:443\r\n\r\n".encode())
            if b" 200 " not in raw.recv(4096):
                return False
            with context.wrap_socket(raw, server_hostname=CHECKED_HOST):
                return True
    except OSError:
        return False


def wait_written(port: int, seconds: float = SECONDS) -> None:
    """Return when the proxy has written what it has seen so far, or has had time enough."""
    from heliproxy.doctor import health

    deadline = time.monotonic() + seconds
    before: int | None = None
    while time.monotonic() < deadline:
        # Longer than the recorder collects rows before it commits them.
        time.sleep(0.25)
        facts = health(port)
        if facts is None or (facts.get("waiting") == 0 and facts.get("rows") == before):
            return
        before = facts.get("rows")
