"""Streams that either side breaks, at random places, over HTTP/1 and HTTP/2: exact bytes, a row each, nothing left."""

from __future__ import annotations

import asyncio
import gc
import random
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from attempts_wire import Call, make_certificate
from fakes import chat_chunks
from stream_rig import RETRY, Product, Proxies, chat_body, open_files, product
from torture.figures import Figure

SHARE = 1.0
SIDES = (("h1", "h1"), ("h1", "plain"), ("h2", "h1"), ("h2", "h2"), ("gateway", "h1"))
TIMEOUT = 0.5
ENDINGS = ("end", "die", "silence", "client")
STATUSES = {"end": {200}, "die": {200, 502}, "silence": {-2}, "client": {-3}}
CHUNKS = chat_chunks(["word "] * 20, usage={"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30})


@dataclass
class Tally:
    calls: int = 0
    wrong_bytes: int = 0
    wrong_rows: int = 0
    lost_rows: int = 0
    notes: list[str] = field(default_factory=list)


def answering(ending: str, count: int) -> object:
    async def answer(call: Call) -> None:
        await call.events()
        for chunk in CHUNKS if ending == "end" else CHUNKS[:count]:
            await call.send(chunk)
        if ending == "end":
            await call.end()
        elif ending == "die":
            await call.die()
        else:
            await call.gone.wait()

    return answer


async def once(proxies: Proxies, dice: random.Random, tally: Tally) -> None:
    ending, count, sides = dice.choice(ENDINGS), dice.randint(1, len(CHUNKS) - 4), dice.choice(SIDES)
    async with (
        asyncio.timeout(20),
        product(proxies, sides, [answering(ending, count)], upstream_timeout=TIMEOUT) as run,
    ):  # type: ignore[list-item]
        tally.calls += 1
        stream = run.send(chat_body(stream=True), RETRY if dice.random() < 0.5 else [])
        status = await run.head(stream)
        wanted = b"".join(CHUNKS if ending == "end" else CHUNKS[:count])
        if ending == "client":
            got = await run.chunk(stream)
            await run.leave(stream)
            right = wanted.startswith(got)
        else:
            right = await whole(run, stream, ending) == wanted
        tally.wrong_bytes += not right or status != 200
        try:
            row = await run.row()
        except AssertionError:
            tally.lost_rows += 1
            return
        if row["status"] not in STATUSES[ending] or (ending == "end") != (row["error"] is None):
            tally.wrong_rows += 1
            tally.notes.append(f"{sides} {ending}: {row['status']} {row['error']}")


async def whole(run: Product, stream: int, ending: str) -> bytes:
    if ending != "end":
        return await run.received(stream)
    body = b""
    while chunk := await run.chunk(stream):
        body += chunk
    return body


async def attack(proxies: Proxies, seconds: float) -> tuple[Tally, int]:
    tally, dice, ends = Tally(), random.Random(8), time.monotonic() + seconds
    for _ in range(5):
        await once(proxies, dice, tally)
    before = open_files()
    while time.monotonic() < ends:
        await once(proxies, dice, tally)
    for _ in range(100):
        gc.collect()
        if not open_files() - before:
            break
        await asyncio.sleep(0.05)
    return tally, (open_files() - before).total()


def run(budget_seconds: float) -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        proxies = Proxies(Path(folder) / "home", make_certificate(Path(folder)))
        try:
            tally, left = asyncio.run(attack(proxies, budget_seconds - 5))
        finally:
            proxies.close()
    return [
        Figure("streams broken or ended", tally.calls),
        Figure("streams whose client got other bytes", tally.wrong_bytes, holds=tally.wrong_bytes == 0),
        Figure("rows that say something else", tally.wrong_rows, "; ".join(tally.notes[:2]), tally.wrong_rows == 0),
        Figure("rows lost", tally.lost_rows, holds=tally.lost_rows == 0),
        Figure("files and sockets left open", max(0, left), holds=left == 0),
    ]
