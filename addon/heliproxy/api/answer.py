"""A streamed response as the one JSON object it stood for, for clients that know only whole answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from heliproxy.conversation import read_response
from heliproxy.conversation.stream import events_of
from heliproxy.conversation.values import Turn
from heliproxy.formats.reading import as_object


def whole_response(raw: bytes | None, content_type: str | None, value_of: Callable[[bytes | None], Any]) -> Any:
    """A stored response for a client: JSON, or a stream put together, or text."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    found = events_of(raw, kind) if raw else None
    if raw is None or found is None:
        return value_of(raw)
    facts, anthropic = _facts(event for _, event in found)
    turns = read_response(raw, kind)
    body = _message(turns, facts) if anthropic else _completion(turns, facts)
    if kind != "application/vnd.amazon.eventstream":
        body["streamed_data"] = raw.decode("utf-8", "replace")
    return body


def _facts(events: Any) -> tuple[dict[str, Any], bool]:
    """What the events say besides text (id, model, usage, why it ended); whether they are Anthropic's."""
    facts: dict[str, Any] = {}
    usage: dict[str, Any] = {}
    anthropic = False
    for event in events:
        inner = event
        if event.get("type") in ("message_start", "content_block_delta"):
            anthropic = True
        for name in ("message", "response"):
            if isinstance(event.get(name), dict):
                inner = event[name]
        for name in ("id", "model", "created", "system_fingerprint", "service_tier"):
            if isinstance(inner.get(name), str | int) and name not in facts:
                facts[name] = inner[name]
        told = inner.get("usage") or event.get("usage") or event.get("usageMetadata")
        usage |= as_object(told)
        reason = as_object(event.get("delta")).get("stop_reason")
        for choice in event["choices"] if isinstance(event.get("choices"), list) else ():
            reason = as_object(choice).get("finish_reason") or reason
        if isinstance(reason, str):
            facts["reason"] = reason
    if usage:
        facts["usage"] = usage
    return facts, anthropic


def _completion(turns: tuple[Turn, ...], facts: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's chat completion."""
    reason = facts.pop("reason", None)
    choices = []
    for index, turn in enumerate(turns):
        message: dict[str, Any] = {"role": "assistant", "content": turn.text or None}
        calls = [
            {"id": part.id, "type": "function", "function": {"name": part.name, "arguments": part.text}}
            for part in turn.parts
            if part.kind == "tool_call"
        ]
        thoughts = "".join(part.text for part in turn.parts if part.kind == "thinking")
        refusal = "".join(part.text for part in turn.parts if part.kind == "refusal")
        if calls:
            message["tool_calls"] = calls
        if thoughts:
            message["reasoning_content"] = thoughts
        if refusal:
            message["refusal"] = refusal
        choices.append({"index": index, "message": message, "finish_reason": reason})
    return {**facts, "object": "chat.completion", "choices": choices}


def _message(turns: tuple[Turn, ...], facts: dict[str, Any]) -> dict[str, Any]:
    """Anthropic's message."""
    blocks: list[dict[str, Any]] = []
    for part in (part for turn in turns for part in turn.parts):
        if part.kind == "tool_call":
            blocks.append({"type": "tool_use", "id": part.id, "name": part.name, "input": _input(part.text)})
        elif part.kind == "thinking":
            blocks.append({"type": "thinking", "thinking": part.text})
        elif part.kind == "text":
            blocks.append({"type": "text", "text": part.text})
    reason = facts.pop("reason", None)
    return {**facts, "type": "message", "role": "assistant", "content": blocks, "stop_reason": reason}


def _input(text: str) -> Any:
    from heliproxy.formats.reading import load

    found = load(text)
    return text if found is None else found
