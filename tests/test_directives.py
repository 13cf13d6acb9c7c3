"""Headers to directives: helicone-proxy.md section 2."""

from __future__ import annotations

import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliproxy.directives import (
    NONE,
    CacheDirectives,
    Directives,
    RetryDirectives,
    cache_ttl_s,
    helicone_key,
    ignore_keys,
    is_helicone_header,
    js_float,
    js_int,
    namespace,
    parse,
    provider_authorization,
    signed_headers,
)

KEY = "sk-helicone-aaaaaa1-bbbbbbb-ccccccc-ddddddd"


def read(**headers: str) -> Directives:
    """Parse headers written with underscores."""
    return parse([(name.replace("_", "-"), value) for name, value in headers.items()])


def test_request_without_helicone_headers_shares_one_value() -> None:
    plain = [("Host", "api.openai.com"), ("Authorization", "Bearer sk-x"), ("Cache-Control", "no-cache")]
    assert parse(plain) is NONE
    assert not NONE.present


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("Helicone-Auth", True),
        ("helicone-x", True),
        ("HELICONE-", True),
        ("helicone", False),
        ("x-helicone-auth", False),
        ("__helicone-mock-response", False),
    ],
)
def test_helicone_headers_are_told_by_their_start(name: str, ours: bool) -> None:
    assert is_helicone_header(name) is ours


def test_names_are_read_in_any_case() -> None:
    assert read(HELICONE_USER_ID="u").user_id == "u"


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("6f6dd2f6-4a4c-4b58-8a4e-7d6a7c2f1a10", True),
        ("6F6DD2F6-4A4C-1B58-BA4E-7D6A7C2F1A10", True),
        ("6f6dd2f6-4a4c-5b58-9a4e-7d6a7c2f1a10", True),
        ("6f6dd2f6-4a4c-6b58-8a4e-7d6a7c2f1a10", False),
        ("018f6dd2-4a4c-7b58-8a4e-7d6a7c2f1a10", False),
        ("6f6dd2f6-4a4c-4b58-7a4e-7d6a7c2f1a10", False),
        ("6f6dd2f64a4c4b588a4e7d6a7c2f1a10", False),
        ("ticket-42", False),
    ],
)
def test_request_id_must_be_a_uuid_of_version_1_to_5(value: str, kept: bool) -> None:
    found = read(Helicone_Request_Id=value)
    assert found.request_id == (value if kept else None)
    assert bool(found.warnings) is not kept


def test_properties_are_lower_case_and_automatic_ones_canonical() -> None:
    found = parse(
        [
            ("Helicone-Property-App", "My App"),
            ("Helicone-Property-", "dropped"),
            ("Helicone-Session-Id", "s1"),
            ("Helicone-Session-Path", "/a/b"),
            ("Helicone-Session-Name", "run"),
            ("Helicone-Prompt-Id", "p"),
            ("Helicone-Experiment-Id", "e"),
            ("Helicone-Posthog-Key", "secret"),
            ("Helicone-Cache-Enabled", "true"),
            ("Helicone-Cache-Seed", "42abc"),
            ("Helicone-Cache-Bucket-Max-Size", "3.9"),
            ("Helicone-Cache-Control", "max-age=5"),
            ("X-Stripe-Customer-Id", "cus_1"),
        ]
    )
    assert dict(found.properties) == {
        "app": "My App",
        "Helicone-Session-Id": "s1",
        "Helicone-Session-Path": "/a/b",
        "Helicone-Session-Name": "run",
        "Helicone-Prompt-Id": "p",
        "Helicone-Experiment-Id": "e",
        "Helicone-Sent-To-Posthog": "true",
        "Helicone-Cache-Enabled": "true",
        "Helicone-Cache-Seed": "42",
        "Helicone-Cache-Bucket-Max-Size": "3",
        "Helicone-Cache-Control": "max-age=5",
        "stripe_customer_id": "cus_1",
    }
    assert found.cache.seed == "42abc"
    assert (found.session_id, found.session_path, found.session_name) == ("s1", "/a/b", "run")


def test_seed_that_is_no_number_is_no_property() -> None:
    assert dict(read(Helicone_Cache_Seed="user-123").properties) == {}


def test_properties_are_bounded_and_the_loss_is_said() -> None:
    found = parse([(f"Helicone-Property-p{i}", "v") for i in range(60)])
    assert len(found.properties) == 50
    assert "more than 50" in found.warnings[0]
    found = parse([("Helicone-Property-" + "k" * 70, "v" * 2000)])
    assert dict(found.properties) == {"k" * 64: "v" * 1024}
    assert "was cut" in found.warnings[0]


@pytest.mark.parametrize(
    ("headers", "read_", "save", "flag"),
    [
        ({"helicone-cache-enabled": "true"}, True, True, True),
        ({"helicone-cache-enabled": "TRUE"}, True, True, False),
        ({"helicone-cache-enabled": "1"}, False, False, False),
        ({"helicone-cache-enabled": "false"}, False, False, False),
        ({"helicone-cache-save": "True"}, False, True, False),
        ({"helicone-cache-read": "true"}, True, False, False),
    ],
)
def test_cache_switches(headers: dict[str, str], read_: bool, save: bool, flag: bool) -> None:
    cache = parse(headers.items()).cache
    assert (cache.read, cache.save, cache.enabled) == (read_, save, flag)


@pytest.mark.parametrize(
    ("value", "ttl"),
    [
        ("", 604800),
        ("max-age=3600", 3600),
        ("s-maxage=10, max-age=3600", 10),
        ("max-age=3600, s-maxage=10", 10),
        ("public,max-age=5", 5),
        ("max-age=0", 0),
        ("max-age=31536000", 31536000),
        ("max-age=31536001", 31536000),
        ("max-age=" + "9" * 5000, 31536000),
        ("max-age=000060", 60),
        ("MAX-AGE=5", 604800),
        ("max-age=-5", 604800),
        ("max-age=", 604800),
        ("no-cache", 604800),
        ("no-store", 604800),
        ("x-s-maxage=3600", 604800),
        ("s-maxage=7", 7),
    ],
)
def test_cache_control_sets_the_ttl(value: str, ttl: int) -> None:
    assert cache_ttl_s(value) == ttl
    assert parse([("Helicone-Cache-Enabled", "true"), ("Cache-Control", value)]).cache.ttl_s == ttl


def test_helicone_cache_control_does_not_set_the_ttl() -> None:
    assert read(Helicone_Cache_Enabled="true", Helicone_Cache_Control="max-age=5").cache.ttl_s == 604800


@pytest.mark.parametrize(
    ("value", "bucket"),
    [("1", 1), ("20", 20), ("3.9", 3), ("1e9", 1), (" 5x", 5), ("0", 0), ("-3", -3), ("many", 0), ("0x10", 16)],
)
def test_bucket_sizes(value: str, bucket: int) -> None:
    found = read(Helicone_Cache_Bucket_Max_Size=value, Helicone_Cache_Enabled="true")
    assert found.cache.bucket == bucket
    assert found.error is None
    assert found.cache.wanted is (bucket >= 1)
    assert bool(found.warnings) is (bucket < 1)


@pytest.mark.parametrize("value", ["21", "100", "9" * 400])
def test_bucket_over_20_is_a_500_even_with_the_cache_off(value: str) -> None:
    error = read(Helicone_Cache_Bucket_Max_Size=value).error
    assert error is not None
    assert (error.status, error.body) == (500, b"Cache bucket size cannot be greater than 20")
    assert error.headers[0][1].startswith("text/plain")


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("request_id,timestamp", ("request_id", "timestamp")),
        (" request_id , timestamp ,", ("request_id", "timestamp")),
        ('"request_id","timestamp"', ("request_id", "timestamp")),
        ('["a","b"]', ("a", "b")),
        ("a,a", ("a",)),
        ("", ()),
        (",,", ()),
    ],
)
def test_ignore_keys_in_both_forms(value: str, names: tuple[str, ...]) -> None:
    assert ignore_keys(value) == names


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, RetryDirectives()),
        ({"helicone-retry-enabled": "true"}, RetryDirectives(True, 5, 2.0, 1000, 10000)),
        ({"helicone-retry-enabled": "false"}, RetryDirectives(False)),
        ({"helicone-retry-enabled": "yes"}, RetryDirectives(False)),
        (
            {
                "helicone-retry-enabled": "true",
                "helicone-retry-num": "3",
                "helicone-retry-factor": "1.5",
                "helicone-retry-min-timeout": "10",
                "helicone-retry-max-timeout": "20",
            },
            RetryDirectives(True, 3, 1.5, 10, 20),
        ),
        ({"helicone-retry-enabled": "true", "helicone-retry-num": "0"}, RetryDirectives(True, 0)),
        ({"helicone-retry-enabled": "true", "helicone-retry-num": "-2"}, RetryDirectives(True, 0)),
        ({"helicone-retry-enabled": "true", "helicone-retry-num": "many"}, RetryDirectives(True, 0)),
        ({"helicone-retry-enabled": "true", "helicone-retry-factor": "x"}, RetryDirectives(True, 5, 2.0)),
    ],
)
def test_retry_headers(headers: dict[str, str], expected: RetryDirectives) -> None:
    assert parse(headers.items()).retry == expected


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("omit-request", "omit_request"),
        ("omit-response", "omit_response"),
        ("moderations-enabled", "moderations"),
        ("stream-usage", "stream_usage"),
        ("stream-force-format", "stream_force_format"),
        ("increase-timeout", "increase_timeout"),
        ("webhook-enabled", "webhook"),
    ],
)
def test_exact_switches_take_lower_case_true_only(name: str, field: str) -> None:
    assert getattr(parse([(f"helicone-{name}", "true")]), field) is True
    for value in ("TRUE", "True", "1", "yes", "false"):
        assert getattr(parse([(f"helicone-{name}", value)]), field) is False


@pytest.mark.parametrize("name", ["helicone-llm-security-enabled", "helicone-prompt-security-enabled"])
def test_security_takes_true_in_any_case(name: str) -> None:
    assert parse([(name, "TRUE")]).security is True
    assert parse([(name, "false")]).security is False


def test_advanced_security_must_be_true() -> None:
    assert read(Helicone_LLM_Security_Advanced="false").security_advanced is False
    assert read(Helicone_LLM_Security_Advanced="true").security_advanced is True


@pytest.mark.parametrize(
    ("value", "expected"),
    [("truncate", "truncate"), ("Middle-Out", "middle-out"), ("FALLBACK", "fallback"), ("x", None)],
)
def test_token_limit_handlers(value: str, expected: str | None) -> None:
    found = read(Helicone_Token_Limit_Exception_Handler=value)
    assert found.token_limit_handler == expected
    assert bool(found.warnings) is (expected is None)


@pytest.mark.parametrize(
    ("headers", "mode"),
    [
        ({"helicone-user-id": "u"}, "deactivated"),
        ({"helicone-prompt-id": "p"}, "production"),
        ({"helicone-prompt-id": "p", "helicone-prompt-mode": "testing"}, "testing"),
        ({"helicone-prompt-mode": "deactivated"}, "deactivated"),
    ],
)
def test_prompt_modes(headers: dict[str, str], mode: str) -> None:
    assert parse(headers.items()).prompt.mode == mode


def error_body(found: Directives) -> Any:
    assert found.error is not None
    assert found.error.status == 500
    assert dict(found.error.headers) == {"content-type": "application/json;charset=UTF-8", "helicone-error": "true"}
    body = json.loads(found.error.body)
    assert set(body) == {"helicone-message", "support", "helicone-error"}
    return body["helicone-message"]


def test_invalid_prompt_mode_is_a_500() -> None:
    message = error_body(read(Helicone_Prompt_Mode="live"))
    assert message == "Helicone ran into an error servicing your request: Invalid prompt mode"


@pytest.mark.parametrize("value", ["{", "{}", "[]", '[{"target-url":"https://a.example"}]'])
def test_invalid_fallbacks_are_a_500_on_every_host(value: str) -> None:
    assert "Helicone-Fallbacks" in error_body(read(Helicone_Fallbacks=value))


def test_helicone_key_is_taken_from_its_header_or_out_of_authorization() -> None:
    assert read(Helicone_Auth=f"Bearer {KEY}").auth_value == KEY
    assert read(Helicone_Auth="anything").auth_value == "anything"
    found = read(Authorization=f"Bearer sk-x, Bearer {KEY}")
    assert (found.auth_value, found.auth_in_authorization) == (KEY, True)
    found = read(Authorization=f"Bearer {KEY}")
    assert (found.auth_value, found.auth_in_authorization) == (KEY, True)
    assert "Cannot have both" in error_body(read(Authorization=f"Bearer sk-x, Bearer {KEY}", Helicone_Auth="k"))
    assert KEY not in repr(found)


@pytest.mark.parametrize(
    ("value", "key", "rest"),
    [
        (f"Bearer sk-x, Bearer {KEY}", KEY, "Bearer sk-x"),
        (f"Bearer {KEY}, Bearer sk-x", KEY, "Bearer sk-x"),
        (f"Bearer {KEY}", KEY, None),
        ("Bearer sk-x", None, "Bearer sk-x"),
    ],
)
def test_authorization_is_split(value: str, key: str | None, rest: str | None) -> None:
    assert helicone_key(value) == key
    assert provider_authorization(value) == rest


def test_namespace_is_stable_one_way_and_empty_without_a_key() -> None:
    assert namespace(None) == ""
    assert namespace(KEY) == namespace(KEY)
    assert namespace(KEY) != namespace("other")
    assert KEY not in namespace(KEY)


def test_signed_headers_of_sigv4() -> None:
    value = (
        "AWS4-HMAC-SHA256 Credential=AKIA/20260101/us-east-1/bedrock/aws4_request, "
        "SignedHeaders=content-type;Host;helicone-user-id;x-amz-date, Signature=abc"
    )
    assert signed_headers(value) == {"content-type", "host", "helicone-user-id", "x-amz-date"}
    assert signed_headers("Bearer x") == frozenset()
    assert signed_headers(None) == frozenset()


def test_own_header_wins_over_a_default() -> None:
    defaults = (("Helicone-User-Id", "default"), ("Helicone-Property-App", "d"), ("Helicone-Cache-Enabled", "true"))
    found = parse([("helicone-user-id", "own")], defaults)
    assert (found.user_id, dict(found.properties)["app"], found.cache.read) == ("own", "d", True)
    assert parse([("accept", "*/*")], defaults).user_id == "default"
    assert parse([("cache-control", "max-age=9")], defaults).cache.ttl_s == 9


def test_repeated_headers_are_joined() -> None:
    assert parse([("Helicone-User-Id", "a"), ("helicone-user-id", "b")]).user_id == "a, b"


@pytest.mark.parametrize(
    ("value", "text"),
    [("caf\udcc3\udca9", "café"), ("caf\udce9", "café"), ("café", "café"), (" a\r\nb\x00c ", "abc"), ("x\ud800", "x?")],
)
def test_values_become_valid_text_without_line_breaks(value: str, text: str) -> None:
    assert parse([("Helicone-User-Id", value)]).user_id == text


def test_mock_response_and_targets_are_kept_raw() -> None:
    found = parse([("__helicone-mock-response", "{}"), ("Helicone-Target-Url", "https://a.example/x")])
    assert (found.mock_response, found.target_url) == ("{}", "https://a.example/x")


def test_misspelt_header_is_said_to_have_no_effect() -> None:
    assert read(Helicone_Rate_Limit_Policy="10;w=60").warnings == (
        "Helicone-Rate-Limit-Policy is not a header Helicone knows; it had no effect",
    )


@pytest.mark.parametrize(
    ("text", "number"), [("42", 42), ("-7", -7), (" 3.9", 3), ("1e9", 1), ("0x1f", 31), ("x", None), ("", None)]
)
def test_js_int(text: str, number: int | None) -> None:
    assert js_int(text) == number


@pytest.mark.parametrize(
    ("text", "number"), [("1.5x", 1.5), (".5", 0.5), ("1e3", 1000.0), ("Infinity", None), ("x", None), ("1e999", None)]
)
def test_js_float(text: str, number: float | None) -> None:
    assert js_float(text) == number


@given(
    st.lists(
        st.tuples(
            st.one_of(
                st.sampled_from(
                    ["cache-bucket-max-size", "retry-num", "retry-factor", "fallbacks", "request-id", "prompt-mode"]
                ),
                st.text(string.printable, max_size=20),
            ).map(lambda s: f"Helicone-{s}"),
            st.text(max_size=200),
        )
    )
)
def test_parsing_never_raises(headers: list[tuple[str, str]]) -> None:
    found = parse(headers)
    assert isinstance(found.cache, CacheDirectives)
    assert all("\n" not in w and "\r" not in w for w in found.warnings)
