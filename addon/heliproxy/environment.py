"""The environment that makes a program use the proxy and trust its certificates, and `heliproxy env`, which prints it.

Which client reads which variable was measured, not read up: certs/README.md has the table.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import click

from heliproxy.certs import user_file
from heliproxy.chain import CHAIN
from heliproxy.options import home_option

PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
"""All four: gRPC reads only lower case, Ruby's net/http only http_proxy even for https."""

REPLACING_VARIABLES = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "AWS_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
    "PIP_CERT",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "HTTPLIB2_CA_CERTS",
    "NIX_SSL_CERT_FILE",
    "PERL_LWP_SSL_CA_FILE",
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
    "CODEX_CA_CERTIFICATE",
)
"""The file replaces the client's own roots: it must hold everything trusted before, and our certificate."""

ADDING_VARIABLES = ("NODE_EXTRA_CA_CERTS", "DENO_CERT")
"""The file is added to the client's own roots: our certificate, and what the user added."""

LOOPBACK = ("localhost", "127.0.0.1", "::1")
SAVED = "HELIPROXY_SAVED"
"""What `heliproxy env` found, as JSON, for `heliproxy env --unset` to put back."""
RUN_ID = "HELIPROXY_RUN_ID"
RUN_USER = "run"
"""Proxy user of programs that share a proxy; their password is the run id."""
SHIMS = Path(__file__).parent / "shims"
JAVA_COMMANDS = {
    "java",
    "mvn",
    "mvnw",
    "gradle",
    "gradlew",
    "sbt",
    "ant",
    "kotlin",
    "scala",
    "jshell",
    "clojure",
    "clj",
}


@dataclass(frozen=True, slots=True)
class Trust:
    """Where the files for a child's trust come from; each may write one, and raises OSError when it cannot."""

    bundle: Callable[[Path | None], Path]
    """The user's file (None: the default roots) to one that holds its certificates and ours."""
    extra: Callable[[Path | None], Path]
    """The user's additional file (None: none) to one that holds its certificates and ours alone."""
    php_folder: Callable[[Path], Path]
    """A bundle to a folder with a php.ini fragment that names it."""
    java_store: Callable[[Path], Path]
    """A bundle to a Java trust store of the same certificates."""


@dataclass(frozen=True, slots=True)
class ChildEnvironment:
    """What to set for a program, and what the user should know before it starts."""

    changes: dict[str, str]
    warnings: tuple[str, ...]


def child_env(
    environ: Mapping[str, str],
    port: int,
    trust: Trust,
    *,
    run_id: str | None = None,
    java: bool = False,
    hosts: Iterable[str] = (),
    attached: bool = False,
    token: str | None = None,
) -> ChildEnvironment:
    """Work out the variables that send a program with this environment through the proxy on `port`.

    `attached`: the proxy serves other programs too, so each connection tells it the run id, as a proxy password.
    `token` is what the proxy asks of everybody, if it does.
    `hosts` are the domains we want to see; an exception for one of them in NO_PROXY is warned about, not removed.
    Applying the changes twice gives the same as once.

    Raises:
        OSError: a trust file cannot be written.
    """
    url = f"http://{f'heliproxy:{quote(token, safe="")}@' if token else ''}127.0.0.1:{port}"
    if attached and run_id:
        # A proxy that others can reach asks for its token.
        token = token or environ.get("HELIPROXY_TOKEN")
        url = f"http://{RUN_USER}:{run_id}{'%3A' + quote(token, safe='') if token else ''}@127.0.0.1:{port}"
    changes = dict.fromkeys(PROXY_VARIABLES, url)
    exceptions, warnings = no_proxy(environ, hosts)
    changes |= {"NO_PROXY": exceptions, "no_proxy": exceptions}
    for name in REPLACING_VARIABLES:
        changes[name] = str(trust.bundle(_own_file(environ, name, warnings)))
    for name in ADDING_VARIABLES:
        changes[name] = str(trust.extra(_own_file(environ, name, warnings)))
    changes["NODE_USE_ENV_PROXY"] = "1"
    changes["NODE_OPTIONS"] = _node_options(environ.get("NODE_OPTIONS", ""))
    changes["PYTHONPATH"] = _with_path(environ.get("PYTHONPATH", ""), SHIMS / "python", first=True)
    php = trust.php_folder(Path(changes["CURL_CA_BUNDLE"]))
    # An empty entry stands for the folder compiled in; without it PHP would lose its own configuration.
    scanned = environ.get("PHP_INI_SCAN_DIR", "")
    changes["PHP_INI_SCAN_DIR"] = _with_path(scanned, php, first=False) if scanned else f"{os.pathsep}{php}"
    if java:
        store = trust.java_store(Path(changes["SSL_CERT_FILE"]))
        changes["JAVA_TOOL_OPTIONS"] = _java_options(environ.get("JAVA_TOOL_OPTIONS", ""), port, store)
    if run_id is not None:
        changes[RUN_ID] = run_id
        # A `heliproxy run` inside this one goes out the same way, not through us.
        changes[CHAIN] = next((environ[n] for n in (CHAIN, "https_proxy", "HTTPS_PROXY") if n in environ), "")
    return ChildEnvironment(changes, tuple(dict.fromkeys(warnings)))


def run_of(authorization: str) -> str | None:
    """The run id in a Proxy-Authorization header's value; None when it holds none."""
    scheme, _, text = authorization.partition(" ")
    if scheme.lower() != "basic" or len(text) > 500:
        return None
    try:
        user, _, password = base64.b64decode(text.strip(), validate=True).decode("utf-8").partition(":")
    except ValueError:
        return None
    run_id = password.partition(":")[0]
    return run_id if user == RUN_USER and re.fullmatch(r"[0-9a-f]{8,32}", run_id) else None


def _own_file(environ: Mapping[str, str], name: str, warnings: list[str]) -> Path | None:
    value = environ.get(name)
    path = user_file(value)
    if value and path is None:
        warnings.append(f"{name} names {value}, which cannot be read: the usual roots are used instead")
    return path


def no_proxy(environ: Mapping[str, str], hosts: Iterable[str]) -> tuple[str, list[str]]:
    """NO_PROXY with the loopback names added, and a warning for each entry that takes one of `hosts` away from us."""
    entries: dict[str, None] = {}
    for name in ("no_proxy", "NO_PROXY"):
        entries |= dict.fromkeys(e for e in re.split(r"[\s,]+", environ.get(name, "")) if e)
    names = [h for h in hosts if h not in LOOPBACK]
    warnings = [
        f"NO_PROXY has {entry!r}: calls there go past heliproxy and are not logged"
        for entry in entries
        if entry not in LOOPBACK and any(_covers(entry, host) for host in names)
    ]
    return ",".join(dict.fromkeys((*entries, *LOOPBACK))), warnings


def _covers(entry: str, host: str) -> bool:
    """Whether a NO_PROXY entry takes the host, or a host below it, away from the proxy."""
    name = re.sub(r":\d+$", "", entry.lower().removeprefix("*").lstrip("."))
    return not name or name == host or host.endswith("." + name) or name.endswith("." + host)


def _node_options(existing: str) -> str:
    # Node splits at spaces, and reads double quotes with backslash escapes.
    quoted = str(SHIMS / "node.cjs").replace("\\", "\\\\").replace('"', '\\"')
    ours = f'--require "{quoted}"'
    return existing if ours in existing else f"{existing} {ours}".strip()


def _with_path(existing: str, path: Path, *, first: bool) -> str:
    others = [p for p in existing.split(os.pathsep) if p != str(path)] if existing else []
    return os.pathsep.join([str(path), *others] if first else [*others, str(path)])


def _java_options(existing: str, port: int, store: Path) -> str:
    ours = {
        "http.proxyHost": "127.0.0.1",
        "http.proxyPort": str(port),
        "https.proxyHost": "127.0.0.1",
        "https.proxyPort": str(port),
        "http.nonProxyHosts": "localhost|127.*|[::1]",
        "javax.net.ssl.trustStore": str(store),
        "javax.net.ssl.trustStoreType": "PKCS12",
        "javax.net.ssl.trustStorePassword": "changeit",
    }
    kept = re.sub("|".join(rf"(?:^|\s)-D{re.escape(name)}=(?:\"[^\"]*\"|\S)*" for name in ours), "", existing)
    # The JVM splits at blanks and takes quotes, but knows no escapes.
    words = (f'-D{name}="{value}"' if re.search(r"\s", value) else f"-D{name}={value}" for name, value in ours.items())
    return " ".join((kept.strip(), *words)).strip()


def home_trust(home: Path) -> Trust:
    """The trust files of one home; its authority must exist."""
    from heliproxy import certs

    return Trust(
        bundle=lambda base: certs.bundle(home, base),
        extra=lambda extra: certs.extra_certs(home, extra),
        php_folder=lambda bundle: certs.php_folder(home, bundle),
        java_store=lambda bundle: certs.java_store(home, bundle),
    )


# ------------------------------------------------------------------------------------------------------------------
# Shells

SHELLS = ("bash", "zsh", "sh", "fish", "powershell")


def render(changes: Mapping[str, str | None], shell: str) -> str:
    """Return the lines that set (or, for None, unset) these variables in a shell; safe for any value.

    Raises:
        ValueError: unknown shell, or a name no shell would take.
    """
    if shell not in SHELLS:
        raise ValueError(f"unknown shell {shell!r}: expected {', '.join(SHELLS)}")
    lines = []
    for name, value in changes.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"{name!r} is not the name of a variable")
        lines.append(_line(name, value, shell))
    return "".join(f"{line}\n" for line in lines)


def _line(name: str, value: str | None, shell: str) -> str:
    if shell == "fish":
        if value is None:
            return f"set -e {name}"
        return "set -gx {} '{}'".format(name, value.replace("\\", "\\\\").replace("'", "\\'"))
    if shell == "powershell":
        if value is None:
            return f"Remove-Item Env:{name} -ErrorAction SilentlyContinue"
        # PowerShell takes typographic quotes for quotes as well.
        return "$env:{} = '{}'".format(name, re.sub("(['\u2018\u2019\u201a\u201b])", r"\1\1", value))
    if value is None:
        return f"unset {name}"
    return "export {}='{}'".format(name, value.replace("'", "'\\''"))


def original_env(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment as it was before `heliproxy env` was applied; the same when it was not."""
    saved = _saved(environ)
    kept = {k: v for k, v in environ.items() if k not in saved and k != SAVED}
    return kept | {k: v for k, v in saved.items() if v is not None}


def _saved(environ: Mapping[str, str]) -> dict[str, str | None]:
    try:
        saved = json.loads(environ.get(SAVED, "{}"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(saved, dict):
        return {}
    return {k: v for k, v in saved.items() if isinstance(k, str) and (v is None or isinstance(v, str))}


def session_changes(environ: Mapping[str, str], changes: Mapping[str, str]) -> dict[str, str | None]:
    """`changes` with what undoes them later."""
    before = original_env(environ)
    return {**changes, SAVED: json.dumps({name: before.get(name) for name in changes}, separators=(",", ":"))}


def session_undo(environ: Mapping[str, str]) -> dict[str, str | None]:
    """What puts back the variables that `session_changes` changed; empty when it was not applied."""
    saved = _saved(environ)
    return {**saved, SAVED: None} if SAVED in environ else {}


def guess_shell(environ: Mapping[str, str]) -> str:
    """The shell named by SHELL, or the one every system of this kind has."""
    name = environ.get("SHELL", "").rpartition("/")[2]
    if name in SHELLS:
        return name
    return "powershell" if os.name == "nt" and not name else "sh"


@click.command("env")
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True, help="Port of the proxy.")
@click.option("--shell", type=click.Choice(SHELLS), help="Shell to write for. [default: the one in $SHELL]")
@click.option("--unset", is_flag=True, help="Print the lines that put everything back.")
@click.option("--java", is_flag=True, help="Set JAVA_TOOL_OPTIONS too; every JVM then prints a line about it.")
@home_option
def env_command(port: int, shell: str | None, unset: bool, java: bool, home: Path) -> None:
    """Print the shell lines that send everything started in this session through a running `heliproxy serve`.

    \b
    eval "$(heliproxy env)"
    heliproxy env --shell fish | source
    heliproxy env --shell powershell | Out-String | Invoke-Expression
    eval "$(heliproxy env --unset)"
    """
    kind = shell or guess_shell(os.environ)
    if unset:
        click.echo(render(session_undo(os.environ), kind), nl=False)
        return
    from heliproxy.certs import ensure_ca
    from heliproxy.hosts import CA_HOSTS

    try:
        ensure_ca(home, CA_HOSTS)
        token, warning = _token_for(port)
        found = child_env(original_env(os.environ), port, home_trust(home), java=java, hosts=CA_HOSTS, token=token)
    except OSError as e:
        raise click.ClickException(str(e)) from e
    for text in (*found.warnings, *warning):
        click.echo(f"heliproxy: {text}", err=True)
    click.echo(render(session_changes(os.environ, found.changes), kind), nl=False)


def _token_for(port: int) -> tuple[str | None, tuple[str, ...]]:
    """The token that the proxy on this port asks for, if it does and we have it; and what to warn about."""
    if not _is_listening(port):
        return None, (f"nothing listens on port {port} yet: start `heliproxy serve`",)
    from heliproxy import attach

    token = os.environ.get(attach.TOKEN)
    missing = attach.lacks_token(port, token)
    if missing is not None:
        return None, (f"{missing}, and run this again",)
    return (token if token and attach.asks_for_token(port) else None), ()


def _is_listening(port: int) -> bool:
    import socket

    with socket.socket() as s:
        s.settimeout(0.5)
        return s.connect_ex(("127.0.0.1", port)) == 0
