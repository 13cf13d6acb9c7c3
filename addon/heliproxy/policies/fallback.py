"""Fallbacks: `Helicone-Fallbacks` and the model string of the AI gateway (helicone-proxy.md section 6).

An entry replaces the request headers entirely, so the credentials of one target never reach another.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Never
from urllib.parse import urlsplit

from heliproxy.policies.answers import Answer, DirectiveError, exception_answer, json_answer, one_line, text_answer

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_FRAMING_HEADERS = frozenset(
    {"host", "content-length", "content-encoding", "transfer-encoding", "connection", "keep-alive", "te", "trailer"}
    | {"upgrade", "expect", "proxy-connection", "proxy-authorization"}
)
"""What says where a request goes or ends (RFC 9110 sections 7.2, 7.6.1 and 8.6): ours to say, not an entry's."""
_PROTO_KEYS = frozenset({"__proto__", "constructor", "prototype"})


@dataclass(frozen=True, slots=True)
class Fallback:
    """One entry of `Helicone-Fallbacks`."""

    target_url: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    """What is sent instead of the client's headers; credentials among them."""
    on_codes: tuple[tuple[int, int], ...]
    """Inclusive ranges of statuses that move on to the next entry."""
    body_override: Mapping[str, Any] | None = None

    def matches(self, status: int) -> bool:
        """Whether this status, answered by this entry, moves on to the next one."""
        return any(low <= status <= high for low, high in self.on_codes)


def parse_fallbacks(raw: str) -> tuple[Fallback, ...]:
    """Read the header; raises DirectiveError (500 JSON) that names the entry and key that is wrong."""
    try:
        entries = json.loads(raw)
    except (ValueError, RecursionError):
        _fail("not valid JSON")
    if not isinstance(entries, list):
        _fail("expected a JSON array of objects")
    if not entries:
        _fail("the array has no entries")
    return tuple(_entry(entry, f"entry {index}") for index, entry in enumerate(entries))


def _fail(what: str) -> Never:
    raise DirectiveError(exception_answer(f"Helicone-Fallbacks: {what}"))


def _entry(entry: Any, where: str) -> Fallback:
    if not isinstance(entry, dict):
        _fail(f"{where} is not an object")
    for key in ("target-url", "headers", "onCodes"):
        if key not in entry:
            _fail(f"{where} has no '{key}'")
    target, headers, override = entry["target-url"], entry["headers"], entry.get("bodyKeyOverride")
    if not isinstance(target, str) or not target:
        _fail(f"{where}: 'target-url' must be a non-empty string")
    if not _is_url(target):
        _fail(f"{where}: 'target-url' must be an absolute http or https URL")
    if not isinstance(headers, dict) or not all(isinstance(v, str) for v in headers.values()):
        _fail(f"{where}: 'headers' must be an object of strings")
    if override is not None and not isinstance(override, dict):
        _fail(f"{where}: 'bodyKeyOverride' must be an object")
    for name in headers:
        if not _HEADER_NAME.fullmatch(name):
            _fail(f"{where}: '{one_line(name)[:80]}' is not the name of a header")
    pairs = tuple(
        (name, _header_text(value)) for name, value in headers.items() if name.lower() not in _FRAMING_HEADERS
    )
    return Fallback(target, pairs, _codes(entry["onCodes"], where), override)


def _header_text(text: str) -> str:
    """A header's value that cannot start another header or another request, and can be encoded."""
    return "".join(c for c in text if c >= " " and c != "\x7f" and not "\ud800" <= c <= "\udfff").strip()


def _is_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False


def _codes(codes: Any, where: str) -> tuple[tuple[int, int], ...]:
    if not isinstance(codes, list):
        _fail(f"{where}: 'onCodes' must be an array")
    found = []
    for code in codes:
        if _is_int(code):
            found.append((int(code), int(code)))
        elif isinstance(code, dict) and _is_int(code.get("from")) and _is_int(code.get("to")):
            found.append((int(code["from"]), int(code["to"])))
        else:
            _fail(f'{where}: \'onCodes\' takes whole numbers and {{"from": ..., "to": ...}}')
    return tuple(found)


def _is_int(value: Any) -> bool:
    return not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))


def next_index(fallbacks: Sequence[Fallback], index: int, status: int) -> int | None:
    """The entry to try after `index` answered `status`; None: return that answer (always so for the last one)."""
    if index + 1 < len(fallbacks) and fallbacks[index].matches(status):
        return index + 1
    return None


def override_body(body: bytes, override: Mapping[str, Any] | None) -> bytes:
    """The client's body with `bodyKeyOverride` merged in: the original for every entry, nothing persists.

    Raises DirectiveError (500 JSON) when there is an override and the body is not a JSON object.
    """
    if not override:
        return body
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        _fail("'bodyKeyOverride' needs a JSON object as the request body")
    try:
        return json.dumps(merge(value, override), separators=(",", ":"), ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return json.dumps(merge(value, override), separators=(",", ":")).encode()


def merge(value: Any, override: Mapping[str, Any]) -> Any:
    """Deep merge: objects go into objects (made when absent), everything else is replaced; prototype keys skipped."""
    merged = dict(value) if isinstance(value, Mapping) else {}
    for key, new in override.items():
        if key in _PROTO_KEYS:
            continue
        merged[key] = merge(merged.get(key), new) if isinstance(new, Mapping) else new
    return merged


# --- the AI gateway's model string -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GatewayProvider:
    """Where one provider of the AI gateway is reached, and with whose key."""

    id: str
    base_url: str
    """Origin and path prefix that replaces `/v1`."""
    env: tuple[str, ...]
    """Environment variables that may hold the user's key, first found wins."""
    format: str = "openai"
    """Which request shape it speaks: `openai`, `anthropic` or `google`."""
    priority: int = 4


PROVIDERS: Mapping[str, GatewayProvider] = {
    p.id: p
    for p in (
        GatewayProvider("anthropic", "https://api.anthropic.com/v1", ("ANTHROPIC_API_KEY",), "anthropic", 3),
        GatewayProvider("openai", "https://api.openai.com/v1", ("OPENAI_API_KEY",), "openai", 3),
        GatewayProvider("azure", "", ("AZURE_OPENAI_API_KEY",), "azure"),
        GatewayProvider("baseten", "https://inference.baseten.co/v1", ("BASETEN_API_KEY",)),
        GatewayProvider("bedrock", "", ("AWS_BEARER_TOKEN_BEDROCK",), "bedrock"),
        GatewayProvider("canopywave", "https://inference.canopywave.io/v1", ("CANOPYWAVE_API_KEY",)),
        GatewayProvider("cerebras", "https://api.cerebras.ai/v1", ("CEREBRAS_API_KEY",)),
        GatewayProvider("chutes", "https://llm.chutes.ai/v1", ("CHUTES_API_KEY",)),
        GatewayProvider("deepinfra", "https://api.deepinfra.com/v1/openai", ("DEEPINFRA_API_KEY", "DEEPINFRA_TOKEN")),
        GatewayProvider("deepseek", "https://api.deepseek.com/v1", ("DEEPSEEK_API_KEY",)),
        GatewayProvider("fireworks", "https://api.fireworks.ai/inference/v1", ("FIREWORKS_API_KEY",)),
        GatewayProvider(
            "google-ai-studio",
            "https://generativelanguage.googleapis.com/v1beta/openai",
            ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
            "openai",
            5,
        ),
        GatewayProvider("groq", "https://api.groq.com/openai/v1", ("GROQ_API_KEY",)),
        GatewayProvider("helicone", "", (), "helicone", 2),
        GatewayProvider("mistral", "https://api.mistral.ai/v1", ("MISTRAL_API_KEY",)),
        GatewayProvider("nebius", "https://api.tokenfactory.nebius.com/v1", ("NEBIUS_API_KEY",)),
        GatewayProvider("novita", "https://api.novita.ai/v3/openai", ("NOVITA_API_KEY",)),
        GatewayProvider("openrouter", "https://openrouter.ai/api/v1", ("OPENROUTER_API_KEY",), "openai", 10),
        GatewayProvider("perplexity", "https://api.perplexity.ai", ("PERPLEXITY_API_KEY", "PPLX_API_KEY")),
        GatewayProvider("vertex", "", ("GOOGLE_APPLICATION_CREDENTIALS",), "vertex"),
        GatewayProvider("xai", "https://api.x.ai/v1", ("XAI_API_KEY",)),
    )
}
"""Provider ids of section 6. Those without a base URL need more than a key and are skipped, with the reason."""

# Which provider makes a model, for entries that name none: the first match of the model's start.
_MAKERS = (
    (("gpt-", "o1", "o3", "o4", "chatgpt-", "text-embedding-", "davinci", "babbage"), "openai"),
    (("claude",), "anthropic"),
    (("gemini", "gemma"), "google-ai-studio"),
    (("grok",), "xai"),
    (("deepseek",), "deepseek"),
    (("mistral", "codestral", "ministral", "magistral", "devstral", "pixtral"), "mistral"),
    (("sonar",), "perplexity"),
)


@dataclass(frozen=True, slots=True)
class GatewayEntry:
    """One `model[/provider[/deployment]]` of a gateway model string."""

    model: str
    provider: str | None = None
    deployment: str | None = None
    online: bool = False


@dataclass(frozen=True, slots=True)
class GatewayTarget:
    """One attempt of the AI gateway: where to call, as which model, with which key."""

    provider: str
    model: str
    base_url: str
    format: str
    key: str = field(repr=False)

    @property
    def auth_headers(self) -> tuple[tuple[str, str], ...]:
        """The credential headers of this target only."""
        if self.format == "anthropic":
            return (("x-api-key", self.key), ("anthropic-version", "2023-06-01"))
        return (("authorization", f"Bearer {self.key}"),)


@dataclass(frozen=True, slots=True)
class GatewayPlan:
    """The targets of a model string in the order to try, and why entries were skipped."""

    targets: tuple[GatewayTarget, ...]
    skipped: tuple[str, ...] = ()
    error: Answer | None = None


def parse_model_string(text: str) -> tuple[tuple[GatewayEntry, ...], frozenset[str]]:
    """Entries in order, and the providers excluded with `!`; raises DirectiveError (400) as section 3.4 says."""
    entries: list[GatewayEntry] = []
    excluded: set[str] = set()
    for part in (p.strip() for p in text.split(",")):
        if part.startswith("!"):
            excluded.add(_excluded(part[1:].strip()))
        elif part:
            entries.append(_gateway_entry(part))
    return tuple(entries), frozenset(excluded)


def _excluded(name: str) -> str:
    if not name:
        raise DirectiveError(_early("'!' in 'model' needs a provider name after it, as in !openai"))
    if name.lower() not in PROVIDERS:
        raise DirectiveError(_early(f"'!{one_line(name)[:100]}' in 'model' names no provider we know"))
    return name.lower()


def _early(message: str) -> Answer:
    """The plain text 400 for a request that names nothing to try (section 3.4)."""
    return text_answer(400, message, reason="gateway")


def _gateway_entry(part: str) -> GatewayEntry:
    pieces = [p.strip() for p in part.split("/")]
    # The model's own name may hold slashes: meta-llama/llama-3/groq.
    at = next((i for i, piece in enumerate(pieces[1:], 1) if piece.lower() in PROVIDERS), 1)
    model, deployment = "/".join(pieces[:at]), "/".join(pieces[at + 1 :])
    provider = pieces[at].lower() if at < len(pieces) else None
    online = model.endswith(":online")
    return GatewayEntry(model.removesuffix(":online"), provider, deployment or None, online)


def plan_models(model: object, env: Mapping[str, str]) -> GatewayPlan:
    """Turn the body's `model` into targets, with the user's own keys from `env`.

    Never raises: `error` is the 400 to answer when nothing is left to try.
    """
    if not model:  # 0, false and [] too
        return GatewayPlan((), (), missing_model())
    if not isinstance(model, str):
        return GatewayPlan((), (), _early("Invalid model type: 'model' must be a string"))
    try:
        entries, excluded = parse_model_string(model)
    except DirectiveError as e:
        return GatewayPlan((), (), e.answer)
    targets: list[GatewayTarget] = []
    skipped: list[str] = []
    for entry in entries:
        for provider in _candidates(entry, excluded, env, skipped):
            target = _target(entry, provider, env, skipped)
            if target and target not in targets:
                targets.append(target)
    if targets:
        return GatewayPlan(tuple(targets), tuple(skipped))
    reason = "; ".join(skipped) or "no model was named"
    message = f"No available providers for '{one_line(model)[:200]}': {reason}"
    failure = Failure("No available providers", 400, message)
    return GatewayPlan((), tuple(skipped), gateway_error(400, "request_failed", message, [failure]))


def missing_model() -> Answer:
    """The answer to a body that is no JSON object or names no model."""
    return _early("Invalid body or missing model: the request body must be a JSON object with a 'model'")


def _candidates(
    entry: GatewayEntry, excluded: frozenset[str], env: Mapping[str, str], skipped: list[str]
) -> list[GatewayProvider]:
    """The providers an entry may go to, best first."""
    if entry.provider is not None:
        provider = PROVIDERS.get(entry.provider)
        if provider is None:
            skipped.append(f"unknown provider '{entry.provider}'")
        elif provider.id in excluded:
            skipped.append(f"'{provider.id}' is excluded")
        else:
            return [provider]
        return []
    model = entry.model.lower()
    makers = [PROVIDERS[name] for starts, name in _MAKERS if model.startswith(starts)][:1]
    if not makers:
        skipped.append(f"model '{entry.model}' names no provider and none is known for it")
    usable = [p for p in makers if p.id not in excluded and _key(p, env)]
    if makers and not usable:
        skipped.append(f"'{makers[0].id}' is excluded or has no key ({' or '.join(makers[0].env)} is not set)")
    return sorted(usable, key=lambda p: p.priority)


def _key(provider: GatewayProvider, env: Mapping[str, str]) -> str | None:
    return next((env[name] for name in provider.env if env.get(name)), None)


def _target(
    entry: GatewayEntry, provider: GatewayProvider, env: Mapping[str, str], skipped: list[str]
) -> GatewayTarget | None:
    key = _key(provider, env)
    if not provider.base_url:
        skipped.append(f"'{provider.id}' needs more than a key; call it through its own host")
    elif key is None:
        skipped.append(f"'{provider.id}' has no key ({' or '.join(provider.env)} is not set)")
    else:
        model = entry.deployment or entry.model
        if entry.online and provider.id == "openrouter":
            model += ":online"
        elif entry.online:
            skipped.append(f"':online' has no effect at '{provider.id}'")
        return GatewayTarget(provider.id, model, provider.base_url, provider.format, key)
    return None


@dataclass(frozen=True, slots=True)
class Failure:
    """One entry that gave no answer, as `details` of the error show it."""

    source: str
    """The provider."""
    status: int
    """What it answered; 500 when no answer came."""
    message: str
    type: str = "request_failed"
    """`invalid_format`: it was not even asked, as it does not speak the format of the request."""

    @property
    def detail(self) -> Mapping[str, object]:
        return {"source": self.source, "type": self.type, "message": self.message, "statusCode": self.status}


def gateway_error(status: int, code: str, message: str, failures: Sequence[Failure] = ()) -> Answer:
    """The error shape of the AI gateway (section 3.4), with the content type its rebuilt response loses."""
    body = {
        "success": False,
        "error": {"code": code, "message": message, "details": [f.detail for f in failures], "param": None},
    }
    return json_answer(status, body, reason="gateway", content_type="application/json")


def gateway_failure(failures: Sequence[Failure]) -> Answer:
    """The answer when every entry failed, in the order of section 3.4.

    Helicone's "disallowed" and "Insufficient credits" are about its own billing, which does not exist here.
    """
    first: dict[int | str, Failure] = {}
    for failure in failures:
        first.setdefault(failure.type if failure.type == "invalid_format" else failure.status, failure)
    other = next((first[s] for s in first if s not in (401, 403, 429, "invalid_format")), None)
    if 403 in first:
        return gateway_error(403, "request_failed", _message(first[403]), failures)
    if 401 in first:
        return gateway_error(401, "request_failed", "Authentication failed", failures)
    if other is not None:
        return gateway_error(500, "request_failed", _message(other), failures)
    if "invalid_format" in first:
        return gateway_error(400, "request_failed", _message(first["invalid_format"]), failures)
    if 429 in first:
        return gateway_error(429, "rate_limited", "Rate limited", failures)
    return gateway_error(500, "all_attempts_failed", "All attempts failed", failures)


def _message(failure: Failure) -> str:
    return failure.message or f"upstream answered {failure.status}"
