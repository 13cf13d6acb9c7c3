"""Our certificate in the system's own trust store: put there only when asked for, and taken out again.

Nothing else needs it: `heliproxy run` and `heliproxy env` work with variables alone. It is for programs that read
neither, and it is the one thing heliproxy ever changes outside its home.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from heliproxy.certs import pem_keys, write_atomically

Run = Callable[[Sequence[str]], None]
"""Runs a command. Raises OSError when it cannot be started, or fails."""


@dataclass(frozen=True, slots=True)
class Store:
    """Where a kind of system takes local certificates from, and how it is told."""

    folder: str
    file: str
    command: tuple[str, ...]


STORES: tuple[Store, ...] = (
    Store("/usr/local/share/ca-certificates", "heliproxy.crt", ("update-ca-certificates",)),  # Debian, Ubuntu, Alpine
    Store("/etc/pki/ca-trust/source/anchors", "heliproxy.pem", ("update-ca-trust", "extract")),  # Fedora, RHEL
    Store("/etc/ca-certificates/trust-source/anchors", "heliproxy.crt", ("update-ca-trust", "extract")),  # Arch
    Store("/etc/pki/trust/anchors", "heliproxy.pem", ("update-ca-certificates",)),  # openSUSE
)
KEYCHAIN = "/Library/Keychains/System.keychain"


def run_command(command: Sequence[str]) -> None:
    """Run a system command, its output kept for the message when it fails."""
    done = subprocess.run(list(command), capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise OSError(f"{' '.join(command)} failed with status {done.returncode}: {said[-1] if said else 'no output'}")


def store_of(root: Path) -> Store:
    """How the system below `root` keeps local certificates. Raises OSError when it is of no kind we know."""
    for store in STORES:
        if (root / store.folder.lstrip("/")).is_dir():
            return store
    raise OSError(f"no folder for local certificates found below {root}: install the package ca-certificates")


def installed(cert: Path, root: Path = Path("/"), platform: str = sys.platform) -> bool:
    """Whether exactly this certificate is where the system takes local ones from. False where we cannot tell."""
    try:
        if platform == "darwin":
            run_command(("security", "verify-cert", "-c", str(cert), "-l", "-L", "-q"))
            return True
        store = store_of(root)
        place = root / store.folder.lstrip("/") / store.file
        return place.is_file() and pem_keys(place.read_bytes()) == pem_keys(cert.read_bytes())
    except OSError:
        return False


def install(cert: Path, root: Path = Path("/"), run: Run = run_command, platform: str = sys.platform) -> str:
    """Make the system trust `cert`; returns what was done. Below another root the command is left to the caller.

    Raises:
        OSError: no right to, or the system is of a kind we do not know.
    """
    if platform == "darwin":
        run(("security", "add-trusted-cert", "-d", "-r", "trustRoot", "-k", KEYCHAIN, str(cert)))
        return f"added to {KEYCHAIN}"
    store = store_of(root)
    place = root / store.folder.lstrip("/") / store.file
    write_atomically(place, cert.read_bytes(), 0o644)
    return _tell(store, f"written {place}", root, run)


def uninstall(cert: Path, root: Path = Path("/"), run: Run = run_command, platform: str = sys.platform) -> str:
    """Undo `install`, also of a certificate that has been replaced since; returns what was done. Raises as it."""
    if platform == "darwin":
        run(("security", "remove-trusted-cert", "-d", str(cert)))
        return f"removed from {KEYCHAIN}"
    store = store_of(root)
    place = root / store.folder.lstrip("/") / store.file
    if not place.exists():
        return "nothing to remove"
    place.unlink()
    return _tell(store, f"removed {place}", root, run)


def _tell(store: Store, done: str, root: Path, run: Run) -> str:
    if root != Path("/"):
        return f"{done}; run `{' '.join(store.command)}` in that system"
    run(store.command)
    return f"{done}, and ran {' '.join(store.command)}"
