"""Requests that are the same to the byte as one that was answered from the cache, and are answered so again.

A program that repeats itself (tests, evaluations) sends the very same bytes. What they ask for was found out the first
time, all the way through mitmproxy and the policies; what it was answered with is known to the byte, up to its id. So
only the cache is asked again, and the recorder told. Whatever is not as it was takes the whole way.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from heliproxy.exchange import Exchange
from heliproxy.ids import new_request_id
from heliproxy.record import Twin

if TYPE_CHECKING:
    from heliproxy.directives import Directives
    from heliproxy.gates import Gates, Hit
    from heliproxy.policies.cache import CacheEntry

MAX_REQUEST = 64 * 1024
"""Bytes of a request that is remembered."""
MAX_ANSWER = 256 * 1024
OVERHEAD = 4096
"""Bytes that a remembered request takes beside its own, near enough."""
MAX_BYTES = 8 << 20
"""Bytes remembered in all; past it, everything is forgotten."""

Scope = tuple[object, ...]
"""What a request's meaning depends on besides its bytes: where its connection leads, and whose run it is of."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a request was answered with: the cache entry, the exchange as it was at its end, the bytes around its id."""

    entry: CacheEntry
    model: Exchange
    before: bytes
    after: bytes


@dataclass(frozen=True, slots=True)
class _Request:
    """A request that was answered from the cache."""

    key: bytes
    directives: Directives
    answers: dict[int, _Answer] = field(default_factory=dict)
    """By place in the bucket."""


@dataclass(slots=True)
class Noted:
    """A hit that is just being answered."""

    exchange: Exchange
    hit: Hit
    model: Exchange | None = None
    """A copy of the exchange at its end, before the recorder has it."""


class Repeats:
    """The requests remembered by one proxy. All methods are for its event loop.

    `finish` takes each exchange that was answered here; `seen` counts calls by provider; `run_of` names the run that a
    client connection belongs to.
    """

    def __init__(
        self,
        gates: Gates,
        finish: Callable[[Exchange], None],
        seen: Counter[str],
        run_of: Callable[[str], str | None],
    ) -> None:
        self._gates = gates
        self._finish = finish
        self._seen = seen
        self.run_of = run_of
        self._requests: dict[tuple[Scope, bytes], _Request] = {}
        self._starts: set[tuple[Scope, bytes]] = set()
        """Beginnings of remembered requests, as they came before the rest did."""
        self._bytes = 0
        self.answered = 0
        """Calls answered on the short way."""
        self.noted: Noted | None = None
        self.wanted = False
        """Whether any call has asked for the cache: until then nothing is looked at."""

    def forget(self) -> None:
        """Forget everything, for what requests mean may have changed."""
        self._requests, self._starts, self._bytes = {}, set(), 0

    # ---------------------------------------------------------------- the first time

    def note(self, exchange: Exchange, hit: Hit) -> None:
        """A call is to be answered from the cache."""
        self.noted = Noted(exchange, hit)

    def note_end(self, exchange: Exchange) -> None:
        """A call's answer is complete; its exchange is about to go to the recorder."""
        noted = self.noted
        if noted is not None and noted.exchange is exchange and _is_plain(exchange):
            noted.model = _copied(exchange, exchange.id, exchange.created_at, exchange.started)

    def taken(self) -> Noted | None:
        """What was noted since the last time."""
        noted, self.noted = self.noted, None
        return noted

    def learn(self, scope: Scope, start: bytes, rest: bytes, noted: Noted, sent: bytes) -> None:
        """Remember a request, which came as `start` and `rest`, and what was sent to its client."""
        model, hit = noted.model, noted.hit
        if model is None or len(sent) > MAX_ANSWER or not sent.endswith(hit.entry.body):
            return
        id_ = model.id.encode()
        before, _, after = sent.partition(id_)
        if not before or id_ in after[: len(after) - len(hit.entry.body)]:
            return
        self._bytes += 2 * (len(start) + len(rest)) + len(sent) + OVERHEAD
        if self._bytes > MAX_BYTES:
            self.forget()
        data = start + rest
        known = self._requests.get((scope, data))
        if known is None or known.key != hit.key:
            known = self._requests[scope, data] = _Request(hit.key, model.directives)
        known.answers[hit.index] = _Answer(hit.entry, model, before, after)
        head, end, body = data.partition(b"\r\n\r\n")
        if body:
            self._starts.add((scope, head + end))
        if rest:
            self._starts.add((scope, start))

    # ---------------------------------------------------------------- from then on

    def starts(self, scope: Scope, data: bytes) -> bool:
        """Whether these bytes are the beginning of a remembered request, whose rest came later."""
        return (scope, data) in self._starts

    def answer(self, scope: Scope, data: bytes) -> bytes | None:
        """The answer to a request that is remembered, if the cache still has it; None: take the whole way."""
        known = self._requests.get((scope, data))
        if known is None:
            return None
        started = time.perf_counter()
        picked = self._gates.pick(known.key, known.directives.cache.bucket)
        if picked is None:
            return None
        found = known.answers.get(picked[0])
        if found is None or found.entry is not picked[1]:
            self._gates.leave(known.key, picked[0])
            return None
        now = time.time()
        id_ = known.directives.request_id or new_request_id(int(now * 1000))
        exchange = _copied(found.model, id_, now, started)
        exchange.ended = time.perf_counter()
        self._seen[exchange.route.provider] += 1
        self._finish(exchange)
        self.answered += 1
        return b"".join((found.before, id_.encode(), found.after))


def _is_plain(exchange: Exchange) -> bool:
    """Whether nothing about a hit is told by anything but its request and its cache entry, which is priced."""
    return bool(
        exchange.cache == "HIT"
        and exchange.repeated
        and exchange.find_saved is None
        and exchange.logged
        and not (exchange.after or exchange.properties or exchange.attempts or exchange.error or exchange.hide_usage)
        and exchange.warnings == list(exchange.directives.warnings)
    )


def _copied(model: Exchange, id_: str, created_at: float, started: float) -> Exchange:
    """An exchange of which the recorder makes the same row, but for its id and its times."""
    return Exchange(
        id=id_,
        created_at=created_at,
        started=started,
        route=model.route,
        directives=model.directives,
        method=model.method,
        path=model.path,
        request_headers=model.request_headers,
        request_body=model.request_body,
        target_url=model.target_url,
        run_id=model.run_id,
        status=model.status,
        response_headers=model.response_headers,
        size_response=model.size_response,
        cache=model.cache,
        cache_reference_id=model.cache_reference_id,
        saved_usd=model.saved_usd,
        repeated=model.repeated,
        warnings=list(model.warnings),
        answered_here=model.answered_here,
        finished=True,
        twin=model.twin or Twin(),
    )
