"""Direct dispatch behaves as mitmproxy's own manager."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from mitmproxy import exceptions, hooks, options
from mitmproxy.master import Master

from heliproxy import dispatch


class Addon:
    def __init__(self, name: str, seen: list[str], fails: type[Exception] | None = None) -> None:
        self.name, self.seen, self.fails = name, seen, fails

    def running(self) -> None:
        self.seen.append(self.name)
        if self.fails is not None:
            raise self.fails("as asked")


class Later(Addon):
    async def running(self) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        self.seen.append(self.name)


class Parent:
    """What a script is to mitmproxy: an addon with addons of its own, which may change at any time."""

    name = "parent"

    def __init__(self, *addons: Any) -> None:
        self.addons = list(addons)


def trigger(*addons: Any, before: Any = lambda master: None) -> None:
    async def run() -> None:
        master = Master(options.Options())
        dispatch.use(master)
        master.addons.add(*addons)
        await master.addons.trigger_event(hooks.RunningHook())
        before(master)
        await master.addons.trigger_event(hooks.RunningHook())
        master._legacy_log_events.uninstall()

    asyncio.run(run())


def test_handlers_run_in_order_whether_they_wait_or_not() -> None:
    seen: list[str] = []
    trigger(Addon("a", seen), Later("b", seen), Parent(Addon("c", seen), Later("d", seen)), object(), Addon("e", seen))
    assert seen == ["a", "b", "c", "d", "e"] * 2


def test_addons_added_later_and_inside_a_script_are_called() -> None:
    seen: list[str] = []
    parent = Parent(Addon("a", seen))

    def change(master: Master) -> None:
        parent.addons = [Addon("b", seen)]
        master.addons.add(Addon("c", seen))

    trigger(parent, before=change)
    assert seen == ["a", "b", "c"]


def test_failing_handler_is_logged_and_the_next_one_runs(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []
    with caplog.at_level(logging.ERROR):
        trigger(Addon("a", seen, ValueError), Addon("b", seen))
    assert seen == ["a", "b"] * 2
    assert [record.getMessage() for record in caplog.records] == ["Addon error: as asked"] * 2


def test_halt_ends_the_event_and_bad_options_reach_the_caller() -> None:
    seen: list[str] = []
    trigger(Addon("a", seen, exceptions.AddonHalt), Addon("b", seen))
    assert seen == ["a", "a"]
    with pytest.raises(exceptions.OptionsError):
        trigger(Addon("c", seen, exceptions.OptionsError))
