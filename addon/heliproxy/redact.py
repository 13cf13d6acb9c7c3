"""Secrets inside JSON bodies: some clients log their whole configuration, keys included."""

from __future__ import annotations

import re
from typing import Any

REDACTED = "[redacted]"
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
    if len(name) > 40:
        return False
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
    return any(ending in plain for ending in _ENDINGS)


_FIELD = re.compile(
    rb'("([\w.-]{0,34}(?:key|keyid|token|auth|authorization|secret|password|credentials|cookie))"\s*:\s*)'
    rb'"(?:[^"\\]|\\.)+"',
    re.IGNORECASE | re.DOTALL,
)


def redact_body(raw: bytes) -> bytes:
    """A JSON text in which every text under the name of a key is `[redacted]`, and all else as it was.

    For bodies as they were sent (an MCP server's `authorization_token` in a request), which need not be valid JSON.
    """
    return _FIELD.sub(_field, raw) if _names_a_key(raw) else raw


_END_OF_NAME = re.compile(rb'"\s*:')
_LONGEST_ENDING = max(map(len, _ENDINGS))


def _names_a_key(raw: bytes) -> bool:
    """Whether some name in this JSON text ends like that of a key: a prompt is long, and has few names."""
    if raw.count(b'"') * 200 > len(raw):
        lower = raw.lower()
        return any(ending in lower for ending in _ENDINGS)
    ends = (found.start() + 1 for found in _END_OF_NAME.finditer(raw))
    return any(raw[max(0, end - _LONGEST_ENDING) : end].lower().endswith(_ENDINGS) for end in ends)


def _field(found: re.Match[bytes]) -> bytes:
    if not is_secret_name(found[2].decode("latin-1")):
        return found[0]
    return found[1] + b'"' + REDACTED.encode() + b'"'


def redact(value: Any, depth: int = 0) -> Any:
    """A copy of a JSON value in which every text under the name of a key is `[redacted]`.

    Only texts: a JSON schema may well describe a property called `api_key`. Nesting beyond `MAX_DEPTH` is cut.
    """
    if isinstance(value, dict):
        if depth > MAX_DEPTH:
            return {}
        return {
            name: REDACTED if _is_text(inner) and is_secret_name(name) else redact(inner, depth + 1)
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [redact(inner, depth + 1) for inner in value] if depth <= MAX_DEPTH else []
    return value


def _is_text(value: Any) -> bool:
    """A text, or several: some clients give header values as lists."""
    return bool(value) and (isinstance(value, str) or (isinstance(value, list) and all(type(v) is str for v in value)))
