"""The doors of logs: answers, refusals, OTLP in both encodings, and what Helicone's clients were seen to send."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from api_rig import Rig, log_body


@pytest.mark.parametrize("name", ["oai", "anthropic", "googleapis", "custom"])
def test_every_log_path_says_ok(rig: Rig, name: str) -> None:
    answer = rig.client.post(f"/{name}/v1/log", json=log_body(), headers={"Helicone-User-Id": "u1"})
    assert (answer.status_code, answer.text) == (200, "ok")
    found = rig.get(f"/v1/request/{answer.headers['helicone-id']}")
    provider = {"oai": "OPENAI", "anthropic": "ANTHROPIC", "googleapis": "GOOGLE", "custom": "OPENAI"}[name]
    assert (found["provider"], found["request_user_id"], found["total_tokens"]) == (provider, "u1", 120)


@pytest.mark.parametrize("path", ["/v1/trace/custom/log", "/v1/trace/custom/v1/log", "/v1/trace/custom/log/typed"])
def test_trace_logs_need_no_times(rig: Rig, path: str) -> None:
    body = log_body()
    del body["timing"]
    answer = rig.client.post(path, json=body)
    assert answer.status_code == 200
    assert rig.get(f"/v1/request/{answer.headers['helicone-id']}")["total_tokens"] == 120


def test_refusals_are_in_helicones_words(rig: Rig) -> None:
    answer = rig.client.post("/oai/v1/log", json={"providerRequest": {"url": "x"}})
    expected = "One of the required fields is missing, providerRequest, providerResponse, or timing"
    assert (answer.status_code, answer.json()) == (400, {"error": expected})
    body = log_body(providerResponse={"json": {}})
    typed = rig.client.post("/v1/trace/custom/log/typed", json=body)
    message = "Invalid providerResponse: 'status' should be a number"
    assert typed.status_code == 400
    assert typed.json() == {"isValid": False, "errors": [{"field": "providerResponse.status", "message": message}]}
    assert rig.post("/v1/request/count/query") == 0


SPAN = {
    "traceId": "aa" * 16,
    "spanId": "bb" * 8,
    "name": "openai.chat",
    "startTimeUnixNano": "1780000000000000000",
    "endTimeUnixNano": "1780000000500000000",
    "attributes": [
        {"key": "gen_ai.system", "value": {"stringValue": "OpenAI"}},
        {"key": "gen_ai.request.model", "value": {"stringValue": "gpt-4o-mini"}},
        {"key": "gen_ai.usage.prompt_tokens", "value": {"intValue": "9"}},
        {"key": "gen_ai.usage.completion_tokens", "value": {"intValue": 2}},
    ],
}
EXPORT = {"resourceSpans": [{"scopeSpans": [{"spans": [SPAN]}]}]}


def protobuf() -> bytes:
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add(
        trace_id=b"\xaa" * 16, span_id=b"\xbb" * 8, name="openai.chat",
        start_time_unix_nano=1780000000000000000, end_time_unix_nano=1780000000500000000,
    )  # fmt: skip
    span.attributes.add(key="gen_ai.request.model").value.string_value = "gpt-4o-mini"
    span.attributes.add(key="gen_ai.usage.input_tokens").value.int_value = 9
    span.attributes.add(key="gen_ai.usage.output_tokens").value.int_value = 2
    data: bytes = request.SerializeToString()
    return data


@pytest.mark.parametrize("path", ["/v1/traces", "/v1/trace/log", "/v1/trace/log-python"])
def test_both_encodings_on_every_trace_path(rig: Rig, path: str) -> None:
    answer = rig.client.post(path, json=EXPORT)
    assert (answer.status_code, answer.json()) == (200, {})
    assert rig.post("/v1/request/count/query") == 1
    answer = rig.client.post(path, content=protobuf(), headers={"content-type": "application/x-protobuf"})
    assert (answer.status_code, answer.content) == (200, b"")
    packed = {"content-type": "application/json", "content-encoding": "gzip"}
    assert rig.client.post(path, content=gzip.compress(json.dumps(EXPORT).encode()), headers=packed).status_code == 200
    assert rig.post("/v1/request/count/query") == 1  # it is the same span each time
    (row,) = rig.post("/v1/request/query", {"filter": "all"})
    assert (row["total_tokens"], row["properties"]["otel-span-id"]) == (11, "bb" * 8)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (protobuf()[:-3], "application/x-protobuf"),
        (json.dumps(EXPORT).encode(), "application/x-protobuf"),
        (protobuf(), "application/json"),
        (json.dumps(EXPORT).encode()[:-5], "application/json"),
        (b'{"resourceSpans": {}}', "application/json"),
        (
            json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [SPAN, {"name": 5}]}]}]}).encode(),
            "application/json",
        ),
    ],
    ids=["cut", "JSON as protobuf", "protobuf as JSON", "cut JSON", "wrong type", "second span wrong"],
)
def test_nothing_is_stored_of_a_broken_export(rig: Rig, body: bytes, kind: str) -> None:
    answer = rig.client.post("/v1/traces", content=body, headers={"content-type": kind})
    assert answer.status_code == 400
    assert answer.json()["error"]
    assert rig.post("/v1/request/count/query") == 0


def test_legacy_runs(rig: Rig) -> None:
    job = {"id": "j1", "name": "job", "customProperties": {"a": "b"}, "timeoutSeconds": 60, "status": "PENDING"}
    assert rig.post("/job", job)["id"] == "j1"
    assert rig.post("/node", {"job": "j1", "name": "step"})["status"] == "PENDING"
    answer = rig.client.patch("/job/j1/status", json={"status": "SUCCESS"})
    assert (answer.status_code, answer.json()["data"]["name"]) == (200, "job")
    assert rig.client.patch("/v1/job/j1/status", json={"status": "DONE"}).status_code == 422


def replayed(rig: Rig, capture: dict[str, Any]) -> Any:
    """Send one captured request, its host included."""
    if "body_base64" in capture:
        body = base64.b64decode(capture["body_base64"])
    else:
        body = b"" if capture.get("body_json") is None else json.dumps(capture["body_json"]).encode()
    left_out = ("content-length", "connection", "accept-encoding", "transfer-encoding")
    headers = [(name, value) for name, value in capture["headers"] if name.lower() not in left_out]
    return rig.client.request(capture["method"], capture["path"], content=body, headers=headers)


def test_every_captured_call_of_helicones_clients_is_answered(rig: Rig, shared: Path) -> None:
    folder = shared / "sdk-captures"
    index = json.loads((folder / "INDEX.json").read_text())["captures"]
    ours = [one for one in index if not one["role"].startswith("provider call")]
    assert len(ours) > 40
    counts = {200: 0, 201: 0, 501: 0}
    rig.add("11111111-2222-4333-8444-555555555555")
    for entry in ours:
        answer = replayed(rig, json.loads((folder / entry["file"]).read_text()))
        if entry["path"].startswith(("/signed", "/s3/", "/prompt-body")):
            continue  # links that the stub had made up
        expected = 501 if "/prompt-2025/" in entry["path"] else 201 if entry["path"].endswith("/score") else 200
        assert answer.status_code == expected, (entry["file"], answer.text)
        counts[expected] += 1
    assert counts[501] >= 5
    sent = sum(1 for one in ours if one["path"].endswith("/log") or "/trace/" in one["path"])
    assert rig.post("/v1/request/count/query") == sent + 1
    found = rig.get("/v1/request/11111111-2222-4333-8444-555555555555")
    assert found["feedback_rating"] is not None
    assert found["scores"]
    assert found["properties"]
