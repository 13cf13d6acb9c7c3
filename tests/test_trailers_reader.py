"""Chunked bodies come out of our reader as out of h11's, however they arrive."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import h11
from h11._readers import ChunkedReader
from h11._receivebuffer import ReceiveBuffer
from hypothesis import given
from hypothesis import strategies as st

from heliproxy.trailers import TrailerReader

PIECES = st.lists(st.binary(max_size=9), max_size=6)
NOISE = st.sampled_from([b"", b"\r\n", b"x", b"zz\r\n", b"5\r\nab", b"0\r\n\r\n", b"3;a=b\r\nxyz\r\n", b"2\r\nabcd"])


def body_of(pieces: Sequence[bytes], noise: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces if p) + noise + b"0\r\n\r\n"


def read(reader: ChunkedReader, arrivals: Sequence[bytes]) -> tuple[bytes, bool, bool, bytes]:
    """What was read, whether that was the end or an error, and what is left in the buffer."""
    buffer, found = ReceiveBuffer(), b""
    for arrival in arrivals:
        buffer += arrival
        while True:
            try:
                event = reader(buffer)
            except h11.LocalProtocolError:
                return found, False, True, b""
            if event is None:
                break
            if isinstance(event, h11.EndOfMessage):
                return found, True, False, bytes(buffer)
            found += bytes(event.data)
    return found, False, False, bytes(buffer)


@given(PIECES, NOISE, st.lists(st.integers(0, 60), max_size=5))
def test_every_split_reads_as_h11_reads_it(pieces: Sequence[bytes], noise: bytes, cuts: Sequence[int]) -> None:
    body = body_of(pieces, noise)
    places = sorted({0, len(body), *(min(c, len(body)) for c in cuts)})
    arrivals = [body[a:b] for a, b in pairwise(places)]
    found, ended, wrong, left = read(TrailerReader(), arrivals)
    expected, expected_end, expected_wrong, expected_left = read(ChunkedReader(), arrivals)
    assert (ended, wrong, left) == (expected_end, expected_wrong, expected_left)
    assert found == expected or (wrong and expected.startswith(found))


def test_chunks_that_came_together_are_given_together() -> None:
    buffer = ReceiveBuffer()
    buffer += b"3\r\nabc\r\n2\r\nde\r\n4\r\nfg"
    reader = TrailerReader()
    assert [reader(buffer).data, reader(buffer).data, reader(buffer)] == [b"abcde", b"fg", None]
