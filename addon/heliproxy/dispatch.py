"""A faster way from an event of mitmproxy to the addons that handle it.

mitmproxy's manager walks all its addons, some thirty, for every event, and a second time for `update`; that walk is a
third of the time a small request takes. Who handles what hardly ever changes, so it is looked up once.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING, Any

from mitmproxy import exceptions, hooks
from mitmproxy.addonmanager import AddonManager, safecall, traverse
from mitmproxy.flow import Flow
from mitmproxy.proxy.mode_servers import ProxyConnectionHandler

if TYPE_CHECKING:
    from mitmproxy.master import Master
    from mitmproxy.proxy.commands import StartHook

_UPDATE = hooks.UpdateHook([])
_OF_FLOWS = ("requestheaders", "request", "responseheaders", "response", "error", "update")
_PASSIVE = frozenset({"mitmproxy.addons.disable_h2c", "mitmproxy.addons.tlsconfig"})
_REST = "_heliproxy_rest"
"""Under this name a hook that `begin` has begun keeps what is left to be awaited, if anything."""
_AT_ONCE = "heliproxy_at_once"
HandleHook = Callable[["ProxyConnectionHandler", "StartHook"], Coroutine[Any, Any, None]]


class DirectDispatch(AddonManager):
    """An addon manager that calls only the addons that implement a hook.

    Instances may be plain managers switched to this class. Addons that have sub-addons (scripts, which can be reloaded
    at any time) are walked at every event, as mitmproxy does.
    """

    _known: dict[str, list[tuple[Any, Callable[..., Any] | None]]]
    """For each hook: its handlers in the order of the chain; (addon, None) stands for one with sub-addons."""
    on_change: Callable[[], None] | None = None
    """Called when addons come or go."""

    def __init__(self, master: Master) -> None:
        super().__init__(master)  # type: ignore[no-untyped-call]
        self._known = {}

    def add(self, *added: Any) -> None:
        self._known = {}
        super().add(*added)  # type: ignore[no-untyped-call]
        self.forget()

    def remove(self, addon: Any) -> None:
        self._known = {}
        super().remove(addon)  # type: ignore[no-untyped-call]
        self.forget()

    def clear(self) -> None:
        self._known = {}
        super().clear()  # type: ignore[no-untyped-call]
        self.forget()

    def forget(self) -> None:
        """Look all handlers up anew: an addon has got others."""
        self._known = {}
        if self.on_change is not None:
            self.on_change()

    def is_alone(self, addon: Any) -> bool:
        """Whether no other addon is told of requests and answers, but those of mitmproxy that let ours pass."""
        others = [one for one in self.chain if one is not addon]
        handlers = (getattr(one, name, None) for one in others for name in _OF_FLOWS)
        return not any(hasattr(one, "addons") for one in others) and all(
            handler is None or getattr(handler, "__module__", None) in _PASSIVE for handler in handlers
        )

    def _handlers(self, event: hooks.Hook) -> list[tuple[Any, Callable[..., Any] | None]]:
        found = self._known.get(event.name)
        if found is None:
            found = []
            for addon in self.chain:
                if hasattr(addon, "addons"):
                    found.append((addon, None))
                else:
                    found += self._iter_hooks(addon, event)
            self._known[event.name] = found
        return found

    def begin(self, event: hooks.Hook) -> bool:
        """Call a hook's handlers now, until one is to be waited for. False: `handle_lifecycle` does the rest."""
        if _REST in vars(event):
            return False  # another layer has begun it
        arguments = _arguments(event)
        rest = self._run(event, arguments)
        message = arguments[0]
        if rest is None and not (isinstance(message, Flow) and (message.intercepted or self._handlers(_UPDATE))):
            return True
        vars(event)[_REST] = rest
        return False

    def _run(self, event: hooks.Hook, arguments: tuple[Any, ...]) -> Coroutine[Any, Any, None] | None:
        handlers = self._handlers(event)
        for number, (_, handler) in enumerate(handlers):
            if handler is None:
                return self._go_on(event, handlers[number:], arguments)
            try:
                result = handler(*arguments)
            except exceptions.AddonHalt:
                return None
            except Exception:
                with safecall():  # as in `_guarded`
                    raise
            else:
                if result is not None and inspect.isawaitable(result):
                    return self._go_on(event, handlers[number + 1 :], arguments, result)
        return None

    async def handle_lifecycle(self, event: hooks.Hook) -> None:
        begun = vars(event)
        if _REST in begun:
            rest = begun.pop(_REST)
            if rest is not None:
                await rest
        else:
            await self.trigger_event(event)
        message = _arguments(event)[0]
        if isinstance(message, Flow):
            await self.trigger_event(hooks.UpdateHook([message]))

    async def trigger_event(self, event: hooks.Hook) -> None:
        rest = self._run(event, _arguments(event))
        if rest is not None:
            await rest

    async def _go_on(
        self,
        event: hooks.Hook,
        handlers: Sequence[tuple[Any, Callable[..., Any] | None]],
        arguments: tuple[Any, ...],
        first: Awaitable[Any] | None = None,
    ) -> None:
        """Await what a handler returned, and call the handlers that are left."""
        try:
            if first is not None:
                await _guarded(first)
            for addon, handler in handlers:
                if handler is None:
                    await _guarded(self._walk(addon, event))
                else:
                    await _guarded(_called(handler, arguments))
        except exceptions.AddonHalt:
            return

    async def _walk(self, addon: Any, event: hooks.Hook) -> None:
        name = event.name
        for one in traverse([addon]):
            handler = getattr(one, name, None)
            # A script may have imported a module named like a hook.
            if handler is not None and callable(handler):
                result = handler(*event.args())
                if result is not None and inspect.isawaitable(result):
                    await result


@cache
def _fields(kind: type[hooks.Hook]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))  # type: ignore[arg-type]


def _arguments(event: hooks.Hook) -> tuple[Any, ...]:
    """What `Hook.args` gives, without looking its names up each time."""
    return tuple(getattr(event, name) for name in _fields(type(event)))  # type: ignore[arg-type]


async def _called(handler: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    result = handler(*arguments)
    if result is not None and inspect.isawaitable(result):
        await result


async def _guarded(work: Awaitable[Any]) -> None:
    try:
        await work
    except exceptions.AddonHalt:
        raise
    except Exception:
        # mitmproxy's own guard decides what is logged; entering it for every call costs, so only for these.
        with safecall():
            raise


def _at_once(handle: HandleHook) -> HandleHook:
    """A hook of a connection itself; only for one that waits its time is stopped, and its flow looked at."""

    async def handle_hook(self: ProxyConnectionHandler, hook: StartHook) -> None:
        manager = self.master.addons
        if type(manager) is not DirectDispatch or not manager.begin(hook):
            await handle(self, hook)

    vars(handle_hook)[_AT_ONCE] = True
    return handle_hook


def use(master: Master) -> None:
    """Switch a running master to direct dispatch; one with a manager of its own making is left alone."""
    if type(master.addons) is AddonManager:
        master.addons.__class__ = DirectDispatch
        vars(master.addons)["_known"] = {}
    handle = ProxyConnectionHandler.handle_hook
    if not hasattr(handle, _AT_ONCE) and tuple(inspect.signature(handle).parameters) == ("self", "hook"):
        ProxyConnectionHandler.handle_hook = _at_once(handle)  # type: ignore[assignment, method-assign]
