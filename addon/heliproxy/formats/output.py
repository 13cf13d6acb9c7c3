"""Collect what a model wrote: all of it for estimates, the beginning for people."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from heliproxy.formats.reading import clean

if TYPE_CHECKING:
    from heliproxy.exchange import Reply

TEXT_LIMIT = 2 * 1024 * 1024
"""Characters kept for an estimate."""
PREVIEW_LIMIT = 500
"""Characters of a preview."""
_VOICES = 64
"""Parallel outputs (n>1, several tool calls) told apart; later ones share the last."""
_NAMES = (int, str, tuple)
"""Of voices; an index that is no number counts as 0."""


class Output:
    """The visible output of one reply, in the order it came; parallel outputs are kept apart by `voice`."""

    __slots__ = ("_answer", "_answer_size", "_calls", "_size", "_texts", "tool_calls")

    def __init__(self) -> None:
        self._texts: dict[Any, list[str]] = {}
        self._answer: list[str] = []
        self._answer_size = 0
        self._calls: list[str] = []
        self._size = 0
        self.tool_calls = 0

    @property
    def preview_full(self) -> bool:
        return self._answer_size >= PREVIEW_LIMIT

    def say(self, text: Any, voice: Any = 0) -> None:
        """Text meant for the reader."""
        if isinstance(text, str) and text:
            self._keep(text, voice)
            if self._answer_size < PREVIEW_LIMIT:
                self._answer.append(text[: PREVIEW_LIMIT - self._answer_size])
                self._answer_size += len(text)

    def think(self, text: Any, voice: Any = "thought") -> None:
        """Reasoning: it was paid for, but it is not the answer."""
        if isinstance(text, str) and text:
            self._keep(text, voice)

    def call(self, name: Any, arguments: Any = None, voice: Any = None) -> None:
        """The start of a tool call, with all, some or none of its arguments (JSON text or the value itself)."""
        self.tool_calls += 1
        voice = ("call", self.tool_calls) if voice is None else voice
        self._call_text(name if isinstance(name, str) else "", voice, start=True)
        if arguments is not None:
            self.arguments(arguments, voice)

    def arguments(self, arguments: Any, voice: Any) -> None:
        """More of the arguments of the call that `voice` names."""
        if not isinstance(arguments, str):
            try:
                arguments = json.dumps(arguments, ensure_ascii=False)
            except (ValueError, TypeError, RecursionError):
                return
        self._call_text(arguments, voice, start=False)

    def _call_text(self, text: str, voice: Any, start: bool) -> None:
        self._keep(text, voice)
        if sum(map(len, self._calls)) < PREVIEW_LIMIT:
            shown = f"{' ' if self._calls else ''}{text}: " if start else text
            self._calls.append(shown[:PREVIEW_LIMIT])

    def _keep(self, text: str, voice: Any) -> None:
        room = TEXT_LIMIT - self._size
        if room <= 0 or not text:
            return
        if not isinstance(voice, _NAMES):
            voice = 0
        pieces = self._texts.get(voice)
        if pieces is None:
            if len(self._texts) >= _VOICES:
                pieces = self._texts[next(reversed(self._texts))]
            else:
                pieces = self._texts[voice] = []
        pieces.append(text[:room])
        self._size += len(text)

    def compact(self) -> None:
        """Join the pieces: half a million short strings would take ten times their text."""
        self._texts = {voice: ["".join(pieces)] for voice, pieces in self._texts.items()}

    def snapshot(self) -> Output:
        """A copy that can go on alone."""
        twin = Output()
        twin._texts = {voice: list(pieces) for voice, pieces in self._texts.items()}
        twin._answer = list(self._answer)
        twin._calls = list(self._calls)
        twin._answer_size, twin._size, twin.tool_calls = self._answer_size, self._size, self.tool_calls
        return twin

    def text(self) -> str:
        return clean("".join("".join(pieces) for pieces in self._texts.values()))

    def preview(self) -> str:
        """The beginning of the answer; of the tool calls when there is no text."""
        return clean("".join(self._answer or self._calls)[:PREVIEW_LIMIT]).strip()

    def write_to(self, reply: Reply) -> None:
        reply.text = self.text()
        reply.preview = self.preview()
        reply.tool_calls = self.tool_calls
