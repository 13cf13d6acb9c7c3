"""Usage objects of OpenAI and of everybody who copied them.

Input includes cached tokens, output includes reasoning; the exceptions are told apart by the provider's own total.
"""

from __future__ import annotations

from typing import Any

from heliproxy.exchange import Reply, Usage
from heliproxy.formats.reading import Json, amount, as_object, count, first_count, string, total

_NOTHING = Usage()
_USD_PER_TICK = 1e-10
"""xAI counts cost in ticks: ten billion to the dollar."""


def read_usage(raw: Any, model: str | None = None) -> Usage | None:
    """Normalise a usage object of chat, Responses, embeddings, images or audio; None when it reports nothing."""
    usage = as_object(raw)
    before = _details(usage, "prompt_tokens_details", "input_tokens_details", "input_token_details")
    after = _details(usage, "completion_tokens_details", "output_tokens_details", "output_token_details")
    input_tokens = first_count(usage.get("prompt_tokens"), usage.get("input_tokens"))
    output_tokens = first_count(usage.get("completion_tokens"), usage.get("output_tokens"))
    whole = count(usage.get("total_tokens"))
    audio = first_count(before.get("audio_tokens"), usage.get("audio_prompt_tokens"))
    reasoning = first_count(after.get("reasoning_tokens"), usage.get("reasoning_tokens"))
    if input_tokens is None and output_tokens is None:
        input_tokens = whole  # Voyage and Jina report only a total, of an input
    elif whole is not None and (usage.get("prompt_tokens") is not None):
        missing = whole - (input_tokens or 0) - (output_tokens or 0)
        input_tokens, output_tokens = _settle(missing, input_tokens, output_tokens, audio, reasoning, model)
    cached_details = as_object(before.get("cached_tokens_details"))
    found = Usage(
        input_tokens=input_tokens,
        cache_read_tokens=_cached(usage, before),
        cache_write_tokens=first_count(before.get("cache_write_tokens"), usage.get("cache_creation_input_tokens")),
        output_tokens=output_tokens,
        reasoning_tokens=reasoning,
        input_audio_tokens=audio,
        cache_read_audio_tokens=count(cached_details.get("audio_tokens")),
        output_audio_tokens=count(after.get("audio_tokens")),
        input_image_tokens=count(before.get("image_tokens")),
        output_image_tokens=count(after.get("image_tokens")),
        input_video_tokens=count(before.get("video_tokens")),
        units=_units(usage),
    )
    return found if found != _NOTHING else None


def _details(usage: Json, *names: str) -> Json:
    """The first of these sub-objects that is there; OpenAI spells the name differently from API to API."""
    for name in names:
        if isinstance(usage.get(name), dict):
            return as_object(usage[name])
    return {}


def _cached(usage: Json, details: Json) -> int | None:
    """Cached input: OpenAI's place, DeepSeek's, Mistral's, Together's or LiteLLM's; a zero gives way to a number."""
    places = (
        details.get("cached_tokens"),
        usage.get("prompt_cache_hit_tokens"),
        usage.get("num_cached_tokens"),
        usage.get("cached_tokens"),
        usage.get("cache_read_input_tokens"),
    )
    known = [number for number in map(count, places) if number is not None]
    return next((number for number in known if number), known[0] if known else None)


def _settle(
    missing: int,
    input_tokens: int | None,
    output_tokens: int | None,
    audio: int | None,
    reasoning: int | None,
    model: str | None,
) -> tuple[int | None, int | None]:
    """Put the tokens that only the total knows about where they belong.

    xAI's chat counts reasoning beside the completion, Mistral counts audio beside the prompt, and Gemini behind its
    OpenAI-compatible address leaves thoughts out of both.
    """
    if missing <= 0:
        return input_tokens, output_tokens
    if reasoning and missing == reasoning:
        return input_tokens, total(output_tokens, missing)
    if audio and missing == audio:
        return total(input_tokens, missing), output_tokens
    if model is not None and "gemini" in model.lower():
        return input_tokens, total(output_tokens, missing)
    return input_tokens, output_tokens


def _units(usage: Json) -> dict[str, float]:
    """Billable things that are not tokens."""
    units: dict[str, float] = {}
    seconds = amount(usage.get("prompt_audio_seconds"))
    if seconds is None and usage.get("type") == "duration":
        seconds = amount(usage.get("seconds"))
    if seconds:
        units["audio_seconds"] = seconds
    searches = amount(usage.get("num_search_queries"))
    if searches:
        units["web_searches"] = searches
    citations = amount(usage.get("citation_tokens"))
    if citations:
        units["citation_tokens"] = citations
    return units


def reported_cost(raw: Any) -> float | None:
    """What the provider itself says the call cost, in USD.

    OpenRouter: `cost` in credits (USD), to which a call on the user's own key adds what the upstream charges;
    Perplexity: `cost.total_cost`; DeepInfra: `estimated_cost`; xAI: ticks, of which Azure's copy always says 0.
    """
    usage = as_object(raw)
    cost = usage.get("cost")
    if isinstance(cost, dict):
        return amount(cost.get("total_cost"))
    found = amount(cost)
    if found is not None:
        upstream = amount(as_object(usage.get("cost_details")).get("upstream_inference_cost"))
        return found + upstream if usage.get("is_byok") is True and upstream else found
    ticks = amount(usage.get("cost_in_usd_ticks"))
    if ticks:
        return ticks * _USD_PER_TICK
    return amount(usage.get("estimated_cost"))


def fill_usage(reply: Reply, raw: Any) -> None:
    """Write a usage object, and the cost and tier in it, into a reply; nothing when there is none."""
    if not isinstance(raw, dict) or not raw:
        return
    usage = read_usage(raw, reply.model)
    if usage is not None or reply.usage is None:
        reply.usage = usage
        reply.usage_json = raw
    cost = reported_cost(raw)
    if cost is not None:
        reply.cost_usd = cost
    fill_tier(reply, raw.get("service_tier"))


def fill_tier(reply: Reply, tier: Any) -> None:
    """Note the service tier that was billed."""
    name = string(tier)
    if name is not None:
        reply.pricing = {**reply.pricing, "tier": name.lower()}
