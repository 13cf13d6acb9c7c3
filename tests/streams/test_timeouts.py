"""An upstream that says nothing: the client gets a 504, or the end of what it has, and the row says -2."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from attempts_wire import Call, Handler, answers
from fakes import chat_answer, chat_chunks
from stream_rig import JSON, RETRY, Proxies, Sides, chat_body, lead, product, within

TIMEOUT = 0.25
CHUNKS = chat_chunks(["Hel", "lo"])
OK = json.dumps(chat_answer()).encode()


async def silent(call: Call) -> None:
    await call.gone.wait()


async def stalls_in_stream(call: Call) -> None:
    await call.events()
    for chunk in CHUNKS[:2]:
        await call.send(chunk)
    await call.gone.wait()


async def stalls_in_body(call: Call) -> None:
    await call._start(200, [*JSON, ("content-length", str(len(OK)))], False)
    await call.send(OK[:40])
    await call.gone.wait()


@pytest.mark.parametrize("retrying", [False, True])
@within(10)
async def test_silence_before_the_answer_is_a_504(proxies: Proxies, sides: Sides, retrying: bool) -> None:
    async with product(proxies, sides, [silent] * 3, upstream_timeout=TIMEOUT) as run:
        answer = await run.post(chat_body(), RETRY if retrying else [])
        assert answer.status == 504
        assert json.loads(answer.body)["error"] == "Request timeout"
        row = await run.row()
        assert (row["status"], row["error_type"]) == (-2, "timeout")
        assert row["attempts"] == len(run.upstream.calls) == (3 if retrying else 1)
        for call in run.upstream.calls:
            await call.gone.wait()


@within(10)
async def test_call_after_a_silent_one_is_made_and_answered(proxies: Proxies, sides: Sides) -> None:
    script = [silent, answers(200, OK, JSON)]
    async with product(proxies, sides, script, upstream_timeout=TIMEOUT) as run:
        answer = await run.post(chat_body(), RETRY)
        assert (answer.status, answer.body) == (200, OK)
        row = await run.row()
        assert (row["status"], row["error"], row["attempts"]) == (200, None, 2)
        first, second = json.loads(row["attempts_json"])
        assert (first["status"], first["error"]) == (None, "upstream timeout: silent for 0.25 s")
        assert second["status"] == 200


@pytest.mark.parametrize("retrying", [False, True])
@within(10)
async def test_silence_within_a_stream_ends_it_and_keeps_what_is_known(
    proxies: Proxies, sides: Sides, retrying: bool
) -> None:
    async with product(proxies, sides, [stalls_in_stream], upstream_timeout=TIMEOUT) as run:
        stream = run.send(chat_body(stream=True), RETRY if retrying else [])
        assert await run.head(stream) == 200
        assert await run.received(stream) == b"".join(CHUNKS[:2])
        row = await run.row()
        assert (row["status"], row["error_type"], row["usage_source"]) == (-2, "timeout", "estimated")
        assert row["lower_bound"] == 1
        assert row["cost_usd"] > 0
        assert (row["attempts"], len(run.upstream.calls)) == (1, 1)
        await run.upstream.calls[0].gone.wait()


@within(10)
async def test_silence_within_a_body_held_back_is_a_504(proxies: Proxies, sides: Sides) -> None:
    async with product(proxies, sides, [stalls_in_body], upstream_timeout=TIMEOUT) as run:
        answer = await run.post(chat_body())
        assert answer.status == 504
        assert json.loads(answer.body)["error"] == "Request timeout"
        row = await run.row()
        assert (row["status"], row["error_type"]) == (-2, "timeout")
        await run.upstream.calls[0].gone.wait()


async def slow(call: Call) -> None:
    """Sends pieces that come in time, and takes longer for all of them than one may."""
    await call.events()
    for chunk in CHUNKS:
        await asyncio.sleep(TIMEOUT / 2)
        await call.send(chunk)
    await call.end()


@within(10)
async def test_time_counts_from_byte_to_byte(proxies: Proxies, sides: Sides) -> None:
    async with product(proxies, sides, [slow], upstream_timeout=TIMEOUT) as run:
        answer = await run.post(chat_body(stream=True))
        assert answer.body == b"".join(CHUNKS)
        row = await run.row()
        assert (row["status"], row["error"]) == (200, None)
        assert row["latency_ms"] > TIMEOUT * 2000


@within(10)
async def test_increase_timeout_asks_for_more(proxies: Proxies, sides: Sides) -> None:
    async def late(call: Call) -> None:
        await asyncio.sleep(TIMEOUT * 2)
        await call.answer(200, OK, JSON)

    async with product(proxies, sides, [late], upstream_timeout=TIMEOUT) as run:
        assert (await run.post(chat_body(), [("Helicone-Increase-Timeout", "true")])).status == 200


@within(10)
async def test_other_streams_of_the_connection_go_on(proxies: Proxies) -> None:
    script = [silent, answers(200, OK, JSON)]
    async with product(proxies, ("h2", "h2"), script, upstream_timeout=TIMEOUT) as run:
        stalled = run.send(chat_body())
        await run.upstream.called(1)
        assert (await run.post(chat_body())).status == 200
        assert (await run.answer(stalled)).status == 504
        assert run.upstream.connections == 1
        assert sorted(row["status"] for row in await run.rows(2)) == [-2, 200]


@asynccontextmanager
async def deaf() -> AsyncIterator[int]:
    """A port that takes connections and never says a word."""
    tasks: set[asyncio.Task[None]] = set()

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await reader.read()
        finally:
            writer.close()
            tasks.discard(task)

    server = await asyncio.start_server(client, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.gather(*tasks)


@pytest.mark.parametrize("retrying", [False, True])
@within(10)
async def test_silence_while_connecting_is_a_504(proxies: Proxies, sides: Sides, retrying: bool) -> None:
    async with (
        deaf() as port,
        product(proxies, sides, [], upstream_timeout=TIMEOUT) as run,
    ):
        lead(run.proxy, f"https://127.0.0.1:{port}")
        answer = await run.post(chat_body(), RETRY if retrying else [])
        assert answer.status == 504
        assert json.loads(answer.body)["error"] == "Request timeout"
        row = await run.row()
        assert (row["status"], row["error_type"]) == (-2, "timeout")
        assert row["attempts"] == (3 if retrying else 1)


@within(10)
async def test_silence_while_connecting_by_tcp_is_a_504(proxies: Proxies) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(3)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        async with product(proxies, ("h1", "plain"), [], upstream_timeout=TIMEOUT) as run:
            lead(run.proxy, f"http://127.0.0.1:{port}")
            assert (await run.post(chat_body())).status == 504
            assert (await run.row())["status"] == -2
        for each in waiting:
            each.close()


@within(10)
async def test_our_own_waits_do_not_count(proxies: Proxies, sides: Sides) -> None:
    script = [answers(500), answers(200, OK, JSON)]
    waits = [("Helicone-Retry-Enabled", "true"), ("Helicone-Retry-Num", "1")]
    times = [("Helicone-Retry-Min-Timeout", "700"), ("Helicone-Retry-Max-Timeout", "700")]
    async with product(proxies, sides, script, upstream_timeout=TIMEOUT) as run:
        assert (await run.post(chat_body(), [*waits, *times])).status == 200


@pytest.mark.parametrize("script", [silent, stalls_in_stream])
@within(10)
async def test_calls_that_pass_unlogged_time_out_too(proxies: Proxies, sides: Sides, script: Handler) -> None:
    async with product(proxies, sides, [script], upstream_timeout=TIMEOUT) as run:
        stream = run.send(b"{}", url=run.url.replace("chat/completions", "files"))
        if script is silent:
            answer = await run.answer(stream)
            assert answer.status in (502, 504)
            assert b"silent for 0.25 s" in answer.body
        else:
            assert await run.head(stream) == 200
            assert await run.received(stream) == b"".join(CHUNKS[:2])
        await run.upstream.calls[0].gone.wait()
        addon = run.proxy.addon
        assert (addon.passing, addon.passed) == ({}, {})


@within(10)
async def test_a_file_that_comes_slowly_is_not_cut(proxies: Proxies, sides: Sides) -> None:
    async with product(proxies, sides, [slow], upstream_timeout=TIMEOUT) as run:
        answer = await run.post(b"{}", url=run.url.replace("chat/completions", "files"))
        assert answer.body == b"".join(CHUNKS)
