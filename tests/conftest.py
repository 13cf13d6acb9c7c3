"""Fixtures that tests of several modules share."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is heliproxy's home for this test; not yet made, as on a first run."""
    path = tmp_path / "home"
    monkeypatch.setenv("HELIPROXY_HOME", str(path))
    return path


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of corpora and references beside the clone; a test that needs it is skipped where it is absent."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip(f"no {path.name}/ beside the clone")
    return path
