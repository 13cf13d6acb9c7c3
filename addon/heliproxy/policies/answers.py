"""Responses the proxy makes itself: refusals, parse errors, transport failures, mock answers.

Source: helicone-proxy.md sections 2.0, 3.2, 3.3. The sentences are our own where the contract only fixes keys.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

JSON_UTF8 = "application/json;charset=UTF-8"
SUPPORT = "This answer was made by heliproxy on this machine, not by the provider; its log says more."

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete response that never went upstream."""

    status: int
    headers: Headers
    body: bytes
    reason: str = ""
    """A short name for the log and the row: `rate_limited`, `directive`, `prompt_threat`, ..."""

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8", "replace")

    @property
    def sentence(self) -> str:
        """What the body says to a person: the message in its JSON, or all of a text."""
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError):
            return self.text
        return _message(found) or self.text


def _message(found: object) -> str | None:
    if not isinstance(found, dict):
        return None
    error = found.get("error")
    if isinstance(error, dict):
        return _message(error)
    for value in (found.get("message"), found.get("helicone-message"), error):
        if isinstance(value, str) and value:
            return value
    return None


class DirectiveError(ValueError):
    """A header that Helicone answers with an error; `answer` is that response."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.text)
        self.answer = answer


def text_answer(status: int, message: str, reason: str = "directive") -> Answer:
    """The plain text form of pipeline errors (section 2.0, last line)."""
    body = one_line(message).encode("utf-8", "replace")
    return Answer(status, (("content-type", "text/plain;charset=UTF-8"),), body, reason)


def json_answer(
    status: int, body: Mapping[str, object], headers: Headers = (), reason: str = "", content_type: str = JSON_UTF8
) -> Answer:
    """A JSON response; `headers` come after the content type."""
    encoded = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    return Answer(status, (("content-type", content_type), *headers), encoded, reason)


def error_body(message: str, code: str) -> dict[str, object]:
    """An error of ours where the contract fixes no body, in the shape whose message the vendors' SDKs show."""
    return {"error": {"message": message, "type": "heliproxy_error", "code": code}}


def error_answer(status: int, message: str, code: str, headers: Headers = ()) -> Answer:
    """A refusal of our own, with `code` as the reason in its row."""
    return json_answer(status, error_body(one_line(message), code), headers, code)


def exception_answer(message: str) -> Answer:
    """What Helicone answers when reading the headers raises: 500 JSON with `helicone-error: true` (section 2.0)."""
    body = {
        "helicone-message": f"Helicone ran into an error servicing your request: {message}",
        "support": SUPPORT,
        "helicone-error": "{}",
    }
    return json_answer(500, body, (("helicone-error", "true"),), "directive")


def transport_answer(error: str, kind: str) -> Answer:
    """The response when no upstream ever answered (section 3.3).

    `kind` is `lost` (the connection was refused, reset or closed), `timeout`, or anything else (unknown).
    """
    status, label = _TRANSPORT.get(kind, (500, "Unknown error"))
    body = {
        "error": label,
        "message": one_line(error),
        "helicone-message": f"Helicone could not get an answer from the upstream: {label}",
        "support": SUPPORT,
    }
    return json_answer(status, body, reason="upstream", content_type="application/json")


_TRANSPORT = {"lost": (502, "Network connection lost"), "timeout": (504, "Request timeout")}


def transport_kind(error: str) -> str:
    """Sort a transport error message into `lost`, `timeout` or `unknown`, as section 3.3 does by its text."""
    lower = error.lower()
    if "timeout" in lower or "timed out" in lower or "aborterror" in lower:
        return "timeout"
    if any(word in lower for word in _LOST):
        return "lost"
    return "unknown"


_LOST = (
    *("connect", "refused", "reset", "closed", "unreachable", "eof", "protocol error"),
    *("name or service", "nodename", "name resolution", "tls", "certificate", "cannot be resolved"),
)


def mock_answer(raw: str) -> Answer:
    """The answer to `__helicone-mock-response`: that JSON as a 200, or a 400 that names what is wrong."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as e:
        details = {
            "error": "Invalid mock response format",
            "message": "The __helicone-mock-response header must hold valid JSON.",
            "details": one_line(str(e)),
        }
        return json_answer(400, details, reason="directive", content_type="application/json")
    body = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    return Answer(200, (("content-type", "application/json"),), body, "mock")


def one_line(text: str) -> str:
    """Text that is safe to echo in a header or a log line: no control characters (CR, LF and NUL among them)."""
    if text.isprintable():
        return text
    return "".join(c for c in text if c >= " " and not "\x7f" <= c <= "\x9f" and c not in "\u2028\u2029")
