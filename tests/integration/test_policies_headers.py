"""Every other header, and what Helicone's hosts answer themselves, through a running proxy.

helicone-proxy.md sections 1, 2.0, 2.1, 3.1 and 7.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from fakes import Answer, chat_answer, chat_chunks, json_answer, sse_answer
from heliproxy.bodies import read_body
from heliproxy.policies.budget import make_budget
from rig import CHAT, KEY, Rig, chat, rigged

ID = "0e1c1f9e-3a59-4a3a-9d7e-8f0f3a1b2c3d"
NIL = "00000000-0000-0000-0000-000000000000"


@pytest.fixture(scope="module")
def shared_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rigged(tmp_path_factory.mktemp("headers") / "home") as rig:
        yield rig


@pytest.fixture
def rig(shared_rig: Rig) -> Rig:
    shared_rig.reset()
    return shared_rig


# ---------------------------------------------------------------- 2.0 names, what is removed and what is not


def test_helicone_headers_in_any_case_are_removed_and_all_others_forwarded(rig: Rig) -> None:
    kept = {
        "authorization": "Bearer sk-p",
        "x-api-key": "a",
        "api-key": "b",
        "cache-control": "max-age=5",
        "x-stripe-customer-id": "cus_1",
        "x-custom": "c",
    }
    gone = {"HELICONE-AUTH": KEY, "helicone-user-id": "u", "Helicone-Nobody-Knows": "x", "Helicone-Property-": "y"}
    rig.ask(kept | gone)
    sent = {name.lower(): value for name, value in rig.last.headers}
    assert {name: sent[name] for name in kept} == kept
    assert not [name for name in sent if name.startswith("helicone")]


def test_unknown_helicone_header_is_said_to_have_no_effect(rig: Rig) -> None:
    response = rig.ask({"Helicone-Cash-Enabled": "true"})
    assert "Helicone-Cash-Enabled is not a header Helicone knows" in response.headers["heliproxy-warning"]


def test_body_is_forwarded_byte_for_byte(rig: Rig) -> None:
    body = b'{ "model":"gpt-4o-mini",\n "messages":[ {"role":"user","content":"\\u00e9 \xc3\xa9"}],"x":1.0e2 }'
    rig.http.post(CHAT, content=body, headers={"Helicone-User-Id": "u"})
    assert rig.last.body == body


def test_no_headers_of_ours_without_a_reason(rig: Rig) -> None:
    headers = rig.ask().headers
    assert {n for n in headers if "heli" in n} == {"helicone-id", "helicone-status"}


@pytest.mark.parametrize("status", [200, 201, 301, 400, 401, 404, 429, 500, 529])
def test_id_and_status_on_every_answer(rig: Rig, status: int) -> None:
    body = chat_answer() if status < 300 else {"error": {"message": "no"}}
    rig.script = [json_answer(body, status, x_upstream="kept")]
    response = rig.ask()
    assert (response.status_code, response.headers["helicone-status"]) == (status, "success")
    assert uuid.UUID(response.headers["helicone-id"]).version == 4
    assert response.headers["x-upstream"] == "kept"
    assert rig.row(response)["status"] == status


@pytest.mark.parametrize("status", [600, 700, 999])
@pytest.mark.parametrize("headers", [{}, {"Helicone-User-Id": "u"}, {"Helicone-Retry-Enabled": "true"}])
def test_status_that_http_does_not_know_becomes_a_500(rig: Rig, headers: dict[str, str], status: int) -> None:
    rig.script = [json_answer({"error": "odd"}, status)]
    response = rig.ask(headers)
    assert (response.status_code, response.json(), rig.calls) == (500, {"error": "odd"}, 1)
    assert response.headers["helicone-status"] == "success"
    assert rig.row(response)["status"] == status


# ---------------------------------------------------------------- 2.1 the table


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (ID, True),
        (ID.upper(), True),
        ("6ba7b810-9dad-11d1-80b4-00c04fd430c8", True),  # version 1
        ("6ba7b811-9dad-31d1-80b4-00c04fd430c8", True),  # version 3
        ("6ba7b812-9dad-51d1-80b4-00c04fd430c8", True),  # version 5
        ("01890a5d-ac96-774b-bcce-b302099a8057", False),  # version 7
        (NIL, False),
        ("0e1c1f9e-3a59-4a3a-7d7e-8f0f3a1b2c3d", False),  # variant
        ("ticket-1", False),
        ("", False),
    ],
)
def test_request_id_is_taken_or_replaced(rig: Rig, sent: str, kept: bool) -> None:
    given = str(uuid.uuid4()) if sent == ID else sent
    response = rig.ask({"Helicone-Request-Id": given})
    found = response.headers["helicone-id"]
    assert (found == given) is kept
    assert uuid.UUID(found)
    assert rig.row(response)["id"] == found


def test_user_id_comes_from_the_header_and_else_from_the_body(rig: Rig) -> None:
    assert rig.row(rig.ask({"Helicone-User-Id": "ada"}, user="alan"))["user_id"] == "ada"
    assert rig.row(rig.ask(user="alan"))["user_id"] == "alan"
    assert rig.row(rig.ask())["user_id"] is None


def test_properties_and_sessions(rig: Rig) -> None:
    headers = {
        "Helicone-Property-App": "tests",
        "helicone-property-ENV": "dev é".encode(),
        "Helicone-Property-": "dropped",
        "Helicone-Session-Id": "s",
        "Helicone-Session-Path": "/a/b",
        "Helicone-Session-Name": "Trip",
        "Helicone-Prompt-Id": "p",
        "Helicone-Posthog-Key": "k",
        "Helicone-Experiment-Id": "e",
        "x-stripe-customer-id": "cus_1",
    }
    response = rig.ask(headers)  # type: ignore[arg-type]
    assert rig.properties(response) == {
        "app": "tests",
        "env": "dev é",
        "Helicone-Session-Id": "s",
        "Helicone-Session-Path": "/a/b",
        "Helicone-Session-Name": "Trip",
        "Helicone-Prompt-Id": "p",
        "Helicone-Sent-To-Posthog": "true",
        "Helicone-Experiment-Id": "e",
        "stripe_customer_id": "cus_1",
    }
    row = rig.row(response)
    assert (row["session_id"], row["session_path"], row["session_name"], row["prompt_id"]) == ("s", "/a/b", "Trip", "p")
    assert "helicone-session-id" not in response.headers


def test_authorization_with_two_keys_is_split(rig: Rig) -> None:
    key = KEY.removeprefix("Bearer ")
    rig.ask({"authorization": f"Bearer sk-p, Bearer {key}"})
    assert rig.last.header("authorization") == "Bearer sk-p"


def test_helicone_key_in_two_places_is_a_500(rig: Rig) -> None:
    key = KEY.removeprefix("Bearer ")
    response = rig.ask({"authorization": f"Bearer sk-p, Bearer {key}", "Helicone-Auth": KEY})
    assert (response.status_code, rig.calls) == (500, 0)
    assert response.headers["helicone-error"] == "true"
    assert response.headers["content-type"] == "application/json;charset=UTF-8"
    assert "Cannot have both" in response.json()["helicone-message"]
    assert rig.row(response)["error"] == response.json()["helicone-message"]


@pytest.mark.parametrize("auth", [None, KEY, "Bearer nonsense", "nonsense", "Bearer pk-helicone-x"])
def test_any_helicone_key_or_none_is_proxied_and_logged(rig: Rig, auth: str | None) -> None:
    response = rig.ask({"Helicone-Auth": auth} if auth else {})
    assert response.status_code == 200
    assert rig.row(response)["status"] == 200


@pytest.mark.parametrize("prefix", ["sk-helicone-abc", "pk-helicone-abc"])
@pytest.mark.parametrize("base", ["https://oai.helicone.ai", ""])
def test_key_in_the_path_is_taken_out(rig: Rig, prefix: str, base: str) -> None:
    client = rig.run.client() if base else rig.http
    path = f"/{prefix}/v1/chat/completions?a=b" if base else f"/{prefix}/oai/v1/chat/completions?a=b"
    response = client.post(base + path, json=chat())
    assert rig.last.path == "/openai/v1/chat/completions?a=b"
    row = rig.row(response)
    assert row["path"] == "/v1/chat/completions?a=b"
    assert row["auth_fingerprint"]


def test_model_override_names_the_row_and_not_the_call(rig: Rig) -> None:
    response = rig.ask({"Helicone-Model-Override": "gpt-4o"})
    assert rig.last.json["model"] == "gpt-4o-mini"
    row = rig.row(response)
    assert (row["model"], row["request_model"], row["response_model"]) == (
        "gpt-4o",
        "gpt-4o-mini",
        "gpt-4o-mini-2024-07-18",
    )
    assert row["cost_usd"] == pytest.approx((1000 * 2.5 + 100 * 10) / 1e6)


@pytest.mark.parametrize(
    ("headers", "request_kept", "response_kept"),
    [
        ({}, True, True),
        ({"Helicone-Omit-Request": "true"}, False, True),
        ({"Helicone-Omit-Response": "true"}, True, False),
        ({"Helicone-Omit-Request": "true", "Helicone-Omit-Response": "true"}, False, False),
        ({"Helicone-Omit-Request": "TRUE", "Helicone-Omit-Response": "1"}, True, True),
    ],
)
def test_omitted_bodies(rig: Rig, headers: dict[str, str], request_kept: bool, response_kept: bool) -> None:
    response = rig.ask(headers, text="secret words")
    row = rig.row(response)
    bodies = rig.run.rows(f"SELECT * FROM bodies WHERE request_id = '{row['id']}'")
    assert (row["input_tokens"], row["output_tokens"]) == (1000, 100)
    assert row["cost_usd"] == pytest.approx(0.00021)
    # The previews are bodies too.
    assert ("secret words" in str(row["preview"])) is request_kept
    assert ("answer" in str(row["answer_preview"])) is response_kept
    if not request_kept and not response_kept:
        assert bodies == [] or not (bodies[0]["request"] or bodies[0]["response"])
        return
    with closing(sqlite3.connect(rig.run.home / "heliproxy.db")) as conn:
        stored = read_body(conn, row["id"])
    assert stored is not None
    request, answer = stored.request or b"", stored.response or b""
    assert (b"secret words" in request) is request_kept
    assert request_kept or json.loads(request) == {"model": "gpt-4o-mini"}
    assert (b"answer" in answer) is response_kept
    assert response_kept or json.loads(answer) == {"model": "gpt-4o-mini-2024-07-18"}


def test_legacy_prompt_tags_are_taken_out(rig: Rig) -> None:
    text = 'Hi <helicone-prompt-input key="name">Ada</helicone-prompt-input>!'
    rig.ask({"Helicone-Prompt-Id": "greeting"}, text=text)
    assert rig.last.json["messages"][0]["content"] == "Hi Ada!"
    rig.ask(text=text)
    assert rig.last.json["messages"][0]["content"] == text
    rig.ask({"Helicone-Prompt-Id": "greeting", "Helicone-Prompt-Mode": "deactivated"}, text=text)
    assert rig.last.json["messages"][0]["content"] == text


@pytest.mark.parametrize(
    ("text", "sent", "inputs"),
    [
        ('<helicone-prompt-input key="name">Ada</helicone-prompt-input>', "Ada", {"name": "Ada"}),
        ("<helicone-prompt-input key='a'>1</helicone-prompt-input>" * 2, "11", {"a": "1"}),
        ('<helicone-prompt-input key="empty"></helicone-prompt-input>!', "!", {"empty": ""}),
        ('<helicone-prompt-input key="gone" />x', "x", {"gone": ""}),
        ('<helicone-prompt-input key="lines">a\n"b" é</helicone-prompt-input>', 'a\n"b" é', {"lines": 'a\n"b" é'}),
        ("<helicone-prompt-static>fixed</helicone-prompt-static> words", "fixed words", {}),
        ('<helicone-prompt-input key="open">never closed', '<helicone-prompt-input key="open">never closed', {}),
        ("plain <b>tags</b>", "plain <b>tags</b>", {}),
    ],
)
def test_inputs_of_legacy_prompts_are_logged(rig: Rig, text: str, sent: str, inputs: dict[str, str]) -> None:
    response = rig.ask({"Helicone-Prompt-Id": "greeting"}, text=text)
    assert rig.last.json["messages"][0]["content"] == sent
    found = rig.properties(response)
    start = "Helicone-Prompt-Input-"
    assert {k.removeprefix(start): v for k, v in found.items() if k.startswith(start)} == inputs
    assert found["Helicone-Prompt-Id"] == "greeting"


@pytest.mark.parametrize(("mode", "status"), [("production", 200), ("testing", 200), ("deactivated", 200), ("x", 500)])
def test_prompt_modes(rig: Rig, mode: str, status: int) -> None:
    response = rig.ask({"Helicone-Prompt-Mode": mode})
    assert response.status_code == status
    if status == 500:
        assert "Invalid prompt mode" in response.json()["helicone-message"]


@pytest.mark.parametrize("value", ["true", "false", "yes"])
def test_headers_that_only_note_something_change_nothing(rig: Rig, value: str) -> None:
    names = ("Webhook-Enabled", "Increase-Timeout", "Node-Id", "Lytix-Key", "Manual-Access-Key", "Prompt-Version")
    assert rig.ask({f"Helicone-{name}": value for name in names}).status_code == 200


def test_an_upstream_may_think_for_half_an_hour(rig: Rig) -> None:
    assert rig.run.proxy.proxy is not None
    master = rig.run.proxy.proxy.master
    assert master is not None
    assert master.options.tcp_timeout == 1860


# ---------------------------------------------------------------- streams


def test_stream_usage_is_asked_for_and_hidden_again(rig: Rig) -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    rig.script = [sse_answer(chat_chunks(["Hi"], usage=usage))]
    response = rig.ask({"Helicone-Stream-Usage": "true"}, stream=True)
    assert rig.last.json["stream_options"] == {"include_usage": True}
    assert response.content == b"".join(chat_chunks(["Hi"]))
    row = rig.row(response)
    assert (row["input_tokens"], row["output_tokens"], row["usage_source"]) == (7, 3, "provider")


def test_usage_is_hidden_in_a_stream_of_known_length(rig: Rig) -> None:
    whole = b"".join(chat_chunks(["Hi"], usage={"prompt_tokens": 7, "completion_tokens": 3}))
    rig.script = [Answer(200, whole, [("content-type", "text/event-stream")])]
    response = rig.ask({"Helicone-Stream-Usage": "true"}, stream=True)
    assert response.content == b"".join(chat_chunks(["Hi"]))


def test_usage_the_client_asked_for_stays(rig: Rig) -> None:
    events = chat_chunks(["Hi"], usage={"prompt_tokens": 7, "completion_tokens": 3})
    rig.script = [sse_answer(events)]
    body = {"stream": True, "stream_options": {"include_usage": True}}
    response = rig.ask({"Helicone-Stream-Usage": "true"}, **body)
    assert response.content == b"".join(events)


def test_hidden_usage_stays_hidden_in_a_hit(rig: Rig) -> None:
    rig.script = [sse_answer(chat_chunks(["Hi"], usage={"prompt_tokens": 7, "completion_tokens": 3}))]
    headers = {"Helicone-Stream-Usage": "true", "Helicone-Cache-Enabled": "true"}
    text = str(uuid.uuid4())
    first, second = (rig.ask(headers, text=text, stream=True) for _ in range(2))
    assert second.headers["helicone-cache"] == "HIT"
    assert second.content == first.content == b"".join(chat_chunks(["Hi"]))


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Helicone-Stream-Usage": "TRUE"}, {"stream": True}),
        ({"Helicone-Stream-Usage": "true"}, {}),
        ({}, {"stream": True}),
        (
            {
                "Helicone-Stream-Usage": "true",
                "authorization": "AWS4-HMAC-SHA256 Credential=a, SignedHeaders=host, Signature=b",
            },
            {"stream": True},
        ),
    ],
)
def test_stream_usage_is_not_asked_for_unless_it_should(
    rig: Rig, headers: dict[str, str], body: dict[str, Any]
) -> None:
    rig.ask(headers, **body)
    assert "stream_options" not in rig.last.json


@pytest.mark.parametrize("options", [{"include_usage": False}, {"other": 1}, {}, None])
def test_other_stream_options_are_kept(rig: Rig, options: dict[str, Any] | None) -> None:
    rig.script = [sse_answer(chat_chunks(["Hi"], usage={"prompt_tokens": 7, "completion_tokens": 3}))]
    response = rig.ask({"Helicone-Stream-Usage": "true"}, stream=True, stream_options=options)
    assert rig.last.json["stream_options"] == (options or {}) | {"include_usage": True}
    assert response.content == b"".join(chat_chunks(["Hi"]))


@pytest.mark.parametrize(
    "path", ["/oai/v1/responses", "/oai/v1/completions", "/oai/v1/embeddings", "/anthropic/v1/messages"]
)
def test_usage_is_asked_for_in_chats_alone(rig: Rig, path: str) -> None:
    rig.ask({"Helicone-Stream-Usage": "true"}, path=path, stream=True)
    assert "stream_options" not in rig.last.json


def test_usage_is_asked_for_at_the_providers_own_host_too(rig: Rig) -> None:
    rig.script = [sse_answer(chat_chunks(["Hi"], usage={"prompt_tokens": 7, "completion_tokens": 3}))]
    response = rig.run.client().post(
        "https://api.openai.com/v1/chat/completions", json=chat(stream=True), headers={"Helicone-Stream-Usage": "true"}
    )
    assert response.content == b"".join(chat_chunks(["Hi"]))
    assert rig.row(response)["input_tokens"] == 7


def test_forced_format_joins_short_chunks_and_loses_none(rig: Rig) -> None:
    pieces = [b"data: {}\n\n", b"data: 1\n\n", b"data: " + b"x" * 60 + b"\n\n", b"data: 2\n\n", b"data: [DONE]\n\n"]
    rig.script = [sse_answer(pieces)]
    body = chat(stream=True)
    headers = {"Helicone-Stream-Force-Format": "true"}
    with rig.http.stream("POST", CHAT, json=body, headers=headers) as response:
        got = list(response.iter_raw())
    assert b"".join(got) == b"".join(pieces)


# ---------------------------------------------------------------- mock


def test_mock_is_answered_without_a_call_and_logged(rig: Rig) -> None:
    mock = {"id": "1", "model": "mock-model", "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}
    response = rig.ask({"__helicone-mock-response": json.dumps(mock)})
    assert (response.status_code, response.json(), rig.calls) == (200, mock, 0)
    assert response.headers["content-type"] == "application/json"
    assert response.headers["helicone-id"]
    row = rig.row(response)
    assert (row["input_tokens"], row["attempts"], row["cost_usd"], row["cost_source"]) == (5, 0, 0.0, "mock")


def test_mock_goes_through_cache_and_limit(rig: Rig) -> None:
    me = {"Helicone-User-Id": str(uuid.uuid4()), "Helicone-RateLimit-Policy": "1;w=600;s=user"}
    headers = me | {"__helicone-mock-response": '{"a":1}', "Helicone-Cache-Enabled": "true"}
    text = str(uuid.uuid4())
    assert rig.ask(headers, text=text).headers["helicone-cache"] == "MISS"
    assert rig.ask(headers, text=text).headers["helicone-cache"] == "HIT"
    assert rig.ask(headers).status_code == 429
    assert rig.calls == 0


def test_mock_that_is_no_json_is_a_400(rig: Rig) -> None:
    response = rig.ask({"__helicone-mock-response": "{"})
    assert (response.status_code, rig.calls) == (400, 0)
    assert response.json()["error"] == "Invalid mock response format"
    assert sorted(response.json()) == ["details", "error", "message"]


# ---------------------------------------------------------------- what Helicone's hosts answer themselves


@pytest.mark.parametrize("base", ["https://oai.helicone.ai", "https://anthropic.helicone.ai", "/oai", "/anthropic", ""])
def test_healthcheck(rig: Rig, base: str) -> None:
    client = rig.run.client() if base.startswith("https") else rig.http
    response = client.get(f"{base}/healthcheck")
    assert (response.status_code, response.content, rig.calls) == (200, b"", 0)
    assert response.headers["content-type"].startswith("application/json")


@pytest.mark.parametrize("base", ["https://oai.helicone.ai", "/oai"])
def test_helicone_test_shows_properties(rig: Rig, base: str) -> None:
    client = rig.run.client() if base.startswith("https") else rig.http
    response = client.get(f"{base}/helicone/test", headers={"Helicone-Property-App": "a", "Helicone-Session-Id": "s"})
    assert response.json() == {"test": "Hello World!", "properties": {"app": "a", "Helicone-Session-Id": "s"}}


@pytest.mark.parametrize(
    ("host", "location"),
    [
        ("together", "https://together.xyz"),
        ("openrouter", "https://openrouter.ai"),
        ("deepinfra", "https://deepinfra.com"),
        ("groq", "https://groq.com"),
        ("perplexity", "https://api.perplexity.ai"),
        ("fireworks", "https://fireworks.ai"),
        ("predibase", "https://app.predibase.com"),
        ("firecrawl", "https://firecrawl.dev"),
    ],
)
def test_home_pages(rig: Rig, host: str, location: str) -> None:
    response = rig.run.client().get(f"https://{host}.helicone.ai/")
    assert (response.status_code, response.headers["location"]) == (301, location)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://nobody.helicone.ai/v1/chat/completions", "Could not determine worker type"),
        ("https://llmmapper.helicone.ai/v1/x", "Unknown path"),
        ("https://qstash.helicone.ai/v2/x", "Unknown path"),
    ],
)
def test_hosts_and_paths_that_stand_for_nothing_are_a_500(rig: Rig, url: str, words: str) -> None:
    response = rig.run.client().post(url, json=chat())
    assert response.status_code == 500
    assert response.headers["helicone-error"] == "true"
    assert words in response.json()["helicone-message"]


@pytest.mark.parametrize(
    ("base", "path"),
    [
        ("https://oai.helicone.ai", "/openai/v1/chat/completions"),
        ("https://oai.hconeai.com", "/openai/v1/chat/completions"),
        ("https://anthropic.helicone.ai", "/anthropic/v1/chat/completions"),
        ("https://groq.helicone.ai", "/groq/v1/chat/completions"),
        ("https://together.helicone.ai", "/together/v1/chat/completions"),
        ("/openai", "/openai/v1/chat/completions"),
        ("", "/openai/v1/chat/completions"),
    ],
)
def test_hosts_lead_to_their_provider(rig: Rig, base: str, path: str) -> None:
    client = rig.run.client() if base else rig.http
    url = f"{base}/v1/chat/completions"
    client = client if base.startswith("https") else rig.http
    assert client.post(url, json=chat()).status_code == 200
    assert rig.last.path == path


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_files_pass_raw_and_are_not_logged(rig: Rig, method: str) -> None:
    before = len(rig.run.rows())
    rig.script = [json_answer({"id": "file-1"})]
    headers = {"Helicone-Cache-Enabled": "true", "content-type": "multipart/form-data; boundary=x"}
    response = rig.http.request(method, "/oai/v1/files/file-1?a=b", content=b"--x\r\n\0\xff--", headers=headers)
    assert response.json() == {"id": "file-1"}
    assert (rig.last.path, rig.last.body) == ("/openai/v1/files/file-1?a=b", b"--x\r\n\0\xff--")
    assert not [name for name in response.headers if name.startswith("helicone")]
    assert len(rig.run.rows()) == before


def test_audio_uploads_pass_byte_for_byte(rig: Rig) -> None:
    body = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\n\0\xff\xfe\r\n--x--\r\n'
    rig.script = [json_answer({"text": "hi"})]
    headers = {"content-type": "multipart/form-data; boundary=x"}
    response = rig.http.post("/oai/v1/audio/transcriptions", content=body, headers=headers)
    assert (response.json(), rig.last.body) == ({"text": "hi"}, body)


def test_speech_comes_back_byte_for_byte(rig: Rig) -> None:
    sound = bytes(range(256)) * 2000
    rig.script = [Answer(200, sound, [("content-type", "audio/mpeg")])]
    response = rig.http.post("/oai/v1/audio/speech", json={"model": "tts-1", "input": "hi", "voice": "x"})
    assert response.content == sound


@pytest.mark.parametrize("path", ["/nobody/v1/chat/completions", "/chat/completions", "/v2/x"])
def test_base_url_that_leads_nowhere_says_what_to_use(rig: Rig, path: str) -> None:
    response = rig.ask(path=path)
    assert (response.status_code, rig.calls) == (404, 0)
    assert response.headers["content-type"].startswith("application/json")
    message = response.json()["error"]["message"]
    assert path in message
    assert "/oai/v1" in message


# ---------------------------------------------------------------- budgets


def test_blocking_budget_answers_429_with_its_name(rig: Rig) -> None:
    gates = rig.run.proxy.addon.services.gates  # type: ignore[union-attr]
    me = {"Helicone-User-Id": str(uuid.uuid4())}
    gates.budgets.set(make_budget(0.0003, "day", by="user", action="block"), datetime.now().astimezone())
    try:
        assert rig.ask(me).status_code == 200
        rig.run.proxy.flush()
        assert rig.ask(me).status_code == 200  # 0.00021 of 0.0003 are spent
        rig.run.proxy.flush()
        blocked = rig.ask(me)
        assert rig.ask({"Helicone-User-Id": str(uuid.uuid4())}).status_code == 200
    finally:
        gates.budgets.remove("day:user")
    assert blocked.status_code == 429
    body = blocked.json()["error"]
    assert (body["type"], body["budget"]["name"]) == ("budget_exceeded", "day:user")
    assert body["budget"]["spent_usd"] == pytest.approx(0.00042)
    assert blocked.headers["x-helicone-error"] == "budget_exceeded"
    assert rig.calls == 3
    assert rig.row(blocked)["status"] == 429
    assert rig.ask(me).status_code == 200


def test_warning_budget_lets_pass_and_says_so(rig: Rig) -> None:
    gates = rig.run.proxy.addon.services.gates  # type: ignore[union-attr]
    gates.budgets.set(make_budget(0, "week", action="warn"), datetime.now().astimezone())
    try:
        response = rig.ask()
    finally:
        gates.budgets.remove("week")
    assert response.status_code == 200
    assert "budget of 0 USD per week" in response.headers["heliproxy-warning"]


def test_hits_are_free_of_budgets(rig: Rig) -> None:
    gates = rig.run.proxy.addon.services.gates  # type: ignore[union-attr]
    text, headers = str(uuid.uuid4()), {"Helicone-Cache-Enabled": "true"}
    rig.ask(headers, text=text)
    gates.budgets.set(make_budget(0, "month", action="block"), datetime.now().astimezone())
    try:
        assert rig.ask(headers, text=text).headers["helicone-cache"] == "HIT"
        assert rig.ask(headers).status_code == 429
    finally:
        gates.budgets.remove("month")


# ---------------------------------------------------------------- feedback by the proxy's hosts


@pytest.mark.parametrize("url", ["/oai/v1/feedback", "/v1/feedback", "https://oai.helicone.ai/v1/feedback"])
def test_feedback_is_taken_at_every_door(rig: Rig, url: str) -> None:
    asked = rig.ask().headers["helicone-id"]
    client = rig.run.client() if url.startswith("https") else rig.http
    response = client.post(url, json={"helicone-id": asked, "rating": True}, headers={"Helicone-Auth": KEY})
    assert (response.status_code, response.json()["helicone_id"]) == (200, asked)
    assert response.json()["message"] == "Feedback added successfully."
    (stored,) = rig.run.rows(f"SELECT value FROM scores WHERE request_id = '{asked}'")
    assert stored["value"] == 1


def test_list_of_models_of_the_ai_gateway(rig: Rig) -> None:
    response = rig.http.get("/ai-gateway/v1/models")
    assert (response.status_code, response.json()["object"], rig.calls) == (200, "list", 0)


# ---------------------------------------------------------------- proxies of their own, which end the shared one's use


@pytest.mark.parametrize(
    ("by", "mine", "others"),
    [
        (None, {}, None),
        ("model", {"body": "gpt-4o-mini"}, {"body": "gpt-4o"}),
        ("session", {"Helicone-Session-Id": "a"}, {"Helicone-Session-Id": "b"}),
        ("property:team", {"Helicone-Property-Team": "a"}, {"Helicone-Property-Team": "b"}),
        ("property:team", {"Helicone-Property-Team": "a"}, {}),  # without the property it is nobody's
    ],
)
@pytest.mark.parametrize("per", ["day", "week", "month"])
def test_budgets_by_what_they_count(
    tmp_path: Path, per: str, by: str | None, mine: dict[str, str], others: dict[str, str] | None
) -> None:
    def ask(rig: Rig, who: dict[str, str]) -> int:
        model = {"model": who["body"]} if "body" in who else {}
        return rig.ask({k: v for k, v in who.items() if k != "body"}, **model).status_code

    home = tmp_path / "home"
    with rigged(home) as rig:
        gates = rig.run.proxy.addon.services.gates  # type: ignore[union-attr]
        gates.budgets.set(make_budget(0.0001, per, by=by, action="block"), datetime.now().astimezone())
        assert ask(rig, mine) == 200
        rig.run.proxy.flush()
        assert ask(rig, mine) == 429
        assert others is None or ask(rig, others) == 200
    with rigged(home) as rig:  # what was spent is remembered
        assert ask(rig, mine) == 429
        assert rig.calls == 0
