"""What the process that takes logs has promised to write, in memory that outlives it.

A ring of records in a memory file that two processes map: the one beside the proxy adds each log before it answers
`ok`, and lets go of it once it is committed. When that process is killed, the proxy finds here what is left. Nothing
of it is ever on disk.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

SIZE = 64 << 20
"""Bytes of logs that may wait; memory is taken as they come and given back when none is left."""
KEEP = 4 << 20
"""Past this use, an empty ring gives its memory back."""
_HEAD = struct.Struct("<QQQ")
_LENGTH = struct.Struct("<I")
_SKIP = 0xFFFFFFFF
"""In place of a length: the next record stands at the beginning of the ring."""
_PAGE = mmap.PAGESIZE


def is_possible() -> bool:
    """Whether this system has what it takes (Linux)."""
    return hasattr(os, "memfd_create") and hasattr(mmap, "MADV_REMOVE")


def new_file(size: int = SIZE) -> int:
    """A file descriptor of a new, empty ring. Raises OSError."""
    file = os.memfd_create("heliproxy-logs")
    os.ftruncate(file, _PAGE + size)
    return file


class Ring:
    """One process's view of a ring. Positions only grow; where a record stands is its position modulo the size.

    One process adds and lets go, another may look on. A process that is killed leaves whole records: the head, by
    which others find them, is changed last.
    """

    def __init__(self, file: int) -> None:
        size = os.fstat(file).st_size
        self._map = mmap.mmap(file, size)
        self._size = size - _PAGE
        self._top = 0

    @property
    def _head(self) -> tuple[int, int, int]:
        """(position of the oldest record, position behind the newest, batches let go of)."""
        return _HEAD.unpack_from(self._map)

    @property
    def empty(self) -> bool:
        done, added, _ = self._head
        return done == added

    @property
    def used(self) -> int:
        """Bytes that the records kept take."""
        done, added, _ = self._head
        return added - done

    @property
    def batches(self) -> int:
        """How often records were let go of."""
        return self._head[2]

    def add(self, record: bytes) -> int | None:
        """Keep a record; returns the position behind it, or None when there is no room."""
        done, added, batches = self._head
        length = _LENGTH.size + len(record)
        at = added % self._size
        skip = self._size - at if at + length > self._size else 0
        if added + skip + length - done > self._size:
            return None
        if skip:
            if skip >= _LENGTH.size:
                _LENGTH.pack_into(self._map, _PAGE + at, _SKIP)
            added += skip
            at = 0
        start = _PAGE + at
        self._map[start + _LENGTH.size : start + length] = record
        _LENGTH.pack_into(self._map, start, len(record))
        added += length
        self._top = max(self._top, at + length)
        _HEAD.pack_into(self._map, 0, done, added, batches)
        return added

    def let_go(self, position: int) -> None:
        """Forget all records before a position, which `add` gave."""
        _, added, batches = self._head
        if position < added:
            _HEAD.pack_into(self._map, 0, position, added, batches + 1)
            return
        # An empty ring starts anew, so that one that is hardly used takes hardly any memory.
        _HEAD.pack_into(self._map, 0, 0, 0, batches + 1)
        if self._top > KEEP:
            self._map.madvise(mmap.MADV_REMOVE, _PAGE, self._size)
        self._top = 0

    def records(self) -> Iterator[bytes]:
        """All records kept, the oldest first."""
        position, added, _ = self._head
        while position < added:
            at = position % self._size
            left = self._size - at
            length = _LENGTH.unpack_from(self._map, _PAGE + at)[0] if left >= _LENGTH.size else _SKIP
            if length == _SKIP:
                position += left
                continue
            start = _PAGE + at + _LENGTH.size
            yield self._map[start : start + length]
            position += _LENGTH.size + length

    def close(self) -> None:
        self._map.close()
