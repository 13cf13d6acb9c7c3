"""Files are their owner's alone, whatever the umask was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from conftest import ROOT
from fakes import Upstream, chat_answer, json_answer
from served import served


def heliproxy(home: Path, umask: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ["PATH"], "HOME": str(home.parent), "PYTHONPATH": str(ROOT / "addon")}
    command = [sys.executable, "-m", "heliproxy", *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, umask=umask)


def open_to_others(folder: Path) -> list[str]:
    """What somebody else may read, write or enter."""
    paths = [folder, *folder.rglob("*")]
    return [f"{path} {path.stat().st_mode & 0o777:o}" for path in paths if path.stat().st_mode & 0o077]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_everything_in_the_home_is_private(home: Path, umask: int) -> None:
    set_umask: Callable[[], object] = partial(os.umask, umask)
    with (
        Upstream(lambda asked: json_answer(chat_answer("hi"))) as up,
        served(home, up.url, before=set_umask) as proxy,  # type: ignore[arg-type]
    ):
        for headers in ({}, {"Helicone-Cache-Enabled": "true"}, {"Helicone-RateLimit-Policy": "10;w=60"}):
            proxy.ask(headers=headers)
        proxy.health(flush=True)
        assert open_to_others(home) == []  # with the WAL and its index
        proxy.stop()
    assert open_to_others(home) == []
    out = home.parent / "out"
    out.mkdir()
    exported = ("export", "--include-body", "--home", str(home))
    made = [
        heliproxy(home, umask, *exported, "-o", str(out / "a.jsonl")),
        heliproxy(home, umask, *exported, "--format", "csv", "-o", str(out / "a.csv")),
        heliproxy(home, umask, "certs", "export", "--form", "p12", "-o", str(out / "a.p12"), "--home", str(home)),
        heliproxy(home, umask, "certs", "export", "--form", "jks", "-o", str(out / "a.jks"), "--home", str(home)),
        heliproxy(home, umask, "run", "--home", str(home), "--summary-file", str(out / "s.json"), "--", "true"),
    ]
    assert [shown.returncode for shown in made] == [0] * len(made), [shown.stderr for shown in made]
    assert len(list(out.iterdir())) == len(made)
    assert [path.name for path in out.iterdir() if path.stat().st_mode & 0o077] == []
    assert open_to_others(home) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a file away")
def test_the_state_of_an_export_is_not_taken_from_another_user(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = home.parent / "victim"
    victim.write_text("kept")
    with Upstream(lambda asked: json_answer(chat_answer("hi"))) as up, served(home, up.url) as proxy:
        proxy.ask()
        proxy.health(flush=True)
    monkeypatch.chdir(home.parent)
    state = Path(".helicone-export-state.json")
    wanted = {"since": "1970-01-01T00:00:00.000Z", "until": "2100-01-01T00:00:00.000Z", "properties": []}
    state.write_text(
        json.dumps({"wanted": wanted, "form": "jsonl", "output": str(victim), "bodies": False, "after": None})
    )
    os.chown(state, 12345, 12345)
    shown = heliproxy(home, 0o022, "export", "--resume", "--home", str(home))
    assert (shown.returncode, victim.read_text()) == (1, "kept")
    assert "--clean-state" in shown.stderr
    state.unlink()
    Path(f"{state}.new").symlink_to(victim)
    assert heliproxy(home, 0o022, "export", "--home", str(home)).returncode == 0
    assert victim.read_text() == "kept"
