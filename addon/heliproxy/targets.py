"""Whose call a request is, and where it is really to be sent: a provider, a gateway target, our own API, or nobody's.

Host tables are `hosts.py`'s; targets that a client names itself are checked by `policies.target` and `policies.ssrf`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Container
from dataclasses import dataclass, replace

from heliproxy import hosts
from heliproxy.directives import Directives
from heliproxy.hosts import Route
from heliproxy.policies import target as named
from heliproxy.policies.answers import (
    JSON_UTF8,
    Answer,
    DirectiveError,
    error_answer,
    exception_answer,
    json_answer,
    one_line,
    text_answer,
)

_KEY_SEGMENT = re.compile(r"^(/[\w-]{1,32})??/((?:sk|pk)-helicone[^/?#]*)")
_QSTASH = "qstash.upstash.io"
_FORWARDERS = {_QSTASH: "qstash", "gateway.llmmapper.com": "llmmapper"}
"""Hosts that pass calls on to providers, by the name their rows have."""
_LOG_PATH = re.compile(r"^(?:/(oai|anthropic|googleapis|custom))?/v1/log$")
_HOME_PAGES = {
    "api.together.xyz": "https://together.xyz",
    "openrouter.ai": "https://openrouter.ai",
    "api.deepinfra.com": "https://deepinfra.com",
    "api.groq.com": "https://groq.com",
    "api.perplexity.ai": "https://api.perplexity.ai",
    "api.fireworks.ai": "https://fireworks.ai",
    "api.app.predibase.com": "https://app.predibase.com",
}
"""Where a browser that opens one of Helicone's hosts is sent (section 1 of the contract)."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a request goes. `kind`: "provider", "gateway" (fallbacks wanted), "ai-gateway", "api" (served here),
    or "refused" (`answer` says why)."""

    kind: str
    route: Route
    scheme: str = "https"
    host: str = ""
    port: int = 443
    path: str = "/"
    guarded: bool = False
    """The client named the host itself: only public addresses may be dialled."""
    answer: Answer | None = None


def split_key(path: str) -> tuple[str, str | None]:
    """The path without a Helicone key as its first segment, and that key (section 1 of the contract).

    In base-URL style a label may stand before the key: `/oai/sk-helicone-.../v1/chat/completions`.
    """
    found = _KEY_SEGMENT.match(path)
    if found is None:
        return path, None
    rest = path[found.end() :]
    return (found.group(1) or "") + (rest if rest.startswith("/") else f"/{rest}"), found.group(2)


def of_provider(method: str, host: str, path: str) -> Destination | None:
    """A request to a provider's own host; None when the host is none we know."""
    route = hosts.route(method, host, path)
    return None if route is None else Destination("provider", route, host=host, path=path)


def of_added(method: str, host: str, path: str) -> Destination:
    """A request to a host that only the operator knows: a call to a model when its path says so."""
    return Destination("provider", hosts.custom_route(method, host, path) or _nobody(host), host=host, path=path)


def of_helicone(method: str, host: str, path: str, directives: Directives, allowed: Collection[str]) -> Destination:
    """A request to one of Helicone's hosts."""
    served = _served_here(method, host, path, directives)
    if served is not None:
        return served
    found = hosts.helicone_target(host, path)
    if found is None:
        return _nowhere(method, host, path)
    return _of_target(method, host, found, directives, allowed)


def _served_here(method: str, host: str, path: str, directives: Directives) -> Destination | None:
    """What every Helicone host answers by itself."""
    plain = path.partition("?")[0]
    if plain == "/v1/feedback":
        return Destination("api", _nobody(host), path=path)
    log = _LOG_PATH.match(plain)
    label = log and (log.group(1) or host.partition(".")[0])
    if label:
        # A log sent to the wrong one of Helicone's hosts must not end up at a provider.
        return Destination("api", _nobody(host), path=f"/{label}/v1/log")
    if method != "GET":
        return None
    if plain == "/healthcheck":
        answer = Answer(200, (("content-type", JSON_UTF8),), b"")
    elif plain == "/helicone/test":
        answer = json_answer(200, {"test": "Hello World!", "properties": dict(directives.properties)})
    else:
        return None
    return Destination("refused", _nobody(host), answer=answer, path=path)


def _nowhere(method: str, host: str, path: str) -> Destination:
    """A Helicone host, or a path on one, that stands for no provider."""
    label = host.partition(".")[0]
    if "firecrawl" in label and method == "GET" and path.partition("?")[0] == "/":
        return _redirect(host, path, "https://firecrawl.dev")
    if "llmmapper" in label or "qstash" in label:
        answer = exception_answer("Unknown path")
    else:
        answer = exception_answer(f"Could not determine worker type: no provider is known for '{one_line(label)}'")
    return Destination("refused", _nobody(host), answer=answer, path=path)


def _redirect(host: str, path: str, location: str) -> Destination:
    answer = Answer(301, (("location", location),), b"")
    return Destination("refused", _nobody(host), answer=answer, path=path)


def of_own_port(method: str, path: str, directives: Directives, allowed: Collection[str]) -> Destination:
    """A request to the proxy port itself, in base-URL style; what is no gateway path is the API's."""
    found = hosts.gateway_target(path)
    if found is None and path.startswith("/v1/gateway/") and (directives.target_url or directives.fallbacks):
        found = hosts.Target("", 443, path.removeprefix("/v1/gateway"), "gateway")
    is_log = _LOG_PATH.match(path.partition("?")[0]) is not None
    served = _served_here(method, "", path if found is None or is_log else found.path, directives)
    if served is not None:
        return served
    if found is None:
        return Destination("api", _nobody(""), path=path)
    return _of_target(method, "", found, directives, allowed)


def placed(destination: Destination, upstreams: Container[str]) -> Destination:
    """The destination, with the label of a local server (`/ollama/...`) made an address, unless the operator did."""
    label = destination.host
    if label not in hosts.LOCAL_LABELS or label in upstreams:
        return destination
    if destination.port == 0:
        message = f"say where it listens: heliproxy serve --upstream {label}=http://127.0.0.1:PORT"
        return _refused(label, destination.path, 400, message)
    return replace(destination, host="127.0.0.1")


def _of_target(
    method: str, host: str, found: hosts.Target, directives: Directives, allowed: Collection[str]
) -> Destination:
    if found.kind == "api":
        return Destination("api", _nobody(host), path=found.path)
    if found.kind == "local":
        route = hosts.local_route(method, found.host, found.path)
        return Destination("provider", route, "http", found.host, found.port, found.path)
    if found.kind == "generate":
        return _refused(host, found.path, 501, "the generate API is not served; send the prompt's messages themselves")
    if found.kind == "ai-gateway":
        return _ai_gateway(method, found.path)
    if found.kind == "gateway":
        return _gateway(method, found.path, directives, allowed)
    if method == "GET" and found.host in _HOME_PAGES and found.path.partition("?")[0] == "/":
        return _redirect(host, found.path, _HOME_PAGES[found.host])
    if found.host == _QSTASH and directives.upstash_callback is not None:
        try:
            return to_origin(method, named.callback_origin(directives, allowed), found.path, allowed)
        except DirectiveError as e:
            return Destination("refused", _nobody(host), answer=e.answer, path=found.path)
    route = hosts.route(method, found.host, found.path) or _by_path(method, found) or _nobody(found.host)
    scheme = "http" if found.port in hosts.LOCAL_PORTS else "https"
    destination = Destination("provider", route, scheme, found.host, found.port, found.path)
    return overridden(destination, method, directives, allowed)


def _by_path(method: str, found: hosts.Target) -> Route | None:
    """What a call is that passes one of Helicone's forwarders: its path is a provider's."""
    label = _FORWARDERS.get(found.host)
    route = hosts.custom_route(method, found.host, found.path) if label else None
    return replace(route, provider=label) if route is not None and label is not None else None


def _ai_gateway(method: str, path: str) -> Destination:
    if method == "GET" and path.partition("?")[0].rstrip("/") == "/v1/models":
        return Destination("api", _nobody("ai-gateway.helicone.ai"), path=path)
    if method != "POST":
        answer = text_answer(405, "Method not allowed")
        answer = replace(answer, headers=(*answer.headers, ("Allow", "POST, GET")))
        return Destination("refused", _nobody("ai-gateway.helicone.ai"), answer=answer, path=path)
    route = replace(route_by_path(method, path), provider="ai-gateway", host="ai-gateway.helicone.ai")
    return Destination("ai-gateway", route, path=path)


def _gateway(method: str, path: str, directives: Directives, allowed: Collection[str]) -> Destination:
    if directives.error is not None:
        return Destination("refused", _nobody("gateway.helicone.ai"), answer=directives.error, path=path)
    if directives.fallbacks:
        route = replace(route_by_path(method, path), provider="gateway", host="gateway.helicone.ai")
        return Destination("gateway", route, path=path)
    try:
        origin = named.gateway_origin(directives, allowed)
    except DirectiveError as e:
        return Destination("refused", _nobody("gateway.helicone.ai"), answer=e.answer, path=path)
    return to_origin(method, origin, path, allowed)


def overridden(destination: Destination, method: str, directives: Directives, allowed: Collection[str]) -> Destination:
    """The destination with `Helicone-OpenAI-Api-Base` or `Helicone-Target-URL` honoured on a provider's host."""
    if directives.target_url is None and directives.openai_api_base is None:
        return destination
    try:
        origin = named.base_override(directives, allowed)
    except DirectiveError as e:
        return replace(destination, kind="refused", answer=e.answer)
    if origin is None:
        return destination
    return to_origin(method, origin, destination.path, allowed)


def to_origin(method: str, origin: named.Origin, path: str, allowed: Collection[str]) -> Destination:
    """A destination at a host named by the client: priced as its provider when we know it, guarded when we do not."""
    route = hosts.route(method, origin.host, path)
    known = route is not None and hosts.provider_for_host(origin.host) not in (None, "local")
    if route is None:
        provider = str(origin)
        route = replace(route_by_path(method, path), provider=provider, host=origin.host, price_provider=None)
    guarded = not known and origin.host not in allowed and f"{origin.host}:{origin.port}" not in allowed
    return Destination("provider", route, origin.scheme, origin.host, origin.port, path, guarded)


def route_by_path(method: str, path: str) -> Route:
    """What a request is by its path alone, for hosts no table knows."""
    found = hosts.route(method, "localhost", path)
    if found is None:
        return Route("unknown", "", "", None, inference=method.upper() == "POST")
    return found


def _nobody(host: str) -> Route:
    return Route("helicone", host, "", None, inference=False)


def _refused(host: str, path: str, status: int, message: str) -> Destination:
    return Destination("refused", _nobody(host), answer=error_answer(status, message, "no_such_host"), path=path)
