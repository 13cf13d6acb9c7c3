"""Upstreams that a request names itself: `Helicone-Target-URL` and `Helicone-OpenAI-Api-Base` (section 2.1).

A target's origin is used; path and query are always the request's own (section 1). Whether it may be called is
`ssrf`'s to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from heliproxy.policies import ssrf
from heliproxy.policies.answers import Answer, DirectiveError, exception_answer, one_line, text_answer

if TYPE_CHECKING:
    from collections.abc import Collection

    from heliproxy.directives import Directives


@dataclass(frozen=True, slots=True)
class Origin:
    """Where to connect."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        return f"{self.scheme}://{host}" if self.port == default else f"{self.scheme}://{host}:{self.port}"


def origin(url: str) -> Origin | None:
    """The origin of an absolute http(s) URL, or None when it is not one."""
    try:
        parts = urlsplit(url.strip())
        host = (parts.hostname or "").rstrip(".")
        if parts.scheme not in ("http", "https") or not host or any(c <= " " for c in host):
            return None
        return Origin(parts.scheme, host, parts.port or (443 if parts.scheme == "https" else 80))
    except ValueError:
        return None


def gateway_origin(directives: Directives, allowed_hosts: Collection[str] = ()) -> Origin:
    """The target of a call to the gateway host.

    Raises DirectiveError: 400 when no target is named, 500 JSON when it is no URL, 500 text when it may not be called.
    """
    if directives.target_url is None:
        raise DirectiveError(text_answer(400, "Missing target base url"))
    found = origin(directives.target_url)
    if found is None:
        raise DirectiveError(exception_answer(f"Invalid URL: {one_line(directives.target_url)[:200]}"))
    return _guarded(directives.target_url, found, allowed_hosts)


def base_override(directives: Directives, allowed_hosts: Collection[str] = ()) -> Origin | None:
    """The target that replaces a provider host's own, or None; the API base wins over the target URL.

    Raises DirectiveError (500 text) when it is no URL or may not be called.
    """
    url = directives.openai_api_base or directives.target_url
    if url is None:
        return None
    found = origin(url)
    if found is None:
        raise DirectiveError(invalid_base(url))
    return _guarded(url, found, allowed_hosts)


def callback_origin(directives: Directives, allowed_hosts: Collection[str] = ()) -> Origin:
    """The target of a call to QStash that names its own with `Upstash-Callback`.

    Raises DirectiveError: 500 JSON when it is no URL, 500 text when it may not be called.
    """
    url = directives.upstash_callback or ""
    found = origin(url)
    if found is None:
        raise DirectiveError(exception_answer(f"Invalid URL: {one_line(url)[:200]}"))
    return _guarded(url, found, allowed_hosts)


def _guarded(url: str, found: Origin, allowed_hosts: Collection[str]) -> Origin:
    reason = ssrf.check_url(url, allowed_hosts)
    if reason is not None:
        raise DirectiveError(invalid_base(url, reason))
    return found


def invalid_base(url: str, reason: str = "") -> Answer:
    """The 500 text for a base that is not approved, with our reason after Helicone's words, and the cure."""
    words = f'Invalid API base "{one_line(url)[:200]}"'
    return text_answer(500, f"{words}: it {reason}{_cure(url)}" if reason else words)


def _cure(url: str) -> str:
    """Which option lets requests name this target; "" when none does."""
    found = origin(url)
    if found is None:
        return ""
    for name in (f"{found.host}:{found.port}", found.host):
        if ssrf.check_url(url, (name,)) is None:
            return f"; `--allow-target {one_line(name)[:200]}` lets requests name it"
    return ""
