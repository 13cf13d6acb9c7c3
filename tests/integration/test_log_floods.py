"""Floods of logs on the port of a real `heliproxy serve`, which is then stopped or killed."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from api_rig import log_body
from fakes import Answer, Upstream
from served import Served, query, served

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="logs are read in the proxy's own process")


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Served]:
    with Upstream(lambda _: Answer(500)) as up, served(tmp_path / "home", up.url) as found:
        yield found


def post(running: Served, count: int) -> set[str]:
    """Post so many logs on one connection; ids of what was accepted, which all were."""
    ids = set()
    with closing(http.client.HTTPConnection("127.0.0.1", running.api_port, timeout=60)) as conn:
        for _ in range(count):
            body = json.dumps(log_body())
            conn.request("POST", "/oai/v1/log", body, {"content-type": "application/json"})
            response = conn.getresponse()
            assert (response.status, response.read()) == (200, b"ok")
            ids.add(response.headers["helicone-id"])
    assert len(ids) == count
    return ids


def children(running: Served) -> set[int]:
    found = subprocess.run(["ps", "--ppid", str(running.running.pid), "-o", "pid="], capture_output=True, text=True)
    return set(map(int, found.stdout.split()))


def is_over(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def flooded(running: Served) -> tuple[set[str], int]:
    """Post logs until a process takes them, and some more; the ids, and that process."""
    ids = post(running, 60)
    assert running.wait_for(lambda: bool(children(running)))
    (child,) = children(running)
    return ids | post(running, 200), child


def test_a_stop_writes_everything_and_leaves_nobody(running: Served) -> None:
    ids, child = flooded(running)
    assert running.stop() == 0
    assert {row["id"] for row in query(running.home)} == ids
    assert is_over(child)
    assert running.errors == ""


def test_nothing_accepted_is_lost_when_the_proxy_is_killed(running: Served) -> None:
    ids, child = flooded(running)
    running.kill()
    assert running.wait_for(lambda: is_over(child))
    found = [row["id"] for row in query(running.home)]
    # Those few that came before the process was there were the proxy's own.
    taken_here = len(ids) - len(found)
    assert 0 <= taken_here <= 60
    assert len(found) == len(set(found))
    assert set(found) <= ids


def test_told_to_end_by_somebody_else_it_writes_and_ends(running: Served) -> None:
    ids, child = flooded(running)
    subprocess.run(["kill", f"-{signal.SIGTERM}", str(child)], check=True)
    assert running.wait_for(lambda: child not in children(running))
    ids |= post(running, 10)
    assert running.health(flush=True)["flushed"]
    health = running.health()
    assert (health["status"], health["rows"], health["lost_rows"]) == ("ok", len(ids), 0)
    assert {row["id"] for row in query(running.home)} == ids
