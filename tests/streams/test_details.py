"""Corners of HTTP on the way through: what passes unchanged, and what mitmproxy's core makes of the rest."""

from __future__ import annotations

import json

import h2.events
import pytest

from attempts_wire import Call, H1Client, H2Client, answers
from fakes import chat_answer, chat_chunks
from stream_rig import JSON, RETRY, Proxies, Sides, chat_body, product, within

CHUNKS = chat_chunks(["Hel", "lo"], usage={"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100})
OK = json.dumps(chat_answer()).encode()
MODELS = "https://api.openai.com/v1/models"
TRAILER = ("x-checksum", "abc")
both = pytest.mark.parametrize("headers", [[], RETRY], ids=["once", "retrying"])


async def with_trailer(call: Call) -> None:
    if call.h2 is not None:
        await call.events([("trailer", TRAILER[0])])
        for chunk in CHUNKS:
            await call.send(chunk)
        call.h2.send_headers(call.stream, [TRAILER], end_stream=True)
        await call.raw(call.h2.data_to_send())
        return
    await call.events([("trailer", TRAILER[0])])
    for chunk in CHUNKS:
        await call.send(chunk)
    await call.raw(f"0\r\n{TRAILER[0]}: {TRAILER[1]}\r\n\r\n".encode())


@both
@within(10)
async def test_trailers_pass(proxies: Proxies, sides: Sides, headers: list[tuple[str, str]]) -> None:
    script = [answers(500), with_trailer] if headers else [with_trailer]
    async with product(proxies, sides, script) as run:
        stream = run.send(chat_body(stream=True), headers)
        assert await run.head(stream) == 200
        body = b""
        if isinstance(run.client, H2Client):
            while True:
                event = await run.client.event(stream)
                if not isinstance(event, h2.events.DataReceived):
                    break
                body += event.data
            assert isinstance(event, h2.events.TrailersReceived), event
            assert dict(event.headers)["x-checksum"] == "abc"
        else:
            while size := int(await run.client.reader.readline(), 16):
                body += (await run.client.reader.readexactly(size + 2))[:-2]
            assert await run.client.reader.readuntil(b"\r\n\r\n") == b"x-checksum: abc\r\n\r\n"
        assert body == b"".join(CHUNKS)
        assert (await run.row())["status"] == 200


@pytest.mark.parametrize("sides", [("h1", "h1"), ("h1", "plain"), ("gateway", "h1")], ids="-".join)
@both
@within(10)
async def test_trailers_of_a_request_pass(proxies: Proxies, sides: Sides, headers: list[tuple[str, str]]) -> None:
    async with product(proxies, sides, [answers(200, OK, JSON)]) as run:
        assert isinstance(run.client, H1Client)
        body, path = chat_body(), "/" + run.url.split("/", 3)[3]
        more = "".join(f"{n}: {v}\r\n" for n, v in headers)
        run.client.writer.write(
            f"POST {path} HTTP/1.1\r\nhost: api.openai.com\r\n{more}transfer-encoding: chunked\r\n\r\n".encode()
            + b"%x\r\n%s\r\n0\r\nx-checksum: abc\r\n\r\n" % (len(body), body)
        )
        assert (await run.client.answer()).body == OK
        (call,) = run.upstream.calls
        assert call.body == body
        assert call.headers["x-checksum"] == "abc"
        assert (await run.row())["status"] == 200


@within(10)
async def test_early_hints_do_not_disturb(proxies: Proxies, sides: Sides) -> None:
    """mitmproxy drops them: none arrives. The answer does."""

    async def hints(call: Call) -> None:
        if call.h2 is not None:
            call.h2.send_headers(call.stream, [(":status", "103"), ("link", "</a>; rel=preload")])
            await call.raw(call.h2.data_to_send())
        else:
            await call.raw(b"HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n")
        await call.answer(200, OK, JSON)

    async with product(proxies, sides, [hints]) as run:
        answer = await run.post(chat_body())
        assert (answer.status, answer.body) == (200, OK)
        assert (await run.row())["status"] == 200


@pytest.mark.parametrize("sides", [("h1", "h1"), ("h1", "plain"), ("gateway", "h1")], ids="-".join)
@within(10)
async def test_client_that_expects_100_is_told_to_go_on(proxies: Proxies, sides: Sides) -> None:
    async with product(proxies, sides, [answers(200, OK, JSON)]) as run:
        assert isinstance(run.client, H1Client)
        body = chat_body()
        path = "/" + run.url.split("/", 3)[3]
        run.client.writer.write(
            f"POST {path} HTTP/1.1\r\nhost: api.openai.com\r\nexpect: 100-continue\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode()
        )
        assert (await run.client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        run.client.writer.write(body)
        assert (await run.client.answer()).body == OK
        (call,) = run.upstream.calls
        assert "expect" not in call.headers
        assert call.body == body


@pytest.mark.parametrize("sides", [("h1", "h1"), ("h1", "plain"), ("gateway", "h1")], ids="-".join)
@both
@within(10)
async def test_pipelined_calls_are_answered_in_order(
    proxies: Proxies, sides: Sides, headers: list[tuple[str, str]]
) -> None:
    script = [answers(200, b'{"n":1}', JSON), answers(200, b'{"n":2}', JSON), answers(200, b'{"n":3}', JSON)]
    async with product(proxies, sides, script) as run:
        for _ in script:
            run.send(chat_body(), headers)
        assert [(await run.answer()).body for _ in script] == [b'{"n":1}', b'{"n":2}', b'{"n":3}']
        assert [row["status"] for row in await run.rows(3)] == [200, 200, 200]


@pytest.mark.parametrize("sides", [("h1", "h1"), ("h1", "plain"), ("gateway", "h1")], ids="-".join)
@both
@within(10)
async def test_upgrade_that_is_refused_passes_as_it_is(
    proxies: Proxies, sides: Sides, headers: list[tuple[str, str]]
) -> None:
    async with product(proxies, sides, [answers(426, b'{"error":{"message":"no"}}', JSON)]) as run:
        assert isinstance(run.client, H1Client)
        prefix = "/oai" if sides[0] == "gateway" else ""
        more = "".join(f"{n}: {v}\r\n" for n, v in headers)
        run.client.writer.write(
            f"GET {prefix}/v1/responses HTTP/1.1\r\nhost: api.openai.com\r\n"
            "connection: upgrade\r\nupgrade: websocket\r\n"
            f"{more}sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        answer = await run.client.answer()
        assert (answer.status, answer.body) == (426, b'{"error":{"message":"no"}}')
        assert len(run.upstream.calls) == 1
        row = await run.row()
        assert (row["status"], row["error"]) == (426, "no")


@pytest.mark.parametrize("status", [204, 304])
@both
@within(10)
async def test_answers_without_a_body(
    proxies: Proxies, sides: Sides, headers: list[tuple[str, str]], status: int
) -> None:
    async def bare(call: Call) -> None:
        if call.h2 is not None:
            call.h2.send_headers(call.stream, [(":status", str(status)), ("etag", "x")], end_stream=True)
            await call.raw(call.h2.data_to_send())
        else:
            await call.raw(f"HTTP/1.1 {status} X\r\netag: x\r\n\r\n".encode())

    async with product(proxies, sides, [bare, answers(200, OK, JSON)]) as run:
        stream = run.send(chat_body(), headers)
        assert await run.head(stream) == status
        if isinstance(run.client, H2Client):
            assert await run.chunk(stream) == b""
        assert (await run.post(chat_body())).body == OK
        assert [row["status"] for row in await run.rows(2)] == [status, 200]


@pytest.mark.parametrize("sides", [("h1", "h1"), ("h1", "plain")], ids="-".join)
@within(10)
async def test_head_has_headers_alone(proxies: Proxies, sides: Sides) -> None:
    async def headers_alone(call: Call) -> None:
        await call.raw(b"HTTP/1.1 200 X\r\ncontent-length: 1234\r\ncontent-type: application/json\r\n\r\n")

    async with product(proxies, sides, [headers_alone, answers(200, OK, JSON)]) as run:
        assert isinstance(run.client, H1Client)
        run.client.writer.write(b"HEAD /v1/models HTTP/1.1\r\nhost: api.openai.com\r\n\r\n")
        assert await run.head() == 200
        assert run.client.headers["content-length"] == "1234"
        assert (await run.post(chat_body())).body == OK
        await run.row()


@within(10)
async def test_connection_that_the_upstream_winds_down_breaks_its_streams(proxies: Proxies) -> None:
    """A graceful GOAWAY lets streams under way end; mitmproxy ends them at once, and says so to client and row."""

    async def winds_down(call: Call) -> None:
        assert call.h2 is not None
        await call.events()
        await call.send(CHUNKS[0])
        call.h2.close_connection(last_stream_id=call.stream)
        await call.raw(call.h2.data_to_send())

    async with product(proxies, ("h2", "h2"), [winds_down, answers(200, OK, JSON)]) as run:
        stream = run.send(chat_body(stream=True))
        assert await run.head(stream) == 200
        assert await run.received(stream) == CHUNKS[0]
        assert (await run.post(chat_body())).status == 200
        first, second = await run.rows(2)
        assert (first["status"], first["error_type"], second["status"]) == (200, "upstream_failed", 200)
