"""Have the C library give freed memory back to the system.

glibc learns from every large block that is freed: blocks up to that size then come from its heap, and twice as much may
lie free at the heap's end before any is given back. After one decoded body of 16 MiB that is 32 MiB for each of its
heaps, kept for good. Both bounds stand still once they are set.
"""

from __future__ import annotations

import os
import sys

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
OWN_MAPPING = 1024 * 1024
"""Bytes from which a block is mapped by itself. Well above the 256 KiB that asyncio allocates for each read."""
KEPT_FREE = 4 * 1024 * 1024
"""Bytes that may lie free at a heap's end: giving them back and taking them again costs calls of the system."""


def give_back() -> bool:
    """Set the bounds for this process; False where there is nothing to set, or the operator has set them."""
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    try:
        import ctypes

        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(M_MMAP_THRESHOLD, OWN_MAPPING) and mallopt(M_TRIM_THRESHOLD, KEPT_FREE))
    except (ImportError, OSError, AttributeError):  # another C library
        return False
