"""Call the upstream again, or another one, before the client has seen a byte.

Built on mitmproxy's private core, whose `HttpStream` makes exactly one upstream call for a request; `RetryStream` is
the same class with three seams changed: connecting, the arrival of response headers, and a protocol error before them.
At each it asks the flow's `Plan`, through a blocking hook, whether to call again. All else (TLS, upstream proxies,
connection reuse, streaming) stays mitmproxy's, and a flow without a plan takes mitmproxy's own path.

In an addon:

    from heliproxy import attempts

    class MyAddon:
        def next_layer(self, nextlayer):
            attempts.install(nextlayer)         # unless attempts.available() says why not

        async def heliproxy_attempt_failed(self, question):
            await question.settle()

        def request(self, flow):
            attempts.use(flow, MyPlan(...))     # here or in requestheaders

What holds:

- `responseheaders`, `response` and `error` fire for the final outcome only, and once (but see `Plan.broken`).
- The last answer is passed on as it came, streamed if `responseheaders` says so. If the last call brought no answer,
  the client gets what the plan put in `flow.response`, else the last complete answer of an earlier call, else
  mitmproxy's 502.
- Requests whose body is streamed upstream, and protocol upgrades, are never called again: their plan is not asked.
- A client that leaves while the plan thinks or sleeps cancels `Plan.failed` and fires `error`; nothing more is sent.

Importing this module raises ImportError, and `available` gives a reason, when mitmproxy's core is not the one we know.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple, Protocol
from weakref import WeakSet

from mitmproxy.connection import Server
from mitmproxy.flow import Error
from mitmproxy.net.server_spec import ServerSpec
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layer import CommandGenerator, Layer, NextLayer
from mitmproxy.proxy.layers.http import DropStream, GetHttpConnection, HttpLayer, HTTPMode, HttpStream, SendHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    HttpEvent,
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    RequestTrailers,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
    ResponseTrailers,
)
from mitmproxy.proxy.layers.http._hooks import HttpResponseHeadersHook
from mitmproxy.proxy.layers.http._upstream_proxy import HttpUpstreamProxy
from mitmproxy.proxy.layers.tcp import TCPLayer
from mitmproxy.proxy.mode_specs import RegularMode

from heliproxy.fast_layers import FlatLayer
from heliproxy.fast_repeats import Repeating
from heliproxy.long_bodies import BoundedStream

if TYPE_CHECKING:
    from mitmproxy import http

    from heliproxy.repeats import Repeats

logger = logging.getLogger(__name__)

PEEK_LIMIT = 64 * 1024
"""Bytes of a 200 held back while waiting for its first event; more than this is let through unjudged."""

_PLAN = "_heliproxy_plan"
_ENDED_BY = "_heliproxy_ended_by"
_FROM_UPSTREAM = (ResponseHeaders, ResponseData, ResponseTrailers, ResponseEndOfMessage, ResponseProtocolError)

Judge = Callable[[bytes], bool | None]
"""Takes the next piece of a response body (as sent, so still content-encoded). True: this answer is a failure;
False: it is fine; None: too early to say."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one upstream call failed. `flow.request` still is the request that was sent."""

    status: int | None
    """HTTP status, or None when no response headers came."""
    headers: http.Headers | None
    """The response headers, or None when none came."""
    error: str | None
    """mitmproxy's words for a connection or protocol error, "error event" when a judge said so, else None."""
    duration_ms: float
    """From the start of connecting to the failure."""
    peeked: bytes = b""
    """What was read of the body before a judge decided."""
    earlier: http.Response | None = None
    """The last complete answer of an earlier call: what the client gets if this call brought none and the plan stops
    here without setting `flow.response`."""


class Plan(Protocol):
    """What one flow wants done about failures. One object per flow; mitmproxy's event loop calls it."""

    def wants(self, status: int) -> bool:
        """Whether an answer with this status is a failure to be asked about. Must not block."""

    def peek(self, status: int, headers: http.Headers) -> Judge | None:
        """A judge for the first bytes of an answer that `wants` did not want, or None to let it pass at once.

        The headers are held back until the judge has decided, so give one only where that is meant: a 200 event stream.
        """

    async def failed(self, flow: http.HTTPFlow, outcome: Outcome) -> bool:
        """Decide; True: call again, with `flow.request` as it is when this returns.

        Sleeps the backoff itself, and may rewrite any part of `flow.request` (host, port, scheme, headers, body).
        Before returning False it may set `flow.response`, which then goes to the client in place of the failed answer.
        It is cancelled when the client leaves. An exception is logged and counts as False.
        """

    def broken(self, flow: http.HTTPFlow, error: str) -> http.Response | None:
        """What the client gets in place of an answer that `responseheaders` has seen, but that was held back and did
        not come whole; None: mitmproxy's 502. Must not block. `responseheaders` then fires for this one too."""


def use(flow: http.HTTPFlow, plan: Plan | None) -> None:
    """Give the flow a plan (None takes it away).

    It is kept outside `flow.metadata`, which mitmproxy deep-copies and saves with the flow.
    """
    if plan is None:
        vars(flow).pop(_PLAN, None)
    else:
        setattr(flow, _PLAN, plan)


def plan_of(flow: http.HTTPFlow) -> Plan | None:
    """The plan that `use` gave the flow."""
    plan: Plan | None = vars(flow).get(_PLAN)
    return plan


def ended_by(flow: http.HTTPFlow) -> str | None:
    """Who broke a flow off, "client" or "upstream", or "timeout"; None while nobody did. mitmproxy's message alone does
    not tell: over HTTP/2 both sides' resets read "stream reset by client"."""
    found: str | None = vars(flow).get(_ENDED_BY)
    return found


Way = Callable[[str, str, int], ServerSpec | None]
"""Takes scheme, host and port of an upstream; gives the proxy (scheme, address) on the way there, or None."""


def install(
    nextlayer: NextLayer,
    way: Way | None = None,
    layers: WeakSet[RetryLayer] | None = None,
    repeats: Repeats | None = None,
) -> None:
    """Have the HTTP layer that is being chosen here make `RetryStream`s, whether it is chosen already or later.

    With a `way`, its connections, and those of tunnels, go through the proxies it names. `layers` gets the layer.
    With `repeats`, requests that are remembered there are answered at once.
    """
    if way is not None and not isinstance(nextlayer.context.client.proxy_mode, RegularMode):
        way = None
    nextlayer.__dict__["heliproxy_way"] = way
    nextlayer.__dict__["heliproxy_layers"] = layers
    nextlayer.__dict__["heliproxy_repeats"] = repeats
    if nextlayer.layer is not None:
        _adopt(nextlayer)
    else:
        nextlayer.__class__ = _WatchedNextLayer


def _adopt(nextlayer: NextLayer) -> None:
    way: Way | None = nextlayer.__dict__.get("heliproxy_way")
    # The HTTP layer may sit below a TLS layer that was chosen with it; every layer lists itself in its context.
    for layer in nextlayer.context.layers:
        if type(layer) is HttpLayer:
            layer.__class__ = RetryLayer
            layer.way = way  # type: ignore[attr-defined]
            repeats: Repeats | None = nextlayer.__dict__.get("heliproxy_repeats")
            if repeats is not None:
                layer.repeating = Repeating(layer, repeats)  # type: ignore[arg-type,attr-defined]
            layers: WeakSet[RetryLayer] | None = nextlayer.__dict__.get("heliproxy_layers")
            if layers is not None:
                layers.add(layer)  # type: ignore[arg-type]
    if way is not None and type(nextlayer.layer) is TCPLayer:
        _lead_tunnel(nextlayer, nextlayer.layer, way)


def _lead_tunnel(nextlayer: NextLayer, tunnel: TCPLayer, way: Way) -> None:
    """Put the proxy on the way below a tunnel, as mitmproxy does it in upstream mode."""
    server = nextlayer.context.server
    if server.address is None or server.timestamp_start is not None:
        return
    server.via = way("https", server.address[0], server.address[1])
    if server.via is None:
        return
    stack = HttpUpstreamProxy.make(nextlayer.context, True)
    stack /= tunnel
    nextlayer.__dict__["layer"] = stack[0]


class _WatchedNextLayer(NextLayer):
    """A NextLayer that notices the choice: scripts run before the addon that chooses, other addons after it."""

    @property
    def layer(self) -> Layer | None:
        return self.__dict__.get("layer")

    @layer.setter
    def layer(self, chosen: Layer | None) -> None:
        self.__dict__["layer"] = chosen
        _adopt(self)


@dataclass(eq=False, slots=True)
class Question:
    """One failed call put to its plan. It travels as a mitmproxy hook, which leaves the proxy core free meanwhile."""

    flow: http.HTTPFlow
    plan: Plan
    outcome: Outcome
    again: bool = False
    _client_gone: bool = False
    _task: asyncio.Future[bool] | None = None

    async def settle(self) -> None:
        """Ask the plan; afterwards `again` is the answer. Raises CancelledError only if the caller is cancelled."""
        if self._client_gone or self._task is not None:
            return
        try:
            self._task = asyncio.ensure_future(self.plan.failed(self.flow, self.outcome))
            self.again = bool(await self._task)
        except asyncio.CancelledError:
            # Ending here as cancelled would leave the client waiting for ever, so only our own cancellation passes.
            me = asyncio.current_task()
            if me is not None and me.cancelling():
                raise
            if not self._client_gone:
                logger.exception("The retry plan was cancelled: not calling again.")
        except Exception:
            logger.exception("The retry plan failed: not calling again.")

    def client_gone(self) -> None:
        """Stop the plan at once."""
        self._client_gone = True
        if self._task is not None:
            self._task.cancel()


@dataclass
class HeliproxyAttemptFailedHook(commands.StartHook):
    """An upstream call has failed and its flow has a plan."""

    name = "heliproxy_attempt_failed"
    question: Question


class Progress(NamedTuple):
    """How far a stream's upstream call is; two that are equal mean that nothing has come in between."""

    call: int
    state: str
    received: int
    """Bytes of the answer kept back so far."""
    waits_for: object
    """The command for a connection that is still being made, else None."""


class _Next(Enum):
    AGAIN = auto()
    PASS = auto()
    """The plan is done: the client gets what came."""
    ENDED = auto()
    """The flow is over: the plan's own answer was sent, or the client left."""


@dataclass(slots=True)
class _Held:
    """A response kept from the client until its judge has decided."""

    headers: ResponseHeaders
    judge: Judge
    rest: list[HttpEvent] = field(default_factory=list)
    size: int = 0

    def body(self) -> bytes:
        return b"".join(e.data for e in self.rest if isinstance(e, ResponseData))


class RetryLayer(FlatLayer):
    """mitmproxy's HTTP layer, making our streams. Instances are switched to this class, so it has no `__init__`."""

    last_alias: int = 0
    way: Way | None = None

    def get_connection(self, event: GetHttpConnection, *, reuse: bool = True) -> CommandGenerator[None]:
        steps = super().get_connection(event, reuse=reuse)
        if event.via is None or event.tls or self.context.client.alpn == b"h2":
            yield from steps
            return
        # Many proxies tunnel to port 443 alone, and want plain http in absolute form. mitmproxy does that in its
        # upstream mode only, which it asks for before the first step.
        mode, self.mode = self.mode, HTTPMode.upstream
        try:
            command = next(steps)
        except StopIteration:
            return
        finally:
            self.mode = mode
        while True:
            reply = yield command
            try:
                command = steps.send(reply)
            except StopIteration:
                return

    def make_stream(self, stream_id: int) -> CommandGenerator[None]:
        stream = self.streams[stream_id] = RetryStream(self.context.fork(), stream_id)
        yield from self.event_to_child(stream, events.Start())

    def new_alias(self) -> int:
        """A stream id no client uses: theirs are positive."""
        self.last_alias -= 1
        return self.last_alias


class RetryStream(BoundedStream):
    """An HTTP stream that may make several upstream calls for its one request."""

    _alias: int | None = None
    """The stream id of the current upstream call; None for the first call, which has the client's id.

    Each call needs its own: an HTTP/2 upstream connection maps ids to its streams for good, and late events of a call
    that was given up must not be taken for those of the next."""
    _held: _Held | None = None
    _earlier: http.Response | None = None
    _reconnect: bool = False
    _began: float = 0.0
    stalled: str | None = None
    """Why the current call is given up, when that is our own decision: the upstream has said nothing for too long."""

    @property
    def upstream_id(self) -> int:
        """The stream id of the current upstream call."""
        return self.stream_id if self._alias is None else self._alias

    def progress(self) -> Progress | None:
        """How far the upstream call is, or None when it is not the upstream that is waited for."""
        waits_for = self._paused.command if self._paused is not None else None
        if waits_for is not None and not isinstance(waits_for, GetHttpConnection):
            return None
        idle = (self.state_uninitialized, self.state_done, self.state_errored)
        if self.client_state != self.state_done or self.server_state in idle:
            return None
        received = len(self.response_body_buf) + (self._held.size if self._held is not None else 0)
        return Progress(self.upstream_id, self.server_state.__name__, received, waits_for)

    # The three seams.

    def make_server_connection(self) -> CommandGenerator[bool]:
        plan = self._plan()
        if plan is None:
            self._choose_way()
            return (yield from super().make_server_connection())
        while True:
            self._choose_way()
            self._reconnect = False
            self._began = time.monotonic()
            connected = yield from super().make_server_connection()
            if not self._reconnect:
                break
        if connected and (yield from self.check_killed(True)):
            return False
        return connected

    def state_wait_for_response_headers(self, event: events.Event) -> CommandGenerator[None]:
        plan = self._plan()
        if plan is None:
            yield from super().state_wait_for_response_headers(event)
            return
        assert isinstance(event, ResponseHeaders)
        response = event.response
        if _safely(False, plan.wants, response.status_code):
            verdict = yield from self._ask(plan, self._outcome(response), response)
            if verdict is _Next.AGAIN:
                yield from self._call_again()
            elif verdict is _Next.PASS:
                yield from super().state_wait_for_response_headers(event)
        elif judge := _safely(None, plan.peek, response.status_code, response.headers):
            self._held = _Held(event, judge)
            self.server_state = self.state_peek
        else:
            yield from super().state_wait_for_response_headers(event)

    def handle_protocol_error(self, event: RequestProtocolError | ResponseProtocolError) -> CommandGenerator[None]:
        awaiting = self.client_state == self.state_done and self.server_state in (
            self.state_wait_for_response_headers,
            self.state_peek,
        )
        plan = self._plan() if awaiting else None
        if plan is None or isinstance(event, RequestProtocolError):
            if isinstance(event, ResponseProtocolError):
                if self.stalled is not None:
                    yield from self._drop_stalled(event)
                if (yield from self._answer_broken(event)):
                    return
            yield from self._break_off(event)
            return
        connecting = event.code is ErrorCode.CONNECT_FAILED
        if self.stalled is not None:
            yield from self._drop_stalled(event)
        if connecting:
            self._forget_connection_errors()
        response = self._held.headers.response if self._held else None
        verdict = yield from self._ask(
            plan, self._outcome(response, event.message), response, over=True, called=not connecting
        )
        if verdict is _Next.AGAIN:
            self.stalled = None
        if verdict is _Next.AGAIN and connecting:
            self._reconnect = True
        elif verdict is _Next.AGAIN:
            yield from self._call_again()
        elif verdict is _Next.PASS:
            yield from self._pass_on_error(event)

    def _choose_way(self) -> None:
        """Have the connection made through the proxy on the way to where the request goes now."""
        way = self._http_layer().way
        if way is None:
            return
        flow, request = self.flow, self.flow.request
        via = way(request.scheme, request.host, request.port)
        if flow.server_conn.via != via:
            if flow.server_conn.connected:
                flow.server_conn = Server(address=(request.host, request.port))
            flow.server_conn.via = via
        if not (request.is_http2 or request.is_http3):
            plain = via is not None and request.scheme == "http"
            host = f"[{request.host}]" if ":" in request.host else request.host
            request.authority = f"{host}:{request.port}" if plain else ""

    # Waiting for the first event of a 200.

    def state_peek(self, event: events.Event) -> CommandGenerator[None]:
        held, plan = self._held, self._plan()
        assert held is not None
        assert isinstance(event, HttpEvent)
        held.rest.append(event)
        bad: bool | None = False
        if isinstance(event, ResponseData):
            # What is beyond the limit is not looked at, in whatever pieces it comes.
            bad = _safely(False, held.judge, event.data[: PEEK_LIMIT - held.size])
            held.size += len(event.data)
        if bad is None and held.size < PEEK_LIMIT:
            return
        if bad and plan is not None:
            response = held.headers.response
            verdict = yield from self._ask(plan, self._outcome(response, "error event"), response)
            if verdict is _Next.AGAIN:
                yield from self._call_again()
            if verdict is not _Next.PASS:
                return
        yield from self._let_through()

    def _let_through(self) -> CommandGenerator[None]:
        held = self._held
        assert held is not None
        self._held = None
        yield from super().state_wait_for_response_headers(held.headers)
        for event in held.rest:
            yield from self.server_state(event)

    # Asking, and what follows.

    def _plan(self) -> Plan | None:
        plan = plan_of(self.flow)
        if plan is None or self.flow.request.stream or "upgrade" in self.flow.request.headers:
            return None
        return plan

    def _outcome(self, response: http.Response | None, error: str | None = None) -> Outcome:
        return Outcome(
            status=response.status_code if response else None,
            headers=response.headers if response else None,
            error=error,
            duration_ms=(time.monotonic() - self._began) * 1000,
            peeked=self._held.body() if self._held else b"",
            earlier=self._earlier,
        )

    def _ask(
        self,
        plan: Plan,
        outcome: Outcome,
        response: http.Response | None,
        *,
        over: bool = False,
        called: bool = True,
    ) -> CommandGenerator[_Next]:
        """Put the failure to the plan.

        `over`: the upstream has nothing more to say. `called`: there was a call at all, not just a failed connection.
        """
        question = Question(self.flow, plan, outcome)
        if not self._client_left():
            self.handle_event = self._watch_client(question)  # type: ignore[assignment, method-assign]
            yield HeliproxyAttemptFailedHook(question)
            del self.handle_event
        killed = self.flow.error is not None and self.flow.error.msg == Error.KILLED_MESSAGE
        if not killed and not self._client_left() and not question.again and self.flow.response is None:
            return _Next.PASS
        if called:
            yield from self._give_up_call(response, over=over)
        if (yield from self.check_killed(True)):
            return _Next.ENDED
        if question.again:
            # A plan that answers and asks for another call means the call.
            self.flow.response = None
            return _Next.AGAIN
        yield from self._answer()
        return _Next.ENDED

    def _watch_client(self, question: Question) -> Callable[[events.Event], CommandGenerator[None]]:
        # While this stream is paused its events only queue up, so nothing else would notice the client leaving.
        def handle_event(event: events.Event) -> CommandGenerator[None]:
            if isinstance(event, RequestProtocolError):
                question.client_gone()
            return HttpStream.handle_event(self, event)

        return handle_event

    def _client_left(self) -> bool:
        return any(isinstance(event, RequestProtocolError) for event in self._paused_event_queue)

    def _give_up_call(self, response: http.Response | None, *, over: bool) -> CommandGenerator[None]:
        """Leave the current upstream call without spoiling its connection, and keep its answer if that is complete.

        A response that ended while the plan was thinking leaves the connection reusable. Any other is cancelled:
        HTTP/2 resets the one stream, HTTP/1 closes the connection.
        """
        upstream_id = self.upstream_id
        rest: list[HttpEvent] = list(self._held.rest) if self._held else []
        waiting = (e for e in self._paused_event_queue if isinstance(e, _FROM_UPSTREAM))
        rest.extend(e for e in waiting if e.stream_id == upstream_id)
        if response is not None and any(isinstance(e, ResponseEndOfMessage) for e in rest):
            response.data.content = b"".join(e.data for e in rest if isinstance(e, ResponseData))
            response.timestamp_end = time.time()
            self._earlier = response
        elif not over:
            cancel = RequestProtocolError(upstream_id, "called again", ErrorCode.CANCEL)
            yield SendHttp(cancel, self.context.server)
        self._held = None
        layer = self._http_layer()
        if self._alias is not None:
            layer.streams.pop(self._alias, None)
        self._alias = layer.new_alias()
        self._handle_event = self._handle_aliased  # type: ignore[method-assign]

    def _call_again(self) -> CommandGenerator[None]:
        """Connect and send `flow.request` under the new alias."""
        self.server_state = self.state_wait_for_response_headers
        if not (yield from self.make_server_connection()):
            return
        assert self._alias is not None
        self._http_layer().streams[self._alias] = self
        request, server, upstream_id = self.flow.request, self.context.server, self._alias
        content, trailers = request.raw_content, request.trailers
        yield SendHttp(RequestHeaders(upstream_id, request, not (content or trailers)), server)
        if content:
            yield SendHttp(RequestData(upstream_id, content), server)
        if trailers:
            yield SendHttp(RequestTrailers(upstream_id, trailers), server)
        yield SendHttp(RequestEndOfMessage(upstream_id), server)

    def _drop_stalled(self, event: ResponseProtocolError) -> CommandGenerator[None]:
        """End a call that has stalled: nobody else tells the upstream, and the error should say what happened."""
        assert self.stalled is not None
        event.message = self.stalled
        if event.code is not ErrorCode.CONNECT_FAILED:
            cancel = RequestProtocolError(self.upstream_id, self.stalled, ErrorCode.CANCEL)
            yield SendHttp(cancel, self.context.server)

    def _answer_broken(self, event: ResponseProtocolError) -> CommandGenerator[bool]:
        """Have the plan answer in place of a body that broke off while it was held back; False: it does not."""
        plan = self._plan() if self.server_state == self.state_consume_response_body else None
        if plan is None or self.client_state != self.state_done:
            return False
        response = _safely(None, plan.broken, self.flow, event.message)
        if response is None:
            return False
        self.response_body_buf.clear()
        self.flow.response = response
        yield from self._answer()
        return True

    def _pass_on_error(self, event: ResponseProtocolError) -> CommandGenerator[None]:
        if self._held is not None:
            yield from self._let_through()
        elif self._earlier is not None:
            self.flow.response = self._earlier
            if not (yield from self.check_invalid(False)):
                yield from self._answer()
            return
        yield from self._break_off(event)

    def _break_off(self, event: RequestProtocolError | ResponseProtocolError) -> CommandGenerator[None]:
        if isinstance(event, RequestProtocolError):
            vars(self.flow)[_ENDED_BY] = "client"
        else:
            vars(self.flow)[_ENDED_BY] = "timeout" if self.stalled is not None else "upstream"
        yield from super().handle_protocol_error(event)

    def check_killed(self, emit_error_hook: bool) -> CommandGenerator[bool]:
        if self._client_left():
            vars(self.flow)[_ENDED_BY] = "client"
        return (yield from super().check_killed(emit_error_hook))

    def _answer(self) -> CommandGenerator[None]:
        """Send `flow.response` as mitmproxy sends a response set by an addon."""
        response = self.flow.response
        assert response is not None
        if response is not self._earlier:
            response.timestamp_start = time.time()
        yield HttpResponseHeadersHook(self.flow)
        if not (yield from self.check_killed(True)):
            yield from self.send_response()

    def _forget_connection_errors(self) -> None:
        # mitmproxy keeps the object of a failed connection and answers every later request for that address with its
        # error. Without the error it is just a closed connection, of which there may be any number. Removing the object
        # is not an option: a connection whose TLS failed still has its "closed" event to come.
        layer = self._http_layer()
        address = (self.flow.request.host, self.flow.request.port)
        for connection in (*layer.connections, layer.context.server):
            if isinstance(connection, Server) and connection.address == address and not connection.connected:
                connection.error = None

    # One stream, several ids.

    def _http_layer(self) -> RetryLayer:
        layer = self.context.layers[self.context.layers.index(self) - 1]
        assert isinstance(layer, RetryLayer)
        return layer

    def _handle_aliased(self, event: events.Event) -> CommandGenerator[None]:
        """Handle events once a call has been given up: `HttpStream` keeps seeing, and using, the client's stream id."""
        if isinstance(event, _FROM_UPSTREAM):
            if event.stream_id != self._alias:
                return
            event.stream_id = self.stream_id
        handler = super()._handle_event(event)
        reply = None
        while True:
            try:
                command = handler.send(reply)
            except StopIteration:
                return
            if isinstance(command, SendHttp) and command.connection is not self.context.client:
                assert self._alias is not None
                command.event.stream_id = self._alias
            elif isinstance(command, DropStream):
                assert self._alias is not None
                self._http_layer().streams.pop(self._alias, None)
            reply = yield command


def available() -> str | None:
    """Why retries cannot work with the installed mitmproxy, or None if they can.

    Looks at the names, signatures and calls we build on; whether they still mean the same is for the tests.
    """
    for owner, name, parameters in _SIGNATURES:
        found = getattr(owner, name, None)
        if found is None:
            return f"mitmproxy has no {owner.__name__}.{name}"
        have = tuple(inspect.signature(inspect.unwrap(found)).parameters)
        if have != parameters:
            return f"mitmproxy's {owner.__name__}.{name} takes {have}, expected {parameters}"
    for owner, name, called in _CALLS:
        if called not in inspect.unwrap(getattr(owner, name)).__code__.co_names:
            return f"mitmproxy's {owner.__name__}.{name} no longer uses {called}"
    for owner, name in _ATTRIBUTES:
        if name not in owner.__annotations__:
            return f"mitmproxy's {owner.__name__} has no attribute {name}"
    return None


_EVENT = ("self", "event")
_SIGNATURES: tuple[tuple[type, str, tuple[str, ...]], ...] = (
    (HttpStream, "__init__", ("self", "context", "stream_id")),
    (HttpStream, "_handle_event", _EVENT),
    (HttpStream, "state_wait_for_response_headers", _EVENT),
    (HttpStream, "handle_protocol_error", _EVENT),
    (HttpStream, "make_server_connection", ("self",)),
    (HttpStream, "check_killed", ("self", "emit_error_hook")),
    (HttpStream, "check_invalid", ("self", "request")),
    (HttpStream, "check_body_size", ("self", "request")),
    (HttpStream, "start_request_stream", ("self",)),
    (HttpStream, "start_response_stream", ("self",)),
    (HttpStream, "send_response", ("self", "already_streamed")),
    (HttpStream, "state_done", ("self", "_")),
    (HttpLayer, "make_stream", ("self", "stream_id")),
    (HttpLayer, "event_to_child", ("self", "child", "event")),
    (HttpLayer, "get_connection", ("self", "event", "reuse")),
    (HttpUpstreamProxy, "make", ("ctx", "send_connect")),
    (Layer, "handle_event", _EVENT),
    (SendHttp, "__init__", ("self", "event", "connection")),
    (DropStream, "__init__", ("self", "stream_id")),
    (RequestHeaders, "__init__", ("self", "stream_id", "request", "end_stream", "replay_flow")),
    (RequestData, "__init__", ("self", "stream_id", "data")),
    (RequestTrailers, "__init__", ("self", "stream_id", "trailers")),
    (RequestEndOfMessage, "__init__", ("self", "stream_id")),
    (RequestProtocolError, "__init__", ("self", "stream_id", "message", "code")),
    (HttpResponseHeadersHook, "__init__", ("self", "flow")),
)
_CALLS: tuple[tuple[type, str, str], ...] = (
    (HttpStream, "state_consume_request_body", "make_server_connection"),
    (HttpStream, "state_consume_request_body", "check_body_size"),
    (HttpStream, "state_consume_response_body", "check_body_size"),
    (HttpStream, "make_server_connection", "handle_protocol_error"),
    (HttpStream, "make_server_connection", "CONNECT_FAILED"),
    (HttpStream, "_handle_event", "handle_protocol_error"),
    (HttpStream, "_handle_event", "server_state"),
    (HttpStream, "start_response_stream", "state_stream_response_body"),
    (HttpStream, "check_killed", "_paused_event_queue"),
    (HttpLayer, "event_to_child", "make_stream"),
    (HttpLayer, "event_to_child", "streams"),
    (HttpLayer, "get_connection", "HTTPMode"),
    (HttpStream, "make_server_connection", "via"),
    (NextLayer, "_ask", "layer"),
)
_ATTRIBUTES: tuple[tuple[type, str], ...] = (
    (Layer, "_paused_event_queue"),
    (Layer, "context"),
    (HttpStream, "flow"),
    (HttpStream, "stream_id"),
    (HttpLayer, "streams"),
    (HttpLayer, "connections"),
    (NextLayer, "layer"),
)


def _safely[T, D](default: D, ask: Callable[..., T], *args: object) -> T | D:
    """Call the plan from inside the proxy core, where an exception would leave the client waiting for ever."""
    try:
        return ask(*args)
    except Exception:
        logger.exception("The retry plan failed: letting the answer pass.")
        return default
