"""A stream's events put together again into the turns they stood for."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from heliproxy.conversation.blocks import block, compact, data_part, encoded, parts, word
from heliproxy.conversation.values import Part, Turn
from heliproxy.formats.reading import as_object, clean, load, load_object, objects
from heliproxy.formats.sse import LineSplitter, SseSplitter

EVENT_LIMIT = 200_000
"""Events read of one stream."""
_SSE_STARTS = (b"data:", b"event:", b"id:", b"retry:", b":")
Events = Iterable[tuple[str, dict[str, Any]]]


def events_of(body: bytes, content_type: str) -> Events | None:
    """The events of a streamed body, as (name, JSON object); None when it is not a stream."""
    if content_type == "application/vnd.amazon.eventstream":
        return _frames(body)
    start = body[:4096].lstrip(b" \t\r\n\xef\xbb\xbf")
    if start.startswith(_SSE_STARTS):
        return _split(SseSplitter(), body)
    if content_type in ("application/x-ndjson", "application/jsonl") or _looks_like_lines(start):
        return _split(LineSplitter(), body)
    return None


def _looks_like_lines(start: bytes) -> bool:
    """Whether the body is one JSON object a line: a whole one first, and more behind it."""
    first, newline, rest = start.partition(b"\n")
    return bool(newline and rest.lstrip()[:1] == b"{" and first.startswith(b"{") and load(first) is not None)


def _split(splitter: SseSplitter | LineSplitter, body: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    events = splitter.feed(body)
    for name, data in [*events[:EVENT_LIMIT], *splitter.tail()[-1:]]:
        event = load_object(data)
        if event:
            yield name, event


def _frames(body: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Amazon's binary event stream: lengths, headers, payload; the checksums are not checked, we only display."""
    at = 0
    while at + 16 <= len(body):
        size = int.from_bytes(body[at : at + 4], "big")
        head = int.from_bytes(body[at + 4 : at + 8], "big")
        if size < 16 + head or size > 1 << 25:
            return
        headers = body[at + 12 : at + 12 + head]
        event = load_object(body[at + 12 + head : at + size - 4])
        name = _event_type(headers)
        chunk = event.get("bytes")
        if isinstance(chunk, str):  # an InvokeModel chunk holds the model's own event
            try:
                event, name = load_object(base64.b64decode(chunk)), ""
            except (binascii.Error, ValueError):
                event = {}
        if event:
            yield name, event
        at += size


def _event_type(headers: bytes) -> str:
    for key in (b":event-type", b":exception-type"):
        at = headers.find(key)
        if at >= 0:
            at += len(key) + 1  # one byte says that a string follows, two its length
            size = int.from_bytes(headers[at : at + 2], "big")
            return headers[at + 2 : at + 2 + size].decode("utf-8", "replace")
    return ""


@dataclass(slots=True)
class _Slot:
    kind: str
    name: str = ""
    id: str = ""
    texts: list[str] = field(default_factory=list)
    done: list[Part] | None = None
    """The finished parts, when an event carried them whole."""

    def parts(self) -> list[Part]:
        if self.done is not None:
            return self.done
        text = clean("".join(self.texts))
        return [Part(self.kind, text, name=self.name, id=self.id)] if text or self.kind == "tool_call" else []


class Assembly:
    """Takes a stream's events, of any format, and gives the turns."""

    def __init__(self) -> None:
        self._slots: dict[Any, dict[Any, _Slot]] = {}
        self._errors: list[Part] = []
        self._whole: dict[Any, list[Part]] = {}
        self._unknown: list[dict[str, Any]] = []

    def turns(self) -> tuple[Turn, ...]:
        """What was said so far: one turn a choice, errors last."""
        found: list[Turn] = []
        for turn in sorted({*self._slots, *self._whole}, key=str):
            said = self._whole.get(turn) or [p for slot in self._slots.get(turn, {}).values() for p in slot.parts()]
            if said:
                found.append(Turn("assistant", tuple(said)))
        if self._errors:
            found.append(Turn("error", tuple(self._errors)))
        if not found and self._unknown:
            found.append(Turn("assistant", tuple(data_part(event) for event in self._unknown[:20])))
        return tuple(found)

    def take(self, name: str, event: dict[str, Any]) -> None:
        """Take one event."""
        kind = event.get("type")
        kind = kind if isinstance(kind, str) else ""
        wrapped = event.get("response")
        if isinstance(wrapped, dict) and "candidates" in wrapped:
            event = wrapped
        if "choices" in event:
            self._chat(event)
        elif "candidates" in event:
            self._gemini(event)
        elif kind.startswith(("response.", "conversation.")):
            self._responses(kind, event)
        elif kind.startswith(("message_", "content_block_")) or kind in ("ping", "completion"):
            self._anthropic(kind, event)
        elif kind.startswith(("content-", "message-", "tool-", "citation-")):
            self._cohere(kind, event)
        elif name.startswith(("contentBlock", "message")) or name == "metadata":
            self._converse(name, event)
        else:
            self._other(name, kind, event)

    def _slot(self, turn: Any, key: Any, kind: str) -> _Slot:
        return self._slots.setdefault(str(turn), {}).setdefault(str(key), _Slot(kind))

    def _say(self, turn: Any, key: Any, kind: str, text: Any) -> None:
        if isinstance(text, str) and text:
            slot = self._slot(turn, (key, kind), kind)
            slot.texts.append(text)

    def _fail(self, event: dict[str, Any]) -> None:
        from heliproxy.conversation.response import error_text

        self._errors.append(Part("error", error_text(event) or compact(event)[:4000]))

    def _call(self, turn: Any, key: Any, name: Any, call_id: Any, arguments: Any) -> None:
        slot = self._slot(turn, (key, "call"), "tool_call")
        slot.name = slot.name or word(name)
        slot.id = slot.id or word(call_id)
        if arguments:
            slot.texts.append(compact(arguments))

    def _chat(self, event: dict[str, Any]) -> None:
        if event.get("error"):
            self._fail(event)
        for choice in objects(event.get("choices")):
            turn = choice.get("index", 0)
            delta = as_object(choice.get("delta") or choice.get("message"))
            for key in ("reasoning_content", "reasoning"):
                if isinstance(delta.get(key), str):
                    self._say(turn, 0, "thinking", delta[key])
                    break
            content = delta.get("content")
            for part in parts(content) if isinstance(content, list) else ():
                self._say(turn, 0, part.kind, part.text)
            self._say(turn, 0, "text", content)
            self._say(turn, 0, "text", choice.get("text"))
            self._say(turn, 0, "refusal", delta.get("refusal"))
            self._say(turn, 0, "text", as_object(delta.get("audio")).get("transcript"))
            for image in objects(delta.get("images")):
                self._slot(turn, ("image", len(self._slots.get(str(turn), {}))), "image").done = parts(image)
            for position, call in enumerate(objects(delta.get("tool_calls"))):
                function = as_object(call.get("function") or call.get("custom"))
                key = call.get("index", position)
                self._call(turn, key, function.get("name"), call.get("id"), function.get("arguments"))
            legacy = as_object(delta.get("function_call"))
            if legacy:
                self._call(turn, "legacy", legacy.get("name"), None, legacy.get("arguments"))

    def _gemini(self, event: dict[str, Any]) -> None:
        for candidate in objects(event.get("candidates")):
            turn = candidate.get("index", 0)
            slots = self._slots.setdefault(str(turn), {})
            for part in parts(as_object(candidate.get("content")).get("parts")):
                last = next(reversed(slots.values()), None)
                if part.kind == "tool_call" and not part.name and last is not None and last.kind == "tool_call":
                    continue  # the arguments of a call come in pieces of a kind of their own
                if (
                    part.kind in ("text", "thinking")
                    and last is not None
                    and last.kind == part.kind
                    and last.done is None
                ):
                    last.texts.append(part.text)
                elif part.kind in ("text", "thinking"):
                    slots[str(len(slots))] = _Slot(part.kind, texts=[part.text])
                else:
                    slots[str(len(slots))] = _Slot(part.kind, done=[part])

    def _responses(self, kind: str, event: dict[str, Any]) -> None:
        from heliproxy.conversation.response import output_parts

        response = as_object(event.get("response"))
        turn = word(event.get("response_id") or response.get("id")) or "0"
        item = event.get("output_index", event.get("item_id", 0))
        delta = event.get("delta")
        if kind in ("response.completed", "response.incomplete", "response.failed", "response.done"):
            whole = output_parts(response.get("output"))
            if whole:
                self._whole[turn if turn in self._slots else self._only(turn)] = whole
            if response.get("error"):
                self._fail(response)
        elif kind == "response.output_item.done":
            entry = as_object(event.get("item"))
            done = output_parts([entry])
            if done:
                slots = self._slots.setdefault(turn if "response_id" in event else "0", {})
                for key in [key for key in slots if key.startswith(f"({item!r},")]:
                    del slots[key]
                slots[f"({item!r}, 'done')"] = _Slot("data", done=done)
        elif kind == "response.output_item.added":
            entry = as_object(event.get("item"))
            if "name" in entry:
                self._call("0", item, entry.get("name"), entry.get("call_id") or entry.get("id"), None)
        elif kind.endswith(
            ("function_call_arguments.delta", "custom_tool_call_input.delta", "mcp_call_arguments.delta")
        ):
            self._call("0", item, None, event.get("call_id"), delta)
        elif kind.endswith(".delta") and "audio.delta" not in kind and "code" not in kind:
            shown = "thinking" if "reasoning" in kind else "refusal" if "refusal" in kind else "text"
            self._say(turn if "response_id" in event else "0", item, shown, delta)

    def _only(self, turn: str) -> str:
        """The one answer being assembled, whose deltas did not name their response."""
        return "0" if "0" in self._slots or not self._slots else turn

    def _anthropic(self, kind: str, event: dict[str, Any]) -> None:
        index = event.get("index", 0)
        if kind == "completion":
            self._say(0, 0, "text", event.get("completion"))
        elif kind == "content_block_start":
            self._start_block(index, as_object(event.get("content_block")))
        elif kind == "content_block_delta":
            delta = as_object(event.get("delta"))
            slot = self._slot(0, index, "text")
            for field_name, shown in (("text", "text"), ("thinking", "thinking"), ("partial_json", slot.kind)):
                if isinstance(delta.get(field_name), str):
                    slot.kind = shown
                    slot.texts.append(delta[field_name])
        elif kind == "message_start":
            for position, item in enumerate(objects(as_object(event.get("message")).get("content"))):
                self._start_block(position, item)

    def _start_block(self, index: Any, start: dict[str, Any]) -> None:
        kind = start.get("type")
        if kind in ("tool_use", "server_tool_use", "mcp_tool_use"):
            slot = self._slot(0, index, "tool_call")
            slot.name, slot.id = word(start.get("name")), word(start.get("id"))
            if start.get("input"):
                slot.texts.append(compact(start["input"]))
        elif kind in ("text", "thinking"):
            slot = self._slot(0, index, str(kind))
            text = start.get(str(kind))
            if isinstance(text, str) and text:
                slot.texts.append(text)
        else:
            self._slot(0, index, "data").done = block(start)

    def _cohere(self, kind: str, event: dict[str, Any]) -> None:
        index = event.get("index", 0)
        message = as_object(as_object(event.get("delta")).get("message"))
        content = message.get("content")
        if kind in ("content-delta", "content-start"):
            self._say(0, index, "text", as_object(content).get("text"))
            self._say(0, index, "thinking", as_object(content).get("thinking"))
        elif kind == "tool-plan-delta":
            self._say(0, "plan", "thinking", message.get("tool_plan"))
        elif kind in ("tool-call-start", "tool-call-delta"):
            call = as_object(message.get("tool_calls"))
            function = as_object(call.get("function"))
            self._call(0, index, function.get("name"), call.get("id"), function.get("arguments"))

    def _converse(self, name: str, event: dict[str, Any]) -> None:
        index = event.get("contentBlockIndex", 0)
        if name == "contentBlockStart":
            use = as_object(as_object(event.get("start")).get("toolUse"))
            if use:
                self._call(0, index, use.get("name"), use.get("toolUseId"), None)
        elif name == "contentBlockDelta":
            delta = as_object(event.get("delta"))
            self._say(0, index, "text", delta.get("text"))
            self._say(0, index, "thinking", as_object(delta.get("reasoningContent")).get("text"))
            use = as_object(delta.get("toolUse"))
            if use:
                self._call(0, index, None, None, use.get("input"))

    def _other(self, name: str, kind: str, event: dict[str, Any]) -> None:
        message = event.get("message")
        if event.get("error") or kind == "error" or name == "error" or name.endswith("Exception"):
            self._fail(event if event.get("error") or "message" not in event else {"error": event})
        elif isinstance(message, dict):  # Ollama chat
            self._say(0, 0, "thinking", message.get("thinking"))
            self._say(0, 0, "text", message.get("content"))
            for position, call in enumerate(objects(message.get("tool_calls"))):
                function = as_object(call.get("function"))
                key = ("call", len(self._slots.get("0", {})), position)
                self._call(0, key, function.get("name"), call.get("id"), function.get("arguments"))
        elif event.get("event_type") == "tool-calls-generation":
            for position, call in enumerate(objects(event.get("tool_calls"))):
                self._call(0, position, call.get("name"), None, call.get("parameters"))
        elif event.get("event_type") == "text-generation" or "done" in event:
            self._say(0, 0, "thinking", event.get("thinking"))
            self._say(0, 0, "text", event.get("text") if "text" in event else event.get("response"))
        elif kind.endswith(("text.delta", "image_generation.completed", "image_edit.completed")):
            self._say(0, 0, "text", event.get("delta"))
            if event.get("b64_json"):
                self._slot(0, "image", "image").done = [encoded("image", event["b64_json"], "image/png")]
        else:
            self._native(event)

    def _native(self, event: dict[str, Any]) -> None:
        """Events that carry text under a name of their own (Bedrock's native streams, Replicate, HF)."""
        for key in ("outputText", "generation", "completion", "text", "output", "token", "delta"):
            value = event.get(key)
            if isinstance(value, dict):
                value = value.get("text")
            if isinstance(value, str):
                self._say(0, 0, "text", value)
                return
        for key in ("contentBlockStart", "contentBlockDelta"):  # Nova's native stream names events by their key
            if isinstance(event.get(key), dict):
                self._converse(key, event[key])
                return
        if not {"usage", "id", "messageStart", "messageStop", "contentBlockStop", "metadata", "is_finished"} & set(
            event
        ):
            self._unknown.append(event)
