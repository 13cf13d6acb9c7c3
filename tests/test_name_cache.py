"""Where providers' names lead is asked once in some seconds, and again when it leads nowhere."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from mitmproxy import options
from mitmproxy.connection import Client, Server
from mitmproxy.master import Master
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from heliproxy import name_cache
from heliproxy.name_cache import SECONDS, NameCache

HOST = "api.openai.com"


class System:
    """What the system would answer, and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, Any]] = []
        self.now = 1000.0
        self.fails = False
        self.cache = NameCache(self.answer, lambda: self.now)

    async def answer(self, host: Any, port: Any, **how: int) -> list[tuple[Any, ...]]:
        await asyncio.sleep(0)
        self.asked.append((host, port))
        if self.fails:
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        address = f"192.0.2.{len(self.asked)}"
        return [(socket.AF_INET, how.get("type", 0), 6, "", (address, port))]

    def ask(self, host: Any = HOST, port: Any = 443, **how: int) -> str:
        found = asyncio.run(self.cache.getaddrinfo(host, port, **how))
        return str(found[0][4][0])


@pytest.fixture
def system() -> System:
    return System()


def test_a_name_is_asked_for_once_in_some_seconds(system: System) -> None:
    assert [system.ask() for _ in range(3)] == ["192.0.2.1"] * 3
    system.now += SECONDS
    assert [system.ask() for _ in range(3)] == ["192.0.2.2"] * 3
    assert system.asked == [(HOST, 443)] * 2


def test_questions_that_differ_are_asked_each(system: System) -> None:
    for how in ({}, {"family": socket.AF_INET}, {"type": socket.SOCK_STREAM}, {"proto": 6}, {"flags": 1}):
        system.ask(**how)
        system.ask(**how)
    system.ask(port=8443)
    system.ask("api.anthropic.com")
    assert len(system.asked) == 7


@pytest.mark.parametrize("host", ["intern.example", "localhost", "api.openai.com.example", None, b"api.openai.com"])
def test_names_of_others_are_asked_for_each_time(system: System, host: Any) -> None:
    assert [system.ask(host), system.ask(host)] == ["192.0.2.1", "192.0.2.2"]


def test_names_of_services_are_asked_for_each_time(system: System) -> None:
    assert [system.ask(port="https"), system.ask(port=None)] == ["192.0.2.1", "192.0.2.2"]
    assert [system.ask(port="https"), system.ask(port=None)] == ["192.0.2.3", "192.0.2.4"]


def test_no_answer_is_not_remembered(system: System) -> None:
    system.fails = True
    for _ in range(2):
        with pytest.raises(socket.gaierror):
            system.ask()
    system.fails = False
    assert system.ask() == "192.0.2.3"


def test_an_answer_that_ran_out_is_not_given_when_there_is_no_new_one(system: System) -> None:
    system.ask()
    system.now += SECONDS
    system.fails = True
    with pytest.raises(socket.gaierror):
        system.ask()


@pytest.mark.parametrize(("host", "expected"), [(HOST, "192.0.2.2"), ("api.anthropic.com", "192.0.2.1")])
def test_a_host_that_cannot_be_reached_is_asked_for_anew(system: System, host: str, expected: str) -> None:
    system.ask()
    client = Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2))
    system.cache.server_connect_error(ServerConnectionHookData(Server(address=(host, 443)), client))
    system.cache.server_connect_error(ServerConnectionHookData(Server(address=None), client))
    assert system.ask() == expected


def test_what_is_given_can_be_changed_without_harm(system: System) -> None:
    asyncio.run(system.cache.getaddrinfo(HOST, 443)).clear()
    assert system.ask() == "192.0.2.1"


def test_no_more_are_remembered_than_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(name_cache, "CAPACITY", 2)
    system = System()
    for port in (1, 2, 3):
        system.ask(port=port)
    system.ask(port=3)
    system.ask(port=1)
    assert [port for _, port in system.asked] == [1, 2, 3, 1]


def test_a_loop_is_changed_once_and_dials_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = socket.getaddrinfo

    def resolve(host: Any, port: Any, *args: Any, **kw: Any) -> Any:
        if host != HOST:
            return real(host, port, *args, **kw)
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)

    async def run() -> None:
        master = Master(options.Options())
        name_cache.use(master.addons)
        name_cache.use(master.addons)
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        for _ in range(3):
            _, writer = await asyncio.open_connection(HOST, port)
            writer.close()
            await writer.wait_closed()
        server.close()
        master._legacy_log_events.uninstall()

    asyncio.run(run())
    assert asked == [HOST]
