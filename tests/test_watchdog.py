"""Idle connections and a clock that is stepped."""

from __future__ import annotations

import asyncio
import time

import pytest
from mitmproxy.proxy import server

from heliproxy import watchdog


@pytest.mark.parametrize("step", [3600.0, -3600.0])
def test_a_stepped_clock_neither_ends_a_connection_nor_keeps_it(step: float, monkeypatch: pytest.MonkeyPatch) -> None:
    wall = time.time()

    async def run() -> tuple[bool, bool]:
        ended = asyncio.Event()

        async def end() -> None:
            ended.set()

        dog = watchdog.SteadyWatchdog(1, end)
        dog.timeout = 0.4  # type: ignore[assignment]
        task = asyncio.create_task(dog.watch())
        await asyncio.sleep(0.2)
        monkeypatch.setattr(time, "time", lambda: wall + step)
        dog.register_activity()
        await asyncio.sleep(0.3)
        early = ended.is_set()
        async with asyncio.timeout(5):
            await ended.wait()
        await task
        return early, ended.is_set()

    assert asyncio.run(run()) == (False, True)


def test_it_takes_the_place_of_mitmproxys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "TimeoutWatchdog", server.TimeoutWatchdog)
    watchdog.use()
    assert server.TimeoutWatchdog is watchdog.SteadyWatchdog
