"""Logs to show: some hundred ordinary calls, and the worst that prompts, models and headers can hold."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from heliproxy.api.pages import page_routes
from heliproxy.api.pages.context import Pages
from heliproxy.bodies import Body
from heliproxy.home import DATABASE_NAME
from heliproxy.store import Record, Store, open_reader

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime(2026, 11, 20, 15, 0, tzinfo=UTC)
MARKUP = "<img src=x onerror=alert(1)>"
HOSTILE = (
    MARKUP,
    '"><script>alert(2)</script>',
    "</script><script>alert(3)</script>",
    "' onmouseover='alert(4)",
    "javascript:alert(5)",
    "{{ 7 * 7 }}{% raw %}",
    "\x1b[2J\x1b[31mred\x07",
    "\u202eexe.tnemucod\u202c",
    "שלום עולם مرحبا بالعالم",
    "a\x00b",
    "👩‍👩‍👧‍👦 𝕳𝖊𝖑𝖎",
)


def load_generator() -> Any:
    spec = importlib.util.spec_from_file_location("generate_rows", ROOT / "scripts" / "generate_rows.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hostile_record(number: int, text: str) -> Record:
    """A call in which everything a stranger chooses is `text`."""
    stamp = (NOW - timedelta(minutes=number)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    row: dict[str, Any] = dict.fromkeys(
        ("model", "request_model", "response_model", "provider", "error", "error_type", "user_id", "session_name",
         "session_path", "prompt_id", "client", "finish_reason", "response_id", "preview", "answer_preview", "warning",
         "parse_error", "service_tier", "price_id", "price_version", "key_fingerprint", "target_url"),
        text,
    )  # fmt: skip
    row |= {
        "id": f"hostile-{number}-{text}", "created_at": stamp, "status": 500, "cost_usd": 0.5,
        "cost_source": "override",
        "session_id": f"session {text}", "host": "api.openai.com", "path": "/v1/chat/completions", "method": "POST",
        "latency_ms": 12.0, "ttft_ms": 3.0, "input_tokens": 7, "output_tokens": 2, "usage_source": "provider",
        "usage_json": json.dumps({"x": text}), "attempts": 2,
        "attempts_json": json.dumps([{"target": text, "status": 500, "error": text, "duration_ms": 3}] * 2),
    }  # fmt: skip
    request = {
        "model": text,
        text: text,
        "messages": [
            {"role": text, "content": text, "name": text},
            {"role": "user", "content": [
                {"type": "text", "text": text},
                {"type": "image_url", "image_url": {"url": "https://tracker.example/pixel.png"}},
                {"type": "image_url", "image_url": {"url": "data:image/svg+xml,<svg onload=alert(6)>"}},
                {"type": "input_audio", "input_audio": {"data": text, "format": text}},
                {"type": text, text: text},
            ]},
            {"role": "assistant", "tool_calls": [{"id": text, "function": {"name": text, "arguments": text}}]},
            {"role": "tool", "tool_call_id": text, "content": text},
        ],
        "tools": [{"type": "function", "function": {"name": text, "description": text}}],
    }  # fmt: skip
    response = {"choices": [{"message": {"role": "assistant", "content": text, "reasoning": text}}]}
    headers = {"content-type": "application/json", "x-odd": text}
    body = Body(json.dumps(request).encode(), json.dumps(response).encode(), "application/json", text, headers, headers)
    return Record(row, {text[:60] or "x": text, "App": text}, body)


@pytest.fixture(scope="session")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with 600 ordinary calls of ten days and a dozen hostile ones, the newest."""
    home = tmp_path_factory.mktemp("pages")
    generator = load_generator()
    generator.fill(home, 600, 10, NOW - timedelta(hours=1), bodies=True)
    writer = Store(home / DATABASE_NAME).writer()
    for number, text in enumerate(HOSTILE):
        writer.add(hostile_record(number, text))
    long = hostile_record(90, "long")
    prompt = {"model": "gpt-4o", "messages": [{"role": "user", "content": "lorem ipsum " * 90_000}]}
    writer.add(
        Record(
            {**long.row, "id": "long", "error": None, "status": 200},
            {},
            Body(json.dumps(prompt).encode()[: 1 << 20], b"", "application/json"),
        )
    )
    writer.flush(force=True)
    writer.add_feedback("long", True)
    writer.add_scores("long", {MARKUP: 0.5})
    writer.add_feedback("long", MARKUP, MARKUP)
    writer.close()
    return home


@pytest.fixture
def pages(log: Path) -> Pages:
    return Pages(log, now=lambda: NOW, zone=UTC)


@pytest.fixture
def client(pages: Pages) -> Iterator[TestClient]:
    with TestClient(Starlette(routes=page_routes(pages)), base_url="http://127.0.0.1:8585") as found:
        yield found


@pytest.fixture
def conn(log: Path) -> Iterator[Any]:
    found = open_reader(log / DATABASE_NAME)
    yield found
    found.close()
