"""The cache through a running proxy (helicone-proxy.md sections 0, 2.1, 3.1 and 4)."""

from __future__ import annotations

import gzip
import json
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes import Answer, Asked, Upstream, chat_answer, chat_chunks, json_answer, sse_answer
from heliproxy import gates
from rig import CHAT, KEY, Rig, chat, error, rigged, rigged_on, text_of

ON = {"Helicone-Cache-Enabled": "true"}
SAVE = {"Helicone-Cache-Save": "true"}
READ = {"Helicone-Cache-Read": "true"}


@pytest.fixture(scope="module")
def shared_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rigged(tmp_path_factory.mktemp("cache") / "home") as rig:
        yield rig


@pytest.fixture
def rig(shared_rig: Rig) -> Rig:
    shared_rig.reset()
    return shared_rig


@pytest.fixture
def text() -> str:
    """What is said in this test and in no other."""
    return f"say {uuid.uuid4()}"


def kinds(rig: Rig, times: int, headers: dict[str, str], **body: Any) -> list[str | None]:
    return [rig.ask(headers, **body).headers.get("helicone-cache") for _ in range(times)]


def test_second_call_in_succession_is_a_hit(rig: Rig, text: str) -> None:
    first = rig.ask(ON, text=text)
    second = rig.ask(ON, text=text)
    assert (first.headers["helicone-cache"], second.headers["helicone-cache"]) == ("MISS", "HIT")
    assert rig.calls == 1
    assert second.content == first.content
    assert second.headers["content-type"] == first.headers["content-type"]
    assert second.headers["helicone-cache-bucket-idx"] == "0"
    assert second.headers["helicone-cache-latency"].isdecimal()
    assert "helicone-cache-bucket-idx" not in first.headers
    assert "helicone-cache-latency" not in first.headers
    assert (first.headers["helicone-status"], second.headers["helicone-status"]) == ("success", "success")
    assert first.headers["helicone-id"] != second.headers["helicone-id"]


def test_row_of_a_hit_costs_nothing_and_says_what_was_saved(rig: Rig, text: str) -> None:
    first, second = rig.ask(ON, text=text), rig.ask(ON, text=text)
    missed, hit = rig.row(first), rig.row(second)
    assert (missed["cache"], missed["cache_reference_id"]) == ("MISS", None)
    assert missed["cost_usd"] == pytest.approx(0.00021)  # 1000 in at $0.15, 100 out at $0.60 a million
    assert (hit["cache"], hit["status"], hit["cache_reference_id"]) == ("HIT", 200, missed["id"])
    assert (hit["cost_usd"], hit["input_tokens"], hit["output_tokens"]) == (0.0, 0, 0)
    assert hit["saved_usd"] == pytest.approx(0.00021)
    assert (hit["model"], hit["request_model"]) == (missed["model"], "gpt-4o-mini")
    assert hit["attempts"] == 0
    (body,) = rig.run.rows(f"SELECT * FROM bodies WHERE request_id = '{hit['id']}'")
    assert not body["response"]
    assert rig.properties(second)["Helicone-Cache-Enabled"] == "true"


@pytest.mark.parametrize(
    ("headers", "cached"),
    [
        ({"Helicone-Cache-Enabled": "true"}, True),
        ({"Helicone-Cache-Enabled": "TRUE"}, True),
        ({"helicone-cache-enabled": "True"}, True),
        ({"Helicone-Cache-Enabled": "false"}, False),
        ({"Helicone-Cache-Enabled": "1"}, False),
        ({"Helicone-Cache-Enabled": ""}, False),
        ({}, False),
    ],
)
def test_cache_is_on_only_for_true_in_any_case(rig: Rig, text: str, headers: dict[str, str], cached: bool) -> None:
    assert kinds(rig, 2, headers, text=text) == (["MISS", "HIT"] if cached else [None, None])
    assert rig.calls == (1 if cached else 2)


def test_save_only_fills_and_never_reads(rig: Rig, text: str) -> None:
    assert kinds(rig, 2, SAVE, text=text) == [None, None]
    assert rig.calls == 2


def test_read_only_never_fills(rig: Rig, text: str) -> None:
    assert kinds(rig, 2, READ, text=text) == ["MISS", "MISS"]
    assert rig.calls == 2


def test_save_only_read_only_and_enabled_share_entries(rig: Rig, text: str) -> None:
    rig.ask(SAVE, text=text)
    assert kinds(rig, 1, READ, text=text) == ["HIT"]
    assert kinds(rig, 1, ON, text=text) == ["HIT"]
    assert kinds(rig, 1, SAVE | READ, text=text) == ["HIT"]
    assert rig.calls == 1


def test_bucket_of_three_misses_three_times_then_serves_all_of_them(rig: Rig, text: str) -> None:
    bucket = ON | {"Helicone-Cache-Bucket-Max-Size": "3"}
    filled = [rig.ask(bucket, text=text) for _ in range(3)]
    assert [r.headers["helicone-cache"] for r in filled] == ["MISS"] * 3
    served = [rig.ask(bucket, text=text) for _ in range(40)]
    assert {r.headers["helicone-cache"] for r in served} == {"HIT"}
    assert rig.calls == 3
    # Uniform: 40 picks among three leave one of them out once in ten million runs.
    assert {(r.headers["helicone-cache-bucket-idx"], text_of(r)) for r in served} == {
        ("0", "answer 1"),
        ("1", "answer 2"),
        ("2", "answer 3"),
    }


@pytest.mark.parametrize("size", ["21", "100", "1000000000"])
@pytest.mark.parametrize("headers", [ON, {}])
def test_bucket_over_twenty_is_a_500_even_with_the_cache_off(rig: Rig, headers: dict[str, str], size: str) -> None:
    response = rig.ask(headers | {"Helicone-Cache-Bucket-Max-Size": size})
    assert response.status_code == 500
    assert response.text == "Cache bucket size cannot be greater than 20"
    assert response.headers["content-type"].startswith("text/plain")
    assert rig.calls == 0
    assert rig.row(response)["status"] == 500


@pytest.mark.parametrize("size", ["20", "3.9", "1e9", "1"])
def test_bucket_sizes_are_read_as_javascript_does(rig: Rig, text: str, size: str) -> None:
    full = {"20": 20, "3.9": 3, "1e9": 1, "1": 1}[size]
    bucket = ON | {"Helicone-Cache-Bucket-Max-Size": size}
    assert kinds(rig, full + 1, bucket, text=text) == ["MISS"] * full + ["HIT"]
    assert rig.calls == full


@pytest.mark.parametrize("size", ["0", "-1", "abc"])
def test_bucket_that_is_no_positive_number_never_caches_and_says_so(rig: Rig, text: str, size: str) -> None:
    bucket = ON | {"Helicone-Cache-Bucket-Max-Size": size}
    responses = [rig.ask(bucket, text=text) for _ in range(2)]
    assert [r.status_code for r in responses] == [200, 200]
    assert "HIT" not in [r.headers.get("helicone-cache") for r in responses]
    assert rig.calls == 2
    assert "Helicone-Cache-Bucket-Max-Size" in responses[0].headers["heliproxy-warning"]


def test_another_bucket_size_is_another_entry(rig: Rig, text: str) -> None:
    rig.ask(ON, text=text)
    assert kinds(rig, 1, ON | {"Helicone-Cache-Bucket-Max-Size": "2"}, text=text) == ["MISS"]


def test_seed_separates_entries(rig: Rig, text: str) -> None:
    one, two = ON | {"Helicone-Cache-Seed": "1"}, ON | {"Helicone-Cache-Seed": "2"}
    assert kinds(rig, 2, one, text=text) == ["MISS", "HIT"]
    assert kinds(rig, 2, two, text=text) == ["MISS", "HIT"]
    assert kinds(rig, 1, ON, text=text) == ["MISS"]


@pytest.mark.parametrize(("seed", "logged"), [("42abc", "42"), ("7", "7"), ("user-123", None)])
def test_seed_is_logged_as_the_number_it_starts_with(rig: Rig, seed: str, logged: str | None) -> None:
    response = rig.ask(ON | {"Helicone-Cache-Seed": seed})
    assert rig.properties(response).get("Helicone-Cache-Seed") == logged


def test_bucket_and_cache_control_are_logged(rig: Rig) -> None:
    headers = ON | {"Helicone-Cache-Bucket-Max-Size": "3", "Helicone-Cache-Control": "max-age=5"}
    found = rig.properties(rig.ask(headers))
    assert (found["Helicone-Cache-Bucket-Max-Size"], found["Helicone-Cache-Control"]) == ("3", "max-age=5")


@pytest.mark.parametrize("names", ["request_id,timestamp", '"request_id","timestamp"', '["request_id", "timestamp"]'])
def test_ignored_keys_play_no_part(rig: Rig, text: str, names: str) -> None:
    headers = ON | {"Helicone-Cache-Ignore-Keys": names}
    assert kinds(rig, 1, headers, text=text, request_id="a", timestamp=1) == ["MISS"]
    assert kinds(rig, 1, headers, text=text, request_id="b", timestamp=2) == ["HIT"]
    assert kinds(rig, 1, headers, text=text, request_id="b", other=2) == ["MISS"]
    assert rig.last.json["request_id"] == "b"


def test_only_top_level_keys_are_ignored(rig: Rig, text: str) -> None:
    headers = ON | {"Helicone-Cache-Ignore-Keys": "id"}
    assert kinds(rig, 1, headers, text=text, metadata={"id": 1}) == ["MISS"]
    assert kinds(rig, 1, headers, text=text, metadata={"id": 2}) == ["MISS"]


def test_white_space_plays_no_part_and_key_order_does(rig: Rig, text: str) -> None:
    body = chat(text=text)
    variants = [
        json.dumps(body).encode(),
        json.dumps(body, indent=4).encode(),
        json.dumps(dict(reversed(body.items()))).encode(),
    ]
    found = [
        rig.http.post(CHAT, content=v, headers=ON | {"content-type": "application/json"}).headers["helicone-cache"]
        for v in variants
    ]
    assert found == ["MISS", "HIT", "MISS"]
    assert rig.up.asked[0].body == variants[0]


def test_body_that_is_no_json_is_cached_as_it_is(rig: Rig, text: str) -> None:
    found = [
        rig.http.post(CHAT, content=body, headers=ON).headers["helicone-cache"]
        for body in (f"not json {text}", f"not json {text}", f"not  json {text}")
    ]
    assert found == ["MISS", "HIT", "MISS"]


@pytest.mark.parametrize(
    "changed",
    [
        {"authorization": "Bearer sk-other"},
        {"x-api-key": "k"},
        {"api-key": "k"},
        {"x-goog-api-key": "k"},
        {"Helicone-Auth": KEY},
        {"openai-organization": "org"},
        {"openai-project": "p"},
        {"anthropic-version": "2023-06-01"},
        {"anthropic-beta": "b"},
        {"accept": "text/plain"},
        {"chatgpt-account-id": "a"},
        {"x-portkey-config": "c"},
        {"my_api_key": "k"},
    ],
)
def test_credentials_and_headers_with_meaning_separate_entries(rig: Rig, text: str, changed: dict[str, str]) -> None:
    rig.ask(ON, text=text)
    assert kinds(rig, 2, ON | changed, text=text) == ["MISS", "HIT"]


def test_user_session_properties_and_cache_control_do_not_separate_entries(rig: Rig, text: str) -> None:
    rig.ask(ON, text=text)
    others = {
        "Helicone-User-Id": "u",
        "Helicone-Property-A": "b",
        "Helicone-Session-Id": "s",
        "cache-control": "max-age=90",
    }
    assert kinds(rig, 1, ON | others, text=text) == ["HIT"]


def test_path_and_query_separate_entries(rig: Rig, text: str) -> None:
    paths = (CHAT, CHAT + "?a=1", CHAT + "?a=2", "/groq/openai/v1/chat/completions")
    assert [kinds(rig, 1, ON, path=path, text=text) for path in paths] == [["MISS"]] * 4
    assert kinds(rig, 1, ON, path=paths[1], text=text) == ["HIT"]


def test_key_in_the_path_plays_the_part_of_the_header(rig: Rig, text: str) -> None:
    key = KEY.removeprefix("Bearer ")
    assert kinds(rig, 1, ON | {"Helicone-Auth": KEY}, text=text) == ["MISS"]
    url = f"https://oai.helicone.ai/{key}/v1/chat/completions"
    with rig.run.client() as client:
        body = client.post(url, json=chat(text=text), headers=ON | {"authorization": "Bearer sk-provider"})
    assert body.headers["helicone-cache"] == "HIT"


@pytest.mark.parametrize(
    ("control", "age", "kept"),
    [
        ("max-age=30", 29, True),  # under Helicone's own floor of 60 s
        ("max-age=30", 31, False),
        ("max-age=3600", 3599, True),
        ("max-age=3600", 3601, False),
        ("s-maxage=100, max-age=3600", 101, False),
        ("public, max-age=100", 101, False),
        ("no-store", 604_799, True),
        ("no-cache", 604_801, False),
        ("MAX-AGE=60", 604_799, True),
        ("max-age=-5", 604_799, True),
        ("max-age=99999999999", 31_535_999, True),
        ("max-age=99999999999", 31_536_001, False),
        ("", 604_799, True),
        ("", 604_801, False),
    ],
)
def test_entries_live_as_long_as_cache_control_says(
    rig: Rig, text: str, monkeypatch: pytest.MonkeyPatch, control: str, age: int, kept: bool
) -> None:
    headers = ON | ({"cache-control": control} if control else {})
    rig.ask(headers, text=text)
    assert rig.last.header("cache-control") == (control or None)
    running = rig.run.proxy.addon.services.gates  # type: ignore[union-attr]
    assert kinds(rig, 1, headers, text=text) == ["HIT"]
    clock = running.clock
    monkeypatch.setattr(running, "clock", lambda: clock() + age)
    assert kinds(rig, 1, headers, text=text) == ["HIT" if kept else "MISS"]


def test_max_age_zero_is_never_stored(rig: Rig, text: str) -> None:
    assert kinds(rig, 2, ON | {"cache-control": "max-age=0"}, text=text) == ["MISS", "MISS"]


@pytest.mark.parametrize("status", [201, 202, 301, 400, 401, 404, 429, 500, 503])
def test_only_a_200_is_stored(rig: Rig, text: str, status: int) -> None:
    rig.script = [error(status), error(status)]
    assert kinds(rig, 2, ON, text=text) == ["MISS", "MISS"]
    assert rig.calls == 2


def test_stream_is_replayed_with_the_same_bytes(rig: Rig, text: str) -> None:
    first, second = (rig.ask(ON, text=text, stream=True) for _ in range(2))
    assert (first.headers["helicone-cache"], second.headers["helicone-cache"]) == ("MISS", "HIT")
    assert second.content == first.content == b"".join(chat_chunks(["answer 1", "!"]))
    assert second.headers["content-type"] == "text/event-stream"
    assert rig.calls == 1
    row = rig.row(second)
    assert (row["stream"], row["cost_usd"], row["cache"]) == (1, 0.0, "HIT")


def test_stream_and_plain_answer_are_two_entries(rig: Rig, text: str) -> None:
    rig.ask(ON, text=text)
    assert kinds(rig, 1, ON, text=text, stream=True) == ["MISS"]


def test_compressed_stream_is_replayed_compressed(rig: Rig, text: str) -> None:
    packed = gzip.compress(b"".join(chat_chunks(["Hi"])))
    rig.script = [sse_answer([packed[:30], packed[30:]], content_encoding="gzip")]
    first, second = (rig.ask(ON, text=text, stream=True) for _ in range(2))
    assert second.headers["helicone-cache"] == "HIT"
    assert second.headers["content-encoding"] == "gzip"
    assert second.content == first.content == gzip.decompress(packed)


def test_stream_that_breaks_off_is_not_stored(rig: Rig, text: str) -> None:
    rig.script = [sse_answer([*chat_chunks(["Hi"])[:2], "cut"])]
    with pytest.raises(Exception, match=r"peer closed|incomplete"):
        rig.ask(ON, text=text, stream=True)
    assert kinds(rig, 1, ON, text=text, stream=True) == ["MISS"]


def test_stream_without_its_last_event_is_not_stored(rig: Rig, text: str) -> None:
    rig.script = [sse_answer(chat_chunks(["Hi"])[:2])]
    rig.ask(ON, text=text, stream=True)
    assert kinds(rig, 1, ON, text=text, stream=True) == ["MISS"]


def test_stream_with_an_error_inside_is_not_stored(rig: Rig, text: str) -> None:
    rig.script = [sse_answer([*chat_chunks(["Hi"])[:2], b'data: {"error":{"message":"x","type":"server_error"}}\n\n'])]
    rig.ask(ON, text=text, stream=True)
    assert kinds(rig, 1, ON, text=text, stream=True) == ["MISS"]


def test_client_that_leaves_after_the_last_event_keeps_the_answer_cached(rig: Rig, text: str) -> None:
    gate = threading.Event()
    rig.script = [sse_answer([*chat_chunks(["Hi"]), gate])]
    with rig.http.stream("POST", CHAT, json=chat(text=text, stream=True), headers=ON) as response:
        got = b""
        for data in response.iter_raw():
            got += data
            if b"[DONE]\n\n" in got:
                break
    again = rig.http.post(CHAT, json=chat(text=text, stream=True), headers=ON)
    gate.set()
    assert again.headers["helicone-cache"] == "HIT"
    assert again.content == got


def test_client_that_leaves_in_the_middle_stores_nothing(rig: Rig, text: str) -> None:
    gate = threading.Event()
    events = chat_chunks(["Hi"])
    rig.script = [sse_answer([*events[:2], gate, *events[2:]])]
    with rig.http.stream("POST", CHAT, json=chat(text=text, stream=True), headers=ON) as response:
        next(response.iter_raw())
    gate.set()
    assert kinds(rig, 1, ON, text=text, stream=True) == ["MISS"]


def test_cookies_are_never_replayed(rig: Rig, text: str) -> None:
    rig.script = [json_answer(chat_answer("x"), set_cookie="session=secret", x_request_id="r1")]
    first, second = (rig.ask(ON, text=text) for _ in range(2))
    assert first.headers["set-cookie"] == "session=secret"
    assert second.headers["helicone-cache"] == "HIT"
    assert "set-cookie" not in second.headers
    # The client sent the cookie back, as the SDKs do; beside a key it is nobody's credential.
    assert "cookie" in second.request.headers
    assert second.headers["x-request-id"] == "r1"


def test_get_without_a_body_can_be_cached_and_makes_no_row(rig: Rig) -> None:
    headers = ON | {"authorization": f"Bearer {uuid.uuid4()}"}
    found = [rig.http.get("/oai/v1/models", headers=headers) for _ in range(2)]
    assert [r.headers["helicone-cache"] for r in found] == ["MISS", "HIT"]
    assert rig.calls == 1
    assert rig.rows(found[0].headers["helicone-id"]) == []


def test_answers_we_make_ourselves_are_not_stored(rig: Rig, text: str) -> None:
    tight = ON | {"Helicone-RateLimit-Policy": "1;w=60;s=user", "Helicone-User-Id": str(uuid.uuid4())}
    assert rig.ask(tight).status_code == 200
    for _ in range(2):
        denied = rig.ask(tight, text=text)
        assert (denied.status_code, denied.headers["helicone-cache"]) == (429, "MISS")


def test_hit_comes_before_the_rate_limit_and_costs_no_token(rig: Rig, text: str) -> None:
    user = {"Helicone-User-Id": str(uuid.uuid4())}
    policy = user | {"Helicone-RateLimit-Policy": "1;w=60;s=user"}
    assert rig.ask(ON | policy, text=text).headers["helicone-ratelimit-remaining"] == "0"
    for _ in range(3):
        hit = rig.ask(ON | policy, text=text)
        assert (hit.status_code, hit.headers["helicone-cache"]) == (200, "HIT")
        assert not [name for name in hit.headers if name.startswith("helicone-ratelimit")]
    assert rig.ask(policy).status_code == 429
    assert rig.calls == 1


def test_rate_limit_headers_are_not_replayed(rig: Rig, text: str) -> None:
    rig.ask(ON | {"Helicone-RateLimit-Policy": "9999;w=60"}, text=text)
    hit = rig.ask(ON, text=text)
    assert hit.headers["helicone-cache"] == "HIT"
    assert not [name for name in hit.headers if name.startswith("helicone-ratelimit")]


def test_two_users_of_one_key_share_and_two_keys_do_not(rig: Rig, text: str) -> None:
    mine = {"x-api-key": "mine", "anthropic-version": "2023-06-01"}
    theirs = mine | {"x-api-key": "theirs"}
    path = "/anthropic/v1/messages"
    assert kinds(rig, 1, ON | mine, path=path, text=text) == ["MISS"]
    assert kinds(rig, 1, ON | mine | {"Helicone-User-Id": "b"}, path=path, text=text) == ["HIT"]
    assert kinds(rig, 1, ON | theirs, path=path, text=text) == ["MISS"]


def test_upstream_404_passes_with_its_body(rig: Rig, text: str) -> None:
    rig.script = [Answer(404, b"plain words", [("content-type", "text/plain")])]
    response = rig.ask(ON, text=text)
    assert (response.status_code, response.text) == (404, "plain words")


def test_cache_that_cannot_be_read_in_time_is_a_miss(rig: Rig, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "READ_WAIT_SECONDS", 0.05)
    running = rig.run.proxy.addon.services.gates  # type: ignore[union-attr]
    held, asked = threading.Event(), threading.Event()

    def hold() -> None:
        with running.state._lock:
            held.set()
            asked.wait(10)

    def answer(_: Asked) -> Answer:
        asked.set()
        return json_answer(chat_answer("late"))

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(10)
    rig.script = [answer]
    assert kinds(rig, 1, ON, text=text) == ["MISS"]
    holder.join(10)
    assert kinds(rig, 1, ON, text=text) == ["HIT"]


def test_cache_that_cannot_be_read_at_all_is_a_miss(tmp_path: Path, text: str) -> None:
    with rigged(tmp_path / "home") as rig:
        (rig.run.home / "state.db").unlink(missing_ok=True)
        (rig.run.home / "state.db").mkdir()
        assert kinds(rig, 2, ON, text=text) == ["MISS", "MISS"]
        assert rig.calls == 2


def test_entries_survive_a_restart(tmp_path: Path, text: str) -> None:
    home = tmp_path / "home"
    with Upstream(lambda asked: json_answer(chat_answer())) as up:
        with rigged_on(up, home) as rig:
            first = rig.ask(ON, text=text)
        with rigged_on(up, home) as rig:
            second = rig.ask(ON, text=text)
    assert len(up.asked) == 1
    assert second.headers["helicone-cache"] == "HIT"
    assert second.content == first.content
