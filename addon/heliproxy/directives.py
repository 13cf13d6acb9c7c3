"""`Helicone-*` request headers read once into one frozen value (helicone-proxy.md section 2).

Where that contract marks a quirk of the hosted service, the documented intent is followed (its section 9). Reading
never raises: what Helicone answers with an error is in `Directives.error`, what had no effect is in `warnings`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from heliproxy.policies import sigv4
from heliproxy.policies.answers import Answer, DirectiveError, exception_answer, one_line, text_answer

if TYPE_CHECKING:
    from heliproxy.policies.fallback import Fallback
    from heliproxy.policies.sigv4 import Credentials

PREFIX = "helicone-"
PROPERTY_PREFIX = "helicone-property-"
MAX_PROPERTIES = 50
MAX_PROPERTY_KEY = 64
MAX_PROPERTY_VALUE = 1024
DEFAULT_TTL_S = 604_800
MAX_TTL_S = 31_536_000
MAX_BUCKET = 20
TOKEN_LIMIT_HANDLERS = ("truncate", "middle-out", "fallback")
PROMPT_MODES = ("production", "testing", "deactivated")

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[1-5][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)
_S_MAXAGE = re.compile(r"(?:^|[\s,;])s-maxage=([0-9]+)")
_MAX_AGE = re.compile(r"(?:^|[\s,;])max-age=([0-9]+)")
_JS_INT = re.compile(r"\s*([+-]?)(?:0[xX]([0-9a-fA-F]+)|([0-9]+))")
_JS_FLOAT = re.compile(r"\s*[+-]?(?:Infinity|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)")
_SIGNED_HEADERS = re.compile(r"SignedHeaders=([^,\s]+)", re.IGNORECASE)
_HELICONE_KEY = re.compile(r"(?:Bearer\s+)?([sp]k-helicone[\w-]*)", re.IGNORECASE | re.ASCII)

# Read although they are not ours by name; those that carry keys only when a Helicone key is inside.
_STRIPE = "x-stripe-customer-id"
_MOCK = "__helicone-mock-response"
_CALLBACK = "upstash-callback"
_OTHERS = frozenset({"authorization", "x-api-key", "cache-control", _STRIPE, _MOCK, _CALLBACK, *sigv4.KEY_HEADERS})
_KEYS = frozenset({"authorization", "x-api-key"})


@dataclass(frozen=True, slots=True)
class CacheDirectives:
    """What was asked of the cache."""

    read: bool = False
    save: bool = False
    enabled: bool = False
    """`Helicone-Cache-Enabled` was exactly `true`: the flag that is logged."""
    ttl_s: int = DEFAULT_TTL_S
    """Seconds an entry saved by this request lives; 0 means it is never stored."""
    bucket: int = 1
    """Entries kept per key; below 1 nothing is ever read or saved."""
    seed: str | None = None
    ignore_keys: tuple[str, ...] = ()
    control: str | None = None
    """`Helicone-Cache-Control`: logged only, it does not set the TTL."""

    @property
    def wanted(self) -> bool:
        """Whether the cache is looked at, or filled, at all."""
        return (self.read or self.save) and self.bucket >= 1


@dataclass(frozen=True, slots=True)
class RetryDirectives:
    """Retries wanted; `num` counts the calls after the first one."""

    enabled: bool = False
    num: int = 5
    factor: float = 2.0
    min_ms: int = 1000
    max_ms: int = 10_000


@dataclass(frozen=True, slots=True)
class PromptDirectives:
    """The legacy prompt headers; `mode` decides whether JSX-like tags are taken out of the body."""

    id: str | None = None
    mode: str = "deactivated"
    version: str | None = None
    name: str | None = None
    format: str | None = None


@dataclass(frozen=True, slots=True)
class Directives:
    """Everything one request asked for through its headers."""

    present: bool = False
    """Whether any Helicone header (or default) was there at all."""
    auth_value: str | None = field(default=None, repr=False)
    """The Helicone key as sent, without `Bearer `. For `namespace` and fingerprints; never stored or logged."""
    auth_in_authorization: bool = False
    """The Helicone key came inside `Authorization`: send `provider_authorization(value)` upstream instead."""
    request_id: str | None = None
    """The client's id, lower case is not forced; None: make a UUIDv4."""
    user_id: str | None = None
    """`Helicone-User-Id` only; the body's `user` is the fallback."""
    properties: Mapping[str, str] = field(default_factory=lambda: _NO_PROPERTIES)
    """The user's own properties (lower-case keys), then the automatic ones (canonical case)."""
    session_id: str | None = None
    session_path: str | None = None
    session_name: str | None = None
    prompt: PromptDirectives = PromptDirectives()
    cache: CacheDirectives = CacheDirectives()
    rate_limit_policy: str | None = None
    """Raw; `policies.ratelimit.parse_policy` reads it."""
    retry: RetryDirectives = RetryDirectives()
    fallbacks: tuple[Fallback, ...] = field(default=(), repr=False)
    """Parsed on every host, used only on the gateway."""
    target_url: str | None = None
    openai_api_base: str | None = None
    model_override: str | None = None
    omit_request: bool = False
    omit_response: bool = False
    stream_usage: bool = False
    stream_force_format: bool = False
    token_limit_handler: str | None = None
    moderations: bool = False
    security: bool = False
    security_advanced: bool = False
    increase_timeout: bool = False
    webhook: bool = False
    gateway_body_mapping: str = "OPENAI"
    experiment_id: str | None = None
    node_id: str | None = None
    stripe_customer_id: str | None = None
    upstash_callback: str | None = None
    """Where QStash is to post the answer to: at qstash.helicone.ai it names the upstream (section 1)."""
    aws: Credentials | None = field(default=None, repr=False)
    """Keys to sign a call to Bedrock with (section 1)."""
    mock_response: str | None = None
    """`__helicone-mock-response`, raw; `policies.answers.mock_answer` makes the response."""
    error: Answer | None = None
    """Answer this and do nothing else."""
    warnings: tuple[str, ...] = ()
    """What had no effect, or not the effect the client may expect, in sentences."""


_NO_PROPERTIES: Mapping[str, str] = MappingProxyType({})
_NO_CACHE, _NO_PROMPT, _NO_RETRY = CacheDirectives(), PromptDirectives(), RetryDirectives()
NONE = Directives()
"""What a request without any Helicone header asks for."""

Pairs = Iterable[tuple[str, str]]


def is_helicone_header(name: str) -> bool:
    """Whether a header is for us and is removed before the upstream call."""
    return name[:9].lower() == PREFIX


def parse(headers: Pairs, defaults: Pairs = ()) -> Directives:
    """Read request headers, in the order sent; `defaults` stand in for headers the request does not have.

    Repeated headers are joined with `, ` as Fetch does. Values may hold surrogate escapes. Never raises.
    """
    own: dict[str, str] = {}
    helicone = False
    for name, value in headers:
        lower = name.lower()
        if lower.startswith(PREFIX):
            helicone = True
        elif lower not in _OTHERS or (lower in _KEYS and "k-helicone" not in value):
            continue
        own[lower] = f"{own[lower]}, {value}" if lower in own else value
    defaults = defaults if isinstance(defaults, tuple) else tuple(defaults)
    if not helicone and not own.keys() - {"cache-control"}:
        if not defaults:
            return NONE
        if not own:
            return _from_defaults(defaults)
    merged = {name.lower(): value for name, value in defaults} | own if defaults else own
    return _Reader({name: clean(value) for name, value in merged.items()}).read()


@lru_cache(maxsize=16)
def _from_defaults(defaults: tuple[tuple[str, str], ...]) -> Directives:
    return _Reader({name.lower(): clean(value) for name, value in defaults}).read()


def clean(value: str) -> str:
    """A header value as valid, trimmed text: surrogate escapes read as UTF-8, else Latin-1; no CR, LF or NUL."""
    if not value.isascii():
        try:
            value = value.encode("utf-8").decode("utf-8")
        except UnicodeEncodeError:
            raw = _unescape(value)
            try:
                value = raw.decode("utf-8")
            except UnicodeDecodeError:
                value = raw.decode("latin-1")
    return one_line(value).strip()


def _unescape(value: str) -> bytes:
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return value.encode("utf-8", "replace")


def namespace(auth_value: str | None) -> str:
    """The name under which one Helicone key's buckets live; empty without a key. One-way: safe to store."""
    if not auth_value:
        return ""
    return hashlib.blake2b(auth_value.encode("utf-8", "replace"), digest_size=12, person=b"helicone-auth").hexdigest()


def signed_headers(authorization: str | None) -> frozenset[str]:
    """Lower-case names of the headers an AWS SigV4 signature covers; removing or changing one breaks the call."""
    if not authorization or not authorization.startswith("AWS4-"):
        return frozenset()
    found = _SIGNED_HEADERS.search(authorization)
    return frozenset(found[1].lower().split(";")) if found else frozenset()


def provider_authorization(authorization: str) -> str | None:
    """`Authorization` without the Helicone key in it, or None when nothing else was there.

    `Bearer sk-x, Bearer sk-helicone-y` gives `Bearer sk-x`. Sending our key to a provider would leak it.
    """
    parts = [p.strip() for p in authorization.split(",")]
    kept = [p for p in parts if p and not _HELICONE_KEY.fullmatch(p)]
    return ", ".join(kept) or None


def helicone_key(authorization: str) -> str | None:
    """The Helicone key inside an `Authorization` value, when there is one."""
    for part in authorization.split(","):
        found = _HELICONE_KEY.fullmatch(part.strip())
        if found:
            return found[1]
    return None


def js_int(text: str) -> int | None:
    """What JavaScript's parseInt reads: a leading integer, `0x` allowed; None for NaN. Capped at +-10**15."""
    found = _JS_INT.match(text)
    if not found:
        return None
    sign, hexadecimal, digits = found.groups()
    if hexadecimal is not None:
        value = int(hexadecimal[:16], 16)
    else:
        significant = digits.lstrip("0")
        value = int(significant or "0") if len(significant) <= 16 else 10**15
    value = min(value, 10**15)
    return -value if sign == "-" else value


def js_float(text: str) -> float | None:
    """What JavaScript's parseFloat reads, None for NaN and for infinities."""
    found = _JS_FLOAT.match(text)
    if not found or "Infinity" in found[0]:
        return None
    value = float(found[0])
    return value if abs(value) != float("inf") else None


def cache_ttl_s(cache_control: str) -> int:
    """Seconds to keep an entry: `s-maxage` before `max-age`, at most 365 days, 7 days when neither is there."""
    found = _S_MAXAGE.search(cache_control) or _MAX_AGE.search(cache_control)
    if not found:
        return DEFAULT_TTL_S
    digits = found[1].lstrip("0") or "0"
    return min(int(digits), MAX_TTL_S) if len(digits) <= 9 else MAX_TTL_S


def ignore_keys(value: str) -> tuple[str, ...]:
    """Names in `Helicone-Cache-Ignore-Keys`: bare, quoted or a JSON array, separated by commas; empties dropped."""
    text = value.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    names = (name.strip().strip("\"'").strip() for name in text.split(","))
    return tuple(dict.fromkeys(name for name in names if name))


class _Reader:
    """Takes the headers apart, collecting warnings and the first error on the way."""

    def __init__(self, headers: dict[str, str]) -> None:
        self.headers = headers
        self.warnings: list[str] = []
        self.error: Answer | None = None

    def read(self) -> Directives:
        # In this order, which is that of the warnings.
        auth_value, in_authorization = self.auth()
        cache, prompt = self.cache(), self.prompt()
        return Directives(
            present=True,
            auth_value=auth_value,
            auth_in_authorization=in_authorization,
            request_id=self.request_id(),
            properties=self.properties(cache),
            prompt=prompt,
            cache=cache,
            retry=self.retry(),
            fallbacks=self.fallbacks(),
            **self.texts(),
            **self.switches(),
            aws=sigv4.credentials_in(self.headers),
            error=self.error,
            warnings=self.all_warnings(),
        )

    def texts(self) -> dict[str, Any]:
        """Fields that are a header's value, of those that were sent: they are few."""
        return {_TEXTS[name]: value for name, value in self.headers.items() if value and name in _TEXTS}

    def switches(self) -> dict[str, Any]:
        """Fields that turn something on or choose it, which few requests do."""
        if _SWITCHES.isdisjoint(self.headers):
            return {}
        return {
            "omit_request": self.exact("helicone-omit-request"),
            "omit_response": self.exact("helicone-omit-response"),
            "stream_usage": self.exact("helicone-stream-usage"),
            "stream_force_format": self.exact("helicone-stream-force-format"),
            "token_limit_handler": self.token_limit_handler(),
            "moderations": self.exact("helicone-moderations-enabled"),
            "security": self.anycase("helicone-llm-security-enabled")
            or self.anycase("helicone-prompt-security-enabled"),
            "security_advanced": self.anycase("helicone-llm-security-advanced"),
            "increase_timeout": self.exact("helicone-increase-timeout"),
            "webhook": self.exact("helicone-webhook-enabled"),
            "gateway_body_mapping": self.gateway_body_mapping(),
        }

    def text(self, name: str) -> str | None:
        return self.headers.get(name) or None

    def fail(self, answer: Answer) -> None:
        self.error = self.error or answer

    def exact(self, name: str) -> bool:
        return self.flag(name, self.headers.get(name))

    def anycase(self, name: str) -> bool:
        value = self.headers.get(name)
        return self.flag(name, value.lower() if value else value)

    def flag(self, name: str, value: str | None) -> bool:
        if not value or value in ("true", "false", "False", "FALSE"):
            return value == "true"
        self.warnings.append(f"{title(name)}: {shown(self.headers[name])} is not 'true', so it is off")
        return False

    def auth(self) -> tuple[str | None, bool]:
        sent = self.text("helicone-auth")
        authorization = self.headers.get("authorization", "")
        inside = helicone_key(authorization) if authorization else None
        if sent and inside:
            self.fail(exception_answer("Cannot have both helicone authorization headers"))
        value = sent or inside or helicone_key(self.headers.get("x-api-key", "")) or self.text("helicone-jwt")
        if value and value[:7].lower() == "bearer ":
            value = value[7:].strip()
        return value or None, inside is not None

    def request_id(self) -> str | None:
        value = self.text("helicone-request-id")
        if value is None or _UUID.fullmatch(value):
            return value
        self.warnings.append(f"Helicone-Request-Id: {shown(value)} is not a UUID of version 1 to 5; a new id was made")
        return None

    def cache(self) -> CacheDirectives:
        headers = self.headers
        if _CACHE.isdisjoint(headers):
            return _NO_CACHE
        size = headers.get("helicone-cache-bucket-max-size")
        bucket = 1 if size is None else js_int(size) or 0
        if bucket > MAX_BUCKET:
            self.fail(text_answer(500, f"Cache bucket size cannot be greater than {MAX_BUCKET}"))
        elif bucket < 1:
            self.warnings.append(
                f"Helicone-Cache-Bucket-Max-Size: {shown(size or '')} is not a number from 1 to {MAX_BUCKET};"
                " nothing is cached"
            )
        both = self.anycase("helicone-cache-enabled")
        return CacheDirectives(
            read=self.anycase("helicone-cache-read") or both,
            save=self.anycase("helicone-cache-save") or both,
            enabled=headers.get("helicone-cache-enabled") == "true",
            ttl_s=cache_ttl_s(headers.get("cache-control", "")),
            bucket=bucket,
            seed=self.text("helicone-cache-seed"),
            ignore_keys=ignore_keys(headers.get("helicone-cache-ignore-keys", "")),
            control=self.text("helicone-cache-control"),
        )

    def retry(self) -> RetryDirectives:
        default = _NO_RETRY
        if "helicone-retry-enabled" not in self.headers:
            return default
        return RetryDirectives(
            enabled=self.anycase("helicone-retry-enabled"),
            num=max(0, self.integer("helicone-retry-num", default.num, 0)),
            factor=self.factor(default.factor),
            min_ms=self.integer("helicone-retry-min-timeout", default.min_ms, default.min_ms),
            max_ms=self.integer("helicone-retry-max-timeout", default.max_ms, default.max_ms),
        )

    def integer(self, name: str, absent: int, invalid: int) -> int:
        value = self.headers.get(name)
        if value is None:
            return absent
        number = js_int(value)
        if number is not None:
            return number
        self.warnings.append(f"{title(name)}: {shown(value)} is not a whole number; {invalid} is used")
        return invalid

    def factor(self, default: float) -> float:
        value = self.headers.get("helicone-retry-factor")
        number = default if value is None else js_float(value)
        if number is not None and number >= 0:
            return number
        self.warnings.append(f"Helicone-Retry-Factor: {shown(value or '')} is not a positive number; {default} is used")
        return default

    def fallbacks(self) -> tuple[Fallback, ...]:
        value = self.text("helicone-fallbacks")
        if value is None:
            return ()
        from heliproxy.policies.fallback import parse_fallbacks

        try:
            return parse_fallbacks(value)
        except DirectiveError as e:
            self.fail(e.answer)
            return ()

    def prompt(self) -> PromptDirectives:
        if _PROMPT.isdisjoint(self.headers):
            return _NO_PROMPT
        prompt_id = self.text("helicone-prompt-id")
        mode = self.text("helicone-prompt-mode") or ("production" if prompt_id else "deactivated")
        if mode not in PROMPT_MODES:
            self.fail(exception_answer("Invalid prompt mode"))
        get = self.text
        return PromptDirectives(
            prompt_id, mode, get("helicone-prompt-version"), get("helicone-prompt-name"), get("helicone-prompt-format")
        )

    def token_limit_handler(self) -> str | None:
        value = self.text("helicone-token-limit-exception-handler")
        if value is None or value.lower() in TOKEN_LIMIT_HANDLERS:
            return value and value.lower()
        expected = ", ".join(TOKEN_LIMIT_HANDLERS)
        self.warnings.append(f"Helicone-Token-Limit-Exception-Handler: {shown(value)} is none of {expected}; ignored")
        return None

    def gateway_body_mapping(self) -> str:
        value = self.text("helicone-gateway-body-mapping")
        return value if value in ("NO_MAPPING", "RESPONSES") else "OPENAI"

    def properties(self, cache: CacheDirectives) -> Mapping[str, str]:
        found: dict[str, str] = {}
        start = len(PROPERTY_PREFIX)
        for name, value in self.headers.items():
            if not name.startswith(PROPERTY_PREFIX) or len(name) == start:
                continue
            key = name[start:]
            if len(found) >= MAX_PROPERTIES:
                self.warnings.append(
                    f"more than {MAX_PROPERTIES} properties; the rest, from {shown(key)} on, are dropped"
                )
                break
            if len(key) > MAX_PROPERTY_KEY or len(value) > MAX_PROPERTY_VALUE:
                self.warnings.append(
                    f"property {shown(key)} was cut: a name has at most {MAX_PROPERTY_KEY} characters,"
                    f" a value {MAX_PROPERTY_VALUE}"
                )
            found[key[:MAX_PROPERTY_KEY]] = value[:MAX_PROPERTY_VALUE]
        found.update(self.automatic_properties(cache))
        return MappingProxyType(found) if found else _NO_PROPERTIES

    def automatic_properties(self, cache: CacheDirectives) -> dict[str, str]:
        """The properties Helicone adds by itself, in canonical case (section 2.1)."""
        headers = self.headers
        if _AUTOMATIC.isdisjoint(headers):
            return {}
        seed = js_int(cache.seed) if cache.seed else None
        size = headers.get("helicone-cache-bucket-max-size")
        values = {
            "Helicone-Sent-To-Posthog": "true" if headers.get("helicone-posthog-key") else None,
            "Helicone-Prompt-Id": headers.get("helicone-prompt-id"),
            "Helicone-Session-Name": headers.get("helicone-session-name"),
            "Helicone-Session-Id": headers.get("helicone-session-id"),
            "Helicone-Session-Path": headers.get("helicone-session-path"),
            "Helicone-Experiment-Id": headers.get("helicone-experiment-id"),
            "Helicone-Cache-Enabled": "true" if cache.enabled else None,
            "Helicone-Cache-Seed": None if seed is None else str(seed),
            "Helicone-Cache-Bucket-Max-Size": str(cache.bucket) if size and js_int(size) is not None else None,
            "Helicone-Cache-Control": cache.control,
            "stripe_customer_id": headers.get(_STRIPE),
        }
        return {key: value[:MAX_PROPERTY_VALUE] for key, value in values.items() if value}

    def all_warnings(self) -> tuple[str, ...]:
        for name in self.headers:
            if name.startswith(PREFIX) and name not in KNOWN and not name.startswith(PROPERTY_PREFIX):
                self.warnings.append(f"{title(name)} is not a header Helicone knows; it had no effect")
        return tuple(self.warnings)


def title(name: str) -> str:
    """A header name as documents write it: `helicone-user-id` -> `Helicone-User-Id`."""
    return "-".join(_ACRONYMS.get(part, part.capitalize()) for part in one_line(name)[:80].split("-"))


def shown(value: str) -> str:
    """A value as it is quoted in a warning: short and on one line."""
    text = one_line(value)
    return f"'{text[:60]}...'" if len(text) > 63 else f"'{text}'"


def _ours(names: str) -> frozenset[str]:
    return frozenset(PREFIX + name for name in names.split())


# By what is read from them, so that what was not sent costs nothing.
_TEXTS = {
    "helicone-user-id": "user_id",
    "helicone-session-id": "session_id",
    "helicone-session-path": "session_path",
    "helicone-session-name": "session_name",
    "helicone-ratelimit-policy": "rate_limit_policy",
    "helicone-target-url": "target_url",
    "helicone-openai-api-base": "openai_api_base",
    "helicone-model-override": "model_override",
    "helicone-experiment-id": "experiment_id",
    "helicone-node-id": "node_id",
    _STRIPE: "stripe_customer_id",
    _CALLBACK: "upstash_callback",
    _MOCK: "mock_response",
}
_SWITCHES = _ours(
    "omit-request omit-response stream-usage stream-force-format token-limit-exception-handler moderations-enabled "
    "llm-security-enabled prompt-security-enabled llm-security-advanced increase-timeout webhook-enabled "
    "gateway-body-mapping"
)
_CACHE = frozenset({"cache-control"}) | _ours(
    "cache-enabled cache-save cache-read cache-control cache-bucket-max-size cache-seed cache-ignore-keys"
)
_PROMPT = _ours("prompt-id prompt-mode prompt-version prompt-name prompt-format")
_AUTOMATIC = _CACHE | _PROMPT | _ours("posthog-key session-id session-name session-path experiment-id") | {_STRIPE}

_ACRONYMS = {"ratelimit": "RateLimit", "llm": "LLM", "openai": "OpenAI", "url": "URL"}

_NAMES = """
auth jwt org-id request-id user-id session-id session-path session-name
cache-enabled cache-save cache-read cache-control cache-bucket-max-size cache-seed cache-ignore-keys
ratelimit-policy retry-enabled retry-num retry-factor retry-min-timeout retry-max-timeout
fallbacks target-url target-provider openai-api-base model-override omit-request omit-response
prompt-id prompt-mode prompt-version prompt-name prompt-format prompt-inputs
moderations-enabled llm-security-enabled llm-security-advanced prompt-security-enabled
token-limit-exception-handler stream-usage stream-force-format increase-timeout webhook-enabled
posthog-key posthog-host lytix-key lytix-host manual-access-key node-id
experiment-id experiment-column-id experiment-row-index gateway-body-mapping
"""
KNOWN = _ours(_NAMES)
"""Every header name we read, or know and knowingly ignore."""
