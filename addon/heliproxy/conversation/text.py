"""A conversation as plain text, for terminals and mitmproxy; and data made harmless to print."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from heliproxy.conversation.values import Part, Turn

# C0 and C1 controls except tab and newline, DEL, and the marks that reorder what is around them.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """The text with control characters and bidirectional overrides shown instead of obeyed."""
    return _UNSEEN.sub(_shown, text.replace("\r\n", "\n"))


def _shown(match: re.Match[str]) -> str:
    char = match.group()
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    return f"<{unicodedata.name(char, f'U+{code:04X}')}>"


def as_text(turns: Iterable[Turn], limit: int = 20_000) -> str:
    """Turns as indented plain text; each part is cut at `limit` characters, and says so."""
    blocks: list[str] = []
    for turn in turns:
        title = turn.role + (f" ({turn.name})" if turn.name else "")
        lines = [visible(title)]
        for part in turn.parts:
            lines += ["  " + line for line in part_text(part, limit).split("\n")]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def part_text(part: Part, limit: int = 20_000) -> str:
    """One part as plain text."""
    text = (
        part.text if len(part.text) <= limit else f"{part.text[:limit]}\n[{len(part.text) - limit:,} characters more]"
    )
    text = visible(text)
    name = visible(part.name)
    label = visible(f" [{part.id}]") if part.id else ""
    if part.kind == "text":
        return text
    if part.kind == "tool_call":
        return f"-> {name}({text}){label}"
    if part.kind == "tool_result":
        return f"<- {name}{label} {text}".replace("  ", " ", 1)
    if part.kind in ("image", "audio", "file"):
        return " ".join(filter(None, (f"[{part.kind}]", name, visible(part.media), _source(part), text)))
    return f"[{part.kind}] {text}"


def _source(part: Part) -> str:
    if part.source.startswith("data:"):
        return f"({len(part.source) * 3 // 4:,} bytes)"
    return visible(part.source[:500])
