"""Odd values of every header, through a running proxy: empty, zero, negative, huge, no number, in other letters, with
white space, sent twice, percent-encoded (helicone-proxy.md section 2.1, with what sections 4 to 7 say of the value).

A request whose header makes no sense is still a request: nothing here may end in anything but the contract's answer.
"""

from __future__ import annotations

import http.client
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest

from fakes import chat_answer, chat_chunks, json_answer, sse_answer
from rig import CHAT, KEY, Rig, chat, error, rigged

HUGE = "9" * 400
ON = {"Helicone-Cache-Enabled": "true"}
RETRY = {"Helicone-Retry-Enabled": "true", "Helicone-Retry-Min-Timeout": "1", "Helicone-Retry-Max-Timeout": "2"}


@pytest.fixture(scope="module")
def shared_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rigged(tmp_path_factory.mktemp("values") / "home") as rig:
        yield rig


@pytest.fixture
def rig(shared_rig: Rig) -> Rig:
    shared_rig.reset()
    return shared_rig


@pytest.fixture
def slept(shared_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(shared_rig.run.proxy.addon, "sleep", sleep)
    return waits


@pytest.fixture
def text() -> str:
    return f"say {uuid.uuid4()}"


@dataclass
class Got:
    status: int
    headers: dict[str, str]
    body: bytes


def send(rig: Rig, headers: list[tuple[str, str]], path: str = CHAT, **body: Any) -> Got:
    """POST with these header lines to the letter: repeated, and with white space around the value."""
    connection = http.client.HTTPConnection(urlsplit(rig.run.url).netloc, timeout=20)
    sent = json.dumps(chat(**body)).encode()
    try:
        connection.putrequest("POST", path)
        for name, value in [("content-length", str(len(sent))), ("authorization", "Bearer sk-provider"), *headers]:
            connection.putheader(name, value)
        connection.endheaders(sent)
        response = connection.getresponse()
        return Got(response.status, {n.lower(): v for n, v in response.getheaders()}, response.read())
    finally:
        connection.close()


# ---------------------------------------------------------------- ids, users, properties, sessions


def test_one_request_id_twice_is_two_calls_and_both_are_answered(rig: Rig) -> None:
    given = {"Helicone-Request-Id": str(uuid.uuid4())}
    first, second = rig.ask(given), rig.ask(given)
    assert (first.status_code, second.status_code, rig.calls) == (200, 200, 2)
    assert first.headers["helicone-id"] == second.headers["helicone-id"] == given["Helicone-Request-Id"]
    assert len(rig.rows(first.headers["helicone-id"])) == 1


@pytest.mark.parametrize("space", [" {}", "{}  ", "\t{}\t"])
def test_request_id_in_white_space_is_taken(rig: Rig, space: str) -> None:
    given = str(uuid.uuid4())
    assert send(rig, [("Helicone-Request-Id", space.format(given))]).headers["helicone-id"] == given


@pytest.mark.parametrize("value", ["{}, {}", "{{{}}}", "urn:uuid:{}", "{}x", "%20{}", '"{}"'])
def test_request_id_that_is_more_than_a_uuid_is_replaced(rig: Rig, value: str) -> None:
    given = value.format(*[str(uuid.uuid4())] * 2)
    response = rig.ask({"Helicone-Request-Id": given})
    assert response.headers["helicone-id"] not in given
    assert uuid.UUID(response.headers["helicone-id"]).version == 4


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("a@b.example", "a@b.example"),
        ("user%20one%2Ftwo", "user%20one%2Ftwo"),  # nothing is decoded
        ("0", "0"),
        ("null", "null"),
        ("A", "A"),
        ("x" * 300, "x" * 300),
        ("", None),
    ],
)
def test_user_ids_are_kept_as_they_are(rig: Rig, sent: str, stored: str | None) -> None:
    assert rig.row(rig.ask({"Helicone-User-Id": sent}))["user_id"] == stored


def test_empty_user_header_leaves_the_bodys_user(rig: Rig) -> None:
    assert rig.row(rig.ask({"Helicone-User-Id": ""}, user="body"))["user_id"] == "body"


def test_body_user_may_be_a_number(rig: Rig) -> None:
    me = {"Helicone-RateLimit-Policy": "1;w=60;s=user", "Helicone-Auth": f"Bearer sk-helicone-{uuid.uuid4().hex}"}
    first = rig.ask(me, user=5)
    assert (first.status_code, rig.row(first)["user_id"]) == (200, "5")
    assert rig.ask(me | {"Helicone-User-Id": "5"}).status_code == 429


@pytest.mark.parametrize("user", [None, {"a": 1}, ["a"], True, ""])
def test_body_user_that_is_no_text_is_nobody(rig: Rig, user: object) -> None:
    response = rig.ask({"Helicone-RateLimit-Policy": "1;w=60;s=user"}, user=user)
    assert (response.status_code, rig.row(response)["user_id"]) == (200, None)


@pytest.mark.parametrize(
    ("name", "value", "key", "stored"),
    [
        ("Helicone-Property-App", "A b", "app", "A b"),
        ("HELICONE-PROPERTY-APP", "x", "app", "x"),
        ("Helicone-Property-A-B_c.d", "x", "a-b_c.d", "x"),
        ("Helicone-Property-1", "0", "1", "0"),
        ("Helicone-Property-Pct", "a%20b", "pct", "a%20b"),
        ("Helicone-Property-Empty", "", "empty", ""),
        ("Helicone-Property-Json", '{"a":1}', "json", '{"a":1}'),
        ("Helicone-Property-Comma", "a, b", "comma", "a, b"),
        ("Helicone-Property-Session-Id", "x", "session-id", "x"),
    ],
)
def test_properties_are_lower_case_names_with_values_as_they_are(
    rig: Rig, name: str, value: str, key: str, stored: str
) -> None:
    assert rig.properties(rig.ask({name: value})) == {key: stored}


def test_property_sent_twice_is_joined_as_fetch_does(rig: Rig) -> None:
    got = send(rig, [("Helicone-Property-App", "a"), ("helicone-property-app", "b")])
    (row,) = rig.run.rows(f"SELECT * FROM properties WHERE request_id = '{got.headers['helicone-id']}'")
    assert (row["key"], row["value"]) == ("app", "a, b")


def test_session_headers_are_stored_alone_and_not_enforced(rig: Rig) -> None:
    for name, value in [("Id", "s 1"), ("Path", "no-slash"), ("Name", "N%20")]:
        response = rig.ask({f"Helicone-Session-{name}": value})
        assert rig.properties(response) == {f"Helicone-Session-{name}": value}
        assert rig.row(response)[f"session_{name.lower()}"] == value
    assert rig.properties(rig.ask({"Helicone-Session-Id": ""})) == {}


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Helicone-Posthog-Key": "k", "Helicone-Posthog-Host": "h"}, {"Helicone-Sent-To-Posthog": "true"}),
        ({"Helicone-Posthog-Key": ""}, {}),
        ({"Helicone-Posthog-Host": "h"}, {}),
        ({"Helicone-Prompt-Id": "p"}, {"Helicone-Prompt-Id": "p"}),
        ({"Helicone-Prompt-Id": ""}, {}),
        ({"Helicone-Experiment-Id": "e"}, {"Helicone-Experiment-Id": "e"}),
        ({"Helicone-Experiment-Column-Id": "c", "Helicone-Experiment-Row-Index": "1"}, {}),
        ({"x-stripe-customer-id": "cus_1"}, {"stripe_customer_id": "cus_1"}),
        ({"x-stripe-customer-id": ""}, {}),
        ({"Helicone-Cache-Enabled": "true"}, {"Helicone-Cache-Enabled": "true"}),
        ({"Helicone-Cache-Enabled": "TRUE"}, {}),  # the flag that is logged is exact, the behaviour is not
        ({"Helicone-Cache-Save": "true"}, {}),
        ({"Helicone-Cache-Seed": "42"}, {"Helicone-Cache-Seed": "42"}),
        ({"Helicone-Cache-Seed": "-7x"}, {"Helicone-Cache-Seed": "-7"}),
        ({"Helicone-Cache-Seed": "seed"}, {}),
        ({"Helicone-Cache-Bucket-Max-Size": "3.9"}, {"Helicone-Cache-Bucket-Max-Size": "3"}),
        ({"Helicone-Cache-Bucket-Max-Size": "x"}, {}),
        ({"Helicone-Cache-Control": "max-age=1"}, {"Helicone-Cache-Control": "max-age=1"}),
        ({"Helicone-Node-Id": "n", "Helicone-Lytix-Key": "k", "Helicone-Manual-Access-Key": "m"}, {}),
        ({"Helicone-Prompt-Version": "1", "Helicone-Prompt-Name": "n", "Helicone-Prompt-Format": "f"}, {}),
        ({"Helicone-User-Id": "u", "Helicone-Auth": KEY}, {}),
    ],
)
def test_automatic_properties(rig: Rig, headers: dict[str, str], expected: dict[str, str]) -> None:
    response = rig.ask(headers)
    assert response.status_code == 200
    assert rig.properties(response) == expected


@pytest.mark.parametrize("name", ["Helicone-Jwt", "Helicone-Org-Id", "Helicone-Target-Provider"])
def test_headers_that_are_known_and_do_nothing(rig: Rig, name: str) -> None:
    response = rig.ask({name: "x"})
    assert (response.status_code, rig.properties(response)) == (200, {})
    assert "heliproxy-warning" not in response.headers
    assert rig.last.header(name) is None
    assert rig.last.path == "/openai/v1/chat/completions"


def test_target_provider_names_no_target(rig: Rig) -> None:
    response = rig.ask({"Helicone-Target-Provider": "https://api.groq.com"}, path="/gateway/v1/chat/completions")
    assert (response.status_code, response.text) == (400, "Missing target base url")


@pytest.mark.parametrize(
    ("one", "two", "shared"),
    [
        ({"Helicone-Auth": "Bearer sk-helicone-a"}, {"Helicone-Auth": "Bearer sk-helicone-b"}, False),
        ({"Helicone-Auth": "Bearer sk-helicone-a"}, {"Helicone-Auth": "sk-helicone-a"}, True),
        ({"Helicone-Auth": "Bearer sk-helicone-a"}, {"authorization": "Bearer sk-helicone-a"}, True),
        ({"Helicone-Auth": "Bearer sk-helicone-a"}, {"authorization": "Bearer k, Bearer sk-helicone-a"}, True),
        ({"Helicone-Auth": "Bearer sk-helicone-a"}, {"x-api-key": "sk-helicone-a"}, True),
        ({"x-api-key": "sk-helicone-a"}, {"x-api-key": "sk-helicone-b"}, False),
        ({"helicone-jwt": "a"}, {"helicone-jwt": "b"}, False),
        ({"x-api-key": "a"}, {"x-api-key": "b"}, True),  # a provider's key is no namespace
        ({"authorization": "Bearer a"}, {"authorization": "Bearer b"}, True),
    ],
)
def test_buckets_belong_to_the_helicone_key_wherever_it_is(
    rig: Rig, one: dict[str, str], two: dict[str, str], shared: bool
) -> None:
    policy = {"Helicone-RateLimit-Policy": "1;w=600;s=user", "Helicone-User-Id": str(uuid.uuid4())}
    assert rig.ask(one | policy).status_code == 200
    assert rig.ask(two | policy).status_code == (429 if shared else 200)


# ---------------------------------------------------------------- the cache


@pytest.mark.parametrize(
    ("size", "status", "full"),
    [
        ("", 200, None),
        (" 2 ", 200, 2),
        ("+2", 200, 2),
        ("0x2", 200, 2),
        ("2abc", 200, 2),
        ("2, 3", 200, 2),
        ("-0", 200, None),
        ("-1", 200, None),
        ("NaN", 200, None),
        ("Infinity", 200, None),
        (".5", 200, None),
        ("20.9", 200, 20),
        ("21abc", 500, None),
        ("21.0", 500, None),
        ("0x15", 500, None),
        (HUGE, 500, None),
    ],
)
def test_bucket_sizes(rig: Rig, text: str, size: str, status: int, full: int | None) -> None:
    headers = [*ON.items(), ("Helicone-Cache-Bucket-Max-Size", size)]
    got = [send(rig, headers, text=text) for _ in range((full or 1) + 1)]
    assert {g.status for g in got} == {status}
    if status == 500:
        assert (got[0].body, rig.calls) == (b"Cache bucket size cannot be greater than 20", 0)
    elif full is None:
        assert "helicone-cache" not in got[1].headers or got[1].headers["helicone-cache"] == "MISS"
        assert rig.calls == 2
    else:
        assert [g.headers["helicone-cache"] for g in got] == ["MISS"] * full + ["HIT"]


@pytest.mark.parametrize(
    ("control", "ttl"),
    [
        ("max-age=60", 60),
        ("max-age=1", 1),
        ("max-age=007", 7),
        ("max-age=3.9", 3),
        ("max-age=5e3", 5),
        ("s-maxage=50", 50),
        ("max-age=9, s-maxage=50", 50),
        ("max-age=9;s-maxage=50", 50),
        ("s-maxage=50,max-age=9", 50),
        ("x-s-maxage=50", 604_800),  # another directive's name
        ("xmax-age=50", 604_800),
        ("max-age = 50", 604_800),
        ("max-age=", 604_800),
        ("max-age=abc", 604_800),
        ("max-age=-1", 604_800),
        ("S-MAXAGE=50", 604_800),
        ("private", 604_800),
        ("max-age=31536000", 31_536_000),
        ("max-age=31536001", 31_536_000),
        (f"max-age={HUGE}", 31_536_000),
        ("no-store, max-age=70", 70),
    ],
)
def test_lives_of_entries(rig: Rig, text: str, monkeypatch: pytest.MonkeyPatch, control: str, ttl: int) -> None:
    headers = ON | {"cache-control": control}
    gates = rig.run.proxy.addon.services.gates  # type: ignore[union-attr]
    clock = gates.clock
    start = clock()
    found = []
    for age in (0.0, ttl - 0.5, ttl + 0.5):
        monkeypatch.setattr(gates, "clock", lambda age=age: start + age)
        found.append(rig.ask(headers, text=text).headers["helicone-cache"])
    monkeypatch.setattr(gates, "clock", clock)
    assert found == ["MISS", "HIT", "MISS"]


@pytest.mark.parametrize("control", ["max-age=1", "max-age=0", "no-store", "MAX-AGE=9"])
def test_helicone_cache_control_is_part_of_the_key_and_no_life(rig: Rig, text: str, control: str) -> None:
    mine = ON | {"Helicone-Cache-Control": control}
    kinds = [rig.ask(h, text=text).headers["helicone-cache"] for h in (mine, mine, ON, ON)]
    assert kinds == ["MISS", "HIT", "MISS", "HIT"]


@pytest.mark.parametrize(
    ("headers", "kinds"),
    [
        ({"Helicone-Cache-Enabled": " true"}, ["MISS", "HIT"]),
        ({"Helicone-Cache-Enabled": "tRuE"}, ["MISS", "HIT"]),
        ({"Helicone-Cache-Enabled": "yes"}, [None, None]),
        ({"Helicone-Cache-Enabled": '"true"'}, [None, None]),
        ({"Helicone-Cache-Enabled": "false", "Helicone-Cache-Save": "TRUE"}, [None, None]),
        ({"Helicone-Cache-Enabled": "false", "Helicone-Cache-Read": "True"}, ["MISS", "MISS"]),
        ({"Helicone-Cache-Enabled": "true", "Helicone-Cache-Save": "false"}, ["MISS", "HIT"]),
        ({"Helicone-Cache-Enabled": "true", "Helicone-Cache-Read": "false"}, ["MISS", "HIT"]),
        ({"Helicone-Cache-Save": "true", "Helicone-Cache-Read": "true"}, ["MISS", "HIT"]),
        ({"Helicone-Cache-Save": "1", "Helicone-Cache-Read": "1"}, [None, None]),
    ],
)
def test_cache_switches(rig: Rig, text: str, headers: dict[str, str], kinds: list[str | None]) -> None:
    got = [send(rig, list(headers.items()), text=text) for _ in range(2)]
    assert [g.headers.get("helicone-cache") for g in got] == kinds


def test_switch_sent_twice_is_no_true(rig: Rig, text: str) -> None:
    got = send(rig, [("Helicone-Cache-Enabled", "true"), ("Helicone-Cache-Enabled", "true")], text=text)
    assert "helicone-cache" not in got.headers
    assert "Helicone-Cache-Enabled" in got.headers["heliproxy-warning"]


@pytest.mark.parametrize(
    ("seed", "other", "same"),
    [("a", "b", False), ("a", "A", False), ("1", "01", False), ("", None, True), ("a%20b", "a b", False)],
)
def test_seeds(rig: Rig, text: str, seed: str, other: str | None, same: bool) -> None:
    first = ON | {"Helicone-Cache-Seed": seed}
    second = ON | ({"Helicone-Cache-Seed": other} if other is not None else {})
    assert rig.ask(first, text=text).headers["helicone-cache"] == "MISS"
    assert rig.ask(second, text=text).headers["helicone-cache"] == ("HIT" if same else "MISS")


@pytest.mark.parametrize(
    ("names", "ignored"),
    [
        ("a , b", True),
        ("'a','b'", True),
        ('a,"b"', True),
        ("a,,b,", True),
        ("b,a", True),
        ("A,B", False),  # names of JSON keys have their case
        ("a", False),
        ("", False),
        ("[]", False),
        ("nobody", False),
    ],
)
def test_ignored_keys(rig: Rig, text: str, names: str, ignored: bool) -> None:
    headers = ON | {"Helicone-Cache-Ignore-Keys": names}
    rig.ask(headers, text=text, a=1, b=1)
    assert rig.ask(headers, text=text, a=2, b=2).headers["helicone-cache"] == ("HIT" if ignored else "MISS")


# ---------------------------------------------------------------- retries


@pytest.mark.parametrize(
    ("num", "calls", "said"),
    [
        ("", 1, True),
        ("NaN", 1, True),
        ("Infinity", 1, True),
        ("five", 1, True),
        ("-3", 1, False),
        ("00", 1, False),
        (" 1 ", 2, False),
        ("+1", 2, False),
        ("1e3", 2, False),
        ("1.9", 2, False),
        ("1, 3", 2, False),
        ("1;2", 2, False),
    ],
)
def test_numbers_of_retries(rig: Rig, num: str, calls: int, said: bool) -> None:
    rig.script = [error(500)] * 9
    got = send(rig, [*RETRY.items(), ("Helicone-Retry-Num", num)])
    assert (got.status, rig.calls) == (500, calls)
    assert ("Helicone-Retry-Num" in got.headers.get("heliproxy-warning", "")) is said


def test_huge_number_of_retries_is_bounded(rig: Rig, slept: list[float]) -> None:
    rig.script = [error(500)] * 200
    assert rig.ask(RETRY | {"Helicone-Retry-Num": HUGE}).status_code == 500
    assert rig.calls == 101


@pytest.mark.parametrize(
    ("headers", "low", "high"),
    [
        ({"Helicone-Retry-Factor": "abc"}, [1, 2, 4], [2, 4, 8]),
        ({"Helicone-Retry-Factor": ""}, [1, 2, 4], [2, 4, 8]),
        ({"Helicone-Retry-Factor": "-2"}, [1, 2, 4], [2, 4, 8]),
        ({"Helicone-Retry-Factor": "0"}, [0, 0, 1], [0, 0, 2]),
        ({"Helicone-Retry-Factor": "1"}, [1, 1, 1], [2, 2, 2]),
        ({"Helicone-Retry-Factor": "1e400"}, [1, 2, 4], [2, 4, 8]),
        ({"Helicone-Retry-Factor": HUGE[:300]}, [1, 10, 10], [2, 10, 10]),
        ({"Helicone-Retry-Factor": "2.5x"}, [1, 2.5, 6.25], [2, 5, 10]),
        ({"Helicone-Retry-Min-Timeout": "abc"}, [1, 2, 4], [2, 4, 8]),
        ({"Helicone-Retry-Min-Timeout": "-5"}, [0.001, 0.002, 0.004], [0.002, 0.004, 0.008]),
        ({"Helicone-Retry-Min-Timeout": "2.9"}, [0.002, 0.004, 0.008], [0.004, 0.008, 0.016]),
        ({"Helicone-Retry-Max-Timeout": "abc"}, [1, 2, 4], [2, 4, 8]),
        ({"Helicone-Retry-Max-Timeout": "1000"}, [1, 1, 1], [1, 1, 1]),
        ({"Helicone-Retry-Min-Timeout": "0", "Helicone-Retry-Max-Timeout": "0"}, [0, 0, 0], [0, 0, 0]),
        ({"Helicone-Retry-Max-Timeout": HUGE}, [1, 2, 4], [2, 4, 8]),
    ],
)
def test_waits(rig: Rig, slept: list[float], headers: dict[str, str], low: list[float], high: list[float]) -> None:
    rig.script = [error(500)] * 9
    sent = {"Helicone-Retry-Enabled": "true", "Helicone-Retry-Num": "3"} | headers
    assert rig.ask(sent).status_code == 500
    assert rig.calls == 4
    assert len(slept) <= 3  # no wait at all needs no sleep
    waits = [0.0] * (3 - len(slept)) + slept
    for wait, least, most in zip(waits, low, high, strict=True):
        assert least - 0.001 <= wait <= most + 0.001


@pytest.mark.parametrize(
    ("least", "longest", "status"),
    [
        ("1001", "1000", 500),
        ("10001", None, 500),
        (None, "999", 500),
        (None, "-1", 500),
        ("5", "5", 200),
        ("-9", "0", 200),
    ],
)
def test_least_wait_above_the_longest(
    rig: Rig, slept: list[float], least: str | None, longest: str | None, status: int
) -> None:
    headers = {"Helicone-Retry-Enabled": "true"}
    headers |= {"Helicone-Retry-Min-Timeout": least} if least is not None else {}
    headers |= {"Helicone-Retry-Max-Timeout": longest} if longest is not None else {}
    response = rig.ask(headers)
    assert (response.status_code, rig.calls) == (status, 1 if status == 200 else 0)
    if status == 500:
        assert response.headers["content-type"] == "application/json"
        assert response.json()["error"] == "Unknown error"
    # Without retries nobody waits, so nothing is wrong.
    assert rig.ask(headers | {"Helicone-Retry-Enabled": "false"}).status_code == 200


# ---------------------------------------------------------------- exact and other switches


@pytest.mark.parametrize("value", ["TRUE", "True", "1", "yes", "on", "false", "", "true, true", '"true"'])
def test_exact_switches_take_true_alone(rig: Rig, value: str) -> None:
    names = ("Omit-Request", "Omit-Response", "Moderations-Enabled", "Stream-Usage", "Stream-Force-Format")
    response = rig.ask({f"Helicone-{name}": value for name in names}, text="kept words", stream=True)
    assert (response.status_code, rig.calls) == (200, 1)
    assert "stream_options" not in rig.last.json
    assert response.content == b"".join(chat_chunks(["answer 1", "!"]))
    row = rig.row(response)
    assert "kept words" in row["preview"]
    assert "answer 1" in row["answer_preview"]


def test_true_in_white_space_is_true(rig: Rig) -> None:
    got = send(rig, [("Helicone-Stream-Usage", "  true ")], stream=True)
    assert (got.status, rig.last.json["stream_options"]) == (200, {"include_usage": True})


@pytest.mark.parametrize(
    ("mode", "status"),
    [("PRODUCTION", 500), ("prod", 500), ("0", 500), ("production, testing", 500), ("", 200), ("testing", 200)],
)
def test_prompt_modes_are_exact(rig: Rig, mode: str, status: int) -> None:
    response = rig.ask({"Helicone-Prompt-Mode": mode, "Helicone-Prompt-Id": "p"})
    assert (response.status_code, rig.calls) == (status, 1 if status == 200 else 0)
    if status == 500:
        assert response.headers["helicone-error"] == "true"
        assert sorted(response.json()) == ["helicone-error", "helicone-message", "support"]
        assert response.json()["helicone-message"].endswith(": Invalid prompt mode")


@pytest.mark.parametrize("mode", ["testing", "production"])
def test_tags_are_taken_out_without_an_id_too_when_a_mode_asks(rig: Rig, mode: str) -> None:
    tagged = 'Hi <helicone-prompt-input key="n">Ada</helicone-prompt-input>'
    rig.ask({"Helicone-Prompt-Mode": mode}, text=tagged)
    assert rig.last.json["messages"][0]["content"] == "Hi Ada"


@pytest.mark.parametrize("name", ["truncate", "TRUNCATE", " Middle-Out", "Fallback ", "none", "", "truncate,fallback"])
def test_token_limit_handlers_never_fail_a_call(rig: Rig, name: str) -> None:
    got = send(rig, [("Helicone-Token-Limit-Exception-Handler", name)])
    known = name.strip().lower() in ("truncate", "middle-out", "fallback", "")
    assert got.status == 200
    assert ("Token-Limit" in got.headers.get("heliproxy-warning", "")) is not known


@pytest.mark.parametrize(
    ("headers", "path", "answer", "body", "model"),
    [
        ({"Helicone-Model-Override": "o"}, CHAT, "answered", {"model": "asked"}, "o"),
        ({"Helicone-Model-Override": "a%20b/c"}, CHAT, "answered", {}, "a%20b/c"),
        ({"Helicone-Model-Override": ""}, CHAT, "answered", {"model": "asked"}, "answered"),
        ({}, CHAT, "answered", {"model": "asked"}, "answered"),
        ({}, CHAT, None, {"model": "asked"}, "asked"),
        ({}, "/oai/v1/engines/in-the-path/completions", None, {"model": None}, "in-the-path"),
        ({}, "/oai/openai/deployments/my-dep/chat/completions", None, {"model": None}, "my-dep"),
        ({}, "/bedrock/v1/us-east-1/model/a.b-v1%3A0/invoke", None, {"model": None}, "a.b-v1:0"),
        ({}, "/google/v1beta/models/gemini-x:generateContent", None, {"model": None}, "gemini-x"),
    ],
)
def test_model_is_overridden_then_answered_then_asked_then_in_the_path(
    rig: Rig, headers: dict[str, str], path: str, answer: str | None, body: dict[str, Any], model: str
) -> None:
    replied = chat_answer(model="x")
    replied |= {"model": answer} if answer else {}
    if answer is None:
        del replied["model"]
    rig.script = [json_answer(replied)]
    response = rig.ask(headers, path=path, **body)
    assert rig.row(response)["model"] == model
    assert rig.last.json.get("model") == (chat() | body)["model"]


# ---------------------------------------------------------------- rate limits


@pytest.mark.parametrize(
    ("policy", "limited"),
    [
        ("1;w=60", True),
        ("01;w=060", True),
        ("1.0;w=60", True),
        ("1;W=60;U=Request", True),
        ("1;w=60;u=request;s=user", True),
        ("1;w=60;s=USER", True),
        ("1;w=60;s=user;u=request", False),
        ("1;w=60;u=", False),
        ("1;w=60;u=dollars", False),
        ("1;w=0", False),
        ("1;w=-60", False),
        ("1;w=59.9", False),
        ("1;w=6e1", False),
        (f"1;w={HUGE}", False),
        ("1.;w=60", False),
        ("+1;w=60", False),
        ("1,w=60", False),
        ("1;w=60, 1;w=60", False),
        ("1%3Bw%3D60", False),
        ("1;w=60;s=ü", False),
        ("1;w=60;s=user:a", False),
        ("", False),
    ],
)
def test_policies(rig: Rig, policy: str, limited: bool) -> None:
    me = {"Helicone-Auth": f"Bearer sk-helicone-{uuid.uuid4().hex}", "Helicone-User-Id": "u"}
    value = policy.encode()
    found = [rig.ask(me | {"Helicone-RateLimit-Policy": value}) for _ in range(2)]  # type: ignore[dict-item]
    assert [r.status_code for r in found] == [200, 429 if limited else 200]
    assert ("helicone-ratelimit-limit" in found[0].headers) is limited
    assert ("heliproxy-warning" in found[0].headers) is (not limited and policy != "")


@pytest.mark.parametrize(
    ("quota", "shown"),
    [("1000", "1000"), ("1000.0", "1000"), ("0.5", "0.5"), ("1.50", "1.5"), ("1" + "0" * 21, "1e+21")],
)
def test_quota_is_shown_as_javascript_does(rig: Rig, quota: str, shown: str) -> None:
    me = {"Helicone-Auth": f"Bearer sk-helicone-{uuid.uuid4().hex}", "Helicone-RateLimit-Policy": f"{quota};w=60"}
    headers = rig.ask(me).headers
    assert (headers["helicone-ratelimit-limit"], headers["helicone-ratelimit-policy"]) == (shown, f"{shown};w=60")


def test_policy_in_white_space_is_read(rig: Rig) -> None:
    key = f"Bearer sk-helicone-{uuid.uuid4().hex}"
    got = send(rig, [("Helicone-Auth", key), ("Helicone-RateLimit-Policy", "  7;w=60\t")])
    assert got.headers["helicone-ratelimit-policy"] == "7;w=60"


@pytest.mark.parametrize(
    ("one", "two", "shared"),
    [
        ("a:b", "a_b", True),
        (" a", "a", True),
        ("A", "a", False),
        ("a%20", "a", False),
        ("x" * 256, "x" * 257, True),
        ("x" * 255, "x" * 256, False),
    ],
)
@pytest.mark.parametrize("segment", ["user", "tenant"])
def test_segment_values(rig: Rig, segment: str, one: str, two: str, shared: bool) -> None:
    header = "Helicone-User-Id" if segment == "user" else "Helicone-Property-Tenant"
    key = f"Bearer sk-helicone-{uuid.uuid4().hex}"
    policy = [("Helicone-Auth", key), ("Helicone-RateLimit-Policy", f"1;w=600;s={segment}")]
    found = [send(rig, [*policy, (header, value)]).status for value in (one, two)]
    assert found == [200, 429 if shared else 200]


@pytest.mark.parametrize("value", ["", "   "])
def test_segment_without_a_value_is_not_limited(rig: Rig, value: str) -> None:
    policy = [("Helicone-RateLimit-Policy", "1;w=600;s=tenant"), ("Helicone-Property-Tenant", value)]
    found = [send(rig, policy) for _ in range(2)]
    assert [got.status for got in found] == [200, 200]
    assert {n for n in found[0].headers if n.startswith("helicone-ratelimit")} == {"helicone-ratelimit-policy"}


# ---------------------------------------------------------------- mock answers and targets


@pytest.mark.parametrize(
    ("mock", "status"),
    [
        ('{"a":1}', 200),
        ("[1, 2]", 200),
        ('"text"', 200),
        ("null", 200),
        ("5", 200),
        ("{", 400),
        ("nonsense", 400),
        ("'a'", 400),
    ],
)
def test_mocks(rig: Rig, mock: str, status: int) -> None:
    response = rig.ask({"__helicone-mock-response": mock})
    assert (response.status_code, rig.calls) == (status, 0)
    assert response.headers["content-type"] == "application/json"
    if status == 200:
        assert response.json() == json.loads(mock)
    else:
        assert sorted(response.json()) == ["details", "error", "message"]


def test_empty_mock_is_none(rig: Rig) -> None:
    assert rig.ask({"__helicone-mock-response": ""}).status_code == 200
    assert rig.calls == 1


def test_mock_counts_against_the_limit_and_is_retried_by_nobody(rig: Rig) -> None:
    key = {"Helicone-Auth": f"Bearer sk-helicone-{uuid.uuid4().hex}", "Helicone-RateLimit-Policy": "1;w=600"}
    bad = RETRY | key | {"__helicone-mock-response": "{"}
    assert [rig.ask(bad).status_code for _ in range(2)] == [400, 429]
    assert rig.calls == 0


@pytest.mark.parametrize(
    "url",
    [
        "https://api.groq.com",
        "https://api.groq.com/",
        "https://api.groq.com:443",
        "HTTPS://API.GROQ.COM",
        " https://api.groq.com ",
        "https://api.groq.com/openai/v1?a=b#c",
        "https://api.groq.com./",
    ],
)
@pytest.mark.parametrize("header", ["Helicone-Target-URL", "Helicone-OpenAI-Api-Base"])
def test_targets_are_read_as_urls(rig: Rig, header: str, url: str) -> None:
    path = "/gateway/v1/chat/completions" if header == "Helicone-Target-URL" else CHAT
    got = send(rig, [(header, url)], path=path)
    assert (got.status, rig.last.path) == (200, "/groq/v1/chat/completions")


@pytest.mark.parametrize("path", [CHAT, "/anthropic/v1/messages", "/gateway/v1/chat/completions"])
def test_empty_target_is_none(rig: Rig, path: str) -> None:
    response = rig.ask({"Helicone-Target-URL": "", "Helicone-OpenAI-Api-Base": ""}, path=path)
    assert response.status_code == (400 if path.startswith("/gateway") else 200)


@pytest.mark.parametrize("query", ["?a=%20b&c=d%2Fe", "?a=b&a=c", "?", "?=&", "?key=v%3D"])
def test_queries_pass_to_the_letter(rig: Rig, query: str) -> None:
    got = send(rig, [("Helicone-Target-URL", "https://api.groq.com")], path=f"/gateway/v1/chat/completions{query}")
    assert (got.status, rig.last.path) == (200, f"/groq/v1/chat/completions{query}")


# ---------------------------------------------------------------- streams


def test_forced_format_sends_no_short_chunk_but_the_last(rig: Rig) -> None:
    pieces = [b"data: 1\n\n"] * 7 + [b"data: " + b"x" * 60 + b"\n\n", b"data: 2\n\n", b"data: [DONE]\n\n"]
    rig.script = [sse_answer([part for piece in pieces for part in (piece, 0.01)])]
    with rig.http.stream("POST", CHAT, json=chat(stream=True), headers={"Helicone-Stream-Force-Format": "true"}) as got:
        chunks = list(got.iter_raw())
    assert b"".join(chunks) == b"".join(pieces)
    assert all(len(chunk) >= 50 for chunk in chunks[:-1])
