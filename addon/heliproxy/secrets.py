"""Keeps secrets out of everything that is stored: what is kept is an allow-list, keys become fingerprints."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets as random_source
from collections.abc import Iterable, Mapping
from pathlib import Path

CREDENTIAL_HEADERS = ("authorization", "x-api-key", "api-key", "x-goog-api-key")

_QUERY_SECRET = re.compile(
    r"(?i)([?&](?:key|api[-_]?key|access[-_]?token|token|auth|sig|signature|code|secret|password|subscription-key"
    r"|x-amz-(?:signature|credential|security-token))=)[^&#]*"
)
_PATH_SECRET = re.compile(r"(?i)/(?:sk|pk)-helicone[^/?#]*")

STORED_REQUEST_HEADERS = frozenset(
    {
        "accept",
        "accept-encoding",
        "anthropic-beta",
        "anthropic-version",
        "content-encoding",
        "content-type",
        "openai-beta",
        "user-agent",
        "x-app",
        "x-claude-code-session-id",
        "x-client-request-id",
        "x-request-id",
        "x-session-id",
        "session-id",
        "thread-id",
        "originator",
        "http-referer",
        "x-title",
        "helicone-request-id",
        "helicone-user-id",
        "helicone-session-id",
        "helicone-session-path",
        "helicone-session-name",
        "helicone-prompt-id",
        "helicone-model-override",
        "helicone-cache-enabled",
        "helicone-cache-save",
        "helicone-cache-read",
        "helicone-cache-seed",
        "helicone-cache-bucket-max-size",
        "helicone-ratelimit-policy",
        "helicone-retry-enabled",
        "helicone-omit-request",
        "helicone-omit-response",
    }
)
STORED_RESPONSE_HEADERS = frozenset(
    {
        "content-encoding",
        "content-type",
        "date",
        "helicone-cache",
        "helicone-id",
        "openai-model",
        "openai-processing-ms",
        "openai-version",
        "request-id",
        "retry-after",
        "retry-after-ms",
        "server",
        "x-request-id",
        "x-should-retry",
        "x-amzn-requestid",
        "x-ms-region",
        "cf-ray",
    }
)
_STORED_PREFIXES = (
    "x-stainless-",
    "x-ratelimit-",
    "ratelimit-",
    "anthropic-ratelimit-",
    "x-amzn-bedrock-",
    "azureml-model-",
    "helicone-property-",
    "helicone-ratelimit-",
)
_MAX_HEADER = 512


def redact_path(path: str) -> str:
    """The path and query with every key in it replaced by `[redacted]`."""
    if "helicone" in path:
        path = _PATH_SECRET.sub("/[redacted]", path)
    return _QUERY_SECRET.sub(r"\1[redacted]", path) if "?" in path else path


def stored_headers(fields: Iterable[tuple[bytes, bytes]], allowed: frozenset[str]) -> dict[str, str]:
    """The headers worth keeping, names in lower case; everything not on the allow-list is left out."""
    kept: dict[str, str] = {}
    for raw_name, raw_value in fields:
        name = raw_name.decode("latin-1").lower()
        if name in allowed or name.startswith(_STORED_PREFIXES):
            kept[name] = raw_value[:_MAX_HEADER].decode("utf-8", "replace")
    return kept


def credential(headers: Mapping[str, str], path: str) -> str | None:
    """The provider key a request carries: in its headers, or as `?key=` in its URL."""
    for name in CREDENTIAL_HEADERS:
        if value := headers.get(name):
            return value.removeprefix("Bearer ").strip()
    if found := re.search(r"(?i)[?&]key=([^&#]+)", path):
        return found.group(1)
    return None


def fingerprint(secret: bytes, value: str) -> str:
    """A short name for a key, the same for the same key on this install, from which the key cannot be found.

    HMAC-SHA256 with the install's own secret, the first 12 hex digits.
    """
    return hmac.new(secret, value.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:12]


def install_secret(home: Path) -> bytes:
    """The 32 random bytes of this install, made on first use in `home/secret` (mode 0600).

    Raises:
        OSError: the file can neither be read nor made.
    """
    path = home / "secret"
    try:
        found = path.read_bytes()
        if len(found) == 32:
            return found
        path.unlink()
    except FileNotFoundError:
        pass
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".secret.{os.getpid()}.{random_source.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(random_source.token_bytes(32))
    try:
        # A link, not a rename: of two processes that start together one must win, and both must read the winner's.
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    return path.read_bytes()
