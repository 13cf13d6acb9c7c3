"""What `heliproxy addon-path` names: the same as addon/main.py of a clone, for an installed package.

mitmproxy loads it by path (`-s`) and looks for the name `addons`; the import waits for that, so that asking
for the path costs nothing.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "addons":
        from heliproxy.addon import addons

        return addons
    raise AttributeError(name)
