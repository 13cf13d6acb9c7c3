"""Decode `application/vnd.amazon.eventstream`, piece by piece.

A message is: total length, header length, CRC of these two (4 bytes each, big endian), headers, payload, CRC of it all.
A header is: name length (1), name, value type (1), value. Source: AWS's event stream encoding (Smithy documentation).
A message with a wrong checksum is skipped when its length can be trusted; otherwise decoding stops.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

_PRELUDE = 12
MESSAGE_LIMIT = 24 * 1024 * 1024
"""Bytes; AWS allows payloads of 16 MiB (24 in newer documents)."""
_FIXED_SIZES = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
_SIZED_TYPES = (6, 7)
_STRING = 7


class Message(NamedTuple):
    headers: dict[str, str]
    """String headers only, such as `:event-type`."""
    payload: bytes


class EventStreamDecoder:
    """Bytes in, complete messages out. `broken` is true once the input is no event stream."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.broken = False

    def feed(self, data: bytes) -> list[Message]:
        if self.broken:
            return []
        self._buffer += data
        found: list[Message] = []
        position = 0
        view = self._buffer
        while len(view) - position >= _PRELUDE:
            size, header_size, check = struct.unpack_from(">III", view, position)
            sane = _PRELUDE + header_size + 4 <= size <= MESSAGE_LIMIT
            if not sane or zlib.crc32(view[position : position + 8]) != check:
                self.broken = True
                self._buffer = bytearray()
                return found
            if len(view) - position < size:
                break
            raw = bytes(view[position : position + size])
            position += size
            if zlib.crc32(raw[:-4]) == int.from_bytes(raw[-4:]):
                headers_end = _PRELUDE + header_size
                found.append(Message(_headers(raw[_PRELUDE:headers_end]), raw[headers_end:-4]))
        if position:
            del self._buffer[:position]
        return found

    @property
    def waiting(self) -> bool:
        """Whether a message has begun and not ended."""
        return bool(self._buffer)


def _headers(raw: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    position = 0
    while position < len(raw):
        name_end = position + 1 + raw[position]
        if name_end >= len(raw):
            break
        name = raw[position + 1 : name_end].decode("utf-8", "replace")
        kind = raw[name_end]
        position = name_end + 1
        if kind in _SIZED_TYPES:
            size = int.from_bytes(raw[position : position + 2])
            if kind == _STRING:
                found[name] = raw[position + 2 : position + 2 + size].decode("utf-8", "replace")
            position += 2 + size
        elif kind in _FIXED_SIZES:
            position += _FIXED_SIZES[kind]
        else:
            break
    return found


def encode_message(headers: dict[str, str], payload: bytes) -> bytes:
    """One message with string headers, for tests and fakes."""
    head = b"".join(
        bytes([len(name)]) + name.encode() + bytes([_STRING]) + len(value.encode()).to_bytes(2) + value.encode()
        for name, value in headers.items()
    )
    prelude = struct.pack(">II", _PRELUDE + len(head) + len(payload) + 4, len(head))
    message = prelude + zlib.crc32(prelude).to_bytes(4) + head + payload
    return message + zlib.crc32(message).to_bytes(4)
