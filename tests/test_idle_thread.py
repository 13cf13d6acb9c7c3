"""The thread that has a core only while nobody else wants it."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from heliproxy.idle_thread import Hunger, IdleThread, run_and_wait

S = 1_000_000_000
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the idle policy")


@pytest.mark.parametrize(
    ("ran", "waited", "starves"),
    [
        (0.0, 0.0, False),  # nothing to do
        (1.0, 0.0, False),
        (0.1, 0.9, False),  # no worse than at nice 10
        (0.09, 0.91, True),
        (0.001, 1.4, True),
        (0.0, 0.5, False),  # too short to say
        (0.0, 0.51, True),  # it slept, and then waited
    ],
)
def test_a_thread_starves_that_waits_most_of_the_time(ran: float, waited: float, starves: bool) -> None:
    now, spent = 7.0, (5 * S, 3 * S)
    hunger = Hunger(lambda: spent, lambda: now)
    now, spent = 8.0, (5 * S + int(ran * S), 3 * S + int(waited * S))
    assert hunger.starves() is starves
    now = 9.0
    assert not hunger.starves()


def test_it_is_not_looked_at_all_the_time() -> None:
    now, looks = 0.0, 0

    def look() -> tuple[int, int]:
        nonlocal looks
        looks += 1
        return 0, looks * S

    hunger = Hunger(look, lambda: now)
    for at, starves in ((0.1, False), (0.4, False), (0.6, True), (0.7, False), (1.0, False), (1.2, True)):
        now = at
        assert hunger.starves() is starves
    assert looks == 3


@on_linux
def test_its_work_is_done_at_the_idle_policy_and_nothing_else_is() -> None:
    idle = IdleThread()
    assert idle.run(lambda: os.sched_getscheduler(0)) == os.SCHED_IDLE
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    assert idle.run(threading.get_ident) == idle.run(threading.get_ident) != threading.get_ident()
    assert idle.run(idle.starves) is False


@on_linux
def test_what_its_work_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        IdleThread().run(lambda: 1 / 0)


@on_linux
def test_a_thread_knows_for_how_long_it_has_run() -> None:
    before, _ = run_and_wait()
    sum(range(1_000_000))
    assert run_and_wait()[0] > before


@pytest.mark.parametrize("lacking", ["the system", "the figures", "the policy"])
def test_there_is_none_where_something_is_lacking(lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "refused")

    if lacking == "the system":
        monkeypatch.setattr(sys, "platform", "darwin")
    elif lacking == "the figures":
        monkeypatch.setattr("heliproxy.idle_thread.run_and_wait", lambda: (0, 0))
    else:
        monkeypatch.setattr(os, "sched_setscheduler", refuse, raising=False)
    with pytest.raises(OSError, match=r"idle policy|does not count|refused"):
        IdleThread()
