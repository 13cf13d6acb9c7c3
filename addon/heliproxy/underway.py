"""Calls that are not over yet: their rows, and which of them will never be finished.

A call that runs longer than a moment gets its row early, with what its request says, `incomplete` 1 and no status; the
final row takes its place. The table `under_way` says which process is at work on it, and each process holds a lock on
a file of its own for as long as it lives. The kernel lets go of the lock when a process is killed, so nothing has to be
written at the end for others to know: rows of a process whose lock is free are lost.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from heliproxy.home import make_private_file, make_private_folder
from heliproxy.statuses import LOST

logger = logging.getLogger(__name__)

FOLDER = "running"
TRIES = 100
LOST_ERROR = "heliproxy ended before the call did"
MARK_LOST = (
    "UPDATE requests SET error_type = ?, error = ? WHERE incomplete = 1"
    " AND id IN (SELECT request_id FROM under_way WHERE process = ?)"
)
FORGET_PROCESS = "DELETE FROM under_way WHERE process = ?"


class Presence:
    """The sign that this process lives: a locked file in the home. Raises OSError from `take`."""

    def __init__(self, home: Path) -> None:
        self._folder = home / FOLDER
        self.name = f"{os.getpid()}-{os.urandom(4).hex()}"
        self._file: int | None = None

    def take(self) -> None:
        make_private_folder(self._folder)
        # Others look at a file by locking it for an instant, and take away one that nobody has locked yet.
        for _ in range(TRIES):
            if self._try():
                return
            time.sleep(0.01)
        raise OSError(f"{self._folder / self.name} cannot be locked")

    def _try(self) -> bool:
        path = self._folder / self.name
        try:
            make_private_file(path)
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            kept = path.exists() and path.stat().st_ino == os.fstat(file).st_ino
        except OSError:
            kept = False
        if kept:
            self._file = file
        else:
            os.close(file)
        return kept

    def drop(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                (self._folder / self.name).unlink()
            os.close(self._file)
            self._file = None


def is_alive(home: Path, name: str) -> bool:
    """Whether the process of this mark still runs."""
    if "/" in name or name.startswith("."):
        return False
    try:
        file = os.open(home / FOLDER / name, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # nobody can tell; calling a call lost that is not would be worse
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    return False


def mark_lost(conn: sqlite3.Connection, home: Path, own: str | None) -> int:
    """Mark the rows that dead processes have left open; returns how many. Raises sqlite3.Error.

    The connection is in autocommit mode. Their marks are cleared away with them.
    """
    dead = [
        name
        for (name,) in conn.execute("SELECT DISTINCT process FROM under_way")
        if name != own and not is_alive(home, name)
    ]
    lost = 0
    for name in dead:
        conn.execute("BEGIN IMMEDIATE")
        try:
            lost += conn.execute(MARK_LOST, (LOST, LOST_ERROR, name)).rowcount
            conn.execute(FORGET_PROCESS, (name,))
            conn.execute("COMMIT")
        except BaseException:
            if conn.in_transaction:
                conn.execute("ROLLBACK")
            raise
    sweep(home)
    return lost


def sweep(home: Path) -> None:
    """Take away the marks of dead processes."""
    with contextlib.suppress(OSError):
        for path in (home / FOLDER).iterdir():
            if not is_alive(home, path.name):
                path.unlink(missing_ok=True)


def lost_ids(conn: sqlite3.Connection, home: Path, rows: Iterable[Mapping[str, Any]]) -> set[str]:
    """Ids of those rows that will never be finished; for readers, who write nothing. Rows that are over are not read.

    A row that nobody is noted to work on was opened by a process that did not say so, and is not known to be lost.
    """
    waiting = [row for row in rows if row.get("incomplete") and row.get("status") is None]
    found = {row["id"] for row in waiting if row.get("error_type") == LOST}
    alive: dict[str, bool] = {}
    for row in waiting:
        with contextlib.suppress(sqlite3.Error):  # a file of an older version has no such table
            for (name,) in conn.execute("SELECT process FROM under_way WHERE request_id = ?", (row["id"],)):
                if name not in alive:
                    alive[name] = is_alive(home, name)
                if not alive[name]:
                    found.add(row["id"])
    return found
