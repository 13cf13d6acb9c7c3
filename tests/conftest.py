"""Fixtures that tests of several modules share."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

# Started in the background (nohup, a job without a terminal) these are ignored, and so they would be in every program
# that the tests start; a user's programs have them as they come.
for number, usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

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
