"""Find the error in what a provider sent, whatever its shape."""

from __future__ import annotations

from typing import Any

from heliproxy.exchange import Reply
from heliproxy.formats.reading import MAX_MESSAGE, Json, as_object, clean, count, load, objects, string

STATUS_OF_TYPE = {
    "overloaded_error": 529,
    "overloaded": 529,
    "api_error": 500,
    "server_error": 500,
    "internal_server_error": 500,
    "internal_error": 500,
    "timeout_error": 504,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "rate_limit_exceeded_error": 429,
    "insufficient_quota": 429,
    "too_many_requests": 429,
    "billing_error": 402,
    "authentication_error": 401,
    "invalid_api_key": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "model_not_found": 404,
    "request_too_large": 413,
    "invalid_request_error": 400,
    "invalid_prompt": 400,
    "validation_error": 422,
    # Bedrock's event stream exceptions, in the words of its API reference.
    "internalserverexception": 500,
    "modelstreamerrorexception": 424,
    "modeltimeoutexception": 408,
    "serviceunavailableexception": 503,
    "throttlingexception": 429,
    "validationexception": 400,
    "accessdeniedexception": 403,
    # google.rpc.Code names
    "resource_exhausted": 429,
    "unavailable": 503,
    "deadline_exceeded": 504,
    "internal": 500,
    "invalid_argument": 400,
    "unauthenticated": 401,
    "permission_denied": 403,
    "not_found": 404,
}
"""The HTTP status that an error inside a 200 stands for."""


_MESSAGE_NAMES = (
    *("message", "Message", "error_message", "msg", "error_description", "detail", "title", "error"),
    "helicone-message",  # of a Helicone, or of another heliproxy, behind us
)


def fill_error(reply: Reply, found: Any, default_type: str | None = None) -> None:
    """Write into `reply` the error that the JSON value `found` describes; nothing when it describes none."""
    if isinstance(found, list):
        found = next(iter(objects(found)), {})
    if isinstance(found, str):
        found = {"message": found}
    if not isinstance(found, dict):
        return
    outer: Json = found
    inner = found.get("error") or found.get("errors")
    if isinstance(inner, list):
        inner = next(iter(objects(inner)), None) or next((item for item in inner if isinstance(item, str)), None)
    if isinstance(inner, str):
        inner = {"message": inner}
    error = inner if isinstance(inner, dict) else outer
    reply.error = _message(error) or _message(outer) or reply.error
    reply.error_type = _type(error) or _type(outer) or default_type or reply.error_type
    reply.error_status = _status(error, reply.error_type) or _status(outer, None) or reply.error_status
    if reply.error is None:
        reply.error = reply.error_type


def _message(error: Json) -> str | None:
    for name in _MESSAGE_NAMES:
        value = error.get(name)
        if isinstance(value, str) and value:
            return clean(value[:MAX_MESSAGE])
        if name in ("detail", "message"):
            nested = next(iter(objects(value)), as_object(value))
            text = nested.get("msg") or nested.get("message")
            if isinstance(text, str) and text:
                return clean(text[:MAX_MESSAGE])
    return None


def _type(error: Json) -> str | None:
    """The provider's own word for the kind of error: a type, Google's status, or a code."""
    kind = error.get("type")
    if kind == "error":  # Anthropic's and Responses' envelope, not a kind of error
        kind = None
    for value in (kind, error.get("error_type"), error.get("__type"), error.get("status"), error.get("code")):
        if isinstance(value, str) and value:
            return clean(value[:200])
    code = count(error.get("code"))
    return str(code) if code is not None else None


def _status(error: Json, kind: str | None) -> int | None:
    for value in (error.get("status_code"), error.get("status"), error.get("code")):
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) == 3:
            value = int(value)
        found = count(value)
        if found is not None and 400 <= found <= 599:
            return found
    for word in (kind, string(error.get("code"))):
        if word is not None and word.lower() in STATUS_OF_TYPE:
            return STATUS_OF_TYPE[word.lower()]
    return None


def parse_error_body(body: bytes) -> Reply:
    """Read the body of a 4xx or 5xx: JSON of any provider's shape, or plain text."""
    reply = Reply()
    found = load(body)
    if isinstance(found, dict | list | str) and found:
        fill_error(reply, found)
    elif found is None:
        text = body[: MAX_MESSAGE * 4].decode("utf-8", "replace").strip()
        reply.error = clean(text[:MAX_MESSAGE]) if text not in ("", "null") else None
    # The HTTP status is known here; the body's idea of it says nothing new.
    reply.error_status = None
    return reply
