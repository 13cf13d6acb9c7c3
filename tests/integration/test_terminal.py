"""A full-screen program under `heliproxy run`, in a real terminal multiplexer."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """if True:
    import curses, subprocess, sys
    def draw(screen):
        curses.curs_set(0)
        rows, columns = screen.getmaxyx()
        screen.addstr(2, 4, f"full screen {columns}x{rows}")
        screen.refresh()
        subprocess.run(["tmux", "-S", sys.argv[1], "wait-for", "-S", "drawn"])
        return screen.getkey()
    sys.exit(9 if curses.wrapper(draw) == "q" else 1)
"""


@pytest.fixture
def tmux(tmp_path) -> Iterator[Path]:
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    socket = tmp_path / "tmux"
    yield socket
    subprocess.run(["tmux", "-S", str(socket), "kill-server"], capture_output=True)


def ask(socket: Path, *command: str) -> str:
    shown = subprocess.run(["tmux", "-S", str(socket), *command], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def test_full_screen_program_draws_takes_keys_and_gives_its_status(tmux, home, tmp_path):
    environment = {"HELIPROXY_HOME": home, "PYTHONPATH": ROOT / "addon", "PYTHONWARNINGS": "ignore"}
    variables = " ".join(f"{name}={shlex.quote(str(value))}" for name, value in environment.items())
    command = shlex.join([sys.executable, "-m", "heliproxy", "run", "--", sys.executable, "-c", PROGRAM, str(tmux)])
    line = f"{variables} {command}; echo $? > {shlex.quote(str(tmp_path / 'status'))}; tmux -S {tmux} wait-for -S ended"
    start = ["tmux", "-f", os.devnull, "-S", str(tmux), "new-session", "-d", "-x", "90", "-y", "20"]
    # A second window keeps the server up when the program's own has closed.
    env = {"PATH": os.environ["PATH"], "TERM": "screen", "HOME": str(tmp_path)}
    subprocess.run([*start, "sh"], env=env, check=True)
    ask(tmux, "new-window", "-n", "program", f"sh -c {shlex.quote(line)}")
    ask(tmux, "wait-for", "drawn")
    assert "    full screen 90x" in ask(tmux, "capture-pane", "-p", "-t", "program")
    ask(tmux, "send-keys", "-t", "program", "q")
    ask(tmux, "wait-for", "ended")
    assert (tmp_path / "status").read_text() == "9\n"
