"""The filter tree against rows: every table, every operator, loose types, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from api_rig import Rig, open_rig
from heliproxy.api import database
from heliproxy.api.filters import OPERATORS, TABLES, condition, glob_of
from heliproxy.bodies import Body

ROWS: list[dict[str, Any]] = [
    {
        "id": "a",
        "created_at": "2026-09-01T10:00:00.000Z",
        "model": "gpt-4o",
        "request_model": "gpt-4o",
        "response_model": "gpt-4o-2024",
        "provider": "openai",
        "user_id": "alice@example.com",
        "status": 200,
        "latency_ms": 100.0,
        "ttft_ms": 10.0,
        "cost_usd": 0.01,
        "input_tokens": 100,
        "output_tokens": 10,
        "session_id": "s1",
        "session_name": "Chat",
        "session_path": "/a",
        "prompt_id": "p1",
        "cache": "HIT",
        "cache_reference_id": "ref",
        "response_id": "resp-a",
        "key_fingerprint": "abc123",
        "properties": {"environment": "prod", "tier": "gold"},
        "body": Body(
            b'{"q": "Where is Stra\xc3\x9fe 9?"}', b'{"a": "100% HERE"}', "application/json", "application/json"
        ),
    },
    {
        "id": "b",
        "created_at": "2026-09-02T10:00:00.000Z",
        "model": "claude-sonnet-4",
        "provider": "anthropic",
        "user_id": "bob",
        "status": 500,
        "latency_ms": 2000.0,
        "cost_usd": 0.5,
        "input_tokens": 1000,
        "cache_read_tokens": 400,
        "output_tokens": 100,
        "session_id": "s1",
        "session_name": "Chat",
        "properties": {"environment": "dev", "Helicone-Prompt-Input-City": "Rome"},
    },
    {"id": "c", "created_at": "2026-09-03T10:00:00.000Z", "model": "gpt_4%", "status": -4, "target_url": "http://x"},
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, prices: Any) -> Any:
    rig = open_rig(tmp_path_factory.mktemp("filters") / "home", prices)
    for row in ROWS:
        rig.add(**row)
    rig.post("/v1/request/a/score", {"scores": {"quality": 0.75, "ok": True}}, 201)
    rig.post("/v1/request/a/feedback", {"rating": True})
    rig.post("/v1/request/b/feedback", {"rating": False})
    rig.post("/v1/session/s1/tag", {"tag": "vip"})
    yield rig
    rig.client.close()
    rig.app.state.api.database.close()
    rig.recorder.close()


def rmt(column: str, operator: str, value: Any) -> dict[str, Any]:
    return {"request_response_rmt": {column: {operator: value}}}


CASES: list[tuple[Any, str]] = [
    # text
    (rmt("model", "equals", "gpt-4o"), "a"),
    (rmt("model", "not-equals", "gpt-4o"), "bc"),
    (rmt("model", "contains", "GPT"), "ac"),
    (rmt("model", "contains", "%"), "c"),
    (rmt("model", "not-contains", "gpt"), "b"),
    (rmt("model", "like", "gpt%"), "ac"),
    (rmt("model", "like", "GPT%"), ""),
    (rmt("model", "like", "gpt\\_4\\%"), "c"),
    (rmt("model", "like", "gpt_4_"), "ac"),
    (rmt("model", "ilike", "CLAUDE%"), "b"),
    (rmt("user_id", "equals", "null"), "c"),
    (rmt("user_id", "equals", None), "c"),
    (rmt("user_id", "not-equals", "null"), "ab"),
    (rmt("user_id", "not-equals", "bob"), "ac"),
    (rmt("user_id", "equals", ""), "c"),
    (rmt("provider", "equals", "OPENAI"), "ac"),
    (rmt("request_body", "contains", "stra\u00dfe"), "a"),
    (rmt("request_body", "ilike", "%STRA\u00dfE%"), "a"),
    (rmt("response_body", "contains", "100%"), "a"),
    (rmt("target_url", "contains", "api.openai.com"), "ab"),
    (rmt("organization_id", "equals", "local"), "abc"),
    (rmt("country_code", "equals", "US"), ""),
    (rmt("node_id", "equals", "null"), "abc"),
    (rmt("request_id", "equals", "b"), "b"),
    (rmt("prompt_id", "equals", "p1"), "a"),
    (rmt("cache_reference_id", "equals", "ref"), "a"),
    (rmt("property_key", "equals", "tier"), "a"),
    (rmt("scores_column", "equals", "quality"), "a"),
    # numbers, loosely typed
    (rmt("status", "equals", 200), "a"),
    (rmt("status", "equals", "200"), "a"),
    (rmt("status", "not-equals", "200"), "bc"),
    (rmt("status", "gte", "200"), "ab"),
    (rmt("status", "gt", 200), "b"),
    (rmt("status", "lte", 200), "ac"),
    (rmt("status", "lt", 200.0), "c"),
    (rmt("latency", "gte", 1000), "b"),
    (rmt("cost", "gt", "0.1"), "b"),
    (rmt("cost", "equals", "null"), "c"),
    (rmt("cost", "not-equals", None), "ab"),
    (rmt("prompt_tokens", "equals", 600), "b"),
    (rmt("completion_tokens", "lte", 10), "a"),
    (rmt("total_tokens", "gt", 0), "ab"),
    (rmt("prompt_cache_read_tokens", "gte", 1), "b"),
    (rmt("prompt_cache_write_tokens", "equals", "null"), "abc"),
    (rmt("time_to_first_token", "lt", 50), "a"),
    # times
    (rmt("request_created_at", "gte", "2026-09-02T10:00:00Z"), "bc"),
    (rmt("request_created_at", "gt", "2026-09-02T12:00:00+02:00"), "c"),
    (rmt("request_created_at", "lt", "2026-09-02"), "a"),
    (rmt("request_created_at", "lte", "2026-09-01 10:00:00"), "a"),
    (rmt("request_created_at", "equals", "2026-09-01T10:00:00.000Z"), "a"),
    (rmt("request_created_at", "gte", 1788343200), "bc"),
    (rmt("request_created_at", "gte", 1788343200000), "bc"),
    (rmt("response_created_at", "equals", "2026-09-02T10:00:02.000Z"), "b"),
    # flags
    (rmt("cached", "equals", True), "a"),
    (rmt("cached", "equals", "false"), "bc"),
    (rmt("cache_enabled", "equals", 1), "a"),
    (rmt("threat", "equals", True), "c"),
    (rmt("is_passthrough_billing", "equals", False), "abc"),
    (rmt("helicone-score-feedback", "equals", True), "a"),
    (rmt("helicone-score-feedback", "equals", False), "b"),
    # keyed
    (rmt("properties", "Environment", {"equals": "prod"}), "a"),
    (rmt("properties", "environment", {"not-equals": "prod"}), "bc"),
    (rmt("properties", "environment", {"contains": "D"}), "ab"),
    (rmt("properties", "environment", {"equals": "null"}), "c"),
    (rmt("search_properties", "tier", {"ilike": "GO%"}), "a"),
    (rmt("scores", "quality", {"gte": "0.7"}), "a"),
    (rmt("scores", "quality", {"equals": None}), "bc"),
    ({"properties": {"environment": {"equals": "dev"}}}, "b"),
    ({"values": {"city": {"equals": "Rome"}}}, "b"),
    ({"values": {"city": {"not-equals": "Rome"}}}, "ac"),
    ({"values": {"City": {"contains": "om"}}}, "b"),
    ({"values": {"city": {"equals": "null"}}}, "ac"),
    ({"values": {"environment": {"equals": "dev"}}}, ""),
    # other tables
    ({"request": {"user_id": {"equals": "bob"}}}, "b"),
    ({"request": {"prompt": {"contains": "where"}}}, "a"),
    ({"request": {"path": {"contains": "completions"}}}, "abc"),
    ({"request": {"auth_hash": {"equals": "abc123"}}}, "a"),
    ({"request": {"modelOverride": {"equals": "null"}}}, "abc"),
    ({"response": {"status": {"gte": 500}}}, "b"),
    ({"response": {"body_model": {"equals": "gpt-4o-2024"}}}, "a"),
    ({"response": {"body_tokens": {"gte": 1000}}}, "b"),
    ({"response": {"body_completion": {"contains": "here"}}}, "a"),
    ({"feedback": {"rating": {"equals": True}}}, "a"),
    ({"feedback": {"rating": {"equals": "false"}}}, "b"),
    ({"feedback": {"response_id": {"equals": "resp-a"}}}, "a"),
    ({"sessions_request_response_rmt": {"session_session_id": {"equals": "s1"}}}, "ab"),
    ({"sessions_request_response_rmt": {"session_session_name": {"contains": "CHAT"}}}, "ab"),
    ({"sessions_request_response_rmt": {"session_total_cost": {"gte": 0.5}}}, "ab"),
    ({"sessions_request_response_rmt": {"session_total_requests": {"gt": 2}}}, ""),
    ({"sessions_request_response_rmt": {"session_tag": {"equals": "vip"}}}, "ab"),
    ({"sessions_request_response_rmt": {"session_created_at": {"lt": "2026-09-02"}}}, "ab"),
    ({"users_view": {"user_user_id": {"equals": "bob"}}}, "b"),
    ({"users_view": {"user_total_requests": {"equals": 1}}}, "ab"),
    ({"users_view": {"user_cost": {"gt": 0.1}}}, "b"),
    # trees
    ("all", "abc"),
    ({}, "abc"),
    (None, "abc"),
    ({"left": rmt("model", "contains", "gpt"), "operator": "and", "right": rmt("status", "equals", 200)}, "a"),
    ({"left": rmt("model", "equals", "x"), "operator": "or", "right": rmt("status", "lt", 0)}, "c"),
    ({"left": "all", "operator": "and", "right": {}}, "abc"),
    ({"left": rmt("status", "gte", 0), "operator": "AND",
      "right": {"left": rmt("user_id", "equals", "bob"), "operator": "or", "right": rmt("model", "contains", "4o")}},
     "ab"),
    # more than Helicone reads: all of it holds
    ({"request_response_rmt": {"status": {"gte": 200, "lt": 500}, "model": {"contains": "gpt"}}}, "a"),
    ({"request": {"user_id": {"equals": "bob"}}, "response": {"status": {"equals": 500}}}, "b"),
]  # fmt: skip


@pytest.mark.parametrize(("tree", "expected"), CASES, ids=[str(i) for i in range(len(CASES))])
def test_filters_find_the_right_rows(rows: Rig, tree: Any, expected: str) -> None:
    assert "".join(rows.ids(tree)) == expected


@pytest.mark.parametrize("table", TABLES)
def test_every_column_takes_every_operator(rows: Rig, table: str) -> None:
    values = {"text": "x", "number": 1, "time": "2026-09-01T00:00:00Z", "flag": True}
    for name, column in TABLES[table].items():
        kind = column.kind.removeprefix("keyed ")
        for operator in OPERATORS[kind]:
            leaf: Any = {operator: values[kind]}
            if column.kind.startswith("keyed"):
                leaf = {"some key": leaf}
            rows.ids({table: {name: leaf}})


BAD: list[tuple[Any, str]] = [
    (5, 'filter should be "all", a branch or a leaf, not 5'),
    ("some", "filter should be"),
    ([], "filter should be"),
    ({"nope": {"a": {"equals": 1}}}, 'there is no table "nope"'),
    ({"request": {"nope": {"equals": 1}}}, 'there is no column "nope"'),
    ({"request": 5}, "filter.request should be an object that is not empty"),
    ({"request": {}}, "filter.request should be an object that is not empty"),
    ({"request": {"user_id": {}}}, "filter.request.user_id should be an object"),
    ({"request": {"user_id": "bob"}}, "filter.request.user_id should be an object"),
    ({"request": {"user_id": {"gte": 1}}}, '"gte" is no operator here'),
    ({"response": {"status": {"contains": "2"}}}, '"contains" is no operator here'),
    ({"response": {"status": {"equals": "ok"}}}, "filter.response.status.equals should be a number"),
    ({"response": {"status": {"equals": [200]}}}, "should be a number"),
    ({"response": {"status": {"gt": None}}}, 'only equals and not-equals take "null"'),
    ({"request": {"created_at": {"gte": "soon"}}}, "should be a time"),
    ({"request": {"user_id": {"equals": {}}}}, "should be text"),
    ({"request": {"user_id": {"equals": "x" * 10_001}}}, "longer than"),
    ({"request_response_rmt": {"request_body": {"like": "%" + "x" * 500}}}, "a pattern has at most 500 characters"),
    ({"properties": {"a": {"ilike": "%" + "x" * 500}}}, "a pattern has at most 500 characters"),
    (rmt("cached", "equals", "maybe"), "should be true or false"),
    ({"left": "all", "operator": "and"}, "is a branch without 'right'"),
    ({"left": "all", "right": "all"}, "is a branch without 'operator'"),
    ({"left": "all", "operator": "xor", "right": "all"}, 'filter.operator should be "and" or "or", not "xor"'),
    ({"left": "all", "operator": "and", "right": "all", "more": 1}, '"more" has no place'),
    ({"left": "all", "operator": "and", "right": {"left": 1, "operator": "or", "right": "all"}}, "filter.right.left"),
    (rmt("properties", "a", "b"), "filter.request_response_rmt.properties.a should be an object"),
]


@pytest.mark.parametrize(("tree", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_what_is_wrong_is_named(rows: Rig, tree: Any, message: str) -> None:
    assert message in rows.error("/v1/request/query", {"filter": tree})


def test_a_search_in_bodies_ends_in_time(rows: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "READ_SECONDS", -1.0)
    tree = {"request_response_rmt": {"request_body": {"contains": "x"}}}
    assert "took longer than" in rows.error("/v1/request/query", {"filter": tree})
    monkeypatch.undo()
    assert rows.ids(tree) == []


def chain(operator: str, length: int) -> Any:
    tree: Any = rmt("status", "gte", 0)
    for i in range(length):
        tree = {"left": tree, "operator": operator, "right": rmt("status", "lte", 1000 + i)}
    return tree


def test_long_chains_work_and_endless_ones_are_refused(rows: Rig) -> None:
    assert "".join(rows.ids(chain("and", 300))) == "ab"
    assert "more than 400 conditions" in rows.error("/v1/request/query", {"filter": chain("and", 450)})
    mixed: Any = "all"
    for i in range(60):
        mixed = {"left": mixed, "operator": ("and", "or")[i % 2], "right": rmt("status", "gte", 0)}
    assert "levels deep" in rows.error("/v1/request/query", {"filter": mixed})


@pytest.mark.parametrize(
    ("like", "glob"),
    [("a%", "a*"), ("a_b", "a?b"), ("a\\%b", "a%b"), ("[x]*", "[[]x][*]"), ("a\\", "a\\"), ("?", "[?]")],
)
def test_like_patterns_become_globs(like: str, glob: str) -> None:
    assert glob_of(like) == glob


def test_values_are_always_bound() -> None:
    found = condition({"request": {"user_id": {"equals": "'; DROP TABLE requests; --"}}})
    assert "DROP" not in found.sql
    assert found.values == ("'; DROP TABLE requests; --",)
