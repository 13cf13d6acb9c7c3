"""Ollama's own API: one JSON object a line, streamed unless the request says otherwise; the last has the counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from heliproxy.exchange import Ask, Reply, Usage
from heliproxy.formats.base import JsonFormat, read_common_ask, take_error
from heliproxy.formats.output import Output
from heliproxy.formats.reading import Json, as_object, count, objects, string
from heliproxy.formats.streaming import StreamState, line_parser

if TYPE_CHECKING:
    from collections.abc import Mapping

    from heliproxy.exchange import StreamParser


class OllamaChat(JsonFormat):
    """/api/chat and /api/generate."""

    name = "ollama_chat"
    terminal: tuple[bytes, ...] = ()

    def read_ask(self, body: Json, path: str) -> Ask:
        ask = read_common_ask(body)
        return Ask(ask.model, body.get("stream") is not False, ask.user, ask.preview, ask.tier)

    def parse_response(self, body: bytes, headers: Mapping[str, str]) -> Reply:
        parser = self.stream("")
        parser.feed(body)
        return parser.result()

    def stream(self, content_type: str) -> StreamParser:
        return line_parser(OllamaStream())


def read_usage(body: Json) -> Usage | None:
    """The prompt's count is missing when all of it was cached."""
    before, after = count(body.get("prompt_eval_count")), count(body.get("eval_count"))
    return None if before is None and after is None else Usage(input_tokens=before, output_tokens=after)


class OllamaStream(StreamState):
    def has_facts(self, data: bytes) -> bool:
        return b'"done":false' not in data and b'"done": false' not in data

    def facts(self, event: Json) -> None:
        self.found.model = string(event.get("model")) or self.found.model
        if event.get("done") is True:
            self.found.complete = True
            self.found.finish_reason = string(event.get("done_reason"))
            self.found.usage = read_usage(event)
            counts = ("prompt_eval_count", "eval_count", "total_duration", "eval_duration")
            self.found.usage_json = {name: event[name] for name in counts if name in event} or None
        if take_error(self.found, event):
            self.found.complete = True

    def content(self, event: Json) -> None:
        read_text(event, self.output)


def read_text(event: Json, output: Output) -> None:
    message = as_object(event.get("message"))
    output.think(message.get("thinking") or event.get("thinking"))
    output.say(message.get("content"))
    output.say(event.get("response"))
    for call in objects(message.get("tool_calls")):
        function = as_object(call.get("function"))
        output.call(function.get("name"), function.get("arguments"))


class OllamaEmbed(JsonFormat):
    name = "ollama_embed"

    def read(self, body: Json, reply: Reply) -> None:
        reply.model = string(body.get("model"))
        reply.usage = read_usage(body)
        take_error(reply, body)
