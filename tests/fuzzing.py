"""`scripts/fuzz`: drives the targets of `fuzz_targets.py`, each in a process of its own, for a bounded time."""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
import time
from pathlib import Path

FOUND = Path(__file__).resolve().parents[1] / ".fuzz"
GRACE_SECONDS = 60
LONGEST_INPUT = 4096
SLOWEST_SECONDS = 20


def with_atheris(name: str, seconds: float) -> None:
    """In this process; libFuzzer ends it."""
    import atheris  # type: ignore[import-not-found]

    with atheris.instrument_imports(include=["heliproxy"]):
        from fuzz_targets import SEEDS, TARGETS
    corpus = FOUND / name / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS[name]):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [f"-max_total_time={round(seconds)}", f"-max_len={LONGEST_INPUT}", f"-timeout={SLOWEST_SECONDS}"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={FOUND / name}/", str(corpus)], TARGETS[name])
    atheris.Fuzz()


def with_hypothesis(name: str, seconds: float) -> None:
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    from fuzz_targets import SEEDS, TARGETS

    ends, runs = time.monotonic() + seconds, 0
    pieces = st.binary(max_size=30) | st.sampled_from(SEEDS[name])

    @settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(pieces, max_size=5).map(b"".join))
    def attack(data: bytes) -> None:
        nonlocal runs
        runs += 1
        TARGETS[name](data)

    while time.monotonic() < ends:
        attack()
    print(f"Done {runs} runs in {seconds:.0f} second(s)")


def fuzz(name: str, seconds: float) -> tuple[int, bool]:
    """Run one target in a process of its own; returns executions and whether it held."""
    (FOUND / name).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-W", "ignore", "-m", "fuzzing", "--here", name, "--seconds", str(seconds)]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds + GRACE_SECONDS, check=False
        )
        output, held = done.stdout.decode("utf-8", "replace"), done.returncode == 0
    except subprocess.TimeoutExpired as e:
        output, held = (e.stdout or b"").decode("utf-8", "replace") + "\nit did not end in time", False
    (FOUND / name / "log.txt").write_text(output, "utf-8")
    runs = re.findall(r"Done (\d+) runs|stat::number_of_executed_units: (\d+)|#(\d+)\s", output)
    return max((int(n) for found in runs for n in found if n), default=0), held


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="for each target (60)")
    parser.add_argument("--target", action="append", metavar="T", help="repeatable; all of them if none is named")
    parser.add_argument("--list", action="store_true", help="say what targets there are")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    atheris = importlib.util.find_spec("atheris") is not None
    if arguments.here:
        (with_atheris if atheris else with_hypothesis)(arguments.here, arguments.seconds)
        return 0
    from fuzz_targets import TARGETS

    unknown = sorted(set(arguments.target or ()) - set(TARGETS))
    if unknown:
        parser.error(f"no target {', '.join(unknown)}; there are: {', '.join(TARGETS)}")
    if arguments.list:
        print("\n".join(TARGETS))
        return 0
    failed = 0
    print(f"driven by {'atheris' if atheris else 'Hypothesis'}")
    for name in arguments.target or TARGETS:
        runs, held = fuzz(name, arguments.seconds)
        failed += not held
        print(
            f"{name:<14} {runs:>10,} inputs  {'held' if held else f'FAILED, see {FOUND.name}/{name}/log.txt'}",
            flush=True,
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
