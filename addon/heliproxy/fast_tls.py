"""Drives a TLS session over memory without an exception and 64 KiB of memory for each piece of it.

pyOpenSSL says "nothing more" by raising, and allocates the whole buffer that a read might fill. Both come at each event
of a stream, several times. Here the functions of OpenSSL below it are called, with one buffer for all sessions, as long
as pyOpenSSL is as it was; else its own methods do.
"""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL

RECORDS = 65535
"""Bytes that are asked for at once."""

_lib: Any = getattr(SSL, "_lib", None)
_ffi: Any = getattr(SSL, "_ffi", None)


def problem() -> str | None:
    """Why pyOpenSSL's parts cannot be used, or None if they can."""
    for name in ("SSL_read", "SSL_write", "SSL_get_error", "SSL_ERROR_WANT_READ", "BIO_read", "BIO_write"):
        if not hasattr(_lib, name):
            return f"OpenSSL.SSL._lib has no {name}"
    if not callable(getattr(_ffi, "from_buffer", None)):
        return "OpenSSL.SSL._ffi is not as it was"
    probe = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
    if not all(getattr(probe, name, None) for name in ("_ssl", "_from_ssl", "_into_ssl", "_raise_ssl_error")):
        return "OpenSSL.SSL.Connection is not as it was"
    return None


_buffer: Any = None if problem() else _ffi.new("char[]", RECORDS)
"""What is read into, by this process's one event loop; it is copied out at once."""


Read = tuple[bytes, bool, str | None]
"""Plain text, whether the peer has ended the session, and an error of TLS."""


def decrypt(connection: SSL.Connection, data: bytes) -> Read:
    """Plain text, whether the peer has ended the session, and an error of TLS."""
    if _buffer is None or _lib.BIO_write(connection._into_ssl, _ffi.from_buffer(data), len(data)) != len(data):
        connection.bio_write(data)
    found: list[bytes] = []
    while True:
        try:
            if _buffer is None:
                found.append(connection.recv(RECORDS))
                continue
            size = _lib.SSL_read(connection._ssl, _buffer, RECORDS)
            if size > 0:
                found.append(_ffi.buffer(_buffer, size)[:])
                continue
            if _lib.SSL_get_error(connection._ssl, size) == _lib.SSL_ERROR_WANT_READ:
                return joined(found), False, None
            connection._raise_ssl_error(connection._ssl, size)
        except SSL.WantReadError:
            return joined(found), False, None
        except SSL.ZeroReturnError:
            return joined(found), True, None
        except SSL.Error as e:
            return joined(found), False, f"TLS Error: {e}"


def outgoing(connection: SSL.Connection) -> bytes:
    """What a session wants to have sent."""
    found: list[bytes] = []
    while True:
        if _buffer is not None:
            size = _lib.BIO_read(connection._from_ssl, _buffer, RECORDS)
            if size <= 0:
                return joined(found)
            found.append(_ffi.buffer(_buffer, size)[:])
            continue
        try:
            found.append(connection.bio_read(RECORDS))
        except SSL.WantReadError:
            return joined(found)


def encrypt(connection: SSL.Connection, data: bytes) -> bytes:
    """What is to be sent for some plain text; nothing when the session is over, as in mitmproxy."""
    sent = 0
    try:
        if _buffer is not None and data:
            sent = _lib.SSL_write(connection._ssl, _ffi.from_buffer(data), len(data))
            if sent <= 0:
                connection._raise_ssl_error(connection._ssl, sent)
        if sent < len(data):
            connection.sendall(data[sent:])
    except (SSL.ZeroReturnError, SSL.SysCallError):
        pass  # the other side may still be sending
    return outgoing(connection)


def joined(chunks: list[bytes]) -> bytes:
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
