from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from heliproxy.early import EarlyProxy, StartError, check, listen, suits
from heliproxy.serve import ProxyThread
from heliproxy.settings import Settings, Upstream

WAITS = "import signal, sys; print('up', flush=True); signal.pause()"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + WAITS


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(home=tmp_path / "home", port=0, api_port=None)


@pytest.fixture
def program():
    """Starts Python programs that say when they are up, and leaves none behind."""
    started: list[subprocess.Popen[bytes]] = []

    def start(code: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ask(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(f"GET /v1/none HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
        return client.recv(65536)


def test_connection_made_before_the_start_is_answered(settings):
    answers: list[bytes] = []
    with EarlyProxy(settings) as proxy:
        client = threading.Thread(target=lambda: answers.append(ask(proxy.port)))
        client.start()
        proxy.start(os.getpid())
        client.join()
    assert answers[0].startswith(b"HTTP/1.1 404")
    with pytest.raises(ConnectionRefusedError):
        ask(proxy.port)


def test_program_that_never_connects_waits_for_nothing(settings):
    with EarlyProxy(settings) as proxy:
        pass
    assert proxy.troubles() == ({}, 0)


def test_connection_that_waits_at_the_end_is_still_taken(settings):
    with EarlyProxy(settings) as proxy:
        client = socket.create_connection(("127.0.0.1", proxy.port))
        proxy.start(os.getpid())
    client.close()
    assert proxy._proxy is not None


@pytest.mark.parametrize(("code", "number"), [(WAITS, signal.SIGTERM), (DEAF, signal.SIGKILL)])
def test_program_whose_proxy_fails_to_start_is_ended(settings, program, monkeypatch, code, number):
    monkeypatch.setattr("heliproxy.early.GRACE_SECONDS", 0.05)
    child = program(code)
    proxy = EarlyProxy(settings)
    proxy.__enter__()
    proxy._listener.close()  # as good a reason as any
    proxy.start(child.pid)
    assert child.wait(30) == -number
    with pytest.raises(StartError):
        proxy.__exit__(None, None, None)


def test_program_whose_proxy_cannot_even_be_imported_is_ended(settings, program, monkeypatch):
    monkeypatch.setitem(sys.modules, "heliproxy.serve", None)
    child = program(WAITS)
    proxy = EarlyProxy(settings)
    proxy.__enter__()
    proxy.start(child.pid)
    assert child.wait(30) == -signal.SIGTERM
    with pytest.raises(StartError, match=r"heliproxy\.serve"):
        proxy.__exit__(None, None, None)


def test_port_taken_is_told_before_the_start(settings):
    with (
        listen("127.0.0.1", 0) as taken,
        pytest.raises(StartError, match=r"cannot listen on 127\.0\.0\.1:\d+: Address already in use; another --port"),
    ):
        listen("127.0.0.1", taken.getsockname()[1])


def test_database_of_a_newer_version_is_told_before_the_start(settings):
    check(settings)
    with sqlite3.connect(settings.home / "heliproxy.db") as conn:
        conn.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('heliproxy', 'm999', '2040')"
        )
    conn.close()
    with pytest.raises(StartError, match="newer"):
        check(settings)


def test_home_that_cannot_be_is_told_before_the_start(tmp_path, settings):
    (tmp_path / "home").write_text("")
    with pytest.raises(OSError, match="home"):
        check(settings)


def test_redirected_host_is_covered_before_the_start(tmp_path):
    from heliproxy.certs import read_authority

    upstreams = {"llm.example": Upstream("http", "127.0.0.1", 9), "ollama": Upstream("http", "127.0.0.1", 9)}
    check(Settings(home=tmp_path, port=0, api_port=None, upstreams=upstreams))
    assert "llm.example" in read_authority(tmp_path).hosts
    assert "ollama" not in read_authority(tmp_path).hosts


def test_settings_that_mitmproxy_must_judge_do_not_suit(settings):
    assert suits(settings)
    assert not suits(Settings(port=0, api_port=None, mitm_options=("anticomp=true",)))
    assert not suits(Settings(port=0, api_port=0))


def test_check_leaves_mitmproxy_out(tmp_path):
    code = (
        "import sys; from pathlib import Path;"
        "from heliproxy import early, run; from heliproxy.settings import Settings;"
        "early.check(Settings(home=Path(sys.argv[1])));"
        "print([m for m in ('mitmproxy', 'asyncio', 'genai_prices') if m in sys.modules])"
    )
    source = Path(__file__).parents[1] / "addon"
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "home")]
    assert subprocess.run(command, capture_output=True, text=True, cwd=source, check=True).stdout == "[]\n"


def test_port_of_another_heliproxy_is_said_to_be(settings):
    with (
        ProxyThread(replace(settings, port=0, api_port=0)) as other,
        pytest.raises(StartError, match=r"another heliproxy serves there; use it \(`heliproxy run --attach`"),
    ):
        listen("127.0.0.1", other.port)
