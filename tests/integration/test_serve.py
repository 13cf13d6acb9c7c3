"""`heliproxy serve` and `mitmdump -s addon/main.py` as processes: ready line, ports taken, draining, options."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes import Answer, Asked, Upstream, chat_answer, chat_chunks, json_answer, sse_answer

ROOT = Path(__file__).resolve().parents[2]
CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]}
URL = "https://api.openai.com/v1/chat/completions"
USAGE = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}


def answer(asked: Asked) -> Answer:
    return json_answer(chat_answer(**USAGE))


def environment(home: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(home.parent), "PYTHONPATH": str(ROOT / "addon")}


@contextmanager
def process(command: Sequence[str], home: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        try:
            yield running
        finally:
            if running.poll() is None:
                running.kill()


@contextmanager
def serve(home: Path, up: Upstream, *options: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """The process, and the addresses of its proxy and its API."""
    command = [
        *(sys.executable, "-m", "heliproxy", "serve", "--home", str(home), "--port", "0", "--api-port", "0"),
        *("--upstream", f"api.openai.com={up.url}", *options),
    ]
    with process(command, home) as running:
        assert running.stdout is not None
        line = running.stdout.readline()
        found = re.fullmatch(r"heliproxy ready: proxy (http://127\.0\.0\.1:\d+) dashboard (http://\S+)\n", line)
        assert found, (line, running.stderr and running.poll() is not None and running.stderr.read())
        yield running, found[1], found[2]


def client_of(proxy: str, ca: Path) -> httpx.Client:
    context = ssl.create_default_context(cafile=str(ca))
    return httpx.Client(proxy=proxy, verify=context, timeout=20, trust_env=False)


def rows(home: Path) -> list[dict[str, Any]]:
    conn = sqlite3.connect(home / "heliproxy.db")
    conn.row_factory = sqlite3.Row
    try:
        return [dict(row) for row in conn.execute("SELECT * FROM requests ORDER BY created_at")]
    finally:
        conn.close()


def stop(running: subprocess.Popen[str], number: int = signal.SIGTERM) -> str:
    """Send the signal; returns what was said on stderr."""
    running.send_signal(number)
    _, errors = running.communicate(timeout=20)
    return errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_says_when_it_is_ready_and_ends_cleanly(home: Path, number: int) -> None:
    with Upstream(answer) as up, serve(home, up) as (running, proxy, api):
        with client_of(proxy, home / "ca" / "mitmproxy-ca-cert.pem") as client:
            assert client.post(URL, json=CHAT).status_code == 200
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{api}/health", timeout=10) as health:
            assert json.load(health)["status"] == "ok"
        assert stop(running, number) == ""
        assert running.returncode == 0
    assert [row["input_tokens"] for row in rows(home)] == [10]


def test_stopping_waits_for_calls_under_way_and_writes_their_rows(home: Path) -> None:
    gate, started = threading.Event(), threading.Event()

    def slow(asked: Asked) -> Answer:
        return sse_answer([*chat_chunks(["one"], usage=USAGE)[:2], gate, *chat_chunks(["one"], usage=USAGE)[2:]])

    got: list[bytes] = []

    def call(proxy: str) -> None:
        with (
            client_of(proxy, home / "ca" / "mitmproxy-ca-cert.pem") as client,
            client.stream("POST", URL, json=CHAT | {"stream": True}) as response,
        ):
            for chunk in response.iter_raw():
                got.append(chunk)
                started.set()

    with Upstream(slow) as up, serve(home, up) as (running, proxy, _):
        caller = threading.Thread(target=call, args=(proxy,))
        caller.start()
        assert started.wait(10)
        running.send_signal(signal.SIGTERM)
        gate.set()
        caller.join(10)
        running.communicate(timeout=20)
        assert running.returncode == 0
    assert b"[DONE]" in b"".join(got)
    (row,) = rows(home)
    assert (row["status"], row["output_tokens"]) == (200, 2)


def fails(home: Path, *options: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "heliproxy", "serve", "--home", str(home), *options]
    done = subprocess.run(command, env=environment(home), capture_output=True, text=True, timeout=30)
    return done.returncode, done.stdout, done.stderr


def test_port_that_is_taken_is_said_once_and_fails(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for option, other in (("--port", "--api-port"), ("--api-port", "--port")):
            said = f"Error: cannot listen on 127.0.0.1:{port}: Address already in use; another {option} may be free\n"
            assert fails(home, option, port, other, "0") == (1, "", said)
        mode = f"mode=reverse:https://api.openai.com@127.0.0.1:{port}"
        status, _, said = fails(home, "--port", "0", "--api-port", "0", "--set", mode)
        assert (status, said.count("\n"), f"127.0.0.1:{port}: Address already in use" in said) == (1, 1, True)


def test_port_that_another_heliproxy_has_is_said_to_be_its(home: Path) -> None:
    with Upstream(answer) as up, serve(home, up) as (_, proxy, api):
        for option, other, url in (("--port", "--api-port", proxy), ("--api-port", "--port", api)):
            status, _, said = fails(home, option, url.rpartition(":")[2], other, "0")
            assert (status, said.count("\n"), "another heliproxy serves there" in said) == (1, 1, True)


def test_one_number_for_both_ports_is_a_usage_error(home: Path) -> None:
    status, _, said = fails(home, "--port", "8585")
    assert (status, "--port and --api-port are both 8585" in said) == (2, True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--upstream", "api.openai.com"], "HOST=URL"),
        (["--upstream", "api.openai.com=ftp://x"], "http or https"),
        (["--set", "no_such_option=1"], "no_such_option"),
        (["--set", "termlog_verbosity"], "termlog_verbosity"),
        (["--upstream-ca", "missing.pem"], "missing.pem"),
        (["--default-header", "no colon"], "Name: value"),
    ],
)
def test_bad_option_is_named_with_what_was_expected(home: Path, options: list[str], words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "heliproxy", "serve", "--home", str(home), "--port", "0", "--api-port", "0", *options],
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 2, done
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_any_mitmproxy_option_can_be_set(home: Path) -> None:
    header = "modify_headers=/~q/X-Added/yes"
    with Upstream(answer) as up, serve(home, up, "--set", header, "--set", "http2=false") as (running, proxy, _):
        with client_of(proxy, home / "ca" / "mitmproxy-ca-cert.pem") as client:
            assert client.post(URL, json=CHAT).status_code == 200
        stop(running)
        assert up.asked[0].header("x-added") == "yes"
    assert len(rows(home)) == 1


def test_default_headers_mark_calls_that_carry_none(home: Path) -> None:
    options = ("--default-header", "Helicone-User-Id: robot", "--default-header", "Helicone-Property-App: nightly")
    with Upstream(answer) as up, serve(home, up, *options) as (running, proxy, _):
        with client_of(proxy, home / "ca" / "mitmproxy-ca-cert.pem") as client:
            client.post(URL, json=CHAT)
            client.post(URL, json=CHAT, headers={"Helicone-User-Id": "ada"})
        stop(running)
    assert [row["user_id"] for row in rows(home)] == ["robot", "ada"]


@pytest.mark.parametrize("tool", ["mitmdump", "mitmweb"])
def test_stock_mitmproxy_loads_the_addon_from_a_clone(home: Path, tool: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Upstream(answer) as up:
        command = [
            *(str(Path(sys.executable).parent / tool), "-q", "-s", str(ROOT / "addon" / "main.py")),
            *("--listen-host", "127.0.0.1", "-p", str(port), "--set", f"confdir={home.parent}"),
            *("--set", f"heliproxy_home={home}", "--set", "heliproxy_api_port=-1"),
            *("--set", f"heliproxy_upstream=api.openai.com={up.url}"),
            *(("--no-web-open-browser", "--web-port", "0") if tool == "mitmweb" else ()),
        ]
        with process(command, home) as running:
            ca = home.parent / "mitmproxy-ca-cert.pem"
            wait_for(lambda: ca.exists() and (home / "heliproxy.db").exists() and accepts(port), running)
            with client_of(f"http://127.0.0.1:{port}", ca) as client:
                assert client.post(URL, json=CHAT).headers["helicone-status"] == "success"
            errors = stop(running)
            assert running.returncode == 0, errors
    (row,) = rows(home)
    assert (row["input_tokens"], row["usage_source"]) == (10, "provider")


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_for(condition: Any, running: subprocess.Popen[str]) -> None:
    for _ in range(600):
        if condition():
            return
        assert running.poll() is None, running.communicate()
        threading.Event().wait(0.05)
    raise AssertionError("not ready in time")


def test_two_processes_write_one_database(home: Path) -> None:
    with Upstream(answer) as up, serve(home, up) as (one, first, _), serve(home, up) as (two, second, _):
        ca = home / "ca" / "mitmproxy-ca-cert.pem"
        with client_of(first, ca) as a, client_of(second, ca) as b:
            for _ in range(5):
                a.post(URL, json=CHAT)
                b.post(URL, json=CHAT)
        stop(one)
        stop(two)
    assert len(rows(home)) == 10


def test_files_of_home_are_for_the_user_alone(home: Path) -> None:
    with Upstream(answer) as up, serve(home, up) as (running, proxy, _):
        with client_of(proxy, home / "ca" / "mitmproxy-ca-cert.pem") as client:
            client.post(URL, json=CHAT, headers={"Helicone-Cache-Enabled": "true"})
        stop(running)
    open_to_others = [
        path
        for path in [home, *home.rglob("*")]
        if path.stat().st_mode & 0o077 and path.suffix != ".pem" and path.name != "prices-date"
    ]
    assert [str(p) for p in open_to_others if "bundles" not in p.parts and "ca" not in p.parts] == []
    assert home.stat().st_mode & 0o777 == 0o700
    assert (home / "ca" / "mitmproxy-ca.pem").stat().st_mode & 0o777 == 0o600


def test_file_is_whole_once_the_proxy_has_stopped(home: Path) -> None:
    with Upstream(answer) as up, serve(home, up) as (running, proxy, api):
        with client_of(proxy, home / "ca" / "mitmproxy-ca-cert.pem") as client:
            client.post(URL, json=CHAT)
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{api}/requests", timeout=10).close()
        stop(running)
    copy = home.parent / "copy.db"
    copy.write_bytes((home / "heliproxy.db").read_bytes())
    conn = sqlite3.connect(copy)
    assert conn.execute("SELECT count(*) FROM requests").fetchone() == (1,)
    conn.close()


def test_home_that_cannot_be_used_is_said_in_a_line(home: Path) -> None:
    home.parent.joinpath("file").touch()
    done = subprocess.run(
        [sys.executable, "-m", "heliproxy", "serve", "--home", str(home.parent / "file" / "home"), "--port", "0"],
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert "HELIPROXY_HOME" in done.stderr
    assert "Traceback" not in done.stderr
