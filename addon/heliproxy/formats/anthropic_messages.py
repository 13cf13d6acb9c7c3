"""Anthropic messages, on Anthropic's own host and on Vertex, Bedrock, OpenRouter and others that copied it.

Input excludes the cache: the whole input is input + cache reads + cache writes. In a stream, `message_start` is
overlaid by every `message_delta`, whose numbers are cumulative. `usage.iterations` lists sub-calls of which
compactions and advisors are missing from the top level. Source: the `anthropic` SDK's types.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from heliproxy.exchange import Ask, ModelUsage, Reply, Usage
from heliproxy.formats.base import JsonFormat, model_in_path, read_common_ask
from heliproxy.formats.errors import fill_error
from heliproxy.formats.output import Output
from heliproxy.formats.reading import Json, amount, as_object, count, objects, string, sum_usages, text_of, total
from heliproxy.formats.streaming import StreamState

_SEARCH_UNITS = {"web_search_requests": "web_searches", "web_fetch_requests": "web_fetches"}
_PRICED_BY = {"service_tier": "tier", "speed": "speed", "inference_geo": "geo"}


class AnthropicMessages(JsonFormat):
    name = "anthropic_messages"
    terminal: tuple[bytes, ...] = (b"event: message_stop", b"event:message_stop")

    def __init__(self) -> None:
        self.state = MessageStream

    def read_ask(self, body: Json, path: str) -> Ask:
        ask = read_common_ask(body)
        in_path = (model_in_path(path, "models") or "").partition(":")[0]  # Vertex: /models/{model}:rawPredict
        streamed = ask.stream or ":streamRawPredict" in path
        return Ask(ask.model or in_path or None, streamed, ask.user, ask.preview, ask.tier)

    def read(self, body: Json, reply: Reply) -> None:
        if body.get("type") == "error" or body.get("error"):
            fill_error(reply, body)
        read_message(body, reply)
        output = Output()
        for block in objects(body.get("content")):
            read_block(block, output, None)
        output.write_to(reply)


def read_message(message: Json, reply: Reply) -> None:
    """Everything but text, of a message object."""
    reply.model = string(message.get("model")) or reply.model
    reply.response_id = string(message.get("id")) or reply.response_id
    reply.finish_reason = string(message.get("stop_reason")) or reply.finish_reason
    fill_usage(reply, as_object(message.get("usage")))


def fill_usage(reply: Reply, raw: Json) -> None:
    if not raw:
        return
    reply.usage = read_usage(raw)
    reply.usage_json = raw
    pricing = dict(reply.pricing)
    for field, name in _PRICED_BY.items():
        value = string(raw.get(field))
        if value is not None and value != "not_available":
            pricing[name] = value.lower()
    reply.pricing = pricing
    cost = amount(raw.get("cost"))  # OpenRouter
    if cost is not None:
        reply.cost_usd = cost


def read_usage(raw: Json) -> Usage | None:
    """A usage object with its sub-calls; None when it reports no tokens."""
    top = _one_usage(raw)
    calls = [(string(item.get("model")), _one_usage(item)) for item in objects(raw.get("iterations"))]
    parts = tuple(ModelUsage(model, usage) for model, usage in calls if usage is not None)
    if top is None:
        return None
    if not parts or (len(parts) == 1 and parts[0].model is None):
        return top
    whole = sum_usages([part.usage for part in parts])
    if (whole.input_tokens or 0) < (top.input_tokens or 0) or (whole.output_tokens or 0) < (top.output_tokens or 0):
        return top  # a list that leaves something out is no basis for a bill
    # Reasoning and searches are told for the whole call only.
    return replace(whole, reasoning_tokens=top.reasoning_tokens, units=top.units, parts=parts)


def _one_usage(raw: Json) -> Usage | None:
    fresh = count(raw.get("input_tokens"))
    output = count(raw.get("output_tokens"))
    if fresh is None and output is None:
        return None
    read = count(raw.get("cache_read_input_tokens"))
    split = as_object(raw.get("cache_creation"))
    short = count(split.get("ephemeral_5m_input_tokens"))
    long = count(split.get("ephemeral_1h_input_tokens"))
    written = count(raw.get("cache_creation_input_tokens"))
    if written is None:
        written = total(short, long)
    if short is None and long is None and written is not None:
        short, long = written, 0  # without a breakdown it is the default lifetime
    tools = as_object(raw.get("server_tool_use"))
    units = {unit: n for field, unit in _SEARCH_UNITS.items() if (n := amount(tools.get(field)))}
    return Usage(
        input_tokens=total(fresh, read, written),
        cache_read_tokens=read,
        cache_write_tokens=written,
        cache_write_5m_tokens=short,
        cache_write_1h_tokens=long,
        output_tokens=output,
        reasoning_tokens=count(as_object(raw.get("output_tokens_details")).get("thinking_tokens")),
        units=units,
    )


def read_block(block: Json, output: Output, voice: Any) -> None:
    """One content block of a message."""
    kind = block.get("type")
    if kind == "text":
        output.say(block.get("text"), 0 if voice is None else voice)
    elif kind == "thinking":
        output.think(block.get("thinking"))
    elif kind == "tool_use":
        arguments = block.get("input")
        output.call(block.get("name"), arguments or None, voice)
    elif kind in ("server_tool_use", "mcp_tool_use") and block.get("input"):
        output.arguments(block["input"], voice if voice is not None else "server tool")
    elif kind == "compaction":
        output.think(text_of(block.get("content")))


class MessageStream(StreamState):
    """message_start, content blocks, message_delta, message_stop; errors and pings anywhere."""

    tells_of_many = True

    def __init__(self) -> None:
        super().__init__()
        self._usage: Json = {}

    def has_facts(self, data: bytes) -> bool:
        return b'"message_' in data or b'"error"' in data

    def facts(self, event: Json) -> None:
        kind = event.get("type")
        if kind == "message_start":
            message = as_object(event.get("message"))
            self._usage = dict(as_object(message.get("usage")))
            read_message(message, self.found)
        elif kind == "message_delta":
            self.found.finish_reason = (
                string(as_object(event.get("delta")).get("stop_reason")) or self.found.finish_reason
            )
            news = as_object(event.get("usage"))
            self._usage = {**self._usage, **{name: value for name, value in news.items() if value is not None}}
            fill_usage(self.found, self._usage)
        elif kind == "message_stop":
            self.found.complete = True
            self._metrics(as_object(event.get("amazon-bedrock-invocationMetrics")))
        elif kind == "error" or isinstance(event.get("error"), dict):
            fill_error(self.found, event, "error")
            self.found.complete = True
        elif kind == "message":
            read_message(event, self.found)
            self.found.complete = True

    def _metrics(self, metrics: Json) -> None:
        """Bedrock's own count, for a stream whose messages carry none."""
        if metrics and self.found.usage is None:
            fill_usage(
                self.found,
                {
                    "input_tokens": metrics.get("inputTokenCount"),
                    "output_tokens": metrics.get("outputTokenCount"),
                    "cache_read_input_tokens": metrics.get("cacheReadInputTokenCount"),
                    "cache_creation_input_tokens": metrics.get("cacheWriteInputTokenCount"),
                },
            )

    def content(self, event: Json) -> None:
        kind = event.get("type")
        index = str(event.get("index", 0))[:20]
        if kind == "content_block_delta":
            delta = as_object(event.get("delta"))
            self.output.say(delta.get("text"), index)
            self.output.think(delta.get("thinking"), ("thought", index))
            if isinstance(delta.get("partial_json"), str):
                self.output.arguments(delta["partial_json"], index)
        elif kind == "content_block_start":
            read_block(as_object(event.get("content_block")), self.output, index)
        elif kind == "message":
            for block in objects(event.get("content")):
                read_block(block, self.output, None)
