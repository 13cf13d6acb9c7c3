"""Real handshakes through a proxy of our own: does each runtime on this machine find it, and trust it?

Every probe is a few lines in the runtime's own language. It fetches one page from a host that exists nowhere else than
behind this proxy, so that a runtime which goes past it fails and nothing leaves the machine.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from heliproxy.settings import Settings

HOST = "heliproxy-doctor.openai.azure.com"
"""Below a host that our authority may sign for; only our proxy knows where it is."""
URL = f"https://{HOST}/v1/models"
ANSWER = "heliproxy doctor"
SECONDS = 25.0
COMPILE_SECONDS = 90.0
_NOT_TRUSTED = ("certificate", "unable to verify", "ssl", "pkix", "x509", "self-signed", "unknown ca", "trust anchor")

_PYTHON = f'import urllib.request as u; print(u.urlopen("{URL}", timeout=20).read().decode())'
_NODE = f"""const go = typeof fetch === 'function' ? fetch('{URL}').then(r => r.text())
  : new Promise((done, fail) => require('https').get('{URL}', r => {{
      let text = ''; r.on('data', d => {{ text += d }}); r.on('end', () => done(text)) }}).on('error', fail))
go.then(console.log, e => {{ console.error(e, e.cause); process.exit(1) }})"""
_DENO = f"console.log(await (await fetch('{URL}')).text())"
_RUBY = f'require "net/http"; puts Net::HTTP.get(URI("{URL}"))'
_PHP = (
    f'$c = curl_init("{URL}"); curl_setopt($c, CURLOPT_RETURNTRANSFER, true); $t = curl_exec($c);'
    "if ($t === false) { fwrite(STDERR, curl_error($c)); exit(1); } echo $t;"
)
_GO = f"""package main
import ("fmt"; "io"; "net/http"; "os")
func main() {{
\tr, err := http.Get("{URL}")
\tif err != nil {{ fmt.Fprintln(os.Stderr, err); os.Exit(1) }}
\tb, _ := io.ReadAll(r.Body)
\tfmt.Println(string(b))
}}
"""
_JAVA = f"""import java.net.URI; import java.net.http.*;
public class Probe {{ public static void main(String[] a) throws Exception {{
  var request = HttpRequest.newBuilder(URI.create("{URL}")).build();
  System.out.println(HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString()).body());
}} }}
"""


@dataclass(frozen=True, slots=True)
class Runtime:
    """One row of the table: how to have a runtime fetch the page."""

    name: str
    programs: tuple[str, ...]
    arguments: tuple[str, ...]
    """`{file}` stands for the file that holds `source`, `{folder}` for the one it is in."""
    source: str = ""
    file: str = ""
    seconds: float = SECONDS


RUNTIMES: tuple[Runtime, ...] = (
    Runtime("python", ("python3", "python"), ("-c", _PYTHON)),
    Runtime("node", ("node",), ("-e", _NODE)),
    Runtime("bun", ("bun",), ("-e", _NODE)),
    Runtime("deno", ("deno",), ("run", "--quiet", "--allow-net", "--allow-env", "{file}"), _DENO, "probe.ts"),
    Runtime("curl", ("curl",), ("-sS", "--max-time", "20", URL)),
    Runtime("go", ("go",), ("run", "{file}"), _GO, "probe.go", COMPILE_SECONDS),
    Runtime("ruby", ("ruby",), ("-e", _RUBY)),
    Runtime("php", ("php",), ("-r", _PHP)),
    Runtime("java", ("java",), ("{file}",), _JAVA, "Probe.java", COMPILE_SECONDS),
)


@dataclass(frozen=True, slots=True)
class Shake:
    """How one runtime fared. `result`: ok, untrusted, bypassed, failed or absent."""

    runtime: str
    result: str
    detail: str = ""


def shake_hands(settings: Settings, environ: Mapping[str, str], runtimes: Sequence[Runtime] = RUNTIMES) -> list[Shake]:
    """Have each installed runtime call through a proxy that uses the authority of `settings.home`, and no database
    of the user's.

    Raises:
        OSError: the authority or a trust file cannot be made.
        serve.StartError: no proxy can be started at all.
    """
    from dataclasses import replace

    from heliproxy.certs import ensure_ca
    from heliproxy.environment import original_env
    from heliproxy.hosts import CA_HOSTS
    from heliproxy.serve import ProxyThread
    from heliproxy.settings import parse_upstreams

    authority = ensure_ca(settings.home, CA_HOSTS)
    with tempfile.TemporaryDirectory(prefix="heliproxy-doctor-") as name, Provider() as provider:
        folder = Path(name)
        (folder / "ca").symlink_to(authority.folder.absolute())
        upstreams = parse_upstreams([f"{HOST}={provider.url}"])
        alone = replace(settings, home=folder, port=0, api_port=None, upstreams=upstreams, mitm_options=())
        with ProxyThread(alone) as proxy:

            def one(runtime: Runtime) -> Shake:
                return _shake(runtime, original_env(environ), proxy.port, settings.home, folder, provider)

            with ThreadPoolExecutor(max_workers=3) as pool:
                return list(pool.map(one, runtimes))


def _shake(
    runtime: Runtime, environ: Mapping[str, str], port: int, home: Path, folder: Path, provider: Provider
) -> Shake:
    from heliproxy.environment import child_env, home_trust

    program = next((p for name in runtime.programs if (p := shutil.which(name, path=environ.get("PATH")))), None)
    if program is None:
        return Shake(runtime.name, "absent")
    own = folder / runtime.name
    own.mkdir()
    changes = child_env(environ, port, home_trust(home), java=runtime.name == "java").changes
    env = {**environ, **changes, "GOCACHE": str(own / "cache"), "GO111MODULE": "off", "DENO_DIR": str(own / "cache")}
    file = own / (runtime.file or "none")
    if runtime.source:
        file.write_text(runtime.source, encoding="utf-8")
    arguments = [part.replace("{file}", str(file)) for part in runtime.arguments]
    before = provider.asked
    try:
        done = subprocess.run(
            [program, *arguments],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=runtime.seconds,
            cwd=own,
        )
    except subprocess.TimeoutExpired:
        return Shake(runtime.name, "failed", f"no answer within {runtime.seconds:.0f} s")
    except OSError as e:
        return Shake(runtime.name, "failed", str(e))
    if ANSWER in done.stdout:
        return Shake(runtime.name, "ok", program)
    return Shake(runtime.name, _why(done.stderr, provider.asked > before), _last_line(done.stderr or done.stdout))


def _why(said: str, reached: bool) -> str:
    text = said.lower()
    if any(word in text for word in _NOT_TRUSTED):
        return "untrusted"
    # The host's name resolves nowhere: an unknown host means that the proxy was not asked.
    unknown = ("resolve", "enotfound", "no such host", "name or service", "unresolved", "getaddrinfo", "unknownhost")
    return "bypassed" if not reached and any(word in text for word in unknown) else "failed"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = next((line for line in lines if "error" in line.lower() or "exception" in line.lower()), "")
    return (found or (lines[-1] if lines else "no output"))[:200]


class Provider:
    """An upstream on loopback that answers every GET alike. `with Provider() as provider: provider.url`."""

    def __init__(self) -> None:
        self.asked = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.asked += 1
                self.send_response(200)
                self.send_header("content-type", "text/plain")
                self.send_header("content-length", str(len(ANSWER)))
                self.end_headers()
                self.wfile.write(ANSWER.encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Provider:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
