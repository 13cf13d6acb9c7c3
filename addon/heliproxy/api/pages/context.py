"""What the pages stand on: the home folder, read-only connections, kept results, the reader's time zone."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heliproxy.api.pages.kept import Kept
from heliproxy.api.pages.readers import Readers
from heliproxy.api.pages.window import now_utc
from heliproxy.home import DATABASE_NAME
from heliproxy.policy_store import STATE_NAME, BudgetStore, CacheStore, StateFile
from heliproxy.pricing import Prices
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
    readers: Readers = field(init=False)
    kept: Kept = field(init=False)
    prices: Prices = field(init=False)
    state: StateFile = field(init=False)
    budgets: BudgetStore = field(init=False)
    cache: CacheStore = field(init=False)

    def __post_init__(self) -> None:
        log = self.home / DATABASE_NAME
        self.readers = Readers(log)
        self.kept = Kept(log)
        self.prices = Prices(self.home)
        self.state = StateFile(self.home / STATE_NAME)
        self.budgets = BudgetStore(self.state, log)
        self.cache = CacheStore(self.state)

    def close(self) -> None:
        """Close the files."""
        self.readers.close()
        self.state.close()

    def __del__(self) -> None:
        self.close()

    def health(self) -> str:
        """What was lost, as a sentence; "" when nothing was."""
        recorder = self.recorder()
        if recorder is None:
            return ""
        counters = recorder.counters
        if not counters.lost_rows and not counters.lost_bodies:
            return ""
        return f"{counters.lost_rows:,} rows and {counters.lost_bodies:,} bodies could not be logged"
