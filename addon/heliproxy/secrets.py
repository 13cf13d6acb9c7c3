"""Keeps secrets out of everything that is stored: what is kept is an allow-list, keys become fingerprints."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import secrets as random_source
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, unquote

from heliproxy.header_names import lower_name
from heliproxy.policies.cache import is_credential

CREDENTIAL_HEADERS = ("authorization", "x-api-key", "api-key", "x-goog-api-key")

_SECRET_PARAMETERS = frozenset(
    "key apikey accesstoken token auth sig signature code secret password subscriptionkey authorization bearer "  # noqa: SIM905
    "clientsecret refreshtoken idtoken sessiontoken jwt pass passwd pwd credential credentials accesskey secretkey "
    "awsaccesskeyid xapikey xgoogapikey heliconeauth heliconeapikey xamzsignature xamzcredential xamzsecuritytoken "
    "xgoogsignature xgoogcredential".split()
)
_PATH_SECRET = re.compile(
    r"(?i)/(?:(?:sk|pk)-helicone[^/?#]*"
    r"|(?:sk|pk|rk|ek|gsk|csk|xai|pplx|hf|nvapi|r8|fw|tgp)[-_](?=[\w-]{0,99}[0-9])[\w-]{16,}|AIza[\w-]{30,})"
)
_SHAPES = re.compile(
    r"(?i)\b(?:(?:sk|pk|rk|ek|gsk|csk|xai|pplx|hf|nvapi|r8|fw|tgp)[-_](?=[\w-]{0,99}[0-9])[\w-]{16,}|AIza[\w-]{30,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}|ya29\.[\w.-]{20,}|(?<!-)eyJ[\w-]{10,}+\.[\w-]{10,}+\.[\w-]*)"
)
_BEARER = re.compile(r"(?i)\b(bearer|basic|aws4-hmac-sha256)\s+[^\s\"',;]+")
_USERINFO = re.compile(r"(?<=://)[^/@\s\"'?#]*@")
_PARAMETER = re.compile(r"([?&;])([\w%.-]{1,60})=([^&;#\s\"'<>]*)")
_HEADER = re.compile(r"(?i)^([\w-]*(?:auth(?:orization)?|api[-_]?key|token|cookie|secret|password)\s*[:=]\s*)\S.*$")
_SCHEME = re.compile(r"(?i)^(?:bearer|basic|token)\s+")
_SUBPROTOCOL = re.compile(r"openai-insecure-api-key\.([^\s,]+)")
_SIGNED = re.compile(r"(?:Credential|Signature)=([^\s,/]+)")
_PLAIN = re.compile(r"[\w.~-]*", re.ASCII)
SHORTEST = 8
"""A shorter value is no key worth the name, and stands in many a text by chance."""
MOST = 1000
"""Keys of one request that are looked for; who sends more of them wants to keep us busy."""
_REMEMBERED = 4096
"""Bytes of headers and path up to which the keys in them are remembered."""
REDACTED = "[redacted]"

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
    plain, mark, query = path.partition("?")
    plain = _PATH_SECRET.sub("/" + REDACTED, plain)
    if "://" in plain:  # what an importer could not take apart
        plain = _USERINFO.sub(REDACTED + "@", plain)
    return plain + _PARAMETER.sub(_parameter, mark + query) if mark else plain


def without_keys(path: str) -> str:
    """The path and query without the parameters that hold keys, for a host that they are not meant for."""
    plain, mark, query = path.partition("?")
    kept = [pair for pair in query.split("&") if not _parameter_is_secret(pair.partition("=")[0])]
    return plain + (mark + "&".join(kept) if kept else "")


def redact_text(text: str) -> str:
    """An error message, an address or an argument, without what looks like a key in it."""
    if "://" in text:
        text = _USERINFO.sub(REDACTED + "@", text)
    if "=" in text:
        text = _PARAMETER.sub(_parameter, text)
    return _SHAPES.sub(REDACTED, _BEARER.sub(rf"\1 {REDACTED}", text))


def redact_argument(text: str) -> str:
    """As `redact_text`, for an argument of a command, which may be a whole header or a variable."""
    return _HEADER.sub(rf"\1{REDACTED}", redact_text(text))


def _parameter(found: re.Match[str]) -> str:
    return f"{found[1]}{found[2]}={REDACTED}" if _parameter_is_secret(found[2]) else found[0]


def carried_secrets(fields: Iterable[tuple[bytes, bytes]], path: str) -> tuple[str, ...]:
    """Every key that a request carries, in its headers and its URL: what must not turn up in an echo of it."""
    carrying = tuple([pair for pair in fields if b"://" in pair[1] or _may_carry(lower_name(pair[0]))])
    size = len(path) + sum([len(value) for _, value in carrying])
    return _known_secrets(carrying, path) if size <= _REMEMBERED else _secrets_in(carrying, path)


def _secrets_in(fields: Sequence[tuple[bytes, bytes]], path: str) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for raw_name, raw_value in fields:
        name, value = lower_name(raw_name), raw_value.decode("utf-8", "surrogateescape")
        if name == "sec-websocket-protocol":
            found |= dict.fromkeys(_SUBPROTOCOL.findall(value))
        elif name == "cookie":
            found |= dict.fromkeys(part.partition("=")[2].strip() for part in value.split(";"))
        elif is_credential(name):
            found |= {value: None}
            found |= dict.fromkeys(_SCHEME.sub("", part.strip()) for part in value.split(","))
            if value[:5].lower() in ("aws4-", "basic"):
                found |= dict.fromkeys(_inside(value))
        elif "://" in value:
            found |= dict.fromkeys(_secrets_of_url(value))
    found |= dict.fromkeys(key[0][1:] for key in _PATH_SECRET.finditer(path.partition("?")[0]))
    if "?" in path or "@" in path:
        found |= dict.fromkeys(_secrets_of_url(path))
    keys = [value for value in found if len(value) >= SHORTEST]
    # One with a space is a scheme and a key, which is there by itself too.
    odd = [value for value in keys if " " not in value and not _PLAIN.fullmatch(value)]
    if odd:
        keys += [spelled for value in odd for spelled in _spellings(value)]
    return tuple(sorted(keys, key=len, reverse=True))[:MOST]


# Most programs send the same keys to the same path with every call.
_known_secrets = lru_cache(maxsize=256)(_secrets_in)


@lru_cache(maxsize=1024)
def _may_carry(name: str) -> bool:
    return name in ("sec-websocket-protocol", "cookie") or is_credential(name)


def _inside(value: str) -> Iterator[str]:
    """What a credential's header holds besides the text of its own: the key id and signature of AWS, a password."""
    if value[:5].lower() == "aws4-":
        yield from _SIGNED.findall(value)
        return
    try:
        plain = base64.b64decode(value[5:].strip(), validate=True).decode()
    except ValueError:
        return
    yield plain
    yield plain.partition(":")[2]


def _spellings(key: str) -> Iterator[str]:
    """A key that JSON or a URL would write differently, as they do."""
    escaped = json.dumps(key)[1:-1]
    for spelled in dict.fromkeys((escaped, escaped.replace("/", "\\/"), quote(key, safe="", errors="replace"))):
        if spelled != key:
            yield spelled


def _secrets_of_url(url: str) -> Iterator[str]:
    for found in _USERINFO.finditer(url):
        user, _, password = found[0][:-1].partition(":")
        yield from (password, unquote(password)) if password else (user, unquote(user))
    for _, name, value in _PARAMETER.findall(url):
        if _parameter_is_secret(name):
            yield from (value, unquote(value))


def _parameter_is_secret(name: str) -> bool:
    return unquote(name).lower().replace("-", "").replace("_", "").replace(".", "") in _SECRET_PARAMETERS


def is_hidden(text: str, data: bytes, secrets: Sequence[str]) -> bool:
    """Whether a text says one of these keys more often than the bytes it was read from show.

    It came in pieces, event by event, or in escapes, which `scrub_bytes` does not see and a page puts together again.
    """
    return any(map(text.__contains__, secrets)) and sum(map(text.count, secrets)) > sum(
        data.count(secret.encode("utf-8", "surrogateescape")) for secret in secrets
    )


def scrub(text: str, secrets: Iterable[str]) -> str:
    """The text without any of these keys."""
    for secret in secrets:
        if secret in text:
            text = text.replace(secret, REDACTED)
    return text


def scrub_bytes(data: bytes, secrets: Iterable[str]) -> bytes:
    """As `scrub`, for a body."""
    for secret in secrets:
        raw = secret.encode("utf-8", "surrogateescape")
        if raw in data:
            data = data.replace(raw, REDACTED.encode())
    return data


def stored_headers(
    fields: Iterable[tuple[bytes, bytes]], allowed: frozenset[str], secrets: Iterable[str] = ()
) -> dict[str, str]:
    """The headers worth keeping, names in lower case; everything not on the allow-list is left out, and these keys."""
    kept: dict[str, str] = {}
    for raw_name, raw_value in fields:
        name = lower_name(raw_name)
        if name in allowed or name.startswith(_STORED_PREFIXES):
            value = raw_value[:_MAX_HEADER].decode("utf-8", "replace")
            # One of Helicone's switches holds no text, or a key that was meant for another header.
            odd = "://" in value or (name.startswith("helicone-") and not name.startswith("helicone-property-"))
            kept[name] = scrub(redact_text(value) if odd else value, secrets)
    return kept


def credential(headers: Mapping[str, str], path: str) -> str | None:
    """The provider key a request carries: in its headers, or as `?key=` in its URL."""
    for name in CREDENTIAL_HEADERS:
        if value := headers.get(name):
            return value.removeprefix("Bearer ").strip()
    if found := re.search(r"(?i)[?&](?:key|api[-_]?key|access[-_]?token)=([^&#]+)", path):
        return found.group(1)
    if found := _SUBPROTOCOL.search(headers.get("sec-websocket-protocol", "")):
        return found.group(1)
    return None


@lru_cache(maxsize=256)
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
