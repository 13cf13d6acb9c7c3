"""`scripts/torture`: attacks, faults, crashes and load, for a bounded time, with figures at the end.

    scripts/torture                      every part, twenty minutes at most
    scripts/torture --minutes 3          the same in less time: fewer kills, fewer inputs
    scripts/torture crash faults         these parts only
    scripts/torture --list               what there is

Every part runs in a process of its own, one after the other; one that goes past its time by more than a minute is
ended and counts as failed. Ends with status 1 when a figure does not hold.

To add a part: put a module into `tests/torture/parts/`, its docstring's first line says what it shows, with

    SHARE = 1.0  # optional: how much of the whole time it gets, beside the others

    def run(budget_seconds: float) -> list[Figure]: ...

`from torture.figures import Figure`. `run` plans its work by the seconds it is given and returns what it measured:
`Figure("kills survived", 50)`, `Figure("rows lost", 0, holds=True)`; `holds=False` fails the run, None is only told.
`served.py` (a real `heliproxy serve`, load on it) and `fakes.py` (upstreams) can be imported as they are in tests.
A part must end what it starts, needs no network, and must also make sense in twenty seconds.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from torture.figures import Figure

PARTS = Path(__file__).parent / "parts"
GRACE_SECONDS = 60.0
LEAST_SECONDS = 20.0


def names() -> list[str]:
    return sorted(path.stem for path in PARTS.glob("*.py") if path.stem != "__init__")


def describe(name: str) -> tuple[str, float]:
    """What a part shows, and its share of the time."""
    module = importlib.import_module(f"torture.parts.{name}")
    return (module.__doc__ or "").strip().splitlines()[0], float(getattr(module, "SHARE", 1.0))


def run_here(name: str, seconds: float, out: Path) -> None:
    """Run one part in this process and leave its figures in a file."""
    figures = importlib.import_module(f"torture.parts.{name}").run(seconds)
    out.write_text(json.dumps([asdict(figure) for figure in figures]), "utf-8")


def run_apart(name: str, seconds: float) -> list[Figure]:
    """Run one part in a process group of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "torture", "--here", name, "--seconds", str(seconds), "--out", str(out)]
        with subprocess.Popen(command, start_new_session=True) as child:
            try:
                status = child.wait(seconds + GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                return [Figure("ended after", round(seconds + GRACE_SECONDS), "s: it was over its time", holds=False)]
        if status != 0 or not out.exists():
            return [Figure("failed with status", status, holds=False)]
        return [Figure(**figure) for figure in json.loads(out.read_text("utf-8"))]


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/torture", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help="parts to run (all)")
    parser.add_argument("--minutes", type=float, default=18.0, help="for all parts together, about (18)")
    parser.add_argument("--list", action="store_true", help="say what parts there are")
    for hidden in ("--here", "--seconds", "--out"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        run_here(arguments.here, float(arguments.seconds), Path(arguments.out))
        return 0
    chosen = arguments.parts or names()
    unknown = sorted(set(chosen) - set(names()))
    if unknown:
        parser.error(f"no part {', '.join(unknown)}; there are: {', '.join(names())}")
    about = {name: describe(name) for name in chosen}
    if arguments.list:
        for name, (text, _) in about.items():
            print(f"{name:<12} {text}")
        return 0
    whole = sum(share for _, share in about.values())
    failed = 0
    started = time.monotonic()
    for name, (text, share) in about.items():
        seconds = max(LEAST_SECONDS, arguments.minutes * 60 * share / whole)
        print(f"\n{name}: {text}", flush=True)
        began = time.monotonic()
        for figure in run_apart(name, seconds):
            failed += figure.holds is False
            print(f"  {figure}", flush=True)
        print(f"  {'took':<44} {time.monotonic() - began:>12,.0f} s", flush=True)
    verdict = "everything held" if not failed else f"{failed} figures did NOT hold"
    print(f"\n{verdict} ({len(chosen)} parts, {(time.monotonic() - started) / 60:.1f} minutes)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
