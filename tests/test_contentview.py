# ruff: noqa: E501 - tables of cases and wire bytes read better on one line
"""What mitmweb and the console show: content view, comments, marks, commands, a bounded list."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from mitmproxy import contentviews
from mitmproxy.addons import view
from mitmproxy.test import taddons, tflow

from browser import Watch, chromium, need_chromium
from fakes import Answer, Upstream, json_answer, sse_answer
from heliproxy import contentview
from heliproxy.contentview import (
    FlowTools,
    annotate,
    cost_text,
    dollars,
    export,
    is_live,
    mark_of,
    summary,
)
from heliproxy.store import Record, Store

ROOT = Path(__file__).resolve().parents[1]
ROW = {
    "id": "r1", "model": "gpt-4o", "status": 200, "input_tokens": 1234, "output_tokens": 56, "cost_usd": 0.003645,
    "finish_reason": "stop", "usage_source": "provider", "cache": None,
}  # fmt: skip


def chat_flow(streamed: bool = False) -> Any:
    flow = tflow.tflow(resp=True)
    flow.request.method, flow.request.host, flow.request.path = "POST", "api.openai.com", "/v1/chat/completions"
    flow.request.headers["content-type"] = "application/json"
    flow.request.content = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}]}).encode()
    if streamed:
        flow.response.headers["content-type"] = "text/event-stream"
        flow.response.data.content = None
    else:
        flow.response.headers["content-type"] = "application/json"
        flow.response.content = json.dumps({"choices": [{"message": {"content": "Hello"}}]}).encode()
    return flow


def shown(message: Any, flow: Any) -> contentviews.ContentviewResult:
    with taddons.context(FlowTools()) as ctx:
        ctx.options.add_option("protobuf_definitions", Any, None, "read when a view is chosen")
        return contentviews.prettify_message(message, flow)


def test_view_is_chosen_for_request_and_answer() -> None:
    flow = chat_flow()
    request, answer = shown(flow.request, flow), shown(flow.response, flow)
    assert (request.view_name, answer.view_name) == ("LLM", "LLM")
    assert request.text == "model: gpt-4o\n\nuser\n  Hi"
    assert answer.text == "assistant\n  Hello"


def test_view_leaves_other_traffic_alone() -> None:
    flow = tflow.tflow(resp=True)
    assert shown(flow.response, flow).view_name != "LLM"
    flow = chat_flow()
    flow.request.method, flow.request.path = "GET", "/v1/models"
    assert shown(flow.response, flow).view_name != "LLM"


def test_stream_is_put_back_and_shown_as_conversation() -> None:
    flow = chat_flow(streamed=True)
    body = b'data: {"choices":[{"delta":{"content":"Hel"}}]}\n\ndata: {"choices":[{"delta":{"content":"lo"}}]}\n\ndata: [DONE]\n\n'
    flow.response.headers["content-encoding"] = "gzip"
    annotate(flow, ROW, body, cut=True)
    assert flow.response.content == body
    assert flow.comment == "gpt-4o · 1,234 → 56 tokens · $0.003645 · stop · body cut"
    assert shown(flow.response, flow).text == "gpt-4o · 1,234 → 56 tokens · $0.003645 · stop\n\nassistant\n  Hello"


def test_own_comments_and_marks_stay() -> None:
    flow = chat_flow()
    flow.comment, flow.marked = "mine", ":star:"
    annotate(flow, {**ROW, "status": 500}, None, cut=False)
    assert (flow.comment, flow.marked) == ("mine", ":star:")


@pytest.mark.parametrize(
    ("status", "mark"),
    [(200, ""), (None, ""), (-3, ""), (429, ":hourglass:"), (500, ":red_circle:"), (-2, ":red_circle:")],
)
def test_failures_are_marked(status: int | None, mark: str) -> None:
    assert mark_of(status) == mark


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({}, ""),
        ({"status": 200, "model": "m", "input_tokens": 5, "output_tokens": None, "cost_usd": None}, "m · 5 → ? tokens · cost unknown"),
        ({"status": 200, "model": "m", "cache": "HIT", "saved_usd": 0.5}, "m · HIT · $0.5 saved"),
        ({"status": 200, "model": "m\x1b[2J", "input_tokens": 1, "output_tokens": 1, "usage_source": "estimated", "cost_usd": 2.0}, "m␛[2J · ~1 → ~1 tokens · $2.00"),
    ],
)  # fmt: skip
def test_summary_is_one_line(facts: dict[str, Any], line: str) -> None:
    assert summary(facts) == line


def test_cost_of_several_flows_is_summed() -> None:
    assert cost_text([]) == "no call to a model among the selected flows"
    assert (
        cost_text([ROW, {**ROW, "cost_usd": None}])
        == "2 calls · $0.003645 · 2,468 → 112 tokens · 1 without a known cost"
    )
    assert dollars(None) == "cost unknown"


def test_flow_list_is_bounded_and_keeps_what_is_under_way() -> None:
    tools, shown_flows = FlowTools(), view.View()
    with taddons.context(tools, shown_flows) as ctx:
        ctx.options.heliproxy_flows = 10
        running = tflow.tflow(resp=False)
        shown_flows.add([running])
        for _ in range(30):
            flow = tflow.tflow(resp=True)
            tools.requestheaders(flow)
            shown_flows.add([flow])
        assert shown_flows.store_count() <= 12
        assert running in shown_flows.resolve("@all")
        assert is_live(running)


def test_commands_take_flows(tmp_path: Path) -> None:
    tools = FlowTools()
    flow = chat_flow()
    annotate(flow, ROW, None, cut=False)
    with taddons.context(tools) as ctx:
        assert tools.cost([flow]) == "1 call · $0.003645 · 1,234 → 56 tokens"
        assert {"heliproxy.cost", "heliproxy.export", "heliproxy.feedback"} <= set(ctx.master.commands.commands)
        assert ctx.master.commands.call("heliproxy.feedback.ratings") == ["good", "bad"]


def test_export_writes_a_private_file(tmp_path: Path) -> None:
    writer = Store(tmp_path / "heliproxy.db").writer()
    writer.add(Record({"id": "r1", "created_at": "2026-01-01T00:00:00.000Z", "status": 200}))
    writer.close()
    out = tmp_path / "out.ndjson"
    assert export(tmp_path / "heliproxy.db", ["r1", "gone"], out) == 1
    assert json.loads(out.read_text())["id"] == "r1"
    assert out.stat().st_mode & 0o777 == 0o600


def test_module_knows_what_the_row_calls_things() -> None:
    from heliproxy.store import COLUMNS

    assert set(contentview.NOTED) <= set(COLUMNS)


def test_our_view_shows_no_key() -> None:
    flow = chat_flow()
    flow.request.headers["authorization"] = "Bearer sk-0123456789"
    flow.request.path += "?key=sk-abcdefghij"
    secret = {"authorization_token": "sk-of-a-server", "url": "https://m"}
    called = {"type": "function", "function": {"name": "f", "arguments": json.dumps({"password": "sk-argument"})}}
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None, "tool_calls": [called]}]
    flow.request.content = json.dumps({"model": "m", "messages": messages, "mcp_servers": [secret]}).encode()
    echo = "You sent sk-0123456789 and sk-abcdefghij"
    flow.response.content = json.dumps({"choices": [{"message": {"content": echo}}]}).encode()
    for message in (flow.request, flow.response):
        view = shown(message, flow)
        assert view.view_name == "LLM"
        assert "[redacted]" in view.text
        assert "sk-" not in view.text


# -- the real mitmweb ------------------------------------------------------------------------------------------------


def answer(asked: Any) -> Answer:
    if asked.json.get("stream"):
        chunks = [
            b'data: {"model":"gpt-4o","choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % word
            for word in (b"Bon", b"jour")
        ]
        usage = b'data: {"model":"gpt-4o","choices":[],"usage":{"prompt_tokens":12,"completion_tokens":3,"total_tokens":15}}\n\n'
        return sse_answer([*chunks, usage, b"data: [DONE]\n\n"])
    return json_answer({"error": {"type": "rate_limit_error", "message": "slow down"}}, status=429)


def free_port() -> int:
    """A port for mitmweb, which does not tell which one it got for 0."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Mitmweb:
    """A mitmweb process with our addon, its flow list and its proxy port."""

    def __init__(self, home: Path, upstream: str) -> None:
        port = free_port()
        command = [
            sys.executable, "-m", "heliproxy", "web", "--home", str(home), "--port", "0", "--api-port", "0",
            "--upstream", f"api.openai.com={upstream}", "--", "--no-web-open-browser", "--web-port", str(port),
            "--set", "web_password=secret", "--set", "web_host=127.0.0.1",
        ]  # fmt: skip
        env = os.environ | {"PYTHONPATH": str(ROOT / "addon"), "PYTHONUNBUFFERED": "1"}
        self.log = home.with_suffix(".log")
        self._out = self.log.open("w")
        self.process = subprocess.Popen(command, stdout=self._out, stderr=subprocess.STDOUT, env=env)
        self.ca = home / "ca" / "mitmproxy-ca-cert.pem"
        self.proxy = self._wait(r"proxy listening at \S*?:(\d+)")
        self.web = self._wait(r"Web server listening at http://127\.0\.0\.1:(\d+)")

    def _wait(self, pattern: str) -> int:
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            found = re.search(pattern, self.log.read_text())
            if found:
                return int(found.group(1))
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(self.log.read_text()[-3000:])

    def close(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(20)
        self._out.close()


@pytest.fixture
def mitmweb(tmp_path: Path) -> Iterator[Mitmweb]:
    need_chromium()
    with Upstream(answer) as up:
        web = Mitmweb(tmp_path / "home", up.url)
        try:
            yield web
        finally:
            web.close()


def test_mitmweb_shows_the_conversation_not_the_wire(mitmweb: Mitmweb) -> None:
    with httpx.Client(
        proxy=f"http://127.0.0.1:{mitmweb.proxy}",
        verify=ssl.create_default_context(cafile=mitmweb.ca),
        trust_env=False,
        timeout=20,
    ) as client:
        messages = [{"role": "user", "content": "How do the French greet?"}]
        for stream in (True, False):
            body = {"model": "gpt-4o", "messages": messages, "stream": stream}
            client.post(
                "https://api.openai.com/v1/chat/completions", json=body, headers={"authorization": "Bearer sk-test"}
            )
    with chromium() as browser:
        page = browser.new_page()
        watch = Watch(page)
        page.goto(f"http://127.0.0.1:{mitmweb.web}/?token=secret")
        page.get_by_text("POST").first.click()
        page.get_by_text("gpt-4o · rate_limit_error").wait_for()
        page.get_by_text("Response", exact=True).first.click()
        page.get_by_text("Bonjour").wait_for()
        text = page.inner_text("body")
        assert "gpt-4o · 12 → 3 tokens" in text
        assert "data: {" not in text
        page.get_by_text("Request", exact=True).first.click()
        page.get_by_text("How do the French greet?").wait_for()
        flows = page.request.get(f"http://127.0.0.1:{mitmweb.web}/flows").json()
        assert [flow["marked"] for flow in flows] == ["", "⌛"]
        assert flows[0]["comment"].startswith("gpt-4o · 12 → 3 tokens · $")
    assert [problem for problem in watch.problems if not problem.startswith("console")] == []


# -- WebSockets ------------------------------------------------------------------------------------------------------


def message(value: Any) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (message({"type": "response.create", "model": "m", "input": "Hello"}), "response.create\n\nmodel: m\n\nuser\n  Hello"),
        (message({"type": "response.create", "response": {"instructions": "Be kind"}}), "response.create\n\nsystem\n  Be kind"),
        (
            message({"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]}}),
            "conversation.item.create\n\nuser\n  Hi",
        ),
        (message({"type": "response.output_text.delta", "delta": "Bon\x1b[31m"}), "response.output_text.delta  Bon␛[31m"),
        (message({"type": "response.output_audio.delta", "delta": "AAAA"}), "response.output_audio.delta  (3 bytes of audio)"),
        (message({"type": "input_audio_buffer.append", "audio": "AAAAAAAA"}), "input_audio_buffer.append  (6 bytes of audio)"),
        (
            message({"type": "response.completed", "response": {"output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Bonjour"}]}], "usage": {"input_tokens": 3}}}),
            'response.completed\n\nassistant\n  Bonjour\n\nusage: {"input_tokens": 3}',
        ),
        (message({"type": "error", "error": {"type": "rate_limit_error", "message": "slow"}}), "error\n\nerror\n  [error] rate_limit_error: slow"),
        (message({"type": "rate_limits.updated", "n": 1}), 'rate_limits.updated\n{\n  "n": 1\n}'),
        (b"not json \x1b", "not json ␛"),
        (b"[1, 2]", "[1, 2]"),
    ],
)  # fmt: skip
def test_message_of_a_socket_is_shown_as_what_it_says(data: bytes, text: str) -> None:
    assert contentview.message_text(data) == text


def test_view_is_chosen_for_messages_of_a_socket() -> None:
    flow = tflow.twebsocketflow()
    flow.metadata[contentview.KEY] = {"id": "r1", "format": "openai_responses"}
    flow.websocket.messages[0].content = message({"type": "response.create", "input": "Hi"})
    assert shown(flow.websocket.messages[0], flow).view_name == "LLM"
    assert shown(flow.websocket.messages[0], tflow.twebsocketflow()).view_name != "LLM"


def test_responses_of_a_socket_are_summed_up_on_its_flow() -> None:
    flow = tflow.twebsocketflow()
    flow.metadata[contentview.KEY] = {"id": "r1", "format": "openai_responses"}
    contentview.add_response(flow, {**ROW, "cost_usd": 0.1})
    assert flow.comment == "gpt-4o · 1,234 → 56 tokens · $0.1 · stop"
    contentview.add_response(flow, {**ROW, "id": "r2", "cost_usd": 0.2})
    assert flow.comment == "gpt-4o · 2 responses · 2,468 → 112 tokens · $0.3 · stop"
    assert contentview.ids_of([flow]) == ["r1", "r2"]
    flow.comment = "mine"
    contentview.add_response(flow, {**ROW, "id": "r3", "status": 200, "error_type": "incomplete_stream"})
    assert (flow.comment, flow.marked) == ("mine", contentview.FAILED)
