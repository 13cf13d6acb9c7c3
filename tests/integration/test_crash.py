"""A real `heliproxy serve` that is killed, and what the database says afterwards."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fakes import Answer, Asked, Upstream, chat_answer, chat_chunks, json_answer, sse_answer
from heliproxy.cli import main
from served import CHAT, Load, Served, integrity, query, served

STREAM = CHAT | {"stream": True}
GATE = threading.Event()
WORDS = chat_chunks(["Hello", "!"], usage={"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12})


def answer(asked: Asked) -> Answer:
    """A stream stays open until the gate opens."""
    if asked.json.get("stream"):
        return sse_answer([*WORDS[:2], GATE, *WORDS[2:]])
    return json_answer(chat_answer())


@pytest.fixture(autouse=True)
def gate() -> Iterator[threading.Event]:
    GATE.clear()
    yield GATE
    GATE.set()


def in_background(running: Served, **headers: str) -> threading.Thread:
    """Ask for a stream, and take it in for as long as it lasts."""

    def ask() -> None:
        with contextlib.suppress(OSError, Exception):
            running.ask(STREAM, headers)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    return thread


def run(home: Path, *arguments: str) -> Any:
    result = CliRunner().invoke(main, [*arguments, "--home", str(home)])
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_call_under_way_has_a_row_that_its_end_replaces(home: Path) -> None:
    with Upstream(answer) as up, served(home, up.url) as running:
        caller = in_background(running, **{"Helicone-User-Id": "ada", "Helicone-Property-Team": "x"})
        assert running.wait_for(lambda: (home / "heliproxy.db").exists() and bool(query(home)))
        (row,) = query(home)
        assert (row["incomplete"], row["status"], row["error_type"], row["cost_usd"]) == (1, None, None, None)
        assert (row["model"], row["user_id"], row["preview"], row["stream"]) == ("gpt-4o-mini", "ada", "Hi", 1)
        assert query(home, "SELECT key, value FROM properties") == [{"key": "team", "value": "x"}]
        assert running.health()["under_way"] == 1
        assert " open" in CliRunner().invoke(main, ["requests", "--home", str(home)]).output
        assert run(home, "show", row["id"], "-f", "json")["error_type"] is None
        GATE.set()
        caller.join(20)
        assert running.health(flush=True)["flushed"]
        (after,) = query(home)
        assert (after["id"], after["incomplete"], after["status"], after["output_tokens"]) == (row["id"], 0, 200, 2)
        assert query(home, "SELECT * FROM under_way") == []
        assert running.health()["under_way"] == 0


def test_killed_process_leaves_its_calls_visible_and_the_next_one_calls_them_lost(home: Path) -> None:
    with Upstream(answer) as up:
        with served(home, up.url) as running:
            in_background(running)
            assert running.ask().status == 200
            assert running.wait_for(lambda: len(query(home)) == 2)
            running.kill()
        assert integrity(home / "heliproxy.db") == "ok"
        (id,) = (row["id"] for row in query(home) if row["incomplete"])
        listed = {row["id"]: row for row in run(home, "requests", "-f", "json")["rows"]}
        assert (listed[id]["status"], listed[id]["error_type"]) == (None, "lost")
        assert " lost" in CliRunner().invoke(main, ["requests", "--home", str(home)]).output
        assert run(home, "show", id, "-f", "json")["error_type"] == "lost"
        costs = run(home, "costs", "-f", "json")
        assert (costs["total"]["errors"], costs["total"]["unpriced"], costs["lost"]) == (0, 0, 1)
        said = CliRunner().invoke(main, ["costs", "--home", str(home)]).output
        assert "Cost unknown also for 1 request whose end was not seen, as heliproxy itself ended" in said
        rows = query(home, "SELECT incomplete, status, error_type FROM requests ORDER BY incomplete")
        assert rows == [
            {"incomplete": 0, "status": 200, "error_type": None},
            {"incomplete": 1, "status": None, "error_type": None},
        ]
        with served(home, up.url) as running:
            assert running.wait_for(lambda: running.health()["lost_calls"] == 1)
            (lost,) = query(home, "SELECT * FROM requests WHERE incomplete = 1")
            assert (lost["status"], lost["error_type"]) == (None, "lost")
            assert re.search(r">1 lost</a>", running.get("/").body.decode())
            assert running.get("/requests?status=incomplete").body.decode().count(f"/requests/{lost['id']}") >= 1
            assert query(home, "SELECT * FROM under_way") == []
            assert len(list((home / "running").iterdir())) == 1


def test_call_of_another_living_process_is_not_called_lost(home: Path) -> None:
    with Upstream(answer) as up, served(home, up.url) as first:
        in_background(first)
        assert first.wait_for(lambda: (home / "heliproxy.db").exists() and len(query(home)) == 1)
        with served(home, up.url) as second:
            assert second.ask().status == 200
            second.health(flush=True)
            assert query(home, "SELECT error_type FROM requests WHERE incomplete = 1") == [{"error_type": None}]
            second.kill()


def test_every_row_said_to_be_flushed_outlives_a_kill(home: Path) -> None:
    acknowledged: set[str] = set()
    with Upstream(answer) as up:
        for round in range(3):
            with served(home, up.url) as running, Load(running.port, clients=4) as load:
                assert running.wait_for(lambda load=load, n=20 * (round + 1): len(load.answered) >= n)  # type: ignore[misc]
                before = list(load.answered)
                if running.health(flush=True)["flushed"]:
                    acknowledged.update(key for key, _ in before)
                running.kill()
            assert load.wrong == []
            assert integrity(home / "heliproxy.db") == "ok"
    ids = [row["id"] for row in query(home)]
    assert acknowledged
    assert acknowledged <= set(ids)
    assert len(ids) == len(set(ids))


def test_rows_are_committed_within_a_quarter_of_a_second(home: Path) -> None:
    with Upstream(answer) as up, served(home, up.url) as running:
        running.ask()
        running.health(flush=True)  # prices are loaded, the file is open
        waits = []
        for wanted in range(2, 7):
            started = time.monotonic()
            running.ask()
            answered = time.monotonic()
            assert running.wait_for(lambda wanted=wanted: len(query(home, "SELECT id FROM requests")) >= wanted)
            waits.append(time.monotonic() - answered)
            assert started <= answered
        assert min(waits) < 0.5  # 0.2 s, and a busy machine's share
