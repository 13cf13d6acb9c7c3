"""How long one WebSocket message may be. mitmproxy collects each whole, and unpacks it without end.

A message that is too long ends the socket with code 1009, for both sides; there is no passing it on in pieces, as its
kind shows at its end only.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import wsproto.events
from mitmproxy.proxy.layers import websocket
from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import CloseReason, FrameDecoder, FrameProtocol

from heliproxy.long_bodies import MAX_BODY
from heliproxy.record import DECODE_LIMIT, PLAUSIBLE_RATIO

logger = logging.getLogger(__name__)

_MARK = "_heliproxy_bounded"
TOO_LONG = wsproto.events.CloseConnection(CloseReason.MESSAGE_TOO_BIG, "the message is longer than 64 MiB")


class BoundedConnection(websocket.WebsocketConnection):
    """One side of a socket, whose messages have at most `MAX_BODY` bytes.

    A frame is given in one piece: mitmproxy appends each piece to a copy of all before it, which for a frame of 64 MiB
    holds up everything for half a minute.
    """

    _size = 0
    _pieces: list[wsproto.events.Message[Any]] | None = None

    def events(self) -> Generator[wsproto.events.Event]:
        for event in super().events():
            if not isinstance(event, wsproto.events.Message):
                yield event
                continue
            self._size += len(event.data)
            if self._size > MAX_BODY:
                self.frame_buf, self._pieces = [b""], None
                yield TOO_LONG
                return
            if event.frame_finished or event.message_finished:
                pieces, self._pieces = self._pieces, None
                if pieces:
                    event = replace(event, data=event.data[:0].join([*(piece.data for piece in pieces), event.data]))
                if event.message_finished:
                    self._size = 0
                yield event
            elif self._pieces is None:
                self._pieces = [event]
            else:
                self._pieces.append(event)


def unpacked(self: PerMessageDeflate, _: FrameDecoder | FrameProtocol, data: bytes) -> bytes | CloseReason:
    """What `frame_inbound_payload_data` gives, unless it stands for implausibly much."""
    if not self._inbound_compressed or not self._inbound_is_compressible:
        return data
    stream = self._decompressor
    assert stream is not None
    try:
        found = stream.decompress(bytes(data), max(DECODE_LIMIT, PLAUSIBLE_RATIO * len(data)))
    except Exception:  # zlib's error, as wsproto has it
        return CloseReason.INVALID_FRAME_PAYLOAD_DATA
    return CloseReason.MESSAGE_TOO_BIG if stream.unconsumed_tail else found


def use() -> None:
    """Put the bounds on the sockets of this process; a second call does nothing."""
    unpack = getattr(PerMessageDeflate, "frame_inbound_payload_data", None)
    if unpack is None or list(inspect.signature(unpack).parameters)[1:] not in (["proto", "data"], ["_", "data"]):
        logger.warning("the length of WebSocket messages is not bounded: they are unpacked in another way")
        return
    if not hasattr(unpack, _MARK):
        setattr(unpacked, _MARK, True)
        PerMessageDeflate.frame_inbound_payload_data = unpacked  # type: ignore[method-assign, assignment]
        websocket.WebsocketConnection = BoundedConnection  # type: ignore[misc]
