"""Who may talk to the API: nobody but programs on this machine, and pages it served itself.

A web page open in the user's browser can reach a loopback port. So: a `Host` that is not ours is refused (DNS
rebinding), and so is what a browser sends on behalf of another site (`Origin`, `Sec-Fetch-Site`), reads included.
A body must be JSON, which a form cannot send. With a token, every request must bring it.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import quote, urlsplit

from starlette.responses import RedirectResponse

from heliproxy.api.endpoint import failure
from heliproxy.hosts import is_helicone_host, normal_host

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = MutableMapping[str, str]
"""Names in lower case; the last of several wins."""
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1", "heliproxy.localhost"})
COOKIE = "heliproxy_token"
OPEN_PATHS = ("/health", "/v1/signed-body", "/v1/helicone-sql/download/", "/v1/public/", "/login", "/static/")
"""Need no token: they tell nothing, take the token themselves, or carry a signature of their own."""
OTLP_PATHS = ("/v1/traces", "/v1/trace/log", "/v1/trace/log-python")
EXTRA_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
"""Of every answer: they keep browsers from guessing and storing."""
SAFE = ("GET", "HEAD", "OPTIONS")


class Guard:
    """ASGI middleware. `token`: asked for at each request, None turns it off."""

    def __init__(self, app: App, token: Callable[[], str | None]) -> None:
        self.app = app
        self.token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self.refusal(scope)
        if refusal is None:
            await self.app(scope, receive, with_headers(send))
        elif refusal[0] == 401 and is_navigation(scope):
            to = quote(scope["path"].encode("utf-8", "replace"), safe="/")
            await RedirectResponse(f"/login?to={to}", 303)(scope, receive, with_headers(send))
        else:
            await failure(refusal[1], refusal[0])(scope, receive, with_headers(send))

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """(status, reason) when the request is not let in."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        token = self.token()
        if not is_our_host(host) and token is None:
            return 403, f"this API does not answer to the host {host[:100]!r}; use 127.0.0.1 or localhost"
        if (reason := cross_site(headers, host, scope["method"])) is not None:
            return 403, reason
        if token is not None and not scope["path"].startswith(OPEN_PATHS) and not has_token(headers, token):
            return 401, "this API needs its token: `Authorization: Bearer TOKEN`"
        return content_type_refusal(scope, headers)


def is_navigation(scope: Scope) -> bool:
    """Whether a person is opening a page in a browser."""
    accept = dict(scope["headers"]).get(b"accept", b"")
    return scope["method"] == "GET" and b"text/html" in accept and not scope["path"].startswith("/v1/")


def is_our_host(host: str) -> bool:
    """Whether a `Host` header names this machine or one of Helicone's hosts."""
    name, _ = normal_host(host)
    return name in LOOPBACK or is_helicone_host(name)


def cross_site(headers: Headers, host: str, method: str) -> str | None:
    """Why a request came from another site's page; None when it did not. Browsers send at least one of the two."""
    site = headers.get("sec-fetch-site")
    if site is not None and site not in ("same-origin", "none"):
        if (
            method in SAFE
            and headers.get("sec-fetch-mode") == "navigate"
            and headers.get("sec-fetch-dest") == "document"
        ):
            return None  # somebody followed a link; the page it was on sees nothing of the answer
        return "requests from other sites' pages are refused"
    if site == "none" and method not in SAFE:
        return "a page that is not ours cannot change anything"
    origin = headers.get("origin")
    if origin is not None and not same_origin(origin, host):
        return f"requests from {origin[:100]!r} are refused"
    return None


def same_origin(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.strip().lower()


def has_token(headers: Headers, token: str) -> bool:
    """Whether the token is there: as bearer, in Helicone's own header, or in our pages' cookie."""
    given = [headers.get("authorization", ""), headers.get("helicone-auth", "")]
    found = [value[7:].strip() for value in given if value[:7].lower() == "bearer "]
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        cookie = None
    if cookie is not None:
        found.append(cookie.value)
    expected = token.encode("utf-8", "surrogateescape")
    return any(hmac.compare_digest(value.encode("latin-1", "replace"), expected) for value in found)


def content_type_refusal(scope: Scope, headers: Headers) -> tuple[int, str] | None:
    """A state-changing request's body is JSON, or an OTLP export in protobuf."""
    if scope["method"] in SAFE or not (headers.get("content-length", "0") != "0" or "transfer-encoding" in headers):
        return None
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return None
    if kind in ("application/x-protobuf", "application/protobuf") and scope["path"].rstrip("/") in OTLP_PATHS:
        return None
    return 415, f"the body should be application/json, not {kind[:60] or 'of no content type'!r}"


def with_headers(send: Send) -> Send:
    """Add to each answer what keeps browsers from guessing and storing."""

    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            present = {name.lower() for name, _ in message["headers"]}
            message["headers"] = [*message["headers"], *(pair for pair in EXTRA_HEADERS if pair[0] not in present)]
        await send(message)

    return sending
