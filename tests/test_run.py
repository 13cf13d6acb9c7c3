from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from mitmproxy.certs import CertStore

from heliproxy import certs, run

ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-4o-mini",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200},
}


class Upstream(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        model = json.loads(self.rfile.read(int(self.headers["content-length"])))["model"]
        status = 500 if model == "broken" else 200
        body = json.dumps(ANSWER | {"model": model}).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def upstream():
    """The `--upstream` value of a fake OpenAI on loopback."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Upstream) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"api.openai.com=http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def module_home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("run") / "home"


@pytest.fixture(scope="module")
def environ(module_home) -> dict[str, str]:
    """An environment with nothing in it, as `env -i` leaves."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(module_home.parent),
        "HELIPROXY_HOME": str(module_home),
        "PYTHONPATH": str(Path(run.__file__).parent.parent),
        "PYTHONWARNINGS": "ignore",
    }


def argv(*args: str) -> list[str]:
    return [sys.executable, "-m", "heliproxy", "run", *args]


def heliproxy(environ, *args: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv(*args), env=environ, capture_output=True, text=True, **options)


CALL = """if True:
    import json, sys, urllib.request
    for model in sys.argv[1:]:
        body = json.dumps({"model": model}).encode()
        headers = {"content-type": "application/json", "authorization": "Bearer sk-x"}
        request = urllib.request.Request("https://api.openai.com/v1/chat/completions", body, headers)
        try:
            print(json.load(urllib.request.urlopen(request))["usage"]["prompt_tokens"])
        except OSError as e:
            print(e)
"""


def test_calls_are_logged_and_summed_up_on_stderr(environ, upstream, tmp_path):
    file = tmp_path / "summary.json"
    models = ["gpt-4o-mini", "gpt-4o-mini", "gpt-4o", "no-such-model-7", "broken"]
    shown = heliproxy(
        environ, "--upstream", upstream, "--summary-file", str(file), "--", sys.executable, "-c", CALL, *models
    )
    assert shown.stdout == "1000\n1000\n1000\n1000\nHTTP Error 500: Internal Server Error\n"
    assert shown.returncode == 0
    facts = json.loads(file.read_text())
    run_id = facts["run_id"]
    assert shown.stderr.splitlines() == [
        "",
        "── 5 requests · 1 failed · 4,000 in · 800 out · $0.0050",
        "   gpt-4o               1   $0.0045",
        "   gpt-4o-mini          2   $0.00054",
        "   broken               1   unknown",
        "   no-such-model-7      1   unknown",
        "   cost unknown for 1 request",
        f"   details: heliproxy requests --run {run_id}",
    ]
    assert {
        k: facts[k] for k in ("requests", "failed", "input_tokens", "output_tokens", "unpriced", "exit_status")
    } == {
        "requests": 5,
        "failed": 1,
        "input_tokens": 4000,
        "output_tokens": 800,
        "unpriced": 1,
        "exit_status": 0,
    }
    assert facts["cost_usd"] == 0.00504


def test_two_runs_at_once_do_not_mix(environ, upstream, tmp_path):
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    started = [
        subprocess.Popen(
            argv("-q", "--upstream", upstream, "--summary-file", str(f), "--", sys.executable, "-c", CALL, *["m"] * n),
            env=environ,
            stdout=subprocess.DEVNULL,
        )
        for f, n in zip(files, (2, 3), strict=True)
    ]
    assert [p.wait() for p in started] == [0, 0]
    assert [json.loads(f.read_text())["requests"] for f in files] == [2, 3]


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (("sh", "-c", "exit 7"), 7),
        (("sh", "-c", "kill -TERM $$"), 143),
        (("sh", "-c", "kill -KILL $$"), 137),
    ],
)
def test_exit_status_is_the_commands(environ, command, status):
    assert heliproxy(environ, "-q", "--", *command).returncode == status


def test_command_that_cannot_start(environ, tmp_path):
    (tmp_path / "plain").write_text("true")
    (tmp_path / "orphan").write_text("#!/no/such/interpreter\n")
    (tmp_path / "orphan").chmod(0o755)
    cases = {"no-such-command-x": 127, str(tmp_path / "plain"): 126, str(tmp_path): 126, str(tmp_path / "missing"): 127}
    for name, status in cases.items():
        shown = heliproxy(environ, "--", name)
        assert (shown.returncode, shown.stdout) == (status, "")
        assert shown.stderr.startswith(f"heliproxy: {name}: ")
    assert heliproxy(environ, "-q", "--", str(tmp_path / "orphan")).returncode == 127


def test_script_without_a_first_line_is_run_by_sh(environ, tmp_path):
    script = tmp_path / "script"
    script.write_text('echo "$1"; exit 3\n')
    script.chmod(0o755)
    shown = heliproxy(environ, "-q", "--", str(script), "a b")
    assert (shown.returncode, shown.stdout) == (3, "a b\n")


def test_bytes_in_and_out_are_the_commands_alone(environ):
    data = bytes(range(256)) * 300
    plain = subprocess.run(["cat"], input=data, capture_output=True)
    with_proxy = subprocess.run(argv("--", "cat"), env=environ, input=data, capture_output=True)
    assert with_proxy.stdout == plain.stdout
    assert with_proxy.stderr == b"heliproxy: no LLM calls logged\n"


def test_options_after_the_command_are_the_commands(environ):
    shown = heliproxy(environ, "-q", "echo", "--port", "-q", "--help")
    assert shown.stdout == "--port -q --help\n"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
def test_child_finds_signals_and_files_as_a_shell_leaves_them(environ):
    command = ["sh", "-c", 'grep -E "^Sig(Blk|Ign)" /proc/self/status; ls /proc/self/fd | sort -n']
    plain = subprocess.run(command, env=environ, capture_output=True, text=True).stdout
    shown = heliproxy(environ, "-q", "--", *command).stdout
    assert usable_signals(shown) == usable_signals(plain)


def usable_signals(status: str) -> str:
    """Signal masks without 32 and 33: glibc's own, which its posix_spawn leaves ignored and no program can use."""
    return re.sub(r"(Sig\w+:\t)(\w+)", lambda m: f"{m[1]}{int(m[2], 16) & ~(3 << 31):016x}", status)


def test_nothing_outside_home_changes(environ, module_home, tmp_path):
    user = tmp_path / "user"
    user.mkdir()
    env = environ | {"HOME": str(user), "HELIPROXY_HOME": str(tmp_path / "data"), "XDG_CACHE_HOME": str(user / "cache")}
    assert heliproxy(env, "-q", "--", "true").returncode == 0
    assert list(user.iterdir()) == []


@pytest.mark.parametrize(
    ("program", "warnings", "expected"),
    [
        ("true", [], "it may ignore HTTPS_PROXY (for Java: add --java)"),
        ("python3", [], "it may use urllib3 or http.client directly"),
        ("true", ["NO_PROXY has 'api.openai.com'"], "see the warning about NO_PROXY above"),
    ],
)
def test_long_run_without_calls_is_told_the_likely_reason(program, warnings, expected):
    (line,) = run.trouble_lines({"requests": 0}, {}, program, 0, warnings, 5.0)
    assert line.startswith("heliproxy: no LLM calls logged; ")
    assert expected in line
    assert run.trouble_lines({"requests": 0}, {}, program, 0, warnings, 4.9) == ["heliproxy: no LLM calls logged"]
    assert run.trouble_lines({"requests": 1}, {}, program, 0, warnings, 60.0) == []


def test_provider_that_must_not_be_proxied_is_warned_of(environ):
    shown = heliproxy(environ | {"NO_PROXY": "api.openai.com"}, "--", "true")
    assert "NO_PROXY has 'api.openai.com'" in shown.stderr


def test_refused_certificate_is_named_with_the_cure(environ, upstream):
    code = CALL.replace(
        "urlopen(request)", "urlopen(request, context=__import__('ssl').create_default_context(cadata=ROOT))"
    )
    code = code.replace("if True:", "if True:\n    import certifi; ROOT = open(certifi.where()).read()")
    shown = heliproxy(environ, "--upstream", upstream, "--", sys.executable, "-c", code, "m")
    assert "CERTIFICATE_VERIFY_FAILED" in shown.stdout
    assert "api.openai.com was refused by the program 1 time" in shown.stderr
    assert "SSL_CERT_FILE" in shown.stderr


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize("way", ["fetch", "https"])
def test_node_of_any_age_is_seen(environ, upstream, way):
    code = {
        "fetch": """fetch(url, options).then(r => r.json()).then(r => console.log(r.usage.prompt_tokens))""",
        "https": """require('https').request(url, options, s => { let b = ''
            s.on('data', d => b += d); s.on('end', () => console.log(JSON.parse(b).usage.prompt_tokens))
            }).end(options.body)""",
    }[way]
    code = f"""const url = 'https://api.openai.com/v1/chat/completions'
        const options = {{method: 'POST', body: '{{"model": "gpt-4o-mini"}}', headers: {{'content-length': '24',
            'content-type': 'application/json'}}}}
        {code}"""
    shown = heliproxy(environ, "--upstream", upstream, "--", "node", "-e", code)
    assert (shown.stdout, shown.returncode) == ("1000\n", 0), shown.stderr
    assert "── 1 request · 1,000 in" in shown.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_company_roots_of_the_user_stay_trusted(environ, upstream, tmp_path):
    """With a company CA in SSL_CERT_FILE an intercepted host verifies, and so does one of the company's own."""
    corp = certs.ensure_ca(tmp_path / "corp", ["localhost"])
    entry = CertStore.from_store(corp.folder, "mitmproxy", 2048).get_cert("localhost", [x509.DNSName("localhost")])
    pem = tmp_path / "server.pem"
    pem.write_bytes(corp.key_and_cert.read_bytes().split(b"-----BEGIN CERT")[0] + entry.cert.to_pem())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with ThreadingHTTPServer(("127.0.0.1", 0), Upstream) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            # --proxy: NO_PROXY would send localhost past the proxy.
            script = f"""curl -sS --json '{{"model": "m"}}' https://api.openai.com/v1/chat/completions -o /dev/null &&
                curl -sS --noproxy '' --json '{{"model": "m"}}' https://localhost:{server.server_port}/x -o /dev/null"""
            env = environ | {"SSL_CERT_FILE": str(corp.cert), "CURL_CA_BUNDLE": str(corp.cert)}
            shown = heliproxy(env, "--upstream", upstream, "--", "sh", "-c", script)
        finally:
            server.shutdown()
            thread.join()
    assert shown.returncode == 0, shown.stderr
    assert "── 1 request" in shown.stderr


# ------------------------------------------------------------------------------------------------------------------
# Signals and terminals


# In Python, not sh: dash loses a signal that comes while it forks.
ANSWERS_A_SIGNAL = """
import os, signal, sys, time
def answer(number, frame):
    os.write(1, b"got" + b" it" + bytes([10]))
    sys.exit(9)
signal.signal(getattr(signal, sys.argv[1]), answer)
os.write(1, b"U" + b"P" + bytes([10]))
while True:
    time.sleep(1)
"""


def test_signal_is_passed_on_and_the_answer_counts(environ):
    command = argv("-q", "--", sys.executable, "-c", ANSWERS_A_SIGNAL, "SIGTERM")
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "UP\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate()[0] == "got it\n"
    assert process.returncode == 9


class Terminal:
    """An interactive shell with job control on a terminal of its own."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve("/bin/bash", ["bash", "--norc", "--noprofile", "-i"], environ | {"PS1": "$ ", "TERM": "dumb"})
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def expect(self, text: str, seconds: float = 40) -> str:
        """Read until `text` appears; returns what came before it."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.fd], [], [], left)[0]:
                raise AssertionError(f"no {text!r} in {self.seen!r}")
            self.seen += os.read(self.fd, 65536).decode("utf-8", "replace")
        before, _, self.seen = self.seen.partition(text)
        return before

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)
        os.close(self.fd)
        os.waitpid(self.pid, 0)


@pytest.fixture
def terminal(environ):
    if not Path("/bin/bash").exists():
        pytest.skip("no bash here")
    opened = Terminal(environ)
    yield opened
    opened.close()


COMMAND = " ".join(["heliproxy() {", sys.executable, "-m heliproxy run -q --", '"$@"; }\n'])


def test_ctrl_c_reaches_the_program_once_and_its_answer_counts(terminal, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(ANSWERS_A_SIGNAL)
    terminal.type(COMMAND)
    terminal.type(f"heliproxy {sys.executable} {program} SIGINT; echo st=$?=\n")
    terminal.expect("UP")
    terminal.type("\x03")
    assert terminal.expect("st=9=").count("got it") == 1


def test_ctrl_c_ends_a_program_that_does_not_handle_it(terminal, tmp_path):
    program = tmp_path / "program.py"
    program.write_text("import time; print('U' 'P', flush=True); time.sleep(60)")
    terminal.type(COMMAND)
    terminal.type(f"heliproxy {sys.executable} {program}; echo st=$?=\n")
    terminal.expect("UP")
    terminal.type("\x03")
    terminal.expect("st=130=")


def test_ctrl_z_stops_and_fg_goes_on(terminal):
    terminal.type(COMMAND)
    terminal.type("heliproxy sh -c 'echo U''P; read x; echo go''t=$x=; exit 4'\n")
    terminal.expect("UP")
    terminal.type("\x1a")
    terminal.expect("Stopped")
    terminal.type("fg; echo st=$?=\n")
    terminal.expect("fg; echo")
    terminal.type("hello\n")
    terminal.expect("got=hello=")
    terminal.expect("st=4=")


def test_program_sees_the_terminal(terminal):
    terminal.type(COMMAND)
    terminal.type("heliproxy sh -c 'test -t 0 && test -t 1 && test -t 2 && stty size >/dev/null && echo tt''y=yes='\n")
    terminal.expect("tty=yes=")


# ------------------------------------------------------------------------------------------------------------------
# Words


@pytest.mark.parametrize(
    ("usd", "expected"),
    [
        (None, "unknown"),
        (0.0, "$0"),
        (0.0000004, "$0.0000004"),
        (0.00027, "$0.00027"),
        (0.0412, "$0.0412"),
        (0.5, "$0.5000"),
        (1.005, "$1.00"),
        (12345.678, "$12,345.68"),
    ],
)
def test_money(usd, expected):
    assert run.money(usd) == expected


def test_many_models_are_cut_with_a_count():
    models = [{"model": f"m{i}", "requests": 1, "cost_usd": None} for i in range(10)]
    facts = dict.fromkeys(("cached", "failed", "cancelled", "unpriced", "estimated", "saved_usd"), 0)
    facts |= {"requests": 10, "input_tokens": 0, "output_tokens": 0, "cost_usd": None, "models": models, "run_id": "x"}
    lines = run.summary_lines(facts)
    assert "   and 2 more" in lines
    assert lines[1] == "── 10 requests · 0 in · 0 out · unknown"


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("python3.13", "python"),
        ("uv", "python"),
        ("node", "node"),
        ("npx", "node"),
        ("gradlew", "java"),
        ("php8.2", "php"),
        ("myapp", "other"),
        ("Python.exe", "python"),
    ],
)
def test_runtime_is_guessed_from_the_name(program, expected):
    assert run.runtime(program) == expected
