"""Whatever comes, no format raises, and no number in it is negative."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliproxy.exchange import Reply, Usage
from heliproxy.formats import FORMATS
from heliproxy.formats.eventstream import encode_message

WORDS = st.sampled_from(
    """type error usage choices delta message content text index model id output response input_tokens output_tokens
    prompt_tokens completion_tokens total_tokens prompt_tokens_details cached_tokens cost cost_details event_type done
    usageMetadata promptTokenCount candidates parts finishReason iterations cache_creation tool_calls function name
    arguments billed_units meta inputTokens outputTokens cacheDetails results tokenCount statistics predictions
    embeddings data is_finished finish_reason tool_usage image_gen status interaction steps bytes instances item
    messages contents input prompt metadata duration pages usage_info service_tier contentBlockDelta event reason
    message_start message_delta response.completed response.created response.output_text.delta message-end""".split()  # noqa: SIM905
)
KINDS = ("metadata", "chunk", "contentBlockDelta")
NUMBERS = st.sampled_from([-1, 0, 1, 2**53, 2**64, 10**40, -(10**30), 1.5, 3.0, 1e300, float("nan"), float("inf")])
LEAVES = st.none() | st.booleans() | NUMBERS | WORDS | st.text(max_size=5) | st.just("\ud800")
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=5), max_leaves=20
)


def dump(value: Any) -> bytes:
    return json.dumps(value).encode()


def check(reply: Reply) -> None:
    for text in (reply.model, reply.response_id, reply.finish_reason, reply.error, reply.error_type, reply.text):
        if text is not None:
            text.encode()  # SQLite takes no lone surrogates
    reply.preview.encode()
    assert len(reply.preview) <= 500
    assert reply.error_status is None or 400 <= reply.error_status <= 599
    assert reply.cost_usd is None or reply.cost_usd >= 0
    for usage in [reply.usage, *(part.usage for part in (reply.usage.parts if reply.usage else ()))]:
        for name in Usage.__slots__ if usage else ():
            value = getattr(usage, name)
            assert name in ("units", "parts") or value is None or (isinstance(value, int) and value >= 0)
    json.dumps(reply.usage_json)


def frames(events: list[Any]) -> list[bytes]:
    """The same events as a stream of each kind."""
    sse = b"".join(b"data: " + dump(e) + b"\n\n" for e in events)
    named = b"".join(b"event: error\r\ndata: " + dump(e) + b"\r\n\r\n" for e in events)
    lines = b"".join(dump(e) + b"\n" for e in events)
    binary = b"".join(
        encode_message({":event-type": kind}, dump(e))
        for e in events
        for kind in ("metadata", "chunk", "contentBlockDelta")
    )
    return [sse, named, lines, dump(events), binary]


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=40, deadline=None)
@given(
    events=st.lists(VALUES, max_size=4), size=st.integers(1, 50), headers=st.dictionaries(WORDS, st.text(max_size=5))
)
def test_json_of_any_shape(name: str, events: list[Any], size: int, headers: dict[str, str]) -> None:
    form = FORMATS[name]
    for event in events:
        form.parse_request(dump(event), "/model/x/converse?a")
        check(form.parse_response(dump(event), headers))
        check(form.parse_error(dump(event)))
    for body in frames(events):
        parser = form.stream("")
        for start in range(0, len(body), size):
            parser.feed(body[start : start + size])
        check(parser.result())
        check(form.parse_response(body, headers))


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=30, deadline=None)
@given(body=st.binary(max_size=120) | st.text(max_size=60).map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_bytes_of_any_kind(name: str, body: bytes) -> None:
    form = FORMATS[name]
    form.parse_request(body, body.decode("latin-1"))
    check(form.parse_response(body, {}))
    check(form.parse_error(body))
    for lead in (b"", b"data: ", b"{", b"[", b"\0"):
        parser = form.stream("text/event-stream")
        parser.feed(lead + body)
        check(parser.result())
        parser.feed(body)
        check(parser.result())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        *(b'{"usage":' + b'{"a":' * n + b"1" + b"}" * n + b',"error":"e"}' for n in (300, 900, 3000, 20_000)),
        *(b'[{"choices":' + b"[" * n + b"]" * n + b"}]" for n in (300, 900, 3000, 20_000)),
        b'{"usage":{"prompt_tokens":' + b"9" * 10_000 + b"}}",
        b'{"usage":{"input_tokens":NaN,"output_tokens":Infinity}}',
        b'{"usage":{"input_tokens":1e999}}',
        b'{"model":"\\ud800","error":{"message":"\\udfff"}}',
        b'{"choices":[{"message":{"content":"\xff\xfe"}}]}',
        b"\xef\xbb\xbf{}",
        b"\0\0\0\x10\0\0\0\0\0\0\0\0",
        b"data: [DONE]\n\n",
        b"",
    ],
    ids=range(19),
)
def test_known_traps(name: str, body: bytes) -> None:
    form = FORMATS[name]
    form.parse_request(body, "/")
    check(form.parse_response(body, {}))
    check(form.parse_error(body))
    for data in (body, b"data: " + body + b"\n\n"):
        parser = form.stream("")
        parser.feed(data)
        check(parser.result())
