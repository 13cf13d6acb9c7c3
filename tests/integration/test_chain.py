"""Behind a company's proxy: every way out of heliproxy takes it, with its password, its CA and its exceptions."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fakes import Answer, Asked, Upstream, chat_answer, json_answer
from heliproxy.serve import ProxyThread
from heliproxy.settings import Settings, parse_upstreams

ROOT = Path(__file__).resolve().parents[2]
LOGIN = "Basic " + base64.b64encode(b"al:pw").decode()
NAMES = ("api.openai.com", "api.groq.com", "inside.example", "localhost")
CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]}


class Company:
    """A company's proxy: tunnels to port 443 alone, takes plain http in absolute form, asks for a password, and keeps
    a list. Every name leads to the same two servers on loopback."""

    def __init__(self, secure: int, plain: int, context: ssl.SSLContext | None = None) -> None:
        self.secure, self.plain, self.context = secure, plain, context
        self.lines: list[str] = []
        self.refuses = False
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Company:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(5)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stopped = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._client, "127.0.0.1", 0, ssl=self.context)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopped.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._exchange(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.split(b"\r\n")[0].decode().split(" ")
        self.lines.append(f"{method} {target}")
        if f"proxy-authorization: {LOGIN}".lower() not in head.decode().lower():
            writer.write(b"HTTP/1.1 407 Who are you\r\ncontent-length: 0\r\n\r\n")
            await writer.drain()
            return
        if self.refuses or (method == "CONNECT" and not target.endswith(":443")):
            writer.write(b"HTTP/1.1 403 Port not allowed\r\ncontent-length: 0\r\n\r\n")
            await writer.drain()
            return
        if target.startswith("refused.invalid"):
            writer.write(b"HTTP/1.1 502 No such host\r\ncontent-length: 0\r\n\r\n")
            await writer.drain()
            return
        port = self.secure if method == "CONNECT" else self.plain
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", port)
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Go\r\n\r\n")
        else:
            up_writer.write(head)
        await asyncio.gather(_pump(reader, up_writer), _pump(up_reader, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


def company_certificate(folder: Path) -> Path:
    """A certificate of the company's for every name these tests use; it is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "company")])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.DNSName(n) for n in NAMES])
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "server.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain) + cert.public_bytes(pem)
    )
    (folder / "company.pem").write_bytes(cert.public_bytes(pem))
    return folder / "company.pem"


class Office:
    """The company's proxy, what is behind it, and the environment its people have."""

    def __init__(self, proxy: Company, secure: Upstream, plain: Upstream, ca: Path) -> None:
        self.proxy, self.secure, self.plain, self.ca = proxy, secure, plain, ca
        self.script: list[Answer] = []
        url = f"http://al:pw@127.0.0.1:{proxy.port}"
        if proxy.context is not None:
            url = f"https://al:pw@localhost:{proxy.port}"
        self.environ = {
            **dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY"), url),
            "NO_PROXY": "direct.example",
            "SSL_CERT_FILE": str(ca),
        }
        secure.handler = self.answer

    def answer(self, asked: Asked) -> Answer:
        return self.script.pop(0) if self.script else json_answer(chat_answer())


@pytest.fixture
def office(tmp_path, monkeypatch, request) -> Iterator[Office]:
    ca = company_certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "server.pem")
    with (
        Upstream(lambda _: Answer(500), context=context) as secure,
        Upstream(lambda _: Answer(body=b"plain")) as plain,
        Company(secure.port, plain.port, context if getattr(request, "param", "http") == "https" else None) as proxy,
    ):
        found = Office(proxy, secure, plain, ca)
        for name in ("https_proxy", "http_proxy", "ALL_PROXY", "all_proxy", "no_proxy", "HELIPROXY_UPSTREAM_PROXY"):
            monkeypatch.delenv(name, raising=False)
        for name, value in found.environ.items():
            monkeypatch.setenv(name, value)
        yield found


@pytest.fixture
def ours(office, home) -> Iterator[ProxyThread]:
    with ProxyThread(Settings(home=home, port=0, api_port=None)) as proxy:
        yield proxy


@pytest.fixture
def client(ours, office, home) -> Iterator[httpx.Client]:
    context = ssl.create_default_context(cafile=str(home / "ca" / "mitmproxy-ca-cert.pem"))
    context.load_verify_locations(office.ca)
    with httpx.Client(proxy=f"http://127.0.0.1:{ours.port}", verify=context, trust_env=False, timeout=20) as client:
        yield client


def test_decrypted_calls_go_through_it_with_retries_on_one_tunnel(office, client):
    office.script = [Answer(429), Answer(429)]
    headers = {"Helicone-Retry-Enabled": "true", "helicone-retry-min-timeout": "1"}
    answer = client.post("https://api.openai.com/v1/chat/completions", json=CHAT, headers=headers)
    assert answer.json()["choices"]
    assert len(office.secure.asked) == 3
    assert set(office.proxy.lines) == {"CONNECT api.openai.com:443"}
    assert office.secure.asked[0].header("proxy-authorization") is None


@pytest.mark.parametrize("office", ["https"], indirect=True)
def test_proxy_that_speaks_tls_itself_is_taken_all_ways(office, client):
    answer = client.post("https://api.openai.com/v1/chat/completions", json=CHAT)
    assert answer.json()["choices"]
    assert client.get("https://inside.example/x").status_code == 200
    assert client.get("http://files.example/a").text == "plain"
    assert office.proxy.lines == [
        "CONNECT api.openai.com:443",
        "CONNECT inside.example:443",
        "GET http://files.example:80/a",
    ]


@pytest.mark.parametrize("office", ["https"], indirect=True)
def test_proxy_whose_certificate_nobody_vouches_for_is_refused(office, home, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    with ProxyThread(Settings(home=home, port=0, api_port=None)) as ours:
        url = f"http://127.0.0.1:{ours.port}/oai/v1/chat/completions"
        answer = httpx.post(url, json=CHAT, trust_env=False, timeout=20)
    assert answer.status_code == 502
    assert "certificate verify failed" in answer.text.lower()
    assert office.proxy.lines == []


def test_fallback_to_another_host_goes_through_it_too(office, ours):
    office.script = [Answer(500)]
    targets = [
        {"target-url": "https://api.openai.com", "headers": {"authorization": "Bearer a"}, "onCodes": [500]},
        {"target-url": "https://api.groq.com/openai", "headers": {"authorization": "Bearer b"}, "onCodes": [500]},
    ]
    answer = httpx.post(
        f"http://127.0.0.1:{ours.port}/v1/gateway/v1/chat/completions",
        json=CHAT,
        headers={"Helicone-Fallbacks": json.dumps(targets)},
        trust_env=False,
        timeout=20,
    )
    assert answer.status_code == 200
    assert office.proxy.lines == ["CONNECT api.openai.com:443", "CONNECT api.groq.com:443"]


def test_base_urls_on_our_port_go_through_it(office, ours):
    url = f"http://127.0.0.1:{ours.port}/oai/v1/chat/completions"
    assert httpx.post(url, json=CHAT, trust_env=False, timeout=20).status_code == 200
    assert office.proxy.lines == ["CONNECT api.openai.com:443"]


def test_tunnelled_host_keeps_its_own_certificate(office, client):
    # The client trusts both authorities; who signed is what tells whether it was opened.
    with client.stream("GET", "https://inside.example/x") as answer:
        stream = answer.extensions["network_stream"]
        issuer = stream.get_extra_info("ssl_object").getpeercert()["issuer"]
    assert issuer == ((("commonName", "company"),),)
    assert office.proxy.lines == ["CONNECT inside.example:443"]


def test_plain_http_is_passed_on_in_absolute_form(office, client):
    assert client.get("http://files.example/a?b=c").text == "plain"
    assert client.get("http://files.example/d").text == "plain"
    assert office.proxy.lines[0] == "GET http://files.example:80/a?b=c"
    (asked, *_) = office.plain.asked
    assert asked.header("proxy-authorization") == LOGIN  # the company's own to take out


def test_exceptions_of_the_user_are_dialled_directly(office, client):
    answer = client.get("http://direct.example:1/x")
    assert answer.status_code == 502
    assert office.proxy.lines == []


def test_local_upstreams_are_dialled_directly(office, home):
    with (
        Upstream(lambda _: json_answer(chat_answer())) as local,
        ProxyThread(
            Settings(home=home, port=0, api_port=None, upstreams=parse_upstreams([f"api.openai.com={local.url}"]))
        ) as ours,
    ):
        url = f"http://127.0.0.1:{ours.port}/oai/v1/chat/completions"
        assert httpx.post(url, json=CHAT, trust_env=False, timeout=20).status_code == 200
        assert len(local.asked) == 1
    assert office.proxy.lines == []


def test_refusal_of_the_company_reaches_the_client_as_502_and_the_log(office, ours, client):
    assert client.get("https://api.openai.com/v1/models").status_code == 200
    office.proxy.refuses = True
    answer = client.post("https://api.groq.com/openai/v1/chat/completions", json=CHAT)
    assert answer.status_code == 502
    assert "refused HTTP CONNECT request: 403" in answer.text


def test_target_named_by_a_client_is_guarded_here_as_well(office, home, monkeypatch):
    """The company's proxy would resolve the name itself, and it may reach what clients must not."""

    async def inside(host: str, port: int):
        return f"resolves to 10.0.0.7, which is not a public address: {host}:{port}", None

    monkeypatch.setattr("heliproxy.flows.public_address", inside)
    with ProxyThread(Settings(home=home, port=0, api_port=None)) as ours:
        answer = httpx.post(
            f"http://127.0.0.1:{ours.port}/v1/gateway/v1/chat/completions",
            json=CHAT,
            headers={"Helicone-Target-URL": "https://sneaky.example"},
            trust_env=False,
            timeout=20,
        )
    assert answer.status_code >= 500
    assert office.proxy.lines == ["CONNECT refused.invalid:443"]
    assert office.secure.asked == []


SCRIPT = """if True:
    import json, urllib.request as u
    body = json.dumps({"model": "gpt-4o-mini", "messages": []}).encode()
    ask = u.Request("https://api.openai.com/v1/chat/completions", body, {"content-type": "application/json"})
    print(json.load(u.urlopen(ask))["usage"]["total_tokens"])
    print(u.urlopen(u.Request("https://inside.example/", b"{}")).status)
"""


@pytest.mark.parametrize("office", ["http", "https"], indirect=True)
def test_run_behind_it_verifies_decrypted_and_tunnelled_hosts(office, home, tmp_path):
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "HELIPROXY_HOME": str(home),
        "PYTHONPATH": str(ROOT / "addon"),
        "PYTHONWARNINGS": "ignore",
        **office.environ,
    }
    inner = [sys.executable, "-m", "heliproxy", "run", "-q", "--", sys.executable, "-c", SCRIPT]
    for command in (inner, [*inner[:5], "--", *inner]):  # alone, and a `run` in a `run`
        office.proxy.lines.clear()
        shown = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        assert (shown.stdout, shown.stderr, shown.returncode) == ("1100\n200\n", "", 0)
        assert office.proxy.lines == ["CONNECT api.openai.com:443", "CONNECT inside.example:443"]
    left = {p.relative_to(tmp_path).parts[0] for p in tmp_path.rglob("*")}
    assert left == {"home", "server.pem", "company.pem"}
