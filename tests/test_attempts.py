"""Retries and fallbacks through a whole mitmproxy: real sockets, upstreams that fail on command."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mitmproxy import http
from mitmproxy.proxy.layers.http import HttpLayer, HttpStream

from attempts_wire import (
    Attempts,
    Call,
    Certificate,
    Handler,
    answers,
    closed_port,
    connect_proxy,
    dies,
    h1_client,
    h2_client,
    make_certificate,
    proxy,
    upstream,
)
from heliproxy import attempts


@pytest.fixture(autouse=True)
def _proxy_core_stays_well(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert "mitmproxy has crashed" not in caplog.text
    assert "Addon error" not in caplog.text
    assert "connection handler has crashed" not in caplog.text


def within_ten_seconds(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(**kwargs: Any) -> None:
        async def limited() -> None:
            async with asyncio.timeout(10):
                await test(**kwargs)

        asyncio.run(limited())

    return run


@pytest.fixture(scope="module")
def confdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mitmproxy")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@dataclass
class Retry:
    """Calls again at once, `times` times; each time at the next of `targets` if there are any."""

    times: int = 5
    targets: list[str] = field(default_factory=list)
    synthetic: int | None = None
    judge: bool = False
    outcomes: list[attempts.Outcome] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    may_answer: asyncio.Event | None = None
    cancelled: bool = False

    def wants(self, status: int) -> bool:
        return status == 429 or status >= 500

    def peek(self, status: int, headers: http.Headers) -> attempts.Judge | None:
        if not self.judge or status != 200:
            return None
        seen = b""

        def judge(data: bytes) -> bool | None:
            nonlocal seen
            seen += data
            first, end, _ = seen.partition(b"\n\n")  # what follows may have come with it
            return b"event: error" in first if end else None

        return judge

    def broken(self, flow: http.HTTPFlow, error: str) -> http.Response | None:
        return None

    async def failed(self, flow: http.HTTPFlow, outcome: attempts.Outcome) -> bool:
        self.outcomes.append(outcome)
        self.asked.set()
        assert flow.response is None
        try:
            if self.may_answer is not None:
                await self.may_answer.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if len(self.outcomes) > self.times:
            if self.synthetic:
                flow.response = http.Response.make(self.synthetic, b"synthetic")
            return False
        if self.targets:
            flow.request.url = self.targets[min(len(self.outcomes), len(self.targets)) - 1]
        return True


@dataclass
class Addon:
    """Gives every flow the plan, streams event streams, and notes the hooks that fire."""

    plan: Any = None
    stream_request: bool = False
    hooks: list[tuple[str, int | str | None]] = field(default_factory=list)
    flows: list[http.HTTPFlow] = field(default_factory=list)
    ended_by: list[str | None] = field(default_factory=list)
    finished: asyncio.Event = field(default_factory=asyncio.Event)

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        flow.request.stream = self.stream_request

    def request(self, flow: http.HTTPFlow) -> None:
        self.flows.append(flow)
        attempts.use(flow, self.plan)

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        assert flow.response is not None
        self.hooks.append(("responseheaders", flow.response.status_code))
        flow.response.stream = flow.response.headers.get("content-type") == "text/event-stream"

    def response(self, flow: http.HTTPFlow) -> None:
        assert flow.response is not None
        self.hooks.append(("response", flow.response.status_code))

    def error(self, flow: http.HTTPFlow) -> None:
        assert flow.error is not None
        self.hooks.append(("error", flow.error.msg))
        self.ended_by.append(attempts.ended_by(flow))
        self.finished.set()


FINE = [("responseheaders", 200), ("response", 200)]


def statuses(plan: Retry) -> list[int | None]:
    return [o.status for o in plan.outcomes]


# Status codes.


@within_ten_seconds
async def test_retried_request_gets_the_first_good_answer(confdir: Path) -> None:
    addon = Addon(plan := Retry())
    async with (
        upstream(answers(429), answers(503), answers(200, b"fine")) as up,
        proxy(confdir, Attempts(), addon) as port,
        h1_client(port) as client,
    ):
        answer = await client.post(up.url + "/v1", b'{"a": 1}')
    assert (answer.status, answer.body) == (200, b"fine")
    assert [c.body for c in up.calls] == [b'{"a": 1}'] * 3
    assert statuses(plan) == [429, 503]
    assert addon.hooks == FINE


@within_ten_seconds
async def test_exhausted_plan_passes_the_last_answer_on_unchanged(confdir: Path) -> None:
    addon = Addon(Retry(times=1))
    async with (
        upstream(answers(429, b"one"), answers(500, b"two", [("x-request-id", "7")])) as up,
        proxy(confdir, Attempts(), addon) as port,
        h1_client(port) as client,
    ):
        answer = await client.post(up.url + "/v1")
    assert (answer.status, answer.body, answer.headers["x-request-id"]) == (500, b"two", "7")
    assert addon.hooks == [("responseheaders", 500), ("response", 500)]
    assert len(up.calls) == 2


@within_ten_seconds
async def test_exhausted_plan_may_answer_itself(confdir: Path) -> None:
    addon = Addon(Retry(times=1, synthetic=504))
    async with (
        upstream(answers(429), answers(500), answers(200, b"later")) as up,
        proxy(confdir, Attempts(), addon) as port,
        h1_client(port) as client,
    ):
        first = await client.post(up.url + "/v1")
        assert (first.status, first.body) == (504, b"synthetic")
        addon.plan = None
        assert (await client.post(up.url + "/v1")).body == b"later"
    assert addon.hooks == [("responseheaders", 504), ("response", 504), *FINE]


@within_ten_seconds
async def test_flow_without_plan_takes_mitmproxys_path(confdir: Path) -> None:
    addon = Addon(None)
    async with (
        upstream(answers(429, b"as it is")) as up,
        proxy(confdir, Attempts(), addon) as port,
        h1_client(port) as client,
    ):
        answer = await client.post(up.url + "/v1")
    assert (answer.status, answer.body, len(up.calls)) == (429, b"as it is", 1)


@within_ten_seconds
async def test_streamed_request_is_never_called_again(confdir: Path) -> None:
    addon = Addon(plan := Retry(), stream_request=True)
    async with (
        upstream(answers(429)) as up,
        proxy(confdir, Attempts(), addon) as port,
        h1_client(port) as client,
    ):
        assert (await client.post(up.url + "/v1", b"body")).status == 429
    assert (len(up.calls), plan.outcomes) == (1, [])


@within_ten_seconds
async def test_rewritten_body_and_headers_are_sent(confdir: Path) -> None:
    class Rewrite(Retry):
        async def failed(self, flow: http.HTTPFlow, outcome: attempts.Outcome) -> bool:
            flow.request.headers["authorization"] = "Bearer second"
            flow.request.content = b"longer than it was"
            return await super().failed(flow, outcome)

    async with (
        upstream(answers(500), answers(200)) as up,
        proxy(confdir, Attempts(), Addon(Rewrite())) as port,
        h1_client(port) as client,
    ):
        assert (await client.post(up.url + "/v1", b"{}")).status == 200
    assert (up.calls[1].body, up.calls[1].headers["authorization"]) == (b"longer than it was", "Bearer second")


@within_ten_seconds
async def test_timestamps_are_those_of_the_last_answer(confdir: Path) -> None:
    plan = Retry(may_answer=asyncio.Event())
    addon = Addon(plan)
    async with (
        upstream(answers(429), answers(200)) as up,
        proxy(confdir, Attempts(), addon) as port,
        h1_client(port) as client,
    ):
        client.send(up.url + "/v1")
        await plan.asked.wait()
        released = time.time()
        assert plan.may_answer is not None
        plan.may_answer.set()
        assert (await client.answer()).status == 200
    response = addon.flows[0].response
    assert response is not None
    assert response.timestamp_end is not None
    assert released <= response.timestamp_start <= response.timestamp_end
    assert 0 < plan.outcomes[0].duration_ms < 10_000


# Connections.


@within_ten_seconds
async def test_answer_read_to_its_end_leaves_the_connection_reusable(confdir: Path) -> None:
    # The upstream's second write of the 429 has arrived by the time the plan is released.
    plan = Retry(may_answer=asyncio.Event())
    ended = asyncio.Event()

    async def slow_429(call: Call) -> None:
        await call.start(429)
        await plan.asked.wait()
        await call.send(b"rest")
        await call.end()
        ended.set()

    async with (
        upstream(slow_429, answers(200), answers(200)) as up,
        proxy(confdir, Attempts(), Addon(plan)) as port,
        h1_client(port) as client,
        h1_client(port) as other,
    ):
        client.send(up.url + "/v1")
        await ended.wait()
        # A round trip of another client through the same loop: what was written before it has been read.
        plan_free = await other.post(up.url + "/other")
        assert plan.may_answer is not None
        plan.may_answer.set()
        assert (await client.answer()).status == plan_free.status == 200
    assert [c.connection for c in up.calls] == [1, 2, 1]


@within_ten_seconds
async def test_unfinished_answer_is_cancelled_and_spoils_nothing(confdir: Path) -> None:
    async def endless_500(call: Call) -> None:
        await call.start(500)
        await call.send(b"never ends")
        await call.gone.wait()

    addon = Addon(Retry())
    async with (
        upstream(endless_500, answers(200, b"one"), answers(200, b"two")) as up,
        proxy(confdir, Attempts(), addon) as port,
        h1_client(port) as client,
    ):
        assert (await client.post(up.url + "/v1")).body == b"one"
        assert (await client.post(up.url + "/v1")).body == b"two"
    assert [c.connection for c in up.calls] == [1, 2, 2]
    assert addon.hooks == FINE * 2


@within_ten_seconds
async def test_upstream_that_dies_before_its_headers_is_called_again(confdir: Path) -> None:
    addon = Addon(plan := Retry())
    async with (
        upstream(dies, dies, answers(200)) as up,
        proxy(confdir, Attempts(), addon) as port,
        h1_client(port) as client,
    ):
        assert (await client.post(up.url + "/v1")).status == 200
        assert (await client.post(up.url + "/v1")).status == 599
    assert statuses(plan)[:2] == [None, None]
    assert plan.outcomes[0].error == "server closed connection"
    assert addon.hooks[:2] == FINE


@within_ten_seconds
async def test_dead_upstream_ends_in_mitmproxys_error(confdir: Path) -> None:
    addon = Addon(Retry(times=1))
    async with (
        upstream(dies, dies) as up,
        proxy(confdir, Attempts(), addon) as port,
        h1_client(port) as client,
    ):
        assert (await client.post(up.url + "/v1")).status == 502
    assert addon.hooks == [("error", "server closed connection")]
    assert addon.ended_by == ["upstream"]


@within_ten_seconds
async def test_earlier_answer_is_better_than_none(confdir: Path) -> None:
    addon = Addon(plan := Retry(times=1))
    async with (
        upstream(answers(429, b"slow down"), dies) as up,
        proxy(confdir, Attempts(), addon) as port,
        h1_client(port) as client,
    ):
        answer = await client.post(up.url + "/v1")
    assert (answer.status, answer.body) == (429, b"slow down")
    assert addon.hooks == [("responseheaders", 429), ("response", 429)]
    earlier = plan.outcomes[1].earlier
    assert earlier is not None
    assert earlier.status_code == 429


@within_ten_seconds
async def test_refused_connection_falls_back_and_is_tried_afresh_next_time(confdir: Path) -> None:
    with closed_port() as dead:
        async with (
            upstream(answers(200, b"fallback"), answers(200, b"fallback")) as up,
            proxy(confdir, Attempts(), addon := Addon(plan := Retry(targets=[up.url + "/b"]))) as port,
            h1_client(port) as client,
        ):
            for _ in range(2):
                assert (await client.post(f"http://127.0.0.1:{dead}/a")).body == b"fallback"
    assert [(c.path, c.headers["host"]) for c in up.calls] == [("/b", f"127.0.0.1:{up.port}")] * 2
    assert len(plan.outcomes) == 2
    assert addon.hooks == FINE * 2


@within_ten_seconds
async def test_refused_fallback_leaves_the_first_answer(confdir: Path) -> None:
    with closed_port() as dead:
        addon = Addon(plan := Retry(times=2, targets=[f"http://127.0.0.1:{dead}/b"]))
        async with (
            upstream(answers(429, b"slow down"), answers(200, b"next")) as up,
            proxy(confdir, Attempts(), addon) as port,
            h1_client(port) as client,
        ):
            assert (await client.post(up.url + "/v1")).body == b"slow down"
            assert (await client.post(up.url + "/v1")).body == b"next"
    assert statuses(plan) == [429, None, None]
    assert addon.hooks == [("responseheaders", 429), ("response", 429), *FINE]


@within_ten_seconds
async def test_refused_fallback_after_an_unfinished_answer_is_mitmproxys_error(confdir: Path) -> None:
    async def endless_500(call: Call) -> None:
        await call.start(500)
        await call.gone.wait()

    with closed_port() as dead:
        addon = Addon(Retry(times=1, targets=[f"http://127.0.0.1:{dead}/b"]))
        async with (
            upstream(endless_500) as up,
            proxy(confdir, Attempts(), addon) as port,
            h1_client(port) as client,
        ):
            assert (await client.post(up.url + "/v1")).status == 502
    assert [name for name, _ in addon.hooks] == ["error"]


@within_ten_seconds
async def test_given_up_calls_leave_nothing_behind(confdir: Path, certificate: Certificate) -> None:
    class Layers:
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def next_layer(self, nextlayer: Any) -> None:
            self.seen.extend(layer for layer in nextlayer.context.layers if isinstance(layer, HttpLayer))

    layers = Layers()
    trust = {"ssl_verify_upstream_trusted_ca": str(certificate.path)}
    async with (
        upstream(answers(429), dies, answers(200), dies, dies, tls=certificate, http2=True) as up,
        proxy(confdir, Attempts(), Addon(Retry(times=3)), layers, **trust) as port,
        h2_client(port, up.url) as client,
    ):
        assert (await client.post(up.url + "/v1")).status == 200
        assert (await client.post(up.url + "/v1")).status == 502
        inner = layers.seen[-1]
        assert type(inner) is attempts.RetryLayer
        assert inner.streams == {}


@within_ten_seconds
async def test_failed_connections_do_not_poison_the_next_attempt(confdir: Path) -> None:
    with closed_port() as dead:
        url = f"http://127.0.0.1:{dead}/a"
        addon = Addon(plan := Retry(times=2, synthetic=502))
        dialled: list[int] = []

        class Dials:
            def server_connect(self, data: Any) -> None:
                dialled.append(data.server.address[1])

        async with proxy(confdir, Attempts(), addon, Dials()) as port, h1_client(port) as client:
            assert (await client.post(url)).body == b"synthetic"
            addon.plan = None
            assert (await client.post(url)).status == 502
    assert dialled == [dead] * 4
    assert len(plan.outcomes) == 3
    assert addon.hooks[:2] == [("responseheaders", 502), ("response", 502)]


@within_ten_seconds
async def test_untrusted_certificate_counts_as_failure(confdir: Path, certificate: Certificate) -> None:
    async with (
        upstream(tls=certificate) as untrusted,
        upstream(answers(200), answers(200)) as up,
        proxy(confdir, Attempts(), addon := Addon(plan := Retry(targets=[up.url + "/b"]))) as port,
        h1_client(port, untrusted.url) as client,
    ):
        for _ in range(2):
            assert (await client.post(untrusted.url + "/a")).status == 200
    assert untrusted.calls == []
    assert ["verify failed" in str(o.error) for o in plan.outcomes] == [True, True]
    assert addon.hooks == FINE * 2


# Streams.


@within_ten_seconds
async def test_stream_after_a_retry_arrives_chunk_by_chunk(confdir: Path) -> None:
    go_on = asyncio.Event()

    async def stream(call: Call) -> None:
        await call.events()
        await call.send(b"data: 1\n\n")
        await go_on.wait()
        await call.send(b"data: 2\n\n")
        await call.end()

    addon = Addon(Retry(judge=True))
    async with (
        upstream(answers(429), answers(429), stream) as up,
        proxy(confdir, Attempts(), addon) as port,
        h1_client(port) as client,
    ):
        client.send(up.url + "/v1")
        assert await client.head() == 200
        assert await client.chunk() == b"data: 1\n\n"
        go_on.set()
        assert await client.chunk() == b"data: 2\n\n"
        assert await client.chunk() == b""
    assert addon.hooks == FINE


def event_stream(*chunks: bytes) -> Callable[[Call], Awaitable[None]]:
    async def handler(call: Call) -> None:
        await call.events()
        for chunk in chunks:
            await call.send(chunk)
        await call.end()

    return handler


@within_ten_seconds
async def test_error_as_first_event_of_a_200_is_called_again(confdir: Path) -> None:
    async def overloaded(call: Call) -> None:
        await call.events()
        await call.send(b"event: er")
        await call.send(b"ror\ndata: {}\n\n")
        await call.gone.wait()

    addon = Addon(plan := Retry(judge=True))
    async with (
        upstream(overloaded, event_stream(b"data: ok\n\n")) as up,
        proxy(confdir, Attempts(), addon) as port,
        h1_client(port) as client,
    ):
        answer = await client.post(up.url + "/v1")
    assert (answer.status, answer.body) == (200, b"data: ok\n\n")
    assert [(o.status, o.error, o.peeked) for o in plan.outcomes] == [
        (200, "error event", b"event: error\ndata: {}\n\n")
    ]
    assert addon.hooks == FINE


@pytest.mark.parametrize(
    ("chunks", "asked"),
    [
        ([b"event: error\n\n", b"data: more\n\n"], 1),
        ([b"data: 1\n\n", b"event: error\n\n"], 0),
        ([b"data: cut short"], 0),
        ([b"x" * 40_000, b"x" * 40_000, b"event: error\n\n"], 0),
        ([b"x" * 80_000 + b"event: error\n\n"], 0),
    ],
    ids=["plan gives up", "error is not the first event", "no whole event", "beyond the limit", "beyond, in one piece"],
)
@within_ten_seconds
async def test_held_back_stream_is_passed_on_whole(confdir: Path, chunks: list[bytes], asked: int) -> None:
    addon = Addon(plan := Retry(times=0, judge=True))
    async with (
        upstream(event_stream(*chunks)) as up,
        proxy(confdir, Attempts(), addon) as port,
        h1_client(port) as client,
    ):
        answer = await client.post(up.url + "/v1")
    assert (answer.status, answer.body) == (200, b"".join(chunks))
    assert len(plan.outcomes) == asked
    assert addon.hooks == FINE


@within_ten_seconds
async def test_stream_that_dies_before_its_first_event_is_called_again(confdir: Path) -> None:
    async def cut(call: Call) -> None:
        await call.events()
        await call.send(b": wait")
        await call.die()

    addon = Addon(plan := Retry(judge=True))
    async with (
        upstream(cut, event_stream(b"data: ok\n\n")) as up,
        proxy(confdir, Attempts(), addon) as port,
        h1_client(port) as client,
    ):
        assert (await client.post(up.url + "/v1")).body == b"data: ok\n\n"
    assert [(o.status, o.peeked) for o in plan.outcomes] == [(200, b": wait")]
    assert addon.hooks == FINE


@within_ten_seconds
async def test_stream_is_not_called_again_once_a_byte_was_sent(confdir: Path) -> None:
    async def cut(call: Call) -> None:
        await call.events()
        await call.send(b"data: 1\n\n")
        await call.die()

    addon = Addon(plan := Retry(judge=True))
    async with (
        upstream(cut) as up,
        proxy(confdir, Attempts(), addon) as port,
        h1_client(port) as client,
    ):
        client.send(up.url + "/v1")
        assert await client.head() == 200
        assert await client.chunk() == b"data: 1\n\n"
        assert await client.reader.read() == b""
    assert (len(up.calls), plan.outcomes) == (1, [])
    assert [name for name, _ in addon.hooks] == ["responseheaders", "error"]


# HTTP/2.


@pytest.mark.parametrize("http2", [True, False], ids=["h2 upstream", "h1 upstream"])
@within_ten_seconds
async def test_http2_client_gets_retried_answers(confdir: Path, certificate: Certificate, http2: bool) -> None:
    go_on = asyncio.Event()

    async def stream(call: Call) -> None:
        await call.events()
        await call.send(b"data: 1\n\n")
        await go_on.wait()
        await call.send(b"data: 2\n\n")
        await call.end()

    async def endless_500(call: Call) -> None:
        await call.start(500)
        await call.send(b"never ends")
        await call.gone.wait()
        reset.set()

    reset = asyncio.Event()
    addon = Addon(plan := Retry(times=20))
    trust = {"ssl_verify_upstream_trusted_ca": str(certificate.path)}
    async with (
        upstream(
            answers(429), dies, endless_500, stream, answers(500), answers(200, b"2"), tls=certificate, http2=http2
        ) as up,
        proxy(confdir, Attempts(), addon, **trust) as port,
        h2_client(port, up.url) as client,
    ):
        first = client.send(up.url + "/v1")
        assert await client.head(first) == 200
        assert await client.chunk(first) == b"data: 1\n\n"
        await reset.wait()
        go_on.set()
        assert await client.chunk(first) == b"data: 2\n\n"
        assert await client.chunk(first) == b""
        assert (await client.post(up.url + "/v1")).body == b"2"
    assert statuses(plan) == [429, None, 500, 500]
    assert addon.hooks == FINE * 2
    if http2:
        assert up.connections == 1


@within_ten_seconds
async def test_http2_client_falls_back_to_a_plain_http1_upstream(confdir: Path, certificate: Certificate) -> None:
    trust = {"ssl_verify_upstream_trusted_ca": str(certificate.path)}
    async with (
        upstream(answers(503), answers(503), tls=certificate, http2=True) as up,
        upstream(answers(200, b"plain"), answers(200, b"plain")) as plain,
        proxy(confdir, Attempts(), addon := Addon(Retry(targets=[plain.url + "/b"])), **trust) as port,
        h2_client(port, up.url) as client,
    ):
        assert (await client.post(up.url + "/v1")).body == b"plain"
        assert (await client.post(up.url + "/v1")).body == b"plain"
    assert [c.headers["host"] for c in plain.calls] == [f"127.0.0.1:{plain.port}"] * 2
    assert addon.hooks == FINE * 2


@within_ten_seconds
async def test_other_streams_of_the_connection_go_on_meanwhile(confdir: Path, certificate: Certificate) -> None:
    plan = Retry(may_answer=asyncio.Event())
    trust = {"ssl_verify_upstream_trusted_ca": str(certificate.path)}
    async with (
        upstream(answers(429), answers(200, b"other"), answers(200, b"mine"), tls=certificate, http2=True) as up,
        proxy(confdir, Attempts(), Addon(plan), **trust) as port,
        h2_client(port, up.url) as client,
    ):
        mine = client.send(up.url + "/mine")
        await plan.asked.wait()
        assert (await client.post(up.url + "/other")).body == b"other"
        assert plan.may_answer is not None
        plan.may_answer.set()
        assert (await client.answer(mine)).body == b"mine"


# The client leaves.


@pytest.mark.parametrize("failure", [answers(429), dies], ids=["429", "death"])
@within_ten_seconds
async def test_client_that_leaves_during_backoff_stops_the_plan(confdir: Path, failure: Handler) -> None:
    plan = Retry(may_answer=asyncio.Event())
    addon = Addon(plan)
    async with (
        upstream(failure) as up,
        proxy(confdir, Attempts(), addon) as port,
    ):
        async with h1_client(port) as client:
            client.send(up.url + "/v1")
            await plan.asked.wait()
        await addon.finished.wait()
        assert plan.cancelled
        assert plan.may_answer is not None
        plan.may_answer.set()
        # A whole exchange of another client later, nothing of the first has reached the upstream.
        addon.plan = None
        async with h1_client(port) as other:
            assert (await other.post(up.url + "/other")).status == 599
    assert [c.path for c in up.calls] == ["/v1", "/other"]
    assert addon.hooks[:1] == [("error", "Client disconnected.")]
    assert addon.ended_by == ["client"]
    assert addon.hooks[1:] == [("responseheaders", 599), ("response", 599)]


@within_ten_seconds
async def test_client_that_leaves_during_a_tls_handshake_ends_the_flow(confdir: Path) -> None:
    accepted = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/b"
    addon = Addon(plan := Retry(targets=[url]))
    async with server, upstream(answers(429)) as up, proxy(confdir, Attempts(), addon) as port:
        async with h1_client(port) as client:
            client.send(up.url + "/v1")
            await accepted.wait()
        await addon.finished.wait()
    assert statuses(plan) == [429]
    assert [name for name, _ in addon.hooks] == ["error"]


@within_ten_seconds
async def test_stream_cancelled_while_connecting_makes_no_call(confdir: Path, certificate: Certificate) -> None:
    class SlowDial:
        def __init__(self) -> None:
            self.dialling, self.go_on = asyncio.Event(), asyncio.Event()

        async def server_connect(self, data: Any) -> None:
            if data.server.address[1] == fallback.port:
                self.dialling.set()
                await self.go_on.wait()

    dial = SlowDial()
    trust = {"ssl_verify_upstream_trusted_ca": str(certificate.path)}
    async with (
        upstream(answers(429), answers(200), tls=certificate, http2=True) as up,
        upstream(answers(200)) as fallback,
        proxy(confdir, Attempts(), addon := Addon(Retry(targets=[fallback.url + "/b"])), dial, **trust) as port,
        h2_client(port, up.url) as client,
    ):
        stream = client.send(up.url + "/v1")
        await dial.dialling.wait()
        client.reset(stream)
        # The proxy has read the reset when it answers what was sent after it.
        assert (await client.post(up.url + "/other")).status == 200
        dial.go_on.set()
        await addon.finished.wait()
        addon.plan = None
        # Its upstream has read whatever was sent to it before this.
        async with h1_client(port) as other:
            assert (await other.post(fallback.url + "/other")).status == 200
    assert [call.path for call in fallback.calls] == ["/other"]
    assert [name for name, _ in addon.hooks if name != "responseheaders"] == ["response", "error", "response"]


@pytest.mark.parametrize("http2", [True, False], ids=["h2 upstream", "h1 upstream"])
@within_ten_seconds
async def test_cancelled_http2_stream_stops_the_plan(confdir: Path, certificate: Certificate, http2: bool) -> None:
    left_alone = asyncio.Event()

    async def endless_500(call: Call) -> None:
        await call.start(500)
        await call.gone.wait()
        left_alone.set()

    plan = Retry(may_answer=asyncio.Event())
    addon = Addon(plan)
    trust = {"ssl_verify_upstream_trusted_ca": str(certificate.path)}
    async with (
        upstream(endless_500, answers(200, b"next"), tls=certificate, http2=http2) as up,
        proxy(confdir, Attempts(), addon, **trust) as port,
        h2_client(port, up.url) as client,
    ):
        stream = client.send(up.url + "/v1")
        await plan.asked.wait()
        client.reset(stream)
        await addon.finished.wait()
        await left_alone.wait()
        addon.plan = None
        assert (await client.post(up.url + "/v1")).body == b"next"
    assert plan.cancelled
    assert [h for h in addon.hooks if h[0] != "error"] == FINE
    assert len(up.calls) == 2


@within_ten_seconds
async def test_client_that_leaves_while_a_stream_is_held_back_ends_the_call(confdir: Path) -> None:
    started, left_alone = asyncio.Event(), asyncio.Event()

    async def silent(call: Call) -> None:
        await call.events()
        await call.send(b": wait")
        started.set()
        await call.gone.wait()
        left_alone.set()

    addon = Addon(plan := Retry(judge=True))
    async with upstream(silent) as up, proxy(confdir, Attempts(), addon) as port:
        async with h1_client(port) as client:
            client.send(up.url + "/v1")
            await started.wait()
        await addon.finished.wait()
        await left_alone.wait()
    assert addon.hooks == [("error", "Client disconnected.")]
    assert plan.outcomes == []


@within_ten_seconds
async def test_flow_killed_during_backoff_is_not_called_again(confdir: Path) -> None:
    class Kill(Retry):
        async def failed(self, flow: http.HTTPFlow, outcome: attempts.Outcome) -> bool:
            flow.kill()
            return True

    addon = Addon(Kill())
    async with (
        upstream(answers(429)) as up,
        proxy(confdir, Attempts(), addon) as port,
        h1_client(port) as client,
    ):
        client.send(up.url + "/v1")
        assert await client.reader.read() == b""
    assert (len(up.calls), addon.hooks) == (1, [("error", "Connection killed.")])


# Plans that break.


class Broken(Retry):
    """Raises wherever it is told to."""

    def __init__(self, where: str, error: BaseException) -> None:
        super().__init__()
        self.where, self.error = where, error

    def wants(self, status: int) -> bool:
        if self.where == "wants":
            raise self.error
        return super().wants(status)

    def peek(self, status: int, headers: http.Headers) -> attempts.Judge | None:
        if self.where == "peek":
            raise self.error
        return self.break_judge

    def break_judge(self, data: bytes) -> bool | None:
        raise self.error

    async def failed(self, flow: http.HTTPFlow, outcome: attempts.Outcome) -> bool:
        raise self.error


@pytest.mark.parametrize(
    ("where", "error", "status"),
    [
        ("wants", ValueError("no"), 429),
        ("failed", ValueError("no"), 429),
        ("failed", asyncio.CancelledError(), 429),
        ("peek", ValueError("no"), 200),
        ("judge", ValueError("no"), 200),
    ],
)
@within_ten_seconds
async def test_broken_plan_lets_the_answer_pass(
    confdir: Path, caplog: pytest.LogCaptureFixture, where: str, error: BaseException, status: int
) -> None:
    addon = Addon(Broken(where, error))
    async with (
        upstream(answers(status, b"answer")) as up,
        proxy(confdir, Attempts(), addon) as port,
        h1_client(port) as client,
    ):
        answer = await client.post(up.url + "/v1")
    assert (answer.status, answer.body) == (status, b"answer")
    assert "The retry plan" in caplog.text


# Order of addons, upstream proxies, the guard.


@within_ten_seconds
async def test_place_in_the_chain_does_not_matter(confdir: Path) -> None:
    class First:
        """Puts the addon before mitmproxy's own, as a script is."""

        def __init__(self, addon: Attempts) -> None:
            self.addon = addon

        def load(self, loader: Any) -> None:
            loader.master.addons.chain.insert(0, loader.master.addons.register(self.addon))

    async with (
        upstream(answers(429), answers(200)) as up,
        proxy(confdir, First(Attempts()), Addon(Retry())) as port,
        h1_client(port) as client,
    ):
        assert (await client.post(up.url + "/v1")).status == 200


@within_ten_seconds
async def test_retries_go_through_the_upstream_proxy(confdir: Path, certificate: Certificate) -> None:
    targets: list[str] = []
    trust = {"ssl_verify_upstream_trusted_ca": str(certificate.path)}
    async with (
        upstream(answers(429), dies, answers(200), tls=certificate) as up,
        connect_proxy(targets) as outer,
        proxy(confdir, Attempts(), Addon(Retry()), mode=[f"upstream:http://127.0.0.1:{outer}"], **trust) as port,
        h1_client(port, up.url) as client,
    ):
        assert (await client.post(up.url + "/v1")).status == 200
    assert targets == [f"127.0.0.1:{up.port}"] * up.connections
    assert up.connections >= 2


def test_installed_mitmproxy_is_the_one_we_know() -> None:
    assert attempts.available() is None


def test_changed_signature_switches_retries_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HttpStream, "make_server_connection", lambda self, address: None)
    assert str(attempts.available()).startswith("mitmproxy's HttpStream.make_server_connection takes")


def test_vanished_name_switches_retries_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(HttpLayer, "make_stream")
    assert attempts.available() == "mitmproxy has no HttpLayer.make_stream"
