"""The answer of a logged call: what was sent as `json` or `textBody`, which wire format it is, what it says.

Clients send whole JSON, JSON as text, server-sent events, one chunk a line, lists of chunks, prose and tracebacks
(helicone-api.md section 2.1). Nothing here raises on any of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from heliproxy.exchange import Reply, Usage
from heliproxy.formats import FORMATS
from heliproxy.formats.openai_usage import read_usage
from heliproxy.formats.reading import as_object, clean, count, first_count, load, objects, string

PREVIEW = 500
MAX_EVENTS = 200_000
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

_TRACEBACK = "Traceback (most recent call last):"
_EXCEPTION = re.compile(r"^([A-Za-z_][\w.]*)(?:: ?(.*))?$")
_BY_PROVIDER = {"anthropic": "anthropic_messages", "google": "gemini_generate", "vertex": "gemini_generate"}
_ANTHROPIC_EVENTS = (
    "message", "message_start", "message_delta", "message_stop", "content_block_start", "content_block_delta",
    "content_block_stop", "ping",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Logged:
    """A logged answer, sorted."""

    kind: str
    """json: one JSON value. stream: events, one payload each. text: prose."""
    body: bytes
    """As it is kept."""
    content_type: str
    first: Mapping[str, Any]
    """The JSON object, or the first event; empty for prose."""
    events: tuple[tuple[str, bytes], ...] = ()
    """Of a stream: (event name or "", payload)."""


def read_logged(value: Any, text: str | None) -> Logged:
    """Sort an answer: `value` is the log's `json`, `text` its `textBody`; text that says something wins."""
    if text is not None and text.strip() and not (isinstance(value, dict) and _tells(value)):
        return _from_text(text)
    streamed = value.get("streamed_data") if isinstance(value, dict) else None
    if isinstance(streamed, str) and streamed.strip():
        return _from_text(streamed)
    if isinstance(streamed, list):
        return _from_chunks(streamed)
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return _from_chunks(value)
    return Logged("json", dump(value), "application/json", as_object(value))


def _tells(value: Mapping[str, Any]) -> bool:
    """Whether an object holds an answer; Python's helpers put the two `_type` fields into empty ones."""
    return any(name not in ("_type", "toolName", "status") for name in value)


def _from_text(text: str) -> Logged:
    body = text.encode("utf-8", "replace")
    start = text.lstrip("\ufeff \t\r\n")
    if start.startswith(("data:", "event:", "id:", "retry:", ":")):
        events = _sse_events(start)
        if events:
            return Logged("stream", body, "text/event-stream", _first(events), events)
    if start[:1] in ("{", "["):
        whole = load(start)
        if isinstance(whole, dict) and _is_chunk(whole):
            events = (("", start.strip().encode("utf-8", "replace")),)
            return Logged("stream", body, "application/x-ndjson", whole, events)
        if isinstance(whole, dict):
            return Logged("json", body, "application/json", whole)
        if isinstance(whole, list) and whole and all(isinstance(item, dict) for item in whole):
            chunks = _from_chunks(whole)
            return Logged("stream", body, "application/json", chunks.first, chunks.events)
        lines = [line for line in start.splitlines() if line.strip()][:MAX_EVENTS]
        if lines and all(isinstance(load(line), dict) for line in lines):
            events = tuple(("", line.encode("utf-8", "replace")) for line in lines)
            return Logged("stream", body, "application/x-ndjson", _first(events), events)
    return Logged("text", body, "text/plain; charset=utf-8", {})


def _is_chunk(value: Mapping[str, Any]) -> bool:
    """Whether this is one event of a stream, alone."""
    return "delta" in next(iter(objects(value.get("choices"))), {}) or value.get("object") == "chat.completion.chunk"


def _from_chunks(chunks: list[Any]) -> Logged:
    """A list of chunks: objects, JSON texts or raw `data:` lines."""
    events: list[tuple[str, bytes]] = []
    for chunk in chunks[:MAX_EVENTS]:
        if isinstance(chunk, str):
            raw = chunk.lstrip().startswith(("data:", "event:"))
            events += _sse_events(chunk) if raw else [("", chunk.encode("utf-8", "replace"))]
        else:
            events.append(("", dump(chunk)))
    body = b"".join(_frame(name, data) for name, data in events)
    return Logged("stream", body, "text/event-stream", _first(tuple(events)), tuple(events))


def _sse_events(text: str) -> tuple[tuple[str, bytes], ...]:
    """Events of a text whose blank lines may have been lost: each `data:` line is one."""
    events: list[tuple[str, bytes]] = []
    name = ""
    for line in text.splitlines()[: 4 * MAX_EVENTS]:
        field, colon, value = line.partition(":")
        if field == "event":
            name = value.strip()
        elif field == "data" and colon:
            events.append((name, value.strip().encode("utf-8", "replace")))
            name = ""
    return tuple(events)


def _first(events: tuple[tuple[str, bytes], ...]) -> Mapping[str, Any]:
    for _, data in events[:20]:
        found = load(data)
        if isinstance(found, dict) and found:
            return found
    return {}


def _frame(name: str, data: bytes) -> bytes:
    head = b"event: " + name.encode("utf-8", "replace") + b"\n" if name else b""
    return head + b"data: " + data + b"\n\n"


# -- the format -----------------------------------------------------------------------------------------------------


def guess_format(provider: str, asked: Any, logged: Logged) -> str:
    """The wire format of a logged call by the shape of its answer, else of its request.

    One we do not know is read like a chat, which finds little.
    """
    return _format_of_answer(logged.first) or _format_of_request(provider, asked)


def _format_of_answer(answer: Mapping[str, Any]) -> str:
    kind, about = answer.get("type"), answer.get("object")
    choice = next(iter(objects(answer.get("choices"))), {})
    if about == "text_completion" or ("text" in choice and "message" not in choice and "delta" not in choice):
        return "openai_completions"
    if "message" in choice or "delta" in choice or (isinstance(about, str) and about.startswith("chat.completion")):
        return "openai_chat"
    if about == "response" or (isinstance(kind, str) and kind.startswith("response.")):
        return "openai_responses"
    if isinstance(kind, str) and kind in _ANTHROPIC_EVENTS:
        return "anthropic_messages"
    if "candidates" in answer or "usageMetadata" in answer:
        return "gemini_generate"
    if about == "list" and any("embedding" in item for item in objects(answer.get("data"))[:1]):
        return "openai_embeddings"
    if isinstance(answer.get("message"), dict) and "done" in answer:
        return "ollama_chat"
    if isinstance(as_object(answer.get("output")).get("message"), dict) and "stopReason" in answer:
        return "bedrock_converse"
    usage = as_object(answer.get("usage"))
    if {"cache_read_input_tokens", "cache_creation_input_tokens"} & usage.keys() and "input_tokens" in usage:
        return "anthropic_messages"
    return ""


def _format_of_request(provider: str, asked: Any) -> str:
    if not isinstance(asked, dict):
        return "openai_chat"
    if "contents" in asked:
        return "gemini_generate"
    if "messages" in asked or "anthropic_version" in asked:
        return _BY_PROVIDER.get(provider, "openai_chat") if provider != "google" else "openai_chat"
    model = asked.get("model")
    if "input" in asked and isinstance(model, str):
        return "openai_embeddings" if "embed" in model else "openai_responses"
    return "openai_completions" if "prompt" in asked else "openai_chat"


# -- what it says ---------------------------------------------------------------------------------------------------


def read_reply(
    form: str, logged: Logged, status: int | None, *, cost_usd: float | None = None, cut: bool = False
) -> Reply:
    """Read a logged answer. `cut`: the client says that it left before the end."""
    if status is not None and not 200 <= status < 300:
        reply = _error_of(form, logged)
    elif logged.kind == "text":
        reply = _prose(logged.body.decode("utf-8", "replace"))
    elif logged.kind == "stream":
        reply = _streamed(form, logged)
    else:
        reply = _whole(form, logged)
    if reply.usage is None and logged.kind != "text":
        reply.usage, reply.usage_json = _odd_usage(logged.first)
    if cost_usd is not None:
        reply.cost_usd = cost_usd
    if cut:
        reply.complete = False
    return reply


def read_event(logged: Logged, status: int, cost_usd: float | None) -> Reply:
    """Read the answer of a call that was no model's (a tool, a vector database): it used no tokens, and is no chat."""
    text = logged.body[:PREVIEW].decode("utf-8", "replace")
    failed = f"HTTP {status}" if not 200 <= status < 300 else None
    return Reply(usage=Usage(input_tokens=0, output_tokens=0), cost_usd=cost_usd or 0.0, preview=text, error=failed)


def _error_of(form: str, logged: Logged) -> Reply:
    if logged.kind == "text":
        text = logged.body.decode("utf-8", "replace")
        return _traceback(text) or Reply(error=clean(text.strip().partition("\n")[0][:PREVIEW]), preview=text[:PREVIEW])
    known = FORMATS.get(form) or FORMATS["openai_chat"]
    reply = known.parse_error(logged.body)
    if reply.preview == "" and reply.error is None and logged.kind == "stream":
        return _streamed(form, logged)
    return reply


def _prose(text: str) -> Reply:
    found = _traceback(text)
    if found is not None:
        # Python's helpers say 200 whatever happened; the status stays what the client sent.
        found.error_status = 200
        return found
    return Reply(text=clean(text), preview=clean(text[:PREVIEW]))


def _traceback(text: str) -> Reply | None:
    """The error of a Python traceback, behind which partial output may follow; None for other texts."""
    if not text.lstrip().startswith(_TRACEBACK):
        return None
    # The last one counts of several that caused each other; its frames are indented, the exception is not.
    frames = text.rpartition(_TRACEBACK)[2].splitlines()[1:]
    line = next((frame for frame in frames if frame[:1].strip()), "")
    found = _EXCEPTION.match(line)
    kind, message = (found[1], found[2]) if found else ("error", line)
    return Reply(error_type=kind[:200], error=clean((message or kind)[:4000]), preview=clean(text.strip()[:PREVIEW]))


def _whole(form: str, logged: Logged) -> Reply:
    known = FORMATS.get(form)
    reply = known.parse_response(logged.body, {}) if known is not None and logged.first else Reply()
    if not reply.preview and not reply.text and logged.first and reply.error is None:
        text = logged.body[:PREVIEW].decode("utf-8", "replace")
        reply.preview = text if any(name != "object" for name in logged.first) else ""
    if reply.model is None:
        reply.model = string(logged.first.get("model"))
    return reply


def _streamed(form: str, logged: Logged) -> Reply:
    known = FORMATS.get(form)
    if known is None:
        return Reply(preview=logged.body[:PREVIEW].decode("utf-8", "replace"))
    if form == "ollama_chat":
        parser = known.stream("application/x-ndjson")
        parser.feed(b"".join(data + b"\n" for _, data in logged.events))
    else:
        parser = known.stream("text/event-stream")
        parser.feed(b"".join(_frame(name, data) for name, data in logged.events))
    reply = parser.result()
    if not reply.complete and (reply.usage is None or reply.finish_reason is not None):
        # The client says it was over, and nothing in the stream says that it was cut.
        reply.complete = True
    return reply


def _odd_usage(answer: Mapping[str, Any]) -> tuple[Usage | None, Any]:
    """Usage where Helicone's guide for custom models lets it be, in an answer of no known format."""
    usage = as_object(answer.get("usage"))
    found = read_usage(usage)
    if found is not None:
        return found, usage
    gemini = as_object(answer.get("usageMetadata"))
    before = first_count(gemini.get("promptTokenCount"), answer.get("prompt_token_count"))
    after = first_count(gemini.get("candidatesTokenCount"), answer.get("generation_token_count"))
    if before is None and after is None:
        return None, None
    thoughts = count(gemini.get("thoughtsTokenCount"))
    if after is not None and thoughts:
        after += thoughts
    told = gemini or {name: answer[name] for name in ("prompt_token_count", "generation_token_count") if name in answer}
    return Usage(input_tokens=before, output_tokens=after, reasoning_tokens=thoughts), told


def dump(value: Any) -> bytes:
    """A JSON value as it is kept."""
    return _encode(value).encode("utf-8", "replace")
