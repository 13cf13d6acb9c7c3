"""Who is let in: hosts, origins, content types, tokens, sizes."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import pytest

from api_rig import Rig, log_body
from heliproxy.api.door import respond
from heliproxy.api.fields import MAX_BODY
from heliproxy.api.guard import is_our_host, same_origin

QUERY = "/v1/request/query"


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("127.0.0.1:8585", True),
        ("localhost", True),
        ("LOCALHOST:1", True),
        ("[::1]:8585", True),
        ("api.helicone.ai", True),
        ("eu.api.helicone.ai", True),
        ("api.worker.helicone.ai", True),
        ("api.hconeai.com", True),
        ("evil.com", False),
        ("127.0.0.1.evil.com", False),
        ("localhost.evil.com:8585", False),
        ("helicone.ai.evil.com", False),
        ("", False),
    ],
)
def test_hosts(rig: Rig, host: str, ours: bool) -> None:
    assert is_our_host(host) is ours
    assert (rig.client.get("/v1/evals/scores", headers={"host": host}).status_code == 200) is ours


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://127.0.0.1:8585"}, 200),
        ({"origin": "http://127.0.0.1:3000"}, 403),
        ({"origin": "http://localhost:8585"}, 403),
        ({"origin": "https://evil.com"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "none"}, 403),
        ({"sec-fetch-mode": "cors"}, 200),  # Node's fetch sends this alone
    ],
)
def test_changes_and_reads_from_other_pages_are_refused(rig: Rig, headers: dict[str, str], status: int) -> None:
    assert rig.client.post(QUERY, json={}, headers=headers).status_code == status
    read = rig.client.get("/v1/evals/scores", headers=headers).status_code
    assert read == (200 if headers.get("sec-fetch-site") == "none" else status)


def test_following_a_link_to_a_page_is_no_attack(rig: Rig) -> None:
    navigation = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert rig.client.get("/health", headers=navigation).status_code == 200
    framed = {**navigation, "sec-fetch-dest": "iframe"}
    assert rig.client.get("/health", headers=framed).status_code == 403
    assert rig.client.post(QUERY, json={}, headers=navigation).status_code == 403


@pytest.mark.parametrize(
    ("kind", "path", "status"),
    [
        ("application/json", QUERY, 200),
        ("application/json; charset=utf-8", QUERY, 200),
        ("text/plain", QUERY, 415),
        ("application/x-www-form-urlencoded", QUERY, 415),
        ("multipart/form-data; boundary=x", QUERY, 415),
        ("application/x-protobuf", QUERY, 415),
        ("application/x-protobuf", "/v1/traces", 400),
        ("text/plain", "/v1/traces", 415),
        ("text/plain", "/oai/v1/log", 415),
    ],
)
def test_bodies_must_be_json(rig: Rig, kind: str, path: str, status: int) -> None:
    answer = rig.client.post(path, content=b'{"filter": "all"}', headers={"content-type": kind})
    assert answer.status_code == status, answer.text


def test_no_answer_lets_other_origins_read(rig: Rig) -> None:
    for answer in (
        rig.client.get("/health"),
        rig.client.post(QUERY, json={}, headers={"origin": "http://127.0.0.1:8585"}),
        rig.client.options(QUERY, headers={"origin": "https://evil.com", "access-control-request-method": "POST"}),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_token_is_asked_for_everywhere(rig: Rig) -> None:
    rig.addon.settings = dataclasses.replace(rig.addon.settings, token="s3cret")
    get = rig.client.get
    assert get("/v1/evals/scores").status_code == 401
    assert get("/v1/evals/scores", headers={"authorization": "Bearer wrong"}).status_code == 401
    assert get("/v1/evals/scores", headers={"authorization": "Bearer s3cret"}).status_code == 200
    assert get("/v1/evals/scores", headers={"helicone-auth": "Bearer s3cret"}).status_code == 200
    assert get("/v1/evals/scores", headers={"cookie": "heliproxy_token=s3cret"}).status_code == 200
    assert rig.client.post("/oai/v1/log", json=log_body()).status_code == 401
    sql = {"sql": "select 1"}
    assert rig.client.post("/v1/helicone-sql/download", json=sql).status_code == 401
    assert get("/openapi.json").status_code == 401
    assert get("/health").status_code == 200
    page = get("/requests", headers={"accept": "text/html"}, follow_redirects=False)
    assert (page.status_code, page.headers["location"]) == (303, "/login?to=/requests")
    # With a token, the host may be any: who has the token cannot be a rebound page.
    elsewhere = {"host": "box.lan:8585", "authorization": "Bearer s3cret"}
    assert get("/v1/evals/scores", headers=elsewhere).status_code == 200


def test_bodies_beyond_the_limit_are_refused(rig: Rig) -> None:
    big = json.dumps(log_body(extra="x" * MAX_BODY)).encode()
    headers = {"content-type": "application/json"}
    answer = rig.client.post("/oai/v1/log", content=big, headers=headers)
    assert (answer.status_code, answer.text) == (400, "Payload too large")
    assert answer.headers["content-type"].startswith("text/plain")
    pieces = (big[i : i + 65536] for i in range(0, len(big), 65536))
    assert rig.client.post("/oai/v1/log", content=pieces, headers=headers).text == "Payload too large"
    assert rig.client.post(QUERY, content=big, headers=headers).status_code == 400
    assert rig.post("/v1/request/count/query") == 0


def test_a_small_body_that_unpacks_to_much_is_refused(rig: Rig) -> None:
    import gzip

    bomb = gzip.compress(b'{"a": "' + b"x" * (MAX_BODY + 10) + b'"}')
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    answer = rig.client.post("/oai/v1/log", content=bomb, headers=headers)
    assert (answer.status_code, answer.text) == (400, "Payload too large")


@pytest.mark.parametrize("raw", [b"{", b"\xff", b'{"a": NaN}', b"[" * 100_000, b"nope", b'"text"', b"[1]"])
def test_odd_bodies_are_refused_politely(rig: Rig, raw: bytes) -> None:
    answer = rig.client.post(QUERY, content=raw, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.json()["data"] is None


def test_half_a_surrogate_pair_is_replaced(rig: Rig) -> None:
    raw = b'{"key": "k\\ud800", "value": "\\udfff"}'
    answer = rig.client.put("/v1/request/x/property", content=raw, headers={"content-type": "application/json"})
    assert answer.status_code == 200


def test_same_origin_is_scheme_host_and_port() -> None:
    assert same_origin("http://127.0.0.1:8585", "127.0.0.1:8585")
    assert not same_origin("http://127.0.0.1", "127.0.0.1:8585")
    assert not same_origin("file://127.0.0.1:8585", "127.0.0.1:8585")
    assert not same_origin("http://[", "127.0.0.1:8585")


def test_unknown_paths_and_methods_are_json(rig: Rig) -> None:
    answer = rig.client.get("/v1/nope")
    assert answer.status_code == 404
    assert answer.json()["data"] is None
    assert answer.json()["error"]["message"].startswith(
        "there is no GET /v1/nope here; the API's paths are in /openapi.json; on the proxy's port"
    )
    answer = rig.client.get("/v1/session/query")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("method", "path", "word"),
    [
        ("POST", "/v1/prompt-2025/query/version", "stored prompts"),
        ("GET", "/v1/stripe/subscription", "billing"),
        ("POST", "/v2/experiment/new", "experiments"),
        ("POST", "/v1/evaluator", "evaluators"),
        ("POST", "/v1/request/a/assets/b", "assets"),
        ("POST", "/alerts", "alerts"),
    ],
)
def test_what_is_not_served_says_so(rig: Rig, method: str, path: str, word: str) -> None:
    answer = rig.client.request(method, path, json={} if method == "POST" else None)
    assert answer.status_code == 501
    assert word in answer.json()["error"]


def test_the_proxied_door_is_the_same_app(rig: Rig) -> None:
    async def ask(method: str, path: str, body: Any, query: str = "") -> tuple[int, dict[bytes, bytes], Any]:
        headers = [(b"Host", b"api.helicone.ai"), (b"Content-Type", b"application/json"), (b"Content-Length", b"9")]
        raw = b"" if body is None else json.dumps(body).encode()
        status, fields, answer = await respond(rig.app, method, path, query, headers, raw, ("127.0.0.1", 5))
        return status, dict(fields), json.loads(answer)

    async def all_of_it() -> None:
        status, headers, answer = await ask("GET", "/health", None)
        assert (status, answer["status"], headers[b"content-type"]) == (200, "ok", b"application/json")
        status, _, answer = await ask("PUT", "/v1/request/a%20b/property", {"key": "k", "value": "v"})
        assert (status, answer) == (200, {"data": None, "error": None})
        status, _, answer = await ask("GET", "/v1/request/nope", None, "includeBody=true")
        assert status == 404

    asyncio.run(all_of_it())


def test_health_says_what_was_lost_and_not_where(rig: Rig) -> None:
    assert rig.client.get("/health").json()["status"] == "ok"
    rig.recorder.counters.lost_rows = 3
    found = rig.client.get("/health").json()
    assert (found["status"], found["lost_rows"]) == ("degraded", 3)
    assert str(rig.home) not in rig.client.get("/health").text
