"""A call that we answered ourselves with an error is said in the log: once a minute, and without its secrets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes import Upstream, chat_answer, json_answer
from heliproxy.complaints import AGAIN_SECONDS, MAX_LINES, Complaints
from served import Served, served


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_same_line_comes_once_a_minute_and_counts_what_was_left_out(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    complaints = Complaints(clock)
    for _ in range(4):
        complaints.say("api.openai.com", 502, "connection refused")
    complaints.say("api.openai.com", 502, "connection reset")
    complaints.say("api.groq.com", 502, "connection refused")
    clock.now += AGAIN_SECONDS
    complaints.say("api.openai.com", 502, "connection refused")
    assert caplog.messages == [
        "api.openai.com: answered here with 502: connection refused",
        "api.openai.com: answered here with 502: connection reset",
        "api.groq.com: answered here with 502: connection refused",
        "api.openai.com: answered here with 502: connection refused (3 more since the last such line)",
    ]


def test_lines_that_are_all_different_have_a_bound(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    complaints = Complaints(clock)
    for number in range(3 * MAX_LINES):
        complaints.say("api.openai.com", 500, f"Invalid API base {number}")
    assert len(caplog.messages) == MAX_LINES
    clock.now += AGAIN_SECONDS
    complaints.say("api.openai.com", 500, "Invalid API base x")
    assert len(caplog.messages) == MAX_LINES + 1


def test_call_without_a_target_is_the_gateways(caplog: pytest.LogCaptureFixture) -> None:
    Complaints().say("", 500, "Missing target base url")
    assert caplog.messages == ["gateway: answered here with 500: Missing target base url"]


def test_control_characters_and_secrets_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    Complaints().say("a\nb", 500, "at http://me:pass-word@10.0.0.1/?key=abcdefgh\r\nforged")
    (said,) = caplog.messages
    assert said.startswith("ab: answered here with 500: at http://")
    assert not any(part in said for part in ("pass-word", "abcdefgh", "\n", "\r"))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home: Path = tmp_path_factory.mktemp("complaints") / "home"
    with (
        Upstream(lambda _: json_answer(chat_answer("hi"))) as up,
        served(home, up.url, "--upstream", "api.groq.com=http://127.0.0.1:9") as found,
    ):
        yield found


@pytest.mark.parametrize(
    ("path", "headers", "status", "words"),
    [
        ("/groq/openai/v1/chat/completions", {}, 502, "api.groq.com: answered here with 502: "),
        (
            "/oai/v1/chat/completions",
            {"Helicone-OpenAI-Api-Base": "http://169.254.169.254/v1"},
            500,
            'answered here with 500: Invalid API base "http://169.254.169.254/v1": it ',
        ),
        (
            "/oai/v1/chat/completions",
            {"Helicone-Fallbacks": "nonsense"},
            500,
            "answered here with 500: Helicone ran into an error servicing your request: Helicone-Fallbacks",
        ),
    ],
    ids=["upstream", "target", "directive"],
)
def test_serve_says_it(running: Served, path: str, headers: dict[str, str], status: int, words: str) -> None:
    for _ in range(2):
        assert running.ask(headers=headers, path=path).status == status
    running.health(flush=True)
    assert running.errors.count(words) == 1, running.errors


def test_what_went_well_or_was_the_providers_word_is_not_said(running: Served) -> None:
    before = running.errors
    assert running.ask().status == 200
    running.health(flush=True)
    assert running.errors == before
