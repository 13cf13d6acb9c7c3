"""Both versions of HTTP on either side."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from attempts_wire import make_certificate
from stream_rig import Proxies, Sides


@pytest.fixture(scope="package")
def proxies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxies]:
    found = Proxies(tmp_path_factory.mktemp("proxies"), make_certificate(tmp_path_factory.mktemp("certificate")))
    yield found
    found.close()


@pytest.fixture(autouse=True)
def _proxy_core_stays_well(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    for trouble in ("mitmproxy has crashed", "Addon error", "connection handler has crashed", "look failed"):
        assert trouble not in caplog.text


SIDES = [("h1", "h1"), ("h1", "plain"), ("h2", "h1"), ("h2", "h2"), ("gateway", "h1")]
"""A tunnelled HTTP/1 client never meets an HTTP/2 upstream: mitmproxy offers upstreams what the client has chosen."""


@pytest.fixture(params=SIDES, ids="-".join)
def sides(request: pytest.FixtureRequest) -> Sides:
    """What the client and the upstream speak."""
    found: Sides = request.param
    return found
