"""What the C library is told about memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

from heliproxy import heap

GROW = """
import re, sys
from heliproxy.heap import give_back
def resident():
    return int(re.findall(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[0]) // 1024
if sys.argv[1] == "set":
    assert give_back()
before = resident()
for size in (4, 8, 16):
    blocks = [bytearray(size << 20) for _ in range(3)]
    small = bytearray(1 << 10)
    del blocks
print(resident() - before)
"""


def grown(how: str) -> int:
    """MiB that a process keeps of blocks it has freed."""
    done = subprocess.run([sys.executable, "-c", GROW, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has glibc")
def test_freed_blocks_go_back_to_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert grown("set") <= 6


def test_what_the_operator_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not heap.give_back()


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not heap.give_back()
