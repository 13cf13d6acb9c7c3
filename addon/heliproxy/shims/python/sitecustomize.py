"""Loaded by every Python that `heliproxy run` starts: aiohttp then uses the proxy, as other clients do by default.

Runs before the user's program, in any Python from 2.7 on: old syntax, no import but sys and os (both already
loaded), never an exception, and no trace on sys.path.
"""

import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))


class _PatchAiohttp(object):
    """Import hook that waits for aiohttp.client, and changes one default in it."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "aiohttp.client":
            return None
        sys.meta_path.remove(_PatchAiohttp)
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target) if hasattr(finder, "find_spec") else None
            if spec is not None:
                break
        else:
            return None
        try:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                _trust_env_by_default(module.ClientSession)

            spec.loader.exec_module = exec_module
        except Exception:
            pass  # a loader of another kind: aiohttp stays as it is
        return spec


def _trust_env_by_default(session):
    original = session.__init__

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("trust_env", True)
        original(self, *args, **kwargs)

    __init__.__wrapped__ = original
    __init__.__doc__ = original.__doc__
    session.__init__ = __init__


def _hand_over():
    """Leave sys.path, and run the sitecustomize that would have been found without us."""
    sys.path[:] = [p for p in sys.path if not p or os.path.abspath(p) != _HERE]
    ours = sys.modules.pop("sitecustomize", None)
    try:
        import sitecustomize  # noqa: F401
    except ImportError as e:
        if getattr(e, "name", None) not in (None, "sitecustomize"):
            raise
    finally:
        sys.modules.setdefault("sitecustomize", ours)


sys.meta_path.insert(0, _PatchAiohttp)
_hand_over()
