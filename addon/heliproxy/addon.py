"""The mitmproxy addon: the life of one exchange, top to bottom.

requestheaders  whose call is this: a provider's, our gateway's, our API's, or nobody's we know
request         policies that answer or refuse before an upstream is asked; retries and fallbacks are planned
responseheaders our headers are added, a streamed body is tapped
response/error  the exchange is over and goes to the recorder's thread

Whatever fails in here, the client still gets what upstream sent: mitmproxy logs an addon's exception and goes on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mitmproxy import connection, ctx, exceptions, http, tls

from heliproxy import (
    attempts,
    bounds,
    client_hello,
    direct_read,
    dispatch,
    entry,
    fallbacks,
    fast_layers,
    flows,
    hosts,
    long_bodies,
    long_messages,
    mitm_options,
    name_cache,
    quick_tls,
    targets,
    trailers,
    watchdog,
)
from heliproxy.complaints import Complaints
from heliproxy.directives import Directives, provider_authorization
from heliproxy.door import Door
from heliproxy.environment import run_of
from heliproxy.exchange import Exchange
from heliproxy.fence import Fence
from heliproxy.gates import Hit, asks, refusal
from heliproxy.gateway import GatewayCall
from heliproxy.ids import new_request_id
from heliproxy.open_sockets import OpenSockets
from heliproxy.plan import CallPlan, backoff_of
from heliproxy.policies.answers import Answer, error_answer, exception_answer
from heliproxy.policies.defaults import default_headers
from heliproxy.repeats import Repeats
from heliproxy.services import Services, open_services
from heliproxy.settings import Settings, allowed_names
from heliproxy.tap import is_streamed, tap
from heliproxy.targets import Destination

if TYPE_CHECKING:
    from mitmproxy.addonmanager import Loader
    from mitmproxy.proxy import layer, server_hooks

    from heliproxy.patience import Patience
    from heliproxy.recorder import Recorder

logger = logging.getLogger(__name__)

LINGER_SECONDS = 0.5
"""How long a stream may stay open after its last event before its row is written anyway."""
DRAIN_SECONDS = 5.0
MAX_WARNING = 1000
TOO_LONG = error_answer(
    413,
    "the request is longer than 64 MiB, which is more than a policy, a gateway or the API reads",
    "request_too_large",
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
        self.passing: dict[str, Destination] = {}
        """Calls to known hosts that are not inference, by flow id: passed on or answered here, never logged."""
        self.passed: dict[str, int] = {}
        """Bytes of the answers to those that are passed on, so that their silence shows."""
        self.destinations: dict[str, Destination] = {}
        """Where each exchange under way is going, by flow id."""
        self.sockets = OpenSockets()
        self.refused: Counter[str] = Counter()
        """Hosts whose clients did not accept our certificate, with how often."""
        self.seen: Counter[str] = Counter()
        """Calls by provider since the start."""
        self.runs: dict[str, str] = {}
        """Run ids that clients of `run --attach` gave with their proxy user, by client connection id."""
        self.startup_error: str | None = None
        self._ready = asyncio.Event()
        """Set once the services run, or cannot. mitmproxy listens before that."""
        self._defaults: tuple[tuple[str, str], ...] = ()
        self._allowed: frozenset[str] = frozenset()
        self.door = Door()
        self.fence = Fence(self.door, self._api_port)
        self.complaints = Complaints()
        self._keep_out: Callable[[http.HTTPFlow], Answer | None] | None = None
        """Says why a client must not use the proxy; None on loopback, where all may."""
        self._is_own_port = self.door.is_own_port
        self._own_hosts = ""
        """What hosts are intercepted, as one pattern for `host:port`."""
        self._is_ours: Callable[[str], object] | None = None
        """Tells those hosts, unless the operator chose others."""
        self._retries_off: str | None = None
        self.alone = False
        """Nobody looks at flows or changes them beside us, so what is none of our business need not be collected."""
        self.patience: Patience | None = None
        self.repeats: Repeats | None = None
        """Answers what was answered from the cache before; None where others may want to see each flow."""
        self.sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
        """How a backoff waits."""

    # ---------------------------------------------------------------- life of the addon

    def load(self, loader: Loader) -> None:
        for name, kind, default, text in mitm_options.OPTIONS:
            loader.add_option(name, kind, default, text)

    def configure(self, updated: set[str]) -> None:
        if self.repeats is not None:
            self.repeats.forget()
        if not ctx.options.listen_host:
            # mitmproxy's own default is every interface; this proxy sees keys, and its gateway lends ours.
            ctx.options.update(listen_host="127.0.0.1")
        if updated & {"listen_host", "mode", "heliproxy_token", "proxyauth"}:
            try:
                self.door.set_up(ctx.options)
            finally:
                # Also when there is no token to ask for: then nobody gets in.
                self._keep_out = self.door.refuse if self.door.token is not None else None
        if "allow_hosts" in updated or "ignore_hosts" in updated:
            self._note_hosts()
        if not any(name.startswith("heliproxy_") for name in updated):
            return
        self.settings = mitm_options.settings_from(ctx.options)
        try:
            self._defaults = default_headers(self.settings)
        except ValueError as e:
            raise exceptions.OptionsError(f"heliproxy_default_header: {e}") from e
        operators = {name for host, u in self.settings.upstreams.items() for name in (host, f"{u.host}:{u.port}")}
        self._allowed = frozenset(operators) | allowed_names(self.settings)
        self.fence.settings, self.fence.allowed = self.settings, self._allowed
        self.door.api_token = self.settings.token
        if self.settings.upstream_ca is not None and "heliproxy_upstream_ca" in updated:
            mitm_options.trust_for_upstreams(ctx.options, self.settings.home, self.settings.upstream_ca)

    def _api_port(self) -> int | None:
        api = self.services.api if self.services is not None else None
        return api.address[1] if api is not None and api.address is not None else None

    def _note_hosts(self) -> None:
        """Know the hosts to intercept ourselves, for as long as they are the ones we gave mitmproxy."""
        ours = list(ctx.options.allow_hosts) == [self._own_hosts] and not ctx.options.ignore_hosts
        self._is_ours = lru_cache(1024)(re.compile(self._own_hosts, re.IGNORECASE).search) if ours else None

    async def running(self) -> None:
        options = ctx.options
        if not options.allow_hosts and not options.ignore_hosts:
            self._own_hosts = mitm_options.hosts_to_intercept(self.settings)
            options.update(allow_hosts=[self._own_hosts])
        # A cache hit or a rewritten host must not dial the host the client named.
        options.update(connection_strategy="lazy")
        mitm_options.let_ours_time_out_first(options, self.settings)
        dispatch.use(ctx.master)
        fast_layers.use()
        direct_read.use()
        trailers.use()
        bounds.use()
        watchdog.use()
        long_messages.use()
        client_hello.use()
        quick_tls.use(ctx.master)
        name_cache.use(ctx.master.addons)
        self._retries_off = attempts.available()
        if self._retries_off:
            logger.warning("retries and fallbacks are off: %s", self._retries_off)
        services = self._open_services(self.settings)
        proxyserver = ctx.master.addons.get("proxyserver")
        try:
            if proxyserver is not None:
                await self.door.check_bound(proxyserver, options)
            await services.start(self)
        except Exception as e:
            self.startup_error = str(e)
            self._ready.set()
            raise
        self.recorder = services.recorder
        self.recorder.live = self.under_way
        services.gates.side_calls = self.recorder.finish
        self._start_patience()
        self.services = services
        self._note_others()
        self._ready.set()

    def _note_others(self) -> None:
        """Answer repeated requests on the short way, if no other addon is to see a flow of each."""
        manager = ctx.master.addons
        if self.repeats is not None:
            self.repeats.forget()  # connections know it
            self.repeats = None
        if isinstance(manager, dispatch.DirectDispatch) and self.services is not None:
            manager.on_change = self._note_others
            if manager.is_alone(self):
                self.repeats = Repeats(self.services.gates, self.recorder.finish, self.seen, self._run_of)

    def _run_of(self, client_id: str) -> str | None:
        return self.runs.get(client_id, self.settings.run_id)

    def _start_patience(self) -> None:
        """Watch for upstreams that say nothing."""
        proxyserver = ctx.master.addons.get("proxyserver")
        if not self.settings.upstream_timeout or self._retries_off or proxyserver is None:
            return
        from heliproxy.patience import Patience, limit_of

        limit = limit_of(self.live, self.passed, lambda: self.settings)
        self.patience = Patience(self.settings.upstream_timeout, limit, lambda: proxyserver.connections)
        self.patience.start()

    async def done(self) -> None:
        """Let exchanges under way end, write what is left, stop."""
        deadline = time.monotonic() + DRAIN_SECONDS
        while self.live and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        self.sockets.close("the proxy was stopped")
        for flow_id in list(self.live):
            exchange = self.live[flow_id]
            exchange.aborted = exchange.aborted or "client"
            exchange.error = exchange.error or "the proxy was stopped before the answer was complete"
            self._finish(flow_id)
        if self.patience is not None:
            self.patience.stop()
        if self.services is not None:
            await self.services.stop()

    # ---------------------------------------------------------------- connections

    def client_connected(self, client: connection.Client) -> None:
        if self._retries_off is None:
            proxyserver = ctx.master.addons.get("proxyserver")
            handler = proxyserver.connections.get(client.id) if proxyserver is not None else None
            if handler is not None:
                fast_layers.adopt(handler.layer)

    def next_layer(self, nextlayer: layer.NextLayer) -> None:
        if self._retries_off is None:
            chain = self.settings.chain
            layers = self.patience.layers if self.patience is not None else None
            if self._is_ours is not None:
                fast_layers.choose(nextlayer, self._is_ours)
            attempts.install(nextlayer, chain.spec if chain is not None else None, layers, self.repeats)

    async def heliproxy_attempt_failed(self, question: attempts.Question) -> None:
        await question.settle()

    def server_connect(self, data: server_hooks.ServerConnectionHookData) -> Awaitable[None] | None:
        return self.fence.check_dial(data)

    def server_connected(self, data: server_hooks.ServerConnectionHookData) -> None:
        self.fence.check_connection(data)

    def http_connect(self, flow: http.HTTPFlow) -> None:
        refused = self.door.admit(flow)
        if refused is None:
            self._note_run(flow)
            refused = self._turned_away(flow, None)
        if refused is not None:
            flow.response = flows.response_of(refused)

    def client_disconnected(self, client: connection.Client) -> None:
        self.runs.pop(client.id, None)
        self.door.forget(client)
        self.fence.forget(client)

    def _turned_away(self, flow: http.HTTPFlow, destination: Destination | None) -> Answer | None:
        """What a client is told about a request that is not for it to make: a web page's, or one into this machine."""
        request = flow.request
        if destination is None:
            reason = self.fence.refusal(flow.client_conn, request.host, request.port)
        elif destination.kind != "api" and self._is_own_port(flow):
            reason = entry.foreign_page(request.headers.fields)
        else:
            return None
        if reason is None:
            return None
        self.complaints.say(request.host, 403, reason)
        return error_answer(403, reason, "refused")

    def _note_run(self, flow: http.HTTPFlow) -> None:
        run_id = run_of(flow.request.headers.get("proxy-authorization", ""))
        if run_id is not None:
            self.runs[flow.client_conn.id] = run_id

    def _leave_proxy_headers(self, flow: http.HTTPFlow) -> None:
        """Proxy-Authorization is for one hop: what the client sent was for us, and plain http has one for the next."""
        request = flow.request
        if "proxy-authorization" in request.headers:
            self._note_run(flow)
            del request.headers["proxy-authorization"]
        chain = self.settings.chain
        hop = chain.hop("http", request.host, request.port) if chain and request.scheme == "http" else None
        if hop is not None and hop.authorization is not None and not self._is_own_port(flow):
            request.headers["Proxy-Authorization"] = hop.authorization

    async def http_connect_upstream(self, flow: http.HTTPFlow) -> None:
        """A tunnel through the company's proxy: with its password, and guarded as a dial of our own."""
        request, chain = flow.request, self.settings.chain
        hop = chain.hop("https", request.host, request.port) if chain is not None else None
        if hop is not None and hop.authorization is not None:
            request.headers["Proxy-Authorization"] = hop.authorization
        await self.fence.check_tunnel(flow)

    def tls_failed_client(self, data: tls.TlsData) -> None:
        host = data.conn.sni or (data.context.server.address or ("?",))[0]
        self.refused[host] += 1
        if self.refused[host] == 1:
            reason = (data.conn.error or f"a client's TLS handshake for {host} failed").rstrip(".")
            logger.warning("%s; `heliproxy env` prints the variables that a client needs", reason)

    # ---------------------------------------------------------------- request

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        if flow.error is not None:
            return
        started = time.perf_counter()
        refused = self._keep_out(flow) if self._keep_out is not None else None
        if refused is None:
            self._leave_proxy_headers(flow)
            fields = flow.request.headers.fields
            found = self._destination(flow)
            refused = self._turned_away(flow, found[0] if found is not None else None)
        if refused is not None:
            flow.response = flows.response_of(refused)
            return
        if found is None:
            flow.request.stream = self.alone and "upgrade" not in flow.request.headers
            return
        destination, directives = found
        route = destination.route
        if not (route.inference or route.batch or _is_policed(destination, directives)):
            self.passing[flow.id] = destination
            if destination.kind == "api":
                flow.request.headers.fields = fields  # `Helicone-*` headers say what a log sent to us is about
            if destination.kind == "provider":
                self.seen[route.provider] += 1
                self._send_to(flow, destination)
                self.passed[flow.id] = 0
                flow.request.stream = "upgrade" not in flow.request.headers
            return
        self.seen[route.provider] += 1
        path = destination.path
        target_url = self._send_to(flow, destination) if destination.kind == "provider" else None
        self.destinations[flow.id] = destination
        self.live[flow.id] = Exchange(
            id=directives.request_id or new_request_id(int(time.time() * 1000)),
            created_at=time.time(),
            started=started,
            route=route,
            directives=directives,
            method=flow.request.method,
            path=path,
            request_headers=fields,
            target_url=target_url,
            run_id=self._run_of(flow.client_conn.id),
            warnings=list(directives.warnings),
            logged=route.inference,
        )
        if long_bodies.is_announced(fields):
            self.heliproxy_long_body(flow)

    def heliproxy_long_body(self, flow: http.HTTPFlow) -> None:
        """Let a request that is too long to be held pass as it comes, or refuse it if somebody here must read it."""
        exchange = self.live.get(flow.id)
        if exchange is None:
            destination = self.passing.get(flow.id)
            if destination is not None and destination.kind != "provider":
                flow.response = flows.response_of(TOO_LONG)
            else:
                flow.request.stream = True
            return
        exchange.size_request = 0
        answer = refusal(exchange.directives) or self.destinations[flow.id].answer
        if answer is None and not self._passes_unread(flow, exchange):
            answer = TOO_LONG
        if answer is not None:
            flows.answer(flow, exchange, answer)
        else:
            flow.request.stream = long_bodies.request_tap(exchange)
            exchange.parse_error = "request: it was too long to be held, and passed on unread"

    def _passes_unread(self, flow: http.HTTPFlow, exchange: Exchange) -> bool:
        """Whether no gateway and no policy has to read a request."""
        if self.destinations[flow.id].kind != "provider":
            return False
        return self.services.gates.idle(exchange) if self.services is not None else self._ready.is_set()

    def _destination(self, flow: http.HTTPFlow) -> tuple[Destination, Directives] | None:
        """Where the request goes and what its headers ask for; None when it is none of our business."""
        request = flow.request
        own = self._is_own_port(flow)
        helicone = not own and hosts.is_helicone_host(request.host)
        path = request.path
        if own or helicone:
            path, key = targets.split_key(path)
            if key is not None and "helicone-auth" not in request.headers:
                request.headers["Helicone-Auth"] = f"Bearer {key}"
        elif (
            hosts.provider_for_host(f"{request.host}:{request.port}") is None
            and request.host not in self.settings.upstreams
        ):
            return None
        directives = flows.directives_of(request.headers.fields, self._defaults)
        flows.strip_helicone(request)
        if directives.auth_in_authorization:
            flows.set_or_remove(request, "authorization", provider_authorization(request.headers["authorization"]))
        if own:
            found = targets.of_own_port(request.method, path, directives, self._allowed)
            return targets.placed(found, self.settings.upstreams), directives
        if helicone:
            return targets.of_helicone(request.method, request.host, path, directives, self._allowed), directives
        method = "POST" if flows.is_websocket(request) else request.method
        known = targets.of_provider(method, request.host, path) or targets.of_added(method, request.host, path)
        known = flows.with_origin(known, request)
        return targets.overridden(known, request.method, directives, self._allowed), directives

    def _send_to(self, flow: http.HTTPFlow, destination: Destination) -> str | None:
        """Point the request at its destination, or where the operator sends that host; returns the origin if other."""
        request = flow.request
        if destination.guarded:
            self.fence.guard(flow.client_conn, destination.host, destination.port)
        upstream = self.settings.upstreams.get(destination.host)
        if upstream is None:
            flows.point_at(request, destination.scheme, destination.host, destination.port, destination.path)
            return None if destination.host == destination.route.host else f"{destination.scheme}://{destination.host}"
        flows.point_at(request, upstream.scheme, upstream.host, upstream.port, upstream.prefix + destination.path)
        return upstream.origin

    def request(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        """Only what has to wait (policies, our own API) is returned to be awaited: that costs every call its share."""
        if self.services is None and not self._ready.is_set():
            return self._request_later(flow)
        exchange = self.live.get(flow.id)
        if exchange is None:
            return self._serve(flow) if flow.id in self.passing and flow.response is None else None
        if exchange.size_request is not None:
            return None  # it has passed, or is refused
        exchange.request_body = flow.request.raw_content
        answer: Answer | Hit | None
        try:
            answer, decided = self._decide_at_once(flow, exchange)
        except Exception as e:
            answer, decided = _policies_failed(e), True
        if not decided:
            return self._request_decided_later(flow, exchange)
        self._decided(flow, exchange, answer)
        return None

    async def _request_later(self, flow: http.HTTPFlow) -> None:
        await self._ready.wait()
        rest = self.request(flow)
        if rest is not None:
            await rest

    async def _request_decided_later(self, flow: http.HTTPFlow, exchange: Exchange) -> None:
        try:
            answer = await self._decide(flow, exchange, self.destinations[flow.id])
        except Exception as e:
            answer = _policies_failed(e)
        self._decided(flow, exchange, answer)

    def _decided(self, flow: http.HTTPFlow, exchange: Exchange, answer: Answer | Hit | None) -> None:
        if answer is not None:
            flows.answer(flow, exchange, answer)
            if self.repeats is not None and self._keep_out is None and isinstance(answer, Hit):
                self.repeats.note(exchange, answer)
        elif self._retries_off is None and flow.id not in self.passing and attempts.plan_of(flow) is None:
            attempts.use(flow, self._plan(exchange))

    def _decide_at_once(self, flow: http.HTTPFlow, exchange: Exchange) -> tuple[Answer | Hit | None, bool]:
        """What can be decided without waiting, and whether it is decided: most calls concern no policy, and a cached
        answer is mostly in memory."""
        destination = self.destinations[flow.id]
        answer = refusal(exchange.directives) or destination.answer
        if answer is not None or self.services is None:
            return answer, True
        if exchange.directives.cache.wanted and self.repeats is not None:
            self.repeats.wanted = True
        if destination.kind != "provider":
            return None, False
        gates = self.services.gates
        if gates.idle(exchange):
            return None, True
        hit = gates.hit_at_once(exchange, flows.FlowCall(flow.request))
        return hit, hit is not None

    async def _decide(self, flow: http.HTTPFlow, exchange: Exchange, destination: Destination) -> Answer | Hit | None:
        """What policies answer in place of an upstream; None: the call goes out."""
        assert self.services is not None
        gates = self.services.gates
        direct = destination.kind == "provider"
        body = await gates.prepare(exchange, flows.FlowCall(flow.request))
        if not direct:
            answer = self._choose(flow, exchange, destination, body)
            if answer is not None:
                return answer
            body = exchange.request_body or b""
        return None if gates.idle(exchange) else await gates.open(exchange, flows.FlowCall(flow.request), body)

    async def _serve(self, flow: http.HTTPFlow) -> None:
        """Answer what is for our own API, or what goes nowhere."""
        destination = self.passing.get(flow.id)
        if destination is None or destination.kind == "provider":
            return
        try:
            if destination.answer is not None:
                flow.response = flows.response_of(destination.answer)
                if destination.answer.status >= 500:
                    self.complaints.say(destination.host, destination.answer.status, destination.answer.sentence)
                flow.response.headers.setdefault("Helicone-Id", new_request_id(int(time.time() * 1000)))
                flow.response.headers.setdefault("Helicone-Status", "success")
            elif self.services is not None:
                flow.response = await flows.ask_app(self.services.app, flow.request, destination.path)
        except Exception as e:
            logger.exception("our own API failed")
            flow.response = flows.response_of(exception_answer(f"{type(e).__name__}: {e}"))

    def _choose(self, flow: http.HTTPFlow, exchange: Exchange, destination: Destination, body: bytes) -> Answer | None:
        """For gateways: pick the upstream, and plan the ones after it."""
        assert self.services is not None
        chosen = fallbacks.choose(exchange, destination, body, os.environ, self._allowed)
        if isinstance(chosen, Answer):
            return chosen
        call = GatewayCall(exchange, chosen, self.services.gates, self._send_to)
        call.apply(flow, 0)
        attempts.use(flow, call.planned(self._plan(exchange)))
        return None

    def _plan(self, exchange: Exchange) -> CallPlan:
        return CallPlan(exchange, backoff_of(exchange), lambda *_: None, flows.response_of, sleep=self.sleep)

    # ---------------------------------------------------------------- response

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        response = flow.response
        assert response is not None
        exchange = self.live.get(flow.id)
        if exchange is None:
            destination = self.passing.get(flow.id)
            known = destination is not None and destination.kind == "provider"
            if response.status_code == 101:
                self._passed_on(flow.id)  # a socket may be silent for as long as it likes
            elif known:
                response.stream = self._counter(flow.id)
            elif destination is None and self.alone:
                response.stream = True
            return
        exchange.status = response.status_code
        exchange.response_headers = response.headers.fields
        if response.status_code == 101:
            # From here on the socket's messages are the calls, not the upgrade itself.
            del self.live[flow.id]
            self.destinations.pop(flow.id, None)
            self.sockets.open(flow.id, exchange, self.recorder)
            return
        if exchange.attempts and not exchange.last_noted:
            plan = attempts.plan_of(flow)
            if isinstance(plan, CallPlan):
                plan.succeeded(flow, response.status_code)
        if not 200 <= response.status_code <= 599:
            # No client knows what that is; RFC 9110 section 15 has it read as a 5xx, Helicone sends a 500.
            response.status_code, response.reason = 500, "Internal Server Error"
        self._add_headers(response, exchange)
        if not exchange.answered_here and is_streamed(response):
            response.stream = tap(flow.id, exchange, response, self._hand_over, self._linger)

    def _counter(self, flow_id: str) -> Callable[[bytes], bytes]:
        passed = self.passed

        def count(data: bytes) -> bytes:
            if flow_id in passed:
                passed[flow_id] += len(data)
            return data

        return count

    def _passed_on(self, flow_id: str) -> None:
        """Forget a call that is over and that is not ours to log."""
        self.passing.pop(flow_id, None)
        self.passed.pop(flow_id, None)

    def _add_headers(self, response: http.Response, exchange: Exchange) -> None:
        headers = response.headers
        pairs = [("Helicone-Id", exchange.id)]
        if "helicone-status" not in headers:
            pairs.append(("Helicone-Status", "success"))
        pairs += exchange.response_extra
        pairs += exchange.gateway_extra
        if exchange.fallback_index is not None:
            pairs.append(("helicone-fallback-index", str(exchange.fallback_index)))
        if exchange.warnings:
            pairs.append(("Heliproxy-Warning", flows.header_text("; ".join(exchange.warnings))[:MAX_WARNING]))
        flows.put_headers(headers, pairs)

    def _hand_over(self, exchange: Exchange) -> None:
        if self.services is not None:
            self.recorder.stream(exchange)

    def _linger(self, flow_id: str) -> None:
        """The last event is passing: write the row soon, even if nobody closes the connection."""
        asyncio.get_running_loop().call_later(LINGER_SECONDS, self._finish, flow_id)

    def response(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        exchange = self.live.get(flow.id)
        if exchange is None:
            self._passed_on(flow.id)
            return None
        response = flow.response
        assert response is not None
        if not response.stream:
            content = response.raw_content or b""
            exchange.chunks = [content]
            exchange.size_response = len(content)
        if self.repeats is not None and exchange.cache == "HIT":
            self.repeats.note_end(exchange)
        if exchange.keep_raw and exchange.status == 200 and not exchange.answered_here:
            return self._save_and_finish(flow.id, exchange)
        self._finish(flow.id)
        return None

    async def _save_and_finish(self, flow_id: str, exchange: Exchange) -> None:
        """Cache an answer before its client has the end of it: whoever asks next, of any process, finds it there."""
        exchange.ended = exchange.ended or time.perf_counter()
        try:
            if self.services is not None and not exchange.finished:
                await self.services.gates.save_now(exchange)
        except Exception as e:
            logger.warning("answer not cached yet: %s", e, exc_info=e)
        finally:
            self._finish(flow_id)

    def error(self, flow: http.HTTPFlow) -> None:
        exchange = self.live.get(flow.id)
        if exchange is None:
            self._passed_on(flow.id)
            return
        assert flow.error is not None
        exchange.error = flow.error.msg
        exchange.aborted = flows.who_ended(flow)
        self._finish(flow.id)

    # ---------------------------------------------------------------- WebSockets

    def websocket_message(self, flow: http.HTTPFlow) -> None:
        self.sockets.message(flow)

    def websocket_end(self, flow: http.HTTPFlow) -> None:
        self.sockets.end(flow)

    # ---------------------------------------------------------------- the end

    def under_way(self) -> list[Exchange]:
        """Every call that is not over. The recorder asks, on its own thread."""
        return [*self.live.values(), *self.sockets.calls()]

    def _finish(self, flow_id: str) -> None:
        """Hand an exchange to the recorder; a second call for the same one does nothing."""
        exchange = self.live.pop(flow_id, None)
        self.destinations.pop(flow_id, None)
        if exchange is None or exchange.finished:
            return
        exchange.finished = True
        if exchange.ended is None:
            exchange.ended = time.perf_counter()
        if self.services is not None:
            self.recorder.finish(exchange)


def _policies_failed(error: Exception) -> Answer:
    """A policy the client asked for cannot be left out in silence, nor may a client hang on our mistake."""
    logger.error("policies failed", exc_info=error)
    return exception_answer(f"{type(error).__name__}: {error}")


def _is_policed(destination: Destination, directives: Directives) -> bool:
    """Whether policies apply to a call that is no inference (a list of models): only when its headers ask for one.

    Uploads and downloads of files pass raw, whatever their headers say.
    """
    return destination.kind == "provider" and asks(directives) and "/files" not in destination.path


def __getattr__(name: str) -> Any:
    """`addons`, which mitmproxy's tools look for; what only they need (flow list, content view) is slow to import."""
    if name != "addons":
        raise AttributeError(name)
    from heliproxy.contentview import FlowTools

    return [Heliproxy(), FlowTools()]
