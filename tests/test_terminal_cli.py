"""`heliproxy statusline` and `heliproxy open`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from heliproxy.store import Record, Store
from heliproxy.terminal_cli import open_command, statusline_command


@pytest.fixture
def log(home: Path) -> Path:
    writer = Store(home / "heliproxy.db").writer()
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    for number, status in enumerate((200, 200, 500)):
        cost = 0.25 if status == 200 else None
        session = {"session_id": "s1" if number else None, "user_id": "ada"}
        writer.add(Record({"id": f"r{number}", "created_at": now, "status": status, "cost_usd": cost, **session}))
    writer.close()
    return home


def line(*arguments: str, stdin: str | None = None) -> str:
    result = CliRunner().invoke(statusline_command, arguments, input=stdin)
    assert result.exit_code == 0, result.output
    return result.output


def test_statusline_sums_up_today(log: Path) -> None:
    assert line("--show", "today") == "today $0.5000 (3 calls, 1 failed)\n"


def test_statusline_knows_the_session_asked_for(log: Path) -> None:
    assert line("--session", "s1", "--show", "session") == "session $0.2500 (2 calls, 1 failed)\n"


def test_statusline_of_no_log_is_empty(home: Path) -> None:
    assert line() == "\n"


def test_statusline_of_a_broken_log_is_empty(home: Path) -> None:
    home.mkdir()
    (home / "heliproxy.db").write_bytes(b"no database at all" * 99)
    assert line() == "\n"


def test_statusline_prints_json(log: Path) -> None:
    found = json.loads(line("--json", "--show", "today", "--user", "nobody"))
    assert (found["today"]["requests"], found["today"]["cost_usd"]) == (0, None)


def test_statusline_names_a_wrong_part() -> None:
    result = CliRunner().invoke(statusline_command, ["--show", "year"])
    assert result.exit_code == 2
    assert "'year'; expected session, today, month" in result.output


@pytest.mark.parametrize(
    ("arguments", "token", "url"),
    [
        (["--print"], None, "http://127.0.0.1:8585/"),
        (["--print", "--port", "9", "a/b"], None, "http://127.0.0.1:9/requests/a%2Fb"),
        (["--print"], "t#k", "http://127.0.0.1:8585/login?to=/#t%23k"),
    ],
)
def test_open_prints_the_address(
    arguments: list[str], token: str | None, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HELIPROXY_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("HELIPROXY_TOKEN", token)
    assert CliRunner().invoke(open_command, arguments).output == f"{url}\n"


def test_open_says_when_nothing_runs() -> None:
    result = CliRunner().invoke(open_command, ["--port", "1"])
    assert result.exit_code == 1
    assert "start `heliproxy serve` first" in result.output
