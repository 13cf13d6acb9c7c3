"""`heliproxy serve --workers 2`: one port, exact limits, nothing lost, and nobody left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fakes import Answer, Asked, Upstream, json_answer
from served import ROOT, Load, Served, query, served

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes share a listening socket on POSIX only")

HELLO = {"choices": [{"message": {"content": "Hello!"}}], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


def hello(_: Asked) -> Answer:
    return json_answer(HELLO)


def workers_of(run: Served) -> set[int]:
    found = subprocess.run(["ps", "--ppid", str(run.running.pid), "-o", "pid="], capture_output=True, text=True)
    return set(map(int, found.stdout.split()))


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_two_workers_serve_one_port_and_lose_no_row(tmp_path: Path) -> None:
    with Upstream(hello) as up, served(tmp_path / "home", up.url, "--workers", "2") as run:
        assert len(workers_of(run)) == 2
        with Load(run.port, clients=16) as load:
            assert run.wait_for(lambda: len(load.answered) >= 300)
        assert (load.wrong, load.failures) == ([], [])
        assert run.stop() == 0
    rows = query(tmp_path / "home")
    assert {row["id"] for row in rows} == {key for key, _ in load.answered}
    assert len(rows) == len(load.answered) == len(up.asked)


def test_a_limit_is_exact_over_all_workers(tmp_path: Path) -> None:
    with Upstream(hello) as up, served(tmp_path / "home", up.url, "--workers", "2") as run:
        limited = {"Helicone-RateLimit-Policy": "10;w=3600"}
        with ThreadPoolExecutor(50) as pool:
            found = list(pool.map(lambda _: run.ask(headers=limited).status, range(100)))
        assert (found.count(200), found.count(429), len(up.asked)) == (10, 90, 10)


def test_an_answer_cached_by_one_is_given_by_the_other(tmp_path: Path) -> None:
    with Upstream(hello) as up, served(tmp_path / "home", up.url, "--workers", "2") as run:
        cached = {"Helicone-Cache-Enabled": "true"}
        assert run.ask(headers=cached).headers["helicone-cache"] == "MISS"
        with ThreadPoolExecutor(8) as pool:
            found = {
                answer.headers["helicone-cache"] for answer in pool.map(lambda _: run.ask(headers=cached), range(40))
            }
        assert (found, len(up.asked)) == ({"HIT"}, 1)


def test_health_speaks_of_all_workers(tmp_path: Path) -> None:
    with Upstream(hello) as up, served(tmp_path / "home", up.url, "--workers", "3") as run:
        with Load(run.port, clients=24) as load:
            assert run.wait_for(lambda: len(load.answered) >= 300)
        facts = run.health(flush=True)
        assert (facts["status"], facts["recorder"], facts["flushed"]) == ("ok", "running", True)
        assert facts["rows"] == facts["written"] == len(load.answered)
        assert [worker["worker"] for worker in facts["workers"]] == [0, 1, 2]
        assert {worker["pid"] for worker in facts["workers"]} == workers_of(run)
        assert sum(worker["rows"] > 0 for worker in facts["workers"]) >= 2
        # At the proxy's port it is any of them that answers.
        for _ in range(6):
            found = Served._fetch(run.port, "GET", "/health", None, {}, 20).json
            assert (found["rows"], len(found["workers"])) == (len(load.answered), 3)
        doctor = [sys.executable, "-m", "heliproxy", "doctor", "--quick", "--home", str(tmp_path / "home")]
        command, env = [*doctor, "--port", str(run.port)], os.environ | {"PYTHONPATH": str(ROOT / "addon")}
        said = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60).stdout
        assert f"serves on {run.port} with 3 workers" in said
        assert f"none in {len(load.answered)} rows since it started" in said


def test_health_says_which_worker_does_not_answer(tmp_path: Path) -> None:
    with Upstream(hello) as up, served(tmp_path / "home", up.url, "--workers", "2") as run:
        first, second = (worker["pid"] for worker in run.health()["workers"])
        os.kill(second, signal.SIGSTOP)
        try:
            facts = run.health()
        finally:
            os.kill(second, signal.SIGCONT)
        assert (facts["status"], facts["recorder"]) == ("degraded", "silent")
        assert [(worker["worker"], worker["recorder"]) for worker in facts["workers"]] == [
            (0, "running"),
            (1, "silent"),
        ]
        run.running.send_signal(signal.SIGSTOP)  # so that it starts no other before we have looked
        try:
            os.kill(second, signal.SIGKILL)
            assert run.wait_for(lambda: run.health()["workers"][1]["recorder"] == "stopped")
        finally:
            run.running.send_signal(signal.SIGCONT)
        assert run.wait_for(lambda: run.health()["workers"][1].get("pid") in workers_of(run) - {first})
        assert run.wait_for(lambda: run.health()["status"] == "ok")


def test_a_worker_that_is_killed_is_started_again(tmp_path: Path) -> None:
    with Upstream(hello) as up, served(tmp_path / "home", up.url, "--workers", "2") as run:
        before = workers_of(run)
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        assert run.ask().status == 200  # the other one goes on
        assert run.wait_for(lambda: len(workers_of(run) - before) == 1)
        assert run.wait_for(lambda: run.errors.count("started again") == 1)
        assert "ended with status -9 and is started again" in run.errors
        assert run.ask().status == 200
        assert run.stop() == 0


def test_workers_end_with_the_process_that_watches_over_them(tmp_path: Path) -> None:
    with Upstream(hello) as up, served(tmp_path / "home", up.url, "--workers", "2") as run:
        left = workers_of(run)
        run.kill()
        assert run.wait_for(lambda: not any(map(lives, left)))


def test_a_taken_port_is_said_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "heliproxy", "serve", "--workers", "2", "--port", str(port), "--api-port", "0"]
        done = subprocess.run([*command, "--home", str(tmp_path / "home")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert (
        done.stderr == f"Error: cannot listen on 127.0.0.1:{port}: Address already in use; another --port may be free\n"
    )
