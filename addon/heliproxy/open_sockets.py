"""The WebSockets that carry calls, for as long as they are open."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from heliproxy.ids import new_request_id
from heliproxy.sockets import Socket

if TYPE_CHECKING:
    from mitmproxy import http

    from heliproxy.exchange import Exchange
    from heliproxy.recorder import Recorder

KEPT_MESSAGES = 20
"""WebSocket messages that a flow keeps, for whoever looks at it."""


class OpenSockets:
    """Gives the messages of mitmproxy's flows to our `Socket`s. Flows that were never opened here are left alone."""

    def __init__(self) -> None:
        self.by_flow: dict[str, Socket] = {}

    def open(self, flow_id: str, upgrade: Exchange, recorder: Recorder) -> None:
        """An upstream accepted the upgrade; each response on the socket becomes an exchange for the recorder."""
        self.by_flow[flow_id] = Socket(
            upgrade,
            finish=recorder.finish,
            stream=recorder.stream,
            new_id=lambda: new_request_id(int(time.time() * 1000)),
            wall=time.time,
            clock=time.perf_counter,
        )

    def message(self, flow: http.HTTPFlow) -> None:
        """Note the newest message of a flow."""
        found = self.by_flow.get(flow.id)
        if found is None or flow.websocket is None:
            return
        messages = flow.websocket.messages
        message = messages[-1]
        if message.from_client:
            found.from_client(message.content)
        else:
            found.from_server(message.content)
        if len(messages) > KEPT_MESSAGES:
            # mitmproxy keeps every message for as long as the socket is open, which may be for hours.
            del messages[:-KEPT_MESSAGES]

    def end(self, flow: http.HTTPFlow) -> None:
        """A flow's socket is closed."""
        found = self.by_flow.pop(flow.id, None)
        if found is not None and flow.websocket is not None:
            by_client = bool(flow.websocket.closed_by_client)
            found.close(by_client, f"the socket was closed by the {'client' if by_client else 'upstream'}")

    def close(self, reason: str) -> None:
        """End what is under way on all of them."""
        for socket in self.by_flow.values():
            socket.close(True, reason)
        self.by_flow.clear()

    def calls(self) -> list[Exchange]:
        """Responses that are not over; may be asked on any thread."""
        return [one for socket in tuple(self.by_flow.values()) for one in socket.open_calls()]
