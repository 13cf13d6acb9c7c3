"""The response cache: its key, what may be stored, which entry answers (helicone-proxy.md section 4).

The key is stricter than the hosted service's: every credential and every header that changes an answer's meaning
is in it, so that one key never sees what another one was answered. `policy_store.CacheStore` keeps the entries.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from heliproxy.directives import CacheDirectives

MAX_ENTRY_BYTES = 8 << 20
NO_REFERENCE = "00000000-0000-0000-0000-000000000000"
"""`cache_reference_id` of a row that was no hit, where Helicone's API wants one."""

MEANING_HEADERS = frozenset(
    {
        "accept",
        "accept-encoding",  # entries are the bytes as sent: a gzip body must not reach a client that cannot read it
        "anthropic-beta",
        "anthropic-version",
        "azureml-model-deployment",
        "chatgpt-account-id",
        "content-type",
        "openai-beta",
        "openai-organization",
        "openai-project",
        "x-amzn-bedrock-guardrailidentifier",
        "x-amzn-bedrock-guardrailversion",
        "x-goog-user-project",
        "x-portkey-config",
        "x-portkey-provider",
    }
)
_CREDENTIAL = re.compile(
    r"(?:^|[-_])(?:authorization|cookie|api-?key|key|key[-_]id|token|secret|auth|jwt|signature|credentials?|password)$"
)
_NO_CREDENTIAL = frozenset({"idempotency-key", "x-idempotency-key"})

# Never replayed: hop-by-hop fields (RFC 9110 section 7.6.1), cookies, lengths that the shell recomputes.
_NOT_REPLAYED = frozenset(
    {
        "connection",
        "content-length",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-connection",
        "set-cookie",
        "set-cookie2",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One stored answer."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    """The bytes sent to the client, still in their content-encoding."""
    latency_ms: float
    created_at: float
    """Unix seconds."""
    request_id: str
    """The request that was answered by the provider: `cache_reference_id` of every hit."""
    cost_usd: float | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)
    """JSON values the row of a hit is made from: tokens saved, model, ..."""

    @property
    def size(self) -> int:
        """Bytes this entry occupies, near enough for a bound."""
        return len(self.body) + sum(len(n) + len(v) for n, v in self.headers) + 512


@lru_cache(maxsize=1024)
def is_credential(name: str) -> bool:
    """Whether a lower-case header name carries a credential (`xi-api-key`, `x-auth-token`, ...)."""
    return bool(_CREDENTIAL.search(name)) and name not in _NO_CREDENTIAL


def cache_key(
    secret: bytes,
    method: str,
    host: str,
    path: str,
    body: bytes,
    headers: Iterable[tuple[str, str]],
    directives: CacheDirectives,
    auth_value: str | None = None,
) -> bytes:
    """The 32 bytes all entries of one bucket are stored under.

    `secret` is the install's; `host` the real upstream as `host` or `host:port`; `path` includes the query (and
    with it `?key=`); `body` is decoded and as sent upstream; `headers` are the client's, in any case;
    `auth_value` is `Directives.auth_value`. Whether the request reads, saves or both plays no part.
    """
    kept = []
    cookies = []
    identified = False
    for name, value in headers:
        lower = name.lower()
        if lower.startswith("helicone-"):
            continue  # helicone-auth comes as auth_value, the seed and the bucket as directives
        if lower in MEANING_HEADERS:
            kept.append((lower, _without_space(value) if lower.startswith("accept") else value))
        elif lower == "cookie":
            cookies.append((lower, value))
        elif is_credential(lower):
            kept.append((lower, value))
            identified = True
    if not identified:
        # Beside a key, cookies are the provider's network's own (Cloudflare's change from call to call).
        kept += cookies
    kept.sort()
    parts: list[str | bytes] = [
        "1",
        method.upper(),
        host.lower(),
        path,
        canonical_body(body, directives.ignore_keys),
        directives.seed or "",
        str(directives.bucket),
        directives.control or "",
        auth_value or "",
    ]
    for name, value in kept:
        parts += (name, value)
    digest = hashlib.blake2b(key=secret[:64], digest_size=32, person=b"heliproxy-cache")
    for part in parts:
        raw = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "big"))
        digest.update(raw)
    return digest.digest()


def _without_space(value: str) -> str:
    return value.replace(" ", "").lower()


def canonical_body(body: bytes, ignored: Sequence[str] = ()) -> bytes:
    """The body for the key: JSON without white space and without ignored top-level keys, order kept; else raw."""
    if not body:
        return b""
    try:
        value = json.loads(body, parse_constant=_refuse, parse_float=_number)
        if ignored and isinstance(value, dict):
            for name in ignored:
                value.pop(name, None)
        return b"json:" + json.dumps(value, separators=(",", ":")).encode("ascii")
    except (ValueError, RecursionError):
        return b"raw:" + body


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _number(text: str) -> float | int | str:
    """JavaScript knows one kind of number: 1.0 and 1 are the same; what a float cannot hold stays text."""
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError("number out of range")
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def storable(status: int, complete: bool, size: int, directives: CacheDirectives) -> bool:
    """Whether an answer is saved: wanted, exactly 200, sent to its end, with a life, and not too big."""
    return (
        directives.save
        and directives.bucket >= 1
        and directives.ttl_s > 0
        and status == 200
        and complete
        and size <= MAX_ENTRY_BYTES
    )


def replayed_headers(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """The response headers worth storing: no cookies, nothing hop-by-hop, none of ours (they are new on a hit)."""
    pairs = tuple(headers)
    named = {
        token.strip().lower() for name, value in pairs if name.lower() == "connection" for token in value.split(",")
    }
    return tuple(
        (name, value)
        for name, value in pairs
        if (lower := name.lower()) not in _NOT_REPLAYED
        and lower not in named
        and not lower.startswith(("helicone-", "heliproxy-", "x-helicone-"))
    )


def pick(entries: Sequence[CacheEntry | None], choose: Callable[[int], int]) -> tuple[int, CacheEntry] | None:
    """The entry that answers, with its index: uniform among a full bucket, None while any place is empty.

    `choose(n)` gives a uniform integer in [0, n) (`random.randrange`).
    """
    if not entries or any(entry is None for entry in entries):
        return None
    index = choose(len(entries)) if len(entries) > 1 else 0
    entry = entries[index]
    return (index, entry) if entry else None


def hit_headers(entry: CacheEntry, index: int) -> tuple[tuple[str, str], ...]:
    """What a hit says about itself (section 3.1); the latency is the original's in whole milliseconds."""
    latency = round(entry.latency_ms) if entry.latency_ms > 0 else 0
    return (
        ("Helicone-Cache", "HIT"),
        ("Helicone-Cache-Bucket-Idx", str(index)),
        ("Helicone-Cache-Latency", str(latency)),
    )


def miss_headers(directives: CacheDirectives) -> tuple[tuple[str, str], ...]:
    """`Helicone-Cache: MISS` when a read was wanted; nothing when the cache is off or only saves."""
    return (("Helicone-Cache", "MISS"),) if directives.read else ()
