"""A manual log in its plainest form, as bytes: what answering one takes without uvicorn, h11 and Starlette's router.

Two processes read logs this way: the proxy's own (`wire.py`) and the one beside it that takes over when logs come in
numbers (`log_process.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from heliproxy.api.fields import MAX_BODY
from heliproxy.api.guard import EXTRA_HEADERS, Guard
from heliproxy.api.logs import LOG_PATHS

if TYPE_CHECKING:
    from starlette.responses import Response

Fields = list[tuple[bytes, bytes]]

MAX_HEAD = 16 * 1024
"""Bytes of a request's head; a longer one is not plain."""
_HEAD = re.compile(
    rb"POST (/[a-z0-9/]{1,40}) HTTP/1\.1\r\n((?:[!#-'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\x0a-\x1f\x7f]*\r\n)+)\r\n"
)
_FIELD = re.compile(rb"([^:]+):[ \t]*([^\r]*)\r\n")
_ONCE = (b"host", b"content-length")
_NOT_PLAIN = frozenset((b"transfer-encoding", b"expect", b"upgrade", b"content-encoding", b"trailer"))
_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}


@dataclass(frozen=True, slots=True)
class PlainLog:
    """Where a log stands in the bytes that it came with; its body may still be under way."""

    path: str
    fields: Fields
    start: int
    end: int

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Header fields as text; bytes that are no UTF-8 come as surrogates."""
        return [(name.decode("latin-1"), value.decode("utf-8", "surrogateescape")) for name, value in self.fields]


def plain_head(data: bytes | bytearray) -> tuple[str, Fields, int, int] | None:
    """The head of a plain POST at the start of `data`: (path, header fields, bytes of the head, bytes of the body).

    None for anything that needs a real HTTP parser, a head that has not arrived whole included.
    """
    found = _HEAD.match(data, 0, MAX_HEAD)
    if found is None:
        return None
    fields = [(name.lower(), value.rstrip(b" \t")) for name, value in _FIELD.findall(found[2])]
    once = {name: value for name, value in fields if name in _ONCE}
    length = once.get(b"content-length", b"")
    if len(once) != len(_ONCE) or sum(name in _ONCE for name, _ in fields) != len(_ONCE):
        return None
    if not length.isdigit() or len(length) > 10:
        return None
    for name, value in fields:
        if name in _NOT_PLAIN or (name == b"connection" and value.lower() != b"keep-alive"):
            return None
    return found[1].decode("ascii"), fields, found.end(), int(length)


def may_become_log(data: bytes | bytearray) -> bool:
    """Whether this is the beginning of a head that may be a log's."""
    start = b"POST /"
    return len(data) < MAX_HEAD and start.startswith(data[: len(start)]) and b"\r\n\r\n" not in data


def plain_log(data: bytes | bytearray, guard: Guard) -> PlainLog | None:
    """The log at the start of `data`; None when it is none, or one that the guard refuses."""
    head = plain_head(data) if data.startswith(b"POST /") else None
    if head is None:
        return None
    path, fields, start, length = head
    if path not in LOG_PATHS or not 0 < length <= MAX_BODY:
        return None
    if guard.refusal({"method": "POST", "path": path, "headers": fields}) is not None:
        return None
    return PlainLog(path, fields, start, start + length)


def answer_bytes(response: Response, first: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """An answer as it goes over the wire; `first`: headers before its own."""
    fields = (*first, *response.raw_headers, *EXTRA_HEADERS)
    lines = [b"HTTP/1.1 %d %s" % (response.status_code, _REASONS[response.status_code])]
    lines += [name + b": " + value for name, value in fields]
    return b"\r\n".join(lines) + b"\r\n\r\n" + bytes(response.body)
