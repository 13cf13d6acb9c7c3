"""Request query, count, single requests and their bodies."""

from __future__ import annotations

import time
from typing import Any

import pytest

from api_rig import Rig, log_body
from heliproxy.bodies import Body


@pytest.fixture
def logged(rig: Rig) -> Rig:
    for i in range(12):
        rig.add(
            f"r{i:02}",
            created_at=f"2026-09-01T12:00:{i:02}.000Z",
            model=("gpt-4o", "claude-sonnet")[i % 2],
            provider=("openai", "anthropic")[i % 2],
            user_id=f"u{i % 3}",
            input_tokens=100 + i,
            cache_read_tokens=40,
            output_tokens=10,
            reasoning_tokens=4,
            cost_usd=0.01 * i,
            latency_ms=1000.0 - i,
            properties={"env": ("dev", "prod")[i % 2]},
            body=Body(b'{"n": %d}' % i, b'{"ok": true}', "application/json", "application/json"),
        )
    return rig


def test_newest_come_first_in_helicones_words(logged: Rig) -> None:
    rows = logged.post("/v1/request/query", {"filter": "all", "limit": 2})
    assert [row["request_id"] for row in rows] == ["r11", "r10"]
    row = rows[0]
    assert row["provider"] == "ANTHROPIC"
    assert (row["prompt_tokens"], row["completion_tokens"], row["reasoning_tokens"]) == (71, 6, 4)
    assert (row["prompt_cache_read_tokens"], row["total_tokens"]) == (40, 121)
    assert (row["cost"], row["costUSD"], row["delay_ms"]) == (0.11, 0.11, 989)
    assert (row["request_created_at"], row["response_created_at"]) == (
        "2026-09-01T12:00:11.000Z",
        "2026-09-01T12:00:11.989Z",
    )
    assert (row["properties"], row["scores"], row["assets"]) == ({"env": "prod"}, None, [])
    assert row["target_url"] == "https://api.openai.com/v1/chat/completions"


@pytest.mark.parametrize(
    ("sort", "first"),
    [
        ({"created_at": "asc"}, "r00"),
        ({"latency": "asc"}, "r11"),
        ({"cost": "desc"}, "r11"),
        ({"total_tokens": "asc"}, "r00"),
        ({"body_model": "desc"}, "r10"),
        ({"user_id": "desc"}, "r11"),
        ({"properties": {"env": "desc"}}, "r11"),
        ({"created_at": "asc", "cost": "desc"}, "r00"),
        ({"random": True}, None),
    ],
)
def test_sorts(logged: Rig, sort: Any, first: str | None) -> None:
    rows = logged.post("/v1/request/query", {"filter": "all", "sort": sort, "limit": 12})
    assert len(rows) == 12
    assert first in (None, rows[0]["request_id"])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"limit": 1001}, "invalid limit"),
        ({"limit": -1}, "invalid limit"),
        ({"offset": -1}, "unsupport offset value"),
        ({"offset": "x"}, "Invalid offset or limit"),
        ({"limit": {}}, "Invalid offset or limit"),
        ({"sort": {"created_at": "up"}}, "Invalid sort direction: up"),
        ({"sort": {"nope": "asc"}}, "cannot sort by 'nope'"),
        ({"sort": {"properties": {"a;b": "asc"}}}, "sort.properties"),
        ({"sort": 5}, "sort should be an object"),
    ],
)
def test_what_cannot_be_is_named(logged: Rig, body: Any, message: str) -> None:
    assert message in logged.error("/v1/request/query", {"filter": "all", **body})


def test_pages_do_not_overlap(logged: Rig) -> None:
    seen = []
    for offset in range(0, 12, 5):
        rows = logged.post("/v1/request/query-clickhouse", {"filter": {}, "limit": 5, "offset": offset})
        seen += [row["request_id"] for row in rows]
    assert seen == [f"r{i:02}" for i in reversed(range(12))]


def test_counts(logged: Rig) -> None:
    prod = {"request_response_rmt": {"properties": {"Env": {"equals": "prod"}}}}
    assert logged.post("/v1/request/count/query", {"filter": "all"}) == 12
    assert logged.post("/v1/request/count/query", {"filter": prod}) == 6


def test_ids_come_back_in_the_order_asked(logged: Rig) -> None:
    rows = logged.post("/v1/request/query-ids", {"requestIds": ["r03", "nope", "r01"]})
    assert [row["request_id"] for row in rows] == ["r03", "r01"]


def test_one_request_with_and_without_bodies(logged: Rig) -> None:
    assert logged.get("/v1/request/r03")["request_body"] == {}
    found = logged.get("/v1/request/r03?includeBody=true")
    assert (found["request_body"], found["response_body"]) == ({"n": 3}, {"ok": True})
    assert logged.get("/v1/request/nope", 404)["error"] == "Request not found"
    assert logged.get("/v1/request/r03/inputs") is None


def test_inputs_of_a_prompt(rig: Rig) -> None:
    given = {"Helicone-Prompt-Input-city": "Rome", "Helicone-Prompt-Input-a:b": "", "app": "x"}
    rig.add("r1", properties=given, prompt_id="travel")
    rig.add("r2", properties={"Helicone-Prompt-Input-city": "Athens"})
    expected = {"environment": None, "version_id": "", "prompt_id": "travel", "inputs": {"city": "Rome", "a:b": ""}}
    assert rig.get("/v1/request/r1/inputs") == expected
    assert rig.get("/v1/request/r2/inputs")["prompt_id"] == ""
    rows = rig.post("/v1/request/query", {"filter": "all", "sort": {"values": {"city": "asc"}}})
    assert [row["request_id"] for row in rows] == ["r2", "r1"]


def test_the_signed_link_resolves_at_the_address_the_client_used(logged: Rig) -> None:
    row = logged.post("/v1/request/query", {"filter": "all", "limit": 1})[0]
    assert row["signed_body_url"].startswith("http://127.0.0.1:8585/v1/signed-body?id=r11&signature=")
    assert logged.client.get(row["signed_body_url"]).json() == {"request": {"n": 11}, "response": {"ok": True}}
    other = row["signed_body_url"].replace("id=r11", "id=r10")
    assert logged.client.get(other).status_code == 403
    through = logged.client.post("https://api.helicone.ai/v1/request/query", json={"filter": "all", "limit": 1}).json()[
        "data"
    ][0]
    assert through["signed_body_url"].startswith("https://api.helicone.ai/v1/signed-body?")


def test_a_streamed_answer_comes_whole(rig: Rig) -> None:
    stream = (
        b'data: {"id":"c1","model":"gpt-4o","choices":[{"index":0,"delta":{"content":"Hel"}}]}\n\n'
        b'data: {"id":"c1","choices":[{"index":0,"delta":{"content":"lo"},"finish_reason":"stop"}]}\n\n'
        b'data: {"choices":[],"usage":{"prompt_tokens":5}}\n\ndata: [DONE]\n\n'
    )
    rig.add("s1", body=Body(b"{}", stream, "application/json", "text/event-stream"))
    answer = rig.get("/v1/request/s1?includeBody=true")["response_body"]
    assert answer["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}
    ]
    assert (answer["id"], answer["model"], answer["usage"]) == ("c1", "gpt-4o", {"prompt_tokens": 5})
    assert answer["streamed_data"] == stream.decode()


def test_a_log_is_visible_to_the_next_read(rig: Rig) -> None:
    for _ in range(20):
        answer = rig.client.post("/oai/v1/log", json=log_body())
        request_id = answer.headers["helicone-id"]
        assert rig.get(f"/v1/request/{request_id}")["request_id"] == request_id


def test_late_pages_of_many_rows_are_quick(rig: Rig) -> None:
    for i in range(20_000):
        rig.add(f"id-{i:06}", created_at=f"2026-09-{1 + i // 1000:02}T12:00:{i % 60:02}.{i % 1000:03}Z", model="m")
    assert rig.post("/v1/request/count/query", {"filter": "all"}) == 20_000

    def seconds(offset: int) -> float:
        began = time.perf_counter()
        rows = rig.post("/v1/request/query-clickhouse", {"filter": "all", "limit": 1000, "offset": offset})
        assert len(rows) == 1000
        return time.perf_counter() - began

    first = min(seconds(0) for _ in range(3))
    last = min(seconds(19_000) for _ in range(3))
    assert last < 3 * first + 0.05


def test_paging_goes_on_where_it_was_while_rows_come(logged: Rig) -> None:
    ask = {"filter": "all", "limit": 5}
    seen = [row["request_id"] for row in logged.post("/v1/request/query", ask)]
    logged.add("new", created_at="2026-09-02T00:00:00.000Z")
    for offset in (5, 10):
        seen += [row["request_id"] for row in logged.post("/v1/request/query", {**ask, "offset": offset})]
    assert seen == [f"r{i:02}" for i in reversed(range(12))]
    assert logged.post("/v1/request/query", ask)[0]["request_id"] == "new"
