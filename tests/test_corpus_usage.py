"""Every line of the recorded corpus, at function level: route, format, usage."""

import base64
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from heliproxy.exchange import Reply, Usage
from heliproxy.formats import FORMATS
from heliproxy.hosts import Route, route

CORPUS = Path(__file__).resolve().parents[2] / "shared" / "corpus" / "public.jsonl"
pytestmark = pytest.mark.skipif(not CORPUS.exists(), reason="the recorded corpus is not next to this repository")

FIELDS = {
    "input_tokens": "input_tokens",
    "cached_input_tokens": "cache_read_tokens",
    "cache_write_tokens": "cache_write_tokens",
    "cache_write_5m_tokens": "cache_write_5m_tokens",
    "cache_write_1h_tokens": "cache_write_1h_tokens",
    "output_tokens": "output_tokens",
    "reasoning_tokens": "reasoning_tokens",
    "input_audio_tokens": "input_audio_tokens",
    "output_audio_tokens": "output_audio_tokens",
    "cached_audio_tokens": "cache_read_audio_tokens",
    "input_image_tokens": "input_image_tokens",
    "output_image_tokens": "output_image_tokens",
    "input_video_tokens": "input_video_tokens",
}
ANSWERED = ("usage", "no_usage", "derived_no_usage", "derived_truncated", "error_in_stream")


def lines() -> Iterator[dict[str, Any]]:
    if CORPUS.exists():
        with CORPUS.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


LINES = list(lines())


def of_kind(*kinds: str) -> list[Any]:
    return [
        pytest.param(line, id=f"{line['provider']}-{line['flavor']}-{line['id']}")
        for line in LINES
        if line["kind"] in kinds
    ]


def body_bytes(body: dict[str, str] | None) -> bytes:
    if not body:
        return b""
    return base64.b64decode(body["b64"]) if "b64" in body else body["text"].encode()


def url_path(url: str) -> str:
    parts = urlsplit(url)
    return parts.path + (f"?{parts.query}" if parts.query else "")


def routed(line: dict[str, Any]) -> Route | None:
    request = line["request"]
    return route(request["method"], urlsplit(request["url"]).netloc, url_path(request["url"]))


def parsed(line: dict[str, Any]) -> Reply:
    found = routed(line)
    assert found is not None
    assert found.inference
    form = FORMATS[found.format]
    response = line["response"]
    body = body_bytes(response["body"])
    headers = {name.lower(): value for name, value in response["headers"].items()}
    form.parse_request(body_bytes(line["request"]["body"]), url_path(line["request"]["url"]))
    if response["status"] >= 400:
        return form.parse_error(body)
    return form.parse_response(body, headers)


def streamed(line: dict[str, Any], sizes: Iterator[int]) -> Reply:
    found = routed(line)
    assert found is not None
    body = body_bytes(line["response"]["body"])
    parser = FORMATS[found.format].stream(line["response"]["headers"].get("content-type", ""))
    position = 0
    while position < len(body):
        size = next(sizes)
        parser.feed(body[position : position + size])
        position += size
    return parser.result()


def is_streamed(line: dict[str, Any]) -> bool:
    return body_bytes(line["response"]["body"])[:10].startswith((b"data:", b"event:", b":", b"[", b"\0"))


def counts(usage: Usage | None) -> dict[str, int]:
    return {name: getattr(usage or Usage(), ours) or 0 for name, ours in FIELDS.items()}


@pytest.mark.parametrize("line", of_kind("usage"))
def test_reported_usage_is_read_exactly(line: dict[str, Any]) -> None:
    reply = parsed(line)
    expected = line["expected"]
    assert reply.usage is not None
    assert reply.complete
    if "extra" in expected and "iterations_sum" in expected["extra"]:
        # The top level leaves sub-calls out; all of them are billed.
        for name, value in expected["extra"]["iterations_sum"].items():
            assert getattr(reply.usage, name) == value
        return
    wanted = {name: expected["usage"][name] for name in FIELDS}
    if line["flavor"] == "embeddings" and reply.usage.input_image_tokens:
        wanted["input_image_tokens"] = (
            reply.usage.input_image_tokens
        )  # told by `promptTokenDetails`, which it overlooks
    assert counts(reply.usage) == wanted
    cost = (expected.get("extra") or {}).get("provider_cost_usd")
    assert reply.cost_usd == (pytest.approx(cost) if cost is not None else None)


@pytest.mark.parametrize("line", [line for line in of_kind(*ANSWERED) if is_streamed(line.values[0])])
def test_pieces_give_the_same_as_the_whole(line: dict[str, Any]) -> None:
    whole = parsed(line)
    body = body_bytes(line["response"]["body"])
    rng = random.Random(line["id"])
    pieces = [iter(lambda: rng.randint(1, 300), 0), iter(lambda: 16384, 0)]
    if len(body) < 30_000:
        pieces.append(iter(lambda: 1, 0))
    for sizes in pieces:
        reply = streamed(line, sizes)
        assert reply.usage == whole.usage
        assert (reply.model, reply.finish_reason, reply.complete) == (whole.model, whole.finish_reason, whole.complete)
        assert (reply.error, reply.text, reply.preview) == (whole.error, whole.text, whole.preview)


@pytest.mark.parametrize("line", of_kind("non_billable"))
def test_other_calls_are_no_inference(line: dict[str, Any]) -> None:
    found = routed(line)
    assert found is None or not found.inference


@pytest.mark.parametrize("line", of_kind("error"))
def test_errors_have_type_and_message(line: dict[str, Any]) -> None:
    found = routed(line)
    assert found is not None
    if line["flavor"] == "count_tokens":
        assert not found.inference
        return
    reply = parsed(line)
    assert reply.usage is None
    assert reply.error


@pytest.mark.parametrize("line", of_kind("error_in_stream"))
def test_errors_inside_a_stream_are_found(line: dict[str, Any]) -> None:
    reply = parsed(line)
    assert reply.usage is None
    assert (reply.error_type, reply.error_status) == ("invalid_request_error", 400)


@pytest.mark.parametrize("line", of_kind("no_usage"))
def test_missing_usage_stays_missing(line: dict[str, Any]) -> None:
    usage = parsed(line).usage
    assert usage is None or usage.input_tokens is None


@pytest.mark.parametrize("line", of_kind("derived_no_usage"))
def test_a_stream_without_usage_gives_its_text(line: dict[str, Any]) -> None:
    reply = parsed(line)
    assert reply.usage is None
    assert reply.text
    assert reply.complete


# Of these the beginning does not say what the whole said: the last chunk corrects the input by a token, or
# `usageMetadata` has only a traffic type before the cut.
NOT_VISIBLE = {"a1cb99913a35": 10, "2f302287e018": None, "b9f9dffdd39a": None}


@pytest.mark.parametrize("line", of_kind("derived_truncated"))
def test_a_cut_stream_is_incomplete(line: dict[str, Any]) -> None:
    reply = parsed(line)
    truth = line["expected"]["truth"]
    assert not reply.complete
    if line["id"] in NOT_VISIBLE:
        assert (reply.usage and reply.usage.input_tokens) == NOT_VISIBLE[line["id"]]
    elif truth["input_visible_before_cut"]:
        assert reply.usage is not None
        assert reply.usage.input_tokens == truth["input_tokens"]
    else:
        assert reply.usage is None


@pytest.mark.parametrize("line", of_kind("usage", "error", "no_usage"))
def test_the_model_is_known(line: dict[str, Any]) -> None:
    found = routed(line)
    assert found is not None
    if line["request"]["model"] is None or not found.inference:
        return
    ask = FORMATS[found.format].parse_request(body_bytes(line["request"]["body"]), url_path(line["request"]["url"]))
    assert line["request"]["model"] in (ask.model, found.model)
