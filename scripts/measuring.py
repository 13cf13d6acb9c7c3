"""What the scripts that measure have in common: processes on chosen cores, what they use, and samples of figures."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent
SOURCE = SCRIPTS.parent / "addon"
HELIPROXY = [sys.executable, "-m", "heliproxy"]
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
PATIENCE = 15.0
"""Seconds a process may take to end once it is told to, and to be quiet once nothing is asked of it."""


def use_project_python() -> None:
    """Start this program again in the clone's `.venv`, made if need be, if its Python lacks what heliproxy needs."""
    if all(importlib.util.find_spec(name) for name in ("mitmproxy", "genai_prices", "starlette")):
        return
    bootstrap = 'heliproxy_root=$1; shift; . "$heliproxy_root/scripts/bootstrap.sh"; exec "$heliproxy_python" "$@"'
    os.execvp("sh", ["sh", "-euc", bootstrap, "sh", str(SCRIPTS.parent), *sys.argv])


def need_linux() -> None:
    """Raises: SystemExit, where there is no /proc to read."""
    if platform.system() != "Linux":
        raise SystemExit(
            f"This needs Linux: CPU and memory of processes are read from /proc, which {platform.system()} has not."
        )


def environment(home: Path | None = None) -> dict[str, str]:
    """For a heliproxy of this clone, with no proxy to go through and none of the user's own settings."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.lower().endswith("_proxy") and not name.startswith("HELIPROXY_")
    }
    kept |= {"PYTHONPATH": str(SOURCE), "PYTHONWARNINGS": "ignore"}
    return kept if home is None else kept | {"HELIPROXY_HOME": str(home)}


# -- processes --------------------------------------------------------------------------------------------------------


def split_cores(pin: bool = True) -> tuple[list[int], list[int]]:
    """(the measured program's, everybody else's): the last one and the rest, or all for both."""
    cores = sorted(os.sched_getaffinity(0))
    return (cores[-1:], cores[:-1]) if pin and len(cores) > 1 else (cores, cores)


def on_cores(cores: Iterable[int]) -> Callable[[], None]:
    """For Popen's `preexec_fn`."""
    chosen = set(cores)
    return lambda: os.sched_setaffinity(0, chosen)


@contextmanager
def started(
    command: Sequence[str], cores: Iterable[int], env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A program on these cores, with pipes to and from it; ended on leaving, by force if it must be."""
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment() if env is None else env,
        start_new_session=True,  # Ctrl-C is for the script, which ends what it started
        preexec_fn=on_cores(cores),
    ) as child:
        try:
            yield child
        finally:
            end(child)


def end(child: subprocess.Popen[str]) -> None:
    """Have a process end, and wait for it."""
    if child.poll() is None:
        child.terminate()
    try:
        child.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()


@contextmanager
def process(
    cores: Iterable[int], *arguments: str, env: Mapping[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A Python program on these cores that says on its first line at which URLs it listens."""
    with started([sys.executable, *arguments], cores, env) as child:
        assert child.stdout is not None
        line = child.stdout.readline()
        found = re.findall(r"https?://[\w.]+:\d+", line)
        if not found:
            raise SystemExit(f"{' '.join(arguments)} did not start: {line!r}")
        yield child, found


def address(url: str) -> tuple[str, int]:
    """Host and port of `http://HOST:PORT`."""
    host, _, port = url.partition("://")[2].rpartition(":")
    return host, int(port)


# -- what they use ----------------------------------------------------------------------------------------------------


def process_tree(pid: int) -> list[int]:
    """A process and all that it and those have started."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        if fields := _stat(stat):
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time so far of a process and those it has started, as far as they still live."""
    fields = [_stat(Path(f"/proc/{one}/stat")) for one in process_tree(pid)]
    return sum(int(each[11]) + int(each[12]) for each in fields if each) / TICKS


def _stat(path: Path) -> list[str]:
    """Fields of /proc/PID/stat from the third on (proc(5)); none if the process is gone."""
    try:
        return path.read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return []


def wait_until_quiet(pid: int, step: float = 0.1) -> float:
    """Return the CPU seconds of a process tree once it uses no more than one tick in a step."""
    before, deadline = cpu_seconds(pid), time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        time.sleep(step)
        now = cpu_seconds(pid)
        if now - before <= 1 / TICKS:
            return now
        before = now
    return before


def machine_busy_seconds() -> float:
    """Seconds that all cores together were busy so far, with what the host of a virtual machine took from it."""
    fields = [int(field) for field in Path("/proc/stat").read_text("ascii").split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS  # idle and iowait


def forget_peak_memory(pid: int) -> None:
    """Have the peaks of a process tree start from what it holds now."""
    for one in process_tree(pid):
        try:
            Path(f"/proc/{one}/clear_refs").write_text("5", "ascii")
        except OSError:
            pass  # gone, or a kernel without it: the peak since the start is told instead


def peak_memory_mib(pid: int) -> float:
    """The most memory that each of a process tree held, summed."""
    total = 0
    for one in process_tree(pid):
        try:
            found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{one}/status").read_text("utf-8", "replace"))
        except OSError:
            continue
        total += int(found[1]) if found else 0
    return total / 1024


# -- samples ----------------------------------------------------------------------------------------------------------


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of a sample that is not empty lies below."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
