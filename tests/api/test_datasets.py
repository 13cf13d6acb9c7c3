"""Datasets, models, webhooks."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from api_rig import Receiver, Rig, log_body
from heliproxy.bodies import Body
from heliproxy.serve import ProxyThread
from heliproxy.settings import Settings
from heliproxy.webhooks import Hook, Webhooks, check_destination, hook_of, post


def test_datasets_from_beginning_to_end(rig: Rig) -> None:
    for i in range(3):
        rig.add(f"r{i}", body=Body(b'{"n": %d}' % i, b'{"ok": true}', "application/json", "application/json"))
    base = "/v1/helicone-dataset"
    dataset = rig.post(base, {"datasetName": "mine", "requestIds": ["r0", "r1"]})["datasetId"]
    assert "no request 'nope'" in rig.error(base, {"datasetName": "x", "requestIds": ["nope"]})
    rig.post(f"{base}/{dataset}/mutate", {"addRequests": ["r2", "r0"], "removeRequests": ["r1"]})
    assert rig.post(f"{base}/{dataset}/count") == 2
    rows = rig.post(f"{base}/{dataset}/query", {"limit": 10, "offset": 0})
    assert [row["origin_request_id"] for row in rows] == ["r0", "r2"]
    assert rig.client.get(rows[0]["signed_url"]["data"]).json() == {"request": {"n": 0}, "response": {"ok": True}}
    rig.post(f"{base}/{dataset}/request/{rows[0]['id']}", {"requestBody": {"n": 9}, "responseBody": {"ok": False}})
    assert rig.client.get(rows[0]["signed_url"]["data"]).json() == {"request": {"n": 9}, "response": {"ok": False}}
    assert rig.get("/v1/request/r0?includeBody=true")["request_body"] == {"n": 0}
    (listed,) = rig.post(f"{base}/query", {})
    assert (listed["name"], listed["requests_count"], listed["id"]) == ("mine", 2, dataset)
    rig.post(f"{base}/{dataset}/delete")
    assert rig.post(f"{base}/query", {"datasetIds": [dataset]}) == []
    assert rig.error(f"{base}/{dataset}/count", {}, 404) == "Dataset not found"


def test_models_come_from_our_price_data(rig: Rig) -> None:
    found = rig.get("/v1/public/model-registry/models")
    assert found["total"] == len(found["models"]) > 300
    model = next(one for one in found["models"] if one["id"] == "gpt-4o-mini")
    endpoint = next(one for one in model["endpoints"] if one["providerSlug"] == "openai")
    assert endpoint["pricing"]["prompt"] == 0.15
    assert endpoint["pricing"]["completion"] == 0.6
    assert endpoint["pricing"]["cacheRead"] == 0.075
    listed = rig.client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert "gpt-4o-mini" in [one["id"] for one in listed["data"]]
    costs = rig.client.get("/api/llm-costs?provider=openai&model=gpt-4o-mini&operator=equals").json()["data"]
    assert (costs[0]["input_cost_per_1m"], costs[0]["output_cost_per_1m"]) == (0.15, 0.6)


def test_webhooks_are_signed_and_delivered_after_the_row(rig: Rig) -> None:
    receiver = Receiver([])
    allowed = (f"127.0.0.1:{urlsplit(receiver.url).port}",)
    rig.addon.settings = dataclasses.replace(rig.addon.settings, allowed_targets=allowed)
    url_for = "http://127.0.0.1:8585/x/{}".format
    hooks = Webhooks(rig.home / "heliproxy.db", url_for, send=partial(post, allowed=allowed))
    try:
        config = {"sampleRate": 100, "propertyFilters": [{"key": "Env", "value": "prod"}]}
        hook_id = rig.post("/v1/webhooks", {"destination": receiver.url, "config": config})["id"]
        (listed,) = rig.get("/v1/webhooks")
        assert (listed["id"], json.loads(listed["config"])) == (hook_id, config)
        hooks.attach(rig.recorder)
        rig.client.post("/oai/v1/log", json=log_body(), headers={"Helicone-Property-Env": "dev"})
        answer = rig.client.post("/oai/v1/log", json=log_body(), headers={"Helicone-Property-Env": "prod"})
        assert receiver.arrived.wait(10)
        ((headers, body),) = receiver.got
        expected = hmac.new(listed["hmac_key"].encode(), body, hashlib.sha256).hexdigest()
        assert headers["helicone-signature"] == expected
        note = json.loads(body)
        assert note["request_id"] == answer.headers["helicone-id"]
        assert json.loads(note["request_body"])["model"] == "gpt-4o-mini"
        assert note["properties"] == {"env": "prod"}
        assert (note["metadata"]["promptTokens"], note["metadata"]["totalTokens"]) == (100, 120)
        assert note["request_response_url"].endswith(note["request_id"])
        assert rig.post(f"/v1/webhooks/{hook_id}/test") == {"success": True, "message": "the destination answered 200"}
        assert rig.client.delete(f"/v1/webhooks/{hook_id}").status_code == 200
        assert rig.get("/v1/webhooks") == []
    finally:
        hooks.close()
        receiver.close()


@pytest.mark.parametrize(
    ("answers", "attempts", "delivered"),
    [
        ([200], 1, 1),
        ([503, 200], 2, 1),
        ([429, OSError("refused"), 204], 3, 1),
        ([404], 1, 0),
        ([500, 500, 500, 500], 4, 0),
    ],
)
def test_deliveries_are_retried_while_that_may_help(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, answers: list[Any], attempts: int, delivered: int
) -> None:
    monkeypatch.setattr("heliproxy.webhooks.RETRY_DELAYS", (0.001, 0.001, 0.001))
    rig.post("/v1/webhooks", {"destination": "https://hooks.example.com/", "config": {}})
    rig.add("r")
    rig.recorder.flush()
    sent: list[bytes] = []

    def send(hook: Hook, body: bytes, request_id: str) -> int:
        sent.append(body)
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return int(answer)

    hooks = Webhooks(rig.home / "heliproxy.db", send=send)
    hooks.deliver(["r"])
    hooks.close()
    assert (len(sent), hooks.counters.delivered) == (attempts, delivered)


def test_sampling_and_filters() -> None:
    hook = hook_of({"config": {"sampleRate": 25, "propertyFilters": [{"key": "A", "value": "1"}]}})
    assert hook.wants({"a": "1"}, 0.2)
    assert not hook.wants({"a": "1"}, 0.3)
    assert not hook.wants({"a": "2"}, 0.2)
    assert hook_of({"config": "odd"}).sample == 1.0


@pytest.mark.parametrize("url", ["ftp://x", "nope", "http://", "file:///etc/passwd", "http://a:b:c/"])
def test_destinations_are_http(rig: Rig, url: str) -> None:
    with pytest.raises(ValueError):
        check_destination(url)
    assert "'destination'" in rig.error("/v1/webhooks", {"destination": url, "config": {}})


def test_a_running_proxy_tells_its_webhooks(tmp_path: Path) -> None:
    receiver = Receiver([])
    try:
        with (
            ProxyThread(Settings(home=tmp_path / "home", port=0, api_port=0, allowed_targets=("127.0.0.1",))) as proxy,
            httpx.Client(base_url=f"http://127.0.0.1:{proxy.api_port}", trust_env=False, timeout=20) as client,
        ):
            client.post("/v1/webhooks", json={"destination": receiver.url, "config": {}}).raise_for_status()
            answer = client.post("/oai/v1/log", json=log_body())
            assert receiver.arrived.wait(10)
            note = json.loads(receiver.got[0][1])
            assert note["request_id"] == answer.headers["helicone-id"]
            assert client.get(note["request_response_url"]).json()["request"]["model"] == "gpt-4o-mini"
    finally:
        receiver.close()
