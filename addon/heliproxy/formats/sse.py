"""Split a byte stream into server-sent events, lines, or nothing at all; pieces may be cut anywhere."""

from __future__ import annotations

from typing import Protocol

LINE_LIMIT = 32 * 1024 * 1024
"""Bytes of one event; a longer one is skipped."""
_BOM = b"\xef\xbb\xbf"


Event = tuple[str, bytes]
"""The name of an event ("" when it has none) and its data."""


class Splitter(Protocol):
    def feed(self, data: bytes) -> list[Event]:
        """The events these bytes complete."""

    def tail(self) -> list[Event]:
        """What the stream would end with if it ended now. Changes nothing."""


class _Lines:
    """Complete lines out of pieces. LF, CRLF and CR end a line; a CR at the end of a piece may be half a CRLF."""

    __slots__ = ("_after_cr", "_limit", "_rest", "_size", "_skipping")

    def __init__(self, limit: int) -> None:
        self._rest: list[bytes] = []
        self._size = 0
        self._limit = limit
        self._skipping = False
        self._after_cr = False

    def feed(self, data: bytes) -> list[bytes]:
        if not data:
            return []
        if self._after_cr and data[:1] == b"\n":
            data = data[1:]
        self._after_cr = data[-1:] == b"\r"
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if b"\n" not in data:
            self._hold(data)
            return []
        lines = data.split(b"\n")
        rest = lines.pop()
        if self._skipping:
            lines[0] = b":"  # the end of a line that was too long: now a comment
        elif self._rest:
            self._rest.append(lines[0])
            lines[0] = b"".join(self._rest)
        self._rest = []
        self._size = 0
        self._skipping = False
        self._hold(rest)
        return lines

    def _hold(self, data: bytes) -> None:
        if not data or self._skipping:
            return
        self._rest.append(data)
        self._size += len(data)
        if self._size > self._limit:
            self._rest = []
            self._skipping = True

    @property
    def idle(self) -> bool:
        """Whether the next byte begins a line."""
        return not (self._rest or self._skipping or self._after_cr)

    def rest(self) -> bytes:
        return b"".join(self._rest)


class SseSplitter:
    """Server-sent events as the WHATWG describes them; comments, ids and retry times are dropped."""

    __slots__ = ("_data", "_limit", "_lines", "_name", "_size", "_start")

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self._lines = _Lines(limit)
        self._limit = limit
        self._data: list[bytes] = []
        self._size = 0
        self._name = ""
        self._start = True

    def feed(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        idle = self._lines.idle
        if self._start and idle and data[:1] not in (b"", _BOM[:1]):
            self._start = False
        if not (self._start or self._data or self._name) and idle and b"\r" not in data:
            # Between events, which is where most pieces begin: whole events are cut out without looking at lines.
            blocks = data.split(b"\n\n")
            data = blocks.pop()
            limit = self._limit
            for block in blocks:
                if block.startswith(b"data: ") and b"\n" not in block and len(block) <= limit:
                    events.append(("", block[6:]))
                else:
                    self._block(block, events)
        lines = self._lines.feed(data)
        if lines and self._start:
            self._start = False
            lines[0] = lines[0].removeprefix(_BOM)
        self._take(lines, events)
        return events

    def _block(self, block: bytes, events: list[Event]) -> None:
        """One event without its last two line ends."""
        name, _, data = block.partition(b"\n")
        plain = name.startswith(b"event: ") and data.startswith(b"data: ")
        if plain and b"\n" not in data and len(data) <= self._limit:
            events.append((name[7:207].strip().decode("utf-8", "replace"), data[6:]))
        else:
            self._take([*block.split(b"\n"), b""], events)

    def _take(self, lines: list[bytes], events: list[Event]) -> None:
        for line in lines:
            if line:
                self._field(line)
            elif self._data:
                events.append(self._event())
            else:
                self._name = ""
                self._size = 0

    def _field(self, line: bytes) -> None:
        if line.startswith(b"data:"):
            value = line[6:] if line[5:6] == b" " else line[5:]
            self._size += len(value)
            if self._size <= self._limit:
                self._data.append(value)
        elif line.startswith(b"event:"):
            self._name = line[6:206].strip().decode("utf-8", "replace")

    def _event(self) -> Event:
        data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
        event = self._name, data
        self._data = []
        self._size = 0
        self._name = ""
        return event

    def tail(self) -> list[Event]:
        data = list(self._data)
        name = self._name
        rest = self._lines.rest()
        if rest.startswith(b"data:") and rest[5:].strip():
            data.append(rest[5:].strip())
        # A line that was cut may be half an event: both readings are offered, the complete one first.
        whole = [(name, b"\n".join(self._data))] if self._data and len(data) > len(self._data) else []
        return whole + ([(name, b"\n".join(data))] if data else [])


class LineSplitter:
    """Newline-delimited JSON: every line is an event; an SSE `data:` prefix is tolerated."""

    __slots__ = ("_lines",)

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self._lines = _Lines(limit)

    def feed(self, data: bytes) -> list[Event]:
        return [("", line) for line in map(_bare, self._lines.feed(data)) if line]

    def tail(self) -> list[Event]:
        rest = _bare(self._lines.rest())
        return [("", rest)] if rest else []


def _bare(line: bytes) -> bytes:
    line = line.strip()
    if line.startswith(b"data:"):
        line = line[5:].strip()
    return b"" if line.startswith((b":", b"event:")) else line
