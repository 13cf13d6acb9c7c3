"""Either side breaks off, at any moment: the client has exactly what upstream sent, and the row says what happened."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
from collections import Counter

import pytest

from attempts_wire import Call, H2Client, answers
from fakes import chat_answer, chat_chunks
from stream_rig import JSON, RETRY, Product, Proxies, Sides, chat_body, open_files, product, within

CHUNKS = chat_chunks(["Hel", "lo"], usage={"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100})
OK = json.dumps(chat_answer()).encode()
BIG = b'{"pad":"' + b"x" * 300_000 + b'"}'
both = pytest.mark.parametrize("headers", [[], RETRY], ids=["once", "retrying"])


async def silent(call: Call) -> None:
    await call.gone.wait()


async def half(call: Call) -> None:
    """Half a stream, and then nothing."""
    await call.events()
    for chunk in CHUNKS[:2]:
        await call.send(chunk)
    await call.gone.wait()


async def half_and_die(call: Call) -> None:
    await call.events()
    for chunk in CHUNKS[:2]:
        await call.send(chunk)
    await call.die()


async def die(call: Call) -> None:
    await call.die()


async def whole(call: Call) -> None:
    await call.events()
    for chunk in CHUNKS:
        await call.send(chunk)
    await call.end()


async def read(run: Product, stream: int, size: int) -> bytes:
    body = b""
    while len(body) < size:
        body += await run.chunk(stream)
    return body


# ------------------------------------------------------------------------------------------------- the client leaves


@both
@within(10)
async def test_client_that_leaves_before_the_answer(
    proxies: Proxies, sides: Sides, headers: list[tuple[str, str]]
) -> None:
    async with product(proxies, sides, [silent]) as run:
        stream = run.send(chat_body(), headers)
        await run.upstream.called(1)
        await run.leave(stream)
        await run.upstream.calls[0].gone.wait()
        row = await run.row()
        assert (row["status"], row["error_type"], row["attempts"]) == (-3, "client_cancelled", 1)
        assert (row["input_tokens"], row["cost_usd"], row["ttft_ms"]) == (None, None, None)
        assert len(run.upstream.calls) == 1


@both
@within(10)
async def test_client_that_leaves_within_a_stream(
    proxies: Proxies, sides: Sides, headers: list[tuple[str, str]]
) -> None:
    async with product(proxies, sides, [half]) as run:
        stream = run.send(chat_body(stream=True), headers)
        assert await run.head(stream) == 200
        sent = b"".join(CHUNKS[:2])
        assert await read(run, stream, len(sent)) == sent
        await run.leave(stream)
        await run.upstream.calls[0].gone.wait()
        row = await run.row()
        assert (row["status"], row["error_type"], row["usage_source"]) == (-3, "client_cancelled", "estimated")
        assert row["lower_bound"] == 1
        assert row["cost_usd"] > 0
        assert 0 <= row["ttft_ms"] <= row["latency_ms"]
        assert len(run.upstream.calls) == 1


@within(10)
async def test_client_that_leaves_after_the_last_event(proxies: Proxies, sides: Sides) -> None:
    async def open_ended(call: Call) -> None:
        await call.events()
        for chunk in CHUNKS:
            await call.send(chunk)
        await call.gone.wait()

    async with product(proxies, sides, [open_ended]) as run:
        stream = run.send(chat_body(stream=True))
        assert await run.head(stream) == 200
        assert await read(run, stream, len(b"".join(CHUNKS))) == b"".join(CHUNKS)
        await run.leave(stream)
        row = await run.row()
        assert (row["status"], row["error"], row["usage_source"]) == (200, None, "provider")
        assert (row["input_tokens"], row["output_tokens"]) == (1000, 100)


@within(10)
async def test_client_that_leaves_between_two_calls_makes_no_second(proxies: Proxies, sides: Sides) -> None:
    async with product(proxies, sides, [answers(500)] * 3) as run:
        slow = [("Helicone-Retry-Enabled", "true"), ("Helicone-Retry-Min-Timeout", "9000")]
        stream = run.send(chat_body(), slow)
        await run.upstream.called(1)
        while not next(iter(run.proxy.addon.live.values())).attempts:
            await asyncio.sleep(0.01)
        await run.leave(stream)
        row = await run.row()
        assert (row["status"], row["error_type"], row["attempts"]) == (-3, "client_cancelled", 1)
        assert len(run.upstream.calls) == 1


# ----------------------------------------------------------------------------------------------- the upstream breaks


@both
@within(10)
async def test_upstream_that_dies_before_its_answer(
    proxies: Proxies, sides: Sides, headers: list[tuple[str, str]]
) -> None:
    calls = 3 if headers else 1
    async with product(proxies, sides, [die] * 3) as run:
        answer = await run.post(chat_body(), headers)
        assert answer.status == 502
        assert json.loads(answer.body)["error"] == "Network connection lost"
        row = await run.row()
        assert (row["status"], row["error_type"], row["attempts"]) == (502, "upstream_failed", calls)
        assert len(run.upstream.calls) == calls


@both
@within(10)
async def test_upstream_that_dies_within_a_stream(
    proxies: Proxies, sides: Sides, headers: list[tuple[str, str]]
) -> None:
    async with product(proxies, sides, [half_and_die, whole]) as run:
        stream = run.send(chat_body(stream=True), headers)
        assert await run.head(stream) == 200
        assert await run.received(stream) == b"".join(CHUNKS[:2])
        row = await run.row()
        assert (row["status"], row["error_type"], row["usage_source"]) == (200, "upstream_failed", "estimated")
        assert row["lower_bound"] == 1
        assert row["cost_usd"] > 0
        assert len(run.upstream.calls) == 1


@pytest.mark.parametrize("sides", [("h1", "h1"), ("h1", "plain"), ("h2", "h1"), ("gateway", "h1")], ids="-".join)
@within(10)
async def test_upstream_that_dies_within_a_chunk(proxies: Proxies, sides: Sides) -> None:
    async def cut(call: Call) -> None:
        await call.events()
        await call.send(CHUNKS[0])
        await call.raw(b"%x\r\n%s" % (len(CHUNKS[1]), CHUNKS[1][:20]))
        await call.die()

    async with product(proxies, sides, [cut]) as run:
        stream = run.send(chat_body(stream=True))
        assert await run.head(stream) == 200
        assert await run.received(stream) == CHUNKS[0] + CHUNKS[1][:20]
        assert (await run.row())["error_type"] == "upstream_failed"


@within(10)
async def test_short_body_that_was_held_back_is_a_502(proxies: Proxies, sides: Sides) -> None:
    async def short(call: Call) -> None:
        await call._start(200, [*JSON, ("content-length", str(len(OK)))], False)
        await call.send(OK[:-5])
        await call.die()

    async with product(proxies, sides, [short]) as run:
        answer = await run.post(chat_body())
        assert answer.status == 502
        assert json.loads(answer.body)["error"] == "Network connection lost"
        row = await run.row()
        assert (row["status"], row["error_type"]) == (502, "upstream_failed")


@within(10)
async def test_short_body_under_way_ends_as_it_came(proxies: Proxies, sides: Sides) -> None:
    async def short(call: Call) -> None:
        await call._start(200, [*JSON, ("content-length", str(len(BIG)))], False)
        await call.send(BIG[:1000])
        await call.die()

    async with product(proxies, sides, [short]) as run:
        stream = run.send(chat_body())
        assert await run.head(stream) == 200
        if isinstance(run.client, H2Client):
            assert await run.received(stream) == BIG[:1000]
        else:
            assert await run.client.reader.read() == BIG[:1000]
        assert (await run.row())["error_type"] == "upstream_failed"


@within(10)
async def test_refused_http2_connection_is_called_again(proxies: Proxies) -> None:
    async def goaway(call: Call) -> None:
        assert call.h2 is not None
        call.h2.close_connection(last_stream_id=0)
        await call.raw(call.h2.data_to_send())

    async with product(proxies, ("h2", "h2"), [goaway, answers(200, OK, JSON)]) as run:
        answer = await run.post(chat_body(), RETRY)
        assert (answer.status, answer.body) == (200, OK)
        assert (await run.row())["attempts"] == 2


# ----------------------------------------------------------------------------------------------- odd but whole answers


@within(10)
async def test_compressed_stream_passes_as_it_is(proxies: Proxies, sides: Sides) -> None:
    packed = gzip.compress(b"".join(CHUNKS))

    async def compressed(call: Call) -> None:
        await call.events([("content-encoding", "gzip")])
        for at in range(0, len(packed), 7):
            await call.send(packed[at : at + 7])
        await call.end()

    async with product(proxies, sides, [compressed]) as run:
        assert (await run.post(chat_body(stream=True))).body == packed
        row = await run.row()
        assert (row["status"], row["input_tokens"], row["output_tokens"]) == (200, 1000, 100)


@pytest.mark.parametrize("sides", [("h2", "h2")], ids="-".join)
@within(10)
async def test_empty_data_frames_change_nothing(proxies: Proxies, sides: Sides) -> None:
    async def airy(call: Call) -> None:
        await call.events()
        for chunk in CHUNKS:
            await call.send(b"")
            await call.send(chunk)
        await call.send(b"")
        await call.end()

    async with product(proxies, sides, [airy]) as run:
        assert (await run.post(chat_body(stream=True))).body == b"".join(CHUNKS)
        assert (await run.row())["output_tokens"] == 100


@within(20)
async def test_nothing_stays_behind(proxies: Proxies, sides: Sides) -> None:
    async def once(script: list[object], leave: bool) -> None:
        async with product(proxies, sides, script) as run:  # type: ignore[arg-type]
            stream = run.send(chat_body(stream=True))
            await run.upstream.called(1)
            if leave:
                await run.leave(stream)
            elif script == [die]:
                await run.answer(stream)
            else:
                await run.head(stream)
                await run.received(stream)
            await run.row()

    await once([silent], True)  # what is opened only once is open now
    before = open_files()
    for _ in range(3):
        await once([silent], True)
        await once([half], True)
        await once([die], False)
        await once([half_and_die], False)
    addon = proxies.get().addon
    for _ in range(100):
        gc.collect()
        if not open_files() - before and not addon.live and not addon.patience.layers:  # type: ignore[union-attr]
            break
        await asyncio.sleep(0.05)
    assert open_files() - before == Counter()
    assert not addon.live
    assert not addon.destinations
    assert not addon.passing
    assert not addon.patience.layers  # type: ignore[union-attr]
