"""kill -9 at random moments under load: the file is whole, and every row said to be flushed is there once."""

from __future__ import annotations

import random
import tempfile
import threading
import time
from pathlib import Path

from fakes import Answer, Asked, Upstream, chat_answer, json_answer
from served import Load, integrity, query, served
from torture.figures import Figure

SHARE = 2.0
KILLS = 50
SECONDS_A_KILL = 3.0
CLIENTS = 6


def answer(asked: Asked) -> Answer:
    return json_answer(chat_answer())


def run(budget_seconds: float) -> list[Figure]:
    kills = max(3, min(KILLS, int(budget_seconds / SECONDS_A_KILL)))
    dice = random.Random(8)
    acknowledged: set[str] = set()
    answered = broken = wrong = 0
    deadline = time.monotonic() + budget_seconds
    done = 0
    with tempfile.TemporaryDirectory() as folder, Upstream(answer) as up:
        home = Path(folder) / "home"
        for _ in range(kills):
            if time.monotonic() > deadline:
                break
            with served(home, up.url) as running, Load(running.port, CLIENTS) as load:
                threading.Event().wait(dice.uniform(0.05, 1.0))
                before = len(load.answered)
                flushed = running.health(flush=True)["flushed"]
                if flushed:
                    acknowledged.update(key for key, _ in load.answered[:before])
                threading.Event().wait(dice.uniform(0.0, 0.5))
                running.kill()
            done += 1
            answered += len(load.answered)
            wrong += len(load.wrong)
            broken += integrity(home / "heliproxy.db") != "ok"
        rows = [row["id"] for row in query(home, "SELECT id FROM requests")]
    return [
        Figure("kills", done),
        Figure("calls answered", answered),
        Figure("answers that were not the upstream's", wrong, holds=wrong == 0),
        Figure("files damaged", broken, holds=broken == 0),
        Figure("rows acknowledged as flushed", len(acknowledged)),
        Figure("rows lost of these", len(acknowledged - set(rows)), holds=acknowledged <= set(rows)),
        Figure("rows twice", len(rows) - len(set(rows)), holds=len(rows) == len(set(rows))),
        Figure("answered, not yet flushed, lost", answered - len(rows), "at the moment of the kill"),
    ]
