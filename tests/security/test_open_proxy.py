"""A proxy that others can reach asks each of them for its token, and does not start without one."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from conftest import ROOT
from fakes import Upstream, chat_answer, json_answer
from heliproxy import entry
from heliproxy.environment import RUN_USER, run_of
from heliproxy.settings import parse_allowed_target
from security.wire import raw
from served import CHAT, PATH, Served, served

TOKEN = "let-me-in-0123456789"
EXPOSED = [
    ["serve", "--host", "0.0.0.0"],
    ["serve", "--host", "::"],
    ["serve", "--host", ""],
    ["serve", "--host", "192.0.2.1"],
    ["serve", "--host", "box.lan"],
    ["serve", "--set", "listen_host=0.0.0.0"],
    ["serve", "--set", "listen_host=[::]"],
    ["serve", "--set", "mode=regular@0.0.0.0:0"],
    ["serve", "--set", "mode=regular@:0"],
    ["serve", "--set", "mode=reverse:https://api.openai.com@0.0.0.0:0"],
    ["serve", "--set", "mode=regular", "--set", "mode=socks5@[::]:0"],
    ["web", "--set", "listen_host=0.0.0.0"],
    ["web", "--", "--listen-host", "0.0.0.0"],
    ["web", "--", "--mode=regular@0.0.0.0:0"],
    ["run", "--set", "listen_host=0.0.0.0", "--", "true"],
]


def heliproxy(home: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ["PATH"], "HOME": str(home.parent), "PYTHONPATH": str(ROOT / "addon")} | env
    command = [sys.executable, "-m", "heliproxy", *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("arguments", EXPOSED, ids=" ".join)
def test_an_open_door_without_a_token_is_a_usage_error(home: Path, arguments: list[str]) -> None:
    shown = heliproxy(home, arguments[0], "--home", str(home), "--port", "0", *arguments[1:])
    assert shown.returncode == 2, shown.stderr
    assert "listening on" in shown.stderr
    assert not (home / "heliproxy.db").exists()


@pytest.mark.parametrize("token", ["", " ", "\t \n"])
@pytest.mark.parametrize("more", [[], ["--workers", "2"], ["--set", "proxyauth=any"]])
def test_a_blank_token_is_none(home: Path, token: str, more: list[str]) -> None:
    serve = ["serve", "--home", str(home), "--port", "0", "--host", "0.0.0.0", *more]
    assert heliproxy(home, *serve, HELIPROXY_TOKEN=token).returncode == 2
    assert heliproxy(home, *serve, "--set", f"heliproxy_token={token}").returncode == 2


def test_run_keeps_to_loopback_even_with_a_token(home: Path) -> None:
    shown = heliproxy(home, "run", "--set", "listen_host=0.0.0.0", "--", "true", HELIPROXY_TOKEN=TOKEN)
    assert shown.returncode == 2


def test_a_mode_that_cannot_ask_is_refused_with_a_token_too(home: Path) -> None:
    shown = heliproxy(home, "serve", "--set", "mode=socks5@0.0.0.0:0", HELIPROXY_TOKEN=TOKEN)
    assert (shown.returncode, "socks5 cannot ask" in shown.stderr) == (2, True)


def test_mitmdump_with_the_script_does_not_start_either(home: Path) -> None:
    command = [Path(sys.executable).with_name("mitmdump"), "-s", ROOT / "addon" / "main.py", "--listen-host", "0.0.0.0"]
    options = ["--listen-port", "0", "--set", f"heliproxy_home={home}", "--set", "heliproxy_api_port=-1"]
    environ = {"PATH": os.environ["PATH"], "HOME": str(home.parent), "PYTHONPATH": str(ROOT / "addon")}
    shown = subprocess.run([*command, *options], env=environ, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 1
    assert "listening on 0.0.0.0 needs a token" in shown.stdout + shown.stderr


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads bound ports where Linux lists them")
@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("mitmdump", ("-p", "{port}")),
        ("mitmdump", ("--set", "listen_port={port}")),
        ("mitmdump", ("--mode", "regular@{port}")),
        ("mitmweb", ("-p", "{port}", "--no-web-open-browser", "--web-port", "0")),
    ],
    ids=lambda part: part if isinstance(part, str) else " ".join(part[:2]),
)
def test_a_script_that_is_told_no_address_listens_on_loopback(
    home: Path, tool: str, arguments: tuple[str, ...]
) -> None:
    port = free_port()
    command: list[str | Path] = [Path(sys.executable).with_name(tool), "-s", ROOT / "addon" / "main.py"]
    options = ["--set", f"heliproxy_home={home}", "--set", "heliproxy_api_port=-1"]
    environ = {"PATH": os.environ["PATH"], "HOME": str(home.parent), "PYTHONPATH": str(ROOT / "addon")}
    with subprocess.Popen(
        [*command, *options, *(part.format(port=port) for part in arguments)],
        env=environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        timer = threading.Timer(60, running.kill)
        timer.start()
        try:
            assert running.stdout is not None
            said = []
            for line in running.stdout:
                said.append(line)
                if f"listening at 127.0.0.1:{port}" in line:
                    break
            assert bound(port) == {"127.0.0.1"}, "".join(said)
        finally:
            timer.cancel()
            running.kill()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def bound(port: int) -> set[str]:
    """The addresses on which something listens on a port, as the kernel lists them."""
    found = set()
    for family, name in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        path = Path("/proc/net") / name
        for line in path.read_text("ascii").splitlines()[1:] if path.exists() else ():
            local, state = line.split()[1], line.split()[3]
            address, _, number = local.partition(":")
            if state == "0A" and int(number, 16) == port:
                words = [int(address[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(address), 8)]
                found.add(socket.inet_ntop(family, b"".join(words)))
    return found


@pytest.fixture(scope="module")
def up() -> Iterator[Upstream]:
    with Upstream(lambda asked: json_answer(chat_answer("hi"))) as up:
        yield up


@pytest.fixture(scope="module")
def exposed(up: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("exposed") / "home"
    with served(home, up.url, "--set", "mode=regular@0.0.0.0:0", env={"HELIPROXY_TOKEN": TOKEN}) as found:
        yield found


def basic(user: str, password: str) -> dict[str, str]:
    return {"Proxy-Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Helicone-Auth": "Bearer wrong"}, 401),
        ({"Helicone-Auth": f"Bearer {TOKEN}x"}, 401),
        ({"Helicone-Auth": TOKEN}, 401),
        ({"Helicone-Auth": f"Bearer {TOKEN}"}, 200),
        ({"Authorization": f"Bearer {TOKEN}"}, 200),
        (basic("heliproxy", TOKEN), 200),
        (basic(TOKEN, ""), 200),
        (basic("x", "y"), 401),
        ({"Proxy-Authorization": "Basic !!!"}, 401),
    ],
)
def test_gateway_asks_for_the_token(exposed: Served, up: Upstream, headers: dict[str, str], status: int) -> None:
    up.asked.clear()
    answer = httpx.post(f"http://127.0.0.1:{exposed.port}{PATH}", json=CHAT, headers=headers, trust_env=False)
    assert answer.status_code == status, answer.text
    assert len(up.asked) == (status == 200)
    if status == 200:
        assert TOKEN not in str(up.asked[0].headers)
        assert TOKEN.encode() not in up.asked[0].body
    else:
        assert answer.headers["www-authenticate"].startswith("Bearer")


def test_api_and_pages_on_both_ports_ask_for_it(exposed: Served) -> None:
    for port in (exposed.port, exposed.api_port):
        for path in ("/v1/evals/scores", "/requests", "/openapi.json"):
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
                assert client.get(path).status_code == 401
                assert client.get(path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
                assert client.get("/health").status_code == 200


def test_tunnels_and_requests_ask_for_it(exposed: Served) -> None:
    connect = b"CONNECT api.openai.com:443 HTTP/1.1\r\nHost: api.openai.com:443\r\n"
    plain = b"GET http://api.openai.com/v1/models HTTP/1.1\r\nHost: api.openai.com\r\n"
    other = b"GET http://example.invalid/ HTTP/1.1\r\nHost: example.invalid\r\n"
    for head in (connect, plain, other):
        got = raw(exposed.port, head + b"Connection: close\r\n\r\n")
        assert got.startswith(b"HTTP/1.1 407"), got
        assert b"proxy-authenticate: basic" in got.lower()
    given = f"Proxy-Authorization: {basic('x', TOKEN)['Proxy-Authorization']}\r\n\r\n".encode()
    assert raw(exposed.port, connect + given).startswith(b"HTTP/1.1 200")
    # What is inside a tunnel was admitted with it; a new connection was not.
    assert raw(exposed.port, plain + b"Connection: close\r\n\r\n").startswith(b"HTTP/1.1 407")


def test_services_of_the_machine_stay_out_of_reach(exposed: Served, up: Upstream) -> None:
    token = f"Proxy-Authorization: {basic('x', TOKEN)['Proxy-Authorization']}\r\n\r\n".encode()
    for port in (exposed.api_port, exposed.port):
        head = f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n".encode()
        assert raw(exposed.port, head + token).startswith(b"HTTP/1.1 403")


def test_token_is_in_no_file_and_no_log(exposed: Served) -> None:
    for path in exposed.home.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path
    assert TOKEN not in exposed.errors


def test_api_port_stays_on_loopback(exposed: Served) -> None:
    addresses = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in (str(a) for a in addresses):
        if not address.startswith("127."):
            with pytest.raises(OSError, match="refused"):
                socket.create_connection((address, exposed.api_port), timeout=3)


@pytest.mark.parametrize(
    ("listen", "modes", "found"),
    [
        ("127.0.0.1", [], None),
        ("localhost", ["regular"], None),
        ("::1", ["regular@8081"], None),
        ("[::1]", [], None),
        ("127.0.0.1", ["reverse:http://user:x@host"], None),
        ("0.0.0.0", ["regular@127.0.0.1:80"], None),
        ("", [], "every interface"),
        ("0", [], "0"),
        ("0.0.0.0", ["regular@127.0.0.1:80", "regular"], "0.0.0.0"),
        ("127.0.0.1", ["regular", "upstream:http://a:1@*:2"], "*"),
        ("::ffff:127.0.0.1", [], None),
        ("::ffff:0.0.0.0", [], "::ffff:0.0.0.0"),
    ],
)
def test_exposure(listen: str, modes: list[str], found: str | None) -> None:
    assert entry.exposure(listen, modes) == found


def test_run_and_token_share_a_password() -> None:
    value = basic(RUN_USER, f"abcd1234:{TOKEN}")["Proxy-Authorization"]
    assert run_of(value) == "abcd1234"
    assert entry.has_token([(b"Proxy-Authorization", value.encode())], TOKEN, entry.PROXY_HEADERS)


_BAD_TARGETS = "* http://x a/b a: a:0 a:65536 a:b u@h [x]:1 -a [::1 *.lan a..b 10.0.0.0/8"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("GPU.lan", "gpu.lan"),
        ("gpu.lan:8000", "gpu.lan:8000"),
        ("10.0.0.1:80", "10.0.0.1:80"),
        ("[::1]:80", "::1:80"),
        ("[fd00::1]", "fd00::1"),
        ("fd00::1", "fd00::1"),
        ("my_host.", "my_host"),
        *((bad, None) for bad in _BAD_TARGETS.split()),
        ("a b", None),
        ("", None),
    ],
)
def test_allowed_targets(value: str, found: str | None) -> None:
    if found is None:
        with pytest.raises(ValueError, match="expected HOST or HOST:PORT"):
            parse_allowed_target(value)
    else:
        assert parse_allowed_target(value) == found


def shell(exposed: Served, *arguments: str, token: str | None = TOKEN, **env: str) -> subprocess.CompletedProcess[str]:
    given = {"HELIPROXY_TOKEN": token} if token is not None else {}
    return heliproxy(exposed.home, *arguments, "--port", str(exposed.port), **given, **env)


def test_env_puts_the_token_into_the_proxy_variables(exposed: Served) -> None:
    shown = shell(exposed, "env", "--shell", "sh", "--home", str(exposed.home))
    assert f"export HTTPS_PROXY='http://heliproxy:{TOKEN}@127.0.0.1:{exposed.port}'" in shown.stdout
    assert shown.stderr == ""


@pytest.mark.parametrize(("token", "words"), [(None, "set HELIPROXY_TOKEN here"), ("other", "is another here")])
def test_a_missing_or_wrong_token_is_said(exposed: Served, token: str | None, words: str) -> None:
    home = ("--home", str(exposed.home))
    shown = shell(exposed, "env", "--shell", "sh", *home, token=token)
    assert f"export HTTPS_PROXY='http://127.0.0.1:{exposed.port}'" in shown.stdout
    assert words in shown.stderr
    command = ("run", *home, "--attach", "--port", str(exposed.port), "--", "true")
    shown = heliproxy(exposed.home, *command, **({"HELIPROXY_TOKEN": token} if token else {}))
    assert (shown.returncode, words in shown.stderr, "another home" in shown.stderr) == (1, True, False)
    shown = shell(exposed, "doctor", "--quick", *home, "--api-port", str(exposed.api_port), token=token)
    assert (shown.returncode, f"FAIL  token        the heliproxy on port {exposed.port}" in shown.stdout) == (1, True)


def test_run_attaches_with_the_token(exposed: Served, up: Upstream) -> None:
    command = "import httpx; print(httpx.get('https://api.openai.com/v1/models').status_code)"
    options = ("run", "--home", str(exposed.home), "--attach", "--port", str(exposed.port))
    shown = heliproxy(exposed.home, *options, "--", sys.executable, "-c", command, HELIPROXY_TOKEN=TOKEN)
    assert (shown.returncode, shown.stdout) == (0, "200\n"), shown.stderr


def test_doctor_checks_the_token_and_that_the_session_sends_it(exposed: Served) -> None:
    def token_lines(**env: str) -> list[str]:
        ports = ("--api-port", str(exposed.api_port), "--home", str(exposed.home))
        shown = shell(exposed, "doctor", "--quick", *ports, **env)
        return [line for line in shown.stdout.splitlines() if line[6:].startswith("token")]

    assert token_lines() == [f"ok    token        the proxy on {exposed.port} asks for it, and HELIPROXY_TOKEN is it"]
    saved = {"HELIPROXY_SAVED": '{"HTTPS_PROXY": null}'}
    with_it = f"http://heliproxy:{TOKEN}@127.0.0.1:{exposed.port}"
    assert token_lines(HTTPS_PROXY=with_it, **saved)[0].startswith("ok")
    (line,) = token_lines(HTTPS_PROXY=f"http://127.0.0.1:{exposed.port}", **saved)
    assert line.startswith("FAIL  token        HTTPS_PROXY of this shell lacks the token")
