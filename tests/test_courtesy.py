"""The recorder's thread lets the event loop go first, but not for ever, and not when somebody waits for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from heliproxy.courtesy import Courtesy

LONG = 30.0


@contextmanager
def busy_loop(courtesy: Courtesy) -> Iterator[threading.Event]:
    """A loop that has something to do until the event is set, and then waits."""
    busy, done, loop = threading.Event(), threading.Event(), asyncio.new_event_loop()

    def work() -> None:
        courtesy.watch(loop)
        busy.set()
        done.wait(LONG)

    def run() -> None:
        loop.call_soon(work)
        loop.run_forever()
        courtesy.unwatch()
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert busy.wait(LONG)
    try:
        yield done
    finally:
        done.set()
        loop.call_soon_threadsafe(loop.stop)
        thread.join(LONG)


def waiter(courtesy: Courtesy, seconds: float = LONG) -> threading.Thread:
    thread = threading.Thread(target=courtesy.wait, args=(seconds,))
    thread.start()
    return thread


def test_the_loop_goes_first() -> None:
    courtesy = Courtesy()
    with busy_loop(courtesy) as done:
        thread = waiter(courtesy)
        thread.join(0.05)
        assert thread.is_alive()
        done.set()
        thread.join(LONG)
        assert not thread.is_alive()
        courtesy.wait(LONG)  # the loop waits: at once


def test_the_loop_goes_first_in_the_middle_of_some_work() -> None:
    courtesy = Courtesy()
    with busy_loop(courtesy) as done:
        thread = threading.Thread(target=courtesy.pause, args=(LONG,))
        thread.start()
        thread.join(0.05)
        assert thread.is_alive()
        with courtesy.hurry():
            thread.join(LONG)
            courtesy.pause(LONG)
        courtesy.pause(0.0)
        courtesy.pause(0.01)
        done.set()
        courtesy.pause(LONG)


def test_patience_ends() -> None:
    courtesy = Courtesy()
    with busy_loop(courtesy):
        courtesy.wait(0.01)
        courtesy.wait(0.0)
        courtesy.rest(0.01)


def test_who_is_waited_for_does_not_wait() -> None:
    courtesy = Courtesy()
    with busy_loop(courtesy):
        thread = waiter(courtesy)
        with courtesy.hurry():
            thread.join(LONG)
            assert not thread.is_alive()
            courtesy.wait(LONG)
            courtesy.rest(LONG)
        thread = waiter(courtesy, 0.01)
        thread.join(LONG)


def test_a_loop_that_is_gone_is_not_waited_for() -> None:
    courtesy = Courtesy()
    with busy_loop(courtesy) as done:
        done.set()
    courtesy.wait(LONG)
    loop = asyncio.new_event_loop()
    courtesy.watch(loop)
    loop.run_until_complete(asyncio.sleep(0))
    courtesy.unwatch()
    assert "select" not in vars(loop._selector)  # type: ignore[attr-defined]
    loop.close()


def test_without_a_loop_there_is_no_waiting() -> None:
    courtesy = Courtesy()
    courtesy.wait(LONG)
    courtesy.watch(object())  # type: ignore[arg-type]
    courtesy.wait(LONG)
