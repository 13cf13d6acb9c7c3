#!/usr/bin/env python3
"""Measure what `heliproxy serve` costs, logging on, beside a bare mitmdump and beside no proxy at all.

    scripts/bench.py                                        all workloads, less than two minutes
    scripts/bench.py --workloads W1,W2 --seconds 3 --rounds 5
    scripts/bench.py --workloads W1 --workers 2 --json figures.json

Prints a markdown table for each workload. Needs Linux, no root and no network: the provider is a fake on this machine,
with TLS of its own. Proxies, provider and load are processes of their own; a proxy has the last core to itself, all
others the rest. Rounds are interleaved (A B C, C B A). CPU is that of a proxy's whole process tree, from the end of the
warm-up until it is quiet again, so that what is logged after the answer counts; of the rounds the best is told, as
other work on the machine only adds. Latencies and throughput (callers / mean latency) are medians of the rounds; with
more than one caller both are mostly waiting for a turn. Memory is the highest peak.
At the end the rows in heliproxy's databases are held against the requests sent: status 1 if they differ.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import measuring
from bench_load import Job
from bench_upstream import ENDING_EVENTS, write_certificate
from measuring import address, cpu_seconds, end, process, started, wait_until_quiet

HOST = "api.openai.com"
KEY = "authorization: Bearer sk-bench"
LABELS = ("helicone-user-id: ada", "helicone-property-app: bench")
START_SECONDS = 60.0
STREAM_ADDON = """
def responseheaders(flow):
    if "event-stream" in flow.response.headers.get("content-type", ""):
        flow.response.stream = True
"""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked, by how many at a time, and what the provider does."""

    about: str
    connections: tuple[int, ...]
    asks: str
    """For the fake provider, see `bench_upstream.py`."""
    size: int = 0
    events: int = 0
    prompt: int = 1024
    unique: bool = True
    fresh: bool = False
    headers: tuple[str, ...] = ()
    """For heliproxy only."""


RETRIES = ("helicone-retry-enabled: true", "helicone-retry-num: 3", "helicone-retry-factor: 1")
WORKLOADS = {
    "W1": Workload("chat, 1 kB in and out", (1, 16, 64), "bytes=1024", size=1024),
    "W2": Workload("streams of 100 events, 5 ms apart", (32,), "events=100 gap=5", events=100),
    "W3": Workload("200 kB in, 4 kB out", (16,), "bytes=4096", size=4096, prompt=200_000),
    "W4": Workload(
        "one question again and again, heliproxy's cache on (the others ask upstream)",
        (1, 16),
        "bytes=1025",
        size=1025,
        unique=False,
        headers=("helicone-cache-enabled: true",),
    ),
    "W5": Workload(
        "every 10th answer a 500, heliproxy's retries on (after a second, as at Helicone)",
        (16,),
        "bytes=1026 failing=10",
        size=1026,
        headers=RETRIES,
    ),
    "W6": Workload("a new connection for every request", (4,), "bytes=1024", size=1024, fresh=True),
    "W9": Workload("a model that thinks for 300 ms", (64,), "bytes=1024 think=300", size=1024),
}
NAMES = ("direct", "mitmdump", "mitmdump-stream", "heliproxy")


@dataclass(slots=True)
class Peer:
    """One way to the provider."""

    name: str
    connect: tuple[str, int]
    target: str
    trust: Path
    child: subprocess.Popen[str] | None = None
    """The proxy; None: there is none."""
    home: Path | None = None
    """Of a heliproxy."""
    sent: int = field(default=0)

    @property
    def pid(self) -> int | None:
        return None if self.child is None else self.child.pid

    def job(self, workload: Workload, connections: int, seconds: float) -> Job:
        headers = [KEY, f"x-bench: {workload.asks}"]
        if self.home is not None:
            headers += [*LABELS, *workload.headers]
        return Job(
            connect=self.connect,
            target=self.target,
            tunnel=self.child is not None,
            trust=str(self.trust),
            headers=headers,
            prompt=workload.prompt,
            unique=workload.unique,
            connections=connections,
            fresh=workload.fresh,
            size=workload.size,
            events=workload.events + ENDING_EVENTS if workload.events else 0,
            warm_up=min(0.3, seconds),
            seconds=seconds,
        )


class Bench:
    """Everything that runs, for as long as the stack is open."""

    def __init__(self, stack: ExitStack, folder: Path, pin: bool) -> None:
        self._stack, self._folder = stack, folder
        self.proxy_cores, self.other_cores = measuring.split_cores(pin)
        self._ca = write_certificate(folder)
        upstream = process(self.other_cores, str(measuring.SCRIPTS / "bench_upstream.py"), str(folder / "upstream.pem"))
        self._upstream, (self._url,) = stack.enter_context(upstream)
        command = [sys.executable, str(measuring.SCRIPTS / "bench_load.py")]
        self._load = stack.enter_context(started(command, self.other_cores))
        _, port = address(self._url)
        self._target = f"localhost:{port}"

    def peer(self, name: str) -> Peer:
        """Start one of NAMES; it ends with the stack."""
        if name == "direct":
            return Peer(name, ("127.0.0.1", address(self._url)[1]), self._target, self._ca)
        return self.heliproxy() if name == "heliproxy" else self._mitmdump(name)

    def _mitmdump(self, name: str) -> Peer:
        folder, port = self._folder / name, free_port()
        command = [f"{sysconfig.get_path('scripts')}/mitmdump", "-q", "--listen-host", "127.0.0.1"]
        command += ["--listen-port", str(port), "--set", "flow_detail=0", "--set", f"confdir={folder}"]
        command += ["--set", f"ssl_verify_upstream_trusted_ca={self._ca}"]
        if name == "mitmdump-stream":
            script = self._folder / "stream.py"
            script.write_text(STREAM_ADDON, "utf-8")
            command += ["-s", str(script)]
        child = self._stack.enter_context(started(command, self.proxy_cores))
        wait_for_port(child, port)
        return Peer(name, ("127.0.0.1", port), self._target, folder / "mitmproxy-ca-cert.pem", child)

    def heliproxy(self, workers: int = 1) -> Peer:
        """Several workers may use all cores."""
        name = "heliproxy" if workers == 1 else f"heliproxy --workers {workers}"
        home = self._folder / f"home-{workers}"
        options = ["--home", str(home), "--port", "0", "--api-port", "0", "--workers", str(workers)]
        options += ["--upstream", f"{HOST}={self._url}", "--upstream-ca", str(self._ca)]
        cores = self.proxy_cores if workers == 1 else {*self.proxy_cores, *self.other_cores}
        child, urls = self._stack.enter_context(process(cores, "-m", "heliproxy", "serve", *options))
        return Peer(
            name, address(urls[0]), f"{HOST}:443", home / "ca" / "mitmproxy-ca-cert.pem", child=child, home=home
        )

    def measure(self, peer: Peer, job: Job) -> dict[str, Any]:
        """One round of one peer; adds to what the load tells CPU, memory, and the load of others on the machine."""
        self._say(json.dumps(asdict(job)))
        self._hear()  # it has warmed up
        cpu = 0.0 if peer.pid is None else wait_until_quiet(peer.pid)
        if peer.pid is not None:
            measuring.forget_peak_memory(peer.pid)
        busy, upstream, began = measuring.machine_busy_seconds(), cpu_seconds(self._upstream.pid), time.monotonic()
        self._say("")
        result: dict[str, Any] = json.loads(self._hear())
        span = time.monotonic() - began
        busy = measuring.machine_busy_seconds() - busy
        ours = cpu_seconds(self._upstream.pid) - upstream + result["load_cpu_seconds"]
        if peer.pid is not None:
            ours += cpu_seconds(peer.pid) - cpu
            result["cpu_ms"] = (wait_until_quiet(peer.pid) - cpu) * 1000 / max(1, result["requests"])
            result["peak_mib"] = measuring.peak_memory_mib(peer.pid)
        result["foreign_load"] = max(0.0, busy - ours) / span
        peer.sent += result["requests"] + result["sent_warming_up"]
        return result

    def _say(self, line: str) -> None:
        assert self._load.stdin is not None
        self._load.stdin.write(line + "\n")
        self._load.stdin.flush()

    def _hear(self) -> str:
        assert self._load.stdout is not None
        line = self._load.stdout.readline()
        if not line:
            raise SystemExit("the load ended by itself")
        return line


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_for_port(child: subprocess.Popen[str], port: int) -> None:
    """Return when a program accepts connections; it does not say so itself."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and child.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit(f"{child.args!r} did not start")


def rows(home: Path) -> int:
    with closing(sqlite3.connect(f"file:{home / 'heliproxy.db'}?mode=ro", uri=True)) as conn:
        return int(conn.execute("SELECT count(*) FROM requests").fetchone()[0])


# -- the report -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Column:
    title: str
    value: Callable[[Sequence[Mapping[str, Any]]], float | None]
    format: str = "{:.2f}"


def figure(
    combine: Callable[[list[float]], float], *keys: str
) -> Callable[[Sequence[Mapping[str, Any]]], float | None]:
    """What the rounds of one peer come to."""

    def value(rounds: Sequence[Mapping[str, Any]]) -> float | None:
        found: list[float] = []
        for one in rounds:
            inner: Any = one
            for key in keys:
                inner = inner.get(key) if inner is not None else None
            if inner is not None:
                found.append(inner)
        return combine(found) if found else None

    return value


CPU = figure(min, "cpu_ms")
MEMORY = Column("peak MiB", figure(max, "peak_mib"), "{:.0f}")
ANSWERS = (
    Column("req/s", figure(statistics.median, "per_second"), "{:.0f}"),
    Column("p50 ms", figure(statistics.median, "latency", "p50")),
    Column("p90 ms", figure(statistics.median, "latency", "p90")),
    Column("p99 ms", figure(statistics.median, "latency", "p99")),
    Column("CPU ms/req", CPU, "{:.3f}"),
    MEMORY,
)
STREAMS = (
    Column("first byte p50 ms", figure(statistics.median, "first_byte", "p50")),
    Column("first byte p99 ms", figure(statistics.median, "first_byte", "p99")),
    Column("gap p50 ms", figure(statistics.median, "gap", "p50")),
    Column("gap p99 ms", figure(statistics.median, "gap", "p99")),
    Column("whole p50 ms", figure(statistics.median, "latency", "p50")),
    Column("CPU ms/stream", CPU),
    MEMORY,
)

Cells = Mapping[str, Mapping[int, Mapping[str, Sequence[Mapping[str, Any]]]]]
"""Workload, connections, peer, rounds."""


def report(cells: Cells) -> Iterable[str]:
    """Lines of markdown: a table for each workload."""
    for name, by_connections in cells.items():
        workload = WORKLOADS[name]
        columns = STREAMS if workload.events else ANSWERS
        base = "mitmdump-stream" if workload.events else "mitmdump"
        titles = ["connections", "peer", *(column.title for column in columns), f"CPU / {base}", "failed"]
        yield f"\n**{name}**: {workload.about}\n"
        lines = [titles]
        for connections, peers in by_connections.items():
            reference = CPU(peers.get(base, ()))
            for peer, rounds in peers.items():
                cells_of_row = [shown(column.value(rounds), column.format) for column in columns]
                used = CPU(rounds)
                ratio = used / reference if used is not None and reference else None
                lines.append([str(connections), peer, *cells_of_row, shown(ratio, "{:.2f}x"), failures(rounds)])
        yield from table(lines)


def table(lines: Sequence[Sequence[str]]) -> Iterable[str]:
    """Markdown that can be read as it is; all but the second column are figures."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        aligned = [
            cell.ljust(width) if n == 1 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(aligned)} |"

    yield line(lines[0])
    yield line(["-" * width if n == 1 else "-" * (width - 1) + ":" for n, width in enumerate(widths)])
    yield from map(line, lines[1:])


def shown(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def failures(rounds: Sequence[Mapping[str, Any]]) -> str:
    """How many, and the commonest kind."""
    kinds: Counter[str] = Counter()
    for one in rounds:
        kinds.update(one["failures"])
    if not kinds:
        return "0"
    share = kinds.total() / max(1, sum(one["requests"] for one in rounds))
    return f"{kinds.total()} ({share:.1%}; {kinds.most_common(1)[0][0]})"


def foreign_load(cells: Cells) -> list[float]:
    return [
        one["foreign_load"]
        for by_connections in cells.values()
        for peers in by_connections.values()
        for rounds in peers.values()
        for one in rounds
    ]


def machine() -> str:
    found = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        if line.startswith("model name")
    ]
    cores = f"{len(os.sched_getaffinity(0))} cores{f' of {found[0]}' if found else ''}"
    return f"{cores}, mitmproxy {version('mitmproxy')}, Python {platform.python_version()}"


# -- the run ----------------------------------------------------------------------------------------------------------


def several(known: Iterable[str]) -> Callable[[str], list[str]]:
    """For argparse: names with commas between them."""

    def read(text: str) -> list[str]:
        names = list(dict.fromkeys(text.split(",")))
        if wrong := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of {', '.join(known)}")
        return names

    return read


def above(least: int, kind: type[float]) -> Callable[[str], float]:
    def read(text: str) -> float:
        if (value := kind(text)) > least:
            return value
        raise argparse.ArgumentTypeError(f"{text} is not above {least}")

    return read


def options() -> argparse.Namespace:
    about, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        *("--workloads", "-w"),
        type=several(WORKLOADS),
        default=list(WORKLOADS),
        metavar="W1,W2",
        help="; ".join(f"{name}: {each.about}" for name, each in WORKLOADS.items()),
    )
    parser.add_argument("--seconds", type=above(0, float), default=0.7, help="of each measurement (0.7)")
    parser.add_argument("--rounds", type=above(0, int), default=2, help="in which every peer has its turn (2)")
    parser.add_argument(
        "--peers",
        type=several(NAMES),
        metavar="NAME,NAME",
        help=f"of {', '.join(NAMES)}, for every workload (all; mitmdump-stream for streams only)",
    )
    parser.add_argument(
        "--workers", type=above(1, int), metavar="N", help="also a heliproxy of N processes, not pinned"
    )
    parser.add_argument("--no-pin", action="store_true", help="let every process run on all cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of every round there")
    return parser.parse_args()


def takes_part(peer: Peer, workload: Workload, chosen: Sequence[str] | None) -> bool:
    return chosen is not None or peer.name != "mitmdump-stream" or workload.events > 0


def measure_all(bench: Bench, peers: Sequence[Peer], asked: argparse.Namespace) -> Cells:
    cells: dict[str, dict[int, dict[str, list[Mapping[str, Any]]]]] = {}
    for name in asked.workloads:
        workload = WORKLOADS[name]
        part = [peer for peer in peers if takes_part(peer, workload, asked.peers)]
        for connections in workload.connections:
            cell = cells.setdefault(name, {}).setdefault(connections, {peer.name: [] for peer in part})
            for number in range(asked.rounds):
                for peer in part if number % 2 == 0 else part[::-1]:
                    found = bench.measure(peer, peer.job(workload, connections, asked.seconds))
                    cell[peer.name].append(found)
                    figures = f"{found['per_second']:7.0f} req/s  CPU {shown(found.get('cpu_ms'), '{:.2f} ms')}"
                    print(f"{name}/{connections} round {number + 1}  {peer.name:15} {figures}", file=sys.stderr)
    return cells


def rows_match(peers: Iterable[Peer]) -> bool:
    """Say of every heliproxy, which is ended for that, whether it has logged each request."""
    good = True
    for peer in peers:
        if peer.home is not None and peer.child is not None:
            end(peer.child)
            found = rows(peer.home)
            verdict = "each logged" if found == peer.sent else "NOT EQUAL"
            print(f"{peer.name}: {peer.sent:,} requests, {found:,} rows: {verdict}.")
            good = good and found == peer.sent
    return good


def main() -> int:
    asked = options()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # so that what was started is ended
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="heliproxy-bench-")))
        bench = Bench(stack, folder, pin=not asked.no_pin)
        streams = any(WORKLOADS[name].events for name in asked.workloads)
        names = asked.peers or [name for name in NAMES if streams or name != "mitmdump-stream"]
        peers = [bench.peer(name) for name in names]
        if asked.workers:
            peers.append(bench.heliproxy(asked.workers))
        cells = measure_all(bench, peers, asked)
        print("\n".join(report(cells)))
        load = foreign_load(cells)
        print(f"\n{machine()}; {asked.rounds} x {asked.seconds:g} s.")
        print(f"Other work kept {statistics.median(load):.2f} cores busy (median; {max(load):.2f} at most).")
        good = rows_match(peers)
    if asked.json:
        told = {"machine": machine(), "seconds": asked.seconds, "every_request_logged": good, "workloads": cells}
        asked.json.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    return 0 if good else 1


if __name__ == "__main__":
    measuring.need_linux()
    measuring.use_project_python()
    sys.exit(main())
