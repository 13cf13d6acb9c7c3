#!/usr/bin/env python3
"""How long heliproxy takes to start: wall time and CPU of the process tree, the median of some runs.

scripts/bench_start.py [--rounds 15]      prints a table; needs an otherwise idle machine for its wall times
"""

from __future__ import annotations

import argparse
import resource
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from measuring import HELIPROXY, environment, use_project_python


def first_run(home: Path) -> float:
    """`run` with no home yet: the authority and the database are made."""
    shutil.rmtree(home, ignore_errors=True)
    return later_run(home)


def later_run(home: Path) -> float:
    """`run` of a program that ends at once."""
    begin = time.perf_counter()
    subprocess.run([*HELIPROXY, "run", "-q", "--", "true"], env=environment(home), check=True)
    return time.perf_counter() - begin


def serve_ready(home: Path) -> float:
    """`serve` until it says that it is ready."""
    begin = time.perf_counter()
    command = [*HELIPROXY, "serve", "--port", "0", "--api-port", "0"]
    with subprocess.Popen(command, env=environment(home), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        seconds = time.perf_counter() - begin
        process.send_signal(signal.SIGTERM)
    if b"ready" not in said:
        raise SystemExit(f"serve did not start: {said!r}")
    return seconds


def help_text(home: Path) -> float:
    """`--help`."""
    begin = time.perf_counter()
    subprocess.run([*HELIPROXY, "--help"], env=environment(home), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


CASES: dict[str, Callable[[Path], float]] = {
    "run -- true, first": first_run,
    "run -- true, later": later_run,
    "serve, until ready": serve_ready,
    "--help": help_text,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    walls: dict[str, list[float]] = {name: [] for name in CASES}
    cpus: dict[str, list[float]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            for name, measure in CASES.items():
                before = cpu_seconds()
                seconds = measure(Path(folder) / "home")
                if number:  # the first round compiles and fills caches
                    walls[name].append(seconds)
                    cpus[name].append(cpu_seconds() - before)
    print(f"{'':20} {'wall median':>12} {'min':>7} {'max':>7} {'CPU median':>11}")
    for name, values in walls.items():
        figures = (statistics.median(values), min(values), max(values), statistics.median(cpus[name]))
        print("{:20} {:10.3f} s {:7.3f} {:7.3f} {:9.3f} s".format(name, *figures))


if __name__ == "__main__":
    use_project_python()
    main()
