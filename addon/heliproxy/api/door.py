"""The app without a socket: one buffered request in, one buffered answer out. For requests that come by the proxy."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from heliproxy.api.guard import App

HeaderFields = Iterable[tuple[bytes, bytes]]


async def respond(
    app: App,
    method: str,
    path: str,
    query: str,
    headers: HeaderFields,
    body: bytes,
    client: tuple[str, int] | None,
    scheme: str = "https",
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Run the ASGI app for one request.

    Args:
        path: as sent, percent-encoded, without the query.
        query: without the question mark.
        client: address of the client.
        scheme: that the client used; links in answers have it too.

    Returns:
        Status, header fields (names in lower case) and the whole body.
    """
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method.upper(),
        "scheme": scheme,
        "path": unquote(path),
        "raw_path": path.encode("utf-8", "surrogateescape"),
        "query_string": query.encode("utf-8", "surrogateescape"),
        "root_path": "",
        # A content length and chunking are of the wire, which this body has left behind.
        "headers": [
            (name.lower(), value)
            for name, value in headers
            if name.lower() not in (b"content-length", b"transfer-encoding")
        ]
        + [(b"content-length", str(len(body)).encode())],
        "client": client,
        "server": None,
        "state": {},
    }
    log = await _log(app, scope, body)
    if log is not None:
        return log
    sent = False
    status = 500
    fields: list[tuple[bytes, bytes]] = []
    parts: list[bytes] = []

    async def receive() -> MutableMapping[str, Any]:
        nonlocal sent
        if sent:
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        nonlocal status, fields
        if message["type"] == "http.response.start":
            status, fields = message["status"], list(message.get("headers", ()))
        elif message["type"] == "http.response.body":
            parts.append(message.get("body", b""))

    await app(scope, receive, send)
    return status, fields, b"".join(parts)


async def _log(app: App, scope: dict[str, Any], body: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes] | None:
    """The answer to a plain manual log, which needs no router; None for anything else. See `wire.py`."""
    from heliproxy.api.fields import MAX_BODY
    from heliproxy.api.guard import EXTRA_HEADERS
    from heliproxy.api.logs import LOG_PATHS, answer_anywhere

    state = getattr(app, "state", None)
    fields: list[tuple[bytes, bytes]] = scope["headers"]
    if scope["path"] not in LOG_PATHS or state is None or scope["method"] != "POST" or not 0 < len(body) <= MAX_BODY:
        return None
    if any(name == b"content-encoding" for name, _ in fields) or state.guard.refusal(scope) is not None:
        return None
    headers = [(name.decode("latin-1"), value.decode("utf-8", "surrogateescape")) for name, value in fields]
    answer = await answer_anywhere(state.api, scope["path"], headers, body)
    return answer.status_code, [*answer.raw_headers, *EXTRA_HEADERS], bytes(answer.body)
