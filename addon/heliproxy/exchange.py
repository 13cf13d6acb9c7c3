"""The values that travel through heliproxy: one exchange and what is read out of it.

Two front doors (a proxied flow, a call logged after the fact) build an `Exchange`; everything behind them
takes these values and returns these values. Nothing here knows mitmproxy, SQLite or a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from heliproxy.ids import new_request_id

if TYPE_CHECKING:
    from heliproxy.directives import Directives
    from heliproxy.hosts import Route

STATUS_TIMEOUT = -2
STATUS_CANCELLED = -3
STATUS_THREAT = -4


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and billable units of one call. `None` means "not reported", which is never the same as 0.

    `input_tokens` is everything the model read, cache reads and writes included; `output_tokens` is everything
    it wrote, reasoning included. All other token fields are subsets of one of these two.
    """

    input_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    """All cache writes, whatever their TTL."""
    cache_write_5m_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    input_audio_tokens: int | None = None
    cache_read_audio_tokens: int | None = None
    output_audio_tokens: int | None = None
    input_image_tokens: int | None = None
    output_image_tokens: int | None = None
    input_video_tokens: int | None = None
    units: Mapping[str, float] = field(default_factory=dict)
    """Billable things that are not tokens: web_searches, search_units, pages, audio_seconds, characters, images."""
    parts: tuple[ModelUsage, ...] = ()
    """When one call ran several models or sub-calls (Anthropic `iterations`): each with its own usage.
    Together they are the whole; the fields above are their sums."""


@dataclass(frozen=True, slots=True)
class ModelUsage:
    """The usage of one sub-call, on its own model (`None`: the model of the call itself)."""

    model: str | None
    usage: Usage


@dataclass(frozen=True, slots=True)
class Ask:
    """What a format reads out of a request."""

    model: str | None = None
    stream: bool = False
    user: str | None = None
    preview: str = ""
    """The last thing the user said, as text, at most 500 characters."""
    tier: str | None = None
    """The service tier asked for; the one in the reply wins."""


@dataclass(slots=True)
class Reply:
    """What a format reads out of a response, whole or streamed."""

    model: str | None = None
    response_id: str | None = None
    usage: Usage | None = None
    usage_json: Any = None
    """The provider's own usage object, unchanged, for re-pricing and for the curious."""
    finish_reason: str | None = None
    error_type: str | None = None
    error: str | None = None
    error_status: int | None = None
    """The HTTP status an error inside a 200 stands for (overloaded_error: 529)."""
    complete: bool = True
    """False when a stream ended before its terminal event."""
    pricing: Mapping[str, str] = field(default_factory=dict)
    """What changes the price: tier, speed, geo, processing (batch)."""
    cost_usd: float | None = None
    """Cost as the provider itself reports it, in USD."""
    text: str = ""
    """The visible output: text, refusals, tool call arguments, visible reasoning; for estimates and previews."""
    preview: str = ""
    """The answer as a person would read it, at most 500 characters."""
    tool_calls: int = 0


class StreamParser(Protocol):
    """Reads one streamed response, piece by piece; the pieces may be cut anywhere."""

    def feed(self, data: bytes) -> None:
        """Take the next decoded bytes. Never raises."""

    def result(self) -> Reply:
        """What has been read so far; may be called at any time, and more than once."""


class Format(Protocol):
    """One wire format. Methods take values and return values, and never raise on odd input."""

    name: str
    terminal: tuple[bytes, ...]
    """Byte strings of which one stands in the last event of a stream (`data: [DONE]`); empty when there is none."""

    def parse_request(self, body: bytes, path: str) -> Ask:
        """Read the request body (already decoded)."""

    def parse_response(self, body: bytes, headers: Mapping[str, str]) -> Reply:
        """Read a whole, decoded, successful response body; header names in lower case."""

    def parse_error(self, body: bytes) -> Reply:
        """Read the decoded body of a 4xx or 5xx."""

    def stream(self, content_type: str) -> StreamParser:
        """A parser for one streamed response of this content type."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call to an upstream made for an exchange."""

    target: str
    """Scheme, host and port of the upstream."""
    status: int | None
    """HTTP status, or None when no answer came."""
    error: str | None
    duration_ms: float
    fallback_index: int | None = None
    delay_ms: float = 0.0
    """How long was waited before this attempt."""


HeaderFields = tuple[tuple[bytes, bytes], ...]


@dataclass(slots=True, eq=False)
class Exchange:
    """One call, from its request to the row it becomes. Filled in the order of the life of a call.

    Wall-clock times are Unix seconds; all others are readings of one monotonic clock, in seconds.
    """

    id: str
    created_at: float
    started: float
    route: Route
    directives: Directives
    method: str
    path: str
    """Path and query as sent to the provider."""
    request_headers: HeaderFields = ()
    """As the client sent them, Helicone-* included."""
    request_body: bytes | None = None
    """As received, still content-encoded."""
    size_request: int | None = None
    """Bytes of a request that was too long to be held: it passed as it came, and `request_body` is its beginning."""
    target_url: str | None = None
    """Where the call went, when that is not the provider's own host."""
    source: str = "proxy"
    run_id: str | None = None

    status: int | None = None
    response_headers: HeaderFields = ()
    chunks: list[bytes] = field(default_factory=list)
    """Response bytes not yet handed to the recorder, still content-encoded."""
    pending: int = 0
    """Bytes in `chunks`."""
    size_response: int = 0
    first_byte: float | None = None
    ended: float | None = None
    aborted: str | None = None
    """Why the exchange ended early: "client" (hung up) or "upstream" (cut, refused, protocol error) or "timeout"."""
    error: str | None = None

    attempts: list[Attempt] = field(default_factory=list)
    last_noted: bool = False
    """`attempts` already holds the call whose answer is passed on."""
    fallback_index: int | None = None
    cache: str | None = None
    """HIT or MISS when a cache was asked, else None."""
    cache_reference_id: str | None = None
    saved_usd: float | None = None
    repeated: Mapping[str, Any] | None = None
    """What the row of the answer said that a hit repeats, so that it need not be read again."""
    twin: Any = None
    """What the recorder keeps of calls that are the same to the byte (`record.Twin`)."""
    find_saved: Callable[[], float | None] | None = None
    """Looks up what a hit saves, when the answer it repeats was not priced yet."""
    warnings: list[str] = field(default_factory=list)
    answered_here: bool = False
    """The response is ours (cache hit, rate limit, block), not an upstream's."""
    answer_reason: str | None = None
    """Why it was answered here: rate_limited, budget, prompt_threat, ..."""
    credential_headers: HeaderFields | None = None
    """Headers that carry the provider key, when a gateway replaced the client's."""
    gateway_extra: tuple[tuple[str, str], ...] = ()
    """Headers that name the gateway's choice in the response."""
    response_extra: tuple[tuple[str, str], ...] = ()
    """Headers that policies add to the response, whoever makes it."""
    properties: dict[str, str] = field(default_factory=dict)
    """Properties that policies add to the client's own."""
    status_override: int | None = None
    """The row's status when it is not the HTTP status (a prompt threat)."""
    warm_up: bool = False
    """A socket's `response.create` that asks for nothing (`generate: false`): no call, unless tokens are reported."""
    keep_raw: bool = False
    """The recorder keeps the response's bytes as sent, for the cache."""
    hide_usage: bool = False
    """We asked for the usage chunk, the client did not: it is taken out of the stream again."""
    finished: bool = False
    handed: int = 0
    """Bytes of bodies that went to the recorder with its end."""
    handed_at: float = 0.0
    """When it did, in seconds of the recorder's clock."""
    bodies_lost: bool = False
    """There was no room for the bodies, so nothing can be read out of them."""
    logged: bool = True
    """False: policies act on it, but it makes no row."""
    ask: Ask | None = None
    """What the format read out of the request; the recorder fills it in, as all below."""
    request_decoded: bytes = b""
    parse_error: str | None = None
    sink: Any = None
    """The recorder's own state while a response streams in."""
    after: list[Any] = field(default_factory=list)
    """Callables `(exchange, outcome)` the recorder runs once usage and cost are known (cache save, limit charge)."""

    def side_call(self, path: str, format: str, body: bytes, now: float, clock: float) -> Exchange:
        """A call we make ourselves for this one, to be logged as its own: same provider, client and session."""
        return Exchange(
            id=new_request_id(int(now * 1000)),
            created_at=now,
            started=clock,
            route=replace(self.route, format=format, model=None),
            directives=self.directives,
            method="POST",
            path=path,
            request_headers=self.request_headers,
            request_body=body,
            run_id=self.run_id,
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is known once a call is over and priced; policies that act afterwards read this."""

    status: int
    complete: bool
    """The provider's answer arrived whole, and the client took all of it."""
    cost_usd: float | None
    usage: Usage | None
    row: Mapping[str, Any]
