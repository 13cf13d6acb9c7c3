"""How a module of ours is run by a Python process beside this one."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def command(module: str, *arguments: str) -> list[str]:
    """What starts it."""
    # -P: our own modules (secrets.py, ...) must not stand in for the standard library's there.
    return [sys.executable, "-P", "-m", f"heliproxy.{module}", *arguments]


def environment() -> dict[str, str]:
    """This process's, with the place of our package: mitmproxy finds a script's modules without it."""
    places = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))}
