"""A fake of four providers on one loopback port, for the coding agents that test_agents.py runs.

Speaks Anthropic messages, OpenAI chat completions and Responses (SSE and WebSocket), and Gemini, streamed or whole, as
the request asks. Knows nothing else (404), except how many tokens a prompt has. The usage of every answer is another,
so that a row mixed up with its neighbour is noticed. By hand (and for scripts/soak.py):
`python fake_llm.py [LENGTH]`, which prints its address and serves until its stdin is closed.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from websockets.frames import Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

WORDS = ("Hello", " there", "!")
NOT_FOUND = {"error": {"type": "not_found_error", "message": "not found"}}
LINGER_SECONDS = 0.3
"""Between the last event and the end of the response. Some clients hang up in between."""


@dataclass(frozen=True)
class Call:
    """One call to a model as this upstream saw it, with the usage it was answered with."""

    number: int
    """Ends the id of the answer."""
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    usage: dict[str, Any]
    transport: str


@dataclass
class FakeLlm:
    """`with FakeLlm() as up: up.url`; serves in a thread of its own."""

    calls: list[Call] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    """Method and path of every request that is no call to a model."""
    keep: bool = True
    words: tuple[str, ...] = WORDS
    """Of answers over a WebSocket; each is a message of its own."""

    def __enter__(self) -> FakeLlm:
        self._loop = asyncio.new_event_loop()
        self._numbers = itertools.count(1)
        ready = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(ready),), daemon=True)
        self._thread.start()
        ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)
        self._loop.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, ready: threading.Event) -> None:
        self._stopped = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._client, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._stopped.wait()
        server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ", 2)
        headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines if line)}
        if headers.get("upgrade", "").lower() == "websocket":
            await self._socket(head, path, headers, reader, writer)
            return False
        body = await _read_body(reader, headers)
        found = self._answer(method, path, headers, body)
        if isinstance(found, dict):
            data = json.dumps(found).encode()
            status = 404 if found is NOT_FOUND else 200
            writer.write(_head("application/json", f"content-length: {len(data)}", status) + data)
            await writer.drain()
            return True
        writer.write(_head("text/event-stream", "transfer-encoding: chunked"))
        for event in found:
            data = event.encode()
            writer.write(b"%x\r\n%s\r\n" % (len(data), data))
            await writer.drain()
        await asyncio.sleep(LINGER_SECONDS)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    def _answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> dict[str, Any] | list[str]:
        """The whole answer as JSON, or the events of a streamed one."""
        plain = path.partition("?")[0]
        asked = _json(body)
        number = next(self._numbers)
        if method != "POST":
            kind = None
        elif plain == "/v1/messages":
            kind = "messages"
        elif plain == "/v1/chat/completions":
            kind = "chat"
        elif plain.endswith("/responses"):
            kind = "responses"
        else:
            kind = "gemini" if re.search(r"/models/[^/]+:(stream)?[gG]enerateContent$", plain) else None
        if kind is None:
            self.others.append(f"{method} {path}")
            return {"input_tokens": 7} if plain.endswith("/count_tokens") else NOT_FOUND
        usage = _USAGE[kind](number)
        if self.keep:
            self.calls.append(Call(number, path, headers, asked, usage, "http"))
        if kind == "gemini":
            model = re.findall(r"/models/([^/:]+):", plain)[0]
            streamed = "streamGenerateContent" in plain
        else:
            model, streamed = str(asked.get("model")), asked.get("stream") is True
        return (_EVENTS if streamed else _WHOLE)[kind](number, model, usage, asked)

    async def _socket(
        self,
        head: bytes,
        path: str,
        headers: dict[str, str],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Responses over a WebSocket: every `response.create` is answered with the events of one response."""
        protocol = ServerProtocol()
        data: bytes = head
        message = b""
        while True:
            protocol.receive_data(data) if data else protocol.receive_eof()
            for event in protocol.events_received():
                if isinstance(event, Request):
                    protocol.send_response(protocol.accept(event))
                elif event.opcode in (Opcode.TEXT, Opcode.CONT):
                    message += event.data
                    if event.fin:
                        for text in self._socket_answer(path, headers, json.loads(message)):
                            protocol.send_text(text.encode())
                        message = b""
            for out in protocol.data_to_send():
                if out:
                    writer.write(out)
            await writer.drain()
            if not data or protocol.close_expected():
                return
            data = await reader.read(65536)

    def _socket_answer(self, path: str, headers: dict[str, str], asked: dict[str, Any]) -> Iterator[str]:
        if asked.get("type") != "response.create":
            return
        number = next(self._numbers)
        warm_up = asked.get("generate") is False
        usage = _NO_TOKENS if warm_up else _responses_usage(number)
        if self.keep and not warm_up:
            self.calls.append(Call(number, path, headers, asked, usage, "websocket"))
        for event in _responses_objects(number, str(asked.get("model")), usage, () if warm_up else self.words):
            yield json.dumps(event)


async def _read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if "chunked" not in headers.get("transfer-encoding", ""):
        return await reader.readexactly(int(headers.get("content-length", "0")))
    parts = []
    while size := int(await reader.readline(), 16):
        parts.append(await reader.readexactly(size))
        await reader.readline()
    await reader.readline()
    return b"".join(parts)


def _head(content_type: str, framing: str, status: int = 200) -> bytes:
    return f"HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\n{framing}\r\n\r\n".encode()


def _json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


# ------------------------------------------------------------------------------------------------------------------
# Anthropic messages


def _messages_usage(number: int) -> dict[str, Any]:
    return {
        "input_tokens": 25 + number,
        "cache_creation_input_tokens": 1000,
        "cache_read_input_tokens": 2000 + number,
        "cache_creation": {"ephemeral_5m_input_tokens": 1000, "ephemeral_1h_input_tokens": 0},
        "output_tokens": 9 + number,
        "service_tier": "standard",
    }


def _message(number: int, model: str, usage: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": "".join(WORDS)}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": usage,
    }


def _message_events(number: int, model: str, usage: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    start = _message(number, model, usage | {"output_tokens": 1}, asked) | {"content": [], "stop_reason": None}
    delta = {"stop_reason": "end_turn", "stop_sequence": None}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}} for word in WORDS),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": delta, "usage": {"output_tokens": usage["output_tokens"]}},
        {"type": "message_stop"},
    ]
    return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events]


# ------------------------------------------------------------------------------------------------------------------
# OpenAI chat completions


def _chat_usage(number: int) -> dict[str, Any]:
    prompt, completion = 1000 + number, 60 + number
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 300, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 20},
    }


def _chat(number: int, model: str, usage: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    message = {"role": "assistant", "content": "".join(WORDS)}
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 1763900000,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": usage,
    }


def _chat_events(number: int, model: str, usage: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    base = {"id": f"chatcmpl-{number}", "object": "chat.completion.chunk", "created": 1763900000, "model": model}

    def chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        return base | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

    chunks = [chunk({"role": "assistant", "content": ""}), *(chunk({"content": w}) for w in WORDS), chunk({}, "stop")]
    if (asked.get("stream_options") or {}).get("include_usage"):
        chunks.append(base | {"choices": [], "usage": usage})
    return [*(f"data: {json.dumps(c)}\n\n" for c in chunks), "data: [DONE]\n\n"]


# ------------------------------------------------------------------------------------------------------------------
# OpenAI Responses

_NO_TOKENS = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}


def _responses_usage(number: int) -> dict[str, Any]:
    given, answered = 1200 + number, 70 + number
    return {
        "input_tokens": given,
        "input_tokens_details": {"cached_tokens": 500 + number},
        "output_tokens": answered,
        "output_tokens_details": {"reasoning_tokens": 30},
        "total_tokens": given + answered,
    }


def _response(number: int, model: str, usage: dict[str, Any], words: tuple[str, ...] = WORDS) -> dict[str, Any]:
    content = [{"type": "output_text", "text": "".join(words), "annotations": []}]
    item = {"id": f"item_{number}", "type": "message", "role": "assistant", "status": "completed", "content": content}
    return {
        "id": f"resp_{number}",
        "object": "response",
        "created_at": 1763900000,
        "status": "completed",
        "model": model,
        "output": [item] if words else [],
        "usage": usage,
    }


def _responses_objects(
    number: int, model: str, usage: dict[str, Any], words: tuple[str, ...] = WORDS
) -> Iterator[dict[str, Any]]:
    done = _response(number, model, usage, words)
    started = done | {"status": "in_progress", "output": [], "usage": None}
    where = {"item_id": f"item_{number}", "output_index": 0, "content_index": 0}
    events: list[dict[str, Any]] = [{"type": "response.created", "response": started}]
    for item in done["output"]:
        text = "".join(words)
        events += [
            {
                "type": "response.output_item.added",
                "output_index": 0,
                "item": item | {"status": "in_progress", "content": []},
            },
            {
                "type": "response.content_part.added",
                "part": {"type": "output_text", "text": "", "annotations": []},
                **where,
            },
            *({"type": "response.output_text.delta", "delta": word, **where} for word in words),
            {"type": "response.output_text.done", "text": text, **where},
            {"type": "response.content_part.done", "part": item["content"][0], **where},
            {"type": "response.output_item.done", "output_index": 0, "item": item},
        ]
    events.append({"type": "response.completed", "response": done})
    for sequence, event in enumerate(events):
        yield event | {"sequence_number": sequence}


def _responses_events(number: int, model: str, usage: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    return [f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in _responses_objects(number, model, usage)]


# ------------------------------------------------------------------------------------------------------------------
# Gemini


def _gemini_usage(number: int) -> dict[str, Any]:
    return {
        "promptTokenCount": 800 + number,
        "cachedContentTokenCount": 200,
        "candidatesTokenCount": 40 + number,
        "thoughtsTokenCount": 10,
        "totalTokenCount": 850 + 2 * number,
    }


def _gemini(number: int, model: str, usage: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    return _candidate("".join(WORDS), "STOP", number, model) | {"usageMetadata": usage}


def _gemini_events(number: int, model: str, usage: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    early = {"promptTokenCount": usage["promptTokenCount"], "totalTokenCount": usage["promptTokenCount"]}
    parts = [_candidate(word, None, number, model) | {"usageMetadata": early} for word in WORDS[:-1]]
    parts.append(_candidate(WORDS[-1], "STOP", number, model) | {"usageMetadata": usage})
    return [f"data: {json.dumps(part)}\r\n\r\n" for part in parts]


def _candidate(text: str, reason: str | None, number: int, model: str) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0}
    if reason is not None:
        candidate["finishReason"] = reason
    return {"candidates": [candidate], "modelVersion": model, "responseId": f"gem-{number}"}


_USAGE = {"messages": _messages_usage, "chat": _chat_usage, "responses": _responses_usage, "gemini": _gemini_usage}
_WHOLE = {
    "messages": _message,
    "chat": _chat,
    "responses": lambda number, model, usage, _asked: _response(number, model, usage),
    "gemini": _gemini,
}
_EVENTS = {
    "messages": _message_events,
    "chat": _chat_events,
    "responses": _responses_events,
    "gemini": _gemini_events,
}


if __name__ == "__main__":
    with FakeLlm(keep=False, words=WORDS * int(sys.argv[1] if len(sys.argv) > 1 else 1)) as fake:
        print(fake.url, flush=True)
        sys.stdin.read()
