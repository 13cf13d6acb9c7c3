"""What the operator named is reached, and what `run` started reaches what it could reach without us."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes import Answer, Upstream
from running import running
from security.wire import raw


@pytest.fixture
def victim() -> Iterator[Upstream]:
    """A service on loopback that trusts whoever reaches it."""
    with Upstream(lambda asked: Answer(body=b"inside")) as up:
        yield up


def test_own_ports_are_not_reached_through_the_proxy(home: Path) -> None:
    with Upstream(lambda asked: Answer()) as up, running(home, up, run_id="abcd1234") as run:
        own = run.proxy.port
        got = raw(own, f"CONNECT localhost:{own} HTTP/1.1\r\n\r\n".encode())
        assert got.startswith(b"HTTP/1.1 403")


def test_what_run_started_reaches_other_services_as_it_could_without_us(home: Path, victim: Upstream) -> None:
    with Upstream(lambda asked: Answer()) as up, running(home, up, run_id="abcd1234") as run:
        assert run.client().get(f"http://localhost:{victim.port}/").text == "inside"


@pytest.mark.parametrize("allowed", ["localhost", "127.0.0.1:{port}", "[::1]:{port}"])
def test_named_places_are_reached(home: Path, victim: Upstream, allowed: str) -> None:
    allowed = allowed.format(port=victim.port)
    with Upstream(lambda asked: Answer()) as up, running(home, up, allowed_targets=(allowed,)) as run:
        assert run.client().get(f"http://127.0.0.1:{victim.port}/").text == "inside"
        target = f"127.0.0.1:{victim.port}".encode()
        got = raw(run.proxy.port, b"CONNECT %s HTTP/1.1\r\n\r\n" % target, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert got.endswith(b"inside")
