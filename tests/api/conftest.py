"""Fixtures of the API's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from api_rig import Rig, open_rig
from heliproxy.pricing import Prices


@pytest.fixture(scope="session")
def prices() -> Prices:
    return Prices(None)


@pytest.fixture
def rig(tmp_path: Path, prices: Prices) -> Iterator[Rig]:
    found = open_rig(tmp_path / "home", prices)
    yield found
    found.client.close()
    found.app.state.api.database.close()
    found.recorder.close()
