"""Calls that were made elsewhere and are told to us afterwards: Helicone's manual log, as an Exchange.

The body is `{providerRequest, providerResponse, timing, provider?}` (helicone-api.md section 2.1). From the Exchange
on, a told call goes the way of a proxied one; what differs is only where the reply is read: `Told` stands in for the
stream sink and reads the logged answer on the recorder's thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from heliproxy import hosts
from heliproxy.directives import Directives, parse
from heliproxy.exchange import STATUS_CANCELLED, STATUS_THREAT, STATUS_TIMEOUT, Exchange, Reply
from heliproxy.hosts import Route
from heliproxy.ids import new_request_id
from heliproxy.ingest_answer import Logged, dump, guess_format, read_event, read_logged, read_reply
from heliproxy.redact import may_hold_secrets, redact

PATH_PROVIDERS = {"oai": "openai", "anthropic": "anthropic", "googleapis": "google", "custom": "custom"}
"""First segment of the log path -> provider."""
ALIASES = {
    "google-ai-studio": "google", "googleapis": "google", "gemini": "google", "xai": "x-ai", "x": "x-ai",
    "aws": "bedrock", "mistralai": "mistral", "mistral-ai": "mistral", "together-ai": "together",
    "fireworks-ai": "fireworks", "open-router": "openrouter",
}  # fmt: skip
"""Names of providers that clients use -> ours."""
LATEST = 4_102_444_800
"""Unix seconds of 2100: a greater number is in milliseconds."""
MISSING = "One of the required fields is missing, providerRequest, providerResponse, or timing"


class LogError(ValueError):
    """A log that cannot be understood; the message names the part, in Helicone's words where it has some."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


@dataclass(slots=True, eq=False)
class Told:
    """Stands in for `record.Sink` when the whole answer is already here.

    `read` is called once, on the recorder's thread.
    """

    head: bytes
    read: Callable[[], Reply]
    truncated: bool = False
    broken: str | None = None
    raw: bytearray | None = None

    @property
    def parser(self) -> Told:
        return self

    def feed(self, chunks: Any) -> None:
        """Nothing more comes."""

    def result(self) -> Reply:
        return self.read()


@dataclass(frozen=True, slots=True)
class ManualLog:
    """A manual log that was found to be in order. Reading it, which costs ten times as much, is left for later."""

    id: str
    parts: tuple[dict[str, Any], dict[str, Any]]
    """providerRequest and providerResponse."""
    provider: str
    """As the log names it, or its path does."""
    fields: tuple[tuple[str, str], ...]
    url: str
    status: int
    times: tuple[float, float, float | None]

    def exchange(self, raw: bytes | None = None) -> Exchange:
        """The exchange that the log describes. Does not raise. `raw`: the JSON it was decoded from, if at hand."""
        request, response = self.parts
        asked, answer = request.get("json"), response.get("json")
        if raw is None or may_hold_secrets(raw):
            asked, answer = redact(asked), redact(answer)
        logged = read_logged(answer, response.get("textBody"))
        directives = directives_of(request.get("meta"), self.fields)
        event = _event(asked)
        form = guess_format(self.provider, asked, logged)
        host, path = _place(self.url)
        start, end, ttft = self.times
        exchange = Exchange(
            id=self.id,
            created_at=start,
            started=0.0,
            route=Route(self.provider, host, form, None, inference=True, model=event),
            directives=directives,
            method="POST",
            path=path,
            request_headers=kept_headers(self.fields, "application/json"),
            request_body=dump(asked),
            source="log",
            status=self.status,
            response_headers=_response_headers(response.get("headers"), logged),
            size_response=len(logged.body),
            ended=max(0.0, end - start),
            first_byte=ttft,
            finished=True,
            warnings=list(directives.warnings),
        )
        _end(exchange, self.status)
        cost = _cost(response.get("cost"))
        if event:
            exchange.sink = Told(logged.body, lambda: read_event(logged, self.status, cost))
        else:
            cut = exchange.aborted is not None
            exchange.sink = Told(logged.body, lambda: read_reply(form, logged, exchange.status, cost_usd=cost, cut=cut))
        return exchange


def check_log(
    body: Any,
    path_provider: str,
    headers: Iterable[tuple[str, str]],
    now: float,
    *,
    strict: bool = True,
    fresh_id: str | None = None,
) -> ManualLog:
    """Check a manual log, and give it its id.

    Args:
        body: the decoded JSON.
        path_provider: provider that the log's path stands for ("custom" when it stands for none).
        headers: of the log's own HTTP request; its Helicone-* headers win over those in `meta`.
        now: Unix seconds, taken when the log has no times.
        strict: `timing` is required, as on the worker's paths.
        fresh_id: its id unless the client chose one; None: a new one.

    Raises:
        LogError: a part is missing or of the wrong type.
    """
    request, response, timing = _parts(body, strict)
    url = _url(request)
    status = _status(response)
    fields = tuple((name, value) for name, value in headers if isinstance(value, str))
    provider = _provider(body.get("provider"), path_provider, url)
    times = _times(timing, now)
    chosen = _chosen_id(request.get("meta"), fields)
    key = chosen or fresh_id or new_request_id(int(times[0] * 1000))
    return ManualLog(key, (request, response), provider, fields, url, status, times)


def log_exchange(
    body: Any, path_provider: str, headers: Iterable[tuple[str, str]], now: float, *, strict: bool = True
) -> Exchange:
    """Check and read a manual log at once; see `check_log`."""
    return check_log(body, path_provider, headers, now, strict=strict).exchange()


def _chosen_id(meta: Any, fields: Iterable[tuple[str, str]]) -> str | None:
    """The id the client chose, when it is one."""
    chosen = [
        (name, value)
        for name, value in (meta.items() if isinstance(meta, dict) else ())
        if name[:19].lower() == "helicone-request-id"
    ]
    sent = [(name, value) for name, value in fields if name[:19].lower() == "helicone-request-id"]
    return directives_of(dict(chosen), sent).request_id if chosen or sent else None


def _parts(body: Any, strict: bool) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """The three parts of a log, checked."""
    if not isinstance(body, dict):
        raise LogError("Invalid log: the body should be an object")
    request, response, timing = body.get("providerRequest"), body.get("providerResponse"), body.get("timing")
    if not request or not response or (strict and not timing):
        raise LogError(MISSING)
    if not isinstance(request, dict):
        raise LogError("Invalid providerRequest: it should be an object", "providerRequest")
    if not isinstance(response, dict):
        raise LogError("Invalid providerResponse: it should be an object", "providerResponse")
    if timing is not None and not isinstance(timing, dict):
        raise LogError("Invalid timing: it should be an object", "timing")
    if request.get("meta") is not None and not isinstance(request["meta"], dict):
        raise LogError("Invalid providerRequest: 'meta' should be an object", "providerRequest.meta")
    if "json" not in request:
        raise LogError("Invalid providerRequest: 'json' is undefined", "providerRequest.json")
    text = response.get("textBody")
    if text is not None and not isinstance(text, str):
        raise LogError("Invalid providerResponse: 'textBody' should be a string", "providerResponse.textBody")
    if "json" not in response and text is None:
        raise LogError("Invalid providerResponse: 'json' is undefined", "providerResponse.json")
    if response.get("headers") is not None and not isinstance(response["headers"], dict):
        raise LogError("Invalid providerResponse: 'headers' should be an object", "providerResponse.headers")
    return request, response, timing


def _url(request: Mapping[str, Any]) -> str:
    url = request.get("url")
    if not isinstance(url, str):
        raise LogError("Invalid providerRequest: 'url' should be a string", "providerRequest.url")
    return url[:4096]


def _status(response: Mapping[str, Any]) -> int:
    status = response.get("status")
    if isinstance(status, str) and status.strip().lstrip("-").isdecimal() and len(status) < 6:
        status = int(status)
    if isinstance(status, float) and status.is_integer():
        status = int(status)
    if isinstance(status, bool) or not isinstance(status, int) or not -1000 < status < 1000:
        raise LogError("Invalid providerResponse: 'status' should be a number", "providerResponse.status")
    return status


def _cost(value: Any) -> float | None:
    """The cost a client tells in USD, when it is one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        return None
    return float(value)


def _end(exchange: Exchange, status: int) -> None:
    """Helicone's negative statuses are ways of ending, not statuses of the provider."""
    if status == STATUS_CANCELLED:
        exchange.status, exchange.aborted, exchange.error = 200, "client", "the reader cancelled the stream"
    elif status == STATUS_TIMEOUT:
        exchange.status, exchange.aborted = 200, "timeout"
    elif status == STATUS_THREAT:
        exchange.status_override = status


def directives_of(meta: Any, fields: Iterable[tuple[str, str]]) -> Directives:
    """What `meta` and the HTTP headers ask for; the headers win. Only text-like `Helicone-*` values of meta count.

    The key that came with the log is Helicone's, never a provider's.
    """
    found: dict[str, str] = {}
    for name, value in meta.items() if isinstance(meta, dict) else ():
        if isinstance(value, str | int | float) and name[:9].lower() == "helicone-":
            found[name.lower()] = str(value).lower() if isinstance(value, bool) else str(value)
    found.pop("helicone-auth", None)
    for name, value in fields:
        lower = name.lower()
        if lower.startswith("helicone-"):
            found[lower] = value
        elif lower == "authorization" and value:
            found.setdefault("helicone-auth", value)
    return _parsed(tuple(found.items()))


@lru_cache(maxsize=256)
def _parsed(headers: tuple[tuple[str, str], ...]) -> Directives:
    # One logger sends the same headers with most of its logs.
    return parse(headers)


def provider_name(value: Any) -> str | None:
    """A provider as clients write it (`OPENAI`, `google-ai-studio`) by our name; None for anything else."""
    if not isinstance(value, str):
        return None
    name = value.strip().lower().replace("_", "-").replace(" ", "-")[:40]
    if not name or name in ("unknown", "none", "null"):
        return None
    return ALIASES.get(name, name)


def _provider(named: Any, path_provider: str, url: str) -> str:
    if path_provider != "custom":
        return path_provider
    found = provider_name(named)
    if found is not None and found != "custom":
        return found
    return hosts.provider_for_host(urlsplit(url).netloc if _is_absolute(url) else "") or "custom"


def _is_absolute(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc)


def _place(url: str) -> tuple[str, str]:
    """Host and path of the call; a URL that is none (`custom-model-nopath`, `N/A`) is kept as the path."""
    if not _is_absolute(url):
        return "", url
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return host.lower(), (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _event(asked: Any) -> str | None:
    """The name under which a call that is no model's is listed: `tool:weather`, `vector_db:search`, `data:step1`."""
    if not isinstance(asked, dict):
        return None
    kind = asked.get("_type")
    names = {"tool": ("toolName",), "vector_db": ("databaseName", "operation"), "data": ("name",)}
    if not isinstance(kind, str) or kind not in names:
        return None
    name = next((asked[key] for key in names[kind] if isinstance(asked.get(key), str) and asked[key]), None)
    if kind == "tool" and name in (None, "unknown"):
        return None  # Python's helper says so of every dict
    return f"{kind}:{name}"[:200] if name else kind


# -- times ----------------------------------------------------------------------------------------------------------


def _times(timing: Any, now: float) -> tuple[float, float, float | None]:
    """(start, end, seconds to the first token); what is absent or cannot be is `now`, or nothing."""
    timing = timing if isinstance(timing, dict) else {}
    end = _moment(timing.get("endTime"), "timing.endTime")
    start = _moment(timing.get("startTime"), "timing.startTime")
    if start is None:
        start = end if end is not None else now
    if end is None:
        end = start
    ttft = timing.get("timeToFirstToken")
    if isinstance(ttft, bool) or not isinstance(ttft, int | float) or not 0 <= ttft < 1e9:
        return start, end, None
    return start, end, ttft / 1000


def _moment(value: Any, field: str) -> float | None:
    """Unix seconds of one time: `{seconds, milliseconds}`, seconds, milliseconds, or a date."""
    if value is None:
        return None
    if isinstance(value, dict):
        seconds, milliseconds = value.get("seconds"), value.get("milliseconds", 0)
        found = _number(seconds)
        if found is None:
            raise LogError(f"Invalid {field}: 'seconds' should be a number", field)
        return _plausible(found + (_number(milliseconds) or 0.0) / 1000, field)
    if isinstance(value, str):
        found = _number(value)
        if found is None:
            return _date(value, field)
        return _plausible(found, field)
    found = _number(value)
    if found is None:
        raise LogError(f"Invalid {field}: it should be a time", field)
    return _plausible(found, field)


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e18 or value != value:
        return None
    return float(value)


def _plausible(seconds: float, field: str) -> float:
    if seconds >= LATEST:
        seconds /= 1000
    if not 0 <= seconds < LATEST:
        raise LogError(f"Invalid {field}: {seconds:.0f} is not a time", field)
    return seconds


def _date(text: str, field: str) -> float:
    try:
        at = datetime.fromisoformat(text.strip())
        return _plausible((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp(), field)
    except (ValueError, OverflowError) as e:
        raise LogError(f"Invalid {field}: {text[:60]!r} is not a time", field) from e


# -- bytes ----------------------------------------------------------------------------------------------------------


def kept_headers(fields: Iterable[tuple[str, str]], content_type: str) -> tuple[tuple[bytes, bytes], ...]:
    """The log's own Helicone-* headers and user agent, as the headers of the call it describes."""
    kept = [
        (name.lower(), value)
        for name, value in fields
        if name.lower() == "user-agent" or (name[:9].lower() == "helicone-" and name.lower() != "helicone-auth")
    ]
    kept.append(("content-type", content_type))
    return tuple((name.encode("latin-1", "replace"), value.encode("utf-8", "replace")) for name, value in kept)


def _response_headers(headers: Any, logged: Logged) -> tuple[tuple[bytes, bytes], ...]:
    kept = [("content-type", logged.content_type)]
    for name, value in headers.items() if isinstance(headers, dict) else ():
        # The logged body is decoded already, and its type is what we found it to be.
        if isinstance(value, str) and name.lower() not in ("content-type", "content-encoding", "content-length"):
            kept.append((name, value))
    return tuple((name.encode("latin-1", "replace"), value.encode("utf-8", "replace")) for name, value in kept)
