"""Gateways, fallbacks and targets through a running proxy (helicone-proxy.md sections 1, 2.1, 3.4, 6)."""

from __future__ import annotations

import gzip
import json
import socket
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from fakes import chat_answer, chat_chunks, json_answer
from rig import CHAT, KEY, Rig, chat, cut, error, rigged, text_of

GATEWAY = "/gateway/v1/chat/completions"
AI = "/ai-gateway/v1/chat/completions"
GROQ = "https://api.groq.com"
OPENAI = "https://api.openai.com"


@pytest.fixture(scope="module")
def shared_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rigged(tmp_path_factory.mktemp("gateway") / "home") as rig:
        yield rig


@pytest.fixture
def rig(shared_rig: Rig) -> Rig:
    shared_rig.reset()
    return shared_rig


def entry(url: str = OPENAI, codes: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    headers = more.pop("headers", {"authorization": f"Bearer {url}", "content-type": "application/json"})
    return {
        "target-url": url,
        "headers": headers,
        "onCodes": codes if codes is not None else [{"from": 400, "to": 599}],
    } | more


def fallbacks(*entries: dict[str, Any], **more: str) -> dict[str, str]:
    return {"Helicone-Fallbacks": json.dumps(entries)} | more


def hosts(rig: Rig) -> list[str]:
    """The hosts that were called, in order."""
    return [asked.path.split("/")[1] for asked in rig.up.asked]


# ---------------------------------------------------------------- Helicone-Target-URL


def test_gateway_sends_path_and_query_to_the_origin_of_the_target(rig: Rig) -> None:
    target = {"Helicone-Target-URL": f"{GROQ}/dropped/path?x=1"}
    response = rig.ask(target, path="/gateway/openai/v1/chat/completions?a=b")
    assert (response.status_code, rig.last.path) == (200, "/groq/openai/v1/chat/completions?a=b")
    assert rig.last.header("authorization") == "Bearer sk-provider"
    row = rig.row(response)
    assert (row["provider"], row["host"], row["path"]) == ("groq", "api.groq.com", "/openai/v1/chat/completions?a=b")


@pytest.mark.parametrize("name", ["Helicone-Target-URL", "Helicone-Target-Url", "helicone-target-url"])
@pytest.mark.parametrize("base", ["https://gateway.helicone.ai", "/gateway", "/v1/gateway"])
def test_target_header_in_any_case_at_every_door(rig: Rig, name: str, base: str) -> None:
    client = rig.http if base.startswith("/") else rig.run.client()
    response = client.post(f"{base}/v1/chat/completions", json=chat(), headers={name: OPENAI})
    assert (response.status_code, rig.last.path) == (200, "/openai/v1/chat/completions")


def test_gateway_without_a_target_is_a_400(rig: Rig) -> None:
    response = rig.ask(path=GATEWAY)
    assert (response.status_code, response.text, rig.calls) == (400, "Missing target base url", 0)
    assert response.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize("url", ["not a url", "api.groq.com", "ftp://api.groq.com", "https://"])
def test_target_that_is_no_url_is_a_500(rig: Rig, url: str) -> None:
    response = rig.ask({"Helicone-Target-URL": url}, path=GATEWAY)
    assert (response.status_code, rig.calls) == (500, 0)
    assert response.headers["helicone-error"] == "true"
    assert sorted(response.json()) == ["helicone-error", "helicone-message", "support"]


def test_target_nobody_knows_is_logged_under_its_own_name(rig: Rig) -> None:
    response = rig.ask({"Helicone-Target-URL": "https://llm.example.com"}, path=GATEWAY)
    row = rig.row(response)
    assert (row["provider"], row["host"], row["model"]) == (
        "https://llm.example.com",
        "llm.example.com",
        "gpt-4o-mini-2024-07-18",
    )


@pytest.mark.parametrize("name", ["Helicone-Target-URL", "Helicone-OpenAI-Api-Base"])
def test_provider_host_honours_another_base(rig: Rig, name: str) -> None:
    rig.ask({name: GROQ})
    assert hosts(rig) == ["groq"]


def test_api_base_wins_over_the_target(rig: Rig) -> None:
    rig.ask({"Helicone-OpenAI-Api-Base": GROQ, "Helicone-Target-URL": "https://api.together.xyz"})
    assert hosts(rig) == ["groq"]


def test_base_that_is_no_url_is_a_500_text(rig: Rig) -> None:
    response = rig.ask({"Helicone-OpenAI-Api-Base": "nonsense"})
    assert (response.status_code, response.text, rig.calls) == (500, 'Invalid API base "nonsense"', 0)


PRIVATE = [
    "http://127.0.0.1:1",
    "http://localhost:1",
    "http://10.0.0.1",
    "http://192.168.1.1",
    "http://172.16.0.1",
    "http://169.254.169.254/latest/meta-data",
    "http://[::1]:1",
    "http://[::ffff:127.0.0.1]:1",
    "http://[fd00::1]",
    "http://0.0.0.0:1",
    "http://2130706433:1",
    "http://0x7f.1:1",
    "http://127.1:1",
    "http://metadata.google.internal",
    "http://router",
    "http://printer.local",
    "http://100.64.0.1",
    "http://user:pw@api.groq.com",
]


@pytest.mark.parametrize("url", PRIVATE)
@pytest.mark.parametrize("path", [GATEWAY, CHAT])
def test_targets_inside_are_refused(rig: Rig, url: str, path: str) -> None:
    response = rig.ask({"Helicone-Target-URL": url}, path=path)
    assert (response.status_code, rig.calls) == (500, 0)
    assert response.text.startswith(f'Invalid API base "{url}": it ')


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://169.254.169.254"])
def test_fallbacks_inside_are_refused(rig: Rig, url: str) -> None:
    response = rig.ask(fallbacks(entry(), entry(url)), path=GATEWAY)
    assert (response.status_code, rig.calls) == (500, 0)
    assert response.text.startswith(f'Invalid API base "{url}": it ')


def test_name_that_resolves_to_an_inside_address_is_refused_at_connect_time(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo

    def resolve(host: Any, port: Any, *args: Any, **kw: Any) -> Any:
        return real("127.0.0.1" if host == "rebound.example.com" else host, port, *args, **kw)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    target = {"Helicone-Target-URL": f"http://rebound.example.com:{rig.up.port}"}
    response = rig.ask(target, path=GATEWAY)
    assert response.status_code in (500, 502)
    assert "not a public address" in response.json()["message"]
    assert rig.calls == 0


def test_address_the_operator_sends_traffic_to_is_allowed(rig: Rig) -> None:
    response = rig.ask({"Helicone-Target-URL": rig.up.url}, path=GATEWAY)
    assert response.status_code == 200


# ---------------------------------------------------------------- Helicone-Fallbacks


def test_first_entry_answers_and_says_so(rig: Rig) -> None:
    response = rig.ask(fallbacks(entry(), entry(GROQ)), path=GATEWAY)
    assert (response.status_code, response.headers["helicone-fallback-index"]) == (200, "0")
    assert hosts(rig) == ["openai"]
    assert rig.row(response)["fallback_index"] == 0


@pytest.mark.parametrize("base", ["https://gateway.helicone.ai", "/gateway", "/v1/gateway"])
def test_failure_moves_on(rig: Rig, base: str) -> None:
    rig.script = [error(500)]
    client = rig.http if base.startswith("/") else rig.run.client()
    headers = fallbacks(entry(), entry(GROQ))
    response = client.post(f"{base}/v1/chat/completions", json=chat(), headers=headers)
    assert (response.status_code, response.headers["helicone-fallback-index"]) == (200, "1")
    assert hosts(rig) == ["openai", "groq"]
    row = rig.row(response)
    assert (row["status"], row["fallback_index"], row["attempts"]) == (200, 1, 2)
    assert (row["provider"], row["host"]) == ("groq", "api.groq.com")
    tried = json.loads(row["attempts_json"])
    assert [(a["status"], a["fallback_index"]) for a in tried] == [(500, 0), (200, 1)]


@pytest.mark.parametrize(
    ("codes", "status", "moves"),
    [
        ([429], 429, True),
        ([429], 500, False),
        ([{"from": 500, "to": 502}], 500, True),
        ([{"from": 500, "to": 502}], 502, True),
        ([{"from": 500, "to": 502}], 503, False),
        ([401, {"from": 500, "to": 599}], 401, True),
        ([{"from": 200, "to": 200}], 200, True),
        ([], 500, False),
    ],
)
def test_only_the_statuses_named_move_on(rig: Rig, codes: list[Any], status: int, moves: bool) -> None:
    rig.script = [error(status)]
    response = rig.ask(fallbacks(entry(codes=codes), entry(GROQ)), path=GATEWAY)
    assert response.status_code == (200 if moves else status)
    assert response.headers["helicone-fallback-index"] == ("1" if moves else "0")
    assert rig.calls == (2 if moves else 1)


def test_last_entry_is_returned_whatever_it_answers(rig: Rig) -> None:
    rig.script = [error(500, "a"), error(503, "b"), error(502, "c")]
    response = rig.ask(fallbacks(entry(), entry(GROQ), entry("https://api.together.xyz")), path=GATEWAY)
    assert (response.status_code, response.json()["error"]["message"]) == (502, "c")
    assert response.headers["helicone-fallback-index"] == "2"
    assert hosts(rig) == ["openai", "groq", "together"]


@pytest.mark.parametrize("codes", [[500], [502], [504], [{"from": 500, "to": 599}]])
def test_broken_connection_moves_on(rig: Rig, codes: list[Any]) -> None:
    rig.script = [cut()]
    response = rig.ask(fallbacks(entry(codes=codes), entry(GROQ)), path=GATEWAY)
    assert (response.status_code, response.headers["helicone-fallback-index"]) == (200, "1")


def test_broken_connection_that_no_code_names_is_a_502(rig: Rig) -> None:
    rig.script = [cut()]
    response = rig.ask(fallbacks(entry(codes=[429]), entry(GROQ)), path=GATEWAY)
    assert (response.status_code, rig.calls) == (502, 1)


def test_headers_are_those_of_the_entry_alone(rig: Rig) -> None:
    rig.script = [error(500)]
    first = entry(headers={"Authorization": "Bearer one", "Content-Type": "application/json"})
    second = entry(GROQ, headers={"x-api-key": "two"})
    rig.ask(fallbacks(first, second, **{"x-client": "c", "cookie": "a=b"}), path=GATEWAY)
    one, two = ({n.lower(): v for n, v in asked.headers} for asked in rig.up.asked)
    assert (one["authorization"], one["content-type"]) == ("Bearer one", "application/json")
    assert two["x-api-key"] == "two"
    assert set(one) == {"authorization", "content-type", "content-length", "host"}
    assert set(two) == {"x-api-key", "content-length", "host"}


def test_credentials_of_entries_are_not_stored(rig: Rig) -> None:
    canary = f"canary{uuid.uuid4().hex}"
    response = rig.ask(fallbacks(entry(headers={"authorization": f"Bearer {canary}"})), path=GATEWAY)
    assert rig.row(response)["key_fingerprint"]
    dump = [rig.run.rows(f"SELECT * FROM {table}") for table in ("requests", "bodies", "properties")]
    assert canary not in str(dump)


def test_body_override_is_merged_deeply_and_for_its_entry_only(rig: Rig) -> None:
    rig.script = [error(500)]
    override = {"model": "llama", "options": {"b": {"c": 2}, "new": [1]}, "user": None, "__proto__": {"x": 1}}
    headers = fallbacks(entry(bodyKeyOverride=override), entry(GROQ))
    sent = chat(options={"a": 1, "b": {"d": 3}}, user="u")
    rig.http.post(GATEWAY, json=sent, headers=headers)
    first, second = (asked.json for asked in rig.up.asked)
    assert first == sent | {"model": "llama", "options": {"a": 1, "b": {"d": 3, "c": 2}, "new": [1]}, "user": None}
    assert second == sent


def test_override_of_a_body_that_is_no_json_is_a_500(rig: Rig) -> None:
    headers = fallbacks(entry(bodyKeyOverride={"a": 1}))
    response = rig.http.post(GATEWAY, content=b"text", headers=headers)
    assert (response.status_code, rig.calls) == (500, 0)
    assert "helicone-message" in response.json()


@pytest.mark.parametrize(
    "value",
    [
        "not json",
        "{}",
        "[]",
        "[1]",
        '[{"target-url":"https://api.openai.com","headers":{}}]',
        '[{"target-url":"https://api.openai.com","onCodes":[500]}]',
        '[{"headers":{},"onCodes":[500]}]',
        '[{"target-url":"","headers":{},"onCodes":[500]}]',
        '[{"target-url":"https://api.openai.com","headers":{"a":1},"onCodes":[500]}]',
        '[{"target-url":"https://api.openai.com","headers":{},"onCodes":["500"]}]',
        '[{"target-url":"https://api.openai.com","headers":{},"onCodes":500}]',
    ],
)
@pytest.mark.parametrize("path", [GATEWAY, CHAT])
def test_fallbacks_that_are_wrong_are_a_500_on_every_host(rig: Rig, value: str, path: str) -> None:
    response = rig.ask({"Helicone-Fallbacks": value}, path=path)
    assert (response.status_code, rig.calls) == (500, 0)
    assert response.headers["helicone-error"] == "true"
    assert response.headers["content-type"] == "application/json;charset=UTF-8"
    assert response.json()["helicone-message"].startswith("Helicone ran into an error servicing your request: ")


def test_fallbacks_are_ignored_where_the_host_names_the_provider(rig: Rig) -> None:
    response = rig.ask(fallbacks(entry(GROQ)))
    assert hosts(rig) == ["openai"]
    assert "helicone-fallback-index" not in response.headers


def test_fallbacks_win_over_the_target(rig: Rig) -> None:
    rig.ask(fallbacks(entry(GROQ), **{"Helicone-Target-URL": OPENAI}), path=GATEWAY)
    assert hosts(rig) == ["groq"]


QUICK = {"Helicone-Retry-Enabled": "true", "Helicone-Retry-Min-Timeout": "1", "Helicone-Retry-Max-Timeout": "2"}


def test_each_entry_is_called_again_before_the_next_is_tried(rig: Rig) -> None:
    rig.script = [error(500), error(500), error(500)]
    headers = fallbacks(entry(), entry(GROQ)) | QUICK | {"Helicone-Retry-Num": "1"}
    response = rig.ask(headers, path=GATEWAY)
    assert (response.status_code, response.headers["helicone-fallback-index"]) == (200, "1")
    assert hosts(rig) == ["openai", "openai", "groq", "groq"]
    assert rig.row(response)["attempts"] == 4


def test_streams_fall_back_too(rig: Rig) -> None:
    rig.script = [error(500)]
    response = rig.ask(fallbacks(entry(), entry(GROQ)), path=GATEWAY, stream=True)
    assert response.content == b"".join(chat_chunks(["answer 1", "!"]))
    assert response.headers["helicone-fallback-index"] == "1"


def test_each_entry_costs_a_token(rig: Rig) -> None:
    me = {"Helicone-User-Id": str(uuid.uuid4()), "Helicone-RateLimit-Policy": "5;w=3000;s=user"}
    rig.script = [error(500)]
    response = rig.ask(fallbacks(entry(), entry(GROQ)) | me, path=GATEWAY)
    assert response.headers["helicone-ratelimit-remaining"] == "3"
    rig.script = [error(500)]
    rig.ask(fallbacks(entry(), entry(GROQ)) | me, path=GATEWAY)
    rig.script = [error(500)]
    denied = rig.ask(fallbacks(entry(), entry(GROQ)) | me, path=GATEWAY)
    assert (denied.status_code, denied.headers["helicone-fallback-index"]) == (429, "1")
    assert denied.headers["x-helicone-error"] == "rate_limited"
    assert rig.calls == 5


def test_answers_are_cached_for_the_entry_that_gave_them(rig: Rig) -> None:
    headers = fallbacks(entry(), entry(GROQ)) | {"Helicone-Cache-Enabled": "true"}
    text = str(uuid.uuid4())
    rig.script = [error(500)]
    first = rig.ask(headers, path=GATEWAY, text=text)
    assert (first.headers["helicone-cache"], first.headers["helicone-fallback-index"]) == ("MISS", "1")
    # The first entry fails again: the second's answer is at hand.
    rig.script = [error(500)]
    second = rig.ask(headers, path=GATEWAY, text=text)
    assert (second.headers["helicone-cache"], second.headers["helicone-fallback-index"]) == ("HIT", "1")
    assert text_of(second) == text_of(first)
    assert rig.calls == 3
    # It works again: its own answer, not the stand-in's.
    third = rig.ask(headers, path=GATEWAY, text=text)
    assert (third.headers["helicone-cache"], third.headers["helicone-fallback-index"]) == ("MISS", "0")
    fourth = rig.ask(headers, path=GATEWAY, text=text)
    assert (fourth.headers["helicone-cache"], fourth.headers["helicone-fallback-index"]) == ("HIT", "0")
    assert rig.calls == 4


def test_compressed_request_is_read_for_the_override(rig: Rig) -> None:
    headers = fallbacks(entry(bodyKeyOverride={"model": "m"})) | {"content-encoding": "gzip"}
    response = rig.http.post(GATEWAY, content=gzip.compress(json.dumps(chat()).encode()), headers=headers)
    assert rig.last.json["model"] == "m"
    assert rig.last.header("content-encoding") is None
    assert rig.row(response)["request_model"] == "m"


@pytest.mark.parametrize(
    ("codes", "status", "moves"),
    [
        ([{"from": 500, "to": 500}], 500, True),
        ([{"from": 599, "to": 500}], 500, False),
        ([{"from": 0, "to": 1000}], 404, True),
        ([500.0], 500, True),
        ([429, 429], 429, True),
        ([{"from": 400, "to": 428}, {"from": 430, "to": 599}], 429, False),
        ([{"from": 400, "to": 428, "more": 1}], 428, True),
        ([{"from": -1, "to": 10**30}], 301, True),
    ],
)
def test_ranges_include_both_ends(rig: Rig, codes: list[Any], status: int, moves: bool) -> None:
    rig.script = [error(status)]
    response = rig.ask(fallbacks(entry(codes=codes), entry(GROQ)), path=GATEWAY)
    assert (response.status_code, rig.calls) == ((200, 2) if moves else (status, 1))


@pytest.mark.parametrize(
    ("override", "body", "sent"),
    [
        ({"a": {"b": 1}}, {"a": {"c": 2}}, {"a": {"c": 2, "b": 1}}),
        ({"a": {"b": 1}}, {"a": [1, 2]}, {"a": {"b": 1}}),
        ({"a": {"b": 1}}, {}, {"a": {"b": 1}}),
        ({"a": [3]}, {"a": [1, 2]}, {"a": [3]}),
        ({"a": None}, {"a": {"b": 1}}, {"a": None}),
        ({"a": {}}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ({"a": "é\n"}, {}, {"a": "é\n"}),
        ({"constructor": 1, "prototype": 2, "a": {"__proto__": 3, "b": 4}}, {}, {"a": {"b": 4}}),
        ({}, {"a": 1}, {"a": 1}),
        (None, {"a": 1}, {"a": 1}),
    ],
)
def test_overrides(rig: Rig, override: Any, body: dict[str, Any], sent: dict[str, Any]) -> None:
    headers = fallbacks(entry(bodyKeyOverride=override))
    assert rig.http.post(GATEWAY, json=body, headers=headers).status_code == 200
    assert rig.last.json == sent


def test_entry_without_an_override_leaves_the_body_to_the_letter(rig: Rig) -> None:
    body = b'{ "model": "m",\n "x": 1.0 }'
    rig.http.post(GATEWAY, content=body, headers=fallbacks(entry()))
    assert rig.last.body == body


@pytest.mark.parametrize("override", [[], "x", 5, True])
def test_override_that_is_no_object_is_a_500(rig: Rig, override: Any) -> None:
    response = rig.ask(fallbacks(entry(bodyKeyOverride=override)), path=GATEWAY)
    assert (response.status_code, response.headers["helicone-error"], rig.calls) == (500, "true", 0)


def test_helicone_headers_of_an_entry_go_no_further(rig: Rig) -> None:
    own = {"authorization": "Bearer one", "Helicone-Auth": KEY, "HELICONE-USER-ID": "u", "x-mine": "1"}
    response = rig.ask(fallbacks(entry(headers=own)), path=GATEWAY)
    assert {n.lower() for n, _ in rig.last.headers} == {"authorization", "x-mine", "content-length", "host"}
    assert rig.row(response)["user_id"] is None


def test_entry_cannot_say_where_its_request_ends_or_goes(rig: Rig) -> None:
    own = {"Host": "other", "Content-Length": "5", "Transfer-Encoding": "chunked", "Connection": "close"}
    own |= {"Content-Encoding": "gzip", "Upgrade": "h2c", "Expect": "100-continue", "x-value": " a\r\nx-more: b "}
    response = rig.ask(fallbacks(entry(headers=own)), path=GATEWAY, text="words")
    sent = {n.lower(): v for n, v in rig.last.headers}
    assert (response.status_code, rig.last.json) == (200, chat(text="words"))
    assert {n for n, _ in rig.last.headers} == {"host", "content-length", "x-value"}
    assert (sent["content-length"], sent["x-value"]) == (str(len(rig.last.body)), "ax-more: b")


@pytest.mark.parametrize("name", ["", "a b", "a:", "x\r\ny", "é", "(a)"])
def test_entry_with_a_header_that_has_no_name_is_a_500(rig: Rig, name: str) -> None:
    response = rig.ask(fallbacks(entry(headers={name: "x"})), path=GATEWAY)
    assert (response.status_code, response.headers["helicone-error"], rig.calls) == (500, "true", 0)


def test_entry_may_bring_its_own_cache_settings(rig: Rig) -> None:
    text = str(uuid.uuid4())
    cached = {"authorization": "Bearer one", "Helicone-Cache-Enabled": "true", "Cache-Control": "max-age=60"}
    headers = fallbacks(entry(headers=cached), entry(GROQ))
    found = [rig.ask(headers, path=GATEWAY, text=text).headers["helicone-cache"] for _ in range(2)]
    assert (found, rig.calls) == (["MISS", "HIT"], 1)
    assert rig.last.header("cache-control") == "max-age=60"
    # The second entry has none, so its answers are not kept.
    rig.script = [error(500), json_answer(chat_answer()), error(500), json_answer(chat_answer())]
    found = [rig.ask(headers, path=GATEWAY).headers.get("helicone-cache") for _ in range(2)]
    assert rig.calls == 5


def test_entry_whose_bucket_is_too_large_is_a_500(rig: Rig) -> None:
    own = {"authorization": "Bearer one", "Helicone-Cache-Bucket-Max-Size": "21"}
    response = rig.ask(fallbacks(entry(), entry(headers=own)), path=GATEWAY)
    assert (response.status_code, rig.calls) == (500, 0)
    assert response.text == "Cache bucket size cannot be greater than 20"


def test_policies_of_the_request_hold_for_every_entry(rig: Rig) -> None:
    rig.script = [error(500)]
    mine = {"Helicone-User-Id": "ada", "Helicone-Property-App": "a", "Helicone-Session-Id": "s"}
    response = rig.ask(fallbacks(entry(), entry(GROQ)) | mine, path=GATEWAY)
    row = rig.row(response)
    assert (row["user_id"], row["session_id"], row["host"]) == ("ada", "s", "api.groq.com")
    assert rig.properties(response)["app"] == "a"


def test_single_entry_is_returned_whatever_it_answers(rig: Rig) -> None:
    rig.script = [error(500, "alone")]
    response = rig.ask(fallbacks(entry()), path=GATEWAY)
    assert (response.status_code, response.headers["helicone-fallback-index"], rig.calls) == (500, "0", 1)
    assert response.json()["error"]["message"] == "alone"


def test_broken_connections_of_all_entries_are_a_502(rig: Rig) -> None:
    rig.script = [cut(), cut()]
    response = rig.ask(fallbacks(entry(), entry(GROQ)), path=GATEWAY)
    assert (response.status_code, response.json()["error"], rig.calls) == (502, "Network connection lost", 2)
    assert sorted(response.json()) == ["error", "helicone-message", "message", "support"]
    assert rig.row(response)["attempts"] == 2


def test_many_entries(rig: Rig) -> None:
    rig.script = [error(500)] * 19
    urls = [OPENAI, GROQ, "https://api.together.xyz", "https://llm.example.com"] * 5
    response = rig.ask(fallbacks(*(entry(url) for url in urls)), path=GATEWAY)
    assert (response.status_code, response.headers["helicone-fallback-index"], rig.calls) == (200, "19", 20)


# ---------------------------------------------------------------- the AI gateway


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GROQ_API_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, f"key-of-{name.partition('_')[0].lower()}")
    for name in ("TOGETHER_API_KEY", "XAI_API_KEY", "MISTRAL_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def ai(rig: Rig, model: Any, headers: dict[str, str] | None = None, path: str = AI, **body: Any) -> httpx.Response:
    return rig.ask({"authorization": KEY} | (headers or {}), path=path, model=model, **body)


@pytest.mark.usefixtures("keys")
class TestAIGateway:
    def test_named_provider_is_called_with_the_users_own_key(self, rig: Rig) -> None:
        response = ai(rig, "llama-3.3-70b/groq")
        assert rig.last.path == "/groq/openai/v1/chat/completions"
        assert rig.last.header("authorization") == "Bearer key-of-groq"
        assert rig.last.json["model"] == "llama-3.3-70b"
        found = [response.headers[f"helicone-{n}"] for n in ("gateway-mode", "provider", "model")]
        assert found == ["BYOK", "groq", "llama-3.3-70b"]
        row = rig.row(response)
        assert (row["provider"], row["request_model"]) == ("groq", "llama-3.3-70b")

    @pytest.mark.parametrize("base", ["https://ai-gateway.helicone.ai", "/ai-gateway", "/v1/gateway/ai-gateway"])
    def test_every_door(self, rig: Rig, base: str) -> None:
        client = rig.http if base.startswith("/") else rig.run.client()
        url = f"{base}/v1/chat/completions"
        assert client.post(url, json=chat(model="m/groq"), headers={"authorization": KEY}).status_code == 200
        assert hosts(rig) == ["groq"]

    def test_model_that_names_no_provider_goes_to_its_maker(self, rig: Rig) -> None:
        ai(rig, "gpt-4o-mini")
        assert hosts(rig) == ["openai"]

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 429, 500, 503])
    def test_every_failure_moves_on(self, rig: Rig, status: int) -> None:
        rig.script = [error(status)]
        response = ai(rig, "llama/groq, gpt-4o-mini/openai")
        assert (response.status_code, hosts(rig)) == (200, ["groq", "openai"])
        assert rig.last.header("authorization") == "Bearer key-of-openai"
        assert rig.last.json["model"] == "gpt-4o-mini"
        assert response.headers["helicone-provider"] == "openai"

    def test_broken_connection_moves_on(self, rig: Rig) -> None:
        rig.script = [cut()]
        assert ai(rig, "llama/groq,gpt-4o-mini/openai").status_code == 200

    def test_excluded_provider_is_left_out(self, rig: Rig) -> None:
        ai(rig, "!groq,llama/groq,gpt-4o-mini/openai")
        assert hosts(rig) == ["openai"]

    @pytest.mark.parametrize(
        ("statuses", "status", "code"),
        [
            ([429, 429], 429, "rate_limited"),
            ([500, 429], 500, "request_failed"),
            ([400, 500], 500, "request_failed"),
            ([401, 500], 401, "request_failed"),
            ([500, 403], 403, "request_failed"),
            ([401, 403], 403, "request_failed"),
        ],
    )
    def test_failure_of_all(self, rig: Rig, statuses: list[int], status: int, code: str) -> None:
        rig.script = [error(s) for s in statuses]
        response = ai(rig, "llama/groq,gpt-4o-mini/openai")
        body = response.json()
        assert (response.status_code, body["success"], body["error"]["code"]) == (status, False, code)
        assert [d["statusCode"] for d in body["error"]["details"]] == statuses
        assert [d["source"] for d in body["error"]["details"]] == ["groq", "openai"]
        assert sorted(body["error"]) == ["code", "details", "message", "param"]
        assert rig.calls == 2

    @pytest.mark.parametrize(
        ("model", "words"),
        [
            (None, "Invalid body or missing model"),
            ("", "Invalid body or missing model"),
            (5, "'model' must be a string"),
            (["gpt-4o"], "'model' must be a string"),
            ("!", "needs a provider name"),
            ("gpt-4o, !", "needs a provider name"),
            ("!nobody,gpt-4o", "names no provider"),
        ],
    )
    def test_model_that_cannot_be_read_is_a_400_in_plain_text(self, rig: Rig, model: Any, words: str) -> None:
        response = ai(rig, model)
        assert (response.status_code, rig.calls) == (400, 0)
        assert response.headers["content-type"].startswith("text/plain")
        assert words in response.text
        assert rig.row(response)["status"] == 400

    @pytest.mark.parametrize("body", [b"{", b"", b"[]", b"null", b"{}", b"text"])
    def test_body_without_a_model_is_a_400_in_plain_text(self, rig: Rig, body: bytes) -> None:
        response = rig.http.post(AI, content=body, headers={"authorization": KEY})
        assert (response.status_code, rig.calls) == (400, 0)
        assert response.text.startswith("Invalid body or missing model")

    @pytest.mark.parametrize("model", ["nobody-knows-this", "m/xai", "m/nobody", ",", "gpt-4o/openai,!openai"])
    def test_nothing_to_call_is_a_400_that_says_why(self, rig: Rig, model: str) -> None:
        response = ai(rig, model)
        assert (response.status_code, rig.calls) == (400, 0)
        assert response.headers["content-type"] == "application/json"
        error = response.json()["error"]
        assert (error["code"], error["param"]) == ("request_failed", None)
        assert error["message"].startswith("No available providers")
        assert error["details"][0]["statusCode"] == 400

    @pytest.mark.parametrize("key", ["", "Bearer x", "Bearer sk-mine", "Bearer sk-helicone-nobody", "nonsense"])
    @pytest.mark.parametrize("header", ["authorization", "Helicone-Auth"])
    def test_any_key_will_do_as_there_are_no_accounts(self, rig: Rig, header: str, key: str) -> None:
        response = rig.http.post(AI, json=chat(model="m/groq"), headers={header: key} if key else {})
        assert (response.status_code, rig.last.header("authorization")) == (200, "Bearer key-of-groq")

    @pytest.mark.parametrize(
        ("model", "sent"),
        [
            ("gpt-4o/openai/my-deployment", "my-deployment"),
            ("meta-llama/llama-3/groq", "meta-llama/llama-3"),
            (" gpt-4o / openai ", "gpt-4o"),
            ("gpt-4o/OpenAI", "gpt-4o"),
            ("gpt-4o/openai,,", "gpt-4o"),
            ("nobody-knows-this, m/nobody, gpt-4o/openai", "gpt-4o"),
        ],
    )
    def test_models_are_sent_without_their_provider(self, rig: Rig, model: str, sent: str) -> None:
        assert ai(rig, model).status_code == 200
        assert rig.last.json["model"] == sent

    def test_online_is_for_openrouter_and_said_to_have_no_effect_elsewhere(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        response = ai(rig, "gpt-4o:online/openai")
        assert rig.last.json["model"] == "gpt-4o"
        assert "':online' has no effect at 'openai'" in response.headers["heliproxy-warning"]
        monkeypatch.setenv("OPENROUTER_API_KEY", "key-of-openrouter")
        response = ai(rig, "openai/gpt-4o:online/openrouter")
        assert (rig.last.path, rig.last.json["model"]) == (
            "/openrouter/api/v1/chat/completions",
            "openai/gpt-4o:online",
        )
        assert "heliproxy-warning" not in response.headers

    def test_network_failure_of_all(self, rig: Rig) -> None:
        rig.script = [cut(), cut()]
        response = ai(rig, "llama/groq,gpt-4o-mini/openai")
        error = response.json()["error"]
        assert (response.status_code, error["code"], rig.calls) == (500, "request_failed", 2)
        assert [(d["source"], d["statusCode"]) for d in error["details"]] == [("groq", 500), ("openai", 500)]
        assert rig.row(response)["attempts"] == 2

    def test_single_entry_that_fails_has_the_shape_too(self, rig: Rig) -> None:
        rig.script = [error(429)]
        response = ai(rig, "llama/groq")
        assert (response.status_code, response.json()["error"]["message"]) == (429, "Rate limited")
        assert "x-helicone-error" not in response.headers
        assert response.headers["helicone-id"]

    def test_our_own_429_is_returned_at_once(self, rig: Rig) -> None:
        me = {"Helicone-User-Id": str(uuid.uuid4()), "Helicone-RateLimit-Policy": "1;w=600;s=user"}
        assert ai(rig, "m/groq", me).status_code == 200
        denied = ai(rig, "m/groq,gpt-4o/openai", me)
        assert (denied.status_code, denied.headers["x-helicone-error"], rig.calls) == (429, "rate_limited", 1)
        assert list(denied.json()) == ["message"]

    def test_each_entry_is_called_again_before_the_next(self, rig: Rig) -> None:
        rig.script = [error(500), error(503), error(500)]
        response = ai(rig, "m/groq,gpt-4o/openai", QUICK | {"Helicone-Retry-Num": "1"})
        assert (response.status_code, hosts(rig)) == (200, ["groq", "groq", "openai", "openai"])

    def test_anthropic_format_goes_to_anthropic(self, rig: Rig) -> None:
        response = ai(rig, "claude-opus-4-8", path="/ai-gateway/v1/messages")
        assert rig.last.path == "/anthropic/v1/messages"
        assert (rig.last.header("x-api-key"), rig.last.header("authorization")) == ("key-of-anthropic", None)
        assert response.headers["helicone-provider"] == "anthropic"

    def test_chats_go_to_anthropics_own_openai_compatible_endpoint(self, rig: Rig) -> None:
        response = ai(rig, "claude-opus-4-8")
        assert rig.last.path == "/anthropic/v1/chat/completions"
        assert (rig.last.header("x-api-key"), rig.last.header("authorization")) == (None, "Bearer key-of-anthropic")
        assert response.headers["helicone-provider"] == "anthropic"
        row = rig.row(response)
        assert (row["provider"], row["input_tokens"]) == ("anthropic", 1000)

    def test_providers_of_two_formats_stand_in_for_each_other(self, rig: Rig) -> None:
        rig.script = [error(529)]
        response = ai(rig, "claude-opus-4-8, gpt-4o-mini/openai", stream=True)
        assert hosts(rig) == ["anthropic", "openai"]
        assert rig.last.header("authorization") == "Bearer key-of-openai"
        assert response.content == b"".join(chat_chunks(["answer 1", "!"]))

    @pytest.mark.parametrize(
        ("model", "path"), [("llama/groq", "/ai-gateway/v1/messages"), ("claude-opus-4-8", "/ai-gateway/v1/responses")]
    )
    def test_format_that_would_have_to_be_translated_is_a_clear_400(self, rig: Rig, model: str, path: str) -> None:
        response = ai(rig, model, path=path)
        error = response.json()["error"]
        assert (response.status_code, error["code"], rig.calls) == (400, "request_failed", 0)
        assert "requests are not translated" in error["message"]
        assert [(d["type"], d["statusCode"]) for d in error["details"]] == [("invalid_format", 400)]

    @pytest.mark.parametrize(("status", "expected"), [(429, 400), (500, 500), (401, 401), (403, 403)])
    def test_format_that_one_entry_does_not_speak_counts_after_what_the_other_said(
        self, rig: Rig, status: int, expected: int
    ) -> None:
        rig.script = [error(status)]
        response = ai(rig, "llama/groq,claude-opus-4-8", path="/ai-gateway/v1/messages")
        assert (response.status_code, hosts(rig)) == (expected, ["anthropic"])
        assert [d["source"] for d in response.json()["error"]["details"]] == ["groq", "anthropic"]

    @pytest.mark.parametrize(
        ("mapping", "model", "path"),
        [
            ("OPENAI", "claude-opus-4-8", "/anthropic/v1/chat/completions"),
            ("openai", "claude-opus-4-8", "/anthropic/v1/chat/completions"),
            ("nonsense", "claude-opus-4-8", "/anthropic/v1/chat/completions"),
            ("", "gpt-4o", "/openai/v1/chat/completions"),
            ("NO_MAPPING", "claude-opus-4-8", "/anthropic/v1/messages"),
            ("NO_MAPPING", "gpt-4o", "/openai/v1/chat/completions"),
            ("no_mapping", "claude-opus-4-8", "/anthropic/v1/chat/completions"),
            ("RESPONSES", "gpt-4o", "/openai/v1/responses"),
            ("RESPONSES", "m/groq", "/groq/openai/v1/responses"),
        ],
    )
    def test_body_mappings(self, rig: Rig, mapping: str, model: str, path: str) -> None:
        assert ai(rig, model, {"Helicone-Gateway-Body-Mapping": mapping}).status_code == 200
        assert rig.last.path == path

    def test_native_body_goes_with_native_credentials_and_as_it_is(self, rig: Rig) -> None:
        native = {"Helicone-Gateway-Body-Mapping": "NO_MAPPING"}
        ai(rig, "claude-opus-4-8", native, stream=True, max_tokens=5)
        assert (rig.last.header("x-api-key"), rig.last.header("authorization")) == ("key-of-anthropic", None)
        assert "stream_options" not in rig.last.json

    def test_responses_are_not_asked_of_anthropic(self, rig: Rig) -> None:
        response = ai(rig, "claude-opus-4-8", {"Helicone-Gateway-Body-Mapping": "RESPONSES"})
        assert (response.status_code, rig.calls) == (400, 0)

    def test_provider_of_another_format_is_skipped_and_said(self, rig: Rig) -> None:
        response = ai(rig, "llama/groq,claude-opus-4-8", path="/ai-gateway/v1/messages")
        assert hosts(rig) == ["anthropic"]
        assert "groq was skipped" in response.headers["heliproxy-warning"]

    def test_chats_go_to_geminis_own_openai_compatible_endpoint(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("GEMINI_API_KEY", "key-of-gemini")
        response = ai(rig, "gemini-2.5-flash")
        assert rig.last.path == "/google/v1beta/openai/chat/completions"
        assert rig.last.header("authorization") == "Bearer key-of-gemini"
        assert response.headers["helicone-provider"] == "google-ai-studio"

    def test_streams_ask_for_their_usage(self, rig: Rig) -> None:
        ai(rig, "llama/groq", stream=True)
        assert rig.last.json["stream_options"] == {"include_usage": True}

    @pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "GET"])
    def test_other_methods_are_a_405(self, rig: Rig, method: str) -> None:
        response = rig.http.request(method, AI)
        assert (response.status_code, response.headers["allow"], rig.calls) == (405, "POST, GET", 0)

    def test_limits_and_cache_work_here_too(self, rig: Rig) -> None:
        me = {"Helicone-User-Id": str(uuid.uuid4()), "Helicone-RateLimit-Policy": "1;w=600;s=user"}
        cached = me | {"Helicone-Cache-Enabled": "true"}
        text = str(uuid.uuid4())
        assert ai(rig, "m/groq", cached, text=text).headers["helicone-cache"] == "MISS"
        assert ai(rig, "m/groq", cached, text=text).headers["helicone-cache"] == "HIT"
        assert ai(rig, "m/groq", me).status_code == 429

    def test_client_key_reaches_nobody(self, rig: Rig) -> None:
        headers = {"authorization": "Bearer sk-mine", "x-api-key": "mine", "cookie": "a=b", "Helicone-Auth": KEY}
        ai(rig, "m/groq", headers)
        sent = str(rig.last.headers)
        assert "mine" not in sent
        assert "sk-helicone" not in sent

    def test_responses_path(self, rig: Rig) -> None:
        rig.script = [json_answer(chat_answer())]
        ai(rig, "gpt-4o-mini/openai", path="/ai-gateway/v1/responses")
        assert rig.last.path == "/openai/v1/responses"
