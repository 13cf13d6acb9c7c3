"""Export and import: formats, resuming, a round trip, and spans for collectors."""

from __future__ import annotations

import csv
import json
import sqlite3
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from heliproxy import exports_cli
from heliproxy.bodies import Body
from heliproxy.export import load_progress, read_exported, read_lines
from heliproxy.home import DATABASE_NAME
from heliproxy.store import Record, Store

SINCE = ["--start-date", "2026-01-01"]


@pytest.fixture
def logged(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    writer = Store(home / DATABASE_NAME).writer()
    for i in range(5):
        row = {
            "id": f"r{i}",
            "created_at": f"2026-03-0{i + 1}T10:00:00.000Z",
            "provider": "openai",
            "host": "api.openai.com",
            "path": "/v1/chat/completions",
            "method": "POST",
            "format": "openai_chat",
            "status": 200 if i else 429,
            "error": None if i else "slow down",
            "error_type": None if i else "rate_limit_error",
            "request_model": "gpt-4o",
            "response_model": "gpt-4o-2024",
            "model": "gpt-4o-2024",
            "input_tokens": 100,
            "cache_read_tokens": 40,
            "output_tokens": 20,
            "reasoning_tokens": 5,
            "usage_source": "provider",
            "cost_usd": 0.25,
            "cost_source": "genai-prices",
            "latency_ms": 1234.0,
            "user_id": "=cmd()",
            "session_id": "s1",
            "session_name": "Chat",
            "source": "proxy",
            "incomplete": 0,
        }
        body = Body(
            b'{"messages": [{"role": "user", "content": "hi"}]}',
            b'{"choices": [{"message": {"role": "assistant", "content": "yo"}}]}',
            "application/json",
            "application/json",
        )
        properties = {"env": ("dev", "prod")[i % 2], "Helicone-Session-Id": "s1", "Helicone-Session-Name": "Chat"}
        writer.add(Record(row, properties, body))
    writer.flush(force=True)
    writer.add_feedback("r1", True)
    writer.add_scores("r1", {"q": 0.5})
    writer.close()
    return tmp_path


def run(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(exports_cli.export, [*SINCE, *args])
    assert result.exit_code == code, result.output
    return result


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_json_lines_are_the_default(logged: Path) -> None:
    result = run()
    assert "5 requests written to output.jsonl" in result.stderr
    found = lines(logged / "output.jsonl")
    assert [row["request_id"] for row in found] == ["r0", "r1", "r2", "r3", "r4"]
    row = found[1]
    assert (row["prompt_tokens"], row["completion_tokens"], row["cost"]) == (60, 15, 0.25)
    assert (row["feedback_rating"], row["scores"]["q"]) == (True, 0.5)
    assert row["request_body"] == {}
    assert not (logged / ".helicone-export-state.json").exists()


def test_bodies_properties_and_limits(logged: Path) -> None:
    run("--include-body", "-p", "ENV=prod", "-o", "p.jsonl", "--limit", "1", "--batch-size", "1")
    (row,) = lines(logged / "p.jsonl")
    assert row["request_id"] == "r1"
    assert row["response_body"]["choices"][0]["message"]["content"] == "yo"
    run("--end-date", "2026-03-02", "-o", "d.jsonl", "--log-level", "quiet")
    assert [row["request_id"] for row in lines(logged / "d.jsonl")] == ["r0", "r1"]


def test_csv_has_helicones_columns_and_no_formulas(logged: Path) -> None:
    result = run("--format", "csv", "-o", "-", "--log-level", "quiet")
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert list(rows[0]) == [
        "response_id", "response_created_at", "response_status", "request_created_at", "request_body",
        "request_properties", "request_user_id", "model", "prompt_tokens", "completion_tokens", "latency", "cost",
    ]  # fmt: skip
    assert rows[0]["request_user_id"] == "'=cmd()"
    assert (rows[0]["latency"], rows[0]["response_status"]) == ("1234", "429")
    assert json.loads(rows[0]["request_properties"])["env"] == "dev"


def test_json_is_one_array(logged: Path) -> None:
    run("--format", "json")
    assert len(json.loads((logged / "output.json").read_text())) == 5
    run("--format", "json", "-p", "env=none", "-o", "none.json")
    assert json.loads((logged / "none.json").read_text()) == []


def test_an_interrupted_export_goes_on(logged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from heliproxy import export

    real = export.exported
    seen: list[str] = []

    def stops(conn: sqlite3.Connection, row: Any, *, bodies: bool) -> dict[str, Any]:
        seen.append(row["id"])
        if len(seen) == 4:
            raise KeyboardInterrupt
        return real(conn, row, bodies=bodies)

    monkeypatch.setattr(export, "exported", stops)
    assert CliRunner().invoke(exports_cli.export, [*SINCE, "--batch-size", "2"]).exit_code != 0
    monkeypatch.setattr(export, "exported", real)
    with (logged / "output.jsonl").open("a") as file:
        file.write('{"half a li')
    result = run("--resume")
    assert "going on after 2 requests" in result.stderr
    assert [row["request_id"] for row in lines(logged / "output.jsonl")] == ["r0", "r1", "r2", "r3", "r4"]


def test_a_broken_state_is_named(logged: Path) -> None:
    state = logged / ".helicone-export-state.json"
    state.write_text("{")
    with pytest.raises(ValueError, match="is not the state of an export"):
        load_progress(state)
    assert "--clean-state" in run("--resume", code=1).output
    run("--clean-state", "--resume")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-p", "env"], "expected KEY=VALUE"),
        (["--end-date", "someday"], "is not a time"),
        (["--format", "otlp", "--header", "x"], "expected NAME=VALUE"),
    ],
)
def test_wrong_options_are_named(logged: Path, args: list[str], message: str) -> None:
    result = CliRunner().invoke(exports_cli.export, [*SINCE, *args])
    assert result.exit_code != 0
    assert message in result.output


def table(path: Path, name: str) -> list[dict[str, Any]]:
    conn = sqlite3.connect(path)
    conn.row_factory = sqlite3.Row
    found = [dict(row) for row in conn.execute(f"SELECT * FROM {name} ORDER BY 1, 2, 3")]
    conn.close()
    return found


def test_what_is_exported_can_be_imported_whole(logged: Path, home: Path, tmp_path: Path) -> None:
    run("--include-body")
    other = tmp_path / "other"
    result = CliRunner().invoke(exports_cli.import_command, ["output.jsonl", "--home", str(other)])
    assert result.exit_code == 0, result.output
    assert "5 requests imported, 0 were there already" in result.stderr
    for name in ("requests", "properties", "scores", "feedback"):
        ours, theirs = table(home / DATABASE_NAME, name), table(other / DATABASE_NAME, name)
        assert len(theirs) == len(ours)
        for before, after in zip(ours, theirs, strict=True):
            assert {**after, "created_at": before.get("created_at")} == {
                **before, "created_at": before.get("created_at")
            }, name  # fmt: skip
    again = CliRunner().invoke(exports_cli.import_command, ["output.jsonl", "--home", str(other)])
    assert "0 requests imported, 5 were there already" in again.stderr


HELICONE = {
    "request_id": "h1",
    "request_created_at": "2026-01-02 03:04:05.678",
    "response_status": 200,
    "provider": "ANTHROPIC",
    "model": "claude-3-5-haiku-20241022",
    "target_url": "https://api.anthropic.com/v1/messages",
    "prompt_tokens": 10,
    "prompt_cache_read_tokens": 90,
    "completion_tokens": 5,
    "costUSD": 0.002,
    "delay_ms": 400,
    "request_user_id": "",
    "properties": {"Helicone-Session-Id": "s9", "n": 1, "bad": None},
    "scores": {"q": 1},
    "feedback_rating": False,
    "request_body": {"helicone_message": "fetching body from signed_url"},
    "response_body": "",
}


def test_helicones_own_export_is_understood() -> None:
    found = read_exported(HELICONE)
    row = found.record.row
    assert (row["created_at"], row["provider"], row["host"]) == (
        "2026-01-02T03:04:05.678Z",
        "anthropic",
        "api.anthropic.com",
    )
    assert (row["input_tokens"], row["output_tokens"], row["cost_usd"], row["cost_source"]) == (100, 5, 0.002, "import")
    assert (row["session_id"], row["user_id"], row["source"]) == ("s9", None, "import")
    assert found.record.body is None
    assert dict(found.record.properties) == {"Helicone-Session-Id": "s9", "n": "1"}
    assert (found.rating, found.scores) == (False, {"q": 1.0})


def test_bad_lines_are_left_out(tmp_path: Path) -> None:
    good = json.dumps(HELICONE)
    text = [good, "", "{", "[]", '{"request_id": "x"}', '{"request_id": 5}', "[" * 100_000]
    found = list(read_lines(text))
    assert [number for number, _ in found] == [1, 3, 4, 5, 6, 7]
    assert [str(one) for _, one in found[2:5]] == [
        "it is not a JSON object",
        "its request_created_at is not a time",
        "it has no request_id",
    ]
    file = tmp_path / "x.jsonl"
    file.write_text("\n".join(text))
    result = CliRunner().invoke(exports_cli.import_command, [str(file), "--home", str(tmp_path / "h")])
    assert result.exit_code == 0
    assert "1 request imported, 0 were there already, 5 lines left out" in result.stderr


def test_import_of_a_file_of_another_kind_says_what_it_reads(tmp_path: Path) -> None:
    file = tmp_path / "out.csv"
    file.write_text("response_id,cost\na,0.1\n")
    result = CliRunner().invoke(exports_cli.import_command, [str(file), "--home", str(tmp_path / "h")])
    assert result.exit_code == 1
    assert result.stderr.endswith(
        "out.csv holds no exported requests: import reads what export writes as jsonl or json\n"
    )


@pytest.fixture
def collector() -> Iterator[Any]:
    """An OTLP collector on loopback: its address and the exports it got; the first is answered 503."""
    got: list[tuple[dict[str, str], ExportTraceServiceRequest]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["content-length"]))
            got.append(({n.lower(): v for n, v in self.headers.items()}, ExportTraceServiceRequest.FromString(raw)))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces", got
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_collector_gets_spans_by_the_conventions(
    logged: Path, collector: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="heliproxy[otel] is not installed")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    endpoint, got = collector
    run("--format", "otlp", "--endpoint", endpoint, "--header", "authorization=Bearer x", "--include-body")
    assert got[0][0]["authorization"] == "Bearer x"
    spans = [
        span
        for _, export in got
        for resource in export.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert len(spans) == 5
    assert len({span.trace_id for span in spans}) == 1  # one session is one trace
    assert len({span.span_id for span in spans}) == 5
    first, second = spans[:2]
    assert (first.status.code, first.status.message) == (2, "slow down")
    assert second.name == "chat gpt-4o"
    assert second.end_time_unix_nano - second.start_time_unix_nano == 1_234_000_000
    told = {pair.key: pair.value for pair in second.attributes}
    assert told["gen_ai.usage.input_tokens"].int_value == 100
    assert told["gen_ai.usage.cost"].double_value == 0.25
    assert told["gen_ai.request.model"].string_value == "gpt-4o"
    assert told["session.id"].string_value == "s1"
    assert told["helicone.property.env"].string_value == "prod"
    assert json.loads(told["gen_ai.output.messages"].string_value) == [
        {"role": "assistant", "parts": [{"type": "text", "content": "yo"}]}
    ]


def test_what_we_send_we_can_take(logged: Path, collector: Any) -> None:
    from heliproxy.ingest_otlp import read_protobuf, span_exchanges

    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="heliproxy[otel] is not installed")
    endpoint, got = collector
    run("--format", "otlp", "--endpoint", endpoint, "--include-body", "--limit", "2")
    spans = read_protobuf(got[0][1].SerializeToString())
    _, exchange = span_exchanges(spans, [], 0.0)
    assert exchange.route.provider == "openai"
    assert exchange.directives.session_id == "s1"
    assert exchange.sink.result().usage.input_tokens == 100
