"""Remembers for some seconds where a provider's name leads.

asyncio asks the system anew for every connection, in a thread of its own: on a busy proxy the hand-over to that thread
and back costs more than the rest of dialling, and an answer that has to come from a name server milliseconds. What is
remembered is forgotten at once when a host cannot be reached. Other names are asked for each time: whether they lead
into this machine is judged by what they answer at that moment.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from cachetools import TTLCache

from heliproxy.reach import Verdict, verdict

if TYPE_CHECKING:
    from mitmproxy.proxy.server_hooks import ServerConnectionHookData

SECONDS = 5.0
"""Less than any name's owner expects to wait for a change; one lookup in this time is no cost."""
CAPACITY = 256
_Question = tuple[str, Any, int, int, int, int]
Answer = Sequence[tuple[Any, ...]]
Ask = Callable[..., Coroutine[Any, Any, Any]]


class NameCache:
    """Answers of an event loop's `getaddrinfo`; an addon of mitmproxy, to be told of hosts that cannot be reached.

    Args:
        ask: the loop's own function.
        clock: seconds that only go forward.
    """

    name = "heliproxy_names"

    def __init__(self, ask: Ask, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._known: TTLCache[_Question, Answer] = TTLCache(CAPACITY, SECONDS, timer=clock)

    async def getaddrinfo(
        self, host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> list[tuple[Any, ...]]:
        """As the loop's function of this name. Raises socket.gaierror; that is not remembered."""
        if not isinstance(host, str) or not isinstance(port, int) or verdict(host) is not Verdict.OUTSIDE:
            found: Answer = await self._ask(host, port, family=family, type=type, proto=proto, flags=flags)
            return list(found)
        question = (host, port, family, type, proto, flags)
        known = self._known.get(question)
        if known is None:
            known = await self._ask(host, port, family=family, type=type, proto=proto, flags=flags)
            self._known[question] = known
        return list(known)

    def server_connect_error(self, data: ServerConnectionHookData) -> None:
        address = data.server.address
        if address is not None:
            self.forget(address[0])

    def forget(self, host: str) -> None:
        for question in [question for question in self._known if question[0] == host]:
            self._known.pop(question, None)


def use(addons: Any) -> None:
    """Have the running loop remember names, and mitmproxy's addon manager tell when they lead nowhere."""
    loop: Any = asyncio.get_running_loop()
    if addons.get(NameCache.name) is None and "getaddrinfo" not in getattr(loop, "__dict__", {"getaddrinfo": None}):
        cache = NameCache(loop.getaddrinfo)
        loop.getaddrinfo = cache.getaddrinfo
        addons.add(cache)
