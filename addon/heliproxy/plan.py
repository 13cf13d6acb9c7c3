"""Retries and fallbacks of one exchange: what a failed upstream call leads to.

`attempts.py` asks at each failure; the waits and decisions are those of `policies.retry` and `policies.fallback`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from heliproxy.decode import Decoder
from heliproxy.exchange import Attempt, Exchange
from heliproxy.policies import retry
from heliproxy.policies.answers import Answer, transport_answer, transport_kind

if TYPE_CHECKING:
    from mitmproxy import http

    from heliproxy.attempts import Judge, Outcome

PEEK_DECODED = 1 << 20
_TRANSPORT_STATUSES = (500, 502, 504)


async def _nothing_in_the_way(_flow: http.HTTPFlow) -> bool:
    return False


class Choice(Protocol):
    """One upstream among several for the same call."""

    def matches(self, status: int) -> bool:
        """Whether this status moves on to the next choice."""


@dataclass(slots=True)
class CallPlan:
    """The plan of one flow.

    Args:
        choices: the upstreams to try in order, when there are several; the flow's request already names the first.
        apply: rewrites the flow's request for choice number n.
        gates_answer: runs the gates for the choice just applied; True when they answered in place of the upstream.
        respond: turns an `Answer` into a mitmproxy response.
        exhausted: the answer when the last choice failed too, or None: pass on what came.
    """

    exchange: Exchange
    backoff: retry.Backoff
    apply: Callable[[http.HTTPFlow, int], None]
    respond: Callable[[Answer], http.Response]
    choices: Sequence[Choice] = ()
    exhausted: Callable[[list[Attempt]], Answer | None] | None = None
    gates_answer: Callable[[http.HTTPFlow], Awaitable[bool]] = _nothing_in_the_way
    sleep: Callable[[float], Any] = asyncio.sleep
    index: int = 0
    delay_s: float = 0.0
    began: float = field(default_factory=time.perf_counter)
    peeked_status: int | None = None

    @property
    def retrying(self) -> bool:
        return self.exchange.directives.retry.enabled

    def wants(self, status: int) -> bool:
        if self.retrying and retry.should_retry(status):
            return True
        if not self.choices:
            return False
        last = self.index + 1 >= len(self.choices)
        return self.choices[self.index].matches(status) and (not last or self.exhausted is not None)

    def peek(self, status: int, headers: http.Headers) -> Judge | None:
        if not (self.retrying or self.choices) or status != 200:
            return None
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "text/event-stream":
            return None
        decoder = Decoder(headers.get("content-encoding"), PEEK_DECODED)
        seen = b""

        def judge(data: bytes) -> bool | None:
            nonlocal seen
            seen += decoder.feed(data)
            found = retry.first_event_status(seen)
            if found is None or found == 200:
                return None if found is None else False
            self.peeked_status = found
            return self.wants(found)

        return judge

    async def failed(self, flow: http.HTTPFlow, outcome: Outcome) -> bool:
        status = self.peeked_status or outcome.status
        self.peeked_status = None
        self._note(flow, status, outcome.error)
        header = outcome.headers.get("retry-after") if outcome.headers is not None else None
        if self.retrying:
            wait = self.backoff.next_delay(status, retry.retry_after_s(header, datetime.now(UTC)))
            if wait is not None:
                await self._wait(wait)
                return True
        if self.index + 1 < len(self.choices) and self._moves_on(status):
            self.index += 1
            self.backoff.next_target()
            self.apply(flow, self.index)
            await self._wait(0.0)
            answered = await self.gates_answer(flow)
            self.exchange.last_noted = answered
            return not answered
        answer = self.exhausted(self.exchange.attempts) if self.exhausted is not None else None
        if answer is None and outcome.status is None and (outcome.earlier is None or self.choices):
            answer = self._no_answer(outcome.error or "")
        if answer is not None:
            flow.response = self.respond(answer)
        self.exchange.last_noted = True
        return False

    def broken(self, flow: http.HTTPFlow, error: str) -> http.Response:
        """What the client gets when an answer of which it has seen nothing yet did not come whole."""
        self.exchange.last_noted = True
        return self.respond(self._no_answer(error))

    def _no_answer(self, error: str) -> Answer:
        kind = transport_kind(error)
        if kind == "timeout":
            self.exchange.aborted = "timeout"
        self.exchange.error = error
        self.exchange.answered_here = True
        self.exchange.answer_reason = "upstream_failed"
        return transport_answer(error, kind)

    def _moves_on(self, status: int | None) -> bool:
        choice = self.choices[self.index]
        # Which of Helicone's three statuses a failure of the network has says little; onCodes means any of them.
        return choice.matches(status) if status is not None else any(map(choice.matches, _TRANSPORT_STATUSES))

    async def _wait(self, seconds: float) -> None:
        self.delay_s = seconds
        if seconds > 0:
            await self.sleep(seconds)
        self.began = time.perf_counter()

    def succeeded(self, flow: http.HTTPFlow, status: int) -> None:
        """Note the call whose answer is passed on."""
        self._note(flow, status, None)

    def _note(self, flow: http.HTTPFlow, status: int | None, error: str | None) -> None:
        self.exchange.attempts.append(
            Attempt(
                target=target_of(flow.request),
                status=status,
                error=error,
                duration_ms=(time.perf_counter() - self.began) * 1000,
                fallback_index=self.index if self.choices else None,
                delay_ms=self.delay_s * 1000,
            )
        )


def target_of(request: http.Request) -> str:
    return f"{request.scheme}://{request.host}:{request.port}"


def backoff_of(exchange: Exchange) -> retry.Backoff:
    return retry.Backoff(exchange.directives.retry, random.random)
