"""The process that takes logs when they come in numbers: nothing lost, nothing twice, and nobody notices."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("logs are read in the proxy's own process", allow_module_level=True)

from api_rig import Port, Rig, log_body
from heliproxy import log_handover, log_process, messages
from heliproxy.api import logs
from heliproxy.api.guard import Guard
from heliproxy.exchange import Exchange
from heliproxy.idle_thread import IdleThread
from heliproxy.log_handover import LogHandover
from heliproxy.log_process import LogProcess, Rows
from heliproxy.log_ring import Ring, new_file
from heliproxy.messages import BACK, BORED, CONNECTION, END, READY, Message
from heliproxy.pricing import Prices
from heliproxy.record import Pricing
from heliproxy.store import Store, open_reader
from heliproxy.tokens import estimate

HEAD = b"POST %s HTTP/1.1\r\nHost: 127.0.0.1:8585\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
COUNT = HEAD % (b"/v1/request/count/query", 2) + b"{}"


def post(body: bytes | None = None, path: bytes = b"/oai/v1/log") -> bytes:
    body = json.dumps(log_body()).encode() if body is None else body
    return HEAD % (path, len(body)) + body


def wait_for(met: Callable[[], Any], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not met():
        if time.monotonic() > deadline:
            return False
        threading.Event().wait(0.02)
    return True


class Client:
    """One connection that stays open."""

    def __init__(self, port: Port) -> None:
        assert port.server.address is not None
        self.sock = socket.create_connection(port.server.address, 30)
        self._file = self.sock.makefile("rb")

    def ask(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        self.sock.sendall(request)
        return self.answer()

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        line = self._file.readline()
        if not line:
            raise ConnectionError("closed")
        lines = iter(lambda: self._file.readline().decode().strip(), "")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return int(line.split()[1]), headers, self._file.read(int(headers["content-length"]))

    def close(self) -> None:
        self._file.close()
        self.sock.close()


class Crowd:
    """Clients that post logs until told to stop; ids of what was accepted."""

    def __init__(self, port: Port, clients: int) -> None:
        self._port = port
        self._stop = threading.Event()
        self.accepted: list[str] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            client = Client(self._port)
            try:
                while not self._stop.is_set():
                    status, headers, _ = client.ask(post())
                    if status == 200:
                        self.accepted.append(headers["helicone-id"])
                    self._stop.wait(0.005)
            except OSError:
                pass  # the process was killed; what it had not answered is the client's to send again
            finally:
                client.close()


def stored(home: Path) -> list[str]:
    with closing(open_reader(home / "heliproxy.db")) as conn:
        return [key for (key,) in conn.execute("SELECT id FROM requests WHERE source = 'log'")]


@pytest.fixture
def beside(rig: Rig) -> Iterator[LogHandover]:
    found = LogHandover(rig.home, lambda: rig.addon.settings.token, rig.recorder)
    rig.recorder.beside = found
    yield found
    found.close()


@pytest.fixture
def port(rig: Rig, beside: LogHandover) -> Iterator[Port]:
    found = Port(rig)
    beside.take_back = found.server.take_back
    yield found
    found.close()


def test_a_flood_starts_it_and_it_takes_over(rig: Rig, beside: LogHandover, port: Port) -> None:
    heard: list[str] = []
    rig.recorder.listeners.append(heard.extend)
    with closing(Client(port)) as client:
        answers = [client.ask(post()) for _ in range(log_handover.START_AT)]
        assert beside.process is None
        while not beside.ready:  # one that comes while it starts is answered all the same
            answers.append(client.ask(post()))
        answers += [client.ask(post()) for _ in range(20)]
        assert os.getpriority(os.PRIO_PROCESS, beside.process or 0) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)
        threads = [int(thread.name) for thread in Path(f"/proc/{beside.process}/task").iterdir()]
        assert sorted(map(os.sched_getscheduler, threads)) == [os.SCHED_OTHER, os.SCHED_IDLE]
        assert {status for status, _, _ in answers} == {200}
        assert {tuple(headers) for _, headers, _ in answers} == {tuple(answers[0][1])}
        ids = {headers["helicone-id"] for _, headers, _ in answers}
        # The connection goes back when it brings something else, and sees everything.
        assert json.loads(client.ask(COUNT)[2])["data"] == len(ids)
        assert client.ask(post())[0] == 200
        assert json.loads(client.ask(COUNT)[2])["data"] == len(ids) + 1
    assert wait_for(lambda: ids <= set(heard))
    facts = rig.recorder.facts()
    assert (facts["rows"], facts["written"], facts["waiting"]) == (len(ids) + 1, len(ids) + 1, 0)
    assert (facts["lost_rows"], facts["errors"], facts["recorder"]) == (0, 0, "running")
    rows = rig.post("/v1/request/query", {"filter": "all", "limit": 1000})
    assert {(row["response_status"], row["model"], row["total_tokens"]) for row in rows} == {
        (200, "gpt-4o-mini-2024-07-18", 120)
    }


def test_nothing_is_lost_or_twice_when_it_is_killed(rig: Rig, beside: LogHandover, port: Port) -> None:
    killed: set[int] = set()
    with Crowd(port, 4) as crowd:
        for _ in range(2):
            beside._not_before = 0.0  # not after the pause that follows a death
            assert wait_for(lambda: beside.ready)
            before = len(crowd.accepted)
            assert wait_for(lambda: len(crowd.accepted) > before + 200)  # noqa: B023
            victim = beside.process
            assert victim is not None
            os.kill(victim, signal.SIGKILL)
            killed.add(victim)
            assert wait_for(lambda: beside.process != victim)  # noqa: B023
        assert wait_for(lambda: len(crowd.accepted) > before + 300)
    rig.recorder.flush()
    found = stored(rig.home)
    assert set(crowd.accepted) <= set(found)
    assert len(found) == len(set(found))
    # At most one log of each client was taken and not answered when its process was killed.
    assert len(found) <= len(crowd.accepted) + 4 * len(killed)
    assert rig.recorder.counters.lost_rows == 0


def test_who_waits_for_a_flush_gets_it_when_it_is_killed(rig: Rig, beside: LogHandover, port: Port) -> None:
    beside.start()
    assert wait_for(lambda: beside.ready)
    with closing(Client(port)) as client:
        ids = {client.ask(post())[1]["helicone-id"] for _ in range(5)}
    victim = beside.process
    assert victim is not None
    os.kill(victim, signal.SIGSTOP)
    try:
        assert not rig.recorder.flushed(0.2)
        done: list[bool] = []
        waiter = threading.Thread(target=lambda: done.append(rig.recorder.flushed()))
        waiter.start()
        assert not done
    finally:
        os.kill(victim, signal.SIGKILL)
    waiter.join(30)
    assert (done, set(stored(rig.home))) == ([True], ids)


def test_closing_writes_what_it_has(rig: Rig, beside: LogHandover, port: Port) -> None:
    beside.start()
    assert wait_for(lambda: beside.ready)
    with closing(Client(port)) as client:
        ids = {client.ask(post())[1]["helicone-id"] for _ in range(50)}
        beside.close()
        assert set(stored(rig.home)) == ids
        assert client.ask(post())[0] == 200  # its connections are ours again
    assert beside.process is None
    assert beside.start() is None


def test_a_signal_ends_it_in_order(rig: Rig, beside: LogHandover, port: Port) -> None:
    beside.start()
    assert wait_for(lambda: beside.ready)
    with closing(Client(port)) as client:
        ids = {client.ask(post())[1]["helicone-id"] for _ in range(50)}
        os.kill(beside.process or 0, signal.SIGTERM)
        assert wait_for(lambda: beside.process is None)
        assert set(stored(rig.home)) == ids
        assert client.ask(post())[0] == 200
    assert beside._not_before == 0.0  # it did not fail


def test_it_is_ended_when_the_token_changes(rig: Rig, beside: LogHandover, port: Port) -> None:
    beside.start()
    assert wait_for(lambda: beside.ready)
    object.__setattr__(rig.addon.settings, "token", "t0ken")
    with closing(Client(port)) as client:
        assert client.ask(post())[0] == 401
        with_token = post().replace(b"\r\n\r\n", b"\r\nAuthorization: Bearer t0ken\r\n\r\n", 1)
        assert client.ask(with_token)[0] == 200
    assert wait_for(lambda: beside.process is None)


def test_a_large_log_is_decoded_there(rig: Rig, port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded_here(raw: bytes) -> Any:
        raise AssertionError(f"{len(raw)} bytes were decoded in the proxy's process")

    monkeypatch.setattr(logs, "parse_json", decoded_here)
    body = log_body()
    body["providerRequest"]["json"]["messages"][0]["content"] = "word " * 400_000
    raw = json.dumps(body).encode()
    with closing(Client(port)) as client:
        status, headers, text = client.ask(post(raw))
        assert (status, text) == (200, b"ok")
        status, _, text = client.ask(post(raw[:-1]))
        assert (status, b"is not valid JSON" in text) == (400, True)
    rig.recorder.flush()
    assert stored(rig.home) == [headers["helicone-id"]]


def test_a_large_log_is_answered_when_there_is_no_process(
    rig: Rig, beside: LogHandover, port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_handover, "is_possible", lambda: False)
    body = log_body()
    body["providerRequest"]["json"]["messages"][0]["content"] = "word " * 400_000
    with closing(Client(port)) as client:
        assert client.ask(post(json.dumps(body).encode()))[0] == 200
    rig.recorder.flush()
    assert (len(stored(rig.home)), beside.process) == (1, None)


def test_an_export_of_spans_is_read_there(rig: Rig, beside: LogHandover, port: Port) -> None:
    beside.start()
    assert wait_for(lambda: beside.ready)
    span = {
        "traceId": "0af7651916cd43dd8448eb211c80319c",
        "spanId": "b7ad6b7169203331",
        "name": "chat",
        "startTimeUnixNano": "1780000000000000000",
        "endTimeUnixNano": "1780000001000000000",
        "attributes": [
            {"key": "gen_ai.request.model", "value": {"stringValue": "gpt-4o-mini"}},
            {"key": "gen_ai.operation.name", "value": {"stringValue": "chat"}},
            {"key": "gen_ai.usage.input_tokens", "value": {"intValue": "7"}},
        ],
    }
    export = {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}
    with closing(Client(port)) as client:
        assert client.ask(post(json.dumps(export).encode(), b"/v1/traces"))[::2] == (200, b"{}")
        assert client.ask(post(b"[", b"/v1/traces"))[0] == 400
    (row,) = rig.post("/v1/request/query", {"filter": "all"})
    assert row["prompt_tokens"] == 7
    assert beside.facts()["rows"] == 1


def test_one_that_cannot_come_up_is_not_started_again_and_again(
    rig: Rig, beside: LogHandover, port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    beside._clock = lambda: now
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with closing(Client(port)) as client:
        for at, starts in ((0.0, True), (19.0, False), (21.0, True), (60.0, False), (62.0, True)):
            now = at
            assert (beside.start() is not None) == starts
            assert wait_for(lambda: beside._child is None)
            assert client.ask(post())[0] == 200
    rig.recorder.flush()
    assert len(stored(rig.home)) == 5


# -- the process itself, run here --------------------------------------------------------------------------------------


class Watched(Rows):
    """Notes at which policy logs are read, and committed."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.read_at: list[int] = []
        self.committed_at: list[int] = []
        self.listeners.append(lambda _: self.committed_at.append(os.sched_getscheduler(0)))

    def read(self, read: Callable[[], Iterable[Exchange]]) -> None:
        self.read_at.append(os.sched_getscheduler(0))
        super().read(read)


class Inside:
    """The process's loop on a thread, with a clock that is ours."""

    def __init__(self, home: Path, prices: Prices, size: int = 1 << 20, idle: IdleThread | None = None) -> None:
        self.control, self.theirs = messages.pair()
        self.file = new_file(size)
        self.now = 0.0
        self.rows = Watched(Store(home / "heliproxy.db").writer, lambda: Pricing(prices, estimate, b"s" * 32))
        self.rows.get_ready()

        async def app(*_: Any) -> None: ...

        guard = Guard(app, lambda: None)
        self.process = LogProcess(self.theirs, Ring(self.file), self.rows, guard, 60.0, lambda: self.now, idle)
        self.thread = threading.Thread(target=self.process.run)
        self.thread.start()
        assert self.hear() == Message(READY)

    def hear(self) -> Message:
        found = messages.receive(self.control)
        assert found is not None
        return found

    def give(self, data: bytes) -> socket.socket:
        """A client's end of a connection that has brought some bytes already."""
        ours, its = socket.socketpair()
        ours.settimeout(30)
        messages.send(self.control, Message(CONNECTION, data, (its.fileno(),)))
        its.close()
        return ours

    def flush(self) -> None:
        """Return when all logs that were answered are committed."""
        messages.send(self.control, messages.packed(messages.FLUSH, 1, b""))
        while self.hear().kind != messages.FLUSH:
            pass

    def close(self) -> None:
        if self.thread.is_alive():
            messages.send(self.control, Message(END))
            self.thread.join()
        self.control.close()
        self.theirs.close()
        os.close(self.file)


@pytest.fixture
def inside(tmp_path: Path, prices: Prices) -> Iterator[Inside]:
    found = Inside(tmp_path, prices)
    yield found
    found.close()


def test_it_asks_to_end_after_a_minute_without_logs(inside: Inside) -> None:
    with inside.give(post()) as client:
        assert client.recv(15) == b"HTTP/1.1 200 OK"
        messages.send(inside.control, messages.packed(messages.FLUSH, 1, b""))
        assert [inside.hear().kind for _ in range(2)] == [messages.DONE, messages.FLUSH]
        inside.now = 59.0
        inside.control.settimeout(1.5)
        with pytest.raises(TimeoutError):
            inside.hear()
        inside.control.settimeout(30)
        inside.now = 61.0
        assert inside.hear() == Message(BORED)
    messages.send(inside.control, Message(END))
    inside.thread.join(30)
    assert not inside.thread.is_alive()


def test_a_log_may_come_in_pieces_and_several_at_once(inside: Inside) -> None:
    data = post() * 3
    with inside.give(data[:40]) as client:
        for start in range(40, len(data), 700):
            client.sendall(data[start : start + 700])
        got = b""
        while got.count(b"\r\n\r\nok") < 3:
            got += client.recv(65536)
    assert got.count(b"HTTP/1.1 200 OK\r\n") == 3


@pytest.mark.parametrize(
    "other",
    [
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
        post().replace(b"127.0.0.1:8585", b"evil.example"),
        b"GET /heal",
        post(b"x" * 11_000_000)[:200_000],
    ],
    ids=["another path", "refused by the guard", "half a head", "too large"],
)
def test_what_is_no_plain_log_goes_back_with_its_connection(inside: Inside, other: bytes) -> None:
    with inside.give(post() + other) as client:
        assert client.recv(15) == b"HTTP/1.1 200 OK"
        message = inside.hear()
        assert (message.kind, message.body) == (BACK, other)
        with socket.socket(fileno=message.files[0]) as back:
            back.sendall(b"!")
        while b"!" not in client.recv(65536):
            pass


def test_without_room_a_log_is_refused_and_not_kept(tmp_path: Path, prices: Prices) -> None:
    inside = Inside(tmp_path, prices, size=len(post()) * 3 // 2)
    try:
        with inside.give(post() * 2) as client:
            got = b""
            while b"again" not in got:
                got += client.recv(65536)
        assert got.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"HTTP/1.1 503 Service Unavailable\r\n" in got
        assert b"retry-after: 1\r\n" in got
    finally:
        inside.close()
    assert len(stored(tmp_path)) == 1


def test_an_idle_connection_is_closed_as_everywhere(inside: Inside) -> None:
    with inside.give(post()) as client:
        assert client.recv(15) == b"HTTP/1.1 200 OK"
        inside.now = 6.0
        while client.recv(65536):
            pass


# -- its two threads ---------------------------------------------------------------------------------------------------


class Moody(IdleThread):
    """Starves when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.hungry = False
        self.starves = lambda: self.hungry
        self.runs = 0

    def run[T](self, work: Callable[[], T]) -> T:
        self.runs += 1
        return super().run(work)


@pytest.fixture
def idle() -> Moody:
    return Moody()


@pytest.fixture
def shared(tmp_path: Path, prices: Prices, idle: Moody) -> Iterator[Inside]:
    """With two threads."""
    found = Inside(tmp_path, prices, idle=idle)
    yield found
    found.close()


def one_log(inside: Inside, client: socket.socket, data: bytes = b"") -> str:
    """Post a log, and return the id it was given once it is committed."""
    client.sendall(data or post())
    answer = b""
    while not answer.endswith(b"\r\n\r\nok"):
        answer += client.recv(65536)
    inside.flush()
    return answer.lower().split(b"helicone-id: ")[1].split(b"\r\n")[0].decode()


def test_the_idle_thread_does_it_all(shared: Inside, tmp_path: Path) -> None:
    with shared.give(b"") as client:
        ids = [one_log(shared, client) for _ in range(3)]
    assert sorted(stored(tmp_path)) == sorted(ids)
    assert shared.rows.read_at == shared.rows.committed_at == [os.SCHED_IDLE] * 3


def test_a_thread_that_starves_begins_no_commit(shared: Inside, idle: Moody) -> None:
    idle.hungry = True
    with shared.give(b"") as client:
        one_log(shared, client)
    assert shared.rows.committed_at == [os.SCHED_OTHER]


def test_the_main_thread_takes_logs_for_a_while_when_the_idle_one_starves(
    shared: Inside, idle: Moody, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_process, "MOST_MAIN_SECONDS", 3.0)
    ids = []
    with shared.give(b"") as client:
        for now, hungry in ((0.0, False), (1.0, True), (2.0, True), (3.5, False), (5.5, False), (6.0, False)):
            shared.now = now
            idle.hungry = hungry
            ids.append(one_log(shared, client))
    # Each sees at its next step that it is over: who has the log that is posted just then is not certain.
    idly, openly = os.SCHED_IDLE, os.SCHED_OTHER
    assert [shared.rows.read_at[number] for number in (0, 2, 3, 5)] == [idly, openly, openly, idly]
    assert sorted(stored(tmp_path)) == sorted(ids)


def test_one_that_starves_again_soon_is_given_longer_pauses(shared: Inside, idle: Moody) -> None:
    idle.hungry = True
    began = []
    with shared.give(b"") as client:
        for now in range(0, 230, 2):
            shared.now = now
            runs = idle.runs
            one_log(shared, client)
            if idle.runs > runs:
                began.append(now)
    assert [round(at / 30) for at in began if at > 4] == [1, 3, 7]


def test_nothing_is_lost_or_twice_when_it_starves_again_and_again(
    shared: Inside, idle: Moody, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_process, "MOST_MAIN_SECONDS", 0.5)
    with shared.give(b"") as one, shared.give(b"") as other:
        ids = []
        for number in range(20):
            shared.now += 1.0
            idle.hungry = number % 2 == 1
            ids += [one_log(shared, one)]
            data = post()
            piece = len(data) * number // 20
            other.sendall(data[:piece])  # what one thread has begun, the other goes on with
            ids += [one_log(shared, one), one_log(shared, other, data[piece:])]
    assert sorted(stored(tmp_path)) == sorted(ids)
    assert set(shared.rows.read_at) == {os.SCHED_IDLE, os.SCHED_OTHER}
    assert (shared.rows.counters.rows, shared.rows.counters.lost_rows) == (60, 0)


@pytest.mark.parametrize("hungry", [False, True], ids=["the idle thread", "the main thread"])
@pytest.mark.parametrize("how", ["told to", "the proxy is gone", "a signal"])
def test_it_ends_in_order_whichever_thread_takes_logs(
    how: str, hungry: bool, shared: Inside, idle: Moody, tmp_path: Path
) -> None:
    idle.hungry = hungry
    with shared.give(b"") as client:
        ids = [one_log(shared, client)]
        client.sendall(post() + b"GET")
        assert client.recv(15) == b"HTTP/1.1 200 OK"
        if how == "a signal":
            shared.process.stop()
            shared.now = 2.0
            while shared.hear().kind != BORED:
                pass
        if how == "the proxy is gone":
            shared.control.shutdown(socket.SHUT_RDWR)
        else:
            messages.send(shared.control, Message(END))
        shared.thread.join(30)
        assert not shared.thread.is_alive()
    found = stored(tmp_path)
    assert (len(found), found.count(ids[0])) == (2, 1)
    assert shared.rows.read_at[1] == (os.SCHED_OTHER if hungry else os.SCHED_IDLE)
    ring = Ring(shared.file)
    assert ring.empty
    ring.close()
