"""Retries and transport failures through a running proxy (helicone-proxy.md sections 2.1, 3.3 and 6)."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator

import pytest

from fakes import Answer, chat_chunks, json_answer, message_events, sse_answer
from rig import CHAT, Rig, chat, cut, error, rigged

QUICK = {"Helicone-Retry-Enabled": "true", "Helicone-Retry-Min-Timeout": "1", "Helicone-Retry-Max-Timeout": "2"}


@pytest.fixture(scope="module")
def shared_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rigged(tmp_path_factory.mktemp("retry") / "home") as rig:
        yield rig


@pytest.fixture
def rig(shared_rig: Rig) -> Rig:
    shared_rig.reset()
    return shared_rig


@pytest.fixture
def slept(shared_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits before calls, none of which takes any time."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(shared_rig.run.proxy.addon, "sleep", sleep)
    return waits


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 520, 529, 599])
def test_429_and_all_5xx_are_called_again(rig: Rig, status: int) -> None:
    rig.script = [error(status), error(status)]
    response = rig.ask(QUICK)
    assert (response.status_code, rig.calls) == (200, 3)
    assert len({asked.body for asked in rig.up.asked}) == 1
    row = rig.row(response)
    assert (row["status"], row["attempts"], row["error"]) == (200, 3, None)
    assert [a["status"] for a in json.loads(row["attempts_json"])] == [status, status, 200]


@pytest.mark.parametrize("status", [200, 201, 301, 400, 401, 403, 404, 408, 409, 422])
def test_all_else_is_not(rig: Rig, status: int) -> None:
    rig.script = [error(status)]
    assert (rig.ask(QUICK).status_code, rig.calls) == (status, 1)


@pytest.mark.parametrize(("num", "calls"), [(None, 6), ("0", 1), ("1", 2), ("3", 4), ("-1", 1), ("abc", 1), ("2.9", 3)])
def test_num_is_the_calls_after_the_first(rig: Rig, num: str | None, calls: int) -> None:
    rig.script = [error(503, f"try {i}") for i in range(20)]
    response = rig.ask(QUICK | ({"Helicone-Retry-Num": num} if num is not None else {}))
    assert (response.status_code, rig.calls) == (503, calls)
    # The last answer is passed on as it came, and nothing is called behind the client's back.
    assert response.json()["error"]["message"] == f"try {calls - 1}"
    rig.ask()
    assert rig.calls == calls + 1


@pytest.mark.parametrize(("value", "calls"), [("true", 2), ("TRUE", 2), ("false", 1), ("1", 1), ("", 1)])
def test_retries_are_on_only_for_true(rig: Rig, value: str, calls: int) -> None:
    rig.script = [error(500)]
    rig.ask(QUICK | {"Helicone-Retry-Enabled": value})
    assert rig.calls == calls


def test_retry_headers_alone_turn_nothing_on(rig: Rig) -> None:
    rig.script = [error(500)]
    assert (rig.ask({"Helicone-Retry-Num": "3"}).status_code, rig.calls) == (500, 1)


@pytest.mark.parametrize(
    ("headers", "bounds"),
    [
        ({}, [(1, 2), (2, 4), (4, 8), (8, 10), (10, 10)]),
        ({"Helicone-Retry-Factor": "3"}, [(1, 2), (3, 6), (9, 10), (10, 10), (10, 10)]),
        ({"Helicone-Retry-Factor": "1.5", "Helicone-Retry-Num": "2"}, [(1, 2), (1, 3)]),
        (
            {"Helicone-Retry-Factor": "1", "Helicone-Retry-Min-Timeout": "20", "Helicone-Retry-Num": "2"},
            [(0.02, 0.04)] * 2,
        ),
        ({"Helicone-Retry-Max-Timeout": "1500", "Helicone-Retry-Num": "3"}, [(1, 1.5), (1.5, 1.5), (1.5, 1.5)]),
        ({"Helicone-Retry-Min-Timeout": "0", "Helicone-Retry-Num": "1"}, [(0.001, 0.002)]),
    ],
)
def test_waits_grow_with_jitter_up_to_the_longest(
    rig: Rig, slept: list[float], headers: dict[str, str], bounds: list[tuple[float, float]]
) -> None:
    rig.script = [error(500)] * 9
    response = rig.ask({"Helicone-Retry-Enabled": "true"} | headers)
    assert response.status_code == 500
    assert slept == sorted(slept)
    assert len(slept) == len(bounds)
    for wait, (low, high) in zip(slept, bounds, strict=True):
        assert low <= wait <= high
    attempts = json.loads(rig.row(response)["attempts_json"])
    assert [a["delay_ms"] for a in attempts] == [0.0, *(round(w * 1000, 1) for w in slept)]


@pytest.mark.parametrize(
    ("status", "header", "wait"),
    [
        (429, "7", 7.0),
        (503, "7", 7.0),
        (500, "7", 0.002),
        (429, "3600", 60.0),
        (429, "-5", 0.002),
        (429, "soon", 0.002),
        (429, "Wed, 21 Oct 2015 07:28:00 GMT", 0.002),
        (429, "Thu, 21 Oct 2099 07:28:00 GMT", 60.0),
    ],
)
def test_retry_after_is_honoured_and_bounded(
    rig: Rig, slept: list[float], status: int, header: str, wait: float
) -> None:
    rig.script = [error(status, retry_after=header)]
    assert rig.ask(QUICK).status_code == 200
    (waited,) = slept
    assert waited == pytest.approx(wait, abs=0.0011)


def test_all_waits_together_are_at_most_a_minute(rig: Rig, slept: list[float]) -> None:
    rig.script = [error(429, retry_after="50")] * 9
    assert rig.ask(QUICK).status_code == 429
    assert slept == [50.0, 10.0]
    assert rig.calls == 3


def test_retry_after_of_the_last_answer_reaches_the_client(rig: Rig) -> None:
    rig.script = [error(429, retry_after="0")] * 9
    assert rig.ask(QUICK | {"Helicone-Retry-Num": "1"}).headers["retry-after"] == "0"


def test_least_wait_above_the_longest_is_an_error_before_any_call(rig: Rig) -> None:
    headers = {"Helicone-Retry-Enabled": "true", "Helicone-Retry-Min-Timeout": "20000"}
    response = rig.ask(headers)
    assert (response.status_code, response.json()["error"], rig.calls) == (500, "Unknown error", 0)
    assert sorted(response.json()) == ["error", "helicone-message", "message", "support"]
    assert response.headers["helicone-id"]


def test_broken_connections_are_called_again(rig: Rig) -> None:
    rig.script = [cut(), cut()]
    response = rig.ask(QUICK)
    assert (response.status_code, rig.calls) == (200, 3)
    assert rig.row(response)["attempts"] == 3


@pytest.mark.parametrize(("headers", "calls"), [({}, 1), (QUICK | {"Helicone-Retry-Num": "2"}, 3)])
def test_connection_that_breaks_for_good_is_a_502(rig: Rig, headers: dict[str, str], calls: int) -> None:
    rig.script = [cut()] * 9
    response = rig.ask(headers)
    assert (response.status_code, rig.calls) == (502, calls)
    body = response.json()
    assert sorted(body) == ["error", "helicone-message", "message", "support"]
    assert body["error"] == "Network connection lost"
    assert response.headers["content-type"] == "application/json"
    assert response.headers["helicone-status"] == "success"
    row = rig.row(response)
    assert (row["status"], row["error_type"], row["attempts"]) == (502, "upstream_failed", calls)


def test_upstream_that_nobody_listens_at_is_a_502(rig: Rig) -> None:
    free = {"Helicone-Target-URL": "http://127.0.0.1:9"}
    settings = rig.run.proxy.addon
    settings._allowed |= {"127.0.0.1:9"}
    response = rig.ask(QUICK | free | {"Helicone-Retry-Num": "1"}, path="/gateway/v1/chat/completions")
    assert (response.status_code, response.json()["error"]) == (502, "Network connection lost")
    assert rig.row(response)["attempts"] == 2


def test_answer_before_the_connection_broke_is_passed_on(rig: Rig) -> None:
    rig.script = [error(503, "busy"), cut()]
    response = rig.ask(QUICK | {"Helicone-Retry-Num": "1"})
    assert (response.status_code, response.json()["error"]["message"]) == (503, "busy")


def test_streams_are_called_again_before_their_first_event(rig: Rig) -> None:
    rig.script = [error(529), error(503)]
    response = rig.ask(QUICK, stream=True)
    assert response.content == b"".join(chat_chunks(["answer 1", "!"]))
    assert rig.calls == 3
    assert rig.row(response)["output_tokens"] is not None


OVERLOADED = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n'


def test_error_as_the_first_event_of_a_200_counts_as_a_failure(rig: Rig) -> None:
    rig.script = [sse_answer([OVERLOADED]), sse_answer([b": ping\n\n", OVERLOADED]), sse_answer(message_events(["Hi"]))]
    response = rig.ask(QUICK, path="/anthropic/v1/messages", stream=True)
    assert response.content == b"".join(message_events(["Hi"]))
    assert rig.calls == 3
    row = rig.row(response)
    assert (row["status"], row["attempts"]) == (200, 3)
    assert [a["status"] for a in json.loads(row["attempts_json"])] == [529, 529, 200]


def test_error_as_the_first_event_passes_when_retries_are_used_up(rig: Rig) -> None:
    rig.script = [sse_answer([OVERLOADED])] * 9
    response = rig.ask(QUICK | {"Helicone-Retry-Num": "1"}, path="/anthropic/v1/messages", stream=True)
    assert (response.status_code, response.content, rig.calls) == (200, OVERLOADED, 2)
    assert rig.row(response)["status"] == 529


def test_error_event_that_is_the_clients_fault_is_not_called_again(rig: Rig) -> None:
    wrong = b'event: error\ndata: {"type":"error","error":{"type":"invalid_request_error","message":"no"}}\n\n'
    rig.script = [sse_answer([wrong])]
    rig.ask(QUICK, path="/anthropic/v1/messages", stream=True)
    assert rig.calls == 1


def test_nothing_is_called_again_once_bytes_reached_the_client(rig: Rig) -> None:
    rig.script = [sse_answer([*chat_chunks(["Hi"])[:2], "cut"])]
    with pytest.raises(Exception, match=r"peer closed|incomplete"):
        rig.ask(QUICK, stream=True)
    assert rig.calls == 1


def test_without_retries_an_error_event_passes_at_once(rig: Rig) -> None:
    rig.script = [sse_answer([OVERLOADED])]
    response = rig.ask(path="/anthropic/v1/messages", stream=True)
    assert (response.content, rig.calls) == (OVERLOADED, 1)


def test_hits_and_denied_calls_are_not_called_again(rig: Rig) -> None:
    me = {"Helicone-User-Id": str(uuid.uuid4()), "Helicone-RateLimit-Policy": "1;w=600;s=user"}
    assert rig.ask(QUICK | me).status_code == 200
    assert (rig.ask(QUICK | me).status_code, rig.calls) == (429, 1)


def test_success_after_retries_is_cached_and_failure_is_not(rig: Rig) -> None:
    headers = QUICK | {"Helicone-Cache-Enabled": "true", "Helicone-Retry-Num": "1"}
    rig.script = [error(500), error(500)]
    text = str(uuid.uuid4())
    assert rig.ask(headers, text=text).status_code == 500
    rig.script = [error(500)]
    assert rig.ask(headers, text=text).headers["helicone-cache"] == "MISS"
    assert rig.ask(headers, text=text).headers["helicone-cache"] == "HIT"
    assert rig.calls == 4


def test_client_that_leaves_during_the_wait_stops_it(rig: Rig) -> None:
    headers = {"Helicone-Retry-Enabled": "true", "Helicone-Retry-Min-Timeout": "8000"}
    rig.script = [error(500)] * 9
    with pytest.raises(Exception, match="timed out"), rig.run.direct() as client:
        client.post(rig.run.url + CHAT, json=chat(), headers=headers, timeout=0.4)
    deadline = time.monotonic() + 5
    while not (rows := rig.run.rows("SELECT * FROM requests WHERE status = -3")) and time.monotonic() < deadline:
        pass
    assert rows
    assert rig.calls == 1


def test_large_request_bodies_are_sent_whole_again(rig: Rig) -> None:
    rig.script = [error(500)]
    rig.ask(QUICK, text="x" * 300_000)
    first, second = rig.up.asked
    assert first.body == second.body
    assert len(second.body) > 300_000


def test_provider_hosts_through_the_proxy_are_called_again_too(rig: Rig) -> None:
    rig.script = [error(500)]
    with rig.run.client() as client:
        response = client.post("https://api.openai.com/v1/chat/completions", json=chat(), headers=QUICK)
    assert (response.status_code, rig.calls) == (200, 2)


def test_unused_answer_is_whole(rig: Rig) -> None:
    big = json_answer({"error": {"message": "y" * 200_000}}, 500)
    rig.script = [big, Answer(500, b"{}")]
    assert rig.ask(QUICK | {"Helicone-Retry-Num": "1"}).content == b"{}"


@pytest.mark.parametrize(
    ("headers", "waits"),
    [
        ({}, False),
        (QUICK, False),
        (QUICK | {"Helicone-RateLimit-Policy": "100;w=60"}, True),
        (QUICK | {"Helicone-Cache-Enabled": "true"}, True),
    ],
)
def test_call_that_asks_for_retries_alone_waits_for_no_policy(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], waits: bool
) -> None:
    assert rig.ask().status_code == 200  # the first one has the budgets read
    waited: list[bool] = []
    addon = rig.run.proxy.addon
    later = addon._request_decided_later
    monkeypatch.setattr(addon, "_request_decided_later", lambda *args: (waited.append(True), later(*args))[1])
    assert rig.ask(headers).status_code == 200
    assert bool(waited) is waits
