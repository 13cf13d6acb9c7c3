"""Our own parts fail under a running proxy: its clients do not notice, the loss is counted, logging comes back."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import heliproxy.record
import heliproxy.recorder
from fakes import Answer, Asked, Upstream, chat_answer, chat_chunks, json_answer, sse_answer
from heliproxy.addon import Heliproxy
from heliproxy.formats.openai_chat import OpenAIChat
from heliproxy.pricing import Prices
from heliproxy.store import Writer
from running import running
from served import CHAT, Load, Served, integrity, query, served

LIMITED = {"Helicone-RateLimit-Policy": "2;w=3600"}
CACHED = {"Helicone-Cache-Enabled": "true"}
CHUNKS = chat_chunks(["Hello", "!"], usage={"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12})


def answer(asked: Asked) -> Answer:
    if asked.json.get("stream"):
        return sse_answer(CHUNKS)
    return json_answer(chat_answer())


# -- the files ---------------------------------------------------------------------------------------------------------


def recovered(run: Served, known: int) -> bool:
    """Whether a call made now is in the database soon, in a file that is whole."""
    reply = run.ask()
    key = reply.headers["helicone-id"]

    def stored() -> bool:
        try:
            return bool(query(run.home, "SELECT id FROM requests WHERE id = ?", key))
        except sqlite3.Error:
            return False

    return run.wait_for(stored, 30) and integrity(run.home / "heliproxy.db") == "ok"


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"\xa5" * 65536)


def truncate(path: Path) -> None:
    os.truncate(path, 0)


def delete(path: Path) -> None:
    for end in ("", "-wal", "-shm"):
        Path(f"{path}{end}").unlink(missing_ok=True)


def delete_alone(path: Path) -> None:
    path.unlink()


def replace_by_folder(path: Path) -> None:
    delete(path)
    path.mkdir()


@pytest.mark.parametrize("harm", [overwrite, truncate, delete, delete_alone])
def test_file_that_is_harmed_is_replaced_and_traffic_goes_on(home: Path, harm: Callable[[Path], None]) -> None:
    with Upstream(answer) as up, served(home, up.url) as run:
        with Load(run.port, clients=3) as load:
            assert run.wait_for(lambda: len(load.answered) > 10)
            run.health(flush=True)
            early = {key for key, _ in load.answered[:10]}
            harm(home / "heliproxy.db")
            before = len(load.answered)
            assert run.wait_for(lambda: len(load.answered) > before + 30)
        assert (load.wrong, load.failures) == ([], [])
        assert recovered(run, 1)
        health = run.health(flush=True)
        assert (health["lost_rows"], health["waiting"], health["away_since"]) == (0, 0, None)
        # What was flushed before is in the file that was set aside, or was deleted; nothing since is lost.
        ids = {row["id"] for row in query(home, "SELECT id FROM requests")}
        late = [key for key, _ in load.answered[before + 20 :]]
        assert set(late) <= ids
        if harm is truncate or (
            harm is overwrite and not early <= ids
        ):  # while the WAL has every page, nothing is lost
            assert health["damaged_files"] == 1
            assert len(list(home.glob("heliproxy.db.corrupt-*[0-9]"))) == 1


def test_lock_of_another_process_is_waited_out(home: Path) -> None:
    with Upstream(answer) as up, served(home, up.url) as run:
        run.ask()
        run.health(flush=True)
        other = sqlite3.connect(home / "heliproxy.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with Load(run.port, clients=3) as load:
            assert run.wait_for(lambda: run.health()["away_since"] is not None)
            before = len(load.answered)
            assert run.wait_for(lambda: len(load.answered) > before + 20)
        assert not run.health(flush=True)["flushed"]
        assert run.health()["status"] == "degraded"
        other.execute("ROLLBACK")
        other.close()
        assert run.wait_for(lambda: run.health(flush=True)["flushed"])
        assert (load.wrong, load.failures) == ([], [])
        assert {key for key, _ in load.answered} <= {row["id"] for row in query(home, "SELECT id FROM requests")}
        health = run.health()
        assert (health["lost_rows"], health["lost_bodies"], health["away_since"]) == (0, 0, None)


def test_full_disk_is_waited_out(home: Path) -> None:
    with Upstream(answer) as up, served(home, up.url) as run:
        run.ask()
        run.health(flush=True)
        usual = resource.prlimit(run.running.pid, resource.RLIMIT_FSIZE)
        wal = (home / "heliproxy.db-wal").stat().st_size
        # No file may grow beyond this: as full as a disk can be, for this process alone.
        resource.prlimit(run.running.pid, resource.RLIMIT_FSIZE, (max(wal, 4096) + 4096, usual[1]))
        with Load(run.port, clients=3) as load:
            assert run.wait_for(lambda: run.health()["away_since"] is not None)
            before = len(load.answered)
            assert run.wait_for(lambda: len(load.answered) > before + 20)
        limited = [run.ask(headers=LIMITED).status for _ in range(3)]
        assert limited == [200, 200, 429]  # counted in memory, for its file cannot grow either
        resource.prlimit(run.running.pid, resource.RLIMIT_FSIZE, usual)
        assert run.wait_for(lambda: run.health(flush=True)["flushed"], 30)
        assert (load.wrong, load.failures) == ([], [])
        assert {key for key, _ in load.answered} <= {row["id"] for row in query(home, "SELECT id FROM requests")}
        assert integrity(home / "heliproxy.db") == "ok"


def without_override() -> None:
    """In the child: let modes mean to root what they mean to everybody (drop CAP_DAC_OVERRIDE before exec)."""
    if os.getuid() == 0:
        ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)


@pytest.fixture
def strict(home: Path) -> Iterator[Path]:
    """A home whose modes can be changed in the test."""
    if sys.platform != "linux":
        pytest.skip("needs prctl")
    yield home
    home.chmod(0o700)


def test_folder_that_cannot_be_written_is_waited_out(strict: Path) -> None:
    home = strict
    with Upstream(answer) as up, served(home, up.url, before=without_override) as run:
        run.ask()
        run.health(flush=True)
        delete(home / "heliproxy.db")
        home.chmod(0o500)
        with Load(run.port, clients=3) as load:
            assert run.wait_for(lambda: run.health()["away_since"] is not None)
            before = len(load.answered)
            assert run.wait_for(lambda: len(load.answered) > before + 20)
        home.chmod(0o700)
        assert run.wait_for(lambda: run.health(flush=True)["flushed"], 30)
        assert (load.wrong, load.failures) == ([], [])
        assert {key for key, _ in load.answered} <= {row["id"] for row in query(home, "SELECT id FROM requests")}


def test_file_that_became_read_only_is_waited_out(strict: Path) -> None:
    home = strict
    with Upstream(answer) as up, served(home, up.url, before=without_override) as run:
        run.ask()
        run.health(flush=True)
        # Another inode with the same rows, so that it has to be opened anew.
        copy, path = home / "copy.db", home / "heliproxy.db"
        with contextlib.closing(sqlite3.connect(path)) as conn:
            conn.execute("VACUUM INTO ?", (str(copy),))
        copy.chmod(0o400)
        delete(path)
        copy.rename(path)
        with Load(run.port, clients=3) as load:
            assert run.wait_for(lambda: run.health()["away_since"] is not None)
            before = len(load.answered)
            assert run.wait_for(lambda: len(load.answered) > before + 20)
        path.chmod(0o600)
        assert run.wait_for(lambda: run.health(flush=True)["flushed"], 30)
        assert (load.wrong, load.failures) == ([], [])
        assert {key for key, _ in load.answered} <= {row["id"] for row in query(home, "SELECT id FROM requests")}


@pytest.mark.parametrize("harm", [overwrite, truncate, delete])
def test_harm_to_the_policies_file_lets_traffic_go_on_and_limits_hold(home: Path, harm: Callable[[Path], None]) -> None:
    with Upstream(answer) as up, served(home, up.url) as run:
        assert [run.ask(headers=LIMITED | CACHED).status for _ in range(2)] == [200, 200]
        harm(home / "state.db")
        replies = [run.ask(headers=LIMITED) for _ in range(4)]
        assert {reply.status for reply in replies} <= {200, 429}
        assert replies[-1].status == 429
        assert run.ask(headers=CACHED).status == 200


def test_locked_policies_file_delays_nobody_for_long(home: Path) -> None:
    with Upstream(answer) as up, served(home, up.url) as run:
        assert run.ask(headers=LIMITED).status == 200
        other = sqlite3.connect(home / "state.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        started = time.monotonic()
        replies: list[int] = []

        def ask(headers: dict[str, str]) -> None:
            replies.append(run.ask(CHAT | {"n": len(replies)}, headers).status)

        threads = [threading.Thread(target=ask, args=(h,)) for h in (LIMITED, CACHED) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - started < 15
        other.execute("ROLLBACK")
        other.close()
        assert sorted(replies) == [200] * 21 + [429] * 19  # one token was left
        assert run.health()["policy_errors"] > 0


# -- the code ----------------------------------------------------------------------------------------------------------


class InjectedError(Exception):
    pass


def fail(*args: Any, **kw: Any) -> Any:
    raise InjectedError("on purpose")


STAGES: dict[str, tuple[Any, str]] = {
    "decode": (heliproxy.record, "Decoder"),
    "parse the request": (OpenAIChat, "parse_request"),
    "parse the response": (OpenAIChat, "parse_response"),
    "parse the stream": (OpenAIChat, "stream"),
    "take a stream in": (heliproxy.record.Sink, "feed"),
    "headers": (heliproxy.record, "lower_headers"),
    "usage and price": (heliproxy.record, "_price"),
    "price": (Prices, "cost"),
    "who": (heliproxy.record, "_who"),
    "bodies": (heliproxy.record, "_bodies"),
    "row": (heliproxy.recorder, "build_record"),
    "buffer": (Writer, "add"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_failing_stage_costs_the_client_nothing_and_is_counted(
    home: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name = STAGES[stage]
    with Upstream(answer) as up, running(home, up) as run:
        http = run.direct(base_url=run.url)
        whole = ask(http)
        with monkeypatch.context() as broken:
            broken.setattr(owner, name, fail)
            assert ask(http) == whole
            assert ask(http, stream=True) == b"".join(CHUNKS)
            run.proxy.addon.recorder.flush()
            facts = run.proxy.addon.recorder.facts()
            counted = facts["errors"] + facts["lost_rows"]
        assert ask(http) == whole
        rows = run.wait_rows(2)
        assert rows[-1]["status"] == 200
        assert rows[-1]["input_tokens"] == 1000
        if stage in ("buffer", "headers"):
            assert counted >= 2
        else:
            assert len(rows) == 4  # who called, when and how it ended is known all the same
            assert counted or any(row["parse_error"] for row in rows), rows


@pytest.mark.parametrize("name", ["_commit", "_write", "open"])
def test_failing_commit_is_tried_again(home: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Upstream(answer) as up, running(home, up) as run:
        http = run.direct(base_url=run.url)
        ask(http)
        run.proxy.flush()
        with monkeypatch.context() as broken:
            broken.setattr(Writer, name, fail)
            for _ in range(5):
                ask(http)
            assert not run.proxy.addon.recorder.flushed()
            assert run.proxy.addon.recorder.facts()["errors"] > 0
        for _ in range(100):
            if run.proxy.addon.recorder.flushed():
                break
            threading.Event().wait(0.1)
        assert len(run.rows()) == 6
        assert run.proxy.addon.recorder.facts()["lost_rows"] == 0


def ask(http: httpx.Client, **body: Any) -> bytes:
    response = http.post("/oai/v1/chat/completions", json=CHAT | body, headers={"authorization": "Bearer sk-x"})
    assert response.status_code == 200
    return response.content


HOOKS = ("requestheaders", "request", "responseheaders", "response", "error", "server_connect", "next_layer")


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("stream", [False, True])
def test_failing_hook_costs_the_client_nothing_and_is_counted(
    home: Path, hook: str, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Heliproxy, hook, fail)
    with Upstream(answer) as up, running(home, up, hosts=("localhost",)) as run:
        # Through the proxy, to a host that needs no rewriting: what reaches it does so without us.
        http = httpx.Client(proxy=run.url, trust_env=False, timeout=20)
        url = f"http://localhost:{up.port}/v1/chat/completions"
        response = http.post(url, json=CHAT | {"stream": stream})
        http.close()
        whole = b"".join(CHUNKS) if stream else json_answer(chat_answer()).body
        assert (response.status_code, response.content) == (200, whole)
        services = run.proxy.addon.services
        assert services is not None
        assert services.facts()["hook_errors"] >= (0 if hook == "error" else 1)
        run.proxy.flush()
