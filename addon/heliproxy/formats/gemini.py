"""Google's own formats: generateContent (Gemini API, Vertex, Code Assist), embeddings, interactions, predict.

Input is prompt + tool-use prompt, with the cached part inside the prompt; output is candidates + thoughts. In a
stream every chunk repeats the usage so far: the last one counts, and fields are never merged. Proto3 JSON leaves zeros
out, and enums may come as numbers. Source: google-genai's types and recorded exchanges.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from heliproxy.exchange import Ask, Reply, Usage
from heliproxy.formats.base import JsonFormat, take_error
from heliproxy.formats.errors import fill_error
from heliproxy.formats.output import PREVIEW_LIMIT, Output
from heliproxy.formats.reading import (
    Json,
    as_list,
    as_object,
    clean,
    count,
    first_count,
    load_object,
    objects,
    string,
    text_of,
    total,
)
from heliproxy.formats.streaming import StreamState

if TYPE_CHECKING:
    from collections.abc import Mapping

_DECODER = json.JSONDecoder()
_MODALITIES = {1: "TEXT", 2: "IMAGE", 3: "VIDEO", 4: "AUDIO", 5: "DOCUMENT"}
_TRAFFIC = {
    "ON_DEMAND": "standard",
    "ON_DEMAND_PRIORITY": "priority",
    "ON_DEMAND_FLEX": "flex",
    "ON_DEMAND_OFFPEAK": "offpeak",
    "PROVISIONED_THROUGHPUT": "provisioned",
}


class GeminiGenerate(JsonFormat):
    name = "gemini_generate"

    def __init__(self) -> None:
        self.state = GenerateStream

    def read_ask(self, body: Json, path: str) -> Ask:
        inner = as_object(body.get("request")) or body  # Code Assist
        contents = objects(inner.get("contents")) or objects([inner.get("contents")])
        preview = ""
        for content in reversed(contents):
            text = text_of(content.get("parts")).strip()
            if content.get("role") in (None, "user") and text:
                preview = clean(text[:PREVIEW_LIMIT])
                break
        model = _path_model(path) or string(body.get("model"))
        tier = string(inner.get("serviceTier") or inner.get("service_tier"))
        return Ask(model, ":stream" in path.lower(), _user(body, inner), preview, tier)

    def parse_response(self, body: bytes, headers: Mapping[str, str]) -> Reply:
        if not body.lstrip().startswith(b"["):
            return super().parse_response(body, headers)
        state = GenerateStream()
        items, whole = array_items(body)
        for item in items:
            state.take("", item)
        reply = state.reply()
        reply.complete = reply.complete or whole
        return reply

    def read(self, body: Json, reply: Reply) -> None:
        body = _unwrap(body)
        read_facts(body, reply)
        fill_usage(reply, body.get("usageMetadata"), whole=True)
        output = Output()
        _read_candidates(body, output)
        output.write_to(reply)


def _user(body: Json, inner: Json) -> str | None:
    labels = as_object(inner.get("labels")) or as_object(body.get("labels"))
    return string(labels.get("user"))


def _path_model(path: str) -> str | None:
    """The model of `/models/{model}:verb`, also when it is a tuned model or an endpoint."""
    last = path.partition("?")[0].rpartition("/")[2]
    model, colon, _ = last.partition(":")
    if not colon or model in ("", "v1internal"):
        return None
    return string(unquote(model))


def _unwrap(body: Json) -> Json:
    """Code Assist puts the reply under `response`."""
    inner = body.get("response")
    return inner if isinstance(inner, dict) and "candidates" not in body else body


def read_facts(body: Json, reply: Reply) -> None:
    """Everything but text and usage."""
    reply.model = string(body.get("modelVersion")) or reply.model
    reply.response_id = string(body.get("responseId")) or reply.response_id
    for candidate in objects(body.get("candidates")):
        reply.finish_reason = string(candidate.get("finishReason")) or reply.finish_reason
    blocked = string(as_object(body.get("promptFeedback")).get("blockReason"))
    if blocked is not None and reply.finish_reason is None:
        reply.finish_reason = blocked
    if take_error(reply, body):
        reply.complete = True


def fill_usage(reply: Reply, raw: Any, whole: bool) -> None:
    meta = as_object(raw)
    if not meta:
        return
    usage = read_usage(meta, whole)
    if usage is not None:
        reply.usage = usage
        reply.usage_json = meta
    traffic = meta.get("trafficType")
    tier = _TRAFFIC.get(traffic) if isinstance(traffic, str) else None
    tier = tier or string(meta.get("serviceTier"))
    if tier is not None:
        reply.pricing = {**reply.pricing, "tier": tier.lower()}


def read_usage(meta: Json, whole: bool) -> Usage | None:
    """Usage metadata as Usage. `whole`: the reply is complete, so a missing count of output is a zero left out."""
    prompt = count(meta.get("promptTokenCount"))
    tools = count(meta.get("toolUsePromptTokenCount"))
    written = first_count(meta.get("candidatesTokenCount"), meta.get("responseTokenCount"))
    thoughts = count(meta.get("thoughtsTokenCount"))
    if prompt is None and written is None and thoughts is None:
        return None
    output = total(written, thoughts)
    if output is None and whole:
        output = 0
    read = _by_modality(meta.get("promptTokensDetails") or meta.get("promptTokenDetails"))
    cached = _by_modality(meta.get("cacheTokensDetails"))
    wrote = _by_modality(meta.get("candidatesTokensDetails") or meta.get("responseTokensDetails"))
    return Usage(
        input_tokens=None if prompt is None else prompt + (tools or 0),
        cache_read_tokens=count(meta.get("cachedContentTokenCount")),
        output_tokens=output,
        reasoning_tokens=thoughts,
        input_audio_tokens=read.get("AUDIO"),
        cache_read_audio_tokens=cached.get("AUDIO"),
        output_audio_tokens=wrote.get("AUDIO"),
        input_image_tokens=read.get("IMAGE"),
        output_image_tokens=wrote.get("IMAGE"),
        input_video_tokens=read.get("VIDEO"),
    )


def _by_modality(details: Any) -> dict[str, int]:
    """Token counts by modality name."""
    found: dict[str, int] = {}
    for item in objects(details):
        modality = item.get("modality")
        name = _MODALITIES.get(modality, "") if isinstance(modality, int) else str(modality or "").upper()
        number = first_count(item.get("tokenCount"), item.get("tokens"), item.get("token_count"))
        if name and number is not None:
            found[name] = found.get(name, 0) + number
    return found


def _read_candidates(body: Json, output: Output) -> None:
    for candidate in objects(body.get("candidates")):
        voice = candidate.get("index", 0)
        voice = voice if isinstance(voice, int) else 0
        for part in objects(as_object(candidate.get("content")).get("parts")):
            if part.get("thought") is True:
                output.think(part.get("text"), ("thought", voice))
            else:
                output.say(part.get("text"), voice)
            call = as_object(part.get("functionCall"))
            if call:
                output.call(call.get("name"), call.get("args"))
            output.say(as_object(part.get("executableCode")).get("code"), voice)


class GenerateStream(StreamState):
    """Chunks that are whole responses. The end is the chunk with a finish reason; there is no other marker."""

    def __init__(self) -> None:
        super().__init__()
        self._last: bytes = b""

    def take(self, name: str, data: bytes) -> None:
        if b'"usageMetadata"' in data:
            self._last = data
        super().take(name, data)

    def has_facts(self, data: bytes) -> bool:
        return b'"finishReason"' in data or b'"error"' in data or b'"blockReason"' in data

    def facts(self, event: Json) -> None:
        read_facts(_unwrap(event), self.found)
        if self.found.finish_reason is not None or self.found.error is not None:
            self.found.complete = True

    def usage_known(self) -> bool:
        return bool(self._last)

    def content(self, event: Json) -> None:
        _read_candidates(_unwrap(event), self.output)

    def finish(self, reply: Reply) -> None:
        if self._last:
            fill_usage(reply, _unwrap(load_object(self._last)).get("usageMetadata"), whole=reply.complete)


def array_items(body: bytes) -> tuple[list[bytes], bool]:
    """The items of a JSON array as JSON text, and whether the array is all there; a cut one gives its whole items."""
    text = body.decode("utf-8", "replace")
    items: list[bytes] = []
    end = 0
    position = text.find("{")
    while position >= 0:
        try:
            _, end = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError):
            return items, False
        items.append(text[position:end].encode())
        position = text.find("{", end)
    return items, text[end:].strip() == "]"


class GeminiEmbed(JsonFormat):
    """embedContent and batchEmbedContents: input tokens, when they are reported at all."""

    name = "gemini_embed"

    def read_ask(self, body: Json, path: str) -> Ask:
        requests = objects(body.get("requests")) or [body]
        preview = text_of(as_object(requests[0].get("content")).get("parts"))
        return Ask(_path_model(path) or string(body.get("model")), preview=clean(preview[:PREVIEW_LIMIT]))

    def read(self, body: Json, reply: Reply) -> None:
        read_facts(body, reply)
        fill_usage(reply, body.get("usageMetadata"), whole=True)
        if reply.usage is None:
            counts = [count(as_object(e.get("statistics")).get("tokenCount")) for e in _embeddings(body)]
            tokens = total(*counts)
            reply.usage = Usage(input_tokens=tokens) if tokens is not None else None


def _embeddings(body: Json) -> list[Json]:
    return objects(body.get("embeddings")) or objects([body.get("embedding")])


class VertexPredict(JsonFormat):
    """Vertex predict: text embeddings with token counts, images, or anything a custom endpoint says."""

    name = "vertex_predict"

    def read_ask(self, body: Json, path: str) -> Ask:
        first = next(iter(objects(body.get("instances"))), {})
        preview = text_of(first.get("content") or first.get("prompt"))
        return Ask(_path_model(path), preview=clean(preview[:PREVIEW_LIMIT]))

    def read(self, body: Json, reply: Reply) -> None:
        take_error(reply, body)
        predictions = objects(body.get("predictions"))
        statistics = [as_object(as_object(p.get("embeddings")).get("statistics")) for p in predictions]
        tokens = total(*(first_count(s.get("token_count"), s.get("tokenCount")) for s in statistics))
        images = sum("bytesBase64Encoded" in p or "gcsUri" in p for p in predictions)
        if tokens is not None:
            reply.usage = Usage(input_tokens=tokens)
            reply.usage_json = [s for s in statistics if s]
        elif images:
            reply.usage = Usage(units={"images": images})
        else:
            fill_usage(reply, as_object(body.get("metadata")).get("tokenMetadata") or body.get("usageMetadata"), True)
        if reply.usage is None:
            reply.usage, reply.usage_json = _token_metadata(body)


def _token_metadata(body: Json) -> tuple[Usage | None, Any]:
    """PaLM's counts: `metadata.tokenMetadata.{input,output}TokenCount.totalTokens`."""
    meta = as_object(as_object(body.get("metadata")).get("tokenMetadata"))
    before = count(as_object(meta.get("inputTokenCount")).get("totalTokens"))
    after = count(as_object(meta.get("outputTokenCount")).get("totalTokens"))
    if before is None and after is None:
        return None, None
    return Usage(input_tokens=before, output_tokens=after), meta


class GeminiInteractions(JsonFormat):
    """The Interactions API: usage with `total_*` names, thoughts beside the output, tool prompts beside the input."""

    name = "gemini_interactions"

    def __init__(self) -> None:
        self.state = InteractionStream

    def read_ask(self, body: Json, path: str) -> Ask:
        asked = body.get("input")
        if isinstance(asked, list) and asked and isinstance(asked[-1], dict):
            last = asked[-1]
            asked = last.get("content") if "content" in last else [last]
        preview = clean(text_of(asked)[:PREVIEW_LIMIT])
        return Ask(string(body.get("model") or body.get("agent")), body.get("stream") is True, None, preview)

    def read(self, body: Json, reply: Reply) -> None:
        read_interaction(body, reply)
        output = Output()
        for step in objects(body.get("steps")) or objects(body.get("outputs")):
            _read_step(step, output)
        output.write_to(reply)


def read_interaction(body: Json, reply: Reply) -> None:
    reply.model = string(body.get("model") or body.get("agent")) or reply.model
    reply.response_id = string(body.get("id")) or reply.response_id
    status = string(body.get("status"))
    reply.finish_reason = status or reply.finish_reason
    reply.complete = status not in ("in_progress", "queued")
    if body.get("error"):
        fill_error(reply, body, "error")
    usage = as_object(body.get("usage"))
    found = _interaction_usage(usage)
    if found is not None:
        reply.usage = found
        reply.usage_json = usage


def _interaction_usage(usage: Json) -> Usage | None:
    before = count(usage.get("total_input_tokens"))
    after = count(usage.get("total_output_tokens"))
    thoughts = first_count(usage.get("total_thought_tokens"), usage.get("total_reasoning_tokens"))
    if before is None and after is None and thoughts is None:
        return None
    read = _by_modality(usage.get("input_tokens_by_modality"))
    cached = _by_modality(usage.get("cached_tokens_by_modality"))
    wrote = _by_modality(usage.get("output_tokens_by_modality"))
    return Usage(
        input_tokens=total(before, count(usage.get("total_tool_use_tokens"))),
        cache_read_tokens=count(usage.get("total_cached_tokens")),
        output_tokens=total(after, thoughts),
        reasoning_tokens=thoughts,
        input_audio_tokens=read.get("AUDIO"),
        cache_read_audio_tokens=cached.get("AUDIO"),
        output_audio_tokens=wrote.get("AUDIO"),
        input_image_tokens=read.get("IMAGE"),
        output_image_tokens=wrote.get("IMAGE"),
        input_video_tokens=read.get("VIDEO"),
    )


def _read_step(step: Json, output: Output) -> None:
    kind = str(step.get("type", ""))
    if kind == "function_call":
        output.call(step.get("name"), step.get("arguments"))
    elif kind.startswith("thought"):
        output.think(text_of(step.get("summary") or step.get("content")))
    elif "text" in step:
        output.say(step.get("text"))
    elif kind == "model_output" or not kind:
        output.say(text_of(as_list(step.get("content"))))


class InteractionStream(StreamState):
    """Named events; the last carries the interaction with its usage."""

    def has_facts(self, data: bytes) -> bool:
        return b'"interaction"' in data or b'"usage"' in data or b'"error"' in data

    def facts(self, event: Json) -> None:
        kind = str(event.get("event_type") or event.get("type") or "")
        interaction = as_object(event.get("interaction"))
        if interaction:
            read_interaction(interaction, self.found)
            self.found.complete = False
        elif "usage" in event:
            usage = _interaction_usage(as_object(event["usage"]))
            if usage is not None:
                self.found.usage, self.found.usage_json = usage, event["usage"]
        if event.get("error"):
            fill_error(self.found, event, "error")
            self.found.complete = True
        if kind in ("interaction.complete", "interaction.completed", "interaction.failed", "interaction.cancelled"):
            self.found.complete = True

    def content(self, event: Json) -> None:
        delta = as_object(event.get("delta"))
        kind = str(delta.get("type", ""))
        index = str(event.get("index", 0))[:20]
        if "thought" in kind:
            self.output.think(delta.get("text") or text_of(delta.get("content")), ("thought", index))
        elif "arguments" in kind or kind == "function_call":
            arguments = delta.get("arguments")
            if arguments is not None:
                self.output.arguments(arguments, ("call", index))
        else:
            self.output.say(delta.get("text"), index)
        start = as_object(event.get("step")) or as_object(event.get("content"))
        if start.get("type") == "function_call":
            self.output.call(start.get("name"), None, ("call", index))
