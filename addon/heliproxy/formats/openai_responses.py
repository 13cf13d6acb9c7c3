"""OpenAI Responses: JSON, server-sent events, and the same events as WebSocket messages.

Usage stands in the response object of the terminal event; hosted tools that run a model of their own
(image generation) report theirs in `tool_usage`, which the usage does not include. Source: the `openai` SDK's types.
"""

from __future__ import annotations

import re
from dataclasses import replace
from urllib.parse import parse_qs

from heliproxy.exchange import Ask, ModelUsage, Reply, Usage
from heliproxy.formats.base import JsonFormat, last_said, model_in_path, prompt_text, read_common_ask, take_error
from heliproxy.formats.errors import fill_error
from heliproxy.formats.openai_usage import fill_tier, fill_usage, read_usage
from heliproxy.formats.output import PREVIEW_LIMIT, Output
from heliproxy.formats.reading import Json, amount, as_object, clean, load_object, objects, string, sum_usages, text_of
from heliproxy.formats.streaming import StreamState

_FINAL = ("completed", "incomplete", "failed", "cancelled", "done")
"""What a response ends with; `done` is Realtime's."""
_CREATED_LIMIT = 4 * 1024 * 1024
_KIND = re.compile(rb'"type"\s*:\s*"(response\.[\w.]+|error)"')
_SAID = ("output_text.delta", "refusal.delta", "response.text.delta", "audio_transcript.delta")
_UNITS_OF_ITEMS = {"web_search_call": "web_searches", "file_search_call": "file_searches"}


class OpenAIResponses(JsonFormat):
    name = "openai_responses"
    terminal: tuple[bytes, ...] = tuple(
        line + kind
        for kind in (b"response.completed", b"response.incomplete", b"response.failed")
        for line in (b"event: ", b"event:")
    )

    def __init__(self) -> None:
        self.state = ResponseEvents

    def read_ask(self, body: Json, path: str) -> Ask:
        if body.get("type") == "response.create":
            body = created(body)
        ask = read_common_ask(body)
        return Ask(
            model=ask.model or model_in_path(path, "deployments") or _query_model(path),
            stream=ask.stream,
            user=ask.user,
            preview=_asked(body),
            tier=ask.tier,
        )

    def read(self, body: Json, reply: Reply) -> None:
        read_response(body, reply)
        output = Output()
        read_output(body, output)
        output.write_to(reply)


def created(message: Json) -> Json:
    """What a `response.create` asks for: Realtime wraps it, Responses over WebSocket does not.

    `items` are the messages with which a Realtime client said it (see `sockets.with_items`).
    """
    found = as_object(message.get("response")) or message
    said = [as_object(item.get("item")) for item in objects(message.get("items"))]
    asked = found.get("input")
    return {**found, "input": [*said, *(asked if isinstance(asked, list) else [])]} if said else found


def _query_model(path: str) -> str | None:
    """Realtime names the model in the URL of its socket."""
    found = parse_qs(path.partition("?")[2]).get("model") if "model=" in path else None
    return string(found[0]) if found else None


def _asked(body: Json) -> str:
    text = last_said(body.get("input")) or prompt_text(body)
    if text:
        return text
    for item in reversed(objects(body.get("input"))):
        found = text_of(item.get("output")) or text_of(item.get("text"))
        if found:
            return clean(found[:PREVIEW_LIMIT])
    return ""


def read_response(body: Json, reply: Reply) -> None:
    """Everything but text, of a response object."""
    reply.model = string(body.get("model")) or reply.model
    reply.response_id = string(body.get("id")) or reply.response_id
    fill_tier(reply, body.get("service_tier"))
    fill_usage(reply, body.get("usage"))
    status = body.get("status")
    reply.finish_reason = string(as_object(body.get("incomplete_details")).get("reason")) or string(status)
    # A background response is answered while it is still queued; its usage comes with a later GET.
    reply.complete = status not in ("queued", "in_progress")
    if isinstance(body.get("error"), dict | str):
        take_error(reply, body)
    if status == "failed" and reply.error is None:
        reply.error = reply.error_type = "failed"
    _add_tools(body, reply)


def _add_tools(body: Json, reply: Reply) -> None:
    """Add what hosted tools used: searches as units, image generation as a part on its own model."""
    tools = as_object(body.get("tool_usage"))
    units = _searches(body, tools)
    images = read_usage(tools.get("image_gen"))
    usage = reply.usage
    if images is not None and (images.input_tokens or images.output_tokens):
        own = usage or Usage()
        model = next((t.get("model") for t in objects(body.get("tools")) if t.get("type") == "image_generation"), None)
        parts = (ModelUsage(None, own), ModelUsage(string(model) or "gpt-image-1", images))
        whole = sum_usages([part.usage for part in parts])
        usage = replace(whole, units={**whole.units, **units}, parts=parts)
        reply.usage_json = {"usage": body.get("usage"), "tool_usage": tools}
    elif units and usage is not None:
        usage = replace(usage, units={**usage.units, **units})
    reply.usage = usage


def _searches(body: Json, tools: Json) -> dict[str, float]:
    units: dict[str, float] = {}
    for item in objects(body.get("output")):
        unit = _UNITS_OF_ITEMS.get(str(item.get("type")))
        # Opening or searching within a page is part of a search that was already paid for.
        if unit is not None and as_object(item.get("action")).get("type", "search") == "search":
            units[unit] = units.get(unit, 0) + 1
    reported = amount(as_object(tools.get("web_search")).get("num_requests"))
    if reported:
        units["web_searches"] = reported
    return units


def read_output(body: Json, output: Output) -> None:
    """The text of a response object's output items."""
    for item in objects(body.get("output")):
        kind = item.get("type")
        if kind == "message" or kind is None:
            for part in objects(item.get("content")):
                output.say(part.get("text"))
                output.say(part.get("refusal"))
                output.say(part.get("transcript"))
        elif kind == "reasoning":
            output.think(text_of(item.get("summary")))
            output.think(text_of(item.get("content")))
        elif kind in ("function_call", "custom_tool_call", "mcp_call"):
            output.call(item.get("name"), item.get("arguments") or item.get("input"))
        elif kind == "code_interpreter_call":
            output.think(item.get("code"), "code")


def _kind(name: str, data: bytes) -> str:
    """The type of an event, from its name or from its data, where it stands near the beginning or the end."""
    if name.startswith("response.") or name == "error":
        return name
    found = _KIND.search(data, 0, 400) or _KIND.search(data, max(0, len(data) - 400))
    return found[1].decode() if found is not None else ""


class ResponseEvents(StreamState):
    """The events of one response, from a stream or from a WebSocket.

    For a WebSocket: one instance for each `response.create`; `take_event` with each server message; `ended` tells when
    the response is over; `reply()` gives what was read, at any time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ended = False
        self._created: bytes | None = None
        self._final: Json | None = None

    def take_event(self, data: bytes) -> None:
        """Take one server event as JSON text, without SSE framing."""
        self.take("", data)

    def has_facts(self, data: bytes) -> bool:
        return b'"error"' in data

    def take(self, name: str, data: bytes) -> None:
        kind = _kind(name, data)
        if kind.endswith(".delta") or kind == "response.output_item.added":
            if not kind.endswith("audio.delta"):
                super().take("", data)
        elif kind in ("response.created", "response.in_progress", "response.queued"):
            # The request comes back whole in these; they are read only if the last event never comes.
            self._created = data if len(data) < _CREATED_LIMIT else None
        elif kind.removeprefix("response.") in _FINAL:
            self._take_response(data)
        elif kind == "error" or (not self.events and not kind):
            self._take_other(data)
        elif data.startswith(b"[DONE]"):
            self.found.complete = True
        self.events += 1

    def _take_response(self, data: bytes) -> None:
        response = as_object(load_object(data).get("response"))
        if response:
            read_response(response, self.found)
            self.found.complete = True
            self.ended = True
            self._final = response if objects(response.get("output")) else None

    def _take_other(self, data: bytes) -> None:
        event = load_object(data)
        if event.get("type") == "error" or event.get("error"):
            fill_error(self.found, event, "error")
            self.found.complete = True
            self.ended = True
        elif event.get("object") == "response":
            read_response(event, self.found)
            self.ended = self.found.complete
            self._final = event

    def facts(self, event: Json) -> None:
        """Text events hold none."""

    def content(self, event: Json) -> None:
        kind = str(event.get("type", ""))
        voice = (str(event.get("output_index", 0))[:20], str(event.get("content_index", ""))[:20])
        delta = event.get("delta")
        if kind == "response.output_item.added":
            item = as_object(event.get("item"))
            if item.get("type") in ("function_call", "custom_tool_call", "mcp_call"):
                self.output.call(item.get("name"), None, voice)
        elif kind.endswith(_SAID):
            self.output.say(delta, voice)
        elif kind.endswith(("arguments.delta", "_input.delta")) and isinstance(delta, str):
            self.output.arguments(delta, voice)
        elif "reasoning" in kind or "code" in kind:
            self.output.think(delta, ("thought", *voice))

    def reply(self) -> Reply:
        if self._final is not None:
            # The last event repeats all text; the deltas need not be read.
            reply = replace(self.found)
            output = Output()
            read_output(self._final, output)
            output.write_to(reply)
            return reply
        reply = super().reply()
        if self._created is not None and reply.response_id is None:
            response = as_object(load_object(self._created).get("response"))
            reply.model = reply.model or string(response.get("model"))
            reply.response_id = string(response.get("id"))
        return reply
