"""AWS Signature Version 4, for calls to Bedrock that come with the caller's AWS keys in headers (section 1).

Source: "Create a signed AWS API request", AWS IAM user guide. Not S3: every other service signs the path encoded once
more than it is sent.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from datetime import UTC
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

ACCESS_KEY, SECRET_KEY, SESSION_TOKEN = KEY_HEADERS = ("aws-access-key", "aws-secret-key", "aws-session-token")
"""The request headers Helicone's bedrock host takes the keys from; they go no further."""
NOT_KEPT = (*KEY_HEADERS, "authorization", "x-amz-date", "x-amz-security-token", "x-amz-content-sha256")
"""What is taken out of a request before it is signed: our keys, and another signature's parts."""
_ALGORITHM = "AWS4-HMAC-SHA256"
_REGION = re.compile(r"bedrock-runtime(?:-fips)?\.([a-z]{2}[a-z0-9-]*-[0-9]+)\.(?:amazonaws\.com(?:\.cn)?|api\.aws)")


@dataclass(frozen=True, slots=True)
class Credentials:
    """One identity at AWS."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


def credentials_in(headers: Mapping[str, str]) -> Credentials | None:
    """The keys in request headers (looked up in lower case), or None when they are not both there."""
    access, secret = headers.get(ACCESS_KEY, "").strip(), headers.get(SECRET_KEY, "").strip()
    if not access or not secret:
        return None
    return Credentials(access, secret, headers.get(SESSION_TOKEN, "").strip() or None)


def region_of(host: str) -> str | None:
    """The region in the name of a Bedrock host."""
    found = _REGION.fullmatch(host)
    return found[1] if found else None


def signed(
    credentials: Credentials,
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: bytes,
    region: str,
    service: str,
    now: datetime,
) -> dict[str, str]:
    """The headers to send beside `headers`, which must hold `host` and are all signed; names in lower case.

    `path` includes the query, both as they are sent; `now` is aware.
    """
    stamp = now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    added = {"x-amz-date": stamp}
    if credentials.session_token:
        added["x-amz-security-token"] = credentials.session_token
    lines = {name.lower(): " ".join(value.split()) for name, value in {**headers, **added}.items()}
    names = ";".join(sorted(lines))
    plain, _, query = path.partition("?")
    canonical = "\n".join(
        [
            method.upper(),
            quote(plain or "/", safe="/-_.~"),
            _canonical_query(query),
            *(f"{name}:{lines[name]}" for name in sorted(lines)),
            "",
            names,
            hashlib.sha256(body).hexdigest(),
        ]
    )
    scope = f"{stamp[:8]}/{region}/{service}/aws4_request"
    to_sign = "\n".join([_ALGORITHM, stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{credentials.secret_key}".encode()
    for part in (stamp[:8], region, service, "aws4_request", to_sign):
        key = hmac.digest(key, part.encode(), "sha256")
    identity = f"Credential={credentials.access_key}/{scope}"
    added["authorization"] = f"{_ALGORITHM} {identity}, SignedHeaders={names}, Signature={key.hex()}"
    return added


def _canonical_query(query: str) -> str:
    """Parameters sorted, each with its `=`; they are encoded already, as they are sent."""
    pairs = (part.partition("=") for part in query.split("&") if part)
    return "&".join(f"{name}={value}" for name, _, value in sorted(pairs))
