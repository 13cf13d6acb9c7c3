"""Lets a streamed response's bytes pass, and keeps a copy of them for the recorder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from heliproxy.exchange import Exchange
from heliproxy.formats import FORMATS
from heliproxy.policies.streamusage import ChunkJoiner, UsageHider
from heliproxy.record import is_stream_type

if TYPE_CHECKING:
    from mitmproxy import http

BUFFER_LIMIT = 256 * 1024
"""A response of known length up to this is buffered (and may then be answered in one write); all others stream."""
HAND_OVER = 256 * 1024
"""Bytes of a running stream kept here before they go to the recorder."""
_MARKER_TAIL = 64


def is_streamed(response: http.Response) -> bool:
    """Whether a response's body is to pass as it comes."""
    if response.status_code == 101:
        return False
    headers = response.headers
    if is_stream_type(headers.get("content-type", "")):
        return True
    length = headers.get("content-length", "")
    return not (length.isascii() and length.isdigit() and int(length[:12]) <= BUFFER_LIMIT)


def tap(
    flow_id: str,
    exchange: Exchange,
    response: http.Response,
    hand_over: Callable[[Exchange], None],
    linger: Callable[[str], None],
) -> Callable[[bytes], bytes | Iterable[bytes]]:
    """What mitmproxy is to call with each piece of the body, for the bytes the client gets.

    Args:
        hand_over: takes the exchange when many bytes are kept, and leaves it with new, empty `chunks`.
        linger: is told the flow's id when the last event of a stream passes.
    """
    copier = _copier(flow_id, exchange, response, hand_over, linger)
    plain = response.headers.get("content-encoding", "identity").lower() == "identity"
    stream = is_stream_type(response.headers.get("content-type", ""))
    if exchange.hide_usage and plain and stream:
        if "content-length" in response.headers:
            del response.headers["content-length"]
            response.headers["transfer-encoding"] = "chunked"
        return _through(copier, UsageHider())
    if exchange.directives.stream_force_format and stream:
        return _through(copier, ChunkJoiner())
    return copier


def _copier(
    flow_id: str,
    exchange: Exchange,
    response: http.Response,
    hand_over: Callable[[Exchange], None],
    linger: Callable[[str], None],
) -> Callable[[bytes], bytes]:
    format = FORMATS.get(exchange.route.format)
    plain = response.headers.get("content-encoding", "identity").lower() == "identity"
    markers = tuple(b"\n" + m for m in format.terminal) if format is not None and plain else ()
    clock = time.perf_counter
    chunks = exchange.chunks
    tail = b"\n"
    over = False

    def copy(data: bytes) -> bytes:
        nonlocal chunks, tail, over
        if not data:
            return data
        if exchange.first_byte is None:
            exchange.first_byte = clock()
        chunks.append(data)
        exchange.size_response += len(data)
        exchange.pending += len(data)
        if exchange.pending > HAND_OVER:
            hand_over(exchange)
            chunks = exchange.chunks
        if over:
            exchange.ended = clock()
        elif markers:
            window = tail + data
            if any(marker in window for marker in markers):
                over = True
                exchange.ended = clock()
                linger(flow_id)
            tail = window[-_MARKER_TAIL:]
        return data

    return copy


def _through(copier: Callable[[bytes], bytes], filter: UsageHider | ChunkJoiner) -> Callable[[bytes], Iterable[bytes]]:
    """The copy is of what the upstream sent, the client gets what the filter lets through."""

    def pass_on(data: bytes) -> Iterable[bytes]:
        passed = filter.feed(copier(data)) if data else filter.end()
        # An empty chunk would be the end of a chunked body, so nothing must be no chunk at all.
        return [passed] if passed else []

    return pass_on
