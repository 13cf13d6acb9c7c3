"""What was said in one call: any format's bodies, whole or streamed, as a list of turns for people to read.

For the pages, `heliproxy show` and the content view of mitmweb. Reads by the shape of the JSON, not by the name of
the format: a vendor's own variant of a format is still readable. Takes anything and raises nothing.
"""

from __future__ import annotations

from heliproxy.conversation.request import read_request
from heliproxy.conversation.response import read_response
from heliproxy.conversation.text import as_text, visible
from heliproxy.conversation.values import Conversation, Difference, Part, Tool, Turn, difference

__all__ = [
    "Conversation",
    "Difference",
    "Part",
    "Tool",
    "Turn",
    "as_text",
    "conversation",
    "difference",
    "read_request",
    "read_response",
    "visible",
]


def conversation(
    request: bytes | None, response: bytes | None, request_type: str | None = None, response_type: str | None = None
) -> Conversation:
    """Read both decoded bodies of one call; the types are content types."""
    asked = read_request(request or b"", request_type or "")
    answers = read_response(response or b"", response_type or "")
    return Conversation(asked.turns, answers, asked.settings, asked.tools)
