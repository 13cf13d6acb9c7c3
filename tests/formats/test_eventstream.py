from hypothesis import given
from hypothesis import strategies as st

from heliproxy.formats.eventstream import EventStreamDecoder, Message, encode_message

HEADERS = {":message-type": "event", ":event-type": "metadata"}
STREAM = b"".join(encode_message(HEADERS, b'{"n":%d}' % n) for n in range(5))
EXPECTED = [Message(HEADERS, b'{"n":%d}' % n) for n in range(5)]


def test_messages_come_out_whole() -> None:
    assert EventStreamDecoder().feed(STREAM) == EXPECTED


def test_pieces_may_be_cut_anywhere() -> None:
    decoder = EventStreamDecoder()
    found = [m for i in range(len(STREAM)) for m in decoder.feed(STREAM[i : i + 1])]
    assert found == EXPECTED
    assert not decoder.waiting


def test_a_damaged_message_is_skipped() -> None:
    size = len(encode_message(HEADERS, b'{"n":0}'))
    damaged = bytearray(STREAM)
    damaged[size - 6] ^= 0xFF
    assert EventStreamDecoder().feed(bytes(damaged)) == EXPECTED[1:]


def test_a_length_that_cannot_be_trusted_ends_decoding() -> None:
    decoder = EventStreamDecoder()
    assert decoder.feed(encode_message({}, b"a") + b"HTTP/1.1 500 Internal Server Error") == [Message({}, b"a")]
    assert decoder.broken
    assert decoder.feed(STREAM) == []


def test_headers_of_other_types_are_passed_over() -> None:
    import struct
    import zlib

    head = b"\x01a\x00" + b"\x01b\x04\0\0\0\1" + b"\x01c\x06\0\2xy" + b"\x01d\x08" + bytes(8) + b"\x01e\x07\0\1z"
    prelude = struct.pack(">II", 12 + len(head) + 4, len(head))
    message = prelude + zlib.crc32(prelude).to_bytes(4) + head
    message += zlib.crc32(message).to_bytes(4)
    assert EventStreamDecoder().feed(message) == [Message({"e": "z"}, b"")]


@given(data=st.binary(max_size=200), at=st.integers(0, len(STREAM)))
def test_noise_never_raises(data: bytes, at: int) -> None:
    decoder = EventStreamDecoder()
    decoder.feed(STREAM[:at] + data)
    decoder.feed(STREAM[at:])
