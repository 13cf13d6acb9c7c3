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
