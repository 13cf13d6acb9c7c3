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
from served import Load, Served, query, served

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
