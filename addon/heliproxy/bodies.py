"""Request and response bodies as they are stored: compressed when that pays, with the headers worth keeping."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping

if TYPE_CHECKING or sys.version_info < (3, 14):
    from backports import zstd
else:
    from compression import zstd

COMPRESS_FROM = 512
"""Bytes. Shorter bodies gain too little to be unreadable in other tools."""


@dataclass(frozen=True, slots=True)
class Body:
    """The decoded bodies of one exchange; None where there was none or it was not to be kept."""

    request: bytes | None = None
    response: bytes | None = None
    request_type: str | None = None
    """Content type."""
    response_type: str | None = None
    request_headers: Mapping[str, str] | None = None
    response_headers: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class StoredBody:
    """A `Body` as its row has it."""

    request: bytes | None
    response: bytes | None
    encoding: str
    request_type: str | None
    response_type: str | None
    request_headers: str | None
    """JSON."""
    response_headers: str | None


def stored(body: Body) -> StoredBody:
    """Used by the one writer thread."""
    request, response, encoding = encode_body(body)
    return StoredBody(
        request,
        response,
        encoding,
        body.request_type,
        body.response_type,
        None if body.request_headers is None else json.dumps(dict(body.request_headers)),
        None if body.response_headers is None else json.dumps(dict(body.response_headers)),
    )


@cache
def compressor() -> zstd.ZstdCompressor:
    # Kept between bodies: setting one up costs as much as compressing a few kilobytes.
    return zstd.ZstdCompressor(level=1)


def encode_body(body: Body) -> tuple[bytes | None, bytes | None, str]:
    """Request, response and their common encoding, "" or "zstd". Used by the one writer thread."""
    request, response = body.request, body.response
    if len(request or b"") < COMPRESS_FROM and len(response or b"") < COMPRESS_FROM:
        return request, response, ""
    return compressed(request), compressed(response), "zstd"


def compressed(data: bytes | None) -> bytes | None:
    return None if data is None else compressor().compress(data, zstd.ZstdCompressor.FLUSH_FRAME)


def read_body(conn: sqlite3.Connection, request_id: str) -> Body | None:
    """The stored bodies of a request, decoded; None when nothing is stored.

    A body that cannot be decoded comes back as it is stored.
    """
    row = conn.execute(
        "SELECT encoding, request, response, request_type, response_type, request_headers, response_headers "
        "FROM bodies WHERE request_id = ?",
        (request_id,),
    ).fetchone()
    if row is None:
        return None
    encoding, request, response, request_type, response_type, request_headers, response_headers = row
    return Body(
        decoded(request, encoding),
        decoded(response, encoding),
        request_type,
        response_type,
        read_headers(request_headers),
        read_headers(response_headers),
    )


def decoded(data: Any, encoding: str) -> bytes | None:
    if data is None:
        return None
    raw = data.encode() if isinstance(data, str) else bytes(data)
    if encoding != "zstd":
        return raw
    try:
        return zstd.decompress(raw)
    except zstd.ZstdError:
        return raw


def read_headers(text: str | None) -> dict[str, str] | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
