"""`Helicone-Moderations-Enabled`: ask OpenAI's moderation endpoint before the model (section 7).

The call itself is the shell's; here is what to send, how to read the answer, and the refusal.
"""

from __future__ import annotations

import json
from typing import Any

from heliproxy.policies.answers import Answer, DirectiveError, Headers, json_answer, text_answer

MODERATION_URL = "https://api.openai.com/v1/moderations"


def applies(provider: str, path: str) -> bool:
    """Whether moderation and security look at this call: OpenAI's chat completions only."""
    return provider == "openai" and "chat/completions" in path


def last_user_content(body: bytes) -> Any:
    """The content of the last message when the user wrote it, else None.

    Raises DirectiveError (500 text) when the body has no readable messages.
    """
    try:
        messages = json.loads(body)["messages"]
        last = messages[-1]
        role, content = last["role"], last.get("content")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as e:
        raise DirectiveError(text_answer(500, "Failed to parse the latest message.")) from e
    return content if role == "user" and content else None


def text_of(content: Any) -> str:
    """The text in a message content: the string itself, or the text parts of a list."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = (part.get("text") for part in content if isinstance(part, dict))
    return "\n".join(text for text in texts if isinstance(text, str))


def moderation_body(content: Any) -> bytes:
    """The body of the moderation call; it goes out with the client's own headers."""
    return json.dumps({"input": content}, separators=(",", ":")).encode("ascii")


def is_flagged(status: int, body: bytes) -> bool:
    """Whether the endpoint flagged the content. An error of the endpoint lets the call pass."""
    if status != 200:
        return False
    try:
        results = json.loads(body)["results"]
        return any(result.get("flagged") is True for result in results)
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return False


def flagged_answer(request_id: str, page: str = "") -> Answer:
    """The 400 for a flagged prompt. `page`: base URL of the dashboard, for a link to the request."""
    message = "The prompt was flagged by the OpenAI moderation endpoint, so it was not sent."
    return _refusal("PROMPT_FLAGGED_FOR_MODERATION", message, request_id, page, (), "moderation")


def threat_answer(request_id: str, page: str = "", rule: str = "") -> Answer:
    """The 400 for a prompt the security check refused; the row's status is -4 and `Helicone-Status` is `failed`."""
    found = f" (rule: {rule})" if rule else ""
    message = f"The security check found a threat in the prompt{found}, so it was not sent."
    return _refusal("PROMPT_THREAT_DETECTED", message, request_id, page, (("Helicone-Status", "failed"),), "threat")


def _refusal(code: str, message: str, request_id: str, page: str, headers: Headers, reason: str) -> Answer:
    where = f"{page.rstrip('/')}/requests?requestId={request_id}" if page else f"heliproxy show {request_id}"
    details = f"See the request: {where} (id {request_id})"
    body = {"success": False, "error": {"code": code, "message": message, "details": details}}
    return json_answer(400, body, headers, reason)
