"""mitmproxy's timeout of idle client connections, by a clock that nobody steps.

Its own goes by the time of day: set forward by more than the timeout, every call whose upstream thinks at that moment
was cut; set back, idle connections were kept for that much longer.
"""

from __future__ import annotations

import asyncio
import logging
import time

from mitmproxy.proxy import server

logger = logging.getLogger(__name__)


class SteadyWatchdog(server.TimeoutWatchdog):
    """As mitmproxy's, but monotonic."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.register_activity()

    def register_activity(self) -> None:
        self.last_activity = time.monotonic()

    async def watch(self) -> None:
        try:
            while True:
                await self.can_timeout.wait()
                left = self.last_activity + self.timeout - time.monotonic()
                if left <= 0:
                    await self.callback()
                    return
                await asyncio.sleep(left)
        except asyncio.CancelledError:
            return


def use() -> None:
    """Have all connections made from now on watched by it."""
    known = ("last_activity", "timeout", "can_timeout", "blocker")
    if all(name in server.TimeoutWatchdog.__annotations__ for name in known):
        server.TimeoutWatchdog = SteadyWatchdog  # type: ignore[misc, assignment]
    else:
        logger.warning("idle connections are timed by the clock on the wall: this mitmproxy does it in another way")
