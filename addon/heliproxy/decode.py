"""Undo HTTP content encodings, whole or piece by piece, never past a limit.

A few hundred compressed bytes may stand for gigabytes, so every step asks its decompressor for a bounded amount,
and stops for good at the limit. Broken input ends decoding quietly: what came out before it is kept.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import brotli  # type: ignore[import-untyped]

if TYPE_CHECKING or sys.version_info < (3, 14):
    from backports import zstd
else:
    from compression import zstd

_SLICE = 4096
"""Compressed bytes given to a decompressor at once: an error loses the output of one slice only."""
_STEP = 1024 * 1024
"""Decoded bytes asked for at once."""
_MUCH = 4 * 1024 * 1024
"""Decoded bytes up to which any ratio is plausible."""
_ZSTD_WINDOW_LOG = 23
"""RFC 9659: a zstd window in HTTP is at most 8 MiB. Without this a frame may ask for far more memory."""

_ERRORS = (zlib.error, brotli.error, zstd.ZstdError, EOFError, ValueError)


class _Stage(Protocol):
    """One decompressor. `step` takes input and gives at most `room` bytes; call it with b"" for the rest."""

    def step(self, data: bytes, room: int) -> bytes: ...

    @property
    def more(self) -> bool:
        """Whether output is waiting that needs no new input."""


class _Zlib:
    """gzip (several members allowed, as the RFC says) and deflate (zlib wrapped, or raw as some servers send)."""

    def __init__(self, gzip: bool) -> None:
        self._gzip = gzip
        self._member = zlib.decompressobj(31 if gzip else 15)
        self._fresh = True
        self._left = b""

    @property
    def more(self) -> bool:
        return bool(self._left)

    def step(self, data: bytes, room: int) -> bytes:
        data = self._left + data
        self._left = b""
        if not data:
            return b""
        if self._member.eof:
            if not self._gzip or not data.strip(b"\0"):
                return b""
            self._member = zlib.decompressobj(31)
        try:
            out = self._member.decompress(data, room)
        except zlib.error:
            if self._gzip or not self._fresh:
                raise
            self._member = zlib.decompressobj(-15)
            out = self._member.decompress(data, room)
        self._fresh = False
        self._left = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
        return out


class _Brotli:
    def __init__(self) -> None:
        self._stream = brotli.Decompressor()

    @property
    def more(self) -> bool:
        return not self._stream.can_accept_more_data() and not self._stream.is_finished()

    def step(self, data: bytes, room: int) -> bytes:
        if self._stream.is_finished():
            return b""
        return bytes(self._stream.process(data, output_buffer_limit=room))


class _Zstd:
    def __init__(self) -> None:
        self._frame = self._new()
        self._left = b""

    @staticmethod
    def _new() -> zstd.ZstdDecompressor:
        return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG})

    @property
    def more(self) -> bool:
        return bool(self._left) or not (self._frame.needs_input or self._frame.eof)

    def step(self, data: bytes, room: int) -> bytes:
        data = self._left + data
        self._left = b""
        if self._frame.eof:
            if not data:
                return b""
            self._frame = self._new()
        out = self._frame.decompress(data, room)
        if self._frame.eof:
            self._left = self._frame.unused_data
        return out


def _stages(encoding: str | None) -> list[_Stage]:
    """The decompressors for a Content-Encoding value, in the order to apply them: the last coding comes off first.

    Codings we do not know are left alone.
    """
    stages: list[_Stage] = []
    if not encoding:
        return stages
    for coding in reversed(encoding.lower().split(",")):
        name = coding.strip()
        if name in ("gzip", "x-gzip"):
            stages.append(_Zlib(gzip=True))
        elif name == "deflate":
            stages.append(_Zlib(gzip=False))
        elif name == "br":
            stages.append(_Brotli())
        elif name == "zstd":
            stages.append(_Zstd())
    return stages[:4]


class Decoder:
    """Decodes one body piece by piece; at most `limit` bytes come out in all.

    `full` is true once the limit cut something off, `broken` once the input could not be decoded any further; `taken`
    says how much of the input was looked at.

    With a `ratio`, a body is also cut off where it stands for more than so many times its bytes, and for much at all.
    """

    __slots__ = ("_limit", "_ratio", "_room", "_stages", "broken", "full", "taken")

    def __init__(self, encoding: str | None, limit: int, ratio: int = 0) -> None:
        self._stages = _stages(encoding)
        self._limit = self._room = limit
        self._ratio = ratio
        self.full = False
        self.broken = False
        self.taken = 0

    def _over(self) -> bool:
        return self.full or self.broken

    def feed(self, data: bytes) -> bytes:
        """The decoded bytes these encoded bytes stand for. Never raises."""
        return b"".join(self.pieces(data))

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """As `feed`, but piece by piece, each of about a megabyte at most: little input may stand for very much."""
        if not self._stages and not self._over():
            self.taken += len(data)
            yield self._cut(data)
            return
        for start in range(0, len(data), _SLICE):
            if self._over():
                return
            piece = data[start : start + _SLICE]
            self.taken += len(piece)
            yield from self._run(piece, 0)

    def _cut(self, data: bytes) -> bytes:
        if len(data) > self._room:
            self.full = True
            data = data[: self._room]
        self._room -= len(data)
        return data

    def _run(self, data: bytes, index: int) -> Iterator[bytes]:
        """Push bytes through the stages from `index` on; gives what comes out of the last."""
        if index == len(self._stages):
            data = self._cut(data)
            if data:
                yield data
            decoded = self._limit - self._room
            if self._ratio and decoded > _MUCH and decoded > self._ratio * self.taken:
                self.full = True
            return
        stage = self._stages[index]
        waiting = True
        while waiting:
            try:
                piece = stage.step(data, min(_STEP, self._room + 1))
            except _ERRORS:
                self.broken = True
                return
            data = b""
            if piece:
                yield from self._run(piece, index + 1)
            waiting = stage.more and not self._over()


def decode(data: bytes, encoding: str | None, limit: int) -> bytes:
    """Decode a whole body of a Content-Encoding value such as `gzip, br`; stops at `limit` bytes."""
    return Decoder(encoding, limit).feed(data)
