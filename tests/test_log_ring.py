"""The ring of logs that two processes share, and the messages between them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

if sys.platform != "linux":
    pytest.skip("needs memory files", allow_module_level=True)

from heliproxy import messages
from heliproxy.log_ring import Ring, new_file
from heliproxy.messages import Message

SIZE = 4096


@pytest.fixture
def file() -> Iterator[int]:
    found = new_file(SIZE)
    yield found
    os.close(found)


def test_another_view_sees_what_was_added_and_not_let_go_of(file: int) -> None:
    mine, other = Ring(file), Ring(file)
    assert (other.empty, list(other.records())) == (True, [])
    first = mine.add(b"one")
    second = mine.add(b"")
    mine.add(b"three")
    assert list(other.records()) == [b"one", b"", b"three"]
    assert first is not None
    assert second is not None
    mine.let_go(first)
    assert (list(other.records()), other.batches, other.empty) == ([b"", b"three"], 1, False)
    mine.let_go(second)
    assert list(other.records()) == [b"three"]


def test_records_go_round(file: int) -> None:
    mine, other = Ring(file), Ring(file)
    positions = [mine.add(b"x" * 900)]
    for number in range(200):
        positions.append(mine.add(bytes([number]) * 900))
        position = positions.pop(0)
        assert position is not None
        mine.let_go(position)
        assert list(other.records()) == [bytes([number]) * 900]


@pytest.mark.parametrize("length", [1, 7, 500, 1023, 1024, 1365, 2044])
def test_what_has_no_room_is_refused_and_nothing_is_overwritten(file: int, length: int) -> None:
    ring = Ring(file)
    kept: list[tuple[int, bytes]] = []
    for number in range(3000):
        record = number.to_bytes(2) + b"." * length
        position = ring.add(record)
        if position is None:
            assert ring.used + length + 6 > SIZE / 2
            ring.let_go(kept.pop(0)[0])
        else:
            kept.append((position, record))
        assert ring.used <= SIZE
    assert list(ring.records()) == [record for _, record in kept]


def test_a_record_larger_than_the_ring_is_refused(file: int) -> None:
    ring = Ring(file)
    assert ring.add(b"x" * SIZE) is None
    position = ring.add(b"x" * (SIZE - 4))
    assert position is not None
    assert ring.add(b"") is None
    ring.let_go(position)
    assert ring.empty
    assert ring.add(b"x" * (SIZE - 4)) is not None


def test_an_empty_ring_starts_anew(file: int) -> None:
    ring = Ring(file)
    assert [ring.add(b"abc") for _ in range(2)] == [7, 14]
    ring.let_go(14)
    assert ring.add(b"abc") == 7


@pytest.mark.parametrize("size", [0, 1, messages.INLINE, messages.INLINE + 1, 5_000_000])
def test_a_message_arrives_with_its_file(file: int, size: int) -> None:
    here, there = messages.pair()
    body = os.urandom(size)
    with here, there:
        assert messages.send(here, Message(b"C", body, (file,)), wait=False)
        found = messages.receive(there)
        assert found is not None
        assert (found.kind, found.body) == (b"C", body)
        (received,) = found.files
        assert os.fstat(received).st_ino == os.fstat(file).st_ino
        assert not os.get_inheritable(received)
        os.close(received)


def test_a_message_carries_plain_values() -> None:
    here, there = messages.pair()
    with here, there:
        messages.send(here, messages.packed(b"D", 1, ["a", "\udcff"], {"n": None}))
        found = messages.receive(there)
        assert found is not None
        assert found.values == (1, ["a", "\udcff"], {"n": None})


def test_nothing_waits_for_an_end_that_does_not_read() -> None:
    here, there = messages.pair()
    with here, there:
        while messages.send(here, Message(b"C", b"x" * 50_000), wait=False):
            pass
        with pytest.raises(BlockingIOError):
            messages.receive(here, wait=False)


def test_a_closed_end_is_seen() -> None:
    here, there = messages.pair()
    with here:
        there.close()
        assert messages.receive(here) is None
        with pytest.raises(OSError, match="Broken pipe"):
            messages.send(here, Message(b"E"))
