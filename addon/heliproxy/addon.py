"""The mitmproxy addon: the life of one exchange, top to bottom.

requestheaders  whose call is this: a provider's, our gateway's, our API's, or nobody's we know
request         policies that answer or refuse before an upstream is asked
responseheaders our headers are added, a streamed body is tapped
response/error  the exchange is over and goes to the recorder's thread

Whatever fails in here, the client still gets what upstream sent: mitmproxy logs an addon's exception and goes on.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from mitmproxy import connection, ctx, exceptions, http, tls
from mitmproxy.addonmanager import Loader
from mitmproxy.proxy import layer

from heliproxy import attempts, hosts
from heliproxy.directives import NONE, is_helicone_header, parse, provider_authorization, signed_headers
from heliproxy.exchange import Exchange
from heliproxy.formats import FORMATS
from heliproxy.hosts import Route, Target
from heliproxy.policies.defaults import default_headers
from heliproxy.record import is_stream_type
from heliproxy.recorder import Recorder
from heliproxy.services import Services, open_services
from heliproxy.settings import Settings, Upstream, parse_upstreams

logger = logging.getLogger(__name__)

BUFFER_LIMIT = 256 * 1024
"""A response of known length up to this is buffered (and may then be answered in one write); all others stream."""
HAND_OVER = 256 * 1024
"""Bytes of a running stream kept here before they go to the recorder."""
LINGER_SECONDS = 0.5
"""How long a stream may stay open after its last event before its row is written anyway."""
DRAIN_SECONDS = 5.0
_MARKER_TAIL = 64

OPTIONS: tuple[tuple[str, Any, Any, str], ...] = (
    ("heliproxy_home", str, "", "Folder of the database, the CA and the configuration. Default: HELIPROXY_HOME, else the user's data folder."),
    ("heliproxy_api_port", int, 8585, "Port of the dashboard and the REST API on 127.0.0.1. 0 picks a free one, -1 turns it off."),
    ("heliproxy_upstream", Sequence[str], [], "Send a provider host's traffic elsewhere: HOST=URL, http or https. Repeatable."),
    ("heliproxy_upstream_ca", str, "", "PEM file of a CA to trust for upstreams, beside the usual ones."),
    ("heliproxy_default_header", Sequence[str], [], "`Helicone-...: value` for calls that do not carry the header themselves. Repeatable."),
    ("heliproxy_stream_usage", bool, False, "Ask OpenAI-style chat streams for their usage, and hide the extra chunk from clients that did not ask."),
    ("heliproxy_run_id", str, "", "Tag every row with this run."),
    ("heliproxy_token", str, "", "Bearer token that the REST API and the pages ask for. Default: HELIPROXY_TOKEN, else none."),
)


class Heliproxy:
    """Logs every call to an LLM provider, and does what its `Helicone-*` headers ask for."""

    name = "heliproxy"

    def __init__(self, services: Callable[[Settings], Services] = open_services) -> None:
        self._open_services = services
        self.settings = Settings()
        self.services: Services | None = None
        self.recorder: Recorder
        self.live: dict[str, Exchange] = {}
        """Exchanges under way, by flow id."""
        self.known: set[str] = set()
        """Flow ids of calls to known hosts that are not inference: passed on, never logged."""
        self.refused: Counter[str] = Counter()
        """Hosts whose clients did not accept our certificate, with how often."""
        self.seen: Counter[str] = Counter()
        """Calls by provider since the start."""
        self.startup_error: str | None = None
        self._defaults: tuple[tuple[str, str], ...] = ()
        self._retries_off: str | None = None

    # ---------------------------------------------------------------- life of the addon

    def load(self, loader: Loader) -> None:
        for name, kind, default, text in OPTIONS:
            loader.add_option(name, kind, default, text)

    def configure(self, updated: set[str]) -> None:
        if not any(name.startswith("heliproxy_") for name in updated):
            return
        self.settings = self._read_options()
        self._defaults = default_headers(self.settings)
        if self.settings.upstream_ca is not None and "heliproxy_upstream_ca" in updated:
            from heliproxy.certs import upstream_trust

            trust = upstream_trust(self.settings.home, self.settings.upstream_ca)
            ctx.options.update(ssl_verify_upstream_trusted_ca=str(trust))

    def _read_options(self) -> Settings:
        from pathlib import Path

        from heliproxy.home import default_home

        options = ctx.options
        try:
            upstreams = parse_upstreams(options.heliproxy_upstream)
        except ValueError as e:
            raise exceptions.OptionsError(f"heliproxy_{e}") from e
        ca = Path(options.heliproxy_upstream_ca).expanduser() if options.heliproxy_upstream_ca else None
        if ca is not None and not ca.is_file():
            raise exceptions.OptionsError(f"heliproxy_upstream_ca: {ca} is not a file; expected a PEM file")
        api_port = options.heliproxy_api_port
        return Settings(
            home=Path(options.heliproxy_home).expanduser() if options.heliproxy_home else default_home(),
            port=options.listen_port or 8080,
            api_port=None if api_port < 0 else api_port,
            upstreams=upstreams,
            upstream_ca=ca,
            default_headers=tuple(options.heliproxy_default_header),
            stream_usage=options.heliproxy_stream_usage,
            run_id=options.heliproxy_run_id or None,
            token=options.heliproxy_token or None,
        )

    async def running(self) -> None:
        options = ctx.options
        if not options.allow_hosts and not options.ignore_hosts:
            own = [f"^{_escape(host)}:" for host in self.settings.upstreams]
            options.update(allow_hosts=[*hosts.LLM_HOST_PATTERNS, *own])
        # A cache hit or a rewritten host must not dial the host the client named.
        options.update(connection_strategy="lazy")
        self._retries_off = attempts.available()
        if self._retries_off:
            logger.warning("retries and fallbacks are off: %s", self._retries_off)
        services = self._open_services(self.settings)
        try:
            await services.start(self)
        except Exception as e:
            self.startup_error = str(e)
            raise
        self.recorder = services.recorder
        self.services = services

    async def done(self) -> None:
        """Let exchanges under way end, write what is left, stop."""
        deadline = time.monotonic() + DRAIN_SECONDS
        while self.live and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for flow_id in list(self.live):
            exchange = self.live[flow_id]
            exchange.aborted = exchange.aborted or "proxy"
            exchange.error = exchange.error or "the proxy was stopped before the answer was complete"
            self._finish(flow_id)
        if self.services is not None:
            await self.services.stop()

    # ---------------------------------------------------------------- connections

    def next_layer(self, nextlayer: layer.NextLayer) -> None:
        if self._retries_off is None:
            attempts.install(nextlayer)

    async def heliproxy_attempt_failed(self, question: attempts.Question) -> None:
        await question.settle()

    def tls_failed_client(self, data: tls.TlsData) -> None:
        host = data.conn.sni or (data.context.server.address or ("?",))[0]
        self.refused[host] += 1
        if self.refused[host] == 1:
            logger.warning(
                "a client does not trust our certificate for %s (%s); `heliproxy env` prints the variables it needs",
                host,
                data.conn.error,
            )

    # ---------------------------------------------------------------- request

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        if flow.error is not None:
            return
        request = flow.request
        started = time.perf_counter()
        target = self._target(flow)
        if target is not None:
            if target.kind == "api":
                return
            _send_to(request, target)
        route = hosts.route(request.method, request.host, request.path)
        if route is None:
            return
        fields = request.headers.fields
        self._strip(request)
        upstream = self.settings.upstreams.get(route.host) or self.settings.upstreams.get(request.host)
        target_url = None
        if upstream is not None:
            target_url = upstream.origin
            _redirect(request, upstream)
        if not route.inference or route.format == "" and request.method != "POST":
            self.known.add(flow.id)
            request.stream = True
            return
        directives = parse(_pairs(fields), self._defaults)
        self.seen[route.provider] += 1
        self.live[flow.id] = Exchange(
            id=directives.request_id or str(uuid.uuid4()),
            created_at=time.time(),
            started=started,
            route=route,
            directives=directives,
            method=request.method,
            path=request.path,
            request_headers=fields,
            target_url=target_url,
            run_id=self.settings.run_id,
            warnings=list(directives.warnings),
        )

    def _target(self, flow: http.HTTPFlow) -> Target | None:
        """Where a request to one of Helicone's hosts, or to our own port, is really meant to go."""
        request = flow.request
        if _is_self(flow):
            return hosts.gateway_target(request.path)
        return hosts.helicone_target(request.host, request.path)

    def _strip(self, request: http.Request) -> None:
        """Take out every `Helicone-*` header, except those a signature covers."""
        headers = request.headers
        if not any(name[:9].lower() == b"helicone-" for name, _ in headers.fields):
            return
        signed = signed_headers(headers.get("authorization"))
        headers.fields = tuple(
            (name, value)
            for name, value in headers.fields
            if not is_helicone_header(name.decode("latin-1")) or name.decode("latin-1").lower() in signed
        )

    async def request(self, flow: http.HTTPFlow) -> None:
        exchange = self.live.get(flow.id)
        if exchange is None:
            return
        exchange.request_body = flow.request.raw_content

    # ---------------------------------------------------------------- response

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        response = flow.response
        assert response is not None
        exchange = self.live.get(flow.id)
        if exchange is None:
            if flow.id in self.known:
                response.stream = True
            return
        exchange.status = response.status_code
        exchange.response_headers = response.headers.fields
        response.headers["Helicone-Id"] = exchange.id
        response.headers["Helicone-Status"] = "success"
        if not exchange.answered_here and self._is_streamed(response):
            response.stream = self._tap(flow.id, exchange, response)

    def _is_streamed(self, response: http.Response) -> bool:
        if response.status_code == 101:
            return False
        headers = response.headers
        if is_stream_type(headers.get("content-type", "")):
            return True
        length = headers.get("content-length", "")
        return not (length.isascii() and length.isdigit() and int(length[:12]) <= BUFFER_LIMIT)

    def _tap(self, flow_id: str, exchange: Exchange, response: http.Response) -> Callable[[bytes], bytes]:
        """A function that lets a response's bytes pass unchanged and keeps a copy for the recorder."""
        format = FORMATS.get(exchange.route.format)
        plain = response.headers.get("content-encoding", "identity").lower() == "identity"
        markers = tuple(b"\n" + m for m in format.terminal) if format is not None and plain else ()
        clock = time.perf_counter
        chunks = exchange.chunks
        tail = b"\n"
        over = False

        def tap(data: bytes) -> bytes:
            nonlocal chunks, tail, over
            if not data:
                return data
            if exchange.first_byte is None:
                exchange.first_byte = clock()
            chunks.append(data)
            exchange.size_response += len(data)
            exchange.pending += len(data)
            if exchange.pending > HAND_OVER:
                self.recorder.stream(exchange)
                chunks = exchange.chunks
            if over:
                exchange.ended = clock()
            elif markers:
                window = tail + data
                if any(marker in window for marker in markers):
                    over = True
                    exchange.ended = clock()
                    self._linger(flow_id)
                tail = window[-_MARKER_TAIL:]
            return data

        return tap

    def _linger(self, flow_id: str) -> None:
        """The last event is passing: write the row soon, even if nobody closes the connection."""
        asyncio.get_running_loop().call_later(LINGER_SECONDS, self._finish, flow_id)

    def response(self, flow: http.HTTPFlow) -> None:
        exchange = self.live.get(flow.id)
        if exchange is None:
            self.known.discard(flow.id)
            return
        response = flow.response
        assert response is not None
        if not response.stream:
            content = response.raw_content or b""
            exchange.chunks = [content]
            exchange.size_response = len(content)
        self._finish(flow.id)

    def error(self, flow: http.HTTPFlow) -> None:
        exchange = self.live.get(flow.id)
        if exchange is None:
            self.known.discard(flow.id)
            return
        assert flow.error is not None
        exchange.error = flow.error.msg
        exchange.aborted = _who_ended(flow)
        self._finish(flow.id)

    def _finish(self, flow_id: str) -> None:
        """Hand an exchange to the recorder; a second call for the same one does nothing."""
        exchange = self.live.pop(flow_id, None)
        if exchange is None or exchange.finished:
            return
        exchange.finished = True
        if exchange.ended is None:
            exchange.ended = time.perf_counter()
        self.recorder.finish(exchange)


def _pairs(fields: tuple[tuple[bytes, bytes], ...]) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("utf-8", "surrogateescape")) for name, value in fields]


def _escape(host: str) -> str:
    return host.replace(".", r"\.")


def _is_self(flow: http.HTTPFlow) -> bool:
    """Whether a request is addressed to our own proxy port (base-URL style), not through it."""
    request, own = flow.request, flow.client_conn.sockname
    if request.scheme != "http" or request.port != own[1]:
        return False
    return request.host in ("127.0.0.1", "localhost", "::1", own[0]) or flow.client_conn.sni is None


def _send_to(request: http.Request, target: Target) -> None:
    request.scheme = "https"
    request.host = target.host
    request.port = target.port
    request.path = target.path


def _redirect(request: http.Request, upstream: Upstream) -> None:
    request.scheme = upstream.scheme
    request.host = upstream.host
    request.port = upstream.port
    if upstream.prefix:
        request.path = upstream.prefix + request.path


def _who_ended(flow: http.HTTPFlow) -> str:
    """Whether it was the client or the upstream that broke off."""
    side = attempts.ended_by(flow)
    if side is not None:
        return side
    # A client that left while a hook of ours was running: mitmproxy ends the flow without a protocol error.
    return "upstream" if flow.response is None and flow.client_conn.connected else "client"


addons = [Heliproxy()]

__all__ = ["NONE", "Heliproxy", "Route", "addons", "connection", "provider_authorization"]
