"""The thread behind the proxy: decodes, parses, prices and writes what the event loop only collected.

The event loop hands over raw bytes and finished exchanges and goes on at once; everything slow happens here, in
order, on one thread, which is also the only writer of the database.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from heliproxy import batches
from heliproxy.bodies import Body, stored
from heliproxy.complaints import Complaints
from heliproxy.courtesy import Courtesy
from heliproxy.exchange import Exchange, Outcome
from heliproxy.facts import together
from heliproxy.record import (
    Pricing,
    Sink,
    Twin,
    bare_record,
    build_record,
    no_pause,
    open_record,
    twin_record,
    utc_text,
)
from heliproxy.store import Record, Writer
from heliproxy.underway import Presence, mark_lost

if TYPE_CHECKING:
    import sqlite3

    from starlette.responses import Response

    from heliproxy.api.logs import Posted

logger = logging.getLogger(__name__)

BATCH_SECONDS = 0.2
"""A row waits at most this long before it is committed, and as much longer as courtesy takes."""
LEAST_SECONDS = 0.05
"""Between two commits, however late rows are: committing each by itself would make the next ones later still."""
COURTESY_SECONDS = 0.1
"""How much longer it may take while the event loop has no moment to spare: calls under way go first."""
LONG_COURTESY_SECONDS = 0.5
"""The same for a long call, whose row takes the time of some small ones."""
LONG = 8 * 1024
"""Bytes of a long call. It is not read in one go: in a small one pauses would cost more than they give."""
MUCH_WAITING = 4 * 1024 * 1024
"""Bytes past which none waits longer than a small one, so that memory does not grow with it."""
REST_SECONDS = 0.02
"""How long what was handed over may wait before it is looked at."""
BATCH_ROWS = 500
LOOK_SECONDS = 0.25
"""How often the calls under way are looked at; before the first time, a program that starts is left alone."""
OPEN_AFTER_SECONDS = 0.5
"""A call that runs longer than this gets its row before it is over, so that a crash does not hide it."""
SWEEP_SECONDS = 60.0
"""How often rows that other processes left open when they died are marked as lost."""
AFTER_FAILURE_SECONDS = 0.1
BUSY_SECONDS = 0.2
"""How long a commit waits for another process's lock, before it is put off. What comes in meanwhile is read in one go
afterwards, which the event loop would notice if it were much."""
SHARED_BUSY_SECONDS = 2.0
"""The same once another process writes what would else be much."""
MAX_PENDING_BYTES = 256 * 1024 * 1024
"""Of bytes waiting for this thread; past it, bodies are dropped first."""
MAX_PENDING_ITEMS = 50_000
MAX_UNWRITTEN = 10_000
"""Rows that the database has not taken yet; past it, logs are refused, for whoever sends one can send it again."""

GATHER_SECONDS = 0.02
"""Logs are read in company, so that not every one of them wakes this thread."""
PAUSE_SECONDS = 0.00005
"""Between two logs: long enough for the event loop to take over, which would else wait for Python's lock."""
SWITCH_SECONDS = 0.0005
"""How long the event loop waits before it asks for Python's lock, once there are logs: at Python's own 5 ms, a thousand
logs a second held up calls through the proxy for 100 ms on two cores."""

Job = Callable[[], Any]
_LOGS = object()
"""In the queue: there are logs to be read."""


Listener = Callable[[list[str]], None]
"""Called on the recorder's thread with the ids of the rows just committed (live pages, webhooks); must not block."""


@dataclass(slots=True)
class Counters:
    """What the recorder has done and lost, shown by `/health` and `doctor`."""

    rows: int = 0
    lost_rows: int = 0
    lost_bodies: int = 0
    errors: int = 0
    last_error: str | None = None
    lost_calls: int = 0
    """Rows found that other processes left open when they died."""


class Beside(Protocol):
    """What takes logs beside this process (`log_handover`), as the recorder and the API see it."""

    @property
    def starting(self) -> bool:
        """Whether it will be there in a moment."""

    async def up(self, seconds: float) -> None:
        """Return when it is there, when it cannot be, or after some seconds."""

    def counts_one(self) -> bool:
        """Count a log that comes to this process; whether the next ones may be handed over."""

    def give(self, file: int, data: bytes) -> bool:
        """Hand over a connection with what it has brought so far; False: it stays here."""

    async def ask(self, posted: Posted) -> Response | None:
        """The answer to logs, made there; None: they are to be answered here."""

    def flush(self, timeout: float | None) -> bool:
        """Whether everything it has answered is committed now."""

    def facts(self) -> dict[str, Any]:
        """Those of its recorder, counts since the start of this process."""


_NOTHING = object()


@dataclass(frozen=True, slots=True)
class _Heard:
    """Ids of rows that another process has committed for this one."""

    ids: list[str]


@dataclass(slots=True, eq=False)
class _Call:
    """A function to be run on the recorder's thread, and its result."""

    job: Job
    done: threading.Event = field(default_factory=threading.Event)
    result: Any = None
    error: BaseException | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Told:
    """Calls made elsewhere, still to be read on the recorder's thread."""

    read: Callable[[], Iterable[Exchange]]
    size: int


class Recorder:
    """Owns the recorder thread. All public methods may be called from any thread and return at once.

    Args:
        writer: opens and writes the database; used by this thread alone. A function, so that opening (and
            migrating) happens on the thread too.
        pricing: gives prices, estimates and fingerprints; called on the thread once the database is open.
        clock: monotonic seconds.
    """

    def __init__(
        self, writer: Callable[[], Writer], pricing: Callable[[], Pricing], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._open_writer = writer
        self._load_pricing = pricing
        self._pricing: Pricing | None = None
        self._clock = clock
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._told: deque[_Told] = deque()
        self._pending_bytes = 0
        self._thread = threading.Thread(target=self._run, name="heliproxy-recorder", daemon=True)
        self._started = threading.Event()
        self._start_error: BaseException | None = None
        self.counters = Counters()
        self.listeners: list[Listener] = []
        self._new: list[str] = []
        self.writer: Writer | None = None
        self.live: Callable[[], Iterable[Exchange]] = tuple
        """Gives all calls under way; asked on the recorder's thread, so that they cost the event loop nothing."""
        self.courtesy = Courtesy()
        self._worked = False
        self._until = 0.0
        """Until when what is being read can wait for the event loop."""
        self.beside: Beside | None = None
        """Takes logs in another process when they come in numbers."""
        self._complaints = Complaints(clock)
        self._opened: dict[Exchange, Exchange] = {}
        """Calls whose row was opened, each with its copy of that time."""
        self._presence: Presence | None = None
        self._commit_at: float | None = None
        self._logs_at: float | None = None
        self._look_at = clock() + LOOK_SECONDS
        self._sweep_at = 0.0
        self._ready = False
        self._over = self._shares = False

    def start(self) -> None:
        """Start the thread and wait until the database is open.

        Raises:
            Exception: whatever opening the database raised (a newer schema, no permission).
        """
        self._thread.start()
        self._started.wait()
        if self._start_error is not None:
            raise self._start_error

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stream(self, exchange: Exchange) -> None:
        """Take the bytes collected so far of a response still streaming in, so that its memory stays bounded."""
        chunks, exchange.chunks = exchange.chunks, []
        exchange.pending = 0
        size = sum(map(len, chunks))
        if self._pending_bytes + size > MAX_PENDING_BYTES:
            self.counters.lost_bodies += 1
            return
        self._pending_bytes += size
        self._queue.put((exchange, chunks, size))

    def finish(self, exchange: Exchange) -> None:
        """Take an exchange that is over; its row is written within `BATCH_SECONDS` and `LONG_COURTESY_SECONDS`."""
        size = sum(map(len, exchange.chunks)) + len(exchange.request_body or b"")
        if self._pending_bytes + size > MAX_PENDING_BYTES:
            self.counters.lost_bodies += 1
            exchange.bodies_lost = True
            exchange.chunks, exchange.request_body, size = [], None, 0
        exchange.handed, exchange.handed_at = size, self._clock()
        self._pending_bytes += size
        if self._queue.qsize() > MAX_PENDING_ITEMS:
            self.counters.lost_rows += 1
            self._pending_bytes -= size
            return
        self._queue.put(exchange)

    def take(self, read: Callable[[], Iterable[Exchange]], size: int) -> bool:
        """Take calls that were made elsewhere, `size` bytes of them; `read` is called on the recorder's thread.

        Unlike a call that has passed the proxy, these can be refused: False when there is no room, or no database
        that takes what is there already.
        """
        unwritten = 0 if self.writer is None else self.writer.buffered
        if (
            unwritten > MAX_UNWRITTEN
            or self._pending_bytes + size > MAX_PENDING_BYTES
            or len(self._told) > MAX_PENDING_ITEMS
            or not self.alive
        ):
            return False
        self._pending_bytes += size
        self._told.append(_Told(read, size))
        if len(self._told) == 1:
            self._queue.put(_LOGS)
        return True

    def heard(self, ids: list[str]) -> None:
        """Take the ids of rows that another process has committed for this one."""
        self._queue.put(_Heard(ids))

    @property
    def waiting(self) -> int:
        """Number of calls, and pieces of calls, that the thread has not looked at yet."""
        return self._queue.qsize() + len(self._told)

    def put(self, record: Record) -> None:
        """Take a finished record from another door (after-the-fact logging, WebSocket)."""
        self._queue.put(record)

    def call(self, job: Job, timeout: float | None = 30.0) -> Any:
        """Run `job` on the recorder thread after everything handed over before, with all rows committed.

        Raises:
            TimeoutError: it was not reached in time.
            Exception: whatever the job raised.
        """
        if self.beside is not None and not self.beside.flush(timeout):
            raise TimeoutError("the process that takes logs did not answer in time")
        call = _Call(job)
        with self.courtesy.hurry():
            self._queue.put(call)
            if not call.done.wait(timeout):
                raise TimeoutError("the recorder did not answer in time")
        if call.error is not None:
            raise call.error
        return call.result

    def flush(self, timeout: float | None = 30.0) -> None:
        """Return once everything handed over before is committed."""
        self.call(lambda: None, timeout)

    def flushed(self, timeout: float = 10.0) -> bool:
        """Whether everything handed over before is committed now; False when the database does not take it."""

        def nothing_waits() -> bool:
            return self.writer is not None and not self.writer.buffered

        try:
            return bool(self.call(nothing_waits, timeout))
        except TimeoutError:
            return False

    def facts(self) -> dict[str, Any]:
        """What works, what waits and what was lost, as `/health` says it."""
        counters, writer = self.counters, self.writer
        facts = {
            "recorder": "running" if self.alive else "stopped",
            "rows": counters.rows,
            "written": writer.written if writer is not None else 0,
            "waiting": self.waiting,
            "waiting_bytes": self._pending_bytes,
            "unwritten": writer.buffered if writer is not None else 0,
            "under_way": len(self._opened),
            "lost_rows": counters.lost_rows + (writer.lost_rows if writer is not None else 0),
            "lost_bodies": counters.lost_bodies + (writer.lost_bodies if writer is not None else 0),
            "lost_calls": counters.lost_calls,
            "errors": counters.errors + (writer.errors if writer is not None else 0),
            "last_error": counters.last_error or (writer.last_error if writer is not None else None),
            "damaged_files": writer.set_aside if writer is not None else 0,
            "away_since": None,
        }
        away = writer.away_since if writer is not None else None
        if away is not None:
            facts["away_since"] = utc_text(away)
        return facts if self.beside is None else together(facts, (facts, self.beside.facts()))

    def close(self, timeout: float = 30.0) -> None:
        """Write what is left and end the thread."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            self.writer = self._open_writer()
        except BaseException as e:
            self._start_error = e
            return
        finally:
            self._started.set()
        self._be_present()
        while not self._over:
            try:
                self._work()
            except Exception as e:
                self._failed(e)
                time.sleep(AFTER_FAILURE_SECONDS)  # what fails at once fails again at once

    def _be_present(self) -> None:
        """Let other processes see that this one lives, and so which open rows are still worked on."""
        assert self.writer is not None
        try:
            self.writer.be_patient(BUSY_SECONDS)
            self.writer.check_after_crash()
            presence = Presence(self.writer.path.parent)
            presence.take()
        except Exception as e:
            self._failed(e)
            return
        self._presence = presence
        self.writer.process = presence.name

    def _work(self) -> None:
        """Take what comes, commit in batches, look after the calls under way; until the end."""
        assert self.writer is not None
        while True:
            item = self._next()
            if item is None:
                self._over = True
                self._end()
                return
            if item is _LOGS:
                sys.setswitchinterval(SWITCH_SECONDS)
                self._logs_at = self._clock() + GATHER_SECONDS
            elif item is not _NOTHING:
                self._worked = True
                self._wait_for_turn(item)
                self._take(item)
            now = self._clock()
            if self._logs_at is not None and now >= self._logs_at:
                self._read_logs(1)
                now = self._clock()
                self._logs_at = now + PAUSE_SECONDS if self._told else None
            if now >= self._look_at:
                self._look(now)
            if not self.writer.buffered:
                self._commit_at = None
            elif self._commit_at is None:
                since = item.handed_at if isinstance(item, Exchange) else now
                self._commit_at = max(since + BATCH_SECONDS, now + LEAST_SECONDS)
            elif now >= self._commit_at or self.writer.buffered >= BATCH_ROWS:
                self._commit_at = self._commit()

    def _next(self) -> Any:
        """What is to be taken now. After work there is a rest, so that not every call's end wakes this thread."""
        with suppress(queue.Empty):
            return self._queue.get_nowait()
        if self._worked:
            self._worked = False
            self.courtesy.rest(min(REST_SECONDS, self._patience()))
            with suppress(queue.Empty):
                return self._queue.get_nowait()
        with suppress(queue.Empty):
            return self._queue.get(timeout=self._patience())
        return _NOTHING

    def _wait_for_turn(self, item: Any) -> None:
        """Let the event loop go first, as long as what was handed over can wait."""
        now = self._until = self._clock()
        courtesy = COURTESY_SECONDS
        if isinstance(item, Exchange):
            if item.handed > LONG and self._pending_bytes < MUCH_WAITING:
                courtesy = LONG_COURTESY_SECONDS
            self._until = item.handed_at + courtesy
        elif isinstance(item, tuple):
            self._until = now + courtesy / 10
        if self._commit_at is not None:
            self._until = min(self._until, self._commit_at + courtesy)
        self.courtesy.wait(self._until - now)

    def _pause(self) -> None:
        """The same in the middle of reading it."""
        self.courtesy.pause(self._until - self._clock())

    def _patience(self) -> float:
        due = min(at for at in (self._look_at, self._commit_at, self._logs_at) if at is not None)
        return max(0.0, due - self._clock())

    def _end(self) -> None:
        assert self.writer is not None
        try:
            self._read_logs()
            self._commit(final=True)
        finally:
            self.writer.close()
            if self._presence is not None:
                self._presence.drop()

    def _look(self, now: float) -> None:
        """Open the rows of calls that have been under way for a while; mark those of dead processes."""
        assert self.writer is not None
        self._look_at = now + LOOK_SECONDS
        if not self._ready:
            self._ready = True
            self._get_ready()
        try:
            live = set(self.live())
            self._opened = {exchange: seen for exchange, seen in self._opened.items() if exchange in live}
            since = time.perf_counter() - OPEN_AFTER_SECONDS
            for exchange in live:
                if exchange.started < since and exchange not in self._opened:
                    self._open(exchange)
                    self.courtesy.pause(now + COURTESY_SECONDS - self._clock())
            if now >= self._sweep_at and self.writer.away_since is None:
                self._sweep_at = now + SWEEP_SECONDS
                self.counters.lost_calls += self.writer.run(self._mark_lost)
        except Exception as e:
            self._failed(e)

    def open(self, exchange: Exchange) -> None:
        """Give a call that is under way its row now; only for jobs that run on the recorder's thread."""
        if exchange not in self._opened:
            self._open(exchange)

    def _open(self, exchange: Exchange) -> None:
        assert self.writer is not None
        self._opened[exchange] = exchange
        if exchange.warm_up or not exchange.logged:
            return
        if self._pricing is None:
            self._pricing = self._load_pricing()
        record, seen = open_record(exchange, self._pricing.secret)
        self._opened[exchange] = seen
        self.writer.add(record)

    def _mark_lost(self, conn: sqlite3.Connection) -> int:
        assert self.writer is not None
        return mark_lost(conn, self.writer.path.parent, self.writer.process)

    def _get_ready(self) -> None:
        """Load the prices before the first exchange ends; a program that makes no call never waits for them."""
        try:
            if self._pricing is None:
                self._pricing = self._load_pricing()
        except Exception as e:
            self._failed(e)

    def _take(self, item: Any) -> None:
        assert self.writer is not None
        try:
            if isinstance(item, tuple):
                exchange, chunks, size = item
                self._pending_bytes -= size
                if exchange.sink is None:
                    exchange.sink = Sink(exchange)
                exchange.sink.feed(chunks, self._pause)
            elif isinstance(item, Exchange):
                self._pending_bytes -= item.handed
                self._record(item)
            elif isinstance(item, Record):
                self._add(item)
            elif isinstance(item, _Heard):
                self.writer.leave_checks_to_another()
                self._share()
                self._tell(item.ids)
            else:
                self._answer(item)
        except Exception as e:
            self._failed(e)
            if isinstance(item, tuple):
                item[0].parse_error = item[0].parse_error or f"response: {type(e).__name__}: {e}"

    def _read_logs(self, most: int = sys.maxsize) -> None:
        """Read and record the logs that have been waiting longest."""
        for _ in range(min(most, len(self._told))):
            told = self._told.popleft()
            self._pending_bytes -= told.size
            try:
                for exchange in told.read():
                    self._record(exchange)
            except Exception as e:
                self.counters.lost_rows += 1
                self._failed(e)

    def _record(self, exchange: Exchange) -> None:
        assert self.writer is not None
        twin: Twin | None = exchange.twin
        if twin is not None and twin.record is not None and not exchange.bodies_lost:
            self._add(twin_record(exchange, twin.record))
            return
        record, outcome = self._build(exchange)
        if twin is not None and record.row.get("parse_error") is None:
            body = record.body
            record = twin.record = replace(record, body=stored(body) if isinstance(body, Body) else body)
        if exchange.answered_here:
            self._complaints.hear(exchange, str(record.row.get("host")), record.row.get("error"))
        if (
            exchange.warm_up
            and outcome.status == 200
            and not (record.row["input_tokens"] or record.row["output_tokens"])
        ):
            return
        if exchange.logged:
            self._add(record)
        elif exchange.route.batch and outcome.status == 200:
            for result in batches.results(exchange):
                self._record(result)
        for act in exchange.after:
            self._act(act, exchange, outcome)
        # mitmproxy's objects may keep the exchange until the next full garbage collection, and this much with it.
        exchange.sink, exchange.chunks, exchange.request_decoded = None, [], b""

    def _build(self, exchange: Exchange) -> tuple[Record, Outcome]:
        """Everything about a call; what HTTP alone says of it when something in here fails."""
        seen = self._opened.pop(exchange, None)
        if seen is not None and seen.request_body is exchange.request_body and seen.route is exchange.route:
            # Its request was read when its row was opened.
            exchange.ask, exchange.request_decoded = seen.ask, seen.request_decoded
            exchange.parse_error = exchange.parse_error or seen.parse_error
        try:
            if self._pricing is None:
                self._pricing = self._load_pricing()
            if not exchange.bodies_lost:
                return build_record(exchange, self._pricing, self._pause if exchange.handed > LONG else no_pause)
            reason = "not read: too much was waiting to be written"
        except Exception as e:
            self._failed(e)
            reason = f"recording failed: {type(e).__name__}: {e}"
        secret = self._pricing.secret if self._pricing is not None else None
        try:
            return bare_record(exchange, reason, secret)
        except Exception:
            self.counters.lost_rows += 1
            raise

    def _add(self, record: Record) -> None:
        assert self.writer is not None
        if self.writer.add(record):
            self.counters.rows += 1
            self._new.append(record.row["id"])

    def _act(self, act: Any, exchange: Exchange, outcome: Outcome) -> None:
        try:
            act(exchange, outcome)
        except Exception as e:
            self._failed(e)

    def _answer(self, call: _Call) -> None:
        try:
            self._read_logs()
            self._commit()
            call.result = call.job()
        except BaseException as e:
            call.error = e
        finally:
            call.done.set()

    def _commit(self, final: bool = False) -> float | None:
        """Commit what is buffered; returns the next deadline when the database could not take it."""
        assert self.writer is not None
        if not self.writer.buffered:
            return None
        self.writer.flush(force=final)
        if self.writer.buffered:
            return self._clock() + 1.0
        new, self._new = self._new, []
        self._tell(new)
        return None

    def _share(self) -> None:
        """Wait longer for the lock: the process beside this one has it often, and goes at a lower priority."""
        if not self._shares and self.writer is not None:
            self._shares = True
            self.writer.be_patient(SHARED_BUSY_SECONDS)

    def _tell(self, ids: list[str]) -> None:
        for listener in self.listeners:
            try:
                listener(ids)
            except Exception as e:
                self._failed(e)

    def _failed(self, error: Exception) -> None:
        self.counters.errors += 1
        self.counters.last_error = f"{type(error).__name__}: {error}"
        logger.warning("recording failed: %s", self.counters.last_error, exc_info=error)
