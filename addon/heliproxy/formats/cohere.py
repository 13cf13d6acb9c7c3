"""Cohere chat (v1 and v2), embed and rerank; and rerank of those who copied it (Voyage, Jina, Together).

Billed units are what is charged; `tokens` is larger and counts when nothing is billed. The v1 stream is one JSON object
a line, the v2 stream is server-sent events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from heliproxy.exchange import Ask, Reply, Usage
from heliproxy.formats.base import JsonFormat, last_said, prompt_text, read_common_ask
from heliproxy.formats.errors import fill_error
from heliproxy.formats.openai_usage import read_usage as read_openai_usage
from heliproxy.formats.openai_usage import reported_cost
from heliproxy.formats.output import Output
from heliproxy.formats.reading import Json, amount, as_object, count, load_object, objects, string, text_of
from heliproxy.formats.streaming import StreamState, WholeBody, line_parser, sse_parser

if TYPE_CHECKING:
    from collections.abc import Mapping

    from heliproxy.exchange import StreamParser

_UNITS = ("search_units", "classifications", "images", "pages")


class _CohereFormat(JsonFormat):
    def read_ask(self, body: Json, path: str) -> Ask:
        ask = read_common_ask(body)
        texts = body.get("texts")
        preview = string(body.get("message"), 500) or last_said(body.get("messages")) or prompt_text(body)
        preview = preview or (text_of(texts)[:500] if isinstance(texts, list) else "")
        return Ask(ask.model, ask.stream, ask.user, preview, ask.tier)


class CohereChat(_CohereFormat):
    """Chat of both versions, and the older generate."""

    name = "cohere_chat"
    terminal: tuple[bytes, ...] = (b"event: message-end", b"event: stream-end")

    def __init__(self) -> None:
        self.state = ChatStream

    def read(self, body: Json, reply: Reply) -> None:
        read_facts(body, reply)
        output = Output()
        _read_message(body, output)
        output.write_to(reply)

    def parse_response(self, body: bytes, headers: Mapping[str, str]) -> Reply:
        if body.lstrip().startswith(b"{") and not load_object(body):
            parser = line_parser(ChatStream())
            parser.feed(body)
            return parser.result()
        return super().parse_response(body, headers)

    def _choose(self, start: bytes) -> StreamParser:
        # A v1 stream begins with an object, as a whole reply does; lines tell them apart at the end.
        return _LinesOrWhole(self) if start == b"{" else sse_parser(ChatStream())


class _LinesOrWhole:
    """Reads a body both as lines of events and as one object, and reports the one it was."""

    def __init__(self, form: CohereChat) -> None:
        self._lines = line_parser(ChatStream())
        self._whole = WholeBody(lambda body: form.parse_response(body, {}) if load_object(body) else Reply())

    def feed(self, data: bytes) -> None:
        self._lines.feed(data)
        self._whole.feed(data)

    def result(self) -> Reply:
        whole = self._whole.result()
        return self._lines.result() if whole == Reply(complete=whole.complete) else whole


def read_facts(body: Json, reply: Reply) -> None:
    """Everything but text, of a whole response or of the end of a stream."""
    reply.response_id = first_id(body) or reply.response_id
    reply.finish_reason = string(body.get("finish_reason")) or reply.finish_reason
    fill_usage(reply, body.get("usage") or body.get("meta"))
    if body.get("error") and string(body.get("error_type")) != "INVALID_TOOL_GENERATION":
        fill_error(reply, {"type": body.get("error_type"), "message": body["error"]}, "error")


def first_id(body: Json) -> str | None:
    return string(body.get("id")) or string(body.get("response_id")) or string(body.get("generation_id"))


def fill_usage(reply: Reply, raw: Any) -> None:
    """Billed units, else tokens."""
    meta = as_object(raw)
    usage = read_usage(meta)
    if usage is not None:
        reply.usage = usage
        reply.usage_json = meta


def read_usage(meta: Json) -> Usage | None:
    billed = as_object(meta.get("billed_units"))
    tokens = billed or as_object(meta.get("tokens"))
    found = Usage(
        input_tokens=count(tokens.get("input_tokens")),
        output_tokens=count(tokens.get("output_tokens")),
        input_image_tokens=count(billed.get("image_tokens")),
        units={unit: number for unit in _UNITS if (number := amount(billed.get(unit)))},
    )
    return found if found != Usage() else None


def _read_message(body: Json, output: Output) -> None:
    message = as_object(body.get("message"))
    output.say(body.get("text"))
    output.think(message.get("tool_plan"))
    for part in objects(message.get("content")):
        output.think(part.get("thinking"))
        output.say(part.get("text"))
    for call in objects(message.get("tool_calls")) or objects(body.get("tool_calls")):
        function = as_object(call.get("function"))
        output.call(function.get("name") or call.get("name"), function.get("arguments") or call.get("parameters"))
    for generation in objects(body.get("generations")):
        output.say(generation.get("text"))


class ChatStream(StreamState):
    def has_facts(self, data: bytes) -> bool:
        return (
            b"message-end" in data
            or b"stream-end" in data
            or b"message-start" in data
            or b"stream-start" in data
            or b'"is_finished":true' in data
        )

    def facts(self, event: Json) -> None:
        kind = event.get("type") or event.get("event_type")
        if kind == "message-start":
            self.found.response_id = string(event.get("id"))
        elif kind == "stream-start":
            self.found.response_id = string(event.get("generation_id"))
        elif kind == "message-end":
            read_facts(as_object(event.get("delta")), self.found)
            self.found.complete = True
        elif kind == "stream-end" or event.get("is_finished") is True:
            read_facts(as_object(event.get("response")), self.found)
            self.found.finish_reason = string(event.get("finish_reason")) or self.found.finish_reason
            self.found.complete = True
            if isinstance(event.get("error"), str | dict):
                fill_error(self.found, event, "error")
        elif event.get("message") and kind is None:
            fill_error(self.found, event, "error")
            self.found.complete = True

    def content(self, event: Json) -> None:
        kind = event.get("type") or event.get("event_type")
        message = as_object(as_object(event.get("delta")).get("message"))
        content = as_object(message.get("content"))
        calls = as_object(message.get("tool_calls"))
        function = as_object(calls.get("function"))
        voice = ("call", str(event.get("index", 0))[:20])
        if kind == "content-delta":
            self.output.say(content.get("text"))
            self.output.think(content.get("thinking"))
        elif kind == "tool-plan-delta":
            self.output.think(message.get("tool_plan"))
        elif kind == "tool-call-start":
            self.output.call(function.get("name"), function.get("arguments"), voice)
        elif kind == "tool-call-delta":
            self.output.arguments(function.get("arguments") or "", voice)
        elif kind == "text-generation":
            self.output.say(event.get("text"))
        elif kind == "tool-calls-generation":
            for call in objects(event.get("tool_calls")):
                self.output.call(call.get("name"), call.get("parameters"))


class CohereEmbed(_CohereFormat):
    name = "cohere_embed"

    def read(self, body: Json, reply: Reply) -> None:
        read_facts(body, reply)


class CohereRerank(_CohereFormat):
    """Searches for Cohere, tokens for Voyage and Jina."""

    name = "cohere_rerank"

    def read(self, body: Json, reply: Reply) -> None:
        read_facts(body, reply)
        reply.model = string(body.get("model"))
        raw = body.get("usage")
        if reply.usage is None and isinstance(raw, dict):
            reply.usage = read_openai_usage(raw)
            reply.usage_json = raw
            reply.cost_usd = reported_cost(raw)
            searches = amount(raw.get("search_units"))
            if reply.usage is None and searches:
                reply.usage = Usage(units={"search_units": searches})
