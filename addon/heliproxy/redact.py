"""Secrets inside JSON bodies: some clients log their whole configuration, keys included."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

REDACTED = "[redacted]"
_REDACTED = REDACTED.encode()
MAX_DEPTH = 200

_SECRET_NAMES = frozenset(
    "apikey authorization proxyauthorization xapikey xgoogapikey heliconeauth heliconeapikey openaiapikey "  # noqa: SIM905
    "anthropicapikey accesstoken accesskey secretkey secretaccesskey awsaccesskeyid awssecretaccesskey awssessiontoken "
    "azureadtoken clientsecret refreshtoken idtoken bearertoken authtoken sessiontoken password privatekey "
    "vertexcredentials googleapplicationcredentials authorizationtoken personalaccesstoken subscriptionkey "
    "ocpapimsubscriptionkey xamzsecuritytoken xauthtoken cookie setcookie".split()
)


def is_secret_name(name: str) -> bool:
    """Whether a field of this name holds a key: `api_key`, `apiKey`, `X-Api-Key`, `Authorization`, ..."""
    return len(name) <= 40 and _is_secret(name)


@lru_cache(maxsize=4096)
def _is_secret(name: str) -> bool:
    return name.lower().replace("_", "").replace("-", "").replace(".", "") in _SECRET_NAMES


# How the names above end, as they stand in JSON without their separators.
_ENDINGS = (
    b'key"',
    b'keyid"',
    b'token"',
    b'auth"',
    b'authorization"',
    b'secret"',
    b'password"',
    b'credentials"',
    b'cookie"',
)


def may_hold_secrets(raw: bytes) -> bool:
    """Whether `redact` may find something in this JSON text; False is certain, and much faster to know.

    Escapes could spell a name in another way, and what is nested too deeply is to be cut.
    """
    if b"\\u" in raw or raw.count(b"{") + raw.count(b"[") > MAX_DEPTH:
        return True
    plain = raw.lower().translate(None, b"_-.")
    return any(map(plain.__contains__, _ENDINGS))


_NAME = rb"[\w.-]{0,34}(?:key|keyid|token|auth|authorization|secret|password|credentials|cookie)"
_FIELD = re.compile(
    rb'("(' + _NAME + rb')(\\++)?"\s*+:\s*+)'
    # JSON inside a text: up to the next quote. Else a text, which may be cut off, or a list of texts.
    rb'(?(3)\\++"[^"]*+"?|(?:"(?:[^"\\]++|\\.)++"?|\[\s*+"[^\[\]{}]*+\]))',
    re.IGNORECASE | re.DOTALL,
)
_EPHEMERAL = re.compile(
    rb'("client_?secret"\s*+:\s*+\{[^{}]{0,500}?"value"\s*+:\s*+)"(?:[^"\\]++|\\.)++"', re.IGNORECASE | re.DOTALL
)
_FORM_FIELD = re.compile(
    rb'(name="?(' + _NAME + rb')"?[^\r\n]*+(?:\r?\n[^\r\n]++)*+\r?\n\r?\n)(?:(?!\r?\n--).)++', re.IGNORECASE | re.DOTALL
)
_PAIR = re.compile(rb"(^|[&\r\n])([\w.%-]{1,60})=([^&\r\n]+)")


def redact_body(raw: bytes) -> bytes:
    """A JSON text in which every text under the name of a key is `[redacted]`, and all else as it was.

    For bodies as they were sent (an MCP server's `authorization_token` in a request), which need not be valid JSON, and
    may hold JSON in texts of theirs (a tool's arguments).
    """
    if _names_a_key(raw):
        raw = _FIELD.sub(_field, raw)
        if b'"value"' in raw:
            raw = _EPHEMERAL.sub(rb'\1"' + _REDACTED + rb'"', raw)
    return raw


def redact_form(raw: bytes, content_type: str) -> bytes:
    """As `redact_body`, for the fields of a form."""
    if content_type.startswith("multipart/form-data"):
        return _FORM_FIELD.sub(_form_field, raw)
    if content_type.startswith("application/x-www-form-urlencoded"):
        return _PAIR.sub(_pair, raw)
    return raw


_NESTED_ENDINGS = tuple(ending[:-1] + b"\\" for ending in _ENDINGS)
_END_OF_NAME = re.compile(rb'"\s*:')
_LONGEST_ENDING = max(map(len, _ENDINGS))
_NESTED_ENDING = _LONGEST_ENDING + 127
"""JSON in JSON in JSON: each level more than doubles the backslashes, and this is the seventh."""
_DENSE = 50
"""Bytes for each quote, below which it is quicker to search all text for each ending than to look at each name."""


def _names_a_key(raw: bytes) -> bool:
    """Whether some name in this JSON text ends like that of a key: a prompt is long, and has few names."""
    nested = b"\\" in raw and b'\\":' in raw
    if raw.count(b'"') * _DENSE > len(raw):
        lower = raw.lower()
        return any(map(lower.__contains__, _ENDINGS)) or (nested and any(map(lower.__contains__, _NESTED_ENDINGS)))
    for found in _END_OF_NAME.finditer(raw):
        name = raw[max(0, found.start() + 1 - _LONGEST_ENDING) : found.start() + 1].lower()
        if name.endswith(_ENDINGS):
            return True
        if nested and name.endswith(b'\\"'):
            before = raw[max(0, found.start() - _NESTED_ENDING) : found.start()].rstrip(b"\\").lower()
            if (before + b'"').endswith(_ENDINGS):
                return True
    return False


def _field(found: re.Match[bytes]) -> bytes:
    if not is_secret_name(found[2].decode("latin-1")):
        return found[0]
    quote = (found[3] or b"") + b'"'
    return found[1] + quote + _REDACTED + quote


def _form_field(found: re.Match[bytes]) -> bytes:
    return found[1] + _REDACTED if is_secret_name(found[2].decode("latin-1")) else found[0]


def _pair(found: re.Match[bytes]) -> bytes:
    secret = is_secret_name(unquote(found[2].decode("latin-1")))
    return found[1] + found[2] + b"=" + _REDACTED if secret else found[0]


def redact(value: Any, depth: int = 0) -> Any:
    """A copy of a JSON value in which every text under the name of a key is `[redacted]`.

    Only texts: a JSON schema may well describe a property called `api_key`. Nesting beyond `MAX_DEPTH` is cut.
    """
    if isinstance(value, dict):
        if depth > MAX_DEPTH:
            return {}
        return {
            name: _redacted(inner, depth) if is_secret_name(name) else redact(inner, depth + 1)
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [redact(inner, depth + 1) for inner in value] if depth <= MAX_DEPTH else []
    return value


def _redacted(value: Any, depth: int) -> Any:
    """What stands under the name of a key, without it; `{"client_secret": {"value": ...}}` is OpenAI's way."""
    if _is_text(value):
        return REDACTED
    if isinstance(value, dict) and _is_text(value.get("value")):
        value = value | {"value": REDACTED}
    return redact(value, depth + 1)


def _is_text(value: Any) -> bool:
    """A text, or several: some clients give header values as lists."""
    return bool(value) and (isinstance(value, str) or (isinstance(value, list) and all(type(v) is str for v in value)))
