"""The upstreams of a gateway call: `Helicone-Fallbacks`, or the model string of the AI gateway.

Each choice is a whole request of its own (host, headers, body), made from the client's original one, so that nothing
of one target, its credentials least of all, reaches another.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from heliproxy import targets
from heliproxy.directives import Directives, is_helicone_header, parse
from heliproxy.exchange import Attempt, Exchange
from heliproxy.policies import fallback as gateway
from heliproxy.policies import ssrf
from heliproxy.policies import target as named
from heliproxy.policies.answers import Answer, DirectiveError, exception_answer
from heliproxy.policies.cache import is_credential
from heliproxy.policies.fallback import Failure, Fallback, GatewayTarget
from heliproxy.secrets import without_keys
from heliproxy.targets import Destination

_OWN_HEADERS = frozenset({"content-length", "transfer-encoding", "host", "content-encoding"})


@dataclass(frozen=True, slots=True)
class One:
    """The request for one choice."""

    destination: Destination
    headers: tuple[tuple[str, str], ...]
    body: bytes
    directives: Directives
    """What the call asks for: the client's, with the cache settings this choice names itself."""
    response_headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Chosen:
    """The choices of one call, in the order to try."""

    choices: Sequence[Any]
    request: Callable[[int], One]
    numbered: bool = False
    """The response says which choice it came from (`helicone-fallback-index`)."""
    exhausted: Callable[[list[Attempt]], Answer | None] | None = None


@dataclass(frozen=True, slots=True)
class _GatewayChoice:
    target: GatewayTarget = field(repr=False)

    def matches(self, status: int) -> bool:
        """Every answer that is no success moves on."""
        return not 200 <= status < 300


def choose(
    exchange: Exchange, destination: Destination, body: bytes, env: Mapping[str, str], allowed: Collection[str]
) -> Chosen | Answer:
    """The upstreams for this call, or the error to answer when none can be called.

    `body` is decoded, with the changes made that directives ask for.
    """
    if destination.kind == "ai-gateway":
        return _by_model(exchange, destination, body, env, allowed)
    return _by_header(exchange.directives, destination, exchange.method, body, allowed)


def _by_header(
    directives: Directives, destination: Destination, method: str, body: bytes, allowed: Collection[str]
) -> Chosen | Answer:
    made: list[One] = []
    for index, entry in enumerate(directives.fallbacks):
        reason = ssrf.check_url(entry.target_url, allowed)
        origin = named.origin(entry.target_url)
        if reason is not None or origin is None:
            reason = reason or "is not a valid URL"
            return named.invalid_base(entry.target_url, reason)
        try:
            sent = gateway.override_body(body, entry.body_override)
        except DirectiveError as e:
            return e.answer
        except Exception as e:
            return exception_answer(f"Helicone-Fallbacks: entry {index}: {e}")
        own = _own_directives(directives, entry)
        if own.error is not None:
            return own.error
        headers = tuple((name, value) for name, value in entry.headers if not is_helicone_header(name))
        # A key in the query is the first target's, as are the headers that an entry replaces.
        first = made[0].destination if made else None
        same = first is None or (first.scheme, first.host, first.port) == (origin.scheme, origin.host, origin.port)
        path = destination.path if same else without_keys(destination.path)
        made.append(One(targets.to_origin(method, origin, path, allowed), headers, sent, own))
    return Chosen(directives.fallbacks, made.__getitem__, numbered=True)


def _own_directives(directives: Directives, entry: Fallback) -> Directives:
    """The client's directives, with the entry's own cache settings: Helicone reads them from an entry's headers."""
    if not any(name.lower().startswith("helicone-cache") for name, _ in entry.headers):
        return directives
    found = parse(entry.headers)
    return replace(directives, cache=found.cache, error=found.error)


def _by_model(
    exchange: Exchange,
    destination: Destination,
    body: bytes,
    env: Mapping[str, str],
    allowed: Collection[str],
) -> Chosen | Answer:
    value = _json_object(body)
    if value is None:
        return gateway.missing_model()
    planned = gateway.plan_models(value.get("model"), env)
    if planned.error is not None:
        return planned.error
    wanted = _Wanted(exchange.directives.gateway_body_mapping, destination.path)
    usable = [target for target in planned.targets if wanted.is_spoken_by(target)]
    refused = [
        Failure(t.provider, 400, wanted.untranslated(t), "invalid_format") for t in planned.targets if t not in usable
    ]
    if not usable:
        return gateway.gateway_failure(refused)
    exchange.warnings += planned.skipped
    exchange.warnings += [f"{t.source} was skipped: {t.message}" for t in refused]
    kept = tuple(
        (name, text)
        for name, text in _fields(exchange)
        if (lower := name.lower()) not in _OWN_HEADERS
        and not lower.startswith("helicone-")
        and not is_credential(lower)
    )
    made = [_gateway_one(target, wanted, exchange, value, kept, allowed) for target in usable]

    def exhausted(attempts: list[Attempt]) -> Answer:
        tried = [
            Failure(usable[a.fallback_index or 0].provider, a.status or 500, a.error or f"answered {a.status}")
            for a in attempts
        ]
        return gateway.gateway_failure([*refused, *tried])

    return Chosen([_GatewayChoice(target) for target in usable], made.__getitem__, exhausted=exhausted)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Which format a request to the AI gateway is in, by `Helicone-Gateway-Body-Mapping` and its path.

    Nothing is translated: `OPENAI` goes to providers with an OpenAI-compatible endpoint, `RESPONSES` to the same at
    /v1/responses, and `NO_MAPPING` is whatever format each provider has of its own.
    """

    mapping: str
    path: str

    @property
    def shape(self) -> str:
        return "anthropic" if self.path.partition("?")[0].rstrip("/").endswith("/messages") else "openai"

    def is_spoken_by(self, target: GatewayTarget) -> bool:
        """Whether a provider understands this request: in its own format, or at its own OpenAI-compatible endpoint.

        Anthropic has one for chat completions, beside /v1/messages; Gemini's base URL is one already.
        """
        if self.mapping == "NO_MAPPING" and self.shape == "openai":
            return True
        chat = self.mapping == "OPENAI" and self.path.partition("?")[0].endswith("/chat/completions")
        return target.format == self.shape or (self.shape == "openai" and target.format == "anthropic" and chat)

    def path_at(self, target: GatewayTarget) -> str:
        """The path and query below the provider's base URL."""
        plain, mark, query = self.path.partition("?")
        if self.mapping == "RESPONSES" and self.shape == "openai":
            plain = "/responses"
        elif self.mapping == "NO_MAPPING" and target.format == "anthropic":
            plain = "/messages"
        return plain.removeprefix("/v1") + mark + query

    def untranslated(self, target: GatewayTarget) -> str:
        """Why a provider is not asked."""
        where = "/v1/messages" if self.shape == "openai" else "/v1/chat/completions"
        return (
            f"{target.provider} does not speak the format of this request ({self.shape}), and requests are not"
            f" translated; send its own format to {where}"
        )


def _fields(exchange: Exchange) -> list[tuple[str, str]]:
    return [(n.decode("latin-1"), v.decode("utf-8", "surrogateescape")) for n, v in exchange.request_headers]


def _gateway_one(
    target: GatewayTarget,
    wanted: _Wanted,
    exchange: Exchange,
    value: dict[str, Any],
    kept: tuple[tuple[str, str], ...],
    allowed: Collection[str],
) -> One:
    origin = named.origin(target.base_url)
    assert origin is not None
    prefix = "/" + target.base_url.split("/", 3)[3] if target.base_url.count("/") > 2 else ""
    path = without_keys(prefix + wanted.path_at(target))
    sent = value | {"model": target.model}
    credentials = target.auth_headers
    if "chat/completions" in path:
        credentials = (("authorization", f"Bearer {target.key}"),)
        if value.get("stream") is True and wanted.mapping == "OPENAI":
            options = value.get("stream_options")
            sent["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
    given = {name.lower() for name, _ in credentials}
    headers = (*((n, v) for n, v in kept if n.lower() not in given), *credentials)
    found = targets.to_origin(exchange.method, origin, path, allowed)
    named_in_response = (
        ("Helicone-Gateway-Mode", "BYOK"),
        ("Helicone-Provider", target.provider),
        ("Helicone-Model", target.model),
    )
    return One(replace(found, path=path), headers, json.dumps(sent).encode(), exchange.directives, named_in_response)


def _is_left_out(name: str) -> bool:
    """Whether a header (in lower case) is for us or for one host alone: a key goes to no other provider."""
    return name in _OWN_HEADERS or name.startswith("helicone-") or is_credential(name)


def _json_object(body: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
