"""Identifiers of exchanges."""

from __future__ import annotations

import os

_MARKS = 4 << 76 | 2 << 62
"""Version and variant, RFC 9562 section 4."""
_RANDOM = ~(15 << 76 | 3 << 62)


def new_request_id(now_ms: int) -> str:
    """A UUID whose first 48 bits are `now_ms` (Unix time in milliseconds), the other 74 free bits random.

    Ids made one after the other sort together, so a batch touches few pages of each index: storing a row takes about
    half the CPU it takes with random ids. It is marked as version 4, not 7, because older UUID libraries in clients
    refuse versions above 5.
    """
    bits = (now_ms & (1 << 48) - 1) << 80 | int.from_bytes(os.urandom(10)) & _RANDOM | _MARKS
    text = f"{bits:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
