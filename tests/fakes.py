"""Fake upstreams on loopback: real sockets, scripted answers, everything received is kept."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

Step = bytes | threading.Event | float | str
"""Of a streamed answer: bytes are sent at once, an event is waited for, a number is slept, "cut" hangs up."""


@dataclass
class Asked:
    """One request as the upstream saw it."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((v for n, v in self.headers if n.lower() == name.lower()), None)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: Sequence[tuple[str, str]] = (("content-type", "application/json"),)
    steps: Sequence[Step] | None = None
    """Instead of `body`: a chunked response, one chunk a bytes step."""
    cut_before: bool = False
    """Close the connection instead of answering."""


def json_answer(value: Any, status: int = 200, **headers: str) -> Answer:
    fields = [("content-type", "application/json"), *((k.replace("_", "-"), v) for k, v in headers.items())]
    return Answer(status, json.dumps(value).encode(), fields)


def sse_answer(steps: Sequence[Step], **headers: str) -> Answer:
    fields = [("content-type", "text/event-stream"), *((k.replace("_", "-"), v) for k, v in headers.items())]
    return Answer(200, steps=steps, headers=fields)


Handler = Callable[[Asked], Answer]


@dataclass
class Upstream:
    """`with Upstream(handler) as up: up.url`; answers every request by `handler`, in a thread of its own."""

    handler: Handler
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    context: ssl.SSLContext | None = None
    """For TLS; None: plain."""

    def __enter__(self) -> Upstream:
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(5)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(ready))
        self._loop.close()

    async def _serve(self, ready: threading.Event) -> None:
        self._stopped = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._client, "127.0.0.1", 0, ssl=self.context)
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
        self.connections += 1
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return False
        first, *lines = head.decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ", 2)
        headers = [(n, v.strip()) for n, _, v in (line.partition(":") for line in lines if line)]
        lower = {n.lower(): v for n, v in headers}
        body = await self._body(reader, lower)
        asked = Asked(method, path, headers, body)
        self.asked.append(asked)
        answer = await asyncio.get_running_loop().run_in_executor(None, self.handler, asked)
        if answer.cut_before:
            return False
        return await self._send(writer, answer)

    async def _body(self, reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
        if "chunked" in headers.get("transfer-encoding", ""):
            parts = []
            while size := int(await reader.readline(), 16):
                parts.append(await reader.readexactly(size))
                await reader.readline()
            await reader.readline()
            return b"".join(parts)
        return await reader.readexactly(int(headers.get("content-length", "0")))

    async def _send(self, writer: asyncio.StreamWriter, answer: Answer) -> bool:
        lines = [f"HTTP/1.1 {answer.status} X", *(f"{n}: {v}" for n, v in answer.headers)]
        if answer.steps is None:
            lines.append(f"content-length: {len(answer.body)}")
            writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + answer.body)
            await writer.drain()
            return True
        lines.append("transfer-encoding: chunked")
        writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n")
        for step in answer.steps:
            if isinstance(step, bytes):
                writer.write(b"%x\r\n%s\r\n" % (len(step), step))
                await writer.drain()
            elif isinstance(step, threading.Event):
                await asyncio.get_running_loop().run_in_executor(None, step.wait, 10)
            elif step == "cut":
                await writer.drain()
                return False
            else:
                assert isinstance(step, (int, float))
                await asyncio.sleep(step)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


def chat_answer(text: str = "Hello!", model: str = "gpt-4o-mini-2024-07-18", **usage: Any) -> Any:
    """A chat completion as OpenAI answers it."""
    counts = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100} | usage
    message = {"role": "assistant", "content": text}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1763900000,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": counts,
    }


def chat_chunks(
    words: Sequence[str], model: str = "gpt-4o-mini-2024-07-18", usage: dict[str, Any] | None = None
) -> list[bytes]:
    """The events of a streamed chat completion, `[DONE]` included, one bytes object an event."""

    def event(**fields: Any) -> bytes:
        base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1763900000, "model": model}
        return b"data: " + json.dumps(base | fields).encode() + b"\n\n"

    def delta(reason: str | None = None, **fields: Any) -> bytes:
        return event(choices=[{"index": 0, "delta": fields, "finish_reason": reason}])

    events = [delta(role="assistant", content=""), *(delta(content=w) for w in words), delta("stop")]
    if usage is not None:
        events.append(event(choices=[], usage=usage))
    return [*events, b"data: [DONE]\n\n"]


def message_answer(text: str = "Hello!", model: str = "claude-opus-4-8", **usage: Any) -> Any:
    """A message as Anthropic answers it."""
    counts = {"input_tokens": 25, "output_tokens": 9} | usage
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": counts,
    }


def message_events(
    words: Sequence[str], model: str = "claude-opus-4-8", output_tokens: int = 9, **usage: Any
) -> list[bytes]:
    """The events of a streamed message, one bytes object an event."""

    def event(name: str, **fields: Any) -> bytes:
        return f"event: {name}\ndata: {json.dumps({'type': name} | fields)}\n\n".encode()

    counts = {"input_tokens": 25, "output_tokens": 1} | usage
    start = message_answer(model=model) | {"content": [], "stop_reason": None, "usage": counts}
    return [
        event("message_start", message=start),
        event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        event("ping"),
        *(event("content_block_delta", index=0, delta={"type": "text_delta", "text": w}) for w in words),
        event("content_block_stop", index=0),
        event(
            "message_delta",
            delta={"stop_reason": "end_turn", "stop_sequence": None},
            usage={"output_tokens": output_tokens},
        ),
        event("message_stop"),
    ]
