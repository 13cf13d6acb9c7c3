"""Names of header fields in lower case: the same few dozen in every call."""

from __future__ import annotations

from functools import lru_cache

_SHORT = 64


def lower_name(raw: bytes) -> str:
    """A field's name in lower case."""
    return _known(raw) if len(raw) <= _SHORT else raw.decode("latin-1").lower()


@lru_cache(1024)
def _known(raw: bytes) -> str:
    return raw.decode("latin-1").lower()
