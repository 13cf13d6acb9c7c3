"""`heliproxy serve --workers N`: several proxies behind one port, each in a process of its own, and their watcher.

The watcher binds the port and hands the socket to its workers, which accept from it in turn. Limits, budgets and cached
answers are shared through SQLite as between any processes with one home. The first worker has the dashboard, the sums
of past hours and the retention; a worker that ends by itself is started again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from heliproxy.colleagues import MAX_LINE, Switchboard

if TYPE_CHECKING:
    from heliproxy.settings import Settings

logger = logging.getLogger(__name__)

VARIABLE = "HELIPROXY_WORKER"
"""What a worker is told by its watcher: number, file descriptor of the listening socket, API port, count of workers."""
READY = "heliproxy ready:"
BACKLOG = 1024
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
SETTLED_SECONDS = 60.0
"""A worker that ran this long and then ended is started again without the pause of one that cannot start."""


class WorkersError(Exception):
    """The workers cannot start; the message says why."""


@dataclass(frozen=True, slots=True)
class Duty:
    """What one worker was told."""

    number: int
    listener: socket.socket
    api_port: int
    count: int

    def settle(self, settings: Settings) -> Settings:
        """The settings of this worker: only the first has the dashboard."""
        api_port = self.api_port if self.number == 0 and settings.api_port is not None else None
        return replace(settings, worker=self.number, workers=self.count, api_port=api_port)


def duty() -> Duty | None:
    """What this process has been told to do as a worker; None: it is none."""
    told = os.environ.pop(VARIABLE, None)
    if told is None:
        return None
    number, descriptor, api_port, count = map(int, told.split(":"))
    return Duty(number, socket.socket(fileno=descriptor), api_port, count)


def listen(host: str, port: int) -> socket.socket:
    """The socket all workers accept from.

    Raises:
        WorkersError: the port cannot be had.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as e:
        listener.close()
        from heliproxy.early import port_error

        raise WorkersError(port_error(host, port, e)) from e
    return listener


class Watcher:
    """Starts the workers, starts again those that end, and ends with them on SIGTERM or SIGINT.

    `command` is what starts one worker; `say` gets the line of the first one that is ready.
    """

    def __init__(self, settings: Settings, count: int, command: Sequence[str], say: Callable[[str], None]) -> None:
        self._settings, self._count, self._command, self._say = settings, count, command, say
        self._stopping = asyncio.Event()
        self._api_port = settings.api_port or 0
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._switchboard = Switchboard()

    async def run(self) -> None:
        """Return when all workers have ended.

        Raises:
            WorkersError: the port cannot be had, or a worker ends before it is ready.
        """
        self._listener = listen(self._settings.host, self._settings.port)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        try:
            # The first one makes what all need: home, CA, database.
            line = await self._start(0)
            self._api_port = _port_at_the_end(line) or self._api_port
            await asyncio.gather(*(self._start(number) for number in range(1, self._count)))
            self._say(line)
            watches = [asyncio.create_task(self._watch(number)) for number in range(self._count)]
            await self._stopping.wait()
            await self._end()
            await asyncio.gather(*watches)
        finally:
            self._stopping.set()
            await self._end()
            self._listener.close()

    async def _start(self, number: int) -> str:
        """Start a worker and wait until it is ready; returns what it said."""
        descriptor = self._listener.fileno()
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,  # its end tells the worker that its watcher is gone
            stdout=asyncio.subprocess.PIPE,
            pass_fds=(descriptor,),
            env=os.environ | {VARIABLE: f"{number}:{descriptor}:{self._api_port}:{self._count}"},
            limit=MAX_LINE,
        )
        self._running[number] = process
        assert process.stdout is not None
        assert process.stdin is not None
        async for line in process.stdout:
            text = line.decode(errors="replace").rstrip("\n")
            if text.startswith(READY):
                self._switchboard.connect(number, process.stdout, process.stdin)
                return text
        status = await process.wait()
        raise WorkersError(f"worker {number} ended with status {status} before it was ready")

    async def _watch(self, number: int) -> None:
        pause = FIRST_PAUSE
        while True:
            started = time.monotonic()
            status = await self._running[number].wait()
            if self._stopping.is_set():
                return
            if time.monotonic() - started > SETTLED_SECONDS:
                pause = FIRST_PAUSE
            logger.warning("worker %d ended with status %d and is started again", number, status)
            try:
                await asyncio.wait_for(self._stopping.wait(), pause)
                return
            except TimeoutError:
                pause = min(2 * pause, LONGEST_PAUSE)
            try:
                await self._start(number)
            except WorkersError as e:
                logger.warning("%s", e)

    async def _end(self) -> None:
        """Have all workers end; what they are doing is theirs to finish."""
        for process in self._running.values():
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
        for process in self._running.values():
            await process.wait()


def _port_at_the_end(line: str) -> int | None:
    """The port of the dashboard in a line that says a proxy is ready."""
    _, dashboard, address = line.partition(" dashboard ")
    return int(address.rpartition(":")[2]) if dashboard else None


def watch(settings: Settings, count: int, arguments: Sequence[str], say: Callable[[str], None]) -> None:
    """Run `count` workers until stopped; `arguments` are those of the command this process was started with.

    Raises:
        WorkersError: they cannot start.
    """

    async def run() -> None:
        await Watcher(settings, count, [sys.executable, "-m", "heliproxy", *arguments], say).run()

    asyncio.run(run())
