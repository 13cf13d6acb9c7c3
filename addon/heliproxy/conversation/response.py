"""What a response answers: one turn a choice, from a whole body or from a stream."""

from __future__ import annotations

from typing import Any

from heliproxy.conversation.blocks import (
    block,
    compact,
    data_part,
    encoded,
    linked,
    message_parts,
    parts,
    text_part,
    word,
)
from heliproxy.conversation.loading import load_cut
from heliproxy.conversation.stream import Assembly, events_of
from heliproxy.conversation.values import Part, Turn
from heliproxy.formats.reading import as_list, as_object, clean, objects

TEXT_LIMIT = 200_000
"""Characters kept of an answer that is neither JSON nor a stream."""
_EMPTY = frozenset({"choices", "candidates", "content", "output", "message"})
"""A body with one of these, of which nothing could be read, answers nothing."""


def read_response(body: bytes, content_type: str = "") -> tuple[Turn, ...]:
    """Read a decoded response body. Never raises."""
    if not body:
        return ()
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith(("audio/", "image/", "video/")) or kind == "application/octet-stream":
        shown = kind.partition("/")[0]
        shown = shown if shown in ("image", "audio") else "file"
        return (Turn("assistant", (Part(shown, f"({len(body):,} bytes)", media=kind),)),)
    events = events_of(body, kind)
    if events is not None:
        assembly = Assembly()
        for name, event in events:
            assembly.take(name, event)
        return assembly.turns()
    found = load_cut(body)
    if isinstance(found, list) and found and all(isinstance(item, dict) and "candidates" in item for item in found):
        assembly = Assembly()
        for item in found:
            assembly.take("", item)
        return assembly.turns()
    if isinstance(found, dict):
        return tuple(read_object(found))
    if found is not None:
        return (Turn("assistant", tuple(_listed(found))),)
    return (Turn("assistant", (Part("text", clean(body[:TEXT_LIMIT].decode("utf-8", "replace"))),)),)


def _listed(value: Any) -> list[Part]:
    """A body that is a list or a bare value: vectors as what they are, anything else as JSON."""
    items = as_list(value)
    if items and all(isinstance(item, list) for item in items):
        return [vectors(items)]
    return [data_part(value)]


def read_object(body: dict[str, Any]) -> list[Turn]:
    """The turns of a whole JSON response."""
    wrapped = body.get("response")
    if isinstance(wrapped, dict) and ("candidates" in wrapped or "output" in wrapped):
        body = wrapped
    turns = _error(body)
    for reader in (_choices, _output, _candidates, _message, _other):
        found = reader(body)
        if found:
            return turns + found
    return turns or ([] if _EMPTY & set(body) else [Turn("assistant", (data_part(body),))])


def _error(body: dict[str, Any]) -> list[Turn]:
    text = error_text(body)
    return [Turn("error", (Part("error", text),))] if text else []


def error_text(body: dict[str, Any]) -> str:
    """The message of an error object, of any provider's shape; "" when it is none."""
    error = body.get("error")
    if isinstance(error, dict):
        kind, message = error.get("type") or error.get("status") or error.get("code"), error.get("message")
        return ": ".join(str(item)[:4000] for item in (kind, message) if item) or compact(error)[:4000]
    if isinstance(error, str):
        return error
    if isinstance(body.get("message"), str) and not {"model", "type", "role"} & set(body):
        return clean(body["message"])
    return ""


def _choices(body: dict[str, Any]) -> list[Turn]:
    turns: list[Turn] = []
    for choice in objects(body.get("choices")):
        message = as_object(choice.get("message"))
        found = message_parts(message) if message else text_part(choice.get("text"))
        if found:
            turns.append(Turn(word(message.get("role")) or "assistant", tuple(found)))
    return turns


def _output(body: dict[str, Any]) -> list[Turn]:
    """The Responses API's list of items; Bedrock Converse's `output.message`; Nova's and Titan's variants."""
    output = body.get("output") if "output" in body else body.get("outputs")
    if isinstance(output, dict):
        message = as_object(output.get("message"))
        found = parts(message.get("content"))
        return [Turn(word(message.get("role")) or "assistant", tuple(found))] if found else []
    if isinstance(output, str):
        return [Turn("assistant", (Part("text", clean(output)),))]
    found = output_parts(output)
    return [Turn("assistant", tuple(found))] if found else []


def output_parts(output: Any) -> list[Part]:
    """The parts of a list of Responses items."""
    found: list[Part] = []
    for item in objects(output):
        found += parts(item.get("content")) if item.get("type") == "message" or "role" in item else block(item)
    return found


def _candidates(body: dict[str, Any]) -> list[Turn]:
    turns: list[Turn] = []
    for candidate in objects(body.get("candidates")):
        found = parts(as_object(candidate.get("content")).get("parts"))
        if found:
            turns.append(Turn("assistant", tuple(found)))
    blocked = as_object(body.get("promptFeedback"))
    if blocked.get("blockReason"):
        why = f"{word(blocked['blockReason'])}: {blocked.get('blockReasonMessage') or 'the prompt was blocked'}"
        turns.append(Turn("assistant", (Part("refusal", clean(why)),)))
    return turns


def _message(body: dict[str, Any]) -> list[Turn]:
    """Anthropic (content at the top), Cohere v2 and Ollama (a message), Cohere v1, Ollama generate, old Claude."""
    message = body.get("message")
    if isinstance(message, dict):
        found = message_parts(message)
    elif isinstance(body.get("content"), list):
        found = parts(body["content"])
    else:
        found = text_part(body.get("thinking"), "thinking")
        for key in ("response", "completion", "generation", "text", "outputText"):
            if isinstance(body.get(key), str):
                found += text_part(body[key])
                break
        found += [_cohere_call(call) for call in objects(body.get("tool_calls"))]
    return [Turn("assistant", tuple(found))] if found else []


def _cohere_call(call: dict[str, Any]) -> Part:
    return Part("tool_call", compact(call.get("parameters")), name=word(call.get("name")))


def _other(body: dict[str, Any]) -> list[Turn]:
    """Answers that are no text: vectors, images, scores, verdicts, generations."""
    found: list[Part] = []
    data = objects(body.get("data"))
    if any("embedding" in item for item in data):
        found.append(vectors([item.get("embedding") for item in data]))
    for item in data:
        if "b64_json" in item or "url" in item:
            found.append(
                encoded("image", item["b64_json"], "image/png")
                if item.get("b64_json")
                else linked("image", item["url"])
            )
            found += text_part(item.get("revised_prompt"))
    found += _vectors_elsewhere(body)
    for item in objects(body.get("results")) or objects(body.get("generations")) or objects(body.get("pages")):
        found += _result(item)
    for completion in objects(body.get("completions")):  # AI21
        found += text_part(as_object(completion.get("data")).get("text"))
    for prediction in objects(body.get("predictions")):
        found.append(data_part(prediction))
    return [Turn("assistant", tuple(found))] if found else []


def _vectors_elsewhere(body: dict[str, Any]) -> list[Part]:
    embeddings = body.get("embeddings")
    if isinstance(embeddings, dict):  # Cohere: by type
        embeddings = next((value for value in embeddings.values() if isinstance(value, list) and value), [])
    lists = [item.get("values") if isinstance(item, dict) else item for item in as_list(embeddings)]
    single = body.get("embedding")
    if single is not None:
        lists.append(single.get("values") if isinstance(single, dict) else single)
    return [vectors(lists)] if lists else []


def vectors(lists: list[Any]) -> Part:
    """Say how many vectors of how many numbers there are."""
    sizes = {len(item) for item in lists if isinstance(item, list)}
    size = f" of {sizes.pop():,} numbers" if len(sizes) == 1 else ""
    return Part("data", f"({len(lists):,} vector{'' if len(lists) == 1 else 's'}{size})")


def _result(item: dict[str, Any]) -> list[Part]:
    score = item.get("relevance_score")
    if isinstance(score, int | float):
        document = as_object(item.get("document")).get("text")
        text = f"#{compact(item.get('index'))}  {score}" + (f"  {document}" if isinstance(document, str) else "")
        return [Part("text", clean(text))]
    if "flagged" in item:
        hits = [name for name, value in as_object(item.get("categories")).items() if value is True]
        return [Part("text", clean("flagged: " + ", ".join(hits)) if item["flagged"] else "not flagged")]
    for key in ("outputText", "text", "markdown"):
        if isinstance(item.get(key), str):
            return text_part(item[key])
    return [data_part(item)]
