"""How a process beside the proxy stands back, so that calls go first."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
import sys

_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
"""Number of the system call, which Python does not have."""
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")
"""struct sched_attr, first version: size, policy, flags, nice, priority, runtime, deadline, period (sched(7))."""


def stand_back(nice: int = 10, slice_ns: int = 100_000) -> None:
    """Lower this process's priority, and let it run for so long at most before one that wakes up takes its core.

    Linux lets a program finish its slice, of some milliseconds, before another may have the core, whatever their
    priorities. Since 6.12 a program can ask for shorter slices. What cannot be had is left out.
    """
    with contextlib.suppress(OSError, AttributeError):  # Windows has none
        nice = os.nice(nice)
    number = _SCHED_SETATTR.get(platform.machine())
    if sys.platform == "linux" and number is not None:
        normal = 0
        attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, normal, 0, nice, 0, slice_ns, 0, 0)
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).syscall(number, 0, ctypes.create_string_buffer(attributes), 0)
