"""The proxy's door: asks each client for the token when others than this machine's programs can connect.

The rules are those of entry.py; here they are applied to mitmproxy's options and flows.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mitmproxy import exceptions

from heliproxy import entry, flows, targets
from heliproxy.directives import Directives

if TYPE_CHECKING:
    from mitmproxy import connection, http
    from mitmproxy.addons.proxyserver import Proxyserver
    from mitmproxy.options import Options

    from heliproxy.policies.answers import Answer


class Door:
    """Who may come in."""

    def __init__(self) -> None:
        self.token: str | None = None
        """What the proxy's port asks for; None on loopback."""
        self.api_token: str | None = None
        """What the REST API asks for."""
        self._admitted: set[str] = set()
        """Client connections that have sent the token to open a tunnel, by id."""

    def set_up(self, options: Options) -> None:
        """Ask for the token when others can connect; without one, let nobody in.

        Raises:
            OptionsError: there is no token, or a mode in which nobody can be asked for it.
        """
        exposed = entry.exposure(options.listen_host, options.mode)
        if exposed is None or ("proxyauth" in options and options.proxyauth):
            self.token = None
            return
        given = entry.token_of(options.heliproxy_token) or entry.token_of(os.environ.get("HELIPROXY_TOKEN"))
        self.token = given or secrets.token_hex(16)
        if not given:
            raise exceptions.OptionsError(f"listening on {exposed} needs a token: {entry.NO_TOKEN}")
        if (mode := entry.unaskable(options.mode)) is not None:
            raise exceptions.OptionsError(f"mode {mode} cannot ask for a token, and must not listen on {exposed}")

    async def check_bound(self, server: Proxyserver, options: Options) -> None:
        """Make sure that mitmproxy listens where the options say, and nowhere else without a token.

        It binds its ports while it still loads scripts: one started with `-s` has bound every interface by the time
        that our default of loopback is set, and binds again only when its modes change.

        Raises:
            OSError: the port cannot be bound on loopback.
            OptionsError: others can connect, and no token is asked for.
        """
        for instance in server.servers:
            if _exposed(instance.listen_addrs) and entry.is_loopback_name(
                instance.mode.listen_host(options.listen_host)
            ):
                await instance.stop()
                for handler in list(server.connections.values()):
                    for transport in handler.transports.values():
                        if transport.writer is not None:
                            transport.writer.close()  # whoever came in through the wide open port
                await instance.start()
        exposed = _exposed(server.listen_addrs())
        if exposed is not None and self.token is None and not ("proxyauth" in options and options.proxyauth):
            raise exceptions.OptionsError(f"listening on {exposed} needs a token: {entry.NO_TOKEN}")

    def is_own_port(self, flow: http.HTTPFlow) -> bool:
        """Whether a request is addressed to the proxy's own port."""
        return flows.is_own_port(flow, exposed=self.token is not None)

    def admit(self, tunnel: http.HTTPFlow) -> Answer | None:
        """Let a client open tunnels from here on, or say why not."""
        if self.token is None:
            return None
        if not entry.has_token(tunnel.request.headers.fields, self.token, entry.PROXY_HEADERS):
            return entry.ask_for_token(proxied=True)
        self._admitted.add(tunnel.client_conn.id)
        return None

    def forget(self, client: connection.Client) -> None:
        """A client has left."""
        self._admitted.discard(client.id)

    def refuse(self, flow: http.HTTPFlow) -> Answer | None:
        """What a client is told that must not use the proxy at all."""
        if self.token is None or flow.client_conn.id in self._admitted:
            return None
        own = self.is_own_port(flow)
        if own and self.token == self.api_token and _asks_api(flow.request):
            return None
        fields = flow.request.headers.fields
        if entry.has_token(fields, self.token, entry.OWN_HEADERS if own else entry.PROXY_HEADERS):
            if own and entry.has_token(fields, self.token, (b"authorization",)):
                del flow.request.headers["authorization"]  # it is no provider's, and none must see it
            return None
        return entry.ask_for_token(proxied=not own)


def _exposed(addresses: Iterable[Sequence[Any]]) -> str | None:
    """The first of bound socket addresses (host, port, ...) that is not loopback."""
    return next((str(host) for host, *_ in addresses if not entry.is_loopback_name(str(host))), None)


def _asks_api(request: http.Request) -> bool:
    """Whether it is the REST API that is asked, which asks for the token itself, and not of everybody."""
    path = targets.split_key(request.path)[0]
    return targets.of_own_port(request.method, path, Directives(), ()).kind == "api"
