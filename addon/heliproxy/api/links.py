"""Links that need no other right than to be known: signed with the install's secret."""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import quote

BODY_PATH = "/v1/signed-body"
DATASET_BODY_PATH = "/v1/signed-body/dataset"


def signature(secret: bytes, path: str, thing: str) -> str:
    """What nobody can make without the secret."""
    return hmac.new(secret, f"{path}:{thing}".encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:40]


def signed_link(origin: str, secret: bytes, path: str, thing: str) -> str:
    """A link to `thing` below `origin` (scheme and authority)."""
    return f"{origin}{path}?id={quote(thing, safe='')}&signature={signature(secret, path, thing)}"


def is_signed(secret: bytes, path: str, thing: str, given: str) -> bool:
    return hmac.compare_digest(signature(secret, path, thing).encode(), given.encode("utf-8", "replace"))
