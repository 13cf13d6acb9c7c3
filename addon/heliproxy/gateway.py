"""A gateway call on its way through its choices: what fallbacks.py makes of each becomes the request of the flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mitmproxy import http

from heliproxy import flows

if TYPE_CHECKING:
    from heliproxy.exchange import Exchange
    from heliproxy.fallbacks import Chosen
    from heliproxy.gates import Gates
    from heliproxy.plan import CallPlan
    from heliproxy.targets import Destination


class GatewayCall:
    """One call that has several upstreams to try.

    Args:
        gates: the policies, which each choice passes: its cache settings are its own.
        send_to: points a flow's request at a destination; returns the origin if it is not the provider's.
    """

    def __init__(
        self,
        exchange: Exchange,
        chosen: Chosen,
        gates: Gates,
        send_to: Callable[[http.HTTPFlow, Destination], str | None],
    ) -> None:
        self._exchange, self._chosen = exchange, chosen
        self._gates, self._send_to = gates, send_to

    def planned(self, plan: CallPlan) -> CallPlan:
        """The plan, with what to do after the choice that was applied."""
        plan.choices, plan.exhausted = self._chosen.choices, self._chosen.exhausted
        plan.apply, plan.gates_answer = self.apply, self._gates_answer
        return plan

    def apply(self, flow: http.HTTPFlow, index: int) -> None:
        """Make the flow's request the one for choice number `index`: other host, headers and body."""
        exchange, one = self._exchange, self._chosen.request(index)
        exchange.directives = one.directives
        request = flow.request
        request.headers = http.Headers([(n.encode("latin-1", "replace"), v.encode("utf-8")) for n, v in one.headers])
        exchange.target_url = self._send_to(flow, one.destination)
        request.headers["host"] = request.pretty_host if request.port in (80, 443) else f"{request.host}:{request.port}"
        request.content = one.body
        exchange.route, exchange.path = one.destination.route, one.destination.path
        exchange.request_body = one.body
        exchange.request_headers = flows.without(exchange.request_headers, b"content-encoding")
        exchange.credential_headers = request.headers.fields
        exchange.fallback_index = index if self._chosen.numbered else None
        exchange.gateway_extra = one.response_headers

    async def _gates_answer(self, flow: http.HTTPFlow) -> bool:
        exchange = self._exchange
        if self._gates.idle(exchange):
            return False
        answer = await self._gates.open(exchange, flows.FlowCall(flow.request), exchange.request_body or b"")
        if answer is not None:
            flows.answer(flow, exchange, answer)
        return answer is not None
