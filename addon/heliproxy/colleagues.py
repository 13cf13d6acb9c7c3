"""What the workers of one `serve --workers N` tell each other about their health.

Each worker has two pipes to its watcher already. A worker that is asked for `/health` asks the watcher, which asks all
the others and hands back what they say. Messages are lines of JSON with one key that names them:

    worker  -> watcher   {"ask": N, "flush": bool}         what do the others say?
    watcher -> worker    {"say": N, "flush": bool}         what do you say?
    worker  -> watcher   {"said": N, "facts": {...}}
    watcher -> worker    {"told": N, "workers": [...]}     one for each of the others; `facts` null: no answer came
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from heliproxy.facts import together as facts_of_all

logger = logging.getLogger(__name__)

SECONDS = 3.0
"""How long one worker may take to say how it is; twelve when it is to write everything first."""
FLUSH_SECONDS = 12.0
MAX_LINE = 1 << 20
NO_SUMS = ("worker", "pid", "recorder", "flushed", "away_since", "workers")
Facts = dict[str, Any]


def line_of(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message, ensure_ascii=True, default=str).encode() + b"\n"


def message_of(line: bytes) -> Facts:
    """The message in a line; empty when it is none: whatever else a process prints is no concern of ours."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


class Colleagues:
    """The other workers, as one worker sees them.

    Args:
        number: this worker's own.
        facts: says how this worker is; with True after everything it has was written.
        alone: is called when the watcher has gone.
    """

    def __init__(self, number: int, facts: Callable[[bool], Awaitable[Facts]], alone: Callable[[], object]) -> None:
        self.number = number
        self._facts, self._alone = facts, alone
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[list[Facts]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self) -> None:
        """Take part, until the watcher's end of the pipe is closed."""
        reader = asyncio.StreamReader(MAX_LINE)
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        task = loop.create_task(self._read(reader), name="colleagues")
        self._tasks.add(task)

    async def ask(self, flush: bool) -> list[Facts]:
        """What the others say; none of them when the watcher does not answer."""
        number = next(self._numbers)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._send({"ask": number, "flush": flush})
            return await asyncio.wait_for(self._waiting[number], 1.0 + (FLUSH_SECONDS if flush else SECONDS))
        except (TimeoutError, OSError):
            return []
        finally:
            self._waiting.pop(number, None)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                message = message_of(line)
                if "say" in message:
                    task = asyncio.create_task(self._say(message["say"], bool(message.get("flush"))))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                elif "told" in message:
                    waiting = self._waiting.get(message["told"])
                    if waiting is not None and not waiting.done():
                        waiting.set_result(message["workers"])
        except (OSError, ValueError) as e:
            logger.warning("the watcher cannot be read: %s", e)
        finally:
            self._alone()

    async def _say(self, number: int, flush: bool) -> None:
        try:
            self._send({"said": number, "facts": await self._facts(flush)})
        except Exception as e:
            logger.warning("this worker cannot say how it is: %s: %s", type(e).__name__, e)

    @staticmethod
    def _send(message: Mapping[str, Any]) -> None:
        # A line is far shorter than a pipe holds, and the watcher does nothing but read.
        sys.stdout.flush()
        os.write(sys.stdout.fileno(), line_of(message))


class Switchboard:
    """The watcher's part: hands questions on, and gathers what comes back."""

    def __init__(self) -> None:
        self._pipes: dict[int, asyncio.StreamWriter] = {}
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Facts | None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def connect(self, worker: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a worker that is ready, until it ends."""
        self._pipes[worker] = writer
        self._start(self._read(worker, reader, writer))

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read(self, worker: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                line = await reader.readline()
            except (OSError, ValueError):
                continue  # a line that is too long
            if not line:
                break
            message = message_of(line)
            if "ask" in message:
                self._start(self._gather(worker, message))
            elif "said" in message:
                waiting = self._waiting.get(message["said"])
                if waiting is not None and not waiting.done():
                    waiting.set_result(message.get("facts"))
        if self._pipes.get(worker) is writer:
            del self._pipes[worker]

    async def _gather(self, asker: int, message: Facts) -> None:
        flush = bool(message.get("flush"))
        others = sorted(number for number in self._pipes if number != asker)
        found = await asyncio.gather(*(self._ask(number, flush) for number in others))
        workers = [{"worker": number, "facts": facts} for number, facts in zip(others, found, strict=True)]
        self._write(asker, {"told": message["ask"], "workers": workers})

    async def _ask(self, worker: int, flush: bool) -> Facts | None:
        number = next(self._numbers)
        waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._write(worker, {"say": number, "flush": flush})
            return await asyncio.wait_for(waiting, FLUSH_SECONDS if flush else SECONDS)
        except TimeoutError:
            return None
        finally:
            self._waiting.pop(number, None)

    def _write(self, worker: int, message: Mapping[str, Any]) -> None:
        pipe = self._pipes.get(worker)
        if pipe is not None:
            pipe.write(line_of(message))


def together(own: Facts, others: Iterable[Mapping[str, Any]], count: int) -> Facts:
    """The facts of all workers as those of one, with each one's own under `workers`.

    Args:
        own: this worker's, with its number as `worker`.
        others: as `Colleagues.ask` gives them.
        count: how many workers there should be.
    """
    each = [own]
    for other in others:
        facts = other.get("facts")
        said = facts if isinstance(facts, dict) else {"recorder": "silent"}
        each.append({"worker": other["worker"]} | said | {"worker": other["worker"]})
    each.sort(key=lambda facts: facts["worker"])
    found = _sums(each)
    here = {facts["worker"] for facts in each}
    missing = [{"worker": number, "recorder": "stopped"} for number in range(count) if number not in here]
    states = {facts.get("recorder") for facts in (*each, *missing)}
    found["recorder"] = "running" if states == {"running"} else next(s for s in states if s != "running")
    found["workers"] = sorted((*each, *missing), key=lambda facts: facts["worker"])
    return found


def _sums(each: Sequence[Facts]) -> Facts:
    """Numbers added up; of everything else the first that says something."""
    names = dict.fromkeys(name for facts in each for name in facts if name not in NO_SUMS)
    found = facts_of_all(names, each)
    away = [facts["away_since"] for facts in each if facts.get("away_since")]
    found["away_since"] = min(away, default=None)
    flushed = [bool(facts.get("flushed")) for facts in each]
    if any("flushed" in facts for facts in each):
        found["flushed"] = all(flushed)
    return found
