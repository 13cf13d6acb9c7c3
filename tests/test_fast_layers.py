"""The shortcuts through mitmproxy's layers do what mitmproxy's own code does, and leave nothing behind."""

from __future__ import annotations

import asyncio
import copy
import gc
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import options
from mitmproxy.connection import Client
from mitmproxy.coretypes.multidict import MultiDict
from mitmproxy.http import Headers, HTTPFlow
from mitmproxy.master import Master
from mitmproxy.optmanager import unset
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http._hooks import HttpRequestHook
from mitmproxy.test import tflow

from fakes import Answer, Asked, Upstream, json_answer, sse_answer
from heliproxy import dispatch, fast_layers, flows
from running import running

NAMES = st.sampled_from([b"Accept", b"accept", b"ACCEPT", b"Host", b"x-\xc3\xa4", b"x-\xff", b""])
FIELDS = st.lists(st.tuples(NAMES, st.binary(max_size=4)), max_size=6)


@given(FIELDS, NAMES)
def test_headers_are_found_as_mitmproxy_finds_them(fields: Sequence[tuple[bytes, bytes]], name: bytes) -> None:
    headers = Headers(fields)
    stock = [v.decode("utf-8", "surrogateescape") for v in MultiDict.get_all(headers, name)]
    assert fast_layers.get_all(headers, name) == stock
    assert fast_layers.get_all(headers, name.decode("utf-8", "surrogateescape")) == stock
    assert fast_layers.get(headers, name, 7) == (", ".join(stock) if stock else 7)


@given(FIELDS, NAMES, st.sampled_from([b"Accept", b"host", b"x-new"]))
def test_changed_headers_are_read_anew(fields: Sequence[tuple[bytes, bytes]], name: bytes, changed: bytes) -> None:
    headers = Headers(fields)
    fast_layers.get_all(headers, name)
    twin = headers.copy()
    headers[changed] = "new"
    assert fast_layers.get_all(headers, changed.upper()) == ["new"]
    del headers[changed]
    assert fast_layers.get_all(headers, changed) == []
    headers.add(changed, b"again")
    headers.insert(0, changed, b"first")
    assert fast_layers.get(headers, changed) == "first, again"
    headers.fields = [*headers.fields, (changed, b"listed")]  # type: ignore[assignment]
    assert fast_layers.get_all(headers, changed)[-1] == "listed"
    headers.fields.append((changed, b"in place"))  # type: ignore[attr-defined]
    assert fast_layers.get_all(headers, changed)[-1] == "in place"
    assert twin == Headers(fields)
    assert fast_layers.get_all(twin, name) == fast_layers.get_all(Headers(fields), name)


def test_options_are_what_mitmproxy_says_and_cannot_be_changed_from_outside() -> None:
    found = options.Options(allow_hosts=["a"], http2=False)
    for name, option in found._options.items():
        stock = copy.deepcopy(option._default if option.value is unset else option.value)
        assert fast_layers.current(option) == stock, name
    fast_layers.current(found._options["allow_hosts"]).append("b")  # type: ignore[attr-defined]
    assert found.allow_hosts == ["a"]


def test_a_fork_is_mitmproxys_fork() -> None:
    context = Context(Client(peername=("::1", 1), sockname=("::1", 2), timestamp_start=0), options.Options())
    context.layers.append(object())  # type: ignore[arg-type]
    ours = fast_layers.fork(context)
    assert vars(ours) == vars(context)
    assert type(ours) is Context
    assert ours.server is context.server
    assert ours.layers is not context.layers


class Handler:
    def __init__(self, seen: list[str], act: Callable[[HTTPFlow], Any] = lambda _: None) -> None:
        self.seen, self.act, self.name = seen, act, f"handler {id(self)}"

    def request(self, flow: HTTPFlow) -> Any:
        self.seen.append("request")
        return self.act(flow)


async def begun(*addons: Any) -> tuple[bool, HttpRequestHook, Master]:
    master = Master(options.Options())
    dispatch.use(master)
    master.addons.add(*addons)
    assert type(master.addons) is dispatch.DirectDispatch
    hook = HttpRequestHook(tflow.tflow())
    return master.addons.begin(hook), hook, master


@pytest.mark.parametrize("waits", [False, True])
def test_each_handler_is_called_once_whether_one_waits_or_not(waits: bool) -> None:
    seen: list[str] = []

    async def later() -> None:
        await asyncio.sleep(0)
        seen.append("waited")

    async def run() -> None:
        act = (lambda _: later()) if waits else (lambda _: None)
        done, hook, master = await begun(Handler(seen), Handler(seen, act), Handler(seen))
        assert done is not waits
        if not done:
            assert not master.addons.begin(hook)  # type: ignore[attr-defined]
            await master.addons.handle_lifecycle(hook)
        master._legacy_log_events.uninstall()

    asyncio.run(run())
    assert seen == (["request", "request", "waited", "request"] if waits else ["request"] * 3)


def test_a_flow_that_is_held_is_not_gone_on_with() -> None:
    async def run() -> None:
        done, hook, master = await begun(Handler([], lambda flow: flow.intercept()))
        assert not done
        await master.addons.handle_lifecycle(hook)
        master._legacy_log_events.uninstall()

    asyncio.run(run())


def test_addons_that_watch_updates_are_told_once() -> None:
    seen: list[str] = []

    class Watcher:
        def update(self, flows: Sequence[HTTPFlow]) -> None:
            seen.append(f"{len(flows)} updated")

    async def run() -> None:
        done, hook, master = await begun(Handler(seen), Watcher())
        assert not done
        await master.addons.handle_lifecycle(hook)
        master._legacy_log_events.uninstall()

    asyncio.run(run())
    assert seen == ["request", "1 updated"]


def answer(asked: Asked) -> Answer:
    if asked.json.get("stream"):
        return sse_answer([b'data: {"choices":[]}\n\n'] * 3 + [b"data: [DONE]\n\n"])
    return json_answer({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_over_leaves_no_garbage(tmp_path: Path, stream: bool) -> None:
    """Without a collection its bodies would stay; a proxy that is busy would grow until one comes."""
    with Upstream(answer) as up, running(tmp_path / "home", up) as run:
        client = run.client()

        def ask(times: int) -> None:
            for _ in range(times):
                body = {"model": "gpt-4o-mini", "messages": [], "stream": stream}
                assert client.post("https://api.openai.com/v1/chat/completions", json=body).status_code == 200
            run.proxy.flush()

        ask(3)
        gc.collect()
        gc.disable()
        try:
            ask(20)
            left = Counter(type(o).__name__ for o in gc.get_objects())
        finally:
            gc.enable()
    assert left["HTTPFlow"] < 10
    assert left["Exchange"] < 10


@given(FIELDS, st.lists(st.tuples(st.sampled_from(["Accept", "host", "Helicone-Id"]), st.text(max_size=4)), max_size=4))
def test_headers_put_in_one_go_are_those_set_one_by_one(
    fields: Sequence[tuple[bytes, bytes]], pairs: Sequence[tuple[str, str]]
) -> None:
    together, singly = Headers(fields), Headers(fields)
    flows.put_headers(together, pairs)
    for name, value in pairs:
        singly[name] = value
    assert together.fields == singly.fields
