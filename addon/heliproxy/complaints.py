"""The log's lines about calls that heliproxy answered itself, since no upstream did or might: what such an answer
refers to with "its log says more".

A client that tries again and again would fill the log: the same line comes once a minute, with how often it was left
out, and there is a bound to how many different ones do.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from heliproxy.policies.answers import one_line
from heliproxy.secrets import redact_text

if TYPE_CHECKING:
    from heliproxy.exchange import Exchange

logger = logging.getLogger(__name__)

AGAIN_SECONDS = 60.0
MAX_LINES = 100
"""Different lines within `AGAIN_SECONDS`."""
MAX_TEXT = 300
OUR_REFUSALS = ("directive", "gateway", "refused")
"""Reasons that are told whatever their status: a header or a target of the client's is wrong."""


class Complaints:
    """Logs what went wrong, by host; not to be shared between threads.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[tuple[str, int, str], float] = {}
        """When each line was said, the oldest first."""
        self._left_out: dict[tuple[str, int, str], int] = {}

    def say(self, host: str, status: int, reason: str) -> None:
        """Log one line, unless it was said within the last minute. A gateway call that names no target has no host."""
        now = self._clock()
        line = (one_line(host)[:MAX_TEXT] or "gateway", status, redact_text(one_line(reason))[:MAX_TEXT])
        said = self._said.get(line)
        if said is not None and now - said < AGAIN_SECONDS:
            self._left_out[line] = self._left_out.get(line, 0) + 1
            return
        self._forget(now)
        if len(self._said) >= MAX_LINES:
            return
        self._said[line] = now
        times = self._left_out.pop(line, 0)
        more = f" ({times} more since the last such line)" if times else ""
        logger.warning("%s: answered here with %d: %s%s", *line, more)

    def hear(self, exchange: Exchange, host: str, reason: str | None) -> None:
        """Log what a call ended with, if that was an answer of ours which says that something is wrong.

        `host` and `reason` are those of its row, without secrets.
        """
        status = exchange.status or 0
        if reason and (status >= 500 or exchange.answer_reason in OUR_REFUSALS) and exchange.cache != "HIT":
            self.say(host, status, reason)

    def _forget(self, now: float) -> None:
        for line in [line for line, said in self._said.items() if now - said >= AGAIN_SECONDS]:
            del self._said[line]
        if len(self._left_out) > MAX_LINES:
            self._left_out = {line: times for line, times in self._left_out.items() if line in self._said}
