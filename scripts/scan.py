"""Scan the tracked files for what must never be committed: private keys, machine paths, registry hosts."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# Written so that this file does not match itself.
RULES = {
    "private key": re.compile(r"BEGIN [A-Z ]*PRIVATE" + r" KEY-----"),
    "machine path": re.compile(r"[\s\"'=(`](?:/work|/root|/farm)" + r"/[A-Za-z0-9.]"),
    "home of a person": re.compile(r"[\s\"'=(`]/(?:home|Users)" + r"/(?!(?:user|me|you|USER)\b)[a-z]"),
    "registry host": re.compile(
        r"\b(?:files[.]pythonhosted|pypi[.]org/simple|registry[.]npmjs|deb[.]debian|proxy[.]golang)"
    ),
}


def findings(text: str) -> Iterator[tuple[int, str]]:
    """Yield line number and rule name for each line that breaks a rule."""
    for number, line in enumerate(text.splitlines(), 1):
        for name, pattern in RULES.items():
            if pattern.search(line):
                yield number, name


def main() -> int:
    """Print each finding as `file:line: what`; return 1 when there is one."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached"], capture_output=True, check=True).stdout
    bad = 0
    for name in filter(None, listed.decode().split("\0")):
        path = Path(name)
        if not path.is_file():  # deleted, not yet committed; or a link that leads nowhere
            continue
        for number, what in findings(path.read_bytes().decode("utf-8", "replace")):
            print(f"{name}:{number}: {what}")
            bad += 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
