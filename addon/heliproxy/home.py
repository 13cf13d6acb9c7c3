"""Where heliproxy keeps its files: one folder holding heliproxy.db, ca/ and the configuration."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

DATABASE_NAME = "heliproxy.db"
PRICES_DATE_NAME = "prices-date"
"""Holds the date of the price data last used here: reports say its age without loading the data."""
PRICES_STALE_DAYS = 45


def default_home(environ: Mapping[str, str] | None = None, platform: str | None = None) -> Path:
    """The folder of `HELIPROXY_HOME`, or the one this platform gives to user data. Not created here."""
    env = os.environ if environ is None else environ
    system = sys.platform if platform is None else platform
    if env.get("HELIPROXY_HOME"):
        return Path(env["HELIPROXY_HOME"]).expanduser()
    if system == "win32":
        local = env.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "heliproxy"
    if system == "darwin":
        return Path.home() / "Library" / "Application Support" / "heliproxy"
    # XDG base directory rules: a relative value is invalid and ignored.
    data = Path(env.get("XDG_DATA_HOME", ""))
    return (data if data.is_absolute() else Path.home() / ".local" / "share") / "heliproxy"


def make_private_folder(path: Path) -> None:
    """Create `path` and its missing parents with mode 0700 under any umask; one that exists is left as it is.

    Raises OSError when it cannot be created.
    """
    missing = []
    folder = path
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
        # A umask such as 0777 would leave a folder that we ourselves cannot enter.
        folder.chmod(0o700)


def make_private_file(path: Path) -> None:
    """Create `path`, empty, with mode 0600 under any umask, or tighten the one that exists.

    Raises OSError when it cannot be created.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
    else:
        os.close(handle)
        path.chmod(0o600)
