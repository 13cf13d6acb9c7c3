"""What happens between a request and its upstream: each policy in the order Helicone has them (contract section 0).

the body as it is to be sent -> cache -> budget -> rate limit -> security -> moderation.

A policy that fails decides here what that means: caching and checks let the call pass (as Helicone does) and say so in
a warning; limits and budgets go by what they last knew (see `policy_store`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

from heliproxy.decode import Decoder
from heliproxy.directives import Directives, namespace, signed_headers
from heliproxy.exchange import STATUS_THREAT, Exchange, Outcome
from heliproxy.home import DATABASE_NAME
from heliproxy.policies import answers, budget, cache, moderation, prompt, ratelimit, retry, security, streamusage
from heliproxy.policies.answers import Answer, DirectiveError
from heliproxy.policies.budget import Spender
from heliproxy.policies.cache import CacheEntry
from heliproxy.policies.ratelimit import Policy
from heliproxy.policies.sigv4 import NOT_KEPT, Credentials, region_of, signed
from heliproxy.policy_store import STATE_NAME, BudgetStore, CacheStore, LimitStore, StateFile
from heliproxy.record import (
    DECODE_LIMIT,
    PLAUSIBLE_RATIO,
    REPEATED,
    echoes_key,
    is_stream_type,
    is_whole,
    lower_headers,
)
from heliproxy.times import local_now

logger = logging.getLogger(__name__)

READ_WAIT_SECONDS = 2.0
"""How long the cache may take to be read from disk; then it is a miss, as at Helicone."""
SAVE_WAIT_SECONDS = 5.0
"""How long a lookup waits for an answer that is complete but still being saved."""
MOST_LEFT = 1000
MAX_REFUSED = 100
"""Rate limit policies not understood that are logged, each once: a client sends its own with every call."""

Fetch = Callable[[str, list[tuple[str, str]], bytes], tuple[int, bytes]]
"""Post a body to a URL with these headers; blocks; returns status and body."""


class Call(Protocol):
    """The request as it will be sent upstream."""

    method: str
    path: str

    @property
    def authority(self) -> str:
        """Host and port of the upstream."""

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The client's headers without Helicone's."""

    def replace_body(self, body: bytes) -> None:
        """Send this body instead, not content-encoded."""

    def set_header(self, name: str, value: str) -> None:
        """Send this header instead of the client's."""

    def remove_header(self, name: str) -> None:
        """Send no such header."""

    @property
    def host(self) -> str:
        """The Host header as it is sent."""

    @property
    def raw_body(self) -> bytes:
        """The body as it is sent, content-encoded."""


@dataclass(frozen=True, slots=True)
class Hit:
    """An answer out of the cache."""

    entry: CacheEntry
    headers: tuple[tuple[str, str], ...]
    key: bytes
    """Of its bucket."""
    index: int
    """Its place in the bucket."""


class Gates:
    """All policies of one proxy, with what they remember. `secret` keys the cache; `fetch` makes side calls."""

    def __init__(self, home: Path, secret: bytes, fetch: Fetch, stream_usage: bool = False) -> None:
        self._home = home
        self._secret = secret
        self._fetch = fetch
        self._stream_usage = stream_usage
        self.state = StateFile(home / STATE_NAME, mends=True)
        self.cache = CacheStore(self.state)
        self.limits = LimitStore(self.state)
        self.budgets = BudgetStore(self.state, home / DATABASE_NAME)
        self._saving: dict[bytes, _Saving] = {}
        self._left: dict[bytes, int] = {}
        """Places in buckets that were picked already, see `leave`."""
        self._rules: tuple[float, security.Rules | None] = (-1.0, None)
        self._refused_policies: set[str] = set()
        self.clock: Callable[[], float] = time.time
        """Unix seconds, by which cached answers expire."""
        self.side_calls: Callable[[Exchange], None] = lambda _: None
        """Takes a side call (moderation) as an exchange of its own, to be recorded."""

    def close(self) -> None:
        self.state.close()

    def idle(self, exchange: Exchange) -> bool:
        """Whether no policy can concern this call before it goes out, so that nothing need be awaited."""
        return not _gated(exchange.directives) and not self._stream_usage and not self.budgets.active()

    async def prepare(self, exchange: Exchange, call: Call) -> bytes:
        """Make the changes to the body that directives ask for; returns the body as it is sent, decoded."""
        body = self._sent_body(exchange, call)
        if exchange.directives.token_limit_handler:
            body = await self._fit_tokens(exchange, call, body)
        return body

    def hit_at_once(self, exchange: Exchange, call: Call) -> Hit | None:
        """A cached answer that is in memory. None: `prepare` and `open` decide.

        Only for calls whose body is sent as it came, and whose answer nobody is just saving.
        """
        wanted = exchange.directives.cache
        if not (wanted.wanted and wanted.read) or self._changes(exchange):
            return None
        key = self._cache_key(exchange, call, self._sent_body(exchange, call))
        picked = self.pick(key, wanted.bucket)
        return self._hit(exchange, key, *picked) if picked is not None else None

    def pick(self, key: bytes, bucket: int) -> tuple[int, CacheEntry] | None:
        """The cached answer, with its place, that is in memory; None: it is not, or somebody is just saving it."""
        if key in self._saving:
            return None
        entries = self.cache.lookup_memory(key, bucket, self.clock())
        return cache.pick(entries, self._choose(key)) if entries is not None else None

    def leave(self, key: bytes, index: int) -> None:
        """Leave the answer that was picked to the usual way, which would pick again, and so favour some."""
        if len(self._left) >= MOST_LEFT:
            self._left.clear()
        self._left[key] = index

    def _choose(self, key: bytes) -> Callable[[int], int]:
        left = self._left.pop(key, None)
        return random.randrange if left is None else lambda count: min(left, count - 1)

    async def open(self, exchange: Exchange, call: Call, body: bytes) -> Answer | Hit | None:
        """Run all gates on a prepared body. None: the call goes upstream.

        A gateway opens again for each upstream it moves on to: other host, headers and body, so another cache key;
        and each costs a token of the rate limit, as at Helicone.
        """
        directives = exchange.directives
        for act in exchange.after:
            if isinstance(act, _Saving):
                act.forget()
        exchange.after.clear()
        hit = await self._cached(exchange, call, body)
        if hit is not None:
            return hit
        answer = await self._budget(exchange, body) or await self._limit(exchange, body)
        if answer is None and (directives.security or directives.moderations):
            answer = await self._check(exchange, call, body)
        if answer is None and directives.mock_response is not None:
            answer = answers.mock_answer(directives.mock_response)
        if answer is None and directives.aws is not None and exchange.route.provider == "bedrock":
            self._sign(exchange, call, directives.aws)
        return answer

    def _sign(self, exchange: Exchange, call: Call, credentials: Credentials) -> None:
        """Sign the call for the region its host names, in the name of the keys that came with it."""
        region = region_of(exchange.route.host)
        if region is None:
            exchange.warnings.append(f"{exchange.route.host} names no AWS region, so the call was not signed")
            return
        for name in NOT_KEPT:
            call.remove_header(name)
        kept = {n.lower(): v for n, v in call.headers if n.lower() == "content-type" or n.lower().startswith("x-amz-")}
        now = datetime.fromtimestamp(self.clock(), UTC)
        added = signed(
            credentials, call.method, exchange.path, {"host": call.host} | kept, call.raw_body, region, "bedrock", now
        )
        for name, value in added.items():
            call.set_header(name, value)

    # ---------------------------------------------------------------- the body as it is sent

    def _sent_body(self, exchange: Exchange, call: Call) -> bytes:
        """The decoded body after the directives that change it."""
        headers = lower_headers(exchange.request_headers)
        raw = exchange.request_body or b""
        decoder = Decoder(headers.get("content-encoding"), DECODE_LIMIT, PLAUSIBLE_RATIO)
        body = decoder.feed(raw)
        if decoder.full or decoder.broken:
            return raw  # a part of a body would give two long ones the same cache key
        directives = exchange.directives
        if not self._changes(exchange):
            return body
        if signed_headers(headers.get("authorization")):
            exchange.warnings.append("the request is signed (AWS SigV4), so its body was left as it is")
            return body
        if directives.prompt.mode != "deactivated":
            stripped = prompt.strip_tags(body)
            exchange.properties.update(prompt.input_properties(stripped.inputs))
            if stripped.body != body:
                body = stripped.body
                call.replace_body(body)
        if self._wants_usage(exchange) and (asked := streamusage.ask_for_usage(body)) is not None:
            body = asked
            call.replace_body(body)
            # The chunk is to be taken out again, which needs the stream in plain.
            call.set_header("accept-encoding", "identity")
            exchange.hide_usage = True
        return body

    def _wants_usage(self, exchange: Exchange) -> bool:
        return (self._stream_usage or exchange.directives.stream_usage) and exchange.route.format == "openai_chat"

    def _changes(self, exchange: Exchange) -> bool:
        """Whether directives may ask for another body than the client's."""
        directives = exchange.directives
        return (
            self._wants_usage(exchange)
            or directives.prompt.mode != "deactivated"
            or directives.token_limit_handler is not None
        )

    async def _fit_tokens(self, exchange: Exchange, call: Call, body: bytes) -> bytes:
        from heliproxy.policies import tokenlimit

        handler = exchange.directives.token_limit_handler
        assert handler is not None
        if signed_headers(lower_headers(exchange.request_headers).get("authorization")):
            return body
        try:
            fitted: bytes | None = await _in_thread(tokenlimit.apply, body, handler, exchange.directives.model_override)
        except Exception as e:
            logger.warning("token limit handler failed: %s", e, exc_info=e)
            exchange.warnings.append(f"Helicone-Token-Limit-Exception-Handler failed ({e}); the body was not changed")
            return body
        if fitted is None:
            return body
        call.replace_body(fitted)
        return fitted

    # ---------------------------------------------------------------- cache

    async def _cached(self, exchange: Exchange, call: Call, body: bytes) -> Hit | None:
        wanted = exchange.directives.cache
        if not wanted.wanted:
            return None
        key = self._cache_key(exchange, call, body)
        if wanted.read:
            await self._saved(key)
            now = self.clock()
            entries = self.cache.lookup_memory(key, wanted.bucket, now)
            if entries is None:
                entries = await self._read(key, wanted.bucket, now)
            picked = cache.pick(entries, self._choose(key))
            if picked is not None:
                return self._hit(exchange, key, *picked)
            exchange.cache = "MISS"
            exchange.response_extra += cache.miss_headers(wanted)
        if wanted.save:
            self._save_later(exchange, key)
        return None

    def _cache_key(self, exchange: Exchange, call: Call, body: bytes) -> bytes:
        directives = exchange.directives
        return cache.cache_key(
            self._secret,
            call.method,
            call.authority,
            call.path,
            body,
            call.headers,
            directives.cache,
            directives.auth_value,
        )

    def _hit(self, exchange: Exchange, key: bytes, index: int, entry: CacheEntry) -> Hit:
        exchange.cache = "HIT"
        exchange.cache_reference_id = entry.request_id
        exchange.repeated = entry.usage
        exchange.saved_usd = entry.cost_usd
        if entry.cost_usd is None and not entry.usage:
            # Saved a moment ago, and priced by the time the recorder comes to this hit.
            exchange.find_saved = partial(self.cache.cost, key, entry.request_id)
        missed = cache.miss_headers(exchange.directives.cache)
        exchange.response_extra = tuple(pair for pair in exchange.response_extra if pair not in missed)
        if exchange.hide_usage:
            entry = _without_usage(entry)
        return Hit(entry, cache.hit_headers(entry, index), key, index)

    async def _read(self, key: bytes, bucket: int, now: float) -> list[CacheEntry | None]:
        try:
            async with asyncio.timeout(READ_WAIT_SECONDS):
                return await asyncio.to_thread(self.cache.lookup_disk, key, bucket, now)
        except TimeoutError:
            logger.warning("cache not read within %g s, treated as a miss", READ_WAIT_SECONDS)
            return []

    async def _saved(self, key: bytes) -> None:
        """Wait for an answer that its client already has in full, but that is still on its way into the cache."""
        pending = self._saving.get(key)
        if pending is not None and pending.answered:
            try:
                await asyncio.wait_for(pending.done.wait(), SAVE_WAIT_SECONDS)
            except TimeoutError:
                pending.forget()  # as Helicone: a read that takes too long is a miss

    def _save_later(self, exchange: Exchange, key: bytes) -> None:
        exchange.keep_raw = True
        exchange.after.append(_Saving(self, exchange, key))

    async def save_now(self, exchange: Exchange) -> None:
        """Save an answer that is over, when all of it is still in the exchange; long ones are the recorder's."""
        saving = next((act for act in exchange.after if isinstance(act, _Saving)), None)
        if saving is None or sum(map(len, exchange.chunks)) != exchange.size_response:
            return
        raw = b"".join(exchange.chunks)
        saving.stored = await _in_thread(self._save_whole, exchange, raw, saving.key)
        if saving.stored:
            saving.forget()

    def _save_whole(self, exchange: Exchange, raw: bytes, key: bytes) -> bool:
        return is_whole(exchange) and self._store(exchange, raw, key, None, {})

    def _save(self, exchange: Exchange, outcome: Outcome, saving: _Saving) -> None:
        """What is left to do when the answer is priced."""
        usage = {name: outcome.row.get(name) for name in REPEATED}
        if saving.stored:
            self.cache.price(saving.key, exchange.id, outcome.cost_usd, usage)
            return
        raw = exchange.sink.raw if exchange.sink is not None else None
        if raw is None or exchange.answered_here or not outcome.complete or outcome.status != 200:
            return
        if exchange.aborted is not None and not raw.endswith((b"\n\n", b"\r\n\r\n")):
            return  # the client left after the last event's first bytes, before its end
        self._store(exchange, bytes(raw), saving.key, outcome.cost_usd, usage)

    def _store(self, exchange: Exchange, raw: bytes, key: bytes, cost_usd: float | None, usage: dict[str, Any]) -> bool:
        wanted = exchange.directives.cache
        if not cache.storable(exchange.status or 0, True, len(raw), wanted) or echoes_key(exchange, raw):
            return False
        headers = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in exchange.response_headers]
        now = self.clock()
        entry = CacheEntry(
            status=200,
            headers=cache.replayed_headers(headers),
            body=raw,
            latency_ms=((exchange.ended or exchange.started) - exchange.started) * 1000,
            created_at=now,
            request_id=exchange.id,
            cost_usd=cost_usd,
            usage=usage,
        )
        return self.cache.save(key, wanted.bucket, entry, wanted.ttl_s, now) is not None

    # ---------------------------------------------------------------- money and rates

    async def _budget(self, exchange: Exchange, body: bytes) -> Answer | None:
        if not self.budgets.active():
            return None
        directives = exchange.directives
        facts = _body_facts(body)
        spender = Spender(
            user=directives.user_id or facts.user,
            model=facts.model or exchange.route.model,
            session=directives.session_id,
            properties=directives.properties,
        )
        now = local_now()
        try:
            state = await _in_thread(self.budgets.decide, spender, now)
        except budget.SpendingUnknownError as e:
            exchange.error = f"a blocking budget could not be judged: {e}"
            return budget.unknown_answer(e)
        exchange.after.append(partial(self._spend, spender))
        if state is None:
            return None
        if state.budget.action == "block":
            exchange.error = budget.warning(state)
            return budget.block_answer(state)
        exchange.warnings.append(budget.warning(state))
        return None

    def _spend(self, spender: Spender, exchange: Exchange, outcome: Outcome) -> None:
        self.budgets.add(spender, outcome.cost_usd, local_now())

    async def _limit(self, exchange: Exchange, body: bytes) -> Answer | None:
        directives = exchange.directives
        if directives.rate_limit_policy is None:
            return None
        try:
            policy = _policy(directives.rate_limit_policy)
        except ValueError as e:
            exchange.warnings.append(str(e))
            if len(self._refused_policies) < MAX_REFUSED and directives.rate_limit_policy not in self._refused_policies:
                self._refused_policies.add(directives.rate_limit_policy)
                logger.warning("%s", e)
            return None
        user = directives.user_id
        if user is None and policy.segment == "user":
            user = _body_facts(body).user
        bucket = ratelimit.bucket_id(policy, namespace(directives.auth_value), user, directives.properties)
        if bucket is None:
            decision = ratelimit.unlimited(policy)
        else:
            decision = await _in_thread(self.limits.take, bucket, policy)
        if decision.warning:
            exchange.warnings.append(decision.warning)
        if not decision.allowed:
            exchange.properties["Helicone-Rate-Limit-Status"] = "bucket_rate_limited"
            exchange.error = "limited by Helicone-RateLimit-Policy"
            return ratelimit.denied_answer(decision.headers)
        exchange.response_extra += decision.headers
        if policy.unit == "cents" and bucket is not None:
            exchange.after.append(partial(self._charge, bucket, policy))
        return None

    def _charge(self, bucket: str, policy: Policy, exchange: Exchange, outcome: Outcome) -> None:
        if outcome.cost_usd:
            self.limits.charge(bucket, policy, outcome.cost_usd * 100)

    # ---------------------------------------------------------------- what the prompt says

    async def _check(self, exchange: Exchange, call: Call, body: bytes) -> Answer | None:
        directives = exchange.directives
        if not moderation.applies(exchange.route.provider, exchange.path):
            return None
        try:
            content = moderation.last_user_content(body)
        except DirectiveError as e:
            return e.answer
        if content is None:
            return None
        if directives.security:
            found = await self._threat(exchange, moderation.text_of(content), directives)
            if found is not None:
                exchange.status_override = STATUS_THREAT
                exchange.error = f"prompt threat detected (rule: {found})"
                return moderation.threat_answer(exchange.id, rule=found)
        if directives.moderations and await self._flagged(exchange, call, content):
            exchange.error = "the prompt was flagged by the moderation endpoint"
            return moderation.flagged_answer(exchange.id)
        return None

    async def _threat(self, exchange: Exchange, text: str, directives: Directives) -> str | None:
        try:
            rules = await _in_thread(self._load_rules)
        except ValueError as e:
            exchange.warnings.append(f"Helicone-LLM-Security-Enabled: {e}; prompts are not checked")
            return None
        if rules is None:
            exchange.warnings.append(security.NOT_CONFIGURED)
            return None
        found: str | None = await _in_thread(
            partial(security.threat, rules, text, advanced=directives.security_advanced)
        )
        return found

    def _load_rules(self) -> security.Rules | None:
        path = self._home / security.RULES_NAME
        try:
            changed = path.stat().st_mtime
        except OSError:
            return None
        if changed != self._rules[0]:
            self._rules = (changed, security.load_rules(self._home))
        return self._rules[1]

    async def _flagged(self, exchange: Exchange, call: Call, content: Any) -> bool:
        """Ask the moderation endpoint with the client's own headers; an endpoint that fails lets the call pass."""
        sent = moderation.moderation_body(content)
        dropped = ("content-length", "transfer-encoding", "host", "connection", "accept-encoding", "content-encoding")
        headers = [(n, v) for n, v in call.headers if n.lower() not in dropped]
        side = exchange.side_call("/v1/moderations", "openai_moderation", sent, time.time(), time.perf_counter())
        try:
            status, body = await _in_thread(self._fetch, moderation.MODERATION_URL, headers, sent)
        except OSError as e:
            side.aborted, side.error = "upstream", str(e)
            exchange.warnings.append(f"Helicone-Moderations-Enabled: the endpoint failed ({e}); the prompt passed")
            status, body = 0, b""
        else:
            side.status, side.chunks, side.size_response = status, [body], len(body)
            side.response_headers = ((b"content-type", b"application/json"),)
        side.ended = time.perf_counter()
        side.finished = True
        self.side_calls(side)
        return moderation.is_flagged(status, body)


class _Saving:
    """One answer that is to be cached: run by the recorder when it is complete, waited for by whoever asks again."""

    def __init__(self, gates: Gates, exchange: Exchange, key: bytes) -> None:
        self._gates, self._exchange, self.key = gates, exchange, key
        self.stored = False
        self._loop = asyncio.get_running_loop()
        self.done = asyncio.Event()
        gates._saving[key] = self

    @property
    def answered(self) -> bool:
        return self._exchange.finished or self._exchange.ended is not None

    def __call__(self, exchange: Exchange, outcome: Outcome) -> None:
        try:
            self._gates._save(exchange, outcome, self)
        finally:
            self._loop.call_soon_threadsafe(self.forget)

    def forget(self) -> None:
        self.done.set()
        if self._gates._saving.get(self.key) is self:
            del self._gates._saving[self.key]


def _without_usage(entry: CacheEntry) -> CacheEntry:
    """A streamed entry without the usage chunk that we asked for; it was kept as the provider sent it."""
    kind = next((value for name, value in entry.headers if name.lower() == "content-type"), "")
    if not is_stream_type(kind) or any(name.lower() == "content-encoding" for name, _ in entry.headers):
        return entry
    hider = streamusage.UsageHider()
    return replace(entry, body=hider.feed(entry.body) + hider.end())


def refusal(directives: Directives) -> Answer | None:
    """The answer to headers that contradict themselves or the contract, whatever else they ask for."""
    return directives.error or retry.problem(directives.retry)


def asks(directives: Directives) -> bool:
    """Whether these headers ask for more than to be noted."""
    return directives.retry.enabled or _gated(directives)


def _gated(directives: Directives) -> bool:
    """Whether they ask for something that is done before an upstream is asked."""
    return directives.present and bool(
        directives.cache.wanted
        or directives.rate_limit_policy
        or directives.token_limit_handler
        or directives.stream_usage
        or directives.security
        or directives.moderations
        or directives.mock_response is not None
        or directives.prompt.mode != "deactivated"
        or directives.aws is not None
    )


@dataclass(frozen=True, slots=True)
class _Facts:
    model: str | None = None
    user: str | None = None


def _body_facts(body: bytes) -> _Facts:
    try:
        value = json.loads(body)
        model, user = value.get("model"), value.get("user")
    except (ValueError, RecursionError, AttributeError):
        return _Facts()
    if isinstance(user, int) and not isinstance(user, bool):
        user = str(user)  # as the row has it
    return _Facts(model if isinstance(model, str) else None, user if isinstance(user, str) else None)


@lru_cache(maxsize=256)
def _policy(raw: str) -> Policy:
    return ratelimit.parse_policy(raw)


async def _in_thread(function: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, function, *args)
