"""`Helicone-Token-Limit-Exception-Handler`: make a prompt fit its model, or pick another model (section 7)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]

PIECE = 1000
"""Most characters of one piece for middle-out."""
_COMPLETION_KEYS = ("max_completion_tokens", "max_tokens", "max_output_tokens", "maxOutputTokens")
_COMPLETION_HOLDERS = ("response", "generation_config", "generationConfig")
_ID = re.compile(r"\b(?:id|uuid):[0-9a-f-]{36}\b", re.ASCII | re.IGNORECASE)
_AROUND = re.compile(r" ?([,.:;(){}\[\]=<>]) ?")
_SPACE = re.compile(r"\s+")

ContextSize = Callable[[str], int | None]
"""The context window of a model in tokens, None when unknown."""


def context_size(model: str) -> int | None:
    """The context window the price data knows for a model name. Reads that on first use (some 10 ms)."""
    from heliproxy.price_table import load_bundled

    table = load_bundled()
    for name in dict.fromkeys((model.lower(), model.lower().rpartition("/")[2])):
        provider = table.guess_provider(name)
        found = table.find(provider, name) if provider is not None else None
        if found is not None:
            return found.info.context_window
    return None


def apply(
    body: bytes, handler: str, model_override: str | None = None, size: ContextSize = context_size
) -> bytes | None:
    """The body to send instead, or None: leave it as it is (also when it is not a JSON object).

    `handler` is `truncate`, `middle-out` or `fallback`.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    models = [m.strip() for m in str(value.get("model") or "").split(",") if m.strip()]
    primary = models[0] if models else model_override
    if not primary:
        return None
    context = size(primary)
    estimate = estimate_tokens(value, primary)
    budget = None if context is None else token_budget(value, context)
    if handler == "fallback":
        return _fall_back(value, models, estimate, budget)
    if budget is None or estimate <= budget:
        return None
    changed = _truncate(value, primary, budget) if handler == "truncate" else _middle_out(value, primary, budget)
    return None if changed is None else _encode(changed)


def _encode(value: Json) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def tokens_per_character(model: str) -> float:
    """The service's own rule of thumb."""
    return 0.2 if model.lower().startswith("gpt-3.5-turbo") else 0.25


def estimate_tokens(body: Json, model: str) -> int:
    """Tokens of tools and text messages by their characters (tools, a space, the messages), rounded up."""
    tools = body.get("tools")
    tool_text = json.dumps(tools, separators=(",", ":"), ensure_ascii=False) if tools else ""
    text = "".join(m["content"] for m in _text_messages(body))
    characters = len(tool_text) + len(text) + (1 if tool_text and text else 0)
    return math.ceil(characters * tokens_per_character(model))


def _text_messages(body: Json) -> list[Json]:
    messages = body.get("messages")
    if not isinstance(messages, list):
        return []
    return [m for m in messages if isinstance(m, dict) and isinstance(m.get("content"), str)]


def token_budget(body: Json, context: int) -> int:
    """Tokens left for the prompt: context less the completion asked for, or less a tenth of it."""
    holders = [body, *(body[k] for k in _COMPLETION_HOLDERS if isinstance(body.get(k), dict))]
    for holder in holders:
        for key in _COMPLETION_KEYS:
            asked = holder.get(key)
            if isinstance(asked, int | float) and not isinstance(asked, bool) and 0 < asked < math.inf:
                return max(0, context - math.floor(asked))
    return context - math.floor(context * 0.1)


def _fall_back(body: Json, models: list[str], estimate: int, budget: int | None) -> bytes | None:
    """Name one model of the list: the second when the first is too small or unknown."""
    if not models:
        return None
    use_second = (budget is None or estimate >= budget) and len(models) > 1
    chosen = models[1] if use_second else models[0]
    return None if body.get("model") == chosen else _encode({**body, "model": chosen})


def _truncate(body: Json, model: str, budget: int) -> Json | None:
    messages = _text_messages(body)
    if not messages:
        return None
    share = math.floor(budget / tokens_per_character(model) * 0.9) // len(messages)
    return _with_contents(body, [cut(normalise(m["content"]), share) for m in messages])


def _with_contents(body: Json, contents: list[str], *, drop_empty: bool = False) -> Json:
    """The body with its text messages' contents replaced, in order; other messages stay."""
    replacement = iter(contents)
    kept = []
    for message in body["messages"]:
        if not (isinstance(message, dict) and isinstance(message.get("content"), str)):
            kept.append(message)
            continue
        content = next(replacement)
        if content or not drop_empty:
            kept.append({**message, "content": content})
    return {**body, "messages": kept}


def normalise(text: str) -> str:
    """Text without comments, id tokens and the white space nobody reads."""
    text = _SPACE.sub(" ", _ID.sub("", _without_comments(text)))
    return _AROUND.sub(r"\1", text).strip()


def _without_comments(text: str) -> str:
    """Text without `<!-- -->`. No pattern: one would look for the end of each of many comments that have none."""
    kept, at = [], 0
    while (start := text.find("<!--", at)) >= 0 and (end := text.find("-->", start + 4)) >= 0:
        kept.append(text[at:start])
        at = end + 3
    return "".join((*kept, text[at:]))


def cut(text: str, limit: int) -> str:
    """At most `limit` characters and `...`, cut at a space when one lies past 80 % of it."""
    if len(text) <= limit:
        return text
    head = text[: max(0, limit)]
    space = head.rfind(" ")
    return (head[:space] if space > limit * 0.8 else head) + "..."


def _middle_out(body: Json, model: str, budget: int) -> Json | None:
    """Remove a centred window of pieces, the smallest that makes the rest fit; None when nothing would be left."""
    messages = _text_messages(body)
    pieces = [(index, piece) for index, m in enumerate(messages) for piece in split(m["content"])]

    def without(window: int) -> Json:
        start = (len(pieces) - window) // 2
        contents = [""] * len(messages)
        for index, piece in pieces[:start] + pieces[start + window :]:
            contents[index] += piece
        return _with_contents(body, contents, drop_empty=True)

    low, high = 1, len(pieces)
    while low < high:
        middle = (low + high) // 2
        if estimate_tokens(without(middle), model) <= budget:
            high = middle
        else:
            low = middle + 1
    if not pieces:
        return None
    changed = without(low)
    fits = estimate_tokens(changed, model) <= budget
    return changed if fits and changed["messages"] else None


def split(text: str, separators: tuple[str, ...] = ("\n\n", "\n", ".", " ")) -> list[str]:
    """Pieces of at most 1000 characters that together are the text, cut at the coarsest separator that serves."""
    if len(text) <= PIECE:
        return [text] if text else []
    if not separators:
        return [text[i : i + PIECE] for i in range(0, len(text), PIECE)]
    separator, *finer = separators
    parts = text.split(separator)
    parts = [part + separator for part in parts[:-1]] + parts[-1:]
    pieces: list[str] = []
    for part in parts:
        for piece in split(part, tuple(finer)):
            if pieces and len(pieces[-1]) + len(piece) <= PIECE:
                pieces[-1] += piece
            else:
                pieces.append(piece)
    return pieces
