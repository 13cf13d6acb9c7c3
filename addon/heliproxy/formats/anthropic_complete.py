"""Anthropic's legacy text completions: no usage at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from heliproxy.formats.base import JsonFormat
from heliproxy.formats.errors import fill_error
from heliproxy.formats.output import Output
from heliproxy.formats.reading import Json, string
from heliproxy.formats.streaming import StreamState

if TYPE_CHECKING:
    from heliproxy.exchange import Reply


class AnthropicComplete(JsonFormat):
    name = "anthropic_complete"

    def __init__(self) -> None:
        self.state = CompleteStream

    def read(self, body: Json, reply: Reply) -> None:
        read_facts(body, reply)
        output = Output()
        output.say(body.get("completion"))
        output.write_to(reply)


def read_facts(body: Json, reply: Reply) -> None:
    reply.model = string(body.get("model")) or reply.model
    reply.response_id = string(body.get("id")) or reply.response_id
    reply.finish_reason = string(body.get("stop_reason")) or reply.finish_reason
    if body.get("error"):
        fill_error(reply, body, "error")


class CompleteStream(StreamState):
    def has_facts(self, data: bytes) -> bool:
        return b'"stop_reason":"' in data or b'"stop_reason": "' in data or b'"error"' in data

    def facts(self, event: Json) -> None:
        read_facts(event, self.found)
        if self.found.finish_reason is not None or self.found.error is not None:
            self.found.complete = True

    def content(self, event: Json) -> None:
        self.output.say(event.get("completion"))
