"""WebSocket messages that are too long, or that unpack to too much."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve

from security.test_limits import costing_at_most
from served import Served, served

MIB = 1 << 20
DONE = {"type": "response.completed", "response": {"id": "r", "model": "gpt-5-codex", "output": [], "usage": None}}


def answer(connection: ServerConnection) -> None:
    try:
        for message in connection:
            wanted = json.loads(message).get("mib", 0)
            connection.send("x" * wanted * MIB if wanted else json.dumps(DONE))
    except ConnectionClosed:
        pass


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(answer, "127.0.0.1", 0, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        port = server.socket.getsockname()[1]
        with served(tmp_path_factory.mktemp("sockets") / "home", f"http://127.0.0.1:{port}") as found:
            with opened(found, "deflate") as socket:
                socket.send(create())
                socket.recv()
            found.health(flush=True)
            yield found
        server.shutdown()
        thread.join(5)


def opened(proxy: Served, compression: str | None) -> ClientConnection:
    return connect(
        f"ws://127.0.0.1:{proxy.port}/oai/v1/responses", compression=compression, max_size=None, proxy=None,
        additional_headers={"Authorization": "Bearer sk-canary"},
    )  # fmt: skip


def create(**fields: object) -> str:
    return json.dumps({"type": "response.create", "model": "gpt-5-codex", "input": "Hello", **fields})


@pytest.mark.parametrize("side", ["client", "server"])
def test_one_that_unpacks_to_much_ends_the_socket(proxy: Served, side: str) -> None:
    with costing_at_most(proxy, 96), opened(proxy, "deflate") as socket:
        assert ending(socket, create(pad="y" * 64 * MIB) if side == "client" else create(mib=64)) == 1009


def test_one_that_is_too_long_ends_the_socket(proxy: Served) -> None:
    with costing_at_most(proxy, 320), opened(proxy, None) as socket:
        assert ending(socket, create(pad="y" * 80 * MIB)) in (1009, None)  # None: it had no time to read why


def ending(socket: ClientConnection, message: str) -> int | None:
    """The code that a socket is closed with after this message."""
    try:
        socket.send(message)
        raise AssertionError(f"it passed, and {len(socket.recv(60))} characters came back")
    except ConnectionClosed as e:
        return e.rcvd.code if e.rcvd is not None else None


def test_long_ones_pass(proxy: Served) -> None:
    for compression in ("deflate", None):
        with opened(proxy, compression) as socket:
            socket.send(create(pad="y" * 15 * MIB))
            assert json.loads(socket.recv(30)) == DONE
            socket.send(create(mib=12))
            assert len(socket.recv(30)) == 12 * MIB
    assert proxy.health(flush=True)["recorder"] == "running"
