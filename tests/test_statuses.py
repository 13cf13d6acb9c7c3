"""What a status says: failures behind a good status are named."""

from __future__ import annotations

import pytest

from heliproxy.api.pages.render import status_class, status_word
from heliproxy.report_rows import status_word as terminal_word
from heliproxy.statuses import is_failed


@pytest.mark.parametrize(
    ("status", "error_type", "word", "colour", "terminal", "failed"),
    [
        (200, None, "200", "ok", 200, False),
        (101, None, "101", "ok", 101, False),
        (302, None, "302", "ok", 302, False),
        (200, "incomplete_stream", "200 cut", "bad", "200 cut", True),
        (200, "upstream_failed", "200 cut", "bad", "200 cut", True),
        (200, "overloaded_error", "200 failed", "bad", "200 failed", True),
        (429, "rate_limit_error", "429", "warn", 429, True),
        (502, "upstream_failed", "502", "bad", 502, True),
        (500, None, "500", "bad", 500, True),
        (0, "upstream_failed", "no answer", "bad", "failed", True),
        (-2, "timeout", "timeout", "bad", "timeout", True),
        (-3, "client_cancelled", "cancelled", "warn", "aborted", False),
        (-4, "prompt_threat", "blocked", "bad", "threat", True),
        (None, None, "open", "open", "open", False),
    ],
)
def test_status_is_named(
    status: int | None, error_type: str | None, word: str, colour: str, terminal: str | int, failed: bool
) -> None:
    assert status_word(status, error_type) == word
    assert status_class(status, error_type) == colour
    assert terminal_word(status, error_type) == terminal
    assert is_failed(status, error_type) is failed
