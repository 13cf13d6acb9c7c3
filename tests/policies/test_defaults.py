"""Default headers (issue 3; helicone-api.md section 0.6)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from heliproxy.policies.defaults import collect_headers, from_environment, parse_header_line

if TYPE_CHECKING:
    from pathlib import Path


def test_environment() -> None:
    env = {
        "HELICONE_CACHE_ENABLED": "true",
        "HELICONE_USER_ID": "me",
        "HELICONE_SESSION_NAME": "night run",
        "HELICONE_RATELIMIT_POLICY": "10;w=60",
        "HELICONE_PROPERTY_APP_NAME": "x",
        "HELICONE_PROPERTY_": "dropped",
        "HELICONE_PROPERTY_EMPTY": "",
        "HELICONE_SESSION_ID": "",
        "HELICONE_API_KEY": "not a header of ours",
        "PATH": "/bin",
    }
    assert dict(from_environment(env)) == {
        "Helicone-Cache-Enabled": "true",
        "Helicone-User-Id": "me",
        "Helicone-Session-Name": "night run",
        "Helicone-RateLimit-Policy": "10;w=60",
        "Helicone-Property-app_name": "x",
    }


@pytest.mark.parametrize(
    ("data", "headers"),
    [
        ({"Helicone-Property-App": "x", "team": "y"}, {"Helicone-Property-App": "x", "Helicone-Property-team": "y"}),
        ({"n": 5, "none": None, "bad name": "x", "": "x"}, {"Helicone-Property-n": "5"}),
        ({"Helicone-Session-Id": "s"}, {"Helicone-Session-Id": "s"}),
        ([1], {}),
    ],
)
def test_properties_file(tmp_path: Path, data: Any, headers: dict[str, str]) -> None:
    (tmp_path / ".helicone").mkdir()
    (tmp_path / ".helicone" / "custom_properties.json").write_text(json.dumps(data))
    assert dict(collect_headers({}, tmp_path)) == headers


@pytest.mark.parametrize("content", [b"", b"{", b"\xff"])
def test_unreadable_properties_file_counts_as_empty(tmp_path: Path, content: bytes) -> None:
    assert collect_headers({}, tmp_path) == ()
    (tmp_path / ".helicone").mkdir()
    (tmp_path / ".helicone" / "custom_properties.json").write_bytes(content)
    assert collect_headers({}, tmp_path) == ()


def test_command_line_wins_over_environment_over_file(tmp_path: Path) -> None:
    (tmp_path / ".helicone").mkdir()
    (tmp_path / ".helicone" / "custom_properties.json").write_text('{"a": "file", "b": "file", "c": "file"}')
    env = {"HELICONE_PROPERTY_A": "env", "HELICONE_PROPERTY_B": "env"}
    found = {n.lower(): v for n, v in collect_headers(env, tmp_path, ["helicone-property-a: line"])}
    assert found == {"helicone-property-a": "line", "helicone-property-b": "env", "helicone-property-c": "file"}


@pytest.mark.parametrize("line", ["Helicone-User-Id", "Helicone-User-Id:", ": x", "User-Agent: x", "a b: c"])
def test_wrong_lines_are_named(line: str) -> None:
    with pytest.raises(ValueError, match="default header"):
        parse_header_line(line)


def test_line_value_may_hold_colons() -> None:
    assert parse_header_line("Helicone-Property-Url: https://x") == ("Helicone-Property-Url", "https://x")
