"""Reading, checking and replacing the stored price table. Nothing here runs unless the user asks for it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from .price_table import PriceTable


def read_stored(path: Path) -> PriceTable | None:
    """The table stored by an update, None when there is none. Raises OSError, ValueError."""
    from .price_table import load_json

    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    if not isinstance(data, dict) or not isinstance(data.get("version"), str):
        raise ValueError(f"{path.name} is not a stored price table")  # noqa: TRY004  (bad data, not a bad call)
    return load_json(data.get("providers"), data["version"])
