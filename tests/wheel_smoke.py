"""Try a built wheel as its user would; run by `scripts/test` with the wheel and a venv it is installed in."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "addon" / "heliproxy"


def missing_from(wheel: Path) -> list[str]:
    """Files of the package in the source tree that the wheel does not carry."""
    names = set(zipfile.ZipFile(wheel).namelist())
    files = (p for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return sorted(name for p in files if (name := f"heliproxy/{p.relative_to(PACKAGE).as_posix()}") not in names)


def main(wheel: Path, venv: Path) -> int:
    """Check the contents, then run the command with an empty environment. Returns an exit status."""
    if missing := missing_from(wheel):
        print(f"wheel: not packed: {', '.join(missing)}")
        return 1
    version = {}
    exec((PACKAGE / "__init__.py").read_text(), version)
    command = [venv / "bin" / "heliproxy", "--version"]
    shown = subprocess.run(command, env={"HOME": str(venv)}, capture_output=True, text=True)
    if shown.returncode or version["__version__"] not in shown.stdout:
        print(f"wheel: `heliproxy --version` gave {shown.returncode}: {shown.stdout}{shown.stderr}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
