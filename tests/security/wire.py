"""Requests as bytes: what no client library would send."""

from __future__ import annotations

import socket


def raw(port: int, *parts: bytes) -> bytes:
    """What comes back until the connection is closed or nothing comes any more."""
    with socket.create_connection(("127.0.0.1", port), timeout=3) as conn:
        got = b""
        for part in parts:
            conn.sendall(part)
            try:
                while data := conn.recv(65536):
                    got += data
                    if b"\r\n\r\n" in got:
                        break
            except OSError:
                break
        return got
