"""Bodies of a few hundred or thousand bytes that decode to 256 MiB."""

from __future__ import annotations

import gzip
import sys
import zlib
from functools import cache

import brotli  # type: ignore[import-untyped]

if sys.version_info < (3, 14):
    from backports import zstd
else:
    from compression import zstd

MIB = 1024 * 1024
DECODED_MIB = 256
ENCODINGS = ("br", "zstd", "gzip", "deflate", "gzip, gzip", "br, gzip")


@cache
def bomb(encoding: str) -> bytes:
    """A body of this Content-Encoding."""
    inner, _, outer = encoding.partition(", ")
    if outer:
        data = bomb(inner)
        return gzip.compress(data)
    zeros = bytes(MIB)
    if inner == "br":
        brotli_stream = brotli.Compressor(quality=5, lgwin=24)  # 203 bytes in 0.3 s, at 11 in 15 s
        return b"".join(brotli_stream.process(zeros) for _ in range(DECODED_MIB)) + bytes(brotli_stream.finish())
    if inner == "zstd":
        zstd_stream = zstd.ZstdCompressor(19)
        return b"".join(zstd_stream.compress(zeros) for _ in range(DECODED_MIB)) + zstd_stream.flush()
    stream = zlib.compressobj(9, zlib.DEFLATED, 31 if inner == "gzip" else 15)
    return b"".join(stream.compress(zeros) for _ in range(DECODED_MIB)) + stream.flush()
