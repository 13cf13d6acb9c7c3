import gzip
import random
import tracemalloc
import zlib

import brotli
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliproxy.decode import Decoder, decode

try:
    from compression import zstd
except ImportError:
    from backports import zstd

TEXT = b'data: {"choices":[{"delta":{"content":"hello"}}]}\n\n' * 400
LIMIT = 1024 * 1024


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


ENCODERS = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstd.compress,
    "identity": bytes,
}


@pytest.mark.parametrize("encoding", ENCODERS)
def test_each_coding_comes_off(encoding: str) -> None:
    assert decode(ENCODERS[encoding](TEXT), encoding, LIMIT) == TEXT


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        (None, TEXT),
        ("", TEXT),
        ("something-new", TEXT),
        ("deflate", raw_deflate(TEXT)),
        ("GZIP", gzip.compress(TEXT)),
        ("gzip, br", brotli.compress(gzip.compress(TEXT))),
        ("br,gzip", gzip.compress(brotli.compress(TEXT))),
        ("gzip", gzip.compress(TEXT[:100]) + gzip.compress(TEXT[100:])),
        ("zstd", zstd.compress(TEXT[:100]) + zstd.compress(TEXT[100:])),
        ("gzip", gzip.compress(TEXT) + b"\0" * 512),
    ],
)
def test_less_usual_bodies_are_decoded(encoding: str | None, data: bytes) -> None:
    assert decode(data, encoding, LIMIT) == TEXT


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, br"])
@pytest.mark.parametrize("size", [1, 7, 4096, 100_000])
def test_pieces_give_the_same_as_the_whole(encoding: str, size: int) -> None:
    data = TEXT
    for name in encoding.split(", "):
        data = ENCODERS[name](data)
    decoder = Decoder(encoding, LIMIT)
    found = b"".join(decoder.feed(data[start : start + size]) for start in range(0, len(data), size))
    assert found == TEXT
    assert not decoder.full
    assert not decoder.broken


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_output_arrives_as_soon_as_it_can(encoding: str) -> None:
    # A server that streams flushes after each event.
    event = TEXT[:60]
    if encoding == "br":
        packer = brotli.Compressor()
        data = packer.process(event) + packer.flush()
    elif encoding == "zstd":
        packer = zstd.ZstdCompressor()
        data = packer.compress(event, zstd.ZstdCompressor.FLUSH_BLOCK)
    else:
        packer = zlib.compressobj(wbits=31 if encoding == "gzip" else 15)
        data = packer.compress(event) + packer.flush(zlib.Z_SYNC_FLUSH)
    assert Decoder(encoding, LIMIT).feed(data) == event


@pytest.mark.parametrize("encoding", ENCODERS)
def test_decoding_stops_at_the_limit(encoding: str) -> None:
    decoder = Decoder(encoding, 1000)
    found = decoder.feed(ENCODERS[encoding](TEXT)) + decoder.feed(b"more")
    assert found == TEXT[:1000]
    assert decoder.full


@pytest.mark.parametrize("encoding", ENCODERS)
def test_a_body_of_exactly_the_limit_is_not_cut(encoding: str) -> None:
    decoder = Decoder(encoding, len(TEXT))
    assert decoder.feed(ENCODERS[encoding](TEXT)) == TEXT
    assert not decoder.full


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_a_cut_body_gives_its_beginning(encoding: str) -> None:
    data = random.Random(1).randbytes(200_000)
    packed = ENCODERS[encoding](data)
    found = decode(packed[: len(packed) * 3 // 4], encoding, LIMIT)
    assert len(found) > 50_000 or encoding == "br"
    assert data.startswith(found)


def test_garbage_in_the_middle_keeps_what_came_before() -> None:
    data = bytes(random.Random(1).choices(b"abcdefgh", k=200_000))
    packed = bytearray(zlib.compress(data))
    packed[40_000:] = random.Random(2).randbytes(30_000)
    decoder = Decoder("deflate", LIMIT)
    found = decoder.feed(bytes(packed))
    assert decoder.broken
    assert len(found) > 60_000
    assert data.startswith(found[:60_000])


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "gzip, br", "br, gzip"])
def test_a_bomb_costs_little(encoding: str) -> None:
    bomb = bytes(48 * LIMIT)
    for name in encoding.split(", "):
        bomb = brotli.compress(bomb, quality=1) if name == "br" else ENCODERS[name](bomb)
    tracemalloc.start()
    try:
        found = decode(bomb, encoding, 4 * LIMIT)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found) == 4 * LIMIT
    assert peak < 16 * LIMIT


def test_the_smallest_bomb_costs_little() -> None:
    # 256 MiB of zeros in a few hundred bytes.
    packer = brotli.Compressor(quality=9, lgwin=24)
    zeros = bytes(LIMIT)
    bomb = b"".join(packer.process(zeros) for _ in range(256)) + packer.finish()
    assert len(bomb) < 2000
    tracemalloc.start()
    try:
        found = decode(bomb, "br", 16 * LIMIT)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found) == 16 * LIMIT
    assert peak < 64 * LIMIT


@given(data=st.binary(max_size=300), encoding=st.sampled_from(["gzip", "deflate", "br", "zstd", "gzip, zstd"]))
def test_noise_never_raises(data: bytes, encoding: str) -> None:
    decoder = Decoder(encoding, 1000)
    assert len(decoder.feed(data) + decoder.feed(data)) <= 1000


@pytest.mark.parametrize(
    ("size", "ratio", "full"), [(3, 100, False), (12, 100, True), (12, 2000, False), (12, 0, False)]
)
def test_what_stands_for_implausibly_much_is_cut(size: int, ratio: int, full: bool) -> None:
    decoder = Decoder("gzip", 16 << 20, ratio)
    found = decoder.feed(gzip.compress(bytes(size << 20)))
    assert (decoder.full, len(found) == size << 20) == (full, not full)
