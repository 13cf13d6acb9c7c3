"""Secrets inside JSON bodies: some clients log their whole configuration, keys included."""

from __future__ import annotations

from typing import Any

REDACTED = "[redacted]"
MAX_DEPTH = 200

_SECRET_NAMES = frozenset(
    "apikey authorization proxyauthorization xapikey xgoogapikey heliconeauth heliconeapikey openaiapikey "  # noqa: SIM905
    "anthropicapikey accesstoken accesskey secretkey secretaccesskey awsaccesskeyid awssecretaccesskey awssessiontoken "
    "azureadtoken clientsecret refreshtoken idtoken bearertoken authtoken sessiontoken password privatekey "
    "vertexcredentials googleapplicationcredentials".split()
)


def is_secret_name(name: str) -> bool:
    """Whether a field of this name holds a key: `api_key`, `apiKey`, `X-Api-Key`, `Authorization`, ..."""
    if len(name) > 40:
        return False
    return name.lower().replace("_", "").replace("-", "").replace(".", "") in _SECRET_NAMES


# How the names above end, as they stand in JSON without their separators.
_ENDINGS = (b'key"', b'keyid"', b'token"', b'auth"', b'authorization"', b'secret"', b'password"', b'credentials"')


def may_hold_secrets(raw: bytes) -> bool:
    """Whether `redact` may find something in this JSON text; False is certain, and much faster to know.

    Escapes could spell a name in another way, and what is nested too deeply is to be cut.
    """
    if b"\\u" in raw or raw.count(b"{") + raw.count(b"[") > MAX_DEPTH:
        return True
    plain = raw.lower().translate(None, b"_-.")
    return any(ending in plain for ending in _ENDINGS)


def redact(value: Any, depth: int = 0) -> Any:
    """A copy of a JSON value in which every text under the name of a key is `[redacted]`.

    Only texts: a JSON schema may well describe a property called `api_key`. Nesting beyond `MAX_DEPTH` is cut.
    """
    if isinstance(value, dict):
        if depth > MAX_DEPTH:
            return {}
        return {
            name: REDACTED if isinstance(inner, str) and inner and is_secret_name(name) else redact(inner, depth + 1)
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [redact(inner, depth + 1) for inner in value] if depth <= MAX_DEPTH else []
    return value
