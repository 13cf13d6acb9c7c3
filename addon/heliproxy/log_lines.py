"""How log lines are printed: no key in them, and nothing in them that a terminal obeys or that looks like another line.

Most of what is logged quotes somebody: a header, a host, an upstream's error.
"""

from __future__ import annotations

import logging
import sys
from typing import override

from heliproxy.report import neutral
from heliproxy.secrets import redact_text


def log_line(record: logging.LogRecord) -> str:
    """One record as one line, without a traceback."""
    return neutral(redact_text(f"heliproxy: {record.getMessage()}"))


class LineFormatter(logging.Formatter):
    """Formats records as `heliproxy: message`, with the traceback after it if there is one."""

    def __init__(self) -> None:
        super().__init__("heliproxy: %(message)s")

    @override
    def formatMessage(self, record: logging.LogRecord) -> str:
        return neutral(super().formatMessage(record))

    @override
    def format(self, record: logging.LogRecord) -> str:
        return neutral(redact_text(super().format(record)), lines=True)


def log_to_stderr(level: int = logging.WARNING) -> None:
    """Print what is logged, of this level and above."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=level, handlers=[handler])
