"""Chat, Responses and the smaller endpoints, on small bodies written by hand."""

import json
import tracemalloc
from typing import Any

import pytest

from heliproxy.exchange import ModelUsage, Reply, Usage
from heliproxy.formats import FORMATS
from heliproxy.formats.openai_responses import ResponseEvents
from heliproxy.formats.openai_usage import read_usage, reported_cost

CHAT = FORMATS["openai_chat"]
RESPONSES = FORMATS["openai_responses"]


def sse(*events: Any, done: bool = True) -> bytes:
    lines = [f"data: {json.dumps(event)}\n\n" for event in events]
    return "".join(lines + (["data: [DONE]\n\n"] if done else [])).encode()


def chunk(text: str | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    delta = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "chatcmpl-1", "model": "gpt-4o-2024-08-06", "choices": [choice], **more}


def parse(form: str, body: Any, headers: dict[str, str] | None = None) -> Reply:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return FORMATS[form].parse_response(data, headers or {})


@pytest.mark.parametrize(
    ("raw", "model", "expected"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}, None, Usage(5, output_tokens=2)),
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 50,
                "prompt_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 8, "audio_tokens": 3},
                "completion_tokens_details": {"reasoning_tokens": 40, "audio_tokens": 4},
            },
            None,
            Usage(
                100,
                cache_read_tokens=64,
                cache_write_tokens=8,
                output_tokens=50,
                reasoning_tokens=40,
                input_audio_tokens=3,
                output_audio_tokens=4,
            ),
        ),
        # DeepSeek
        (
            {"prompt_tokens": 12, "completion_tokens": 1, "prompt_cache_hit_tokens": 10, "prompt_cache_miss_tokens": 2},
            None,
            Usage(12, cache_read_tokens=10, output_tokens=1),
        ),
        # Mistral
        (
            {"prompt_tokens": 100, "completion_tokens": 29, "total_tokens": 129, "num_cached_tokens": 99},
            None,
            Usage(100, cache_read_tokens=99, output_tokens=29),
        ),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 248,
                "total_tokens": 632,
                "prompt_audio_seconds": 3,
                "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 375},
            },
            None,
            Usage(384, cache_read_tokens=0, output_tokens=248, input_audio_tokens=375, units={"audio_seconds": 3.0}),
        ),
        # xAI: reasoning beside the completion
        (
            {
                "prompt_tokens": 12,
                "completion_tokens": 1,
                "total_tokens": 241,
                "completion_tokens_details": {"reasoning_tokens": 228},
            },
            "grok-3-mini",
            Usage(12, output_tokens=229, reasoning_tokens=228),
        ),
        # Gemini: thoughts only in the total
        (
            {"prompt_tokens": 10, "completion_tokens": 12, "total_tokens": 96},
            "gemini-2.5-pro",
            Usage(10, output_tokens=86),
        ),
        ({"prompt_tokens": 10, "completion_tokens": 12, "total_tokens": 96}, "other", Usage(10, output_tokens=12)),
        # Voyage
        ({"total_tokens": 3}, None, Usage(3)),
        # Perplexity deep research
        (
            {"prompt_tokens": 1, "completion_tokens": 2, "num_search_queries": 4, "citation_tokens": 9},
            None,
            Usage(1, output_tokens=2, units={"web_searches": 4.0, "citation_tokens": 9.0}),
        ),
        # whisper
        ({"type": "duration", "seconds": 12}, None, Usage(units={"audio_seconds": 12.0})),
        # Nonsense is not reported
        ({"prompt_tokens": -1, "completion_tokens": "7", "total_tokens": True}, None, None),
        ({"prompt_tokens": 1e300, "completion_tokens": 10**30}, None, None),
        ({"prompt_tokens": 3.0, "completion_tokens": 1.5}, None, Usage(3)),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, None, Usage(0, output_tokens=0)),
        ({}, None, None),
        (None, None, None),
        ([1], None, None),
    ],
)
def test_usage_of_each_family(raw: Any, model: str | None, expected: Usage | None) -> None:
    assert read_usage(raw, model) == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"cost": 0.25}, 0.25),
        ({"cost": 0}, 0.0),
        ({"cost": 0, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.5}}, 0.5),
        ({"cost": 0.1, "is_byok": False, "cost_details": {"upstream_inference_cost": 0.5}}, 0.1),
        ({"cost": {"total_cost": 0.0051}}, 0.0051),
        ({"cost_in_usd_ticks": 12_000_000_000}, 1.2),
        ({"cost_in_usd_ticks": 0}, None),
        ({"estimated_cost": 0.001}, 0.001),
        ({"cost": -1}, None),
        ({"cost": "1"}, None),
        ({"cost": {}}, None),
        ({}, None),
    ],
)
def test_cost_as_the_provider_reports_it(raw: Any, expected: float | None) -> None:
    assert reported_cost(raw) == (pytest.approx(expected) if expected is not None else None)


def test_a_completion_is_read() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    message = {"content": "Hi", "reasoning_content": "hm", "tool_calls": [call]}
    reply = parse(
        "openai_chat",
        {
            "id": "c1",
            "model": "gpt-4o",
            "service_tier": "Flex",
            "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 2},
        },
    )
    assert (reply.model, reply.response_id, reply.finish_reason) == ("gpt-4o", "c1", "tool_calls")
    assert (reply.text, reply.preview, reply.tool_calls) == ('hmHif{"a":1}', "Hi", 1)
    assert reply.pricing == {"tier": "flex"}
    assert reply.complete


def test_a_tool_call_alone_is_its_own_preview() -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}
    reply = parse("openai_chat", {"choices": [{"message": {"content": None, "tool_calls": [call]}}]})
    assert reply.preview == 'weather: {"city":"Rome"}'


def test_usage_of_a_stream_is_its_last_chunk() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    reply = parse(
        "openai_chat",
        sse(chunk("He"), chunk("y"), chunk(finish="stop"), {"id": "chatcmpl-1", "choices": [], "usage": usage}),
    )
    assert reply.usage == Usage(3, output_tokens=2)
    assert (reply.preview, reply.finish_reason, reply.complete) == ("Hey", "stop", True)


def test_usage_on_the_last_content_chunk_is_found_and_its_text_stays_in_order() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    reply = parse("openai_chat", sse(chunk("a"), chunk("b"), chunk("c", "stop", usage=usage)))
    assert reply.usage == Usage(3, output_tokens=2)
    assert reply.preview == "abc"


@pytest.mark.parametrize("at", range(20))
def test_usage_anywhere_among_chunks_that_say_they_have_none_is_found(at: int) -> None:
    chunks = [chunk(f"{i} ", usage=None) for i in range(20)]
    chunks[at] = chunk("x ", usage={"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16})
    parser = CHAT.stream("text/event-stream")
    parser.feed(sse(*chunks))
    reply = parser.result()
    assert reply.usage is not None
    assert (reply.usage.input_tokens, reply.usage.output_tokens, reply.complete) == (7, 9, True)
    assert reply.preview == "".join("x " if i == at else f"{i} " for i in range(20)).strip()


def test_groq_reports_usage_under_its_own_name() -> None:
    usage = {"queue_time": 0.1, "prompt_tokens": 7, "completion_tokens": 1}
    reply = parse("openai_chat", sse(chunk("x"), chunk(finish="stop", x_groq={"id": "r", "usage": usage})))
    assert reply.usage == Usage(7, output_tokens=1)


def test_a_stream_without_usage_gives_all_its_text() -> None:
    long = "word " * 400
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}
    more = {"index": 0, "function": {"arguments": '{"a":'}}
    rest = {"index": 0, "function": {"arguments": "1}"}}
    events = [chunk(word + " ", usage=None) for word in long.split()]
    events += [{"choices": [{"index": 0, "delta": {"tool_calls": [part]}}]} for part in (call, more, rest)]
    reply = parse("openai_chat", sse(*events, chunk(finish="tool_calls")))
    assert reply.usage is None
    assert reply.text == long + 'f{"a":1}'
    assert reply.tool_calls == 1
    assert len(reply.preview) <= 500


@pytest.mark.parametrize(
    ("events", "done", "complete"),
    [
        ([chunk("a")], False, False),
        ([chunk("a"), chunk(finish="stop")], False, True),
        ([chunk("a")], True, True),
        ([], True, True),
    ],
)
def test_a_stream_is_complete_when_it_says_so(events: list[Any], done: bool, complete: bool) -> None:
    assert parse("openai_chat", sse(*events, done=done) or b"data: \n\n").complete is complete


def test_a_stream_of_hours_takes_little_memory() -> None:
    piece = sse(chunk("word "), done=False) * 500
    parser = CHAT.stream("text/event-stream")
    tracemalloc.start()
    try:
        for _ in range(200):
            parser.feed(piece)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 1024 * 1024
    assert parser.result().text == "word " * 100_000


def test_comments_and_keep_alives_are_skipped() -> None:
    body = b": OPENROUTER PROCESSING\n\n" + sse(chunk("a"), done=False) + b": keep-alive\n\n" + sse(chunk("b"))
    assert parse("openai_chat", body).preview == "ab"


def test_parallel_answers_are_kept_apart() -> None:
    def at(index: int, text: str) -> dict[str, Any]:
        return {"choices": [{"index": index, "delta": {"content": text}}]}

    assert parse("openai_chat", sse(at(0, "a"), at(1, "x"), at(0, "b"), at(1, "y"))).text == "abxy"


@pytest.mark.parametrize(
    ("stream", "kind", "message", "status"),
    [
        (
            b'event: error\ndata: {"error":{"message":"no","type":"invalid_request_error","status_code":400}}\n\n',
            "invalid_request_error",
            "no",
            400,
        ),
        (b'data: {"error":{"code":502,"message":"upstream"},"choices":[]}\n\n', "502", "upstream", 502),
        (b'data: {"error":{"message":"slow","type":"rate_limit_error"}}\n\n', "rate_limit_error", "slow", 429),
        (b'data: {"error":"boom"}\n\n', None, "boom", None),
        (b"event: error\ndata: plain words\n\n", "error", "plain words", None),
    ],
)  # fmt: skip
def test_an_error_inside_a_stream_is_an_error(
    stream: bytes, kind: str | None, message: str, status: int | None
) -> None:
    reply = parse("openai_chat", sse(chunk("a"), done=False) + stream)
    assert (reply.error_type, reply.error, reply.error_status) == (kind, message, status)
    assert reply.preview == "a"


def test_an_error_where_a_stream_was_due_is_read() -> None:
    parser = CHAT.stream("text/event-stream")
    parser.feed(b' {"error":{"message":"no",')
    parser.feed(b'"type":"server_error"}}')
    assert (parser.result().error, parser.result().error_type) == ("no", "server_error")


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        ({"error": {"message": "m", "type": "t", "code": "c"}}, "t", "m"),
        ({"error": {"code": "RateLimitReached", "message": "m"}}, "RateLimitReached", "m"),
        ({"error": {"code": 404, "message": "m", "status": "NOT_FOUND"}}, "NOT_FOUND", "m"),
        ([{"error": {"code": 400, "message": "m", "status": "INVALID_ARGUMENT"}}], "INVALID_ARGUMENT", "m"),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "m"}}, "overloaded_error", "m"),
        ({"message": "m"}, None, "m"),
        ({"Message": "m", "__type": "ThrottlingException"}, "ThrottlingException", "m"),
        ({"error": "m"}, None, "m"),
        ({"error": "m", "error_type": "overloaded"}, "overloaded", "m"),
        ({"detail": "m"}, None, "m"),
        ({"detail": [{"msg": "m", "type": "missing"}]}, None, "m"),
        ({"error_type": "TOO_MANY_TOKENS", "message": "m"}, "TOO_MANY_TOKENS", "m"),
        ({"errors": ["m"]}, None, "m"),
        ({"error": {"type": "t"}}, "t", "t"),
        ({"helicone-message": "m", "support": "s", "helicone-error": "{}"}, None, "m"),
        (b"<html>Bad Gateway</html>", None, "<html>Bad Gateway</html>"),
        (b"", None, None),
        (b"null", None, None),
        (b"\xff\xfe", None, "\ufffd\ufffd"),
    ],
)
def test_errors_of_every_shape(body: Any, kind: str | None, message: str | None) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = CHAT.parse_error(data)
    assert (reply.error_type, reply.error) == (kind, message)
    assert reply.usage is None


def test_the_request_is_read() -> None:
    messages = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": [{"type": "text", "text": "last"}, {"type": "image_url", "image_url": {}}]},
        {"role": "tool", "content": "result"},
    ]
    body = {"model": "m", "stream": True, "user": "u", "service_tier": "flex", "messages": messages}
    ask = CHAT.parse_request(json.dumps(body).encode(), "/v1/chat/completions")
    assert (ask.model, ask.stream, ask.user, ask.preview, ask.tier) == ("m", True, "u", "last", "flex")


def test_azure_names_the_model_in_the_path() -> None:
    ask = CHAT.parse_request(b'{"messages":[]}', "/openai/deployments/my%20gpt/chat/completions?api-version=1")
    assert ask.model == "my gpt"


# -- Responses


def response(**more: Any) -> dict[str, Any]:
    return {
        "id": "resp_1",
        "object": "response",
        "status": "completed",
        "model": "gpt-5",
        "service_tier": "default",
        "output": [{"type": "message", "content": [{"type": "output_text", "text": "Hello"}]}],
        "usage": {
            "input_tokens": 10,
            "input_tokens_details": {"cached_tokens": 4},
            "output_tokens": 5,
            "output_tokens_details": {"reasoning_tokens": 2},
        },
        **more,
    }


WANTED = Usage(10, cache_read_tokens=4, output_tokens=5, reasoning_tokens=2)


def test_a_response_is_read() -> None:
    reply = parse("openai_responses", response())
    assert (reply.usage, reply.preview, reply.finish_reason) == (WANTED, "Hello", "completed")
    assert reply.pricing == {"tier": "default"}


def test_a_background_response_is_not_complete() -> None:
    reply = parse("openai_responses", response(status="queued", usage=None, output=[]))
    assert reply.usage is None
    assert not reply.complete


def test_a_cut_response_says_why() -> None:
    reply = parse("openai_responses", response(status="incomplete", incomplete_details={"reason": "max_output_tokens"}))
    assert reply.finish_reason == "max_output_tokens"
    assert reply.usage == WANTED


def test_a_failed_response_is_an_error() -> None:
    failed = response(status="failed", error={"code": "server_error", "message": "m"}, usage=None)
    for reply in (parse("openai_responses", failed), parse("openai_responses", events("response.failed", failed))):
        assert (reply.error_type, reply.error, reply.error_status) == ("server_error", "m", 500)
        assert reply.usage is None


def test_searches_are_counted_and_pages_opened_in_them_are_not() -> None:
    output = [
        {"type": "web_search_call", "action": {"type": "search"}},
        {"type": "web_search_call", "action": {"type": "open_page"}},
        {"type": "web_search_call"},
        {"type": "file_search_call"},
    ]
    reply = parse("openai_responses", response(output=output))
    assert reply.usage is not None
    assert reply.usage.units == {"web_searches": 2, "file_searches": 1}


def test_image_tools_are_added_as_a_part_on_their_own_model() -> None:
    image = {"input_tokens": 50, "output_tokens": 1000, "output_tokens_details": {"image_tokens": 1000}}
    tools = [{"type": "image_generation", "model": "gpt-image-2"}]
    reply = parse("openai_responses", response(tools=tools, tool_usage={"image_gen": image}))
    assert reply.usage is not None
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (60, 1005)
    assert reply.usage.parts == (
        ModelUsage(None, WANTED),
        ModelUsage("gpt-image-2", Usage(50, output_tokens=1000, output_image_tokens=1000)),
    )


def events(last: str, final: dict[str, Any]) -> bytes:
    started = {"type": "response.created", "response": response(status="in_progress", usage=None, output=[])}
    deltas = [{"type": "response.output_text.delta", "output_index": 0, "delta": d} for d in ("Hel", "lo")]
    named = [*deltas, {"type": last, "response": final}]
    text = f"event: response.created\ndata: {json.dumps(started)}\n\n"
    return (text + "".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in named)).encode()


@pytest.mark.parametrize("last", ["response.completed", "response.incomplete"])
def test_usage_of_a_response_stream_is_in_its_last_event(last: str) -> None:
    reply = parse("openai_responses", events(last, response()))
    assert (reply.usage, reply.preview, reply.model, reply.complete) == (WANTED, "Hello", "gpt-5", True)


def test_a_response_stream_whose_end_lists_no_output_keeps_its_deltas() -> None:
    reply = parse("openai_responses", events("response.completed", response(output=[])))
    assert (reply.usage, reply.preview) == (WANTED, "Hello")


def test_a_response_stream_that_is_cut_knows_what_it_was() -> None:
    reply = parse("openai_responses", events("response.output_text.done", {})[:-200])
    assert (reply.model, reply.response_id, reply.complete) == ("gpt-5", "resp_1", False)
    assert reply.usage is None
    assert reply.text.startswith("Hel")


@pytest.mark.parametrize(
    ("event", "kind", "status"),
    [
        ({"type": "error", "code": "rate_limit_exceeded", "message": "m"}, "rate_limit_exceeded", 429),
        ({"type": "error", "error": {"type": "invalid_request_error", "message": "m"}}, "invalid_request_error", 400),
        ({"type": "error", "status": 400, "error": {"type": "x", "message": "m"}}, "x", 400),
    ],
)
def test_error_events_end_a_response(event: Any, kind: str, status: int) -> None:
    reader = ResponseEvents()
    reader.take_event(json.dumps(event).encode())
    reply = reader.reply()
    assert reader.ended
    assert (reply.error, reply.error_type, reply.error_status) == ("m", kind, status)


def test_websocket_messages_are_the_same_events() -> None:
    reader = ResponseEvents()
    for line in events("response.completed", response()).splitlines():
        if line.startswith(b"data: "):
            assert not reader.ended
            reader.take_event(line[6:])
    assert reader.ended
    assert reader.reply().usage == WANTED


def test_a_type_at_the_end_of_an_event_is_found() -> None:
    reader = ResponseEvents()
    final = json.dumps({"response": response(instructions="x" * 2000), "type": "response.completed"})
    reader.take_event(final.encode())
    assert reader.reply().usage == WANTED


def test_realtime_reports_text_audio_and_cache() -> None:
    usage = {
        "total_tokens": 30,
        "input_tokens": 20,
        "output_tokens": 10,
        "input_token_details": {
            "text_tokens": 5,
            "audio_tokens": 15,
            "cached_tokens": 8,
            "cached_tokens_details": {"text_tokens": 2, "audio_tokens": 6},
        },
        "output_token_details": {"text_tokens": 3, "audio_tokens": 7},
    }
    item = {"type": "message", "content": [{"type": "output_audio", "transcript": "hi"}]}
    reader = ResponseEvents()
    reader.take_event(b'{"type":"response.output_audio.delta","delta":"AAAA"}')
    done = {"type": "response.done", "response": {"id": "r", "status": "completed", "usage": usage, "output": [item]}}
    reader.take_event(json.dumps(done).encode())
    reply = reader.reply()
    assert reader.ended
    assert reply.preview == "hi"
    assert reply.usage == Usage(
        20,
        cache_read_tokens=8,
        output_tokens=10,
        input_audio_tokens=15,
        cache_read_audio_tokens=6,
        output_audio_tokens=7,
    )


def test_a_response_create_message_is_a_request() -> None:
    message = {"type": "response.create", "model": "gpt-5", "input": [{"role": "user", "content": "hi"}]}
    ask = RESPONSES.parse_request(json.dumps(message).encode(), "/v1/responses")
    assert (ask.model, ask.preview) == ("gpt-5", "hi")
    ask = RESPONSES.parse_request(b'{"type":"response.create"}', "/v1/realtime?model=gpt-realtime")
    assert ask.model == "gpt-realtime"


# -- The smaller endpoints


def test_completions_have_text() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    reply = parse("openai_completions", {"choices": [{"text": "abc", "finish_reason": "stop"}], "usage": usage})
    assert (reply.preview, reply.usage) == ("abc", Usage(1, output_tokens=2))
    reply = parse("openai_completions", sse({"choices": [{"text": "a"}]}, {"choices": [{"text": "b"}]}))
    assert (reply.text, reply.usage, reply.complete) == ("ab", None, True)


def test_embeddings_have_input_only() -> None:
    reply = parse("openai_embeddings", {"model": "e", "data": [], "usage": {"prompt_tokens": 8, "total_tokens": 8}})
    assert (reply.usage, reply.model) == (Usage(8), "e")


@pytest.mark.parametrize(
    ("body", "usage", "cost"),
    [
        (
            {"data": [{}], "usage": {"input_tokens": 10, "output_tokens": 1000, "total_tokens": 1010}},
            Usage(10, output_tokens=1000, output_image_tokens=1000, units={"images": 1}),
            None,
        ),
        ({"created": 1, "data": [{"url": "u"}, {"url": "v"}]}, Usage(units={"images": 2}), None),
        ({"data": [{}], "usage": {"cost_in_usd_ticks": 700_000_000}}, Usage(units={"images": 1}), 0.07),
        ({"data": []}, None, None),
    ],
)
def test_images_are_counted(body: Any, usage: Usage | None, cost: float | None) -> None:
    reply = parse("openai_images", body)
    assert (reply.usage, reply.cost_usd) == (usage, cost)


def test_a_stream_of_images_ends_with_its_usage() -> None:
    partial = {"type": "image_generation.partial_image", "b64_json": "A" * 1000}
    last = {"type": "image_generation.completed", "b64_json": "B", "usage": {"input_tokens": 1, "output_tokens": 2}}
    reply = parse("openai_images", sse(partial, last, done=False))
    assert reply.usage == Usage(1, output_tokens=2, output_image_tokens=2, units={"images": 1})
    assert reply.complete


def test_transcriptions_report_tokens_or_seconds() -> None:
    usage = {"type": "tokens", "input_tokens": 37, "input_token_details": {"audio_tokens": 37}, "output_tokens": 12}
    wanted = Usage(37, output_tokens=12, input_audio_tokens=37)
    assert parse("openai_transcription", {"text": "hi", "usage": usage}).usage == wanted
    delta, done = {"type": "transcript.text.delta", "delta": "hi"}, {"type": "transcript.text.done", "usage": usage}
    reply = parse("openai_transcription", sse(delta, done, done=False))
    assert (reply.usage, reply.preview, reply.complete) == (wanted, "hi", True)
    assert parse("openai_transcription", {"text": "hi", "duration": 3.5}).usage == Usage(units={"audio_seconds": 3.5})
    plain = parse("openai_transcription", b"1\n00:00 hi", {"content-type": "text/plain; charset=utf-8"})
    assert (plain.usage, plain.preview) == (None, "1\n00:00 hi")


def test_speech_is_sound_unless_it_streams_events() -> None:
    assert parse("openai_speech", b"\xff\xf3\x84\xc4 sound").usage is None
    done = {"type": "speech.audio.done", "usage": {"input_tokens": 3, "output_tokens": 90}}
    reply = parse("openai_speech", sse({"type": "speech.audio.delta", "audio": "AAAA"}, done, done=False))
    assert reply.usage == Usage(3, output_tokens=90)


def test_moderation_says_whether_it_flagged() -> None:
    reply = parse("openai_moderation", {"id": "m", "model": "omni", "results": [{"flagged": True}]})
    assert (reply.model, reply.preview, reply.usage) == ("omni", "flagged", None)


def test_an_upload_names_its_model_in_a_form_field() -> None:
    body = (
        b"--XyZ\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n"
        b"Content-Type: audio/wav\r\n\r\n" + bytes(range(256)) * 40 + b'name="model"\r\n\r\nwrong\r\n'
        b"--XyZ\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\ngpt-4o-transcribe\r\n"
        b"--XyZ\r\nContent-Disposition: form-data; name=stream\r\n\r\ntrue\r\n--XyZ--\r\n"
    )  # fmt: skip
    ask = FORMATS["openai_transcription"].parse_request(body, "/v1/audio/transcriptions")
    assert (ask.model, ask.stream) == ("gpt-4o-transcribe", True)
