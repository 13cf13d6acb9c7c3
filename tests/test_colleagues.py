"""What several workers say together."""

from __future__ import annotations

from typing import Any

from heliproxy.colleagues import message_of, together

OWN: dict[str, Any] = {
    "worker": 0,
    "recorder": "running",
    "rows": 3,
    "errors": 0,
    "last_error": None,
    "away_since": None,
    "flushed": True,
}


def test_numbers_are_added_and_the_first_error_is_told() -> None:
    other = OWN | {"rows": 4, "errors": 2, "last_error": "disk full", "away_since": "2026-01-01T00:00:00.000Z"}
    found = together(OWN, [{"worker": 1, "facts": other}], 2)
    assert (found["rows"], found["errors"], found["last_error"]) == (7, 2, "disk full")
    assert (found["recorder"], found["away_since"], found["flushed"]) == ("running", other["away_since"], True)
    assert [each["worker"] for each in found["workers"]] == [0, 1]


def test_one_that_could_not_write_all_speaks_for_all() -> None:
    assert together(OWN, [{"worker": 1, "facts": OWN | {"flushed": False}}], 2)["flushed"] is False
    assert together(OWN, [{"worker": 1, "facts": None}], 2)["flushed"] is False


def test_silent_and_missing_workers_are_named() -> None:
    found = together(OWN, [{"worker": 2, "facts": None}], 3)
    assert found["recorder"] != "running"
    assert [each["recorder"] for each in found["workers"]] == ["running", "stopped", "silent"]


def test_whatever_else_a_process_prints_is_no_message() -> None:
    assert [message_of(line) for line in (b"hello\n", b"[1]\n", b"\xff\n", b"[" * 100_000)] == [{}, {}, {}, {}]
