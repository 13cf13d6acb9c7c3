"""Counts the failures of our own parts that mitmproxy or we ourselves only log, for `/health` and `doctor`."""

from __future__ import annotations

import logging
from typing import Any

WATCHED = ("mitmproxy.addonmanager", "mitmproxy.proxy.server", "heliproxy.addon", "heliproxy.attempts")
"""Whose errors are an exception in a hook: mitmproxy's guard around addons, and handlers of ours."""
MAX_TEXT = 300


class Faults(logging.Filter):
    """Looks at errors with an exception as they are logged, and lets them pass; without errors it costs nothing.

    A filter and no handler: a logger that has a handler no longer prints what nobody else handles.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.last: str | None = None

    def install(self) -> None:
        for name in WATCHED:
            logging.getLogger(name).addFilter(self)

    def uninstall(self) -> None:
        for name in WATCHED:
            logging.getLogger(name).removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR and record.exc_info:
            error = record.exc_info[1]
            self.count += 1
            self.last = f"{type(error).__name__}: {error}"[:MAX_TEXT]
        return True

    def facts(self) -> dict[str, Any]:
        return {"hook_errors": self.count, "last_hook_error": self.last}
