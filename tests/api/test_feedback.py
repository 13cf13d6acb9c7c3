"""Feedback, scores, properties."""

from __future__ import annotations

from typing import Any

import pytest

from api_rig import Rig, log_body
from heliproxy.ingest import log_exchange
from heliproxy.store import open_reader


def scores(rig: Rig, request_id: str = "r") -> Any:
    return rig.get(f"/v1/request/{request_id}")["scores"]


def test_a_rating_is_seen_by_the_next_read_and_null_clears_it(rig: Rig) -> None:
    rig.add("r")
    for rating in (True, False):
        assert rig.client.post("/v1/request/r/feedback", json={"rating": rating}).json() == {
            "data": None,
            "error": None,
        }
        assert rig.get("/v1/request/r")["feedback_rating"] is rating
        assert scores(rig) == {"helicone-score-feedback": float(rating)}
    rig.post("/v1/request/r/feedback", {"rating": None})
    assert rig.get("/v1/request/r")["feedback_rating"] is None
    assert scores(rig) is None


@pytest.mark.parametrize("body", [{}, {"rating": "yes"}, {"rating": 1}, {"rating": {}}])
def test_a_rating_is_a_boolean(rig: Rig, body: Any) -> None:
    assert rig.error("/v1/request/r/feedback", body) == "Invalid rating format. Expected a boolean."


def test_what_is_said_before_the_row_comes_stays(rig: Rig) -> None:
    answer = rig.client.post("/v1/request/late/feedback", json={"rating": True})
    assert answer.status_code == 200
    assert "no request with this id" in answer.headers["helicone-warning"]
    rig.client.post("/v1/request/late/score", json={"scores": {"q": 1}})
    rig.client.put("/v1/request/late/property", json={"key": "env", "value": "set"})
    rig.add("late", properties={"env": "sent", "app": "x"})
    found = rig.get("/v1/request/late")
    assert found["feedback_rating"] is True
    assert found["scores"] == {"helicone-score-feedback": 1.0, "q": 1.0}
    assert found["properties"] == {"env": "set", "app": "x"}


def test_a_call_that_is_still_running_can_be_rated_and_read(rig: Rig) -> None:
    exchange = log_exchange(log_body(), "openai", [("Helicone-User-Id", "u1"), ("Helicone-Property-Env", "dev")], 0.0)
    rig.addon.live["flow"] = exchange
    answer = rig.client.post(f"/v1/request/{exchange.id}/feedback", json={"rating": True})
    assert (answer.status_code, answer.headers.get("helicone-warning")) == (200, None)
    found = rig.get(f"/v1/request/{exchange.id}")
    assert (found["feedback_rating"], found["response_status"], found["total_tokens"]) == (True, 0, None)
    assert (found["request_user_id"], found["properties"]) == ("u1", {"env": "dev"})
    del rig.addon.live["flow"]
    rig.recorder.finish(exchange)
    found = rig.get(f"/v1/request/{exchange.id}")
    assert (found["feedback_rating"], found["response_status"], found["total_tokens"]) == (True, 200, 120)


def test_legacy_feedback(rig: Rig) -> None:
    rig.add("r")
    headers = {"Helicone-Auth": "Bearer sk-helicone-x", "host": "oai.hconeai.com"}
    for path in ("/v1/feedback", "/feedback"):
        body = {"helicone-id": "r", "rating": True}
        assert rig.client.post(path, json=body, headers=headers).status_code == 200
    assert rig.get("/v1/request/r")["feedback_rating"] is True
    assert rig.error("/v1/feedback", {"rating": True}, 422).startswith("'helicone-id' should be")


def test_named_feedback_keeps_its_type(rig: Rig) -> None:
    rig.add("r")
    named = {"helicone-id": "r", "name": "stars", "value": 4, "data-type": "numerical"}
    rig.post("/v1/feedback", named)
    wrong = rig.error("/v1/feedback", {**named, "value": "four", "data-type": "string"}, 409)
    assert wrong == "Data type does not match the existing feedback metric."
    assert "should be numerical" in rig.error("/v1/feedback", {**named, "value": "four"})
    assert "data-type" in rig.error("/v1/feedback", {**named, "data-type": "colour"})
    conn = open_reader(rig.home / "heliproxy.db")
    assert conn.execute("SELECT name, value, type FROM feedback").fetchall() == [("stars", "4", "number")]
    conn.close()


def test_scores_of_all_kinds(rig: Rig) -> None:
    rig.add("r")
    answer = rig.client.post("/v1/request/r/score", json={"scores": {"i": 3, "f": 0.25, "b": True, "n": -1}})
    assert (answer.status_code, answer.json()) == (201, {"data": None, "error": None})
    assert scores(rig) == {"i": 3.0, "f": 0.25, "b": 1.0, "n": -1.0}
    rig.post("/v1/evals/r", {"name": "f", "score": 0.5}, 201)
    assert scores(rig)["f"] == 0.5
    assert rig.get("/v1/evals/scores") == ["b", "f", "i", "n"]


@pytest.mark.parametrize(
    "value", ["1", None, [], {}, 10**400], ids=["text", "null", "list", "object", "beyond any float"]
)
def test_other_scores_are_refused_by_name(rig: Rig, value: Any) -> None:
    assert "score 'q' should be a number" in rig.error("/v1/request/r/score", {"scores": {"q": value}})


def test_a_property_is_one_whatever_its_case(rig: Rig) -> None:
    rig.add("r", properties={"environment": "dev"})
    put = rig.client.put
    assert put("/v1/request/r/property", json={"key": "Environment", "value": "prod"}).json() == {
        "data": None,
        "error": None,
    }
    assert rig.get("/v1/request/r")["properties"] == {"Environment": "prod"}
    worker = put("/v1/request/r/property", json={"key": "a", "value": "b"}, headers={"host": "api.worker.helicone.ai"})
    assert worker.json() == {"ok": "true"}
    missing = put("/v1/request/r/property", json={"value": "b"})
    assert (missing.status_code, missing.json()["error"]) == (400, "Invalid request body. 'key' is required.")
    missing = put("/v1/request/r/property", json={"key": "b"})
    assert missing.json()["error"] == "Invalid request body. 'value' is required."
