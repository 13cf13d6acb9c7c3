"""Retries: helicone-proxy.md section 6, first half."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from heliproxy.directives import RetryDirectives
from heliproxy.policies.answers import transport_answer, transport_kind
from heliproxy.policies.retry import Backoff, delays_ms, first_event_status, problem, retry_after_s, should_retry

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
ON = RetryDirectives(enabled=True)


@pytest.mark.parametrize(
    ("status", "again"),
    [(None, True), (429, True), (500, True), (502, True), (503, True), (504, True), (529, True), (599, True),
     (200, False), (400, False), (401, False), (404, False), (408, False), (409, False), (600, False)],
)  # fmt: skip
def test_what_is_retried(status: int | None, again: bool) -> None:
    assert should_retry(status) is again


@pytest.mark.parametrize(
    ("directives", "draw", "delays"),
    [
        (ON, 0.0, (1000, 2000, 4000, 8000, 10000)),
        (ON, 0.5, (1500, 3000, 6000, 10000, 10000)),
        (RetryDirectives(True, 3, 2, 0, 100), 0.0, (1, 2, 4)),
        (RetryDirectives(True, 3, 1, 50, 100), 0.5, (75, 75, 75)),
        (RetryDirectives(True, 2, 0.5, 100, 1000), 0.0, (50, 100)),
        (RetryDirectives(True, 0), 0.0, ()),
        (RetryDirectives(False, 3), 0.0, ()),
        (RetryDirectives(True, 3, 1e300, 1000, 2000), 0.0, (1000, 2000, 2000)),
    ],
)
def test_delays(directives: RetryDirectives, draw: float, delays: tuple[int, ...]) -> None:
    assert delays_ms(directives, lambda: draw) == delays


def test_delays_are_sorted() -> None:
    draws = iter([0.9, 0.0])
    assert delays_ms(RetryDirectives(True, 2, 1, 100, 1000), lambda: next(draws)) == (100, 190)


def test_absurd_numbers_are_bounded() -> None:
    assert len(delays_ms(RetryDirectives(True, 10**15, 1, 0, 0), lambda: 0.0)) == 100


def drain(backoff: Backoff, status: int | None = 503, retry_after: float | None = None) -> list[float]:
    waits = []
    while (wait := backoff.next_delay(status, retry_after)) is not None:
        waits.append(wait)
    return waits


def test_num_counts_the_calls_after_the_first() -> None:
    assert drain(Backoff(RetryDirectives(True, 3), lambda: 0.0)) == [1.0, 2.0, 4.0]


def test_final_outcomes_are_passed_on() -> None:
    assert Backoff(ON, lambda: 0.0).next_delay(400) is None
    assert Backoff(RetryDirectives(), lambda: 0.0).next_delay(500) is None


def test_waits_are_bounded_together() -> None:
    waits = drain(Backoff(RetryDirectives(True, 20, 2, 1000, 50_000), lambda: 0.0))
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 29.0]


@pytest.mark.parametrize(("status", "wait"), [(429, 7.0), (503, 7.0), (500, 1.0), (None, 1.0)])
def test_retry_after_is_honoured_where_it_means_something(status: int | None, wait: float) -> None:
    assert Backoff(ON, lambda: 0.0).next_delay(status, 7.0) == wait


def test_retry_after_shorter_than_the_backoff_changes_nothing() -> None:
    assert Backoff(ON, lambda: 0.0).next_delay(429, 0.1) == 1.0


def test_next_target_starts_anew_within_the_same_total() -> None:
    backoff = Backoff(RetryDirectives(True, 1), lambda: 0.0)
    assert drain(backoff) == [1.0]
    backoff.next_target()
    assert drain(backoff) == [1.0]
    assert backoff.waited_s == 2.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5", 5.0),
        (" 5 ", 5.0),
        ("1.5", 1.5),
        ("0", None),
        ("-5", None),
        ("100000", 60.0),
        ("9" * 5000, None),
        ("soon", None),
        ("", None),
        (None, None),
        ("Thu, 01 Jan 2026 12:00:07 GMT", 7.0),
        ("Thu, 01 Jan 2026 11:00:00 GMT", None),
        ("Thu, 01 Jan 2099 11:00:00 GMT", 60.0),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert retry_after_s(value, NOW) == seconds


def test_contradicting_timeouts_are_a_500_before_any_call() -> None:
    answer = problem(RetryDirectives(True, 5, 2, 5000, 1000))
    assert answer is not None
    assert answer.status == 500
    assert json.loads(answer.body)["error"] == "Unknown error"
    assert problem(RetryDirectives(True, 5, 2, 1000, 1000)) is None
    assert problem(RetryDirectives(False, 5, 2, 5000, 1000)) is None


@pytest.mark.parametrize(
    ("error", "status", "label"),
    [
        ("Network connection lost.", 502, "Network connection lost"),
        ("Connection refused", 502, "Network connection lost"),
        ("server closed connection", 502, "Network connection lost"),
        ("connection timeout", 504, "Request timeout"),
        ("AbortError: aborted", 504, "Request timeout"),
        ("no such name", 500, "Unknown error"),
    ],
)
def test_transport_failures(error: str, status: int, label: str) -> None:
    answer = transport_answer(error, transport_kind(error))
    assert (answer.status, dict(answer.headers)) == (status, {"content-type": "application/json"})
    body = json.loads(answer.body)
    assert set(body) == {"error", "message", "helicone-message", "support"}
    assert body["error"] == label


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", None),
        (b"event: error\ndata: {", None),
        (b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error"}}\n\n', 529),
        (b'event: error\r\ndata: {"type":"error","error":{"type":"rate_limit_error"}}\r\n\r\n', 429),
        (b'data: {"error":{"message":"x","code":502}}\n\n', 502),
        (b'data: {"error":{"type":"invalid_request_error"}}\n\n', 400),
        (b"event: error\ndata: not json\n\n", 500),
        (b": comment\n\n", None),
        (b'event: ping\ndata: {"type":"ping"}\n\n', None),
        (b': x\n\nevent: error\ndata: {"error":{}}\n\n', 500),
        (b'event: message_start\ndata: {"type":"message_start"}\n\nevent: error\ndata: {}\n\n', 200),
        (b'data: {"choices":[],"error":null}\n\n', 200),
        (b"data: [DONE]\n\n", 200),
        (b"x" * 70_000, 200),
    ],
)
def test_first_event_of_a_stream_tells_a_failure(data: bytes, status: int | None) -> None:
    assert first_event_status(data) == status
