"""Passes the body of a streamed response from an HTTP/1 upstream to an HTTP/1 client without mitmproxy's layers.

A stream is hundreds of small pieces, and each passes six generators in mitmproxy: codec, HTTP layer, stream, HTTP
layer, codec, TLS. In the middle of a body none of them decides anything. So while both codecs and the stream stay in
the state of a body under way, a piece is read, shown to whoever streams the response, and framed for the client here.
The head, the end, trailers, errors, and whatever comes while a hook is under way take mitmproxy's way.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mitmproxy.proxy.layers.http import HttpStream
from mitmproxy.proxy.layers.http._http1 import Http1Client, Http1Connection, Http1Server

from heliproxy.trailers import TrailerReader


class Passage:
    """One response body under way. `take` gives what is to be sent to the client, or None when it is not for here."""

    __slots__ = ("_chunked", "_codec", "_reader", "_reading", "_stream", "_streaming", "_to")

    def __init__(self, codec: Http1Client, stream: HttpStream, to: Http1Server) -> None:
        response = to.response
        assert response is not None
        assert type(codec.body_reader) is TrailerReader
        self._codec, self._reading, self._reader = codec, codec.state, codec.body_reader
        self._stream, self._streaming = stream, stream.server_state
        self._to = to
        self._chunked = "chunked" in response.headers.get("transfer-encoding", "").lower()

    def take(self, data: bytes) -> bytes | None:
        """Take a piece of the upstream's bytes; what is left for mitmproxy's way is then in the codec's buffer.

        None: nothing was taken, this body is not under way any more.
        """
        codec, stream = self._codec, self._stream
        if codec.state is not self._reading or stream.server_state is not self._streaming or stream._paused:
            return None
        codec.buf += data
        piece = self._reader.whole_chunks(codec.buf)
        if not piece:
            return b""
        response = stream.flow.response
        assert response is not None
        found: bytes | Iterable[bytes] = response.stream(piece) if callable(response.stream) else piece
        pieces = (found,) if isinstance(found, bytes) else found
        if not self._chunked:
            return b"".join(pieces)
        return b"".join([b"%x\r\n%b\r\n" % (len(one), one) for one in pieces])

    def leave(self) -> bytes:
        """Take out of the codec's buffer what has to be read in mitmproxy's way."""
        return bytes(self._codec.buf.maybe_extract_at_most(len(self._codec.buf)) or b"") if self.rest else b""

    @property
    def rest(self) -> bool:
        """Whether there is something in the codec's buffer that has to be read in mitmproxy's way."""
        return bool(self._codec.buf)


def passage(codec: Http1Client, stream: Any, to: Any) -> Passage | None:
    """The way of the body that `codec` is reading, or None if it is not one that is passed on as it comes."""
    if (
        type(to) is Http1Server
        and isinstance(stream, HttpStream)
        and type(codec.body_reader) is TrailerReader
        and getattr(stream.server_state, "__func__", None) is HttpStream.state_stream_response_body
        and stream.flow.response is not None
        and to.response is stream.flow.response
        and to.stream_id == codec.stream_id
        and not stream.context.options.store_streamed_bodies
    ):
        return Passage(codec, stream, to)
    return None


def reads_body(codec: Http1Client) -> bool:
    """Whether a codec is in the middle of a body."""
    return getattr(codec.state, "__func__", None) is Http1Connection.read_body
