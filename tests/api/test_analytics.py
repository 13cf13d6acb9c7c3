"""Sessions, users, properties, metrics, scores: sums and series over known rows."""

from __future__ import annotations

from typing import Any

import pytest

from api_rig import Rig

FRAME = {"start": "2026-09-01T00:00:00Z", "end": "2026-09-03T23:59:59Z"}
SESSION_FRAME = {"startTimeUnixMs": 1788220800000, "endTimeUnixMs": 1788480000000}


@pytest.fixture
def logged(rig: Rig) -> Rig:
    for i in range(6):
        rig.add(
            f"r{i}",
            created_at=f"2026-09-0{1 + i // 2}T{10 + i}:00:00.000Z",
            model=("gpt-4o", "claude")[i % 2],
            provider=("openai", "anthropic")[i % 2],
            user_id=("alice", "bob", "alice")[i % 3],
            session_id="s1" if i < 4 else None,
            session_name="Chat" if i < 4 else None,
            input_tokens=100,
            output_tokens=10,
            cost_usd=0.5,
            latency_ms=100.0 * (i + 1),
            ttft_ms=10.0 if i == 0 else None,
            status=500 if i == 5 else 200,
            properties={"env": ("dev", "prod")[i % 2]},
        )
    rig.post("/v1/request/r0/score", {"scores": {"q": 0.2}}, 201)
    rig.post("/v1/request/r1/score", {"scores": {"q": 0.8}}, 201)
    return rig


def test_sessions(logged: Rig) -> None:
    body = {"search": "CH", "timeFilter": SESSION_FRAME, "timezoneDifference": 0, "filter": "all"}
    assert logged.post("/v1/session/query", body) == [
        {
            "created_at": "2026-09-01T10:00:00.000Z",
            "latest_request_created_at": "2026-09-02T13:00:00.000Z",
            "session_id": "s1",
            "session_name": "Chat",
            "total_cost": 2.0,
            "total_requests": 4,
            "prompt_tokens": 400,
            "completion_tokens": 40,
            "total_tokens": 440,
            "avg_latency": 250.0,
            "user_ids": ["alice", "bob"],
        }
    ]
    assert logged.post("/v1/session/query", {**body, "search": "nope"}) == []
    assert logged.post("/v1/session/query", {**body, "nameEquals": "chat"}) == []
    count = logged.post("/v1/session/count", body)
    assert count == {"count": 1, "total_cost": 2.0, "avg_cost": 2.0, "avg_latency": 250.0, "avg_requests": 4.0}
    assert logged.get("/v1/session/has-session") is True


def test_session_names_and_distributions(logged: Rig) -> None:
    (name,) = logged.post("/v1/session/name/query", {"nameContains": "cha", "timezoneDifference": 0})
    assert (name["name"], name["session_count"], name["last_used"]) == ("Chat", 1, "2026-09-02T13:00:00.000Z")
    found = logged.post("/v1/session/metrics/query", {"nameContains": "", "pSize": "p95", "useInterquartile": False})
    assert found["session_count"] == [{"range_start": "4", "range_end": "4", "value": 1}]
    assert found["average"]["session_cost"] == [{"average": 2.0}]
    assert found["average"]["session_duration"][0]["average"] == pytest.approx(27 * 3600)
    assert "pSize" in logged.error("/v1/session/metrics/query", {"pSize": "p12"}, 422)


def test_session_feedback_and_tag(logged: Rig) -> None:
    logged.post("/v1/session/s1/feedback", {"rating": True})
    assert logged.get("/v1/request/r0")["properties"]["Helicone-Session-Feedback"] == "1"
    assert logged.error("/v1/session/nope/feedback", {"rating": True}, 404) == "Session not found"
    assert logged.get("/v1/session/s1/tag") is None
    logged.post("/v1/session/s1/tag", {"tag": "one"})
    logged.post("/v1/session/s1/tag", {"tag": "two"})
    assert logged.get("/v1/session/s1/tag") == "two"


def test_users(logged: Rig) -> None:
    found = logged.post("/v1/user/metrics/query", {"filter": "all", "offset": 0, "limit": 10, "sort": {"cost": "asc"}})
    assert (found["count"], found["hasUsers"]) == (2, True)
    bob, alice = found["users"]
    assert (bob["user_id"], bob["total_requests"], bob["cost"]) == ("bob", 2, 1.0)
    assert (alice["active_for"], alice["average_requests_per_day_active"]) == (3, pytest.approx(4 / 3))
    assert alice["average_tokens_per_request"] == 110.0
    too_many = logged.error("/v1/user/metrics/query", {"limit": 1001})
    assert too_many == "Limit cannot be greater than 1000"
    seconds = {"startTimeUnixSeconds": 1788220800, "endTimeUnixSeconds": 1788307199}
    milliseconds = {name: value * 1000 for name, value in seconds.items()}
    for frame in (seconds, milliseconds):
        (line,) = logged.post("/v1/user/query", {"userIds": ["bob"], "timeFilter": frame})
        assert line == {"user_id": "bob", "count": 1, "prompt_tokens": 100, "completion_tokens": 10, "cost": 0.5}
    overview = logged.post("/v1/user/metrics-overview/query", {"filter": "all", "pSize": "p99.9"})
    assert sum(bar["value"] for bar in overview["request_count"]) == 2


def test_properties(logged: Rig) -> None:
    assert logged.post("/v1/property/query") == [{"property": "env"}]
    assert logged.post("/v1/property/env/search", {"searchTerm": "PRO"}) == ["prod"]
    top = logged.post("/v1/property/env/top-costs/query", {"timeFilter": FRAME})
    assert top == [{"value": "dev", "cost": 1.5}, {"value": "prod", "cost": 1.5}]
    top = logged.post("/v1/property/ENV/top-requests/query", {"timeFilter": {**FRAME, "end": "2026-09-01T23:00:00Z"}})
    assert top == [{"value": "dev", "count": 1}, {"value": "prod", "count": 1}]
    body = {
        "propertyKey": "env",
        "timeFilter": FRAME,
        "userFilter": "all",
        "dbIncrement": "day",
        "timeZoneDifference": 0,
    }
    lines = logged.post("/v1/property/properties/over-time", body)
    assert len(lines) == 6
    assert lines[0] == {
        "property": "dev",
        "total_cost": 0.5,
        "request_count": 1,
        "created_at_trunc": "2026-09-01T00:00:00.000Z",
    }
    assert logged.post("/v1/property/hide", {"key": "env"}) == {"ok": True}
    assert logged.post("/v1/property/query") == []
    assert logged.post("/v1/property/hidden/query") == [{"property": "env"}]
    logged.post("/v1/property/restore", {"key": "env"})
    assert logged.post("/v1/property/query") == [{"property": "env"}]


def test_values_beyond_the_top_ten_are_added_up(rig: Rig) -> None:
    for i in range(13):
        rig.add(f"x{i}", cost_usd=1.0 + i, properties={"v": f"{i:02}"})
    top = rig.post("/v1/property/v/top-costs/query", {"timeFilter": FRAME})
    assert len(top) == 11
    assert (top[0], top[-1]) == ({"value": "12", "cost": 13.0}, {"value": "Other", "cost": 6.0})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("totalRequests", 6),
        ("totalCost", 3.0),
        ("averageLatency", 350.0),
        ("averageTimeToFirstToken", 10.0),
        ("totalThreats", 0),
        ("activeUsers", 2),
        (
            "averageTokensPerRequest",
            {
                "average_prompt_tokens_per_response": 100.0,
                "average_completion_tokens_per_response": 10.0,
                "average_total_tokens_per_response": 110.0,
            },
        ),
    ],
)
def test_totals(logged: Rig, name: str, expected: Any) -> None:
    assert logged.post(f"/v1/metrics/{name}", {"filter": "all", "timeFilter": FRAME}) == expected


DAYS = [f"2026-09-0{day}T00:00:00.000Z" for day in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("requestOverTime", [{"count": 2}, {"count": 2}, {"count": 2}, {"count": 0}]),
        ("costOverTime", [{"cost": 1.0}, {"cost": 1.0}, {"cost": 1.0}, {"cost": 0}]),
        ("latencyOverTime", [{"duration": 150.0}, {"duration": 350.0}, {"duration": 550.0}, {"duration": 0}]),
        ("errorOverTime", [{"count": 0}, {"count": 0}, {"count": 1}, {"count": 0}]),
        ("usersOverTime", [{"count": 2}, {"count": 1}, {"count": 2}, {"count": 0}]),
    ],
)
def test_series_have_every_period(logged: Rig, name: str, values: list[Any]) -> None:
    frame = {**FRAME, "end": "2026-09-04T12:00:00Z"}
    body = {"filter": "all", "timeFilter": frame, "dbIncrement": "day", "timeZoneDifference": 0}
    lines = logged.post(f"/v1/metrics/{name}", body)
    assert lines == [{"time": day, **value} for day, value in zip(DAYS, values, strict=True)]


def test_periods_follow_the_callers_zone(logged: Rig) -> None:
    # UTC+12: JavaScript says -720. What was 12:00 UTC is the next day there.
    body = {"filter": "all", "timeFilter": FRAME, "dbIncrement": "day", "timeZoneDifference": -720}
    lines = [line for line in logged.post("/v1/metrics/requestOverTime", body) if line["count"]]
    assert lines == [
        {"time": "2026-08-31T12:00:00.000Z", "count": 2},
        {"time": "2026-09-02T12:00:00.000Z", "count": 2},
        {"time": "2026-09-03T12:00:00.000Z", "count": 2},
    ]


@pytest.mark.parametrize(
    ("unit", "times"),
    [("week", ["2026-08-31"]), ("month", ["2026-09-01"]), ("year", ["2026-01-01"])],
)
def test_longer_periods(logged: Rig, unit: str, times: list[str]) -> None:
    body = {"filter": "all", "timeFilter": FRAME, "dbIncrement": unit, "timeZoneDifference": 0}
    lines = logged.post("/v1/metrics/requestOverTime", body)
    assert [line["time"][:10] for line in lines] == times
    assert lines[0]["count"] == 6


def test_too_many_periods_are_refused(logged: Rig) -> None:
    body = {"timeFilter": {"start": "2000-01-01", "end": "2026-01-01"}, "dbIncrement": "min"}
    assert "more than 20000 periods" in logged.error("/v1/metrics/requestOverTime", body)


def test_other_metrics(logged: Rig) -> None:
    base = {"filter": "all", "timeFilter": FRAME, "offset": 0, "limit": 10}
    models = logged.post("/v1/metrics/models", base)
    assert models[0] == {
        "model": "claude",
        "total_requests": 3,
        "total_completion_tokens": 30,
        "total_prompt_token": 300,
        "total_tokens": 330,
        "cost": 1.5,
    }
    assert logged.post("/v1/providers", base) == [
        {"provider": "ANTHROPIC", "total_requests": 3},
        {"provider": "OPENAI", "total_requests": 3},
    ]
    day = {"filter": "all", "timeFilter": FRAME, "dbIncrement": "day"}
    status = logged.post("/v1/metrics/requestStatusOverTime", day)
    assert {"time": DAYS[2], "status": 500, "count": 1} in status
    quantiles = logged.post("/v1/metrics/quantiles", {**day, "metric": "latency"})
    assert quantiles[0]["p75"] == pytest.approx(175.0)
    assert logged.post("/v1/metrics/requestCount", {"filter": "all", "isCached": False}) == 6
    assert logged.post("/v1/metrics/country", base) == []
    usage = logged.post("/v1/customer/bob/usage/query", {})
    assert usage == {"id": "bob", "name": "bob", "cost": 1.0, "count": 2, "prompt_tokens": 200, "completion_tokens": 20}
    assert logged.post("/v1/customer/query", {}) == [{"id": "alice", "name": "alice"}, {"id": "bob", "name": "bob"}]


def test_scores_over_time(logged: Rig) -> None:
    (line,) = logged.post("/v1/evals/query", {"filter": "all", "timeFilter": FRAME})
    assert (line["name"], line["averageScore"], line["minScore"], line["count"]) == ("q", 0.5, 0.2, 2)
    assert line["overTime"] == [{"date": "2026-09-01", "count": 2}]
    (bars,) = logged.post("/v1/evals/score-distributions/query", {"filter": "all", "timeFilter": FRAME})
    assert sum(bar["value"] for bar in bars["distribution"]) == 2
    body = {"userFilter": "all", "timeFilter": FRAME, "dbIncrement": "day", "timeZoneDifference": 0}
    assert logged.post("/v1/dashboard/scores/query", body) == [
        {"created_at_trunc": DAYS[0], "score_key": "q", "score_sum": 0.5}
    ]


def test_sums_have_no_noise(rig: Rig) -> None:
    for i, cost in enumerate((0.1, 0.2)):
        rig.add(
            f"n{i}", created_at=f"2026-09-01T10:00:0{i}.000Z", user_id="u", session_id="s", cost_usd=cost, status=200
        )
    frame = {"start": "2026-09-01T00:00:00Z", "end": "2026-09-02T00:00:00Z"}
    assert rig.post("/v1/metrics/totalCost", {"filter": "all", "timeFilter": frame}) == 0.3
    assert rig.post("/v1/user/query", {"filter": "all"})[0]["cost"] == 0.3
    body = {"search": "", "timeFilter": SESSION_FRAME, "timezoneDifference": 0, "filter": "all"}
    assert rig.post("/v1/session/query", body)[0]["total_cost"] == 0.3
    sql = {"sql": "SELECT 0.1 + 0.2 AS usd FROM requests LIMIT 1"}
    assert rig.post("/v1/helicone-sql/execute", sql)["rows"] == [{"usd": 0.3}]
