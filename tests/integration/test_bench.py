"""`scripts/bench.py`: it runs, checks what it measures, and prints its tables. No time is asserted anywhere."""

from __future__ import annotations

import importlib
import os
import re
import signal
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
BENCH = SCRIPTS / "bench.py"
FIGURE = r"\d+(?:\.\d+)?"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import one of the modules beside the script, as the script does."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module


def run(*arguments: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH), *arguments]
    environment = {**os.environ, "TMPDIR": str(folder), **variables}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def rows_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@needs_linux
def test_it_prints_a_table_with_all_peers_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = run("--workloads", "W1", "--seconds", "0.3", "--rounds", "1", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    header, _, *cells = rows_of(done.stdout)
    assert header[:2] == ["connections", "peer"]
    assert header[-4:] == ["CPU ms/req", "peak MiB", "CPU / mitmdump", "failed"]
    assert [row[:2] for row in cells] == [
        [connections, peer] for connections in ("1", "16", "64") for peer in ("direct", "mitmdump", "heliproxy")
    ]
    for row in cells:
        assert row[-1] == "0"
        assert all(re.fullmatch(FIGURE, cell) for cell in row[2:6]), row
        assert (row[-2] == "–") is (row[1] == "direct")
    logged = re.search(r"heliproxy: ([\d,]+) requests, ([\d,]+) rows: each logged\.", done.stdout)
    assert logged is not None
    assert logged[1] == logged[2] != "0"
    assert list(tmp_path.iterdir()) == []


@needs_linux
def test_it_ends_what_it_started_when_it_is_told_to(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCH), "--workloads", "W1", "--peers", "mitmdump", "--seconds", "0.2"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [*command, "--rounds", "1000"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as bench:
        assert bench.stderr is not None
        assert "round 1" in bench.stderr.readline()
        listed = subprocess.run(["ps", "--ppid", str(bench.pid), "-o", "pid="], capture_output=True, text=True)
        children = listed.stdout.split()
        assert len(children) == 3
        bench.send_signal(signal.SIGTERM)
        bench.communicate(timeout=60)
    assert bench.returncode == 128 + signal.SIGTERM
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert list(tmp_path.iterdir()) == []


@needs_linux
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workloads", "W1,W7"], "'W7' is none of W1, W2, W3, W4, W5, W6, W9"),
        (["--peers", "nginx"], "'nginx' is none of direct, mitmdump, mitmdump-stream, heliproxy"),
        (["--seconds", "0"], "0 is not above 0"),
        (["--rounds", "-1"], "-1 is not above 0"),
        (["--workers", "1"], "1 is not above 1"),
    ],
)
def test_it_says_what_is_wrong(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = run(*arguments, folder=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr


def test_it_says_that_it_needs_linux(scripts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    measuring = scripts("measuring")
    monkeypatch.setattr(measuring.platform, "system", lambda: "Darwin")
    with pytest.raises(SystemExit, match="This needs Linux"):
        measuring.need_linux()


def test_report_takes_the_best_cpu_and_the_median_of_the_rest(scripts: Any) -> None:
    bench = scripts("bench")

    def one(p50: float, cpu: float | None, failed: int = 0) -> dict[str, Any]:
        latency = {"p50": p50, "p90": 2 * p50, "p99": 3 * p50}
        failures = {"status 500": failed} if failed else {}
        used = {} if cpu is None else {"cpu_ms": cpu, "peak_mib": 80 + cpu}
        return {"requests": 100, "per_second": 1000 / p50, "latency": latency, "failures": failures, **used}

    cells = {
        "W5": {
            16: {
                "direct": [one(1, None), one(3, None), one(2, None)],
                "mitmdump": [one(4, 2.5, 10), one(5, 2.0, 12), one(4, 3.0, 8)],
                "heliproxy": [one(4, 1.25), one(2, 1.0), one(2, 1.5)],
            }
        }
    }
    assert rows_of("\n".join(bench.report(cells)))[2:] == [
        ["16", "direct", "500", "2.00", "4.00", "6.00", "–", "–", "–", "0"],
        ["16", "mitmdump", "250", "4.00", "8.00", "12.00", "2.000", "83", "1.00x", "30 (10.0%; status 500)"],
        ["16", "heliproxy", "500", "2.00", "4.00", "6.00", "1.000", "82", "0.50x", "0"],
    ]


class Wire:
    """Stands in for a transport: keeps what is written."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return False


def read_by_load(scripts: Any, answer: bytes, step: int, size: int, events: int) -> Any:
    """What the load makes of one answer that comes in pieces of `step` bytes."""
    load = scripts("bench_load")
    job = load.Job(
        connect=("127.0.0.1", 1),
        target="localhost:1",
        tunnel=False,
        trust="",
        headers=[],
        prompt=1024,
        unique=True,
        connections=1,
        fresh=True,
        size=size,
        events=events,
        warm_up=0,
        seconds=0,
    )
    callers = load.Load(job)
    connection = load.Connection(callers)
    connection.transport = Wire()
    connection._ask(0.0)
    head, _, body = connection.transport.written.partition(b"\r\n\r\n")
    assert len(body) == 1024
    assert b"content-length: 1024" in head
    for start in range(0, len(answer), step):
        connection.data_received(answer[start : start + step])
    return callers.tally


@pytest.mark.parametrize("step", [1, 2, 7, 100_000])
def test_load_reads_answers_cut_anywhere(scripts: Any, step: int) -> None:
    upstream = scripts("bench_upstream")
    whole = upstream.json_answer(4096)
    stream = upstream.STREAM_HEAD + b"".join(upstream.events(100))
    for answer, size, events in ((whole, 4096, 0), (stream, 0, 102)):
        tally = read_by_load(scripts, answer, step, size, events)
        assert (len(tally.took), dict(tally.failures)) == (1, {})


@pytest.mark.parametrize(
    ("size", "events", "said"),
    [(1024, 0, "4096 bytes, not 1024"), (0, 3, "0 events, not 3")],
)
def test_load_notices_another_answer(scripts: Any, size: int, events: int, said: str) -> None:
    tally = read_by_load(scripts, scripts("bench_upstream").json_answer(4096), 1000, size, events)
    assert dict(tally.failures) == {said: 1}


def test_load_notices_a_missing_event_and_a_failure(scripts: Any) -> None:
    upstream = scripts("bench_upstream")
    stream = upstream.STREAM_HEAD + b"".join(upstream.events(100)[1:])
    assert dict(read_by_load(scripts, stream, 50, 0, 102).failures) == {"101 events, not 102": 1}
    assert dict(read_by_load(scripts, upstream.FAILURE, 50, 1024, 0).failures) == {"status 500": 1}


def test_every_tenth_answer_fails(scripts: Any) -> None:
    asked = scripts("bench_upstream").behaviour("bytes=100 failing=10")
    assert [asked.fails() for _ in range(20)].count(True) == 2


def test_certificate_is_signed_by_the_authority_that_is_told(scripts: Any, tmp_path: Path) -> None:
    trusted = scripts("bench_upstream").write_certificate(tmp_path)
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=str(trusted))
    server.load_cert_chain(tmp_path / "upstream.pem")
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname="localhost"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for end in ends * 3:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    assert ends[0].getpeercert()["subjectAltName"] == (("DNS", "localhost"),)
