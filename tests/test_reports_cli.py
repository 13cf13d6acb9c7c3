"""The reporting commands, run as a user does, on real databases."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import heliproxy
from heliproxy.bodies import Body
from heliproxy.filters import Filters
from heliproxy.reports_cli import costs, follow, requests, sessions, tail
from heliproxy.show_cli import show
from heliproxy.store import Record, Store

ID1, ID2 = "01a18f40-c180-4a4f-8e7d-115475c2050c", "01a18f40-c180-4b00-8e7d-000000000000"


def record(
    key: str, created_at: str = "2026-09-01T23:30:00.000Z", *, properties: Any = None, body: Any = None, **row: Any
) -> Record:
    return Record({"id": key, "created_at": created_at, "status": 200, **row}, properties or {}, body)


def put(home: Path, *records: Record) -> None:
    writer = Store(home / "heliproxy.db").writer()
    for one in records:
        writer.add(one)
    writer.close()


@pytest.fixture
def logged(home: Path) -> Path:
    request = b'{"model":"gpt-4o","messages":[]}'
    response = b"data: \x1b[2J[DONE]\n"
    put(
        home,
        record(
            ID1, model="gpt-4o", provider="openai", input_tokens=1000, output_tokens=50, cost_usd=0.003,
            latency_ms=1500.0, ttft_ms=200.0, usage_source="provider", user_id="ann", session_id="s1",
            session_path="/plan", properties={"env": "prod"}, preview="hello \x1b[31mthere",
            body=Body(request, response, "application/json", "text/event-stream"),
        ),
        record(
            ID2, "2026-09-02T10:00:00.000Z", model="=odd", provider="openai", input_tokens=5, output_tokens=5,
            latency_ms=500.0, usage_source="estimated",
            attempts_json='[{"target":"https://a","status":500,"duration_ms":3}]',
        ),
        record(
            "00000000-err", "2026-09-02T11:00:00.000Z", model="gpt-4o", provider="openai", status=429, error="slow down"
        ),
    )  # fmt: skip
    return home


def run(command: Any, *args: str, code: int = 0, **env: str) -> Result:
    result = CliRunner().invoke(command, [*args, "-z", "UTC"], env={"COLUMNS": "", "NO_COLOR": "", **env})
    assert result.exit_code == code, result.output
    return result


def test_costs_table_ends_with_total_and_says_what_is_unknown(logged: Path) -> None:
    lines = run(costs).stdout.splitlines()
    titles = "model requests errors hits input output cached reasoning cost saved p50 p95 estimated unpriced"
    assert " ".join(lines[0].split()) == titles
    assert [line.split()[0] for line in lines[1:]] == [
        "gpt-4o",
        "=odd",
        lines[3].split()[0],
        "total",
        "Cost",
        "`heliproxy",
        "Tokens",
    ]
    assert "unknown" in lines[2]
    assert lines[-3:] == [
        "Cost unknown for 1 request: not in the sums.",
        "`heliproxy prices check` lists models without a price.",
        "Tokens estimated for 1 request (33%).",
    ]
    assert "$0.00 " not in "\n".join(lines)


def test_costs_json(logged: Path) -> None:
    document = json.loads(run(costs, "-j", "--by", "day", "--by", "model").stdout)
    assert document["schema_version"] == 1
    assert (document["command"], document["by"], document["timezone"]) == ("costs", ["day", "model"], "UTC")
    first = document["rows"][0]
    assert (first["day"], first["model"], first["cost_usd"], first["p95_ms"]) == ("2026-09-01", "gpt-4o", 0.003, 1500)
    assert document["total"]["unpriced"] == 1
    assert document["rows"][1]["cost_usd"] is None


def test_costs_days_follow_the_zone(logged: Path) -> None:
    def days(zone: str) -> list[str]:
        result = CliRunner().invoke(costs, ["-j", "--by", "day", "-z", zone])
        return [row["day"] for row in json.loads(result.stdout)["rows"]]

    assert days("UTC") == ["2026-09-01", "2026-09-02"]
    assert days("Asia/Tokyo") == ["2026-09-02"]


@pytest.mark.parametrize(
    ("args", "count"),
    [
        (["--since", "2026-09-02"], 2),
        (["--until", "2026-09-01"], 1),
        (["2026-09-02"], 2),
        (["2026-09"], 3),
        (["2026-08"], 0),
        (["--since", "2026-09-01", "--until", "2026-09-01"], 1),
        (["--user", "ann"], 1),
        (["--model", "gpt*", "--status", "ok"], 1),
        (["--status", "4xx"], 1),
        (["--property", "env=prod"], 1),
        (["--session", "s1", "--provider", "openai"], 1),
        (["--top", "1"], 3),
    ],
)
def test_costs_filters(logged: Path, args: list[str], count: int) -> None:
    assert json.loads(run(costs, "-j", *args).stdout)["total"]["requests"] == count


def test_costs_csv_guards_formulas_and_has_no_total(logged: Path) -> None:
    lines = run(costs, "-f", "csv").stdout_bytes.decode().split("\r\n")
    assert lines[0].startswith("model,requests,errors,hits,input_tokens")
    assert [line.split(",")[0] for line in lines[1:]] == ["gpt-4o", "'=odd", ""]


def test_order_asked_for_is_that_of_the_days(logged: Path) -> None:
    rows = json.loads(run(costs, "-j", "--by", "day", "--order", "desc").stdout)["rows"]
    assert [row["day"] for row in rows] == ["2026-09-02", "2026-09-01"]


def test_nothing_found_is_no_error(logged: Path) -> None:
    result = run(costs, "--user", "nobody")
    assert result.stdout.split()[0] == "model"
    assert "No requests match" in result.stderr
    assert run(requests, "--user", "nobody", "-f", "csv").stdout.startswith("id,created_at,")
    assert json.loads(run(requests, "--user", "nobody", "-j").stdout)["rows"] == []


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--by", "colour"], "cannot group by 'colour'; expected one of model, provider"),
        (["--since", "soon"], "'soon' is not a time; expected a date or time"),
        (["--status", "meh"], "unknown status 'meh'; expected ok, error"),
        (["--property", "env"], "'env' is not a property; expected NAME=VALUE"),
        (["-z", "Mars"], "unknown time zone 'Mars'; expected a name such as"),
        (["-f", "xml"], "'xml' is not one of"),
        (["--sort", "colour"], "'colour' is not one of"),
    ],
)
def test_bad_value_is_a_usage_error_that_names_what_was_expected(logged: Path, args: list[str], said: str) -> None:
    result = CliRunner().invoke(costs, args)
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize("command", [costs, requests, sessions])
def test_missing_database_is_explained(home: Path, command: Any) -> None:
    result = run(command, code=1)
    assert "there is no database at" in result.stderr
    assert not home.exists()


def test_file_that_is_no_database_is_explained(tmp_path: Path) -> None:
    file = tmp_path / "x.db"
    file.write_text("hello" * 100)
    assert "not a SQLite database" in run(costs, "--db", str(file), code=1).stderr


def test_home_and_db_name_another_place(logged: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    shutil.copy(logged / "heliproxy.db", copy)
    shutil.rmtree(logged)
    assert json.loads(run(costs, "-j", "--db", str(copy)).stdout)["total"]["requests"] == 3
    (tmp_path / "there").mkdir()
    shutil.move(copy, tmp_path / "there" / "heliproxy.db")
    assert json.loads(run(costs, "-j", "--home", str(tmp_path / "there")).stdout)["total"]["requests"] == 3


def test_reports_while_the_proxy_writes(logged: Path) -> None:
    writer = Store(logged / "heliproxy.db").writer()
    writer.add(record("new"))
    writer.flush()
    assert writer._conn is not None
    writer._conn.execute("BEGIN IMMEDIATE")
    assert json.loads(run(costs, "-j").stdout)["total"]["requests"] == 4
    writer._conn.execute("ROLLBACK")
    writer.close()


def test_requests_newest_first_and_harmless(logged: Path) -> None:
    result = run(requests)
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["00000000-err", ID2, ID1]
    assert "\x1b" not in result.stdout
    assert "hello \\x1b[31mthere" in result.stdout
    assert run(requests, "-n", "1").stdout.splitlines()[-1] == "The newest 1 only; more with -n."


def test_requests_for_programs_have_every_column(logged: Path) -> None:
    [row] = json.loads(run(requests, "-j", "--user", "ann").stdout)["rows"]
    assert (row["id"], row["cost_usd"], row["properties"], row["saved_usd"]) == (ID1, 0.003, {"env": "prod"}, None)
    assert len(run(requests, "-f", "ndjson").stdout.splitlines()) == 3


def test_show_has_everything(logged: Path) -> None:
    writer = Store(logged / "heliproxy.db").writer()
    writer.add_feedback(ID1, True)
    writer.close()
    text = run(show, "2050c").stdout
    for part in (
        ID1,
        "1.50 s, first token after 200 ms",
        "$0.003",
        "env",
        "helicone-score-feedback",
        '  "messages": []',
    ):
        assert part in text
    assert "\x1b" not in text
    assert '{"model":"gpt-4o","messages":[]}' in run(show, ID1, "--raw").stdout
    unknown = run(show, ID2).stdout
    assert "unknown" in unknown
    assert "https://a" in unknown


def test_show_json_has_bodies(logged: Path) -> None:
    document = json.loads(run(show, ID1, "-j").stdout)
    assert document["request"]["body"] == {"model": "gpt-4o", "messages": []}
    assert document["response"]["type"] == "text/event-stream"
    assert (document["cost_usd"], document["usage"]) == (0.003, None)


def test_attempts_are_a_number_and_their_details_a_list_in_all_json(home: Path) -> None:
    details = [{"target": "https://a", "status": 500}, {"target": "https://a", "status": 200}]
    usage = '{"total_tokens":3,"odd":NaN}'
    put(
        home,
        record(ID1, attempts=1, cost_usd=0.1 + 0.2, usage_json=usage, attempts_json="[" * 5000),
        record(ID2, attempts=2, attempts_json=json.dumps(details), cost_usd=0.0),
    )
    listed = json.loads(run(requests, "--oldest", "-j").stdout)["rows"]
    assert run(tail, "--once", "-f", "json").stdout == run(tail, "--once", "-f", "ndjson").stdout
    followed = [json.loads(line) for line in run(tail, "--once", "-f", "ndjson").stdout.splitlines()]
    shown = [json.loads(run(show, key, "-j").stdout) for key in (ID1, ID2)]
    for rows in (listed, followed, shown):
        assert [(row["attempts"], row["attempt_details"], row["cost_usd"]) for row in rows] == [
            (1, [], 0.3),
            (2, details, 0),
        ]
        assert rows[0]["usage"] == {"total_tokens": 3, "odd": None}
        assert not {"usage_json", "attempts_json"} & set(rows[0])
    assert "attempts_json" in run(requests, "-f", "csv").stdout.splitlines()[0]


def test_show_wants_one_request(logged: Path) -> None:
    assert "no request 'zzz'" in run(show, "zzz", code=1).stderr
    ambiguous = run(show, "01a18f40", code=1).stderr
    assert ID1 in ambiguous
    assert ID2 in ambiguous


def test_tail_once_prints_a_line_a_call(logged: Path) -> None:
    lines = run(tail, "--once").stdout.splitlines()
    assert lines[0].startswith("23:30:00      200  openai gpt-4o  1,000→50 tokens  $0.0030  1.50 s  user=ann  env=prod")
    assert "cost unknown" in lines[1]
    assert lines[2].endswith("slow down")
    [line] = run(tail, "--once", "-n", "1", "-f", "ndjson").stdout.splitlines()
    assert json.loads(line)["id"] == "00000000-err"


def test_follow_waits_for_the_file_and_changes_over_to_a_new_one(home: Path) -> None:
    def step(_: float) -> None:
        actions.pop(0)()

    def delete() -> None:
        for file in home.iterdir():
            file.unlink()

    actions = [lambda: put(home, record("a")), lambda: put(home, record("b")), delete, lambda: put(home, record("c"))]
    seen = []
    for rows in follow(home / "heliproxy.db", Filters(), 10, step):
        seen += [row["id"] for row in rows]
        if seen[-1:] == ["c"]:
            break
    assert seen == ["a", "b", "c"]


def test_sessions_list_and_tree(logged: Path) -> None:
    [row] = json.loads(run(sessions, "-j").stdout)["rows"]
    assert (row["session_id"], row["requests"], row["cost_usd"]) == ("s1", 1, 0.003)
    assert run(sessions, "s1").stdout.splitlines()[:2] == ["/  $0.0030", "  plan  $0.0030"]
    tree = json.loads(run(sessions, "s1", "-j").stdout)["tree"]
    assert tree["children"][0]["requests"][0]["id"] == ID1
    assert "no session 'x'" in run(sessions, "x", code=1).stderr


def test_width_of_the_terminal_is_kept(logged: Path) -> None:
    for line in run(costs, COLUMNS="60").stdout.splitlines()[:6]:
        assert len(line) <= 60


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_copy_in_a_folder_without_write_permission_can_be_read(logged: Path) -> None:
    logged.chmod(0o500)
    try:
        assert json.loads(run(costs, "-j").stdout)["total"]["requests"] == 3
    finally:
        logged.chmod(0o700)


def test_script_is_executable_and_names_the_command() -> None:
    script = Path(__file__).parents[1] / "scripts" / "costs.py"
    assert stat.S_IMODE(script.stat().st_mode) & 0o111
    assert "costs" in script.read_text()


def test_reports_do_not_load_the_heavy_modules() -> None:
    code = "import sys, heliproxy.reports_cli; print([m for m in ('sqlite_utils', 'mitmproxy', 'pydantic', 'tiktoken') if m in sys.modules])"  # noqa: E501
    source = str(Path(heliproxy.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
