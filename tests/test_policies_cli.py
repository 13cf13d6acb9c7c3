"""`heliproxy cache` and `heliproxy budget`."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from heliproxy.policies.cache import CacheEntry
from heliproxy.policies_cli import budget, cache
from heliproxy.policy_store import CacheStore, StateFile

if TYPE_CHECKING:
    from pathlib import Path


def run(command: str, home: Path) -> Result:
    group, *args = command.split()
    return CliRunner().invoke({"cache": cache, "budget": budget}[group], [*args, "--home", str(home)])


def test_cache_stats_and_clear(tmp_path: Path) -> None:
    state = StateFile(tmp_path / "state.db")
    CacheStore(state).save(b"k", 1, CacheEntry(200, (), b"body", 1.0, 0.0, "id"), 60, time.time())
    state.close()
    assert "1 answer to 1 request," in run("cache stats", tmp_path).output
    assert json.loads(run("cache stats --json", tmp_path).output)["entries"] == 1
    assert run("cache clear", tmp_path).exit_code == 1
    assert run("cache clear --yes", tmp_path).output == "removed 1 cached answer\n"
    assert json.loads(run("cache stats --json", tmp_path).output)["entries"] == 0


def test_budget_life(tmp_path: Path) -> None:
    assert run("budget list", tmp_path).output == "no budgets\n"
    assert run("budget set 20 --per day --by user --action block", tmp_path).output == (
        "budget 'day:user': 20 USD per day by user, then block\n"
    )
    assert run("budget check", tmp_path).exit_code == 0
    run("budget set 0 --per month", tmp_path)
    checked = run("budget check", tmp_path)
    assert checked.exit_code == 3
    assert checked.output == "month: 0.0000 of 0 USD  USED UP (warn)\n"
    listed = json.loads(run("budget list --json", tmp_path).output)
    assert {b["name"] for b in listed} == {"month", "day:user"}
    assert run("budget remove month", tmp_path).output == "removed budget 'month'\n"
    assert run("budget check", tmp_path).output == "all budgets hold\n"


@pytest.mark.parametrize(
    ("amount", "text"),
    [("1e-7", "0.0000001"), ("0.001", "0.001"), ("20", "20.00"), ("0.29", "0.29"), ("1234567.5", "1234567.50")],
)
def test_amounts_are_plain_decimals(tmp_path: Path, amount: str, text: str) -> None:
    assert f"{float(text):.7f}".rstrip("0").rstrip(".") in run(f"budget set {amount} --per day", tmp_path).output
    assert run("budget list", tmp_path).output == f"day: 0.0000 of {text} USD\n"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("budget set x --per day", "not a valid float"),
        ("budget set 5", "--per"),
        ("budget set 5 --per hour", "hour"),
        ("budget set 5 --per day --by team", "expected user, model, session or property:NAME"),
        ("budget set 5 --by foo", "--by"),
        ("budget set --per day -- -5", "AMOUNT"),
        ("budget remove nothing", "no budget is named 'nothing'"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, command: str, words: str) -> None:
    found = run(command, tmp_path)
    assert found.exit_code == (1 if "remove" in command else 2)
    assert words in found.output


def test_broken_state_file_is_a_plain_error(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"not a database" * 100)
    found = run("cache stats", tmp_path)
    assert found.exit_code == 1
    assert found.output.startswith("Error: state.db:")
