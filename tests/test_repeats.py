"""A request that repeats one to the byte is answered on a short way, and nobody can tell but by the time it takes."""

from __future__ import annotations

import json
import re
import socket
import ssl
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fakes import Answer, Asked, Upstream, chat_answer, chat_chunks, json_answer, sse_answer
from heliproxy import repeats
from running import Running, running

HOST = "api.openai.com"
ON = {"Helicone-Cache-Enabled": "true", "Helicone-User-Id": "u1", "Helicone-Property-Team": "red"}
VARIES = ("id", "created_at", "latency_ms")


class Counting:
    """An upstream that gives every call another answer."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, asked: Asked) -> Answer:
        self.calls += 1
        if asked.json.get("stream"):
            return sse_answer(chat_chunks([f"answer {self.calls}", "!"]))
        return json_answer(chat_answer(f"answer {self.calls}") | {"model": asked.json["model"]})


class Wire:
    """A client connection that sends exactly these bytes, in exactly these pieces."""

    def __init__(self, run: Running, host: str = HOST) -> None:
        plain = socket.create_connection(("127.0.0.1", run.proxy.port), timeout=20)
        plain.sendall(f"CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n".encode())
        assert plain.recv(4096).startswith(b"HTTP/1.1 200")
        self.socket = run.context.wrap_socket(plain, server_hostname=host)
        self._read = b""

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.socket.sendall(piece)

    def answer(self) -> tuple[bytes, bytes]:
        """The next answer: its head and its body."""
        head = self._until(b"\r\n\r\n")
        found = re.search(rb"(?i)content-length: (\d+)", head)
        return head, self._take(int(found[1])) if found else b""

    def ask(self, *pieces: bytes) -> tuple[bytes, bytes]:
        self.send(*pieces)
        return self.answer()

    def is_closed(self) -> bool:
        try:
            return self.socket.recv(1) == b""
        except (ssl.SSLError, OSError):
            return True

    def close(self) -> None:
        self.socket.close()

    def _until(self, end: bytes) -> bytes:
        while end not in self._read:
            data = self.socket.recv(65536)
            assert data, "the connection was closed"
            self._read += data
        return self._take(self._read.index(end) + len(end))

    def _take(self, size: int) -> bytes:
        while len(self._read) < size:
            data = self.socket.recv(65536)
            assert data, "the connection was closed"
            self._read += data
        taken, self._read = self._read[:size], self._read[size:]
        return taken


class Setting:
    def __init__(self, run: Running, up: Counting) -> None:
        self.run, self.up = run, up
        self.wires: list[Wire] = []

    @property
    def addon(self) -> Any:
        return self.run.proxy.addon

    @property
    def short(self) -> int:
        """Calls that went the short way."""
        return int(self.addon.repeats.answered)

    def wire(self) -> Wire:
        self.wires.append(Wire(self.run))
        return self.wires[-1]

    def ask(self, wire: Wire, times: int, *pieces: bytes) -> list[tuple[bytes, bytes]]:
        """Ask `times` times; before the second, what the first answer cost is known."""
        answers = [wire.ask(*pieces)]
        self.run.proxy.flush()
        return answers + [wire.ask(*pieces) for _ in range(times - 1)]


@contextmanager
def set_up(home: Path, **settings: Any) -> Iterator[Setting]:
    counting = Counting()
    with Upstream(counting) as up, running(home, up, (HOST, "api.groq.com"), **settings) as run:
        setting = Setting(run, counting)
        try:
            yield setting
        finally:
            for wire in setting.wires:
                wire.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    with set_up(tmp_path_factory.mktemp("repeats") / "home") as setting:
        yield setting


@pytest.fixture
def setting(shared: Setting) -> Setting:
    shared.up.calls = 0
    shared.addon.repeats.forget()
    shared.addon.repeats.answered = 0
    return shared


def request(
    text: str | None = None, headers: dict[str, str] | None = None, path: str = "/v1/chat/completions", **fields: Any
) -> tuple[bytes, bytes]:
    """Head and body of a chat request; without `text`, of one like no other."""
    messages = [{"role": "user", "content": text or f"say {uuid.uuid4()}"}]
    body = json.dumps({"model": "gpt-4o-mini", "messages": messages} | fields).encode()
    own = {"Host": HOST, "Authorization": "Bearer sk-test", "Content-Length": str(len(body))}
    sent = own | (ON if headers is None else headers)
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items())]
    return "\r\n".join([*lines, "", ""]).encode(), body


def without_id(head: bytes) -> bytes:
    return re.sub(rb"(?i)(helicone-id: )[\w-]+", rb"\1X", head)


def same(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in VARIES}


def stored(run: Running) -> list[dict[str, Any]]:
    """Rows with their properties and bodies, the oldest first."""
    rows = run.rows()
    for row in rows:
        own = f"WHERE request_id = '{row['id']}' ORDER BY 1, 2"
        row["properties"] = [(p["key"], p["value"]) for p in run.rows(f"SELECT * FROM properties {own}")]
        bodies = run.rows(f"SELECT * FROM bodies {own}")
        row["bodies"] = [{name: value for name, value in body.items() if name != "request_id"} for body in bodies]
    return rows


@pytest.mark.parametrize("apart", [False, True], ids=["in one piece", "head and body apart"])
def test_repeated_request_gets_the_same_answer_and_the_same_row(setting: Setting, apart: bool) -> None:
    head, body = request()
    pieces = (head, body) if apart else (head + body,)
    before = len(setting.run.rows())
    wire = setting.wire()
    asked = setting.ask(wire, 6, *pieces)
    assert setting.up.calls == 1
    assert setting.short == 4  # the first was a miss, the second the first hit
    assert b"Helicone-Cache: MISS" in asked[0][0]
    assert len({without_id(answer[0]) for answer in asked[1:]}) == 1
    assert {answer[1] for answer in asked} == {asked[0][1]}
    ids = [re.search(rb"(?i)helicone-id: ([\w-]+)", answer[0]) for answer in asked]
    rows = stored(setting.run)[before:]
    assert [row["id"].encode() for row in rows] == [found[1] for found in ids if found]
    first, *hits = rows
    assert {hit["cache_reference_id"] for hit in hits} == {first["id"]}
    assert all(same(hit) == same(hits[0]) for hit in hits)
    assert (hits[-1]["cache"], hits[-1]["cost_usd"], hits[-1]["input_tokens"]) == ("HIT", 0.0, 0)
    assert hits[-1]["saved_usd"] == pytest.approx(0.00021)
    assert hits[-1]["properties"] == first["properties"]
    assert hits[-1]["preview"] == first["preview"]
    assert hits[-1]["answer_preview"] == first["answer_preview"]
    assert 0 < hits[-1]["latency_ms"] < first["latency_ms"]
    assert [hit["created_at"] for hit in hits] == sorted(hit["created_at"] for hit in hits)


def test_another_connection_goes_the_short_way_too(setting: Setting) -> None:
    head, body = request()
    for _ in range(3):
        wire = setting.wire()
        setting.ask(wire, 1, head + body)
        wire.close()
    assert (setting.up.calls, setting.short) == (1, 1)


def test_streamed_answer_is_repeated_too(setting: Setting) -> None:
    _, body = request(stream=True, stream_options={"include_usage": True})
    client = setting.run.client()
    sent = ON | {"authorization": "Bearer sk-test", "content-type": "application/json"}
    url = f"https://{HOST}/v1/chat/completions"
    answers = [client.post(url, content=body, headers=sent)]
    setting.run.proxy.flush()
    answers += [client.post(url, content=body, headers=sent) for _ in range(3)]
    assert (setting.up.calls, setting.short) == (1, 2)
    assert {a.content for a in answers} == {answers[0].content}
    rows = setting.run.rows()[-4:]
    assert [row["stream"] for row in rows] == [1] * 4
    assert same(rows[3]) == same(rows[2]) == same(rows[1])


@pytest.mark.parametrize(
    ("headers", "more", "path"),
    [
        (ON, {"temperature": 0}, "/v1/chat/completions"),
        (ON | {"Helicone-User-Id": "u2"}, {}, "/v1/chat/completions"),
        (ON | {"Authorization": "Bearer sk-other"}, {}, "/v1/chat/completions"),
        (ON | {"Helicone-Cache-Enabled": "false"}, {}, "/v1/chat/completions"),
        (ON, {}, "/v1/chat/completions?x=1"),
        ({}, {}, "/v1/chat/completions"),
    ],
)
def test_any_other_request_goes_the_whole_way(
    setting: Setting, headers: dict[str, str], more: dict[str, Any], path: str
) -> None:
    text = f"say {uuid.uuid4()}"
    one, other = request(text), request(text, headers, path, **more)
    wire = setting.wire()
    setting.ask(wire, 3, *one)
    assert setting.short == 1
    wire.ask(*other)
    assert setting.short == 1
    wire.ask(*one)
    assert setting.short == 2


def test_request_to_another_host_is_another(setting: Setting) -> None:
    """The same bytes: the host they name is what the tunnel was made to, not what they say."""
    head, body = request()
    wire = setting.wire()
    setting.ask(wire, 3, head + body)
    other = Wire(setting.run, "api.groq.com")
    setting.wires.append(other)
    other.ask(head + body)
    assert setting.short == 1
    assert [row["host"] for row in setting.run.rows()[-2:]] == [HOST, "api.groq.com"]


def test_cleared_cache_is_a_miss(setting: Setting) -> None:
    head, body = request()
    wire = setting.wire()
    setting.ask(wire, 4, head, body)
    setting.addon.services.gates.cache.clear()
    answers = [wire.ask(head, body) for _ in range(4)]
    assert [b"Helicone-Cache: HIT" in found for found, _ in answers] == [False, True, True, True]
    assert (setting.up.calls, setting.short) == (2, 4)
    assert b"answer 2" in answers[3][1]


def test_expired_entry_is_a_miss(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    head, body = request(headers=ON | {"Cache-Control": "max-age=60"})
    wire = setting.wire()
    setting.ask(wire, 4, head, body)
    gates = setting.addon.services.gates
    now = gates.clock()
    monkeypatch.setattr(gates, "clock", lambda: now + 61)
    assert b"Helicone-Cache: MISS" in wire.ask(head, body)[0]
    assert setting.up.calls == 2


def test_bucket_serves_all_its_answers(setting: Setting) -> None:
    head, body = request(headers=ON | {"Helicone-Cache-Bucket-Max-Size": "2"})
    wire = setting.wire()
    answers = setting.ask(wire, 2, head + body)
    setting.run.proxy.flush()
    answers += [wire.ask(head + body) for _ in range(38)]
    assert setting.up.calls == 2
    assert setting.short > 20  # until each of the two was picked the usual way once
    served = {(found[0].partition(b"Bucket-Idx: ")[2][:1], re.findall(rb"answer \d", found[1])[0]) for found in answers}
    assert served == {(b"", b"answer 1"), (b"", b"answer 2"), (b"0", b"answer 1"), (b"1", b"answer 2")}
    rows = {row["id"]: row for row in setting.run.rows()}
    ids = [re.findall(rb"(?i)helicone-id: ([\w-]+)", found[0])[0].decode() for found in answers]
    for id_, (head, _) in list(zip(ids, answers, strict=True))[2:]:
        place = int(head.partition(b"Bucket-Idx: ")[2][:1])
        assert rows[id_]["cache_reference_id"] == ids[place]


def test_what_was_picked_is_served_whichever_way_it_takes(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the answers that are known on the short way would be served more often than the others."""
    head, body = request(headers=ON | {"Helicone-Cache-Bucket-Max-Size": "3"})
    wire = setting.wire()
    setting.ask(wire, 3, head + body)
    setting.run.proxy.flush()
    picks = iter([0, 0, 1, 2, 1, 0, 2])
    monkeypatch.setattr("heliproxy.gates.random.randrange", lambda count: next(picks) if count == 3 else 0)
    served = [wire.ask(head + body)[0].partition(b"Bucket-Idx: ")[2][:1] for _ in range(7)]
    assert served == [b"0", b"0", b"1", b"2", b"1", b"0", b"2"]
    assert (setting.up.calls, setting.short) == (3, 4)


def test_two_requests_in_one_piece_are_both_answered(setting: Setting) -> None:
    head, body = request()
    wire = setting.wire()
    setting.ask(wire, 3, head + body)
    wire.send((head + body) * 2)
    assert [b"Helicone-Cache: HIT" in wire.answer()[0] for _ in range(2)] == [True, True]
    wire.send(head + body + head, body)
    assert [b"Helicone-Cache: HIT" in wire.answer()[0] for _ in range(2)] == [True, True]
    assert b"HIT" in wire.ask(head, body)[0]
    assert len({row["id"] for row in setting.run.rows()[-8:]}) == 8


def test_body_in_many_pieces_is_put_together(setting: Setting) -> None:
    head, body = request()
    wire = setting.wire()
    setting.ask(wire, 3, head, body)
    assert b"HIT" in wire.ask(head, *(body[i : i + 7] for i in range(0, len(body), 7)))[0]
    assert b"HIT" in wire.ask(*((head + body)[i : i + 50] for i in range(0, len(head + body), 50)))[0]
    assert b"HIT" in wire.ask(head, body)[0]
    assert setting.up.calls == 1


def test_client_that_leaves_after_the_head_makes_the_same_row_as_ever(setting: Setting) -> None:
    head, body = request()
    before = len(setting.run.rows())

    def leave(rows: int) -> dict[str, Any]:
        wire = setting.wire()
        wire.send(head)
        wire.close()
        return setting.run.wait_rows(before + rows)[-1]

    first = leave(1)
    setting.ask(setting.wire(), 3, head, body)
    assert setting.short == 1
    again = leave(5)
    assert first["status"] == again["status"] == -3
    assert same(again) == same(first)


def test_expectation_is_met_each_time(setting: Setting) -> None:
    head, body = request(headers=ON | {"Expect": "100-continue"})
    wire = setting.wire()
    for _ in range(4):
        wire.send(head)
        assert wire.answer()[0].startswith(b"HTTP/1.1 100 ")
        assert wire.ask(body)[0].startswith(b"HTTP/1.1 200 ")
    assert (setting.up.calls, setting.short) == (1, 0)


def test_connection_that_is_to_be_closed_is_closed(setting: Setting) -> None:
    head, body = request(headers=ON | {"Connection": "close"})
    for _ in range(4):
        wire = setting.wire()
        assert wire.ask(head, body)[0].startswith(b"HTTP/1.1 200 ")
        assert wire.is_closed()


def test_id_of_the_clients_own_is_kept(setting: Setting) -> None:
    id_ = str(uuid.uuid4())
    head, body = request(headers=ON | {"Helicone-Request-Id": id_})
    wire = setting.wire()
    assert [id_.encode() in found[0] for found in setting.ask(wire, 4, head, body)] == [True] * 4
    assert (setting.up.calls, setting.short) == (1, 2)
    assert [row["id"] for row in setting.run.rows()].count(id_) == 1


@pytest.mark.parametrize("left_out", ["Helicone-Omit-Request", "Helicone-Omit-Response"])
def test_what_is_not_to_be_kept_is_not(setting: Setting, left_out: str) -> None:
    head, body = request(f"something private {uuid.uuid4()}", headers=ON | {left_out: "true"})
    wire = setting.wire()
    setting.ask(wire, 5, head, body)
    assert setting.short == 3
    hits = stored(setting.run)[-4:]
    assert all(same(hit) == same(hits[0]) for hit in hits)
    if left_out == "Helicone-Omit-Request":
        assert b"private" not in hits[-1]["bodies"][0]["request"]
        assert hits[-1]["preview"] is None
    else:
        assert hits[-1]["answer_preview"] is None


def test_nothing_at_all_is_kept_when_neither_side_is_to_be(setting: Setting) -> None:
    head, body = request(headers=ON | {"Helicone-Omit-Request": "true", "Helicone-Omit-Response": "true"})
    wire = setting.wire()
    setting.ask(wire, 5, head, body)
    assert [row["bodies"] for row in stored(setting.run)[-4:]] == [[]] * 4


def test_model_without_a_price_saves_nothing_that_is_known(setting: Setting) -> None:
    head, body = request(model="no-such-model")
    wire = setting.wire()
    wire.ask(head, body)
    setting.run.proxy.flush()
    setting.ask(wire, 4, head, body)
    assert setting.short == 3
    assert [row["saved_usd"] for row in setting.run.rows()[-4:]] == [None] * 4


def test_changed_option_has_everything_found_out_anew(setting: Setting) -> None:
    head, body = request()
    wire = setting.wire()
    setting.ask(wire, 4, head, body)
    setting.addon.repeats.forget()
    setting.ask(wire, 3, head, body)
    assert setting.short == 4


def test_long_request_is_not_remembered(setting: Setting) -> None:
    head, body = request("x" * 70_000)
    wire = setting.wire()
    answers = [wire.ask(head, body) for _ in range(4)]
    assert b"HIT" in answers[3][0]
    assert setting.short == 0


def test_memory_is_bounded(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "MAX_BYTES", 200_000)
    wire = setting.wire()
    for n in range(12):
        setting.ask(wire, 2, *request(f"{n} {uuid.uuid4()} " + "y" * 40_000))
    known = setting.addon.repeats
    assert 1 <= len(known._requests) <= 4
    assert len(known._starts) <= 4


def test_failure_on_the_short_way_leads_to_the_whole_way(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    head, body = request()
    wire = setting.wire()
    setting.ask(wire, 3, head, body)

    def fail(_: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(setting.addon.repeats, "_finish", fail)
    before = len(setting.run.rows())
    assert b"Helicone-Cache: HIT" in wire.ask(head, body)[0]
    assert len(setting.run.wait_rows(before + 1)) == before + 1
    assert setting.short == 1


class Watcher:
    def __init__(self) -> None:
        self.seen: list[str] = []

    def response(self, flow: Any) -> None:
        self.seen.append(flow.id)


def test_nothing_is_looked_at_before_a_call_asks_for_the_cache(tmp_path: Path) -> None:
    with set_up(tmp_path / "home") as setting:
        wire = setting.wire()
        wire.ask(*request(headers={"Helicone-Retry-Enabled": "true"}))
        assert not setting.addon.repeats.wanted
        wire.ask(*request())
        assert setting.addon.repeats.wanted


def test_other_addons_see_every_flow(tmp_path: Path) -> None:
    with set_up(tmp_path / "home") as setting:
        head, body = request()
        wire = setting.wire()
        setting.ask(wire, 4, head, body)
        assert setting.short == 2
        watcher = Watcher()
        setting.run.proxy.proxy.master.addons.add(watcher)
        assert setting.addon.repeats is None
        for _ in range(3):
            wire.ask(head, body)
        assert len(watcher.seen) == 3


def test_client_that_must_show_a_token_shows_it_each_time(tmp_path: Path) -> None:
    with set_up(tmp_path / "home", token="t" * 20, host="0.0.0.0") as setting:
        client = setting.run.direct(headers=ON | {"authorization": "Bearer sk-test"})
        _, body = request()
        url = f"{setting.run.url}/oai/v1/chat/completions"
        known = {"Helicone-Auth": f"Bearer {'t' * 20}"}
        assert [client.post(url, content=body, headers=known).status_code for _ in range(4)] == [200] * 4
        assert setting.short == 0
        assert client.post(url, content=body).status_code == 401
