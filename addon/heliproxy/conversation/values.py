"""Turns and their parts: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

KINDS = ("text", "thinking", "tool_call", "tool_result", "image", "audio", "file", "refusal", "error", "data")


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a turn.

    A `tool_call` has its arguments in `text` (JSON as it was sent), a `tool_result` what came back. Media have `media`
    (content type) and `source`: a `data:` URL, the URL or the file id they were given by, or "".
    """

    kind: str
    """One of `KINDS`."""
    text: str = ""
    name: str = ""
    """Of a tool or a file."""
    id: str = ""
    """What ties a tool's result to its call."""
    media: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one party said in one go."""

    role: str
    """system, developer, user, assistant, tool, error, or whatever the client sent."""
    parts: tuple[Part, ...]
    name: str = ""

    @property
    def text(self) -> str:
        """Its text parts, joined."""
        return "\n".join(part.text for part in self.parts if part.kind == "text")


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool the model was offered."""

    name: str
    description: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """One call: what was asked (history included), what was answered (one turn a choice), and with which settings."""

    turns: tuple[Turn, ...] = ()
    answers: tuple[Turn, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    """The request's other top-level fields, as compact JSON or plain text."""
    tools: tuple[Tool, ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """How a request differs from the one before it in the same session."""

    shared: int
    """How many turns at the beginning are the same."""
    removed: tuple[Turn, ...] = ()
    """Turns of the earlier request that are no longer sent."""
    added: tuple[Turn, ...] = ()
    settings: tuple[tuple[str, str, str], ...] = ()
    """Settings that changed: (name, before, now), "" where absent."""
    tools_added: tuple[str, ...] = ()
    tools_removed: tuple[str, ...] = ()


def difference(before: Conversation, now: Conversation) -> Difference:
    """Compare two requests of one session; the answers are not compared."""
    shared = 0
    for old, new in zip(before.turns, now.turns, strict=False):
        if old != new:
            break
        shared += 1
    names = sorted({*before.settings, *now.settings})
    changed = [(name, before.settings.get(name, ""), now.settings.get(name, "")) for name in names]
    old_tools = {tool.name for tool in before.tools}
    new_tools = {tool.name for tool in now.tools}
    return Difference(
        shared=shared,
        removed=before.turns[shared:],
        added=now.turns[shared:],
        settings=tuple(item for item in changed if item[1] != item[2]),
        tools_added=tuple(sorted(new_tools - old_tools)),
        tools_removed=tuple(sorted(old_tools - new_tools)),
    )
