"""What `heliproxy run --attach` needs to know of the `heliproxy serve` whose proxy it uses.

Each connection of the program names the run, as user and password of the proxy. curl, Python's clients, Node, Go, PHP
and Ruby send them with the first request. A client that waits to be asked (git), or that takes no user from the
variable (Java), is logged without the run's id; so is a base URL.
"""

from __future__ import annotations

import base64
import os
import re
import socket
import ssl
import time
from pathlib import Path

import click

PORT = 8080
CHECKED_HOST = "api.openai.com"
SECONDS = 3.0
TOKEN = "HELIPROXY_TOKEN"  # noqa: S105 - the name of a variable
REFUSED = 407
"""What a proxy answers that asks for a password."""


def check(home: Path, port: int) -> None:
    """Make sure that a heliproxy with this home serves on `port`.

    Raises:
        click.ClickException: nothing does, or another program, or a heliproxy of another home, or one that asks for a
            token which is not in HELIPROXY_TOKEN.
    """
    from heliproxy.doctor import health, is_listening

    if not is_listening(port):
        raise click.ClickException(
            f"nothing to attach to on port {port}: start `heliproxy serve`, or leave out --attach"
        )
    if health(port) is None:
        raise click.ClickException(f"what serves on port {port} is no heliproxy, or did not answer")
    if (missing := lacks_token(port, os.environ.get(TOKEN))) is not None:
        raise click.ClickException(missing)
    if not uses(home, port, os.environ.get(TOKEN)):
        raise click.ClickException(f"the heliproxy on port {port} has another home than {home}: give its --home")


def asks_for_token(port: int) -> bool:
    """Whether the proxy on `port` lets nobody through without a token. It dials nothing for this."""
    return _tunnel_status(port, None) == REFUSED


def lacks_token(port: int, token: str | None) -> str | None:
    """What is wrong with the token of this shell (None: it has none) for the proxy on `port`; None: nothing.

    Only a proxy that asks is told the token.
    """
    if not asks_for_token(port):
        return None
    asks = f"the heliproxy on port {port} asks for its token"
    if not token:
        return f"{asks}: set {TOKEN} here to the one that `heliproxy serve` was started with"
    if _tunnel_status(port, token) == REFUSED:
        return f"{asks}, and {TOKEN} is another here: set it to the one that `heliproxy serve` was started with"
    return None


def _tunnel_status(port: int, token: str | None) -> int | None:
    """The status that answers a client who wants a tunnel; None: there was no answer."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as raw:
            return _ask_for_tunnel(raw, token)
    except OSError:
        return None


def _ask_for_tunnel(raw: socket.socket, token: str | None) -> int | None:
    lines = [f"CONNECT {CHECKED_HOST}:443 HTTP/1.1", f"Host: {CHECKED_HOST}:443"]
    if token:
        password = f"heliproxy:{token}".encode("utf-8", "surrogateescape")
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(password).decode('ascii')}")
    raw.sendall("\r\n".join([*lines, "", ""]).encode("ascii"))
    found = re.match(rb"HTTP/1\.[01] ([0-9]{3}) ", raw.recv(4096))
    return int(found[1]) if found is not None else None


def uses(home: Path, port: int, token: str | None = None) -> bool:
    """Whether the proxy on `port` signs with the authority in `home`. It dials nothing for this."""
    from heliproxy.certs import ca_paths

    cert = ca_paths(home).cert
    if not cert.exists():
        return False
    context = ssl.create_default_context(cafile=str(cert))
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as raw:
            if _ask_for_tunnel(raw, token if token and asks_for_token(port) else None) != 200:
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
        time.sleep(0.25)  # the end of a call may reach the proxy after the program's own
        facts = health(port, max(1.0, deadline - time.monotonic()), flush=True)
        if facts is None or (facts.get("waiting") == 0 and facts.get("rows") == before):
            return
        before = facts.get("rows")
