"""The common frame of every stream parser: bytes -> events -> a reply, with bounded memory and little work.

Most events of a stream carry a few characters of text. They are kept as bytes and read only when somebody needs the
text: until the preview is full, or all of it when the provider reported no usage and the tokens must be estimated.
Events that hold facts (usage, model, finish reason, errors) are recognised by a cheap test on their bytes.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Self

from heliproxy.exchange import Reply
from heliproxy.formats.errors import fill_error
from heliproxy.formats.output import Output
from heliproxy.formats.reading import Json, load_object
from heliproxy.formats.sse import Event, LineSplitter, Splitter, SseSplitter

if TYPE_CHECKING:
    from collections.abc import Callable

PENDING_LIMIT = 1024 * 1024
"""Bytes of unread events kept; beyond that they are read into text, of which `Output` keeps a bounded amount."""
ROW = 8
"""Events that are looked at together."""
WHOLE_LIMIT = 16 * 1024 * 1024
"""Bytes of a body kept that turns out to be no stream."""


class StreamState:
    """What has been learnt from a stream so far. A format overrides `has_facts`, `facts` and `content`."""

    tells_of_many = False
    """`has_facts` may be asked of several events at once, one behind the other: False is then true of each of them."""

    def __init__(self) -> None:
        self.found = Reply(complete=False)
        self.output = Output()
        self.events = 0
        self._pending: list[bytes | Json] = []
        self._pending_size = 0

    def has_facts(self, data: bytes) -> bool:
        """Whether this event holds more than text."""
        raise NotImplementedError

    def facts(self, event: Json) -> None:
        """Read everything but text."""
        raise NotImplementedError

    def content(self, event: Json) -> None:
        """Read the text into `output`."""
        raise NotImplementedError

    def usage_known(self) -> bool:
        """Whether the text is not needed for an estimate."""
        usage = self.found.usage
        return usage is not None and usage.input_tokens is not None and usage.output_tokens is not None

    def finish(self, reply: Reply) -> None:
        """Last touches on a reply; state stays as it is."""

    def take_all(self, events: list[Event]) -> None:
        """Take events in the order they came."""
        for start in range(0, len(events), ROW):
            row = events[start : start + ROW]
            if not (self.tells_of_many and self._take_texts(row)):
                for name, data in row:
                    self.take(name, data)

    def _take_texts(self, row: list[Event]) -> bool:
        """Take events if none holds more than text, as of most rows: to look at them all costs what it does at one."""
        texts = [data for name, data in row if name != "error"]
        joined = b"\n".join(texts)
        if not self.events or len(texts) < len(row) or b"[DONE]" in joined or self.has_facts(joined):
            return False
        self.events += len(texts)
        self._pending += texts
        self._grow(len(joined))
        return True

    def take(self, name: str, data: bytes) -> None:
        """Take one event."""
        self.events += 1
        if data.startswith(b"[DONE]"):
            self.found.complete = True
            return
        if name == "error":
            event = load_object(data)
            fill_error(self.found, event or data.decode("utf-8", "replace"), "error")
            self.found.complete = True
            return
        if self.events == 1 or self.has_facts(data):
            event = load_object(data)
            if not event:
                return
            self.facts(event)
            self._pending.append(event)
        else:
            self._pending.append(data)
        self._grow(len(data))

    def _grow(self, size: int) -> None:
        self._pending_size += size
        if self._pending_size > PENDING_LIMIT:
            self._read_text(everything=True)
            self.output.compact()

    def _read_text(self, everything: bool) -> None:
        pending, self._pending = self._pending, []
        self._pending_size = 0
        for index, item in enumerate(pending):
            if not everything and self.output.preview_full:
                self._pending = pending[index:]
                return
            event = item if isinstance(item, dict) else load_object(item)
            if event:
                self.content(event)

    def snapshot(self) -> Self:
        """A copy that can go on alone. Subclasses replace their own values and never change them in place."""
        twin = copy.copy(self)
        twin.found = copy.copy(self.found)
        twin.output = self.output.snapshot()
        twin._pending = list(self._pending)
        return twin

    def reply(self) -> Reply:
        reply = copy.copy(self.found)
        self._read_text(everything=not (reply.complete and self.usage_known()))
        self.output.write_to(reply)
        self.finish(reply)
        return reply


class EventParser:
    """A StreamParser made of a splitter and a state."""

    def __init__(self, splitter: Splitter, state: StreamState) -> None:
        self._splitter = splitter
        self._state = state

    def feed(self, data: bytes) -> None:
        self._state.take_all(self._splitter.feed(data))

    def result(self) -> Reply:
        state = self._state
        tail = self._splitter.tail()
        if tail:
            # The rest may still be completed by a later feed, so it is read into a copy.
            state = state.snapshot()
            for name, event in tail:
                state.take(name, event)
        return state.reply()


class WholeBody:
    """A response that came as one JSON value after all: kept, and read at the end."""

    def __init__(self, parse: Callable[[bytes], Reply]) -> None:
        self._parse = parse
        self._body = bytearray()
        self._cut = False

    def feed(self, data: bytes) -> None:
        room = WHOLE_LIMIT - len(self._body)
        self._cut = self._cut or len(data) > room
        self._body += data[:room]

    def result(self) -> Reply:
        body = bytes(self._body)
        reply = self._parse(body)
        if self._cut or not is_json(body):
            reply.complete = False
        return reply


def is_json(body: bytes) -> bool:
    """Whether a JSON value seems to be all there: it ends as it began."""
    stripped = body.strip()
    return stripped[:1] + stripped[-1:] in (b"{}", b"[]")


class SniffingParser:
    """Chooses the parser by the first byte: some put errors, or whole replies, where a stream was due."""

    def __init__(self, choose: Callable[[bytes], Any]) -> None:
        self._choose = choose
        self._head = b""
        self._parser: Any = None

    def feed(self, data: bytes) -> None:
        if self._parser is None:
            self._head += data
            start = self._head.lstrip(b" \t\r\n\xef\xbb\xbf")[:1]
            if not start:
                self._head = self._head[:16]
                return
            self._parser = self._choose(start)
            data, self._head = self._head, b""
        self._parser.feed(data)

    def result(self) -> Reply:
        if self._parser is None:
            return Reply(complete=False)
        reply: Reply = self._parser.result()
        return reply


def sse_parser(state: StreamState) -> EventParser:
    return EventParser(SseSplitter(), state)


def line_parser(state: StreamState) -> EventParser:
    return EventParser(LineSplitter(), state)
