"""How many milliseconds things took, as counts in steps of 2 %: small, addable, and right within 1 %.

A distribution is one whole number with 32 bits for the count of each step, so that adding two of them is one addition
of Python's. No step overflows below four thousand million requests.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from functools import lru_cache
from math import log
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

WIDTH = 1.02
"""Each step ends at so many times its beginning; its middle is then within 1 % of everything in it."""
LEAST_MS = 0.1
"""All below is one step."""
LAST = 1_200
"""The step of everything from here on, some 56 years."""
PER_STEP = 1 / log(WIDTH)
FEW = 100
"""So many values are packed one by one."""

SPARSE = 0
"""First byte of a packed distribution: its steps follow, two bytes each, one for each count. Else it is the bytes of
each count; the first step follows, in two bytes, and the counts from there on without a gap."""


def step_of(ms: float) -> int:
    if not ms > LEAST_MS:
        return 0
    return min(LAST, int(log(min(ms, 1e12) / LEAST_MS) * PER_STEP) + 1)


def middle(step: int) -> float:
    """The milliseconds that stand for a step: no value in it is further than 1 % away."""
    if step == 0:
        return LEAST_MS
    begins: float = LEAST_MS * WIDTH ** (step - 1)
    return begins * 2 * WIDTH / (1 + WIDTH)


known_step = lru_cache(maxsize=1 << 14)(step_of)
"""The same, for values that are packed again and again, as part of one group after the other."""


def distribution(values: Iterable[float]) -> int:
    return of_steps(map(step_of, values))


def of_steps(steps: Iterable[int]) -> int:
    counts = Counter(steps)
    if not counts:
        return 0
    lanes = array("I", bytes(4 * (max(counts) + 1)))
    for step, count in counts.items():
        lanes[step] = count
    return int.from_bytes(little(lanes), "little")


def lanes_of(number: int) -> array[int]:
    lanes = array("I")
    lanes.frombytes(number.to_bytes((number.bit_length() + 31) // 32 * 4, "little"))
    if sys.byteorder == "big":
        lanes.byteswap()
    return lanes


def quantile(number: int, share: float) -> float | None:
    """The value below which `share` of the values lie, within 1 %; None without values."""
    steps = [(step, count) for step, count in enumerate(lanes_of(number)) if count]
    total = sum(count for _, count in steps)
    if not total:
        return None
    place = share * (total - 1)
    low = at_place(steps, int(place))
    high = at_place(steps, min(int(place) + 1, total - 1))
    return low + (high - low) * (place - int(place))


def at_place(steps: list[tuple[int, int]], place: int) -> float:
    for step, count in steps:
        if place < count:
            return middle(step)
        place -= count
    return middle(steps[-1][0])


def pack(number: int, values: Sequence[float] = ()) -> bytes | None:
    """A distribution, and values to be added to it, in few bytes; None for an empty one."""
    if not number and len(values) < FEW:
        return bytes([SPARSE]) + packed_steps(sorted(map(known_step, values))) if values else None
    number += of_steps(map(known_step, values))
    first = ((number & -number).bit_length() - 1) // 32
    counts = lanes_of(number >> 32 * first)
    most = max(counts)
    width = 1 if most < 1 << 8 else 2 if most < 1 << 16 else 4
    if 2 * sum(counts) <= width * len(counts):
        steps = [first + offset for offset, count in enumerate(counts) if count for _ in range(count)]
        return bytes([SPARSE]) + packed_steps(steps)
    packed = bytes(counts.tolist()) if width == 1 else little(array("H" if width == 2 else "I", counts))
    return bytes([width]) + first.to_bytes(2, "little") + packed


def packed_steps(steps: Iterable[int]) -> bytes:
    return little(array("H", steps))


def little(numbers: array[int]) -> bytes:
    """The numbers as bytes, the low one of each first on every machine."""
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def unpack(packed: Iterable[bytes]) -> int:
    """The sum of packed distributions."""
    total = 0
    steps: list[int] = []
    for one in packed:
        width = one[0]
        if width == SPARSE:
            found = array("H", one[1:])
            if sys.byteorder == "big":
                found.byteswap()
            steps += found
            continue
        lanes = bytearray((len(one) - 3) // width * 4)
        for part in range(width):
            lanes[part::4] = one[3 + part :: width]
        total += int.from_bytes(lanes, "little") << 32 * (one[1] | one[2] << 8)
    return total + of_steps(steps)
