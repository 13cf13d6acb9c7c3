"""The recorder's intake of calls made elsewhere: read late, in company, and never lost from sight."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from heliproxy import recorder as module
from heliproxy.exchange import Exchange
from heliproxy.ingest import log_exchange
from heliproxy.pricing import Prices
from heliproxy.record import Pricing
from heliproxy.recorder import Recorder
from heliproxy.store import Store
from heliproxy.tokens import estimate


def a_log() -> list[Exchange]:
    body = {"providerRequest": {"url": "x", "json": {}}, "providerResponse": {"status": 200, "textBody": "hi"}}
    return [log_exchange(body, "custom", (), 1_780_000_000.0, strict=False)]


def failing() -> list[Exchange]:
    raise RuntimeError("unreadable")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "heliproxy.db")


@pytest.fixture
def recorder(store: Store) -> Iterator[Recorder]:
    prices = Prices(None)
    found = Recorder(store.writer, lambda: Pricing(prices, estimate, b"s" * 32))
    found.start()
    yield found
    found.close()


def rows(store: Store) -> int:
    conn = store.reader()
    try:
        return int(conn.execute("SELECT count(*) FROM requests").fetchone()[0])
    finally:
        conn.close()


def test_a_flush_waits_for_logs_taken_before_it(recorder: Recorder, store: Store) -> None:
    for number in range(1, 51):
        assert recorder.take(a_log, 10)
        if number % 10 == 0:
            recorder.flush()
            assert rows(store) == number
    assert recorder.waiting == 0


def test_closing_writes_what_was_taken(recorder: Recorder, store: Store) -> None:
    for _ in range(20):
        assert recorder.take(a_log, 10)
    recorder.close()
    assert rows(store) == 20
    assert not recorder.take(a_log, 10)


def test_logs_are_read_without_being_asked_for(recorder: Recorder) -> None:
    written: list[str] = []
    done = threading.Event()

    def heard(ids: list[str]) -> None:
        written.extend(ids)
        if len(written) == 30:
            done.set()

    recorder.listeners.append(heard)
    for _ in range(30):
        assert recorder.take(a_log, 10)
    assert done.wait(10)


def test_what_cannot_be_read_is_counted_and_the_rest_goes_on(recorder: Recorder, store: Store) -> None:
    assert [recorder.take(read, 10) for read in (a_log, failing, a_log)] == [True] * 3
    recorder.flush()
    assert (rows(store), recorder.counters.lost_rows, recorder.counters.errors) == (2, 1, 1)


@pytest.mark.parametrize("limit", ["MAX_PENDING_BYTES", "MAX_PENDING_ITEMS", "MAX_UNWRITTEN"])
def test_a_log_past_a_limit_is_refused(recorder: Recorder, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(module, limit, -1)
    assert not recorder.take(a_log, 10)
    assert (recorder.counters.lost_rows, recorder.waiting) == (0, 0)
