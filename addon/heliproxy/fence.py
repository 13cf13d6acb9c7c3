"""The fence around this machine: where calls through the proxy may go, judged again at every dial.

The rules are those of reach.py and policies/ssrf.py; here they are applied to mitmproxy's connections.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING

from mitmproxy import ctx
from mitmproxy.proxy.mode_specs import RegularMode

from heliproxy import flows, hosts, reach
from heliproxy.settings import Settings

if TYPE_CHECKING:
    from mitmproxy import connection, http
    from mitmproxy.proxy import server_hooks

    from heliproxy.door import Door

logger = logging.getLogger(__name__)


class Fence:
    """Where calls may go.

    Args:
        door: says whether others than this machine's programs can connect.
        api_port: the port of our own REST API, while it has one.
    """

    def __init__(self, door: Door, api_port: Callable[[], int | None]) -> None:
        self.settings = Settings()
        self.allowed: Collection[str] = frozenset()
        """What the operator named, as `host` or `host:port`."""
        self._guarded: dict[str, set[tuple[str, int]]] = {}
        """Addresses that clients named as targets, by client connection id: to be public when they are dialled."""
        self._door, self._api_port = door, api_port

    def guard(self, client: connection.Client, host: str, port: int) -> None:
        """Have a client led to a target that its request named only at a public address.

        By client: another one may well reach a private address, as a proxy's client does.
        """
        self._guarded.setdefault(client.id, set()).add((host, port))

    def forget(self, client: connection.Client) -> None:
        """A client has left."""
        self._guarded.pop(client.id, None)

    def _is_guarded(self, client: connection.Client, host: str, port: int) -> bool:
        return client.id in self._guarded and (host, port) in self._guarded[client.id]

    def check_dial(self, data: server_hooks.ServerConnectionHookData) -> Awaitable[None] | None:
        """Dial a target that a client named only at a public address, and at the very address that was checked.

        Only what has to ask where a name leads is returned to be awaited: a provider's name is known.
        """
        address = data.server.address
        if address is None:
            return None
        if self._is_guarded(data.client, address[0], address[1]):
            return self._dial_public(data, address[0], address[1])
        if reach.verdict(address[0]) is reach.Verdict.OUTSIDE:
            return None
        return self._keep_outside(data, address[0], address[1])

    async def _dial_public(self, data: server_hooks.ServerConnectionHookData, host: str, port: int) -> None:
        reason, checked = await flows.public_address(host, port)
        if reason is not None:
            data.server.error = f"the target {reason}"
        elif checked is not None:
            data.server.address = checked

    def check_connection(self, data: server_hooks.ServerConnectionHookData) -> None:
        """A name may lead elsewhere from one moment to the next: what counts is where the connection ended."""
        peer, address = data.server.peername, data.server.address
        if peer is None or address is None or not reach.is_here(peer[0]):
            return
        if reach.verdict(address[0]) is reach.Verdict.UNKNOWN and not any(
            self._may_dial(data.client, host, port, reach.DIALLED_PORTS) for host, port in (address[:2], peer[:2])
        ):
            logger.warning("%s", reach.refusal(address[0], address[1]))
            flows.cut(ctx.master.addons.get("proxyserver"), data.client, data.server)

    async def check_tunnel(self, flow: http.HTTPFlow) -> None:
        """Guard a tunnel through the company's proxy as a dial of our own."""
        request = flow.request
        if not self._is_guarded(flow.client_conn, request.host, request.port):
            return
        reason, checked = await flows.public_address(request.host, request.port)
        if checked is not None:
            request.authority = f"[{checked[0]}]:{checked[1]}" if ":" in checked[0] else f"{checked[0]}:{checked[1]}"
        elif reason is not None and "resolves to" in reason:
            # A name that we cannot resolve is no name inside; that one resolves to something inside must not pass.
            logger.warning("the target %s %s", request.host, reason)
            request.authority = f"refused.invalid:{request.port}"

    def refusal(self, client: connection.Client, host: str, port: int) -> str | None:
        """Why a client must not be led to a place on this machine."""
        if reach.verdict(host) is not reach.Verdict.HERE or self._may_dial(client, host, port, hosts.LOCAL_PORTS):
            return None
        return reach.refusal(host, port)

    async def _keep_outside(self, data: server_hooks.ServerConnectionHookData, host: str, port: int) -> None:
        """Do not let a client reach this machine's other services through us, by whatever name."""
        where = reach.verdict(host)
        if where is reach.Verdict.OUTSIDE or self._may_dial(data.client, host, port, reach.DIALLED_PORTS):
            return
        if where is reach.Verdict.UNKNOWN:
            where = reach.Verdict.HERE if await flows.leads_here(host, port) else where
        if where is reach.Verdict.HERE:
            data.server.error = reach.refusal(host, port)

    def _may_dial(self, client: connection.Client, host: str, port: int, ports: Collection[int]) -> bool:
        """Whether a place on this machine may be reached: the operator's word, a local model server, a proxy behind us.

        Clients choose where to go in the regular mode only; in all others the operator has. And what `run` started can
        go to all other services of this machine by itself.
        """
        if type(client.proxy_mode) is not RegularMode or reach.is_named(host, port, self.allowed):
            return True
        if port in (client.sockname[1], self._api_port()):
            return False
        if port in ports or (self.settings.run_id is not None and self._door.token is None):
            return True
        chain = self.settings.chain
        hops = (chain.https, chain.http) if chain is not None else ()
        return any(hop is not None and (hop.host, hop.port) == (host, port) for hop in hops)
