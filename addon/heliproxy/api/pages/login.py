"""The door of pages that ask for a token: the browser gets it as a cookie that no script can read."""

from __future__ import annotations

import hmac
import json

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from heliproxy.api.guard import COOKIE
from heliproxy.api.pages.context import Pages
from heliproxy.api.pages.render import HEADERS, page

BODY_LIMIT = 10_000
"""Bytes of the JSON that carries a token."""


def form(pages: Pages, request: Request) -> Response:
    return page(request, "login.html", needed=pages.token() is not None)


class Login:
    """Takes `{"token": ...}` as JSON; a right one comes back as a cookie for this site alone."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    async def __call__(self, request: Request) -> Response:
        expected = self._pages.token()
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > BODY_LIMIT:
                return JSONResponse({"data": None, "error": "too long"}, 413, HEADERS)
        if expected is not None and not hmac.compare_digest(given_token(body).encode(), expected.encode()):
            return JSONResponse({"data": None, "error": "this is not the token"}, 401, HEADERS)
        response = JSONResponse({"data": None, "error": None}, headers=HEADERS)
        if expected is not None:
            response.set_cookie(COOKIE, expected, httponly=True, samesite="strict", path="/")
        return response


def given_token(body: bytes) -> str:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    token = value.get("token") if isinstance(value, dict) else None
    return token.encode("utf-8", "replace").decode() if isinstance(token, str) else ""
