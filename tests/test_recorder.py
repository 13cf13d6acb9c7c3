"""The recorder's thread with a real file: calls under way, memory while the database is away, failing parts."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from heliproxy import recorder as module
from heliproxy.addon import Heliproxy
from heliproxy.directives import parse
from heliproxy.exchange import Exchange
from heliproxy.hosts import Route
from heliproxy.record import Pricing, Sink, bare_record, open_record
from heliproxy.recorder import Recorder
from heliproxy.sockets import Socket
from heliproxy.store import Store, open_reader

REQUEST = b'{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]}'
ANSWER = b'{"id": "x", "model": "gpt-4o-mini", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}'
JSON = ((b"content-type", b"application/json"),)


class NoPrices:
    def cost(self, *args: Any, **kw: Any) -> None:
        return None


def exchange(key: str, **fields: Any) -> Exchange:
    route = Route("openai", "api.openai.com", "openai_chat", "openai", True)
    made = Exchange(
        id=key,
        created_at=1_790_000_000.0,
        started=time.perf_counter() - 10,
        route=route,
        directives=parse([], ()),
        method="POST",
        path="/v1/chat/completions",
        request_headers=JSON,
        request_body=REQUEST,
    )
    return replace(made, **fields)


def answered(key: str, **fields: Any) -> Exchange:
    body = fields.pop("body", ANSWER)
    return exchange(key, status=200, response_headers=JSON, chunks=[body], size_response=len(body), **fields)


@pytest.fixture
def path(home: Path) -> Path:
    return home / "heliproxy.db"


@pytest.fixture
def recorder(path: Path) -> Iterator[Recorder]:
    found = Recorder(Store(path).writer, lambda: Pricing(NoPrices(), lambda *_: None, b"s" * 32))
    found.start()
    yield found
    found.close()


def rows(path: Path) -> dict[str, dict[str, Any]]:
    with closing(open_reader(path)) as conn:
        conn.row_factory = sqlite3.Row
        return {row["id"]: dict(row) for row in conn.execute("SELECT * FROM requests")}


def wait_for(met: Callable[[], Any]) -> bool:
    deadline = time.monotonic() + 10
    while not met():
        if time.monotonic() > deadline:
            return False
        threading.Event().wait(0.02)
    return True


def test_calls_under_way_are_opened_once_and_replaced(recorder: Recorder, path: Path) -> None:
    calls = [
        exchange("long"),
        exchange("short", started=time.perf_counter() + 60),
        exchange("no body", request_body=None),
    ]
    recorder.live = lambda: list(calls)
    assert wait_for(lambda: len(rows(path)) == 2)
    opened = rows(path)
    assert {key: (row["incomplete"], row["model"], row["status"]) for key, row in opened.items()} == {
        "long": (1, "gpt-4o-mini", None),
        "no body": (1, None, None),
    }
    done = calls.pop(0)
    done.status, done.response_headers, done.chunks = 200, JSON, [ANSWER]
    recorder.finish(done)
    assert recorder.flushed()
    assert (rows(path)["long"]["incomplete"], rows(path)["long"]["input_tokens"]) == (0, 3)
    with closing(open_reader(path)) as conn:
        assert conn.execute("SELECT request_id FROM under_way").fetchall() == [("no body",)]


def test_responses_on_a_socket_are_calls_under_way() -> None:
    addon = Heliproxy()
    addon.live["flow"] = exchange("http")
    socket = addon.sockets.by_flow["other"] = Socket(
        exchange("socket"), lambda _: None, lambda _: None, lambda: "next", time.time, time.perf_counter
    )
    assert [call.id for call in addon.under_way()] == ["http"]
    for _ in range(2):
        socket.from_client(b'{"type": "response.create", "model": "gpt-5-codex"}')
    assert [call.id for call in addon.under_way()] == ["http", "socket", "next"]
    socket.from_server(b'{"type": "response.completed", "response": {}}')
    assert [call.id for call in addon.under_way()] == ["http", "next"]


def test_request_that_a_fallback_changed_is_read_again(recorder: Recorder, path: Path) -> None:
    call = exchange("a")
    calls = [call]
    recorder.live = lambda: list(calls)
    assert wait_for(lambda: rows(path))
    calls.clear()
    call.request_body = REQUEST.replace(b"gpt-4o-mini", b"gpt-4o")
    call.status, call.response_headers, call.chunks = 200, JSON, [b"{}"]
    recorder.finish(call)
    recorder.flush()
    assert rows(path)["a"]["model"] == "gpt-4o"


@pytest.mark.parametrize("fields", [{"warm_up": True}, {"logged": False}])
def test_what_makes_no_row_is_not_opened(recorder: Recorder, path: Path, fields: dict[str, Any]) -> None:
    recorder.live = lambda: [exchange("a", **fields), exchange("b")]
    assert wait_for(lambda: rows(path))
    assert list(rows(path)) == ["b"]


def test_calls_under_way_that_cannot_be_told_are_an_error_and_no_end(recorder: Recorder, path: Path) -> None:
    def fail() -> list[Exchange]:
        raise RuntimeError("dictionary changed size during iteration")

    recorder.live = fail
    assert wait_for(lambda: recorder.counters.errors)
    recorder.finish(answered("a"))
    assert recorder.flushed()
    assert list(rows(path)) == ["a"]


@contextmanager
def held_up(recorder: Recorder) -> Iterator[None]:
    """A recorder whose thread is kept from everything that is handed over meanwhile."""
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        go_on.wait(10)

    holding = threading.Thread(target=recorder.call, args=(hold,))
    holding.start()
    assert held.wait(10)
    try:
        yield
    finally:
        go_on.set()
        holding.join()


def test_bytes_that_wait_are_bounded_and_rows_are_kept(
    recorder: Recorder, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PENDING_BYTES", 10_000)
    with held_up(recorder):
        for i in range(10):
            recorder.finish(answered(f"{i}", body=b'{"padding": "' + b"x" * 3000 + b'"}'))
        facts = recorder.facts()
        assert (facts["waiting"], facts["waiting_bytes"] <= 10_000) == (10, True)
    assert recorder.flushed()
    found = rows(path)
    lost = [row for row in found.values() if row["parse_error"]]
    assert (len(found), len(lost), recorder.facts()["lost_bodies"], recorder.facts()["lost_rows"]) == (10, 7, 7, 0)
    assert {row["status"] for row in lost} == {200}
    assert {row["usage_source"] for row in lost} == {"none"}
    assert recorder.facts()["waiting_bytes"] == 0


def test_flushed_says_when_the_database_takes_nothing(recorder: Recorder, path: Path) -> None:
    assert recorder.flushed()
    recorder.call(lambda: recorder.writer and recorder.writer.be_patient(0.05))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        recorder.finish(answered("a"))
        assert not recorder.flushed()
        assert recorder.facts()["away_since"] is not None
        other.execute("ROLLBACK")
    assert wait_for(recorder.flushed)
    facts = recorder.facts()
    assert (facts["written"], facts["unwritten"], facts["away_since"]) == (1, 0, None)


def test_thread_goes_on_after_a_failure_of_its_loop(
    recorder: Recorder, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(recorder, "_look", lambda now: 1 / 0)
        assert wait_for(lambda: recorder.counters.errors > 2)
    recorder.finish(answered("a"))
    assert recorder.flushed()
    assert recorder.alive


def test_a_key_repeated_in_the_prompt_is_in_no_row_not_even_of_an_open_or_unreadable_call() -> None:
    key = "sk-canary-0123456789abcdef"
    prompt = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"my key is %s"}]}' % key.encode()
    headers = ((b"authorization", f"Bearer {key}".encode()),)
    call = exchange("early", request_headers=headers, request_body=prompt, error=f"{key} was refused")
    opened, _ = open_record(call, b"secret")
    bare, _ = bare_record(call, "a parser failed", b"secret")
    assert "my key is" in str(opened.row["preview"])
    assert key not in f"{opened.row}{bare.row}"


def test_rows_that_are_late_are_committed_together(recorder: Recorder, path: Path) -> None:
    """One commit each would make all that wait later still."""
    commits: list[int] = []
    recorder.listeners.append(lambda ids: commits.append(len(ids)))
    with held_up(recorder):
        for n in range(200):
            recorder.finish(answered(f"late-{n}"))
        late = time.monotonic() + module.BATCH_SECONDS + 0.05
        assert wait_for(lambda: time.monotonic() > late)
    assert wait_for(lambda: sum(commits) == 200)
    assert len(commits) < 20


@pytest.mark.parametrize(
    ("data", "sizes"),
    [
        (b"", [0]),
        (b"x" * 4096, [4096]),
        (b"x" * 9000, [4096, 4096, 808]),
        (b"data: x\n\n" * 1000, [4095, 4095, 810]),
        (b"x" * 4094 + b"\n\nyy", [4096, 2]),
        (b"\n\n" + b"x" * 5000, [2, 4096, 904]),
    ],
)
def test_long_streams_are_read_in_pieces_of_whole_events(data: bytes, sizes: list[int]) -> None:
    sink, fed, paused = Sink(exchange("one", response_headers=((b"content-type", b"text/event-stream"),))), [], []

    class Parser:
        def feed(self, piece: bytes) -> None:
            fed.append(piece)

        def result(self) -> Any:
            raise AssertionError

    sink.parser = Parser()
    sink.feed([data], lambda: paused.append(len(fed)))
    assert b"".join(fed) == data
    assert [len(piece) for piece in fed] == sizes
    assert paused == list(range(1, len(fed) + 1))
