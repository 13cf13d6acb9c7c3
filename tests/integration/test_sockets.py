"""Responses over WebSocket and Realtime, through the real proxy, with a real WebSocket client and server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve

from heliproxy.serve import ProxyThread
from heliproxy.settings import Settings, parse_upstreams
from running import Running

USAGE = {
    "input_tokens": 1000,
    "input_tokens_details": {"cached_tokens": 400},
    "output_tokens": 50,
    "output_tokens_details": {"reasoning_tokens": 20},
    "total_tokens": 1050,
}


def events(number: int, usage: dict[str, Any] | None = None, kind: str = "completed") -> list[str]:
    base = {"id": f"resp_{number}", "object": "response", "model": "gpt-5-codex", "output": []}
    done = {**base, "status": kind, "usage": USAGE if usage is None else usage}
    return [
        json.dumps({"type": "response.created", "response": {**base, "status": "in_progress", "usage": None}}),
        json.dumps({"type": "response.output_text.delta", "item_id": "m", "output_index": 0, "delta": 'Hi "there"'}),
        json.dumps({"type": f"response.{kind}", "response": done}),
    ]


@contextmanager
def upstream(handler: Any, **kw: Any) -> Iterator[str]:
    with serve(handler, "127.0.0.1", 0, **kw) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join(5)


@contextmanager
def through(home: Path, url: str) -> Iterator[Running]:
    upstreams = parse_upstreams([f"api.openai.com={url}"])
    with ProxyThread(Settings(home=home, port=0, api_port=None, upstreams=upstreams)) as proxy:
        yield Running(proxy, home)


def open_socket(run: Running, path: str = "/v1/responses", **headers: str) -> ClientConnection:
    sent = {"Authorization": "Bearer sk-canary", "session-id": "codex-1"} | headers
    return connect(f"wss://api.openai.com{path}", ssl=run.context, proxy=run.url, additional_headers=sent)


def create(**fields: Any) -> str:
    return json.dumps({"type": "response.create", "model": "gpt-5-codex", "input": "Hello", **fields})


def answer_each(connection: ServerConnection) -> None:
    for number, message in enumerate(connection):
        asked = json.loads(message)
        nothing = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
        for event in events(number, nothing if asked.get("generate") is False else None):
            connection.send(event)


def test_each_response_of_a_socket_is_a_row_and_a_warm_up_is_none(home: Path) -> None:
    with upstream(answer_each) as url, through(home, url) as run:
        with open_socket(run, **{"Helicone-User-Id": "ada", "Helicone-Property-App": "codex"}) as socket:
            socket.send(create(generate=False))
            assert [socket.recv() for _ in range(3)][2] == events(
                0, {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
            )[2]
            for number in (1, 2):
                socket.send(create(previous_response_id=f"resp_{number - 1}"))
                assert [socket.recv() for _ in range(3)] == events(number)
        rows = run.wait_rows(2)
    assert len(rows) == 2
    for number, row in enumerate(rows, 1):
        assert (row["response_id"], row["status"], row["source"]) == (f"resp_{number}", 200, "websocket")
        assert (row["input_tokens"], row["cache_read_tokens"], row["output_tokens"]) == (1000, 400, 50)
        assert (row["user_id"], row["session_id"], row["model"]) == ("ada", "codex-1", "gpt-5-codex")
        assert row["cost_usd"] > 0
        assert 0 < row["ttft_ms"] <= row["latency_ms"]
    assert rows[0]["id"] != rows[1]["id"]


def test_socket_closed_in_the_middle_leaves_a_cancelled_row(home: Path) -> None:
    started = threading.Event()

    def handler(connection: ServerConnection) -> None:
        connection.recv()
        for event in events(1)[:2]:
            connection.send(event)
        started.set()
        for _ in connection:
            pass

    with upstream(handler) as url, through(home, url) as run:
        with open_socket(run) as socket:
            socket.send(create())
            socket.recv()
            socket.recv()
        row = run.row()
    assert (row["status"], row["usage_source"], row["lower_bound"]) == (-3, "estimated", 1)


def test_failed_response_and_error_event_are_errors(home: Path) -> None:
    def handler(connection: ServerConnection) -> None:
        connection.recv()
        failed = {
            "id": "resp_1",
            "status": "failed",
            "error": {"code": "server_error", "message": "oops"},
            "output": [],
        }
        connection.send(json.dumps({"type": "response.failed", "response": failed}))
        connection.recv()
        connection.send(
            json.dumps({"type": "error", "status": 429, "error": {"type": "rate_limit_error", "message": "slow"}})
        )
        for _ in connection:
            pass

    with upstream(handler) as url, through(home, url) as run:
        with open_socket(run) as socket:
            for _ in range(2):
                socket.send(create())
                socket.recv()
        rows = run.wait_rows(2)
    assert [bool(row["error"]) and row["status"] >= 400 for row in rows] == [True, True]
    assert rows[1]["error_type"] == "rate_limit_error"


def test_realtime_responses_that_the_server_starts_are_rows(home: Path) -> None:
    def handler(connection: ServerConnection) -> None:
        connection.recv()
        usage = {
            "total_tokens": 60,
            "input_tokens": 40,
            "output_tokens": 20,
            "input_token_details": {"text_tokens": 10, "audio_tokens": 30, "cached_tokens": 0},
            "output_token_details": {"text_tokens": 5, "audio_tokens": 15},
        }
        response = {"id": "resp_r", "object": "realtime.response", "status": "completed", "output": [], "usage": usage}
        connection.send(json.dumps({"type": "response.created", "response": {"id": "resp_r", "status": "in_progress"}}))
        connection.send(json.dumps({"type": "response.audio.delta", "delta": "AAAA"}))
        connection.send(json.dumps({"type": "response.done", "response": response}))
        for _ in connection:
            pass

    with upstream(handler) as url, through(home, url) as run:
        with open_socket(run, "/v1/realtime?model=gpt-realtime") as socket:
            socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": "AAAA"}))
            for _ in range(3):
                socket.recv()
        row = run.row()
    assert (row["input_tokens"], row["output_tokens"]) == (40, 20)
    assert (row["input_audio_tokens"], row["output_audio_tokens"]) == (30, 15)
    assert row["model"] == "gpt-realtime"


def test_realtime_row_says_what_was_asked_in_messages_apart(home: Path) -> None:
    def handler(connection: ServerConnection) -> None:
        for message in connection:
            if json.loads(message)["type"] == "response.create":
                response = {"id": "resp_r", "object": "realtime.response", "status": "completed", "output": []}
                connection.send(json.dumps({"type": "response.created", "response": {"id": "resp_r"}}))
                connection.send(json.dumps({"type": "response.output_text.delta", "delta": "Bonjour"}))
                connection.send(json.dumps({"type": "response.done", "response": response}))

    said = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Greet me"}]}
    with upstream(handler) as url, through(home, url) as run:
        with open_socket(run, "/v1/realtime?model=gpt-realtime") as socket:
            for item in (said, None):
                if item is not None:
                    socket.send(json.dumps({"type": "conversation.item.create", "item": item}))
                socket.send(json.dumps({"type": "response.create", "response": {"instructions": "Be brief"}}))
                for _ in range(3):
                    socket.recv()
        rows = run.wait_rows(2)
    assert [row["preview"] for row in rows] == ["Greet me", None]
    assert [row["answer_preview"] for row in rows] == ["Bonjour", "Bonjour"]


def test_refused_upgrade_is_one_row_with_its_status(home: Path) -> None:
    def refuse(connection: ServerConnection, request: Any) -> Any:
        return connection.respond(401, '{"error": {"message": "bad key", "type": "invalid_request_error"}}')

    with upstream(answer_each, process_request=refuse) as url, through(home, url) as run:
        with pytest.raises(InvalidStatus), open_socket(run):
            pass
        row = run.row()
    assert row["status"] == 401
    assert row["error"]
