"""Damaged input at every parser: no error that it does not promise, no hang, and in pieces the same as whole."""

from __future__ import annotations

import random
import time

from fuzz_targets import SEEDS, TARGETS
from torture.figures import Figure

HOSTILE = (b"9" * 5000, b"[" * 3000, b"\xed\xa0\x80", b"\0", b"-1", b"1e999", b"\r\n", b'"', b"}", b"data: ")
SLOW_SECONDS = 5.0


def damaged(dice: random.Random, seed: bytes) -> bytes:
    for _ in range(dice.randint(1, 4)):
        first, last = sorted((dice.randint(0, len(seed)), dice.randint(0, len(seed))))
        piece = dice.choice(HOSTILE) if dice.random() < 0.5 else dice.randbytes(dice.randint(0, 4))
        seed = seed[:first] + piece + (seed[last:] if dice.random() < 0.5 else seed[first:])
    return seed


def run(budget_seconds: float) -> list[Figure]:
    dice = random.Random(8)
    tried = broken = slow = 0
    what = ""
    for name, target in TARGETS.items():
        ends = time.monotonic() + budget_seconds / len(TARGETS)
        while (began := time.monotonic()) < ends:
            data = damaged(dice, dice.choice(SEEDS[name]))
            tried += 1
            try:
                target(data)
            except Exception as e:
                broken += 1
                what = what or f"{name} {data[:60]!r} {type(e).__name__}: {e}"[:200]
            slow += time.monotonic() - began > SLOW_SECONDS
    return [
        Figure("inputs tried", tried, f"at {len(TARGETS)} parsers"),
        Figure("promises broken", broken, what, holds=broken == 0),
        Figure("inputs that took over 5 s", slow, holds=slow == 0),
    ]
