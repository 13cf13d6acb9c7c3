"""The database is locked, full, deleted, damaged and made slow under load: traffic goes on, no row is lost."""

from __future__ import annotations

import contextlib
import os
import resource
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fakes import Answer, Asked, Upstream, chat_answer, json_answer
from served import Load, Served, integrity, query, served
from torture.figures import Figure

SHARE = 2.0
CLIENTS = 4
PAUSE = 0.02
LOCK_SECONDS = 30.0
CACHED = {"Helicone-Cache-Enabled": "true"}

Fault = Callable[[Served, float], contextlib.AbstractContextManager[None]]


def answer(asked: Asked) -> Answer:
    return json_answer(chat_answer())


@contextmanager
def locked(running: Served, seconds: float) -> Iterator[None]:
    """By another process, for as long as it takes."""
    conn = sqlite3.connect(running.home / "heliproxy.db", isolation_level=None, check_same_thread=False, timeout=30)
    conn.execute("BEGIN IMMEDIATE")
    yield
    conn.execute("ROLLBACK")
    conn.close()


@contextmanager
def full(running: Served, seconds: float) -> Iterator[None]:
    """No file of the process may grow."""
    usual = resource.prlimit(running.running.pid, resource.RLIMIT_FSIZE)
    size = max(path.stat().st_size for path in running.home.glob("*.db*"))
    resource.prlimit(running.running.pid, resource.RLIMIT_FSIZE, (size, usual[1]))
    yield
    resource.prlimit(running.running.pid, resource.RLIMIT_FSIZE, usual)


@contextmanager
def deleted(running: Served, seconds: float) -> Iterator[None]:
    for end in ("", "-wal", "-shm"):
        Path(f"{running.home / 'heliproxy.db'}{end}").unlink(missing_ok=True)
    yield


@contextmanager
def overwritten(running: Served, seconds: float) -> Iterator[None]:
    with (running.home / "heliproxy.db").open("r+b") as file:
        file.write(os.urandom(1 << 16))
    yield


@contextmanager
def cut(running: Served, seconds: float) -> Iterator[None]:
    os.truncate(running.home / "heliproxy.db", 0)
    yield


@contextmanager
def wal_damaged(running: Served, seconds: float) -> Iterator[None]:
    with contextlib.suppress(FileNotFoundError), (running.home / "heliproxy.db-wal").open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(1 << 14))
    yield


@contextmanager
def policies_damaged(running: Served, seconds: float) -> Iterator[None]:
    with contextlib.suppress(FileNotFoundError), (running.home / "state.db").open("r+b") as file:
        file.write(os.urandom(1 << 14))
    yield


FAULTS: tuple[tuple[Fault, bool], ...] = (
    (locked, True),
    (full, True),
    (deleted, False),
    (overwritten, False),
    (cut, False),
    (wal_damaged, False),
    (policies_damaged, True),
)
"""Each fault, and whether all rows must be in the file afterwards: one that destroys the file may take its rows."""


def slowest_ms(latencies: list[float]) -> float:
    return 1000 * statistics.quantiles(latencies, n=100)[98] if len(latencies) > 100 else 0.0


def run(budget_seconds: float) -> list[Figure]:
    figures: list[Figure] = []
    each = budget_seconds / (len(FAULTS) + 1)
    with tempfile.TemporaryDirectory() as folder, Upstream(answer) as up:
        home = Path(folder) / "home"
        with served(home, up.url) as running:
            with Load(running.port, CLIENTS, pause=PAUSE) as load:
                threading.Event().wait(max(3.0, each / 2))
            usual = slowest_ms(load.latencies)
            figures.append(Figure("slowest hundredth without a fault", usual, "ms"))
            for fault, keeps in FAULTS:
                figures += suffer(running, fault, keeps, min(LOCK_SECONDS, each * 0.6), usual)
            health = running.health(flush=True)
            figures += [
                Figure("rows that /health counts as lost", health["lost_rows"], holds=health["lost_rows"] == 0),
                Figure("memory at the end", running.resident_mib(), "MiB", holds=running.resident_mib() < 300),
                Figure("files set aside", health["damaged_files"]),
            ]
        with served(home, up.url) as running:  # which looks at what the killed one left
            key = running.ask().headers["helicone-id"]
            flushed = bool(running.health(flush=True)["flushed"])
            stored = bool(query(home, "SELECT id FROM requests WHERE id = ?", key))
            running.stop()
        whole = flushed and stored and integrity(home / "heliproxy.db") == "ok"
    return [*figures, Figure("file whole after a restart", int(whole), holds=whole)]


def suffer(running: Served, fault: Fault, keeps: bool, seconds: float, usual: float) -> list[Figure]:
    """One fault under load, and what came of it."""
    name = fault.__name__.replace("_", " ")
    with Load(running.port, CLIENTS, headers=CACHED if "policies" in name else {}, pause=PAUSE) as load:
        threading.Event().wait(0.5)
        with fault(running, seconds):
            before = len(load.answered)
            threading.Event().wait(seconds)
            during = len(load.answered) - before
        ended = time.monotonic()
        running.wait_for(lambda: bool(running.health(flush=True)["flushed"]), 30)
        back = time.monotonic() - ended
    running.wait_for(lambda: bool(running.health(flush=True)["flushed"]), 30)
    stored = {row["id"] for row in query(running.home, "SELECT id FROM requests")}
    late = {key for key, at in load.answered if keeps or at > ended + 1.0}
    wrong = len(load.wrong) + len(load.failures)
    added = max(0.0, slowest_ms(load.latencies) - usual)
    return [
        Figure(f"{name}: calls answered meanwhile", during, f"in {seconds:.0f} s", holds=during > 0),
        Figure(f"{name}: answers that were wrong", wrong, (load.wrong + load.failures)[0] if wrong else "", wrong == 0),
        Figure(f"{name}: rows lost", len(late - stored), "" if keeps else "of those after it", holds=late <= stored),
        Figure(f"{name}: added to the slowest hundredth", added, "ms"),
        Figure(f"{name}: logging came back after", back, "s", holds=back < 15),
    ]
