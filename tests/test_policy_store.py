"""state.db: what survives restarts, kills and other processes (issue 3, "It holds when" 3 and 4)."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from heliproxy import policy_store
from heliproxy.policies.budget import Spender, SpendingUnknownError, make_budget, unknown_answer
from heliproxy.policies.cache import CacheEntry
from heliproxy.policies.ratelimit import parse_policy
from heliproxy.policy_store import BudgetStore, CacheStore, LimitStore, StateFile, steady_clock

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = b"k" * 32
POLICY = parse_policy("10;w=60")
NOW = datetime(2026, 3, 19, 15, 30, tzinfo=UTC)
SOURCE = str(Path(__file__).resolve().parents[1] / "addon")


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateFile]:
    found = StateFile(tmp_path / "home" / "state.db")
    yield found
    found.close()


@pytest.fixture
def other(state: StateFile) -> Iterator[StateFile]:
    """The same file as another process sees it."""
    found = StateFile(state.path)
    yield found
    found.close()


def entry(name: str, size: int = 10, created: float = 1000.0) -> CacheEntry:
    body = name.encode().ljust(size, b"\xff")
    return CacheEntry(
        200, (("content-type", "text/event-stream"), ("x", "ü")), body, 12.5, created, name, 0.25, {"a": 1}
    )


def test_file_is_private(state: StateFile) -> None:
    LimitStore(state).take("b", POLICY, 0.0)
    assert state.path.stat().st_mode & 0o777 == 0o600
    assert state.path.parent.stat().st_mode & 0o777 == 0o700


# --- cache ------------------------------------------------------------------------------------------------------------


def test_entry_comes_back_from_memory_and_from_disk(state: StateFile, other: StateFile) -> None:
    mine, theirs = CacheStore(state), CacheStore(other)
    assert mine.lookup_memory(KEY, 1, 0.0) is None
    assert mine.lookup_disk(KEY, 1, 0.0) == [None]
    assert mine.save(KEY, 1, entry("a"), 60, 0.0) == 0
    assert mine.lookup_memory(KEY, 1, 0.0) == [entry("a")]
    assert theirs.lookup_memory(KEY, 1, 0.0) is None
    assert theirs.lookup_disk(KEY, 1, 0.0) == [entry("a")]
    assert theirs.lookup_memory(KEY, 1, 0.0) == [entry("a")]


def test_bucket_fills_from_the_first_free_place_and_replaces_nothing(state: StateFile, other: StateFile) -> None:
    mine, theirs = CacheStore(state), CacheStore(other)
    assert mine.save(KEY, 2, entry("a"), 60, 0.0) == 0
    assert mine.lookup_memory(KEY, 2, 0.0) is None
    assert mine.lookup_disk(KEY, 2, 0.0) == [entry("a"), None]
    assert theirs.save(KEY, 2, entry("b"), 60, 0.0) == 1
    assert mine.save(KEY, 2, entry("c"), 60, 0.0) is None
    assert mine.lookup_disk(KEY, 2, 0.0) == [entry("a"), entry("b")]


def test_entry_expires_by_the_wall_clock(state: StateFile) -> None:
    store = CacheStore(state)
    store.save(KEY, 1, entry("a"), 60, 1000.0)
    assert store.lookup_memory(KEY, 1, 1059.0) == [entry("a")]
    assert store.lookup_memory(KEY, 1, 1060.0) is None
    assert store.lookup_disk(KEY, 1, 1060.0) == [None]
    assert store.save(KEY, 1, entry("b"), 60, 1060.0) == 0
    assert store.lookup_disk(KEY, 1, 1061.0) == [entry("b")]


@pytest.mark.parametrize(("bucket", "ttl"), [(1, 0), (0, 60), (-3, 60)])
def test_nothing_is_saved_without_a_place_or_a_life(state: StateFile, bucket: int, ttl: int) -> None:
    store = CacheStore(state)
    assert store.save(KEY, bucket, entry("a"), ttl, 0.0) is None
    assert store.lookup_disk(KEY, 1, 0.0) == [None]


def test_memory_is_bounded_and_disk_still_answers(state: StateFile) -> None:
    store = CacheStore(state, memory_bytes=3000)
    for name in "abcde":
        store.save(name.encode(), 1, entry(name, 500), 60, 0.0)
    store.save(b"big", 1, entry("big", 5000), 60, 0.0)
    assert [store.lookup_memory(n.encode(), 1, 0.0) is not None for n in "abcde"] == [False, False, False, True, True]
    assert store.lookup_memory(b"big", 1, 0.0) is None
    assert store.lookup_disk(b"a", 1, 0.0) == [entry("a", 500)]
    assert store.lookup_disk(b"big", 1, 0.0) == [entry("big", 5000)]


def test_purge_removes_expired_then_oldest(state: StateFile) -> None:
    store = CacheStore(state, disk_bytes=5000)
    for i in range(10):
        store.save(bytes([i]), 1, entry(str(i), 500, float(i)), 60 if i else 1, float(i))
    store.purge(20.0)
    stats = store.stats(20.0)
    assert stats["bytes"] <= 4500
    assert (stats["expired"], stats["newest"]) == (0, 9.0)
    assert store.lookup_disk(bytes([1]), 1, 20.0) == [None]
    assert store.lookup_disk(bytes([9]), 1, 20.0) == [entry("9", 500, 9.0)]


def test_clear_reaches_the_memory_of_other_processes(state: StateFile, other: StateFile) -> None:
    mine, theirs = CacheStore(state), CacheStore(other)
    mine.save(KEY, 1, entry("a"), 60, 0.0)
    assert theirs.clear() == 1
    assert mine.lookup_memory(KEY, 1, 0.0) is None
    assert mine.lookup_disk(KEY, 1, 0.0) == [None]


def test_stats(state: StateFile) -> None:
    store = CacheStore(state)
    store.save(KEY, 2, entry("a", created=5.0), 60, 5.0)
    store.save(KEY, 2, entry("b", created=6.0), 10, 6.0)
    stats = store.stats(20.0)
    assert (stats["entries"], stats["expired"], stats["keys"]) == (1, 1, 1)
    assert (stats["oldest"], stats["newest"]) == (5.0, 6.0)


def test_unreadable_file_is_a_miss_and_never_raises(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(b"this is no database" * 100)
    state = StateFile(path)
    store = CacheStore(state)
    assert store.lookup_disk(KEY, 1, 0.0) == [None]
    assert store.save(KEY, 1, entry("a"), 60, 0.0) is None
    limits = LimitStore(state)
    decisions = [limits.take("b", POLICY, 0.0) for _ in range(int(POLICY.quota) + 1)]
    assert [d.allowed for d in decisions] == [True] * int(POLICY.quota) + [False]  # counted in memory
    assert all("this process counts alone" in d.warning for d in decisions)
    assert state.facts()["policy_errors"] > 0
    state.close()


def test_damaged_file_is_set_aside_and_budgets_go_on(tmp_path: Path) -> None:
    state = StateFile(tmp_path / "state.db", mends=True)
    budgets = BudgetStore(state, tmp_path / "heliproxy.db")
    budgets.set(make_budget(5, "day", action="block"), NOW)
    assert len(budgets.all()) == 1
    state.close()
    state.path.write_bytes(b"this is no database" * 100)
    for end in ("-wal", "-shm"):
        Path(f"{state.path}{end}").unlink(missing_ok=True)
    decision = LimitStore(state).take("b", POLICY, 0.0)
    assert (decision.allowed, decision.warning) == (True, "")
    state.close()
    with closing(sqlite3.connect(state.path)) as conn:
        assert conn.execute("SELECT name, amount_usd, action FROM budgets").fetchall() == [("day", 5.0, "block")]
    (aside,) = tmp_path.glob("state.db.corrupt-*")
    assert aside.read_bytes().startswith(b"this is no database")


def test_locked_file_keeps_nobody_waiting_in_a_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_store, "LIMIT_BUSY_S", 0.2)
    state = StateFile(tmp_path / "state.db")
    limits, cache = LimitStore(state), CacheStore(state)
    assert limits.take("b", POLICY, 0.0).tokens == POLICY.quota - 1
    with closing(sqlite3.connect(state.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        left = [limits.take("b", POLICY, 0.0).tokens for _ in range(20)]
        assert cache.save(KEY, 1, entry("a"), 60, 0.0) is None
        assert time.monotonic() - started < 2.0
        other.execute("ROLLBACK")
    assert left[0] == POLICY.quota - 2  # from what was last known of the bucket
    monkeypatch.setattr(state, "_away", (0.0, 0.0))
    after = limits.take("b", POLICY, 0.0)
    assert (after.allowed, after.warning) == (left[-1] >= 1, "")  # what was counted meanwhile is not forgotten
    state.close()


def test_file_of_a_newer_version_is_left_alone(state: StateFile) -> None:
    state.path.parent.mkdir()
    conn = sqlite3.connect(state.path)
    conn.execute("PRAGMA user_version = 99")
    conn.close()
    assert CacheStore(state).save(KEY, 1, entry("a"), 60, 0.0) is None


def test_home_that_was_deleted_is_made_again(state: StateFile) -> None:
    store = CacheStore(state)
    store.save(KEY, 1, entry("a"), 60, 0.0)
    for file in state.path.parent.iterdir():
        file.unlink()
    assert store.lookup_disk(KEY, 1, 0.0) == [None]
    assert store.save(KEY, 1, entry("b"), 60, 0.0) == 0


# --- rate limits ------------------------------------------------------------------------------------------------------


def test_bucket_survives_a_restart(state: StateFile, other: StateFile) -> None:
    first, second = LimitStore(state), LimitStore(other)
    assert [first.take("b", POLICY, 0.0).allowed for _ in range(7)] == [True] * 7
    state.close()
    assert [second.take("b", POLICY, 0.0).allowed for _ in range(4)] == [True, True, True, False]


def test_buckets_are_apart(state: StateFile) -> None:
    store = LimitStore(state)
    one = parse_policy("1;w=60")
    assert [store.take(b, one, 0.0).allowed for b in ("a", "b", "a")] == [True, True, False]


def test_charge_in_cents(state: StateFile) -> None:
    store = LimitStore(state)
    cents = parse_policy("10;w=60;u=cents")
    assert store.take("b", cents, 0.0).allowed
    store.charge("b", cents, 25.0, 0.0)
    assert not store.take("b", cents, 0.0).allowed
    assert store.take("b", cents, 91.0).allowed


def test_parallel_threads_get_exactly_the_quota(state: StateFile, other: StateFile) -> None:
    stores = [LimitStore(state), LimitStore(other)]
    with ThreadPoolExecutor(20) as pool:
        results = list(pool.map(lambda i: stores[i % 2].take("b", POLICY, 0.0).allowed, range(100)))
    assert sum(results) == 10


def test_new_file_opened_by_many_at_once_still_limits_exactly(tmp_path: Path) -> None:
    for attempt in range(5):
        states = [StateFile(tmp_path / f"{attempt}.db") for _ in range(8)]
        barrier = threading.Barrier(8)

        def take(state: StateFile, barrier: threading.Barrier = barrier) -> int:
            barrier.wait()
            return sum(LimitStore(state).take("b", POLICY, 0.0).allowed for _ in range(2))

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(take, states)) == 10
        for state in states:
            state.close()


TAKER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from heliproxy.policies.ratelimit import parse_policy
from heliproxy.policy_store import LimitStore, StateFile
state = StateFile(Path(sys.argv[1]))
store, policy = LimitStore(state), parse_policy("10;w=60")
print("ready", flush=True)
sys.stdin.readline()
with ThreadPoolExecutor(10) as pool:
    print(sum(pool.map(lambda i: store.take("b", policy, 0.0).allowed, range(50))), flush=True)
state.close()
"""


def spawn(code: str, path: Path) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": SOURCE}
    command = [sys.executable, "-c", code, str(path)]
    return subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_two_processes_get_exactly_the_quota_together(tmp_path: Path) -> None:
    children = [spawn(TAKER, tmp_path / "state.db") for _ in range(2)]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    assert sum(int(child.communicate(timeout=60)[0]) for child in children) == 10


KILLED = """
import sys
from pathlib import Path
from heliproxy.policies.cache import CacheEntry
from heliproxy.policies.ratelimit import parse_policy
from heliproxy.policy_store import CacheStore, LimitStore, StateFile
state = StateFile(Path(sys.argv[1]))
for _ in range(7):
    LimitStore(state).take("b", parse_policy("10;w=60"), 0.0)
CacheStore(state).save(b"k" * 32, 1, CacheEntry(200, (), b"body", 1.0, 0.0, "id"), 60, 0.0)
with state.writing() as conn:
    conn.execute("DELETE FROM buckets")
    print("in a transaction", flush=True)
    sys.stdin.readline()
"""


def test_killed_process_leaves_a_right_file(tmp_path: Path) -> None:
    child = spawn(KILLED, tmp_path / "state.db")
    assert child.stdout is not None
    assert child.stdout.readline() == "in a transaction\n"
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=60)
    state = StateFile(tmp_path / "state.db")
    assert [LimitStore(state).take("b", POLICY, 0.0).allowed for _ in range(4)] == [True, True, True, False]
    (found,) = CacheStore(state).lookup_disk(KEY, 1, 0.0)
    assert found is not None
    assert found.body == b"body"
    state.close()


def test_steady_clock_never_steps_back() -> None:
    clock = steady_clock()
    first = clock()
    assert first <= clock()
    assert abs(first - datetime.now(UTC).timestamp()) < 5


@pytest.mark.skipif(sys.platform != "linux", reason="the clock that counts suspended time has this name on Linux only")
def test_steady_clock_goes_on_while_the_machine_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    slept = [0.0]
    awake = time.clock_gettime

    def boottime(number: int) -> float:
        return awake(number) + (slept[0] if number == time.CLOCK_BOOTTIME else 0.0)

    monkeypatch.setattr(time, "clock_gettime", boottime)
    clock = steady_clock()
    before = clock()
    slept[0] = 8 * 3600.0
    assert 8 * 3600 <= clock() - before < 8 * 3600 + 5


@pytest.mark.parametrize("step", [3600.0, -3600.0])
def test_wall_clock_that_steps_an_hour_moves_no_limit(
    state: StateFile, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    store = LimitStore(state)
    for _ in range(10):
        assert store.take("b", POLICY).allowed
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + step)
    assert not store.take("b", POLICY).allowed


@pytest.mark.parametrize(("step", "found"), [(3600.0, False), (-3600.0, True)])
def test_wall_clock_that_steps_moves_entries_no_further_than_itself(state: StateFile, step: float, found: bool) -> None:
    store = CacheStore(state)
    store.save(KEY, 1, entry("a"), 600, 10_000.0)
    assert (store.lookup_disk(KEY, 1, 10_000.0 + step)[0] is not None) is found
    assert store.lookup_disk(KEY, 1, 10_599.0)[0] is not None or not found
    assert store.lookup_disk(KEY, 1, 10_601.0)[0] is None


# --- budgets ----------------------------------------------------------------------------------------------------------


def log_with(path: Path, rows: list[tuple[str, str, str, float | None]]) -> Path:
    """A log with (id, created_at, user, cost) and for each a property team = `t-<user>`."""
    conn = sqlite3.connect(path)
    conn.executescript(
        "CREATE TABLE IF NOT EXISTS requests"
        " (id PRIMARY KEY, created_at, user_id, session_id, model, request_model, cost_usd, fees_usd);"
        "CREATE TABLE IF NOT EXISTS properties (request_id, key, value, PRIMARY KEY (request_id, key));"
    )
    for request_id, created_at, user, cost in rows:
        conn.execute(
            "INSERT INTO requests (id, created_at, user_id, session_id, model, request_model, cost_usd)"
            " VALUES (?, ?, ?, 's', 'm-2026-01-01', 'm', ?)",
            (request_id, created_at, user, cost),
        )
        conn.execute("INSERT INTO properties VALUES (?, 'Team', ?)", (request_id, f"t-{user}"))
    conn.commit()
    conn.close()
    return path


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return log_with(
        tmp_path / "heliproxy.db",
        [
            ("1", "2026-03-19T10:00:00.000Z", "ann", 3.0),
            ("2", "2026-03-19T11:00:00.000Z", "bob", 1.0),
            ("3", "2026-03-19T11:00:00.000Z", "bob", None),
            ("4", "2026-03-18T23:59:59.999Z", "bob", 50.0),
            ("5", "2026-02-01T00:00:00.000Z", "ann", 500.0),
        ],
    )


@pytest.mark.parametrize(
    ("amount", "per", "by", "spender", "spent"),
    [
        (4, "day", None, Spender(), 4.0),
        (5, "day", None, Spender(), None),
        (50, "week", None, Spender(), 54.0),
        (60, "month", None, Spender(), None),
        (3, "day", "user", Spender(user="ann"), 3.0),
        (3, "day", "user", Spender(user="bob"), None),
        (0.5, "day", "user", Spender(user="eve"), None),
        (0, "day", "user", Spender(), None),
        (4, "day", "model", Spender(model="m"), 4.0),
        (4, "day", "session", Spender(session="s"), 4.0),
        (3, "day", "property:team", Spender(properties={"team": "t-ann"}), 3.0),
    ],
)
def test_spent_is_read_from_the_log(
    state: StateFile, log: Path, amount: float, per: str, by: str | None, spender: Spender, spent: float | None
) -> None:
    store = BudgetStore(state, log)
    store.set(make_budget(amount, per, by, "block"), NOW)
    found = store.decide(spender, NOW)
    assert (found.spent_usd if found else None) == spent


def test_costs_count_before_they_are_in_the_log(state: StateFile, log: Path) -> None:
    store = BudgetStore(state, log)
    store.set(make_budget(5, "day"), NOW)
    assert store.decide(Spender(), NOW) is None
    store.add(Spender(), 0.5, NOW)
    store.add(Spender(), None, NOW)
    assert store.decide(Spender(), NOW) is None
    store.add(Spender(), 0.5, NOW)
    found = store.decide(Spender(), NOW)
    assert found is not None
    assert found.spent_usd == 5.0


def test_new_period_begins_at_zero(state: StateFile, log: Path) -> None:
    store = BudgetStore(state, log)
    store.set(make_budget(1, "day"), NOW)
    assert store.decide(Spender(), NOW) is not None
    assert store.decide(Spender(), NOW + timedelta(days=1)) is None


def test_budgets_survive_and_changes_are_seen_by_running_processes(
    state: StateFile, other: StateFile, log: Path
) -> None:
    running, command = BudgetStore(state, log), BudgetStore(other, log)
    assert running.active()  # not read yet
    assert running.decide(Spender(), NOW) is None
    assert not running.active()
    command.set(make_budget(1, "day", None, "block"), NOW)
    assert running.active()
    found = running.decide(Spender(), NOW)
    assert found is not None
    assert found.budget.action == "block"
    command.set(make_budget(2, "day", None, "warn"), NOW)
    assert [b.amount_usd for b in running.all()] == [2.0]
    assert command.remove("day") is True
    assert command.remove("day") is False
    assert running.decide(Spender(), NOW) is None


def test_states_list_every_value(state: StateFile, log: Path) -> None:
    store = BudgetStore(state, log)
    store.set(make_budget(2, "day", "user"), NOW)
    store.set(make_budget(100, "month"), NOW)
    assert [(s.budget.name, s.value, s.spent_usd, s.over) for s in store.states(NOW)] == [
        ("day:user", "ann", 3.0, True),
        ("month", "", 54.0, False),
        ("day:user", "bob", 1.0, False),
    ]


def test_no_log_means_nothing_spent(state: StateFile, tmp_path: Path) -> None:
    store = BudgetStore(state, tmp_path / "absent.db")
    store.set(make_budget(1, "day"), NOW)
    assert store.decide(Spender(), NOW) is None
    assert [s.spent_usd for s in store.states(NOW)] == [0.0]
    assert not (tmp_path / "absent.db").exists()


def test_unreadable_log_lets_calls_pass_unless_a_budget_blocks(state: StateFile, tmp_path: Path) -> None:
    (tmp_path / "bad.db").write_bytes(b"not a database" * 100)
    store = BudgetStore(state, tmp_path / "bad.db")
    store.set(make_budget(0, "day"), NOW)
    assert store.decide(Spender(), NOW) is None
    store.set(make_budget(0, "day", None, "block"), NOW)
    with pytest.raises(SpendingUnknownError) as caught:
        store.decide(Spender(), NOW)
    assert unknown_answer(caught.value).status == 503


def test_unreadable_log_is_judged_by_what_was_known(state: StateFile, tmp_path: Path, monkeypatch: Any) -> None:
    store = BudgetStore(state, tmp_path / "log.db")
    store.set(make_budget(1, "day", None, "block"), NOW)
    assert store.decide(Spender(), NOW) is None
    store.add(Spender(), 1.5, NOW)
    (tmp_path / "log.db").write_bytes(b"not a database" * 100)
    monkeypatch.setattr(policy_store, "_REFRESH_S", 0.0)
    state = store.decide(Spender(), NOW)
    assert (state.over, state.spent_usd) == (True, 1.5)


def test_one_store_serves_many_threads(state: StateFile) -> None:
    store = CacheStore(state)
    errors: list[BaseException] = []

    def work(n: int) -> None:
        try:
            for i in range(20):
                store.save(bytes([n, i]), 1, entry("x"), 60, 0.0)
                assert store.lookup_disk(bytes([n, i]), 1, 0.0) != [None]
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


V1 = """
PRAGMA auto_vacuum = INCREMENTAL;
CREATE TABLE cache (key BLOB NOT NULL, idx INTEGER NOT NULL, created REAL NOT NULL, expires REAL NOT NULL,
    size INTEGER NOT NULL, status INTEGER NOT NULL, headers TEXT NOT NULL, latency_ms REAL NOT NULL,
    request_id TEXT NOT NULL, cost_usd REAL, usage TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (key, idx));
CREATE INDEX cache_created ON cache (created, size);
CREATE INDEX cache_expires ON cache (expires, size);
CREATE TABLE buckets (id TEXT PRIMARY KEY, tokens REAL NOT NULL, updated REAL NOT NULL, policy TEXT NOT NULL,
    full_at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE budgets (name TEXT PRIMARY KEY, amount_usd REAL NOT NULL, per TEXT NOT NULL, scope TEXT,
    action TEXT NOT NULL, created_at TEXT NOT NULL);
INSERT INTO buckets VALUES ('b', 3.0, 0.0, '10;w=60', 42.0);
INSERT INTO budgets VALUES ('day', 5.0, 'day', NULL, 'block', '2026-03-19T00:00:00.000Z');
PRAGMA user_version = 1;
"""


def test_file_of_the_first_version_goes_on_with_its_buckets_and_budgets(state: StateFile, tmp_path: Path) -> None:
    state.path.parent.mkdir()
    with closing(sqlite3.connect(state.path)) as conn:
        conn.executescript(V1)
    assert LimitStore(state).take("b", POLICY, 0.0).tokens == 2.0
    assert BudgetStore(state, tmp_path / "log.db").all() == (make_budget(5, "day", action="block"),)
    assert CacheStore(state).save(KEY, 1, entry("a"), 60, 0.0) == 0


def test_newer_file_is_left_unchanged_also_by_a_proxy(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with closing(sqlite3.connect(path)) as conn:
        conn.executescript(V1 + "PRAGMA user_version = 99;")
    before = path.read_bytes()
    state = StateFile(path, mends=True)
    assert LimitStore(state).take("b", POLICY, 0.0).warning
    assert CacheStore(state).lookup_disk(KEY, 1, 0.0) == [None]
    state.close()
    assert path.read_bytes() == before


def test_process_killed_while_it_makes_the_file_leaves_none_or_a_whole_one(state: StateFile) -> None:
    code = (
        "import sys, time; from pathlib import Path; from heliproxy import policy_store as p\n"
        "p._SCHEMA = (*p._SCHEMA, 'SELECT slow()')\n"
        "connect = p.sqlite3.connect\n"
        "def slow(*a, **kw):\n"
        "    conn = connect(*a, **kw)\n"
        "    conn.create_function('slow', 0, lambda: (print('now', flush=True), time.sleep(60)))\n"
        "    return conn\n"
        "p.sqlite3.connect = slow\n"
        "p.LimitStore(p.StateFile(Path(sys.argv[1]))).take('b', p.ratelimit.parse_policy('10;w=60'))\n"
    )
    command = [sys.executable, "-c", code, str(state.path)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": SOURCE}, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"now\n"
        child.kill()
    assert LimitStore(state).take("b", POLICY, 0.0).tokens == POLICY.quota - 1
