"""The cache's decisions: helicone-proxy.md section 4 (issue 3's stricter key)."""

from __future__ import annotations

from typing import Any

import pytest

from heliproxy.directives import CacheDirectives
from heliproxy.policies.cache import (
    CacheEntry,
    cache_key,
    canonical_body,
    hit_headers,
    is_credential,
    miss_headers,
    pick,
    replayed_headers,
    storable,
)

SECRET = b"s" * 32
BODY = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"Hello"}]}'
ON = CacheDirectives(read=True, save=True)


def key(**changes: Any) -> bytes:
    given: dict[str, Any] = {
        "secret": SECRET,
        "method": "POST",
        "host": "api.openai.com",
        "path": "/v1/chat/completions",
        "body": BODY,
        "headers": [("Authorization", "Bearer sk-test"), ("Content-Type", "application/json")],
        "directives": ON,
        "auth_value": None,
    }
    return cache_key(**(given | changes))


def with_header(name: str, value: str) -> list[tuple[str, str]]:
    return [("Authorization", "Bearer sk-test"), ("Content-Type", "application/json"), (name, value)]


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "post"},
        {"host": "API.openai.com"},
        {"body": b'{ "model": "gpt-4o-mini",\n "messages": [{"role":"user","content":"H\\u0065llo"}] }'},
        {"directives": CacheDirectives(read=True)},
        {"directives": CacheDirectives(save=True)},
        {"directives": CacheDirectives(read=True, save=True, enabled=True, ttl_s=5)},
        {"headers": [("content-type", "application/json"), ("authorization", "Bearer sk-test")]},
        {"headers": with_header("User-Agent", "x")},
        {"headers": with_header("Idempotency-Key", "x")},
        {"headers": with_header("Helicone-User-Id", "x")},
        {"headers": with_header("Helicone-Property-App", "x")},
        {"headers": with_header("Cache-Control", "max-age=5")},
    ],
)
def test_same_key(changes: dict[str, Any]) -> None:
    assert key(**changes) == key()


@pytest.mark.parametrize(
    "changes",
    [
        {"secret": b"t" * 32},
        {"method": "PUT"},
        {"host": "api.groq.com"},
        {"path": "/v1/chat/completions?key=abc"},
        {"body": b'{"messages":[{"role":"user","content":"Hello"}],"model":"gpt-4o-mini"}'},
        {"body": BODY.replace(b"Hello", b"hello")},
        {"directives": CacheDirectives(read=True, save=True, seed="a")},
        {"directives": CacheDirectives(read=True, save=True, bucket=2)},
        {"auth_value": "sk-helicone-a"},
        {"headers": []},
        {"headers": [("Authorization", "Bearer sk-other"), ("Content-Type", "application/json")]},
        {"headers": with_header("x-api-key", "k")},
        {"headers": with_header("api-key", "k")},
        {"headers": with_header("x-goog-api-key", "k")},
        {"headers": with_header("anthropic-version", "2023-06-01")},
        {"headers": with_header("anthropic-beta", "b")},
        {"headers": with_header("openai-organization", "o")},
        {"headers": with_header("openai-project", "p")},
        {"headers": with_header("accept", "text/event-stream")},
        {"headers": with_header("accept-encoding", "gzip")},
        {"headers": [("Cookie", "session=1")]},
    ],
)
def test_other_key(changes: dict[str, Any]) -> None:
    assert key(**changes) != key()


def test_cookies_are_a_credential_only_where_there_is_no_key() -> None:
    assert key(headers=with_header("cookie", "__cf_bm=1")) == key()
    alone = [key(headers=[("Cookie", f"session={i}")]) for i in (1, 2)]
    assert alone[0] != alone[1]


def test_parts_cannot_run_into_each_other() -> None:
    assert key(host="a", path="b/c") != key(host="ab", path="/c")
    assert key(directives=CacheDirectives(seed="a"), auth_value="b") != key(directives=CacheDirectives(seed="ab"))


def test_same_credential_under_another_name_is_another_key() -> None:
    assert key(headers=[("x-api-key", "k")]) != key(headers=[("api-key", "k")])


def test_ignored_keys_are_left_out_at_the_top_only() -> None:
    ignoring = CacheDirectives(read=True, save=True, ignore_keys=("request_id",))
    one = key(directives=ignoring, body=b'{"request_id":1,"a":{"b":1}}')
    assert one == key(directives=ignoring, body=b'{"a":{"b":1},"request_id":2}')
    nested = b'{"a":{"request_id":%d}}'
    assert key(directives=ignoring, body=nested % 1) != key(directives=ignoring, body=nested % 2)


@pytest.mark.parametrize(
    ("body", "canonical"),
    [
        (b"", b""),
        (b' {"b": 1.0, "a": [1, 2]} ', b'json:{"b":1,"a":[1,2]}'),
        (b"not json", b"raw:not json"),
        (b'{"a": NaN}', b'raw:{"a": NaN}'),
        (b'{"a": 1e999}', b'raw:{"a": 1e999}'),
        (b"\xff\xfe", b"raw:\xff\xfe"),
        (b'"\\ud800"', b'json:"\\ud800"'),
        (b"9" * 5000, b"raw:" + b"9" * 5000),
        (b"[" * 100_000, b"raw:" + b"[" * 100_000),
    ],
)
def test_canonical_bodies(body: bytes, canonical: bytes) -> None:
    assert canonical_body(body) == canonical


@pytest.mark.parametrize(
    ("name", "credential"),
    [
        ("authorization", True),
        ("proxy-authorization", True),
        ("xi-api-key", True),
        ("ocp-apim-subscription-key", True),
        ("x-amz-security-token", True),
        ("cookie", True),
        ("idempotency-key", False),
        ("x-stainless-arch", False),
        ("content-type", False),
    ],
)
def test_credentials_are_told_by_name(name: str, credential: bool) -> None:
    assert is_credential(name) is credential


@pytest.mark.parametrize(
    ("status", "complete", "directives", "stored"),
    [
        (200, True, ON, True),
        (201, True, ON, False),
        (204, True, ON, False),
        (429, True, ON, False),
        (500, True, ON, False),
        (200, False, ON, False),
        (200, True, CacheDirectives(read=True), False),
        (200, True, CacheDirectives(save=True), True),
        (200, True, CacheDirectives(save=True, ttl_s=0), False),
        (200, True, CacheDirectives(save=True, bucket=0), False),
    ],
)
def test_what_is_stored(status: int, complete: bool, directives: CacheDirectives, stored: bool) -> None:
    assert storable(status, complete, 100, directives) is stored


def test_too_large_answers_are_not_stored() -> None:
    assert not storable(200, True, (8 << 20) + 1, ON)


def test_replayed_headers_leave_cookies_and_hops_out() -> None:
    headers = [
        ("Content-Type", "text/event-stream"),
        ("Set-Cookie", "a=b"),
        ("Content-Length", "5"),
        ("Transfer-Encoding", "chunked"),
        ("Connection", "X-Hop, close"),
        ("x-hop", "1"),
        ("Helicone-Id", "old"),
        ("Helicone-Cache", "MISS"),
        ("x-request-id", "r"),
        ("content-encoding", "gzip"),
    ]
    assert replayed_headers(headers) == (
        ("Content-Type", "text/event-stream"),
        ("x-request-id", "r"),
        ("content-encoding", "gzip"),
    )


def entry(name: str, latency_ms: float = 0.0) -> CacheEntry:
    return CacheEntry(200, (), name.encode(), latency_ms, 0.0, name)


def test_miss_until_the_bucket_is_full_then_any_entry() -> None:
    a, b = entry("a"), entry("b")
    assert pick([a, None], lambda n: 0) is None
    assert pick([None, b], lambda n: 1) is None
    assert pick([], lambda n: 0) is None
    assert pick([a, b], lambda n: n - 1) == (1, b)
    assert pick([a], lambda n: 1 / 0) == (0, a)  # one entry needs no dice


def test_headers_of_hits_and_misses() -> None:
    assert hit_headers(entry("a", 123.6), 2) == (
        ("Helicone-Cache", "HIT"),
        ("Helicone-Cache-Bucket-Idx", "2"),
        ("Helicone-Cache-Latency", "124"),
    )
    assert hit_headers(entry("a"), 0)[2][1] == "0"
    assert miss_headers(CacheDirectives(read=True)) == (("Helicone-Cache", "MISS"),)
    assert miss_headers(CacheDirectives(save=True)) == ()
    assert miss_headers(CacheDirectives()) == ()
