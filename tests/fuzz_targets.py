"""What is fuzzed: each target takes any bytes, and fails when a promise of the code behind it is broken.

The same targets are driven by Hypothesis (`tests/fuzz/`) and by atheris (`scripts/fuzz`).
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from heliproxy import directives
from heliproxy.api.errors import ApiError
from heliproxy.api.filters import condition
from heliproxy.contentview import message_text, request_text
from heliproxy.conversation import as_text, conversation
from heliproxy.decode import Decoder, decode
from heliproxy.exchange import Reply, Usage
from heliproxy.formats import FORMATS
from heliproxy.formats.eventstream import encode_message
from heliproxy.ingest_otlp import OtlpError, read_json, read_protobuf, span_exchanges
from heliproxy.policies.budget import make_budget, period_start
from heliproxy.policies.fallback import parse_fallbacks, parse_model_string
from heliproxy.policies.ratelimit import bucket_id, charge, limit_headers, parse_policy, take
from heliproxy.price_overrides import OVERRIDES_FILE, load_overrides
from heliproxy.store import Store

DECODE_LIMIT = 1 << 20
NUMBERS = (-1, 0, 1.5, 2**53, 2**64, 1e300)


def promise(kept: bool, about: object) -> None:
    assert kept, about


def check_reply(reply: Reply) -> None:
    """Numbers are whole and not negative, text can be stored."""
    for text in (reply.model, reply.response_id, reply.finish_reason, reply.error, reply.error_type, reply.text):
        if text is not None:
            text.encode()
    assert len(reply.preview) <= 500
    assert reply.error_status is None or 400 <= reply.error_status <= 599
    assert reply.cost_usd is None or reply.cost_usd >= 0
    for usage in [reply.usage, *(part.usage for part in (reply.usage.parts if reply.usage else ()))]:
        for name in Usage.__slots__ if usage else ():
            value = getattr(usage, name)
            assert name in ("units", "parts") or value is None or (type(value) is int and value >= 0), (name, value)


def cut(data: bytes) -> list[bytes]:
    """The bytes after the first, in pieces whose size the first byte says."""
    if not data:
        return []
    size, rest = 1 + data[0] % 64, data[1:]
    return [rest[at : at + size] for at in range(0, len(rest), size)]


def streamed(name: str, content_type: str, pieces: list[bytes]) -> Reply:
    parser = FORMATS[name].stream(content_type)
    for piece in pieces:
        parser.feed(piece)
    reply = parser.result()
    check_reply(reply)
    return reply


def same_in_pieces(names: tuple[str, ...], content_type: str, data: bytes) -> None:
    pieces = cut(data)
    for name in names:
        whole = streamed(name, content_type, [data[1:]])
        assert streamed(name, content_type, pieces) == whole or whole != whole, name


def sse(data: bytes) -> None:
    same_in_pieces(
        ("openai_chat", "openai_responses", "anthropic_messages", "gemini_generate"), "text/event-stream", data
    )


def ndjson(data: bytes) -> None:
    same_in_pieces(("ollama_chat", "cohere_chat"), "application/x-ndjson", data)


def eventstream(data: bytes) -> None:
    same_in_pieces(("bedrock_converse",), "application/vnd.amazon.eventstream", data)
    framed = bytes([data[0] if data else 0]) + encode_message({":event-type": "metadata"}, data[1:])
    same_in_pieces(("bedrock_converse",), "application/vnd.amazon.eventstream", framed)


def whole_bodies(data: bytes) -> None:
    for form in FORMATS.values():
        form.parse_request(data, "/model/x/converse?a=b")
        check_reply(form.parse_response(data, {"content-type": "application/json"}))
        check_reply(form.parse_error(data))


def otlp_json(data: bytes) -> None:
    try:
        spans = read_json(data)
    except OtlpError:
        return
    span_exchanges(spans, [], 1_700_000_000.0)


def otlp_protobuf(data: bytes) -> None:
    try:
        spans = read_protobuf(data)
    except OtlpError:
        return
    span_exchanges(spans, [], 1_700_000_000.0)


def rate_limit(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    try:
        policy = parse_policy(text)
    except ValueError as e:
        promise(not any(c < " " for c in str(e)), e)
        return
    bucket_id(policy, "n", text, {text: text})
    state = None
    for now in (0.0, 1e9, 1e9 - 3600, 1e9 + 3600):
        decision, state = take(state, policy, now)
        assert decision is not None
        state = charge(state, policy, 1.5, now)
    for name, value in limit_headers(policy, 0.5):
        assert (name + value).isascii()
        assert (name + value).isprintable()


def budget(data: bytes) -> None:
    parts = data.decode("utf-8", "replace").split("|")
    try:
        amount = float(parts[0])
    except ValueError:
        amount = float(len(parts[0]))
    try:
        made = make_budget(amount, *parts[1:4]) if len(parts) > 1 else make_budget(amount, "day")
    except ValueError:
        return
    assert period_start(made.per, datetime(2026, 3, 29, 1, 30, tzinfo=UTC)) <= datetime(2026, 3, 29, 1, 30, tzinfo=UTC)


@cache
def _database() -> sqlite3.Connection:
    folder = Path(tempfile.mkdtemp())
    Store(folder / "heliproxy.db").writer().close()
    conn = sqlite3.connect(folder / "heliproxy.db")
    conn.create_function("body_text", 2, lambda *_: None)
    return conn


def filter_tree(data: bytes) -> None:
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return
    try:
        found = condition(tree)
    except ApiError as e:
        promise(e.status == 400, e)
        return
    try:
        _database().execute(f"SELECT count(*) FROM requests r WHERE {found.sql}", found.values).fetchone()
    except sqlite3.OperationalError as e:
        promise("too " in str(e), e)  # deep, many or big: SQLite's own limits


def fallbacks(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    for parse in (parse_fallbacks, parse_model_string):
        try:
            parse(text)
        except directives.DirectiveError as e:
            promise(400 <= e.answer.status <= 500, e)


def headers(data: bytes) -> None:
    lines = [line.partition(b":") for line in data.split(b"\n")]
    pairs = [(b"helicone-" + n if i % 2 else n, v) for i, (n, _, v) in enumerate(lines)]
    found = directives.parse([(n.decode("latin-1"), v.decode("utf-8", "surrogateescape")) for n, v in pairs])
    for warning in found.warnings:
        assert "\n" not in warning
        assert "\r" not in warning


def decoding(data: bytes) -> None:
    for coding in ("gzip", "deflate", "br", "zstd", "gzip, br", "identity", "x", None):
        whole = decode(data[1:], coding, DECODE_LIMIT)
        assert len(whole) <= DECODE_LIMIT
        decoder = Decoder(coding, DECODE_LIMIT)
        pieces = b"".join(decoder.feed(piece) for piece in cut(data))
        assert len(pieces) <= DECODE_LIMIT


def prices(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / OVERRIDES_FILE).write_bytes(data)
        for problem in load_overrides(Path(folder)).problems:
            assert isinstance(problem, str)


def rendering(data: bytes) -> None:
    half = len(data) // 2
    for kind in ("application/json", "text/event-stream", "application/x-ndjson", "application/vnd.amazon.eventstream"):
        found = conversation(data[:half], data[half:], kind, kind)
        as_text((*found.turns, *found.answers))
    request_text(data, "application/json").encode("utf-8", "surrogatepass")
    message_text(data).encode("utf-8", "surrogatepass")


Target = Callable[[bytes], None]
TARGETS: dict[str, Target] = {
    "sse": sse,
    "ndjson": ndjson,
    "eventstream": eventstream,
    "whole-bodies": whole_bodies,
    "otlp-json": otlp_json,
    "otlp-protobuf": otlp_protobuf,
    "rate-limit": rate_limit,
    "budget": budget,
    "filter": filter_tree,
    "fallbacks": fallbacks,
    "headers": headers,
    "decode": decoding,
    "prices": prices,
    "rendering": rendering,
}
# What was found once stays among the seeds.
_CHAT = b'{"choices":[{"index":0,"delta":{"content":"hi"}}],"usage":{"prompt_tokens":3,"completion_tokens":1}}'
SEEDS: dict[str, tuple[bytes, ...]] = {
    "sse": (
        b"\x05data: " + _CHAT + b"\n\ndata: [DONE]\n\n",
        b'\x09event: message_delta\r\ndata: {"type":"message_delta","usage":{"output_tokens":5}}\r\n\r\n',
    ),
    "ndjson": (b'\x03{"message":{"content":"hi"},"done":false}\n{"done":true,"eval_count":3}\n',),
    "eventstream": (b"\x07" + encode_message({":event-type": "metadata"}, b'{"usage":{"inputTokens":1}}'),),
    "whole-bodies": (_CHAT, b'{"error":{"message":"no","type":"x","code":429}}'),
    "otlp-json": (
        b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"01","spanId":"02","name":"chat"}]}]}]}',
        b'[{"key":"gen_ai.system","value":{"stringValue":"openai"}}]',
    ),
    "otlp-protobuf": (b"\x0a\x10\x12\x0e\x12\x0c\x0a\x01a\x12\x01b\x2a\x04chat",),
    "rate-limit": (b"10;w=60;u=cents;s=user", b"1;w=3600"),
    "budget": (b"5.5|month|user|block", b"1|day"),
    "filter": (
        b'{"left":{"request_response_rmt":{"latency":{"gte":1}}},"operator":"and","right":"all"}',
        b'{"request_response_rmt":{"properties":{"app":{"equals":"x"}}}}',
        b'{"request_response_rmt":{"properties":{"a\xed\xa0\x80":{"equals":"\xed\xa0\x80"}}}}',
    ),
    "fallbacks": (
        b'[{"target-url":"https://api.openai.com","headers":{"Authorization":"x"},"onCodes":[{"from":500,"to":599}]}]',
        b"gpt-4o/openai,claude/anthropic,!azure",
        b"gpt-4o/openai,!\x80",
    ),
    "headers": (b"Authorization:Bearer x\nCache-Enabled:true\nx:y\nRateLimit-Policy:10;w=60\n",),
    "decode": (b"\x05\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xcbH\xcd\xc9\xc9\x07\x00\x86\xa6\x106\x05\x00\x00\x00",),
    "prices": (b'[[price]]\nmodel = "x"\ninput = 1.0\noutput = 2.0\n', b"x = " + b"9" * 5001),
    "rendering": (b'{"messages":[{"role":"user","content":"hi"}]}' + _CHAT,),
}
