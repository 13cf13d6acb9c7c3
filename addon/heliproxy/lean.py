"""mitmproxy's core and the five addons of a headless proxy, without the thirty that their package imports beside them.

`mitmproxy/addons/__init__.py` imports every stock addon, and with them Flask, ldap3, pyparsing and more: half of what
starting takes. While the five are imported, a bare module stands in for the package; then it is taken away again, so
that whoever imports the package later (`--set` with an option of another addon, mitmweb) gets the real one, which finds
these five loaded. Where the package is loaded already there is nothing to save, and nothing is done.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

__all__ = ["Master", "core", "disable_h2c", "next_layer", "proxyserver", "tlsconfig"]

PACKAGE = "mitmproxy.addons"


@contextmanager
def _bare_package() -> Iterator[None]:
    spec = None if PACKAGE in sys.modules else importlib.util.find_spec(PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        yield
        return
    bare = ModuleType(PACKAGE)
    bare.__path__ = list(spec.submodule_search_locations)
    bare.__spec__ = spec
    sys.modules[PACKAGE] = bare
    try:
        yield
    finally:
        if sys.modules.get(PACKAGE) is bare:
            del sys.modules[PACKAGE]


with _bare_package():
    from mitmproxy.addons import core, disable_h2c, next_layer, proxyserver, tlsconfig
    from mitmproxy.master import Master  # imports one addon itself
