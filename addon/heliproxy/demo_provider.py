"""A stand-in for OpenAI and Anthropic on loopback: the demo's upstream, answering without a key or a network."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

ANSWERS = {
    "proxy": "A proxy that counts is worth two that guess.",
    "France": "Paris is the capital of France.",
    "water": "Two hydrogen atoms and one oxygen atom make one molecule of water.",
    "measure": "Yes. Measure first, then decide.",
    "word": "One word comes after the other.",
    "go?": "Go to Lisbon in spring.",
    "hotel": "The Alfama has small hotels with a view.",
    "train": "The night train leaves at nine.",
}
CHUNK_SECONDS = 0.01


class DemoProvider:
    """Serves `/v1/chat/completions` and `/v1/messages`, whole and streamed, on a free loopback port."""

    def __init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> DemoProvider:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
        path = self.path.partition("?")[0]
        if path == "/v1/chat/completions":
            self._chat(body)
        elif path == "/v1/messages":
            self._messages(body)
        else:
            self._json(404, {"error": {"type": "invalid_request_error", "message": f"no such endpoint: {path}"}})

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _chat(self, body: dict[str, Any]) -> None:
        model = body.get("model", "")
        if "nope" in model:
            message = f"The model `{model}` does not exist or you do not have access to it."
            error = {"message": message, "type": "invalid_request_error", "param": None, "code": "model_not_found"}
            self._json(404, {"error": error})
            return
        text, words = _answer(body)
        usage = {
            "prompt_tokens": words + 40,
            "completion_tokens": len(text.split()) + 4,
            "total_tokens": words + 44 + len(text.split()),
            "prompt_tokens_details": {"cached_tokens": 32, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }
        head = {"id": f"chatcmpl-{time.time_ns()}", "created": int(time.time()), "model": model}
        if not body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            self._json(200, head | {"object": "chat.completion", "choices": [choice], "usage": usage})
            return
        self._events(_chat_events(head | {"object": "chat.completion.chunk"}, text, usage, body))

    def _messages(self, body: dict[str, Any]) -> None:
        text, words = _answer(body)
        usage = {
            "input_tokens": words + 12,
            "cache_creation_input_tokens": 400,
            "cache_read_input_tokens": 1200,
            "cache_creation": {"ephemeral_5m_input_tokens": 400, "ephemeral_1h_input_tokens": 0},
            "output_tokens": len(text.split()) + 6,
        }
        message = {
            "id": f"msg_{time.time_ns()}",
            "type": "message",
            "role": "assistant",
            "model": body.get("model", ""),
            "content": [{"type": "text", "text": text}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": usage,
        }
        if not body.get("stream"):
            self._json(200, message)
            return
        self._events(_message_events(message, text, usage))

    def _json(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _events(self, events: Iterator[str]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for event in events:
            data = event.encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()
            time.sleep(CHUNK_SECONDS)
        self.wfile.write(b"0\r\n\r\n")


def _answer(body: dict[str, Any]) -> tuple[str, int]:
    """An answer to the question, always the same one, and the question's length in words."""
    asked = json.dumps(body.get("messages", []))
    text = next((answer for word, answer in ANSWERS.items() if word in asked), "I do not know.")
    return text, len(asked.split())


def _chat_events(head: dict[str, Any], text: str, usage: dict[str, Any], body: dict[str, Any]) -> Iterator[str]:
    def event(delta: dict[str, Any], reason: str | None = None) -> str:
        chunk = head | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
        return f"data: {json.dumps(chunk)}\n\n"

    yield event({"role": "assistant", "content": ""})
    for word in text.split(" "):
        yield event({"content": word + " "})
    yield event({}, "stop")
    if (body.get("stream_options") or {}).get("include_usage"):
        yield f"data: {json.dumps(head | {'choices': [], 'usage': usage})}\n\n"
    yield "data: [DONE]\n\n"


def _message_events(message: dict[str, Any], text: str, usage: dict[str, Any]) -> Iterator[str]:
    def event(name: str, **fields: Any) -> str:
        return f"event: {name}\ndata: {json.dumps({'type': name} | fields)}\n\n"

    start = message | {"content": [], "stop_reason": None, "usage": usage | {"output_tokens": 1}}
    yield event("message_start", message=start)
    yield event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    for word in text.split(" "):
        yield event("content_block_delta", index=0, delta={"type": "text_delta", "text": word + " "})
    yield event("content_block_stop", index=0)
    delta = {"stop_reason": "end_turn", "stop_sequence": None}
    yield event("message_delta", delta=delta, usage={"output_tokens": usage["output_tokens"]})
    yield event("message_stop")
