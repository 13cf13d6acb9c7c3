"""What headers may change in a streamed response: hide the usage chunk we asked for, join very short chunks.

`Helicone-Stream-Usage` and `Helicone-Stream-Force-Format` (helicone-proxy.md section 2.1). Off by default: an
observer does not alter what it observes. Never on requests whose body is signed (SigV4); that is the caller's.
"""

from __future__ import annotations

import json
import re
from typing import Any

_EVENT_END = re.compile(rb"\r\n\r\n|\n\n|\r\r|\n\r\n|\r\n\n")
_MAX_HELD = 1 << 20
SHORT_CHUNK = 50


def ask_for_usage(body: bytes) -> bytes | None:
    """An OpenAI chat request body with `stream_options.include_usage`, or None: nothing is to be changed.

    Changed only when it streams and does not ask for usage by itself. The other bytes stay as they are whenever
    the body has no `stream_options`.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or value.get("stream") is not True:
        return None
    options = value.get("stream_options")
    if isinstance(options, dict) and options.get("include_usage") is True:
        return None
    if "stream_options" not in value:
        start = body.find(b"{") + 1
        return body[:start] + b'"stream_options":{"include_usage":true},' + body[start:]
    value["stream_options"] = (
        {**options, "include_usage": True} if isinstance(options, dict) else {"include_usage": True}
    )
    return json.dumps(value, separators=(",", ":")).encode("ascii")


class UsageHider:
    """Takes the usage-only chunk out of an SSE stream for a client that did not ask for it; all else passes bit by bit.

    Feed decoded bytes. A whole event is held back at most, never a finished one.
    """

    def __init__(self) -> None:
        self._held = b""
        self._searched = 0
        self._passing = False

    def feed(self, data: bytes) -> bytes:
        """Bytes that may go to the client now."""
        self._held += data
        out = []
        while found := _EVENT_END.search(self._held, max(0, self._searched - 3)):
            event, self._held = self._held[: found.end()], self._held[found.end() :]
            self._searched = 0
            if self._passing or not is_usage_event(event):
                out.append(event)
            self._passing = False
        self._searched = len(self._held)
        if self._searched > _MAX_HELD:
            # No usage chunk is this long: let it flow until its end is seen.
            out.append(self._held)
            self._held, self._searched, self._passing = b"", 0, True
        return b"".join(out)

    def end(self) -> bytes:
        """The rest, when the stream is over."""
        rest, self._held = self._held, b""
        return b"" if not self._passing and is_usage_event(rest) else rest


def is_usage_event(event: bytes) -> bool:
    """Whether an SSE event is OpenAI's extra chunk: no choices, but usage."""
    if b'"usage"' not in event:
        return False
    lines = event.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    data = b"\n".join(line[5:].strip() for line in lines if line.startswith(b"data:"))
    try:
        value: Any = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("choices") == [] and isinstance(value.get("usage"), dict)


class ChunkJoiner:
    """Joins chunks shorter than 50 bytes with the next ones. Unlike the hosted service it never loses any."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Bytes that may go to the client now: nothing while what is held is short."""
        self._held += data
        if len(self._held) < SHORT_CHUNK:
            return b""
        out, self._held = self._held, b""
        return out

    def end(self) -> bytes:
        """The rest, however short."""
        out, self._held = self._held, b""
        return out
