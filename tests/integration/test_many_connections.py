"""A burst of clients is neither turned away nor told to come again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from fakes import Answer, Asked, Upstream, json_answer
from served import served

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the limits of a process from /proc")

BURST = 400


def hello(_: Asked) -> Answer:
    return json_answer({"choices": []})


def few_files() -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))


@pytest.mark.parametrize("options", [(), ("--workers", "2")], ids=["alone", "workers"])
def test_a_burst_waits_to_be_accepted(tmp_path: Path, options: tuple[str, ...]) -> None:
    with Upstream(hello) as up, served(tmp_path / "home", up.url, *options) as run, contextlib.ExitStack() as stack:
        first = run.running.pid
        children = Path(f"/proc/{first}/task/{first}/children").read_text("ascii").split()
        pids = [first, *map(int, children)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            for _ in range(BURST):
                stack.enter_context(socket.create_connection(("127.0.0.1", run.port), timeout=2))
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        assert run.ask().status == 200


def test_as_many_files_are_allowed_as_the_system_lets_it(tmp_path: Path) -> None:
    with Upstream(hello) as up, served(tmp_path / "home", up.url, before=few_files) as run:
        line = next(x for x in Path(f"/proc/{run.running.pid}/limits").read_text().splitlines() if "open files" in x)
        soft, hard = line.split()[3:5]
        assert soft in {"65536", hard}
