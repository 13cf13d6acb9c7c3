"""JSON read in half the time, where it is plain: nearly all that passes.

msgspec refuses what is no valid JSON in valid UTF-8, half of a surrogate pair, a number beyond floats; all else it
reads as the standard library does, integers of any length included (`tests/test_quick_json.py`). So whoever reads JSON
asks it first, and the standard library about what it refuses. For writing it will not do: its floats look different.
"""

from __future__ import annotations

import msgspec

REFUSED = (msgspec.MsgspecError, ValueError, RecursionError)

read = msgspec.json.Decoder().decode
"""The JSON value in bytes or a text. Raises one of `REFUSED`, which says nothing of what the standard library does."""
