"""The small steps between mitmproxy's flows and our own values."""

from __future__ import annotations

import asyncio
import socket
from copy import copy
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mitmproxy import connection, http
from mitmproxy.net.http import status_codes

from heliproxy import attempts, entry, reach
from heliproxy.directives import Directives, is_helicone_header, parse, signed_headers
from heliproxy.gates import Hit
from heliproxy.policies import sigv4, ssrf
from heliproxy.policies.answers import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from heliproxy.exchange import Exchange
    from heliproxy.policies.answers import Answer
    from heliproxy.targets import Destination

LOOPBACK = ("127.0.0.1", "localhost", "::1")
Fields = tuple[tuple[bytes, bytes], ...]
REMEMBERED_HEADERS = 4096
"""Bytes of one call's headers up to which what they ask for is remembered."""
_KEYS = frozenset({b"authorization", b"x-api-key"})
_READ_TOO = (
    _KEYS
    | {b"cache-control", b"x-stripe-customer-id", b"__helicone-mock-response", b"upstash-callback"}
    | {name.encode() for name in sigv4.KEY_HEADERS}
)


def text_fields(fields: Fields) -> list[tuple[str, str]]:
    """Header fields as text; bytes that are no UTF-8 become surrogate escapes."""
    return [(name.decode("latin-1"), value.decode("utf-8", "surrogateescape")) for name, value in fields]


def directive_fields(fields: Fields) -> Fields:
    """The header fields that `directives.parse` reads, and no others: they are the same from call to call."""
    return tuple(
        pair
        for pair in fields
        if (name := pair[0].lower()).startswith(b"helicone-")
        or (name in _READ_TOO and (name not in _KEYS or b"k-helicone" in pair[1]))
    )


def directives_of(fields: Fields, defaults: tuple[tuple[str, str], ...]) -> Directives:
    """What header fields ask for. Most programs send the same ones with every call, and reading them is not cheap."""
    read = directive_fields(fields)
    if sum(len(value) for _, value in read) > REMEMBERED_HEADERS:
        return parse(text_fields(read), defaults)
    return _remembered(read, defaults)


@lru_cache(maxsize=1024)
def _remembered(fields: Fields, defaults: tuple[tuple[str, str], ...]) -> Directives:
    return parse(text_fields(fields), defaults)


def without(fields: Fields, name: bytes) -> Fields:
    """Header fields without those of one (lower-case) name."""
    return tuple(pair for pair in fields if pair[0].lower() != name)


def is_own_port(flow: http.HTTPFlow, *, exposed: bool = False) -> bool:
    """Whether a request is addressed to our own proxy port (base-URL style), not through it to somewhere else.

    In a container the proxy has other names than here, so every name without a public domain will do. One that has a
    domain is another server with the same port, or a web page's trick; unless the proxy is `exposed` to a network,
    where it may have any name and asks for its token.
    """
    request, own = flow.request, flow.client_conn.sockname
    if request.scheme != "http" or request.port != own[1]:
        return False
    if not (exposed or entry.is_inside_name(request.host) or request.host == own[0]):
        return False
    return bool(not flow.client_conn.tls_established or request.host in LOOPBACK)


def is_websocket(request: http.Request) -> bool:
    return str(request.headers.get("upgrade", "")).lower() == "websocket"


def strip_helicone(request: http.Request) -> None:
    """Take out every `Helicone-*` header, except those an AWS signature covers."""
    headers = request.headers
    if not any(name[:9].lower() == b"helicone-" for name, _ in headers.fields):
        return
    signed = signed_headers(headers.get("authorization"))
    headers.fields = tuple(
        (name, value)
        for name, value in headers.fields
        if not is_helicone_header(text := name.decode("latin-1")) or text.lower() in signed
    )


def put_headers(headers: http.Headers, pairs: Sequence[tuple[str, str]]) -> None:
    """Set these headers, as one assignment each would, in one go where none of them is there yet."""
    names = [name.lower().encode() for name, _ in pairs]
    there = {name.lower() for name, _ in headers.fields}
    if len(set(names)) < len(names) or not there.isdisjoint(names):
        for name, value in pairs:
            headers[name] = value
    else:
        headers.fields += tuple((name.encode(), value.encode("utf-8", "surrogateescape")) for name, value in pairs)


def set_or_remove(request: http.Request, name: str, value: str | None) -> None:
    if value is None:
        request.headers.pop(name, None)
    else:
        request.headers[name] = value


def with_origin(destination: Destination, request: http.Request) -> Destination:
    """A destination at the very origin the client connected to."""
    return replace(destination, scheme=request.scheme, host=request.host, port=request.port, path=request.path)


def point_at(request: http.Request, scheme: str, host: str, port: int, path: str) -> None:
    """Rewrite the request's target; what is the same already is left alone, byte for byte."""
    if request.scheme != scheme:
        request.scheme = scheme
    if request.host != host or request.port != port:
        request.host = host
        request.port = port
    if request.path != path:
        request.path = path


def response_of(answer: Answer) -> http.Response:
    """An answer of ours as a response."""
    return _response(answer.status, answer.headers, answer.body)


def response_of_hit(hit: Hit) -> http.Response:
    """A cached answer as a response: the bytes as they were sent, in their content-encoding."""
    return _response(hit.entry.status, (*hit.entry.headers, *hit.headers), hit.entry.body)


def answer(flow: http.HTTPFlow, exchange: Exchange, found: Answer | Hit) -> None:
    """Let a flow end with an answer of ours, and note it in its exchange."""
    if isinstance(found, Hit):
        exchange.answered_here = True
        flow.response = response_of_hit(found)
        return
    exchange.answered_here = found.reason != "mock"
    exchange.answer_reason = found.reason
    if exchange.answered_here and exchange.error is None:
        exchange.error = found.sentence[:500]
    flow.response = response_of(found)


def _response(status: int, headers: tuple[tuple[str, str], ...], body: bytes) -> http.Response:
    fields = [(name.encode("latin-1", "replace"), value.encode("utf-8", "surrogateescape")) for name, value in headers]
    return _raw_response(status, fields, body)


_BLANK = http.Response(b"HTTP/1.1", 200, b"", http.Headers(), b"", None, 0, 0)


def _raw_response(status: int, fields: list[tuple[bytes, bytes]], body: bytes) -> http.Response:
    # A copy: the constructor checks the type of every field, which costs more than all else of a cache hit's answer.
    # And not Response.make, which would encode a body that is encoded already.
    response = copy(_BLANK)
    data = response.data = copy(_BLANK.data)
    data.status_code = status
    data.reason = status_codes.RESPONSES.get(status, "").encode()
    data.headers = object.__new__(http.Headers)  # as above
    data.headers.fields = (*fields, (b"content-length", str(len(body)).encode()))
    data.content = body
    return response


def header_text(text: str) -> str:
    """Text that may stand in a response header: one line, ASCII."""
    return one_line(text).encode("ascii", "replace").decode("ascii")


class FlowCall:
    """The request of a flow as the gates see it."""

    def __init__(self, request: http.Request) -> None:
        self._request = request
        self.method = request.method
        self.path = request.path

    @property
    def authority(self) -> str:
        return f"{self._request.scheme}://{self._request.host}:{self._request.port}"

    @property
    def headers(self) -> list[tuple[str, str]]:
        return text_fields(self._request.headers.fields)

    def replace_body(self, body: bytes) -> None:
        self._request.headers.pop("content-encoding", None)
        self._request.content = body

    def set_header(self, name: str, value: str) -> None:
        self._request.headers[name] = value

    def remove_header(self, name: str) -> None:
        self._request.headers.pop(name, None)

    @property
    def host(self) -> str:
        return self._request.host_header or self._request.host

    @property
    def raw_body(self) -> bytes:
        return self._request.raw_content or b""


async def ask_app(app: Any, request: http.Request, path: str) -> http.Response:
    """Have our own ASGI app answer a request that reached the proxy."""
    from heliproxy.api.door import respond

    plain, _, query = path.partition("?")
    fields = request.headers.fields
    if "host" not in request.headers:  # HTTP/2 names it in :authority
        fields = ((b"host", request.pretty_host.encode("idna")), *fields)
    status, headers, body = await respond(
        app, request.method, plain, query, fields, request.raw_content or b"", None, request.scheme
    )
    return _raw_response(
        status, [(n, v) for n, v in headers if n not in (b"content-length", b"transfer-encoding")], body
    )


async def public_address(host: str, port: int) -> tuple[str | None, tuple[str, int] | None]:
    """Resolve a host a client named: (why it must not be dialled, None) or (None, the address to dial)."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as e:
        return f"cannot be resolved: {e.strerror or e}", None
    addresses = [entry[4][0] for entry in found]
    private = next((a for a in addresses if not ssrf.is_public(str(a))), None)
    if private is not None or not addresses:
        return (
            f"resolves to {private}, which is not a public address; `--allow-target {host}` lets requests name it",
            None,
        )
    return None, (str(addresses[0]), port)


async def leads_here(host: str, port: int) -> bool:
    """Whether a name leads to this machine, as far as can be told by asking. One that leads nowhere does not."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return any(reach.is_here(str(one[4][0])) for one in found)


def cut(proxyserver: Any, client: connection.Client, server: connection.Server) -> None:
    """Close an upstream connection before a byte is sent on it."""
    handler = proxyserver.connections.get(client.id)
    found = handler.transports.get(server) if handler is not None else None
    if found is not None and found.writer is not None:
        found.writer.transport.abort()


def who_ended(flow: http.HTTPFlow) -> str:
    """Whether it was the client or the upstream that broke off."""
    side = attempts.ended_by(flow)
    if side is not None:
        return side
    # A client that left while a hook of ours was running: mitmproxy ends the flow without a protocol error.
    return "upstream" if flow.response is None and flow.client_conn.connected else "client"
