"""A shorter way through mitmproxy's layers, for connections that are in their steady state.

An event of an intercepted connection passes some ten layers of generators in mitmproxy, six times for one small request
(its data, the answer's, and the end of each of four hooks), and every command they give passes all of them back. Nearly
all of these layers only hand on. Three shortcuts, each of which leaves the work itself to mitmproxy's own objects:

- `InlineStream`: a hook whose handlers are done when they return goes on at once; only a handler that waits takes the
  way out to the event loop and back.
- `FlatLayer`: one loop in place of the recursion between HTTP layer, streams and HTTP/1 connections, and one write for
  what is sent to one connection in one go.
- `Express`: once a CONNECT tunnel is intercepted, its client's bytes go to the TLS layer, and everything else to the
  HTTP layer, without the layers around them. The end of the client connection still goes the long way, so that each
  of the layers left out sees it.

What a shortcut does not know (HTTP/2, upgrades, handshakes, injected messages) takes mitmproxy's way.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from logging import WARNING
from typing import Any

from mitmproxy import ctx
from mitmproxy.connection import Connection, ConnectionState
from mitmproxy.http import Headers, MessageData
from mitmproxy.net.tls import starts_like_tls_record
from mitmproxy.optmanager import _Option, unset
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator, Layer, NextLayer
from mitmproxy.proxy.layers.http import (
    DropStream,
    GetHttpConnection,
    HttpClient,
    HttpLayer,
    HTTPMode,
    HttpStream,
    RegisterHttpConnection,
    SendHttp,
)
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._events import RequestHeaders
from mitmproxy.proxy.layers.http._http1 import Http1Client, Http1Server
from mitmproxy.proxy.layers.modes import HttpProxy
from mitmproxy.proxy.layers.tls import HTTP_ALPNS, ClientTLSLayer, ServerTLSLayer, TLSLayer
from mitmproxy.proxy.tunnel import TunnelState

from heliproxy.direct_read import SHORTCUT
from heliproxy.dispatch import DirectDispatch
from heliproxy.fast_repeats import Repeating
from heliproxy.fast_tls import Read, decrypt, encrypt, joined, outgoing
from heliproxy.passing import Passage, passage, reads_body

ROOT = "heliproxy_root"
"""Under this name a connection's first layer keeps its `Root`."""
_REQUEST = re.compile(rb"[A-Z]{3,} [^\r\n]")
"""How an HTTP/1 request begins, of those methods that are used."""


def use() -> None:
    """Replace four small things that every call pays for many times.

    The check of a new message's field types, which mitmproxy makes unless Python runs with -O, raises and swallows six
    exceptions, whose tracebacks keep the message alive. A header is looked up some thirty times for one call, with
    four function calls for each header there is. Each look at an option copies its value twice, deeply. And a context
    that is forked makes a server object, with an id from the system's random source, and throws it away.
    """
    if hasattr(MessageData, "__post_init__"):
        MessageData.__post_init__ = _unchecked  # type: ignore[method-assign]
    Headers.get_all = get_all  # type: ignore[method-assign]
    Headers.get = get  # type: ignore[assignment, method-assign]
    _Option.current = current  # type: ignore[method-assign]
    Context.fork = fork  # type: ignore[assignment, method-assign]


def _unchecked(self: MessageData) -> None:
    pass


_INDEX = "_heliproxy_index"
"""Under this name headers keep the fields their index was made of, and that index."""


def get_all(self: Headers, name: str | bytes) -> list[str]:
    """The values of a header, one for each time it was sent: what `Headers.get_all` gives, by an index.

    Headers are changed by giving them new fields, a tuple; then the index is made anew.
    """
    key = (name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name).lower()
    fields = self.fields
    made = vars(self).get(_INDEX)
    if made is None or made[0] is not fields:
        index: dict[bytes, list[bytes]] = {}
        for field, value in fields:
            index.setdefault(field.lower(), []).append(value)
        if type(fields) is tuple:
            vars(self)[_INDEX] = (fields, index)
    else:
        index = made[1]
    return [value.decode("utf-8", "surrogateescape") for value in index.get(key, ())]


def get(self: Headers, key: str | bytes, default: Any = None) -> Any:
    """A header folded into one value, as `Headers.get` gives it, without an exception for one that is not there."""
    values = get_all(self, key)
    return ", ".join(values) if values else default


def current(self: _Option) -> object:
    """The value of an option; copied, as in mitmproxy, if it is of a kind that could be changed."""
    value = self._default if self.value is unset else self.value
    return value if value is None or isinstance(value, str | int | float) else copy.deepcopy(value)


def fork(context: Context) -> Context:
    """What `Context.fork` gives, without the server object that it makes to put another in its place."""
    copied = object.__new__(Context)
    vars(copied).update(vars(context))
    copied.layers = context.layers.copy()
    return copied


class InlineStream(HttpStream):
    """An HTTP stream whose hooks are answered on the spot where that is possible."""

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        steps = super()._handle_event(event)
        reply = None
        while True:
            try:
                command = steps.send(reply)
            except StopIteration:
                return
            # A layer inside (WebSocket) that waits for its own hook has put itself in place of True.
            if command.blocking is True and isinstance(command, commands.StartHook) and _settle(command):
                reply = None
            else:
                reply = yield command


def _settle(hook: commands.StartHook) -> bool:
    """Call the handlers of a hook. False: some of them wait, or the flow is held, so the hook must be given out."""
    flow = getattr(hook, "flow", None)
    if flow is not None and flow.is_replay is not None:
        return False  # a replay is told of its end by the hook itself
    manager = ctx.master.addons
    return type(manager) is DirectDispatch and manager.begin(hook)


class Root:
    """Stands before the first layer of a client connection and answers the hooks of all layers on the spot.

    It also is where the way in gets shorter: `way` leads to the first layer, later to an `Express`.
    """

    def __init__(self, first: HttpProxy) -> None:
        self.way: Callable[[events.Event], CommandGenerator[None]] = first.handle_event

    def handle_event(self, event: events.Event) -> CommandGenerator[None]:
        waiting = [event]
        for one in waiting:
            for command in self.way(one):
                if isinstance(command, commands.StartHook) and _settle(command):
                    if command.blocking:
                        waiting.append(events.HookCompleted(command))
                else:
                    yield command


def adopt(first: Layer) -> None:
    """Put a `Root` before a connection's first layer, if that is one whose events we know."""
    if type(first) is HttpProxy and ROOT not in vars(first):
        root = Root(first)
        setattr(first, ROOT, root)
        first.handle_event = root.handle_event  # type: ignore[method-assign]


def choose(nextlayer: NextLayer, allowed: Callable[[str], object]) -> None:
    """Choose the layers of a client's connection, and of a tunnel in it to a host that `allowed` (host:port) knows, as
    mitmproxy would.

    mitmproxy also looks up the names in the TLS and HTTP that the tunnel carries. That can only add to what is allowed,
    and has it read the greeting of TLS twice. Everything but the common case is left to it.
    """
    context = nextlayer.context
    stack, address = context.layers, context.server.address
    if nextlayer.layer is not None or len(stack) not in (1, 3, 5) or not all(map(isinstance, stack, _TUNNEL)):
        return
    if len(stack) == 1:
        if address is None and context.server.peername is None and not starts_like_tls_record(nextlayer.data_client()):
            nextlayer.layer = HttpLayer(context, HTTPMode.regular)
        return
    if address is None or not allowed(f"{address[0]}:{address[1]}"):
        return
    data = nextlayer.data_client()
    if len(stack) == 3:
        if starts_like_tls_record(data):
            server = ServerTLSLayer(context)
            server.child_layer = ClientTLSLayer(context)
            nextlayer.layer = server
    elif context.client.alpn in HTTP_ALPNS or (not context.client.alpn and _REQUEST.match(data)):
        nextlayer.layer = HttpLayer(context, HTTPMode.transparent)


class _Wire:
    """The codec of one HTTP/1 connection, and the TLS below it if driving that is up to the HTTP layer."""

    __slots__ = ("codec", "passage", "read", "tls")

    def __init__(self, codec: Http1Server | Http1Client, tls: ServerTLSLayer | None) -> None:
        self.codec = codec
        self.tls = tls
        self.passage: Passage | None = None
        self.read: Read | None = None
        """What was decrypted already, and is to be handled."""

    def decrypted(self, data: bytes) -> Read:
        """What has been received in plain text, as `decrypt` gives it."""
        read, self.read = self.read, None
        if read is not None:
            return read
        return (data, False, None) if self.tls is None else decrypt(self.tls.tls, data)


class Shortcut:
    """The way of a streamed body from an upstream's socket to the client's, while nothing else happens."""

    __slots__ = ("_client", "_passage", "_wire")

    def __init__(self, wire: _Wire, passage: Passage, client: TLSLayer | None) -> None:
        self._wire = wire
        self._passage = passage
        self._client = client

    def take(self, data: bytes) -> tuple[bytes, bool]:
        """Take what was received: what is to be sent to the client, and whether that was all there is to do.

        If not, the layers are to be told that nothing was received, and find what is left.
        """
        plain, ended, error = self._wire.decrypted(data)
        passed = None if ended or error is not None else self._passage.take(plain)
        if passed is None:
            self._wire.read = plain, ended, error
            return b"", False
        rest = self._passage.leave()
        if rest:
            self._wire.read = rest, False, None
        if passed and self._client is not None:
            passed = encrypt(self._client.tls, passed)
        return passed, not rest


def _wire_of(top: Layer | None) -> _Wire | None:
    """The wire of a connection whose handshakes are over, or None."""
    if type(top) is Http1Server:
        return _Wire(top, None)
    tls = None
    if type(top) is ServerTLSLayer:
        if top.tunnel_state is not TunnelState.OPEN or top._paused or top.conn is not top.tunnel_connection:
            return None
        tls, top = top, top.child_layer
    if type(top) is HttpClient and not top._paused and "_handle_event" in vars(top):
        codec = top.child_layer
        if type(codec) is Http1Client:
            return _Wire(codec, tls)
    return None


def _receive(
    tls: TLSLayer, read: Read, on: Callable[[events.Event], Iterator[commands.Command]]
) -> CommandGenerator[None]:
    """Answer what TLS itself wants answered after something was decrypted, and hand the plain text on."""
    plain, ended, error = read
    if error is not None:
        yield commands.Log(error, WARNING)
    yield from _send_pending(tls)
    if plain:
        yield from on(events.DataReceived(tls.conn, plain))
    if ended:
        tls.conn.state &= ~ConnectionState.CAN_READ
        yield from on(events.ConnectionClosed(tls.conn))


def _send_pending(tls: TLSLayer) -> CommandGenerator[None]:
    """What TLS itself wants to have sent."""
    data = outgoing(tls.tls)
    if data:
        yield commands.SendData(tls.conn, data)


def _close(wire: _Wire, connection: Connection) -> None:
    """Take mitmproxy's way from now on."""
    wire.passage = None
    setattr(connection, SHORTCUT, None)


class FlatLayer(HttpLayer):
    """mitmproxy's HTTP layer as one loop. Instances are switched to a subclass, so there is no `__init__`."""

    _wires: dict[Connection, _Wire] | None = None
    _tried_express: bool = False
    express: Express | None = None
    repeating: Repeating | None = None

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if type(event) is not events.DataReceived:
            if self._wires and isinstance(event, events.ConnectionClosed):
                wire = self._wires.pop(event.connection, None)
                if self.repeating is not None and wire is not None and type(wire.codec) is Http1Server:
                    yield from self.repeating.let_go(wire.codec)
            yield from super()._handle_event(event)
            return
        if not self._tried_express:
            self._tried_express = True
            _take_express(self)
        wire = self._wire(event.connection)
        if wire is None:
            yield from super()._handle_event(event)
            return
        if self.repeating is not None and type(wire.codec) is Http1Server:
            yield from self.repeating.handle(wire.codec, event)
        elif wire.tls is None:
            if wire.read is not None:
                event = events.DataReceived(event.connection, wire.decrypted(b"")[0])
            yield from self._read(wire, event)
        else:
            yield from _receive(wire.tls, wire.decrypted(event.data), partial(self._read, wire))

    def _read(self, wire: _Wire, event: events.Event) -> CommandGenerator[None]:
        """Handle what a connection's HTTP/1 codec gets to see."""
        codec = wire.codec
        assert isinstance(event, events.ConnectionEvent)
        if type(codec) is Http1Client and type(event) is events.DataReceived and reads_body(codec):
            way = wire.passage or self._passage(wire, codec, event.connection)
            passed = way.take(event.data) if way is not None else None
            if passed:
                yield commands.SendData(self.context.client, passed)
            if way is None or passed is None:
                _close(wire, event.connection)
            elif way.rest:
                event = events.DataReceived(event.connection, b"")
            else:
                return
        yield from self._drive(codec, codec._handle_event(event))
        if wire.passage is not None and not (type(codec) is Http1Client and reads_body(codec)):
            _close(wire, event.connection)

    def _passage(self, wire: _Wire, codec: Http1Client, connection: Connection) -> Passage | None:
        assert codec.stream_id is not None
        client = self._wire(self.context.client)
        way = passage(codec, self.streams.get(codec.stream_id), client.codec if client is not None else None)
        if way is not None and self.express is not None:
            setattr(connection, SHORTCUT, Shortcut(wire, way, self.express.tls))
        wire.passage = way
        return way

    def event_to_child(self, child: Layer, event: events.Event) -> CommandGenerator[None]:
        return self._drive(child, child.handle_event(event))

    def _wire(self, connection: Connection) -> _Wire | None:
        wires = self._wires
        if wires is None:
            wires = self._wires = {}
        wire = wires.get(connection)
        if wire is None:
            wire = _wire_of(self.connections.get(connection))
            if wire is not None:
                wires[connection] = wire
        return wire

    def _drive(self, source: Layer | None, steps: Iterator[commands.Command]) -> CommandGenerator[None]:
        """Run a layer's steps, and those of the layers they lead to, in the order of mitmproxy's recursion.

        `source` is the layer that takes the steps; None for the steps of our own methods, which have been here before.
        """
        waiting: list[tuple[Layer | None, Iterator[commands.Command]]] = []
        dropped: HttpStream | None = None
        output = _Output()
        while True:
            command = next(steps, None)
            if command is None:
                if not waiting:
                    break
                source, steps = waiting.pop()
                continue
            kind = type(command)
            if kind is commands.SendData:
                assert isinstance(command, commands.SendData)
                yield from output.add(command, self._encryption(source, command.connection))
            elif source is None:
                yield from output.flush()
                yield command
            elif kind is ReceiveHttp:
                assert isinstance(command, ReceiveHttp)
                message = command.event
                if isinstance(message, RequestHeaders):
                    if waiting:
                        # A request that was sent behind another one: the connections of that one have to end it first.
                        waiting.insert(0, (source, chain((command,), steps)))
                        source, steps = waiting.pop()
                        continue
                    yield from self.make_stream(message.stream_id)
                # There may be news for a stream that is over.
                stream = self.streams.get(message.stream_id)
                if stream is not None:
                    waiting.append((source, steps))
                    source, steps = stream, stream.handle_event(message)
            elif kind is SendHttp:
                assert isinstance(command, SendHttp)
                waiting.append((source, steps))
                wire = self._wire(command.connection)
                if wire is not None:
                    source, steps = wire.codec, wire.codec._handle_event(command.event)
                else:
                    source = self.connections[command.connection]
                    steps = source.handle_event(command.event)
            elif kind is DropStream:
                assert isinstance(command, DropStream)
                dropped = self.streams.pop(command.stream_id, None)
            else:
                if command.blocking or isinstance(command, commands.RequestWakeup):
                    self.command_sources[command] = source
                if isinstance(command, GetHttpConnection):
                    waiting.append((source, steps))
                    source, steps = None, self.get_connection(command)
                elif isinstance(command, RegisterHttpConnection):
                    waiting.append((source, steps))
                    source, steps = None, self.register_connection(command)
                else:
                    yield from output.flush()
                    if isinstance(command, commands.OpenConnection):
                        self.connections[command.connection] = source
                    yield command
        yield from output.flush()
        if dropped is not None and not dropped._paused:
            # It stands in its own list of layers and holds methods of its own, so only a garbage collection would free
            # it, and the bodies of its flow.
            dropped.context.layers = []
            vars(dropped).pop("client_state", None)
            vars(dropped).pop("server_state", None)

    def _encryption(self, source: Layer | None, connection: Connection) -> ServerTLSLayer | None:
        """The TLS layer that what this layer sends on that connection has to pass yet."""
        wire = self._wires.get(connection) if self._wires else None
        return wire.tls if wire is not None and wire.codec is source else None


class _Output:
    """What is sent to one connection in one go, as one write."""

    __slots__ = ("chunks", "connection", "tls")

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.tls: TLSLayer | None = None
        self.chunks: list[bytes] = []

    def add(self, command: commands.SendData, tls: TLSLayer | None) -> CommandGenerator[None]:
        if command.connection is not self.connection or tls is not self.tls:
            yield from self.flush()
            self.connection, self.tls = command.connection, tls
        self.chunks.append(command.data)

    def flush(self) -> CommandGenerator[None]:
        if not self.chunks:
            return
        assert self.connection is not None
        data = joined(self.chunks)
        self.chunks = []
        if self.tls is not None:
            yield commands.SendData(self.tls.conn, encrypt(self.tls.tls, data))
        else:
            yield commands.SendData(self.connection, data)


class Express:
    """The way of one client connection's events, from the socket to the HTTP layer that speaks with the client."""

    def __init__(self, http: FlatLayer, tls: ClientTLSLayer | None, around: list[Layer]) -> None:
        self._http = http
        self.tls = tls
        self._client = http.context.client
        self._long_way = partial(HttpProxy.handle_event, around[0])
        self._outer = [layer.command_sources for layer in around if isinstance(layer, HttpLayer)]

    def handle_event(self, event: events.Event) -> CommandGenerator[None]:
        kind = type(event)
        if kind is events.DataReceived:
            assert isinstance(event, events.DataReceived)
            if self.tls is not None and event.connection is self._client:
                yield from _receive(self.tls, decrypt(self.tls.tls, event.data), self._pass_in)
            else:
                yield from self._pass_in(event)
        elif isinstance(event, events.CommandCompleted):
            if any(event.command in sources for sources in self._outer):
                yield from self._long_way(event)  # it was asked before this way was open, or when the client left
            else:
                yield from self._pass_in(event)
        elif isinstance(event, events.ConnectionClosed) and event.connection is not self._client:
            yield from self._pass_in(event)
        else:
            yield from self._long_way(event)

    def _pass_in(self, event: events.Event) -> CommandGenerator[None]:
        tls = self.tls
        if tls is None:
            yield from self._http._handle_event(event)
            return
        for command in self._http._handle_event(event):
            if not isinstance(command, commands.ConnectionCommand) or command.connection is not self._client:
                yield command
            elif isinstance(command, commands.SendData):
                yield commands.SendData(self._client, encrypt(tls.tls, command.data))
            elif isinstance(command, commands.CloseConnection):
                yield commands.CloseConnection(self._client)  # as a tunnel does: never by half
            else:
                yield command


_TUNNEL = (HttpProxy, HttpLayer, HttpStream, ServerTLSLayer, ClientTLSLayer)
"""The layers around the HTTP layer inside an intercepted tunnel; without TLS there is only the first."""


def _take_express(http: FlatLayer) -> None:
    """Open the short way for a connection whose layers are the ones we know."""
    layers = http.context.layers
    around = layers[: layers.index(http)]
    root: Root | None = vars(around[0]).get(ROOT) if around else None
    if root is None:
        return
    if len(around) not in (1, len(_TUNNEL)) or not all(map(isinstance, around, _TUNNEL)):
        return
    if http.context.server.timestamp_start is not None:
        return
    tls = around[-1] if len(around) > 1 else None
    if tls is not None:
        assert isinstance(tls, ClientTLSLayer)
        if tls.tunnel_state is not TunnelState.OPEN or tls.conn is not tls.tunnel_connection:
            return
    http.express = Express(http, tls, around)
    root.way = http.express.handle_event
