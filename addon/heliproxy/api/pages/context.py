"""What the pages stand on: the home folder, read-only connections, kept results, the reader's time zone."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heliproxy.api.pages.kept import Kept
from heliproxy.api.pages.window import now_utc
from heliproxy.home import DATABASE_NAME
from heliproxy.policy_store import STATE_NAME, StateFile
from heliproxy.pricing import Prices
from heliproxy.store import open_reader
from heliproxy.times import SystemZone

if TYPE_CHECKING:
    from collections.abc import Callable

    from heliproxy.recorder import Recorder


@dataclass(slots=True, eq=False)
class Pages:
    """Shared by all page handlers; they run on threads."""

    home: Path
    recorder: Callable[[], Recorder | None] = lambda: None
    """The recorder of the proxy these pages belong to, once it runs."""
    stopping: Callable[[], bool] = lambda: False
    """Whether the server wants to end: streams must not keep it."""
    proxy_port: int = 8080
    token: Callable[[], str | None] = lambda: None
    """The token that is asked for, if one is."""
    now: Callable[[], datetime] = now_utc
    zone: Any = field(default_factory=SystemZone)
    kept: Kept = field(init=False)
    prices: Prices = field(init=False)

    def __post_init__(self) -> None:
        self.kept = Kept(self.log)
        self.prices = Prices(self.home)

    @property
    def log(self) -> Path:
        return self.home / DATABASE_NAME

    @contextlib.contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """A read-only connection for the time of a `with`; opening one takes less than a millisecond.

        Raises FileNotFoundError, SchemaError or sqlite3.Error: there is no database that can be read.
        """
        with contextlib.closing(open_reader(self.log)) as conn:
            conn.execute(f"PRAGMA mmap_size = {1 << 30}")
            yield conn

    @contextlib.contextmanager
    def state(self) -> Iterator[StateFile | None]:
        """What the policies remember, for the time of a `with`; None when there is no such file yet."""
        path = self.home / STATE_NAME
        if not path.exists():
            yield None
            return
        state = StateFile(path)
        try:
            yield state
        finally:
            state.close()

    def health(self) -> str:
        """What was lost, as a sentence; "" when nothing was."""
        recorder = self.recorder()
        if recorder is None:
            return ""
        facts = recorder.facts()
        said = []
        if facts["away_since"]:
            said.append(f"the database cannot be written, {facts['unwritten']:,} rows wait")
        if facts["lost_rows"] or facts["lost_bodies"]:
            said.append(f"{facts['lost_rows']:,} rows and {facts['lost_bodies']:,} bodies could not be logged")
        return "; ".join(said)
