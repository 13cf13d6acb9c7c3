"""Amazon Bedrock: Converse, and InvokeModel with whatever the model's maker speaks.

Converse input excludes the cache. Streams are binary event streams, in which exceptions arrive inside a 200. When an
invoked model's own body reports no usage, response headers or `amazon-bedrock-invocationMetrics` do. The model is
the one in the path: its region prefix changes the price, and the body's name has none.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from heliproxy.exchange import Ask, Reply, StreamParser, Usage
from heliproxy.formats import anthropic_messages, openai_chat
from heliproxy.formats.base import JsonFormat, last_said, model_in_path, prompt_text, read_common_ask
from heliproxy.formats.errors import fill_error
from heliproxy.formats.eventstream import EventStreamDecoder, Message
from heliproxy.formats.openai_usage import fill_usage as fill_openai_usage
from heliproxy.formats.output import Output
from heliproxy.formats.reading import (
    Json,
    as_object,
    count,
    first_count,
    header_count,
    load_object,
    objects,
    string,
    text_of,
    total,
)
from heliproxy.formats.streaming import EventParser, SniffingParser, StreamState, WholeBody

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class _BedrockFormat(JsonFormat):
    stream_state: Callable[[], BedrockStream]

    def read_ask(self, body: Json, path: str) -> Ask:
        ask = read_common_ask(body)
        tier = string(as_object(body.get("serviceTier")).get("type")) or ask.tier
        preview = last_said(body.get("messages")) or prompt_text(body) or _text(body.get("inputText"))
        return Ask(_path_model(path), "stream" in path.rpartition("/")[2], ask.user, preview, tier)

    def parse_response(self, body: bytes, headers: Mapping[str, str]) -> Reply:
        if body[:1] == b"\0":
            parser = self.stream(headers.get("content-type", ""))
            parser.feed(body)
            return parser.result()
        reply = super().parse_response(body, headers)
        _fill_headers(reply, headers)
        reply.model = None
        return reply

    def stream(self, content_type: str) -> StreamParser:
        return SniffingParser(self._pick)

    def _pick(self, start: bytes) -> StreamParser:
        if start in b"{[":
            return WholeBody(lambda body: self.parse_response(body, {}))
        return EventStreamParser(self.stream_state())


def _text(value: Any) -> str:
    return text_of(value)[:500]


def _path_model(path: str) -> str | None:
    plain = path.partition("?")[0]
    _, found, rest = plain.partition("/model/")
    return model_in_path("/model/" + rest.rpartition("/")[0].replace("/", "%2F") + "/", "model") if found else None


def _fill_headers(reply: Reply, headers: Mapping[str, str]) -> None:
    """Usage and tier from Bedrock's response headers, where the body said nothing."""
    names = {
        "input": "x-amzn-bedrock-input-token-count",
        "output": "x-amzn-bedrock-output-token-count",
        "read": "x-amzn-bedrock-cache-read-input-token-count",
        "write": "x-amzn-bedrock-cache-write-input-token-count",
    }
    counts = {key: header_count(headers, name) for key, name in names.items()}
    if reply.usage is None and (counts["input"] is not None or counts["output"] is not None):
        reply.usage = _usage(counts["input"], counts["output"], counts["read"], counts["write"], None)
        reply.usage_json = {name: headers[name] for name in names.values() if name in headers}
    tier = headers.get("x-amzn-bedrock-service-tier")
    if tier and "tier" not in reply.pricing:
        reply.pricing = {**reply.pricing, "tier": tier.lower()[:50]}


def _usage(fresh: int | None, output: int | None, read: int | None, written: int | None, split: Any) -> Usage | None:
    """Bedrock's counts as Usage: the input has neither the cache reads nor the cache writes in it."""
    if fresh is None and output is None:
        return None
    short: int | None = written
    long: int | None = 0 if written is not None else None
    details = objects(split)
    if details and written is not None:
        long = sum(count(d.get("inputTokens")) or 0 for d in details if d.get("ttl") == "1h")
        short = sum(count(d.get("inputTokens")) or 0 for d in details if d.get("ttl") != "1h")
    return Usage(
        input_tokens=total(fresh, read, written),
        cache_read_tokens=read,
        cache_write_tokens=written,
        cache_write_5m_tokens=short,
        cache_write_1h_tokens=long,
        output_tokens=output,
    )


def read_usage(raw: Json) -> Usage | None:
    """A Converse usage object; Nova's on InvokeModel has other names for the cache."""
    return _usage(
        count(raw.get("inputTokens")),
        count(raw.get("outputTokens")),
        first_count(raw.get("cacheReadInputTokens"), raw.get("cacheReadInputTokenCount")),
        first_count(raw.get("cacheWriteInputTokens"), raw.get("cacheWriteInputTokenCount")),
        raw.get("cacheDetails"),
    )


def fill_usage(reply: Reply, raw: Any) -> None:
    usage = read_usage(as_object(raw))
    if usage is not None:
        reply.usage = usage
        reply.usage_json = raw


def fill_tier(reply: Reply, body: Json) -> None:
    tier = string(as_object(body.get("serviceTier")).get("type"))
    latency = string(as_object(body.get("performanceConfig")).get("latency"))
    found = {name: value.lower() for name, value in (("tier", tier), ("latency", latency)) if value is not None}
    if found:
        reply.pricing = {**reply.pricing, **found}


class BedrockConverse(_BedrockFormat):
    name = "bedrock_converse"

    def __init__(self) -> None:
        self.stream_state = ConverseStream

    def read(self, body: Json, reply: Reply) -> None:
        read_converse(body, reply)


def read_converse(body: Json, reply: Reply) -> None:
    """A Converse response; Nova answers InvokeModel in the same way."""
    reply.finish_reason = string(body.get("stopReason"))
    fill_usage(reply, body.get("usage"))
    fill_tier(reply, body)
    output = Output()
    for block in objects(as_object(as_object(body.get("output")).get("message")).get("content")):
        _read_block(block, output)
    output.write_to(reply)


def _read_block(block: Json, output: Output) -> None:
    output.say(block.get("text"))
    tool = as_object(block.get("toolUse"))
    if tool:
        output.call(tool.get("name"), tool.get("input"))
    thought = as_object(block.get("reasoningContent"))
    output.think(as_object(thought.get("reasoningText")).get("text"))


class BedrockInvoke(_BedrockFormat):
    name = "bedrock_invoke"

    def __init__(self) -> None:
        self.stream_state = InvokeStream

    def read(self, body: Json, reply: Reply) -> None:
        read_native(body, reply)


def read_native(body: Json, reply: Reply) -> None:
    """The body of an invoked model, told apart by its shape."""
    usage = as_object(body.get("usage"))
    if body.get("type") in ("message", "error") or "input_tokens" in usage:
        anthropic_messages.AnthropicMessages().read(body, reply)
    elif "inputTokens" in usage or "stopReason" in body:
        read_converse(body, reply)
    elif "choices" in body or "prompt_tokens" in usage:
        openai_chat.OpenAIChat().read(body, reply)
    else:
        _read_others(body, reply)


def _read_others(body: Json, reply: Reply) -> None:
    """Titan, Llama, Cohere, Mistral and AI21, of which the last three report nothing in the body."""
    results = objects(body.get("results"))
    before = first_count(body.get("inputTextTokenCount"), body.get("prompt_token_count"))
    after = first_count(body.get("generation_token_count"), total(*(count(r.get("tokenCount")) for r in results)))
    reply.usage = _usage(before, after, None, None, None)
    if reply.usage is not None:
        names = ("inputTextTokenCount", "prompt_token_count", "generation_token_count")
        reply.usage_json = {name: body[name] for name in names if name in body}
        if results:
            reply.usage_json["results"] = [{"tokenCount": r.get("tokenCount")} for r in results[:100]]
    elif isinstance(body.get("usage"), dict):
        fill_openai_usage(reply, body["usage"])
    output = Output()
    pieces: list[Json] = [body]
    for name in ("results", "generations", "outputs", "completions"):
        pieces += objects(body.get(name))
    for piece in pieces:
        for name in ("text", "outputText", "generation", "completion"):
            output.say(piece.get(name))
        output.say(as_object(piece.get("data")).get("text"))
        reason = first_string(piece, "stop_reason", "finish_reason", "completionReason")
        reply.finish_reason = reason or reply.finish_reason
    output.write_to(reply)


def first_string(body: Json, *names: str) -> str | None:
    return next((found for name in names if (found := string(body.get(name))) is not None), None)


class BedrockStream(StreamState):
    """The messages of an event stream."""

    def message(self, message: Message) -> None:
        """Take one message."""
        kind = message.headers.get(":message-type", "event")
        if kind in ("exception", "error"):
            name = message.headers.get(":exception-type") or message.headers.get(":error-code") or kind
            said = load_object(message.payload).get("message") or message.headers.get(":error-message")
            fill_error(self.found, {"type": name, "message": said or name})
            self.found.complete = True
            return
        self.event(message.headers.get(":event-type", ""), message.payload)

    def event(self, kind: str, payload: bytes) -> None:
        raise NotImplementedError

    def has_facts(self, data: bytes) -> bool:
        return False

    def facts(self, event: Json) -> None:
        """Sorted by `event`."""


class ConverseStream(BedrockStream):
    """The usage is in the last event, `metadata`."""

    def event(self, kind: str, payload: bytes) -> None:
        self.events += 1
        if kind in ("contentBlockDelta", "contentBlockStart"):
            self.take("", payload)
        elif kind == "messageStop":
            self.found.finish_reason = string(load_object(payload).get("stopReason"))
        elif kind == "metadata":
            body = load_object(payload)
            fill_usage(self.found, body.get("usage"))
            fill_tier(self.found, body)
            self.found.complete = True

    def content(self, event: Json) -> None:
        event = as_object(event.get("contentBlockDelta")) or as_object(event.get("contentBlockStart")) or event
        voice = str(event.get("contentBlockIndex", 0))[:20]
        delta = as_object(event.get("delta"))
        self.output.say(delta.get("text"), voice)
        self.output.think(as_object(delta.get("reasoningContent")).get("text"), ("thought", voice))
        arguments = as_object(delta.get("toolUse")).get("input")
        if isinstance(arguments, str):
            self.output.arguments(arguments, voice)
        start = as_object(as_object(event.get("start")).get("toolUse"))
        if start:
            self.output.call(start.get("name"), None, voice)


class InvokeStream(BedrockStream):
    """`chunk` events, each with a base64 event of the model's own; read by the state that fits the first of them."""

    def __init__(self) -> None:
        super().__init__()
        self._native: StreamState | None = None
        self._metrics: Json = {}

    def event(self, kind: str, payload: bytes) -> None:
        encoded = load_object(payload).get("bytes") if kind == "chunk" else None
        if not isinstance(encoded, str):
            return
        try:
            data = base64.b64decode(encoded)
        except (binascii.Error, ValueError):
            return
        event = load_object(data)
        if self._native is None:
            self._native = _native_state(event)
        metrics = as_object(event.get("amazon-bedrock-invocationMetrics"))
        self._metrics = metrics or self._metrics
        self._native.take("", data)

    def content(self, event: Json) -> None:
        """Read by the native state."""

    def reply(self) -> Reply:
        if self._native is None:
            return super().reply()
        reply = self._native.reply()
        reply.model = None
        if self.found.error is not None:
            reply = replace(
                reply,
                error=self.found.error,
                error_type=self.found.error_type,
                error_status=self.found.error_status,
                complete=True,
            )
        if self._metrics:
            reply.complete = True
            if reply.usage is None:
                _fill_metrics(reply, self._metrics)
        return reply


def _fill_metrics(reply: Reply, metrics: Json) -> None:
    reply.usage = _usage(
        count(metrics.get("inputTokenCount")),
        count(metrics.get("outputTokenCount")),
        count(metrics.get("cacheReadInputTokenCount")),
        count(metrics.get("cacheWriteInputTokenCount")),
        None,
    )
    reply.usage_json = metrics if reply.usage is not None else None


def _native_state(event: Json) -> StreamState:
    if "type" in event:
        return anthropic_messages.MessageStream()
    if "choices" in event:
        return openai_chat.ChatStream()
    if any(name in event for name in ("messageStart", "contentBlockDelta", "contentBlockStart")):
        return NovaStream()
    return PlainStream()


class NovaStream(ConverseStream):
    """Converse's events as JSON objects, one key each."""

    def take(self, name: str, data: bytes) -> None:
        if b'"contentBlockDelta"' in data or b'"contentBlockStart"' in data:
            StreamState.take(self, name, data)
            return
        event = load_object(data)
        stop = as_object(event.get("messageStop"))
        if stop:
            self.found.finish_reason = string(stop.get("stopReason"))
        metadata = as_object(event.get("metadata"))
        if metadata:
            fill_usage(self.found, metadata.get("usage"))
            self.found.complete = True


class PlainStream(StreamState):
    """Llama, Titan, Cohere, Mistral, AI21: text under one name or another."""

    def has_facts(self, data: bytes) -> bool:
        return b"eason" in data or b"token_count" in data

    def facts(self, event: Json) -> None:
        reason = first_string(event, "stop_reason", "finish_reason", "completionReason")
        for item in objects(event.get("outputs")):
            reason = first_string(item, "stop_reason") or reason
        self.found.finish_reason = reason or self.found.finish_reason

    def content(self, event: Json) -> None:
        for piece in (event, *objects(event.get("outputs"))):
            for name in ("generation", "outputText", "text", "completion"):
                self.output.say(piece.get(name))


class EventStreamParser(EventParser):
    """A StreamParser for binary event streams."""

    def __init__(self, state: BedrockStream) -> None:
        self._decoder = EventStreamDecoder()
        self._bedrock = state

    def feed(self, data: bytes) -> None:
        for message in self._decoder.feed(data):
            self._bedrock.message(message)

    def result(self) -> Reply:
        reply = self._bedrock.reply()
        if self._decoder.broken and reply.error is None:
            reply.complete = False
        return reply
