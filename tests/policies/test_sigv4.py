"""Signing for Bedrock; the signatures are those of AWS's own SigV4 test suite (aws-sig-v4-test-suite)."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from heliproxy.policies.sigv4 import Credentials, credentials_in, region_of, signed

KEYS = Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
NOW = datetime(2015, 8, 30, 12, 36, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("method", "path", "headers", "names", "signature"),
    [
        ("GET", "/", {}, "host", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
        (
            "GET",
            "/?Param2=value2&Param1=value1",
            {},
            "host",
            "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
        ),
        (
            "post",
            "/",
            {"My-Header1": "value1"},
            "host;my-header1",
            "c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c",
        ),
    ],
)
def test_signatures_of_aws(method: str, path: str, headers: dict[str, str], names: str, signature: str) -> None:
    added = signed(KEYS, method, path, {"Host": "example.amazonaws.com", **headers}, b"", "us-east-1", "service", NOW)
    assert added == {
        "x-amz-date": "20150830T123600Z",
        "authorization": "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request,"
        f" SignedHeaders={names};x-amz-date, Signature={signature}",
    }


def test_session_token_is_sent_and_signed() -> None:
    added = signed(Credentials("a", "b", "token"), "POST", "/", {"host": "h"}, b"x", "us-east-1", "bedrock", NOW)
    assert added["x-amz-security-token"] == "token"
    assert "SignedHeaders=host;x-amz-date;x-amz-security-token," in added["authorization"]


def test_body_path_and_region_are_signed() -> None:
    calls = [("/m/a:0/invoke", b"x", "r"), ("/m/a%3A0/invoke", b"x", "r"), ("/m/a:0/invoke", b"y", "r")]
    calls.append(("/m/a:0/invoke", b"x", "r2"))
    found = {signed(KEYS, "POST", p, {"host": "h"}, b, r, "bedrock", NOW)["authorization"] for p, b, r in calls}
    assert len(found) == 4


def test_secrets_are_not_shown() -> None:
    assert "wJalr" not in repr(KEYS)
    assert "token" not in repr(Credentials("a", "b", "token")).replace("session_token", "")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"aws-access-key": "a", "aws-secret-key": " b "}, Credentials("a", "b")),
        ({"aws-access-key": "a", "aws-secret-key": "b", "aws-session-token": "c"}, Credentials("a", "b", "c")),
        ({"aws-access-key": "a", "aws-secret-key": "b", "aws-session-token": ""}, Credentials("a", "b")),
        ({"aws-access-key": "a"}, None),
        ({"aws-secret-key": "b"}, None),
        ({"aws-access-key": "", "aws-secret-key": "b"}, None),
        ({}, None),
    ],
)
def test_keys_in_headers(headers: dict[str, str], expected: Credentials | None) -> None:
    assert credentials_in(headers) == expected


@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("bedrock-runtime.us-east-1.amazonaws.com", "us-east-1"),
        ("bedrock-runtime.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("bedrock-runtime-fips.eu-central-1.amazonaws.com", "eu-central-1"),
        ("bedrock-runtime.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("bedrock-runtime.amazonaws.com", None),
        ("bedrock-runtime.a.b-1.amazonaws.com", None),
        ("api.openai.com", None),
    ],
)
def test_regions(host: str, region: str | None) -> None:
    assert region_of(host) == region
