#!/usr/bin/env python3
# ruff: noqa: E501 - tables of sample text and rows read better on one line
"""Fill a heliproxy.db with made-up calls, for looking at the pages and for measuring them.

    scripts/generate_rows.py --home /some/empty/folder --rows 1000000 --days 90
    heliproxy serve --home /some/empty/folder

The same arguments give the same rows. Reports read sums of whole hours, which a running proxy makes in the background;
here they are made at once. With --bodies each call has its conversation (about 1 kB a row more).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "addon"))

from heliproxy.bodies import Body
from heliproxy.home import DATABASE_NAME
from heliproxy.record import utc_text
from heliproxy.rollup_filler import fill_all
from heliproxy.store import Record, Store

# Provider, model, host, path, format, USD per million input / cached input / output tokens, share of the traffic.
MODELS = (
    ("openai", "gpt-4o-mini", "api.openai.com", "/v1/chat/completions", "openai_chat", 0.15, 0.075, 0.6, 30),
    ("anthropic", "claude-sonnet-4-5", "api.anthropic.com", "/v1/messages", "anthropic_messages", 3.0, 0.3, 15.0, 26),
    ("openai", "gpt-5", "api.openai.com", "/v1/responses", "openai_responses", 1.25, 0.125, 10.0, 14),
    ("anthropic", "claude-haiku-4-5", "api.anthropic.com", "/v1/messages", "anthropic_messages", 1.0, 0.1, 5.0, 12),
    ("google", "gemini-2.5-flash", "generativelanguage.googleapis.com", "/v1beta/models/gemini-2.5-flash:generateContent", "gemini", 0.3, 0.075, 2.5, 9),
    ("groq", "llama-3.3-70b-versatile", "api.groq.com", "/openai/v1/chat/completions", "openai_chat", 0.59, 0.59, 0.79, 6),
    ("openai", "text-embedding-3-small", "api.openai.com", "/v1/embeddings", "openai_embeddings", 0.02, 0.02, 0.0, 3),
)  # fmt: skip
QUESTIONS = (
    ("How do I reset my password?", "Open Settings, choose Security, then “Reset password”. A link arrives by mail within a minute."),
    ("Summarise the incident report in three bullet points.", "• A full disk stopped the queue at 02:14.\n• Retries doubled the load until 02:31.\n• An alert on free space now fires at 80 %."),
    ("Write a haiku about proxies.", "Words pass through the wire,\na quiet listener counts —\nnothing lost, all seen."),
    ("Which of these tickets is about billing?", "Tickets 4711 and 4719 are about billing; 4715 mentions an invoice but asks for a refund of postage."),
    ("Translate “the early bird catches the worm” into German.", "Morgenstund hat Gold im Mund."),
    ("Explain this stack trace to a newcomer.", "The function expected a list but was given None: the file it reads was empty, so nothing was ever assigned."),
    ("Find me a hotel near the main station.", "Three are within ten minutes’ walk; the second one has a room with a desk for 96 euros."),
    ("Is this review positive or negative?", "Mostly positive: the tone is warm, and the only complaint is about the packaging."),
    ("Draft a polite reminder for the unpaid invoice.", "Dear Ms Lovelace, perhaps invoice 2042 slipped through; may I ask you to look into it this week?"),
    ("What changed between these two contracts?", "Two clauses: the notice period went from one month to three, and the venue moved to Utrecht."),
    ("Plan a two-day trip to Ghent by train.", "Day one: the castle, the altarpiece, supper by the water. Day two: the design museum, then the 15:12 home."),
    ("Extract the dates and amounts as JSON.", '{"dates": ["2026-03-01", "2026-04-15"], "amounts": [120.5, 99.0]}'),
)  # fmt: skip
USERS = ("ada", "alan", "grace", "edsger", "barbara", "donald", "margaret", "dennis", "frances", "ken", "radia", "tim")
APPS = ("support-bot", "search", "report-writer", "agent")
SESSION_PATHS = ("/plan", "/plan/search", "/plan/search/rank", "/plan/write", "/plan/write/review", "/plan/answer")
SESSION_NAMES = ("Trip planner", "Code review", "Support ticket", "Weekly report")
ERRORS = (
    (429, "rate_limit_error", "Rate limit reached for requests per minute. Please try again in 1.2 s."),
    (529, "overloaded_error", "Overloaded"),
    (500, "server_error", "The server had an error while processing your request."),
    (400, "invalid_request_error", "max_tokens is too large: 200000. This model supports at most 16384."),
)


def records(rows: int, days: float, end: datetime, *, bodies: bool, seed: int = 1) -> Iterator[Record]:
    """Calls in the order of time, busier by day than by night, the last of them at `end`."""
    draw = random.Random(seed)
    weights = [model[-1] for model in MODELS]
    step = timedelta(days=days) / max(rows, 1)
    answered: list[tuple[str, float, float]] = []
    session: list[Any] = ["", "", 0, "", None]
    for number in range(rows):
        at = end - timedelta(days=days) + step * (number + 1)
        hour = at.hour + at.minute / 60
        # Quiet hours: most calls of the night are moved to the day before.
        if hour < 7 and draw.random() < 0.75:
            at -= timedelta(hours=draw.uniform(7, 14))
        model = draw.choices(MODELS, weights)[0]
        asked, said = QUESTIONS[min(int(draw.expovariate(0.25)), len(QUESTIONS) - 1)]
        user = USERS[min(int(draw.expovariate(0.35)), len(USERS) - 1)]
        app = draw.choice(APPS)
        if session[2] <= 0 and draw.random() < 0.08:
            session = [
                str(uuid.UUID(int=draw.getrandbits(128), version=4)),
                draw.choice(SESSION_NAMES),
                draw.randint(3, 9),
                user,
                None,
            ]
        in_session = session[2] > 0
        if in_session:
            session[2] -= 1
            app, user = "agent", session[3]
            # One call soon after the other, as an agent makes them.
            at = session[4] = (session[4] or at) + timedelta(milliseconds=draw.uniform(30, 900))
        row = call(draw, model, asked, said, at)
        row |= {"user_id": user, "run_id": None, "key_fingerprint": f"{hash_of(user):012x}"}
        if in_session:
            row |= {
                "session_id": session[0],
                "session_name": session[1],
                "session_path": SESSION_PATHS[(6 - session[2]) % 6],
            }
            session[4] += timedelta(milliseconds=row["latency_ms"])
        if answered and draw.random() < 0.07 and not row["error"]:
            hit(row, draw.choice(answered))
        elif not row["error"] and row["cost_usd"]:
            answered = [*answered[-200:], (row["id"], row["cost_usd"], row["latency_ms"])]
        properties = {"App": app, "Environment": "production" if draw.random() < 0.8 else "staging"}
        yield Record(row, properties, body(row, asked, said, number) if bodies else None)


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode().ljust(6, b"-")[:6], "big")


def call(draw: random.Random, model: Any, asked: str, said: str, at: datetime) -> dict[str, Any]:
    provider, name, host, path, kind, fresh_usd, cached_usd, output_usd, _ = model
    embedding = output_usd == 0.0
    inputs = int(draw.lognormvariate(6.6, 1.0)) + 20
    cached = int(inputs * draw.choice((0, 0, 0.5, 0.9))) if inputs > 1000 else 0
    outputs = 0 if embedding else int(draw.lognormvariate(5.0, 0.8)) + 5
    reasoning = int(outputs * 0.4) if name == "gpt-5" else 0
    stream = not embedding and draw.random() < 0.6
    ttft = draw.lognormvariate(6.0, 0.5)
    latency = ttft + outputs * draw.uniform(6, 14)
    unpriced = draw.random() < 0.004
    cost = ((inputs - cached) * fresh_usd + cached * cached_usd + outputs * output_usd) / 1e6
    request_id = uuid.UUID(int=(int(at.timestamp() * 1000) << 80) | draw.getrandbits(80), version=4)
    row: dict[str, Any] = {
        "id": str(request_id), "created_at": utc_text(at.timestamp()), "provider": provider, "host": host, "path": path,
        "method": "POST", "model": "house-model-7b" if unpriced else name, "request_model": name, "response_model": name,
        "status": 200, "error": None, "error_type": None, "stream": int(stream), "latency_ms": round(latency, 2),
        "ttft_ms": round(ttft, 2), "input_tokens": inputs, "cache_read_tokens": cached, "cache_write_tokens": 0,
        "output_tokens": outputs, "reasoning_tokens": reasoning,
        "usage_source": "estimated" if draw.random() < 0.03 else "provider", "lower_bound": 0,
        "cost_usd": None if unpriced else cost, "cost_source": None if unpriced else "genai-prices",
        "price_id": None if unpriced else f"{provider}:{name}", "price_version": "genai-prices 0.2.3", "attempts": 1,
        "client": draw.choice(("OpenAI/Python 2.1.0", "Anthropic/Python 0.71.0", "node-fetch")), "finish_reason": "stop",
        "response_id": f"resp_{request_id.hex[:16]}", "format": kind, "source": "proxy", "incomplete": 0, "truncated": 0,
        "preview": asked, "answer_preview": None if embedding else said,
        "cache": None, "size_request": 400 + inputs * 4, "size_response": 300 + outputs * 4,
    }  # fmt: skip
    if draw.random() < 0.025:
        fail(row, draw)
    return row


def fail(row: dict[str, Any], draw: random.Random) -> None:
    status, kind, message = draw.choice(ERRORS)
    row.update(
        status=status,
        error_type=kind,
        error=message,
        usage_source="none",
        cost_usd=None,
        cost_source=None,
        price_id=None,
    )
    row.update(input_tokens=None, output_tokens=None, cache_read_tokens=None, cache_write_tokens=None)
    row.update(reasoning_tokens=None, answer_preview=None, finish_reason=None, ttft_ms=row["ttft_ms"])
    row["latency_ms"] = round(row["ttft_ms"] + 5, 2)
    if status in (429, 529):
        row["attempts"] = 3
        row["attempts_json"] = json.dumps(
            [
                {"target": f"https://{row['host']}", "status": status, "error": None, "duration_ms": 40.0, "fallback_index": None, "delay_ms": delay}
                for delay in (0.0, 120.0, 250.0)
            ]
        )  # fmt: skip
        row["latency_ms"] = max(row["latency_ms"], 490.0)


def hit(row: dict[str, Any], stored: tuple[str, float, float]) -> None:
    row.update(cache="HIT", cache_reference_id=stored[0], saved_usd=stored[1], cost_usd=0.0, cost_source="cache")
    row.update(input_tokens=0, output_tokens=0, cache_read_tokens=0, reasoning_tokens=0, usage_source="none")
    row.update(latency_ms=round(3 + row["latency_ms"] % 7, 2), ttft_ms=2.5, attempts=0, price_id=None)


def body(row: dict[str, Any], asked: str, said: str, number: int) -> Body:
    """A conversation in the row's own format; every fifth uses a tool."""
    system = "You are a careful assistant. Answer briefly, and say so when you do not know."
    tool = number % 5 == 0
    answer = None if row["error"] or row["cache"] == "HIT" else said
    if row["format"] == "anthropic_messages":
        request, response = _anthropic(row, system, asked, answer, tool)
    else:
        request, response = _chat(row, system, asked, answer, tool)
    if row["error"]:
        response = {"error": {"type": row["error_type"], "message": row["error"]}}
    return Body(
        json.dumps(request, ensure_ascii=False).encode(),
        json.dumps(response, ensure_ascii=False).encode() if response else b"",
        "application/json",
        "application/json",
        {"content-type": "application/json", "user-agent": row["client"]},
        {"content-type": "application/json", "x-request-id": row["response_id"]},
    )


def _anthropic(row: Any, system: str, asked: str, answer: str | None, tool: bool) -> tuple[Any, Any]:
    messages: list[Any] = [{"role": "user", "content": asked}]
    if tool:
        use = {"type": "tool_use", "id": "toolu_01", "name": "search_documents", "input": {"query": asked, "limit": 3}}
        found = "3 documents: handbook.md, faq.md, release-notes.md"
        messages += [
            {"role": "assistant", "content": [{"type": "text", "text": "Let me look that up."}, use]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_01", "content": found}]},
        ]
    tools = [
        {
            "name": "search_documents",
            "description": "Search the company's documents.",
            "input_schema": {"type": "object"},
        }
    ]
    request = {
        "model": row["request_model"],
        "max_tokens": 1024,
        "system": system,
        "messages": messages,
        "tools": tools,
    }
    thinking = {"type": "thinking", "thinking": "The handbook covers this; the short answer will do.", "signature": "x"}
    content = [thinking, {"type": "text", "text": answer}]
    response = {"id": row["response_id"], "type": "message", "role": "assistant", "model": row["model"], "content": content, "stop_reason": "end_turn"}  # fmt: skip
    return request, response if answer else None


def _chat(row: Any, system: str, asked: str, answer: str | None, tool: bool) -> tuple[Any, Any]:
    messages: list[Any] = [{"role": "system", "content": system}, {"role": "user", "content": asked}]
    if tool:
        call_of = {
            "id": "call_1",
            "type": "function",
            "function": {"name": "search_documents", "arguments": json.dumps({"query": asked})},
        }
        messages += [
            {"role": "assistant", "content": None, "tool_calls": [call_of]},
            {"role": "tool", "tool_call_id": "call_1", "content": "3 documents: handbook.md, faq.md, release-notes.md"},
        ]
    request = {"model": row["request_model"], "messages": messages, "temperature": 0.2, "stream": bool(row["stream"])}
    message = {"role": "assistant", "content": answer}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    response = {"id": row["response_id"], "object": "chat.completion", "model": row["model"], "choices": choices}
    return request, response if answer else None


def fill(home: Path, rows: int, days: float, end: datetime, *, bodies: bool = False, seed: int = 1) -> int:
    """Write the rows; returns how many were written."""
    writer = Store(home / DATABASE_NAME).writer()
    for number, record in enumerate(records(rows, days, end, bodies=bodies, seed=seed), 1):
        writer.add(record)
        if number % 5000 == 0:
            writer.flush(force=True)
    writer.close()
    return writer.written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True, help="folder to fill")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--days", type=float, default=90.0, help="how far back the rows reach")
    parser.add_argument("--bodies", action="store_true", help="store conversations too")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    started = time.perf_counter()
    written = fill(
        options.home, options.rows, options.days, datetime.now(UTC), bodies=options.bodies, seed=options.seed
    )
    fill_all(options.home / DATABASE_NAME, datetime.now(UTC))
    size = (options.home / DATABASE_NAME).stat().st_size
    print(f"{written:,} rows, {size / 1e6:,.0f} MB, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
