"""`heliproxy doctor`: everything that can keep calls from being logged, looked at one by one, each with its cure."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from heliproxy.home import DATABASE_NAME, PRICES_DATE_NAME, PRICES_STALE_DAYS
from heliproxy.options import home_option

MIB = 1024 * 1024
TIGHT_BYTES, FULL_BYTES = 1024 * MIB, 100 * MIB
"""Free space below which is warned, and below which rows will soon be lost."""
SKEW = timedelta(minutes=5)
OLDEST_CLOCK = datetime(2025, 1, 1, tzinfo=UTC)
"""Before this program was written; a machine that shows such a date has lost its clock."""
LOSSES = ("lost_rows", "lost_bodies", "lost_calls", "damaged_files", "errors", "hook_errors", "policy_errors")
LAST_ERRORS = ("last_error", "last_hook_error", "last_policy_error")
MARKS = {"ok": "ok  ", "warning": "warn", "failure": "FAIL", "skipped": "-   "}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    area: str
    level: str
    """ok, warning, failure or skipped."""
    detail: str
    cure: str = ""
    """What to do about it; empty when nothing is wrong."""


@click.command("doctor")
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True, help="Port of the proxy.")
@click.option("--api-port", type=click.IntRange(1, 65535), default=8585, show_default=True, help="Port of the API.")
@click.option("--quick", is_flag=True, help="Leave out the handshakes, which start every runtime found.")
@click.option("--format", "-f", "form", type=click.Choice(("table", "json")), default="table", show_default=True)
@home_option
def doctor_command(port: int, api_port: int, quick: bool, form: str, home: Path) -> None:
    """Check certificates, ports, database, disk, clock, prices and proxy settings, and let every runtime call once.

    Exits with 1 when something is broken; what to do is said below each line.

    \b
    heliproxy doctor
    heliproxy doctor --quick -f json
    """
    findings = list(examine(home, port, api_port, os.environ, datetime.now(UTC)))
    if not quick:
        findings += handshakes(home, os.environ)
    broken = any(f.level == "failure" for f in findings)
    if form == "json":
        click.echo(json.dumps({"schema_version": 1, "ok": not broken, "findings": [asdict(f) for f in findings]}))
    else:
        for line in report(findings):
            click.echo(line)
    sys.exit(1 if broken else 0)


def report(findings: Iterable[Finding]) -> Iterator[str]:
    """The findings as lines, each cure below what it cures."""
    for found in findings:
        yield f"{MARKS[found.level]}  {found.area:<12} {found.detail}"
        if found.cure:
            yield f"{'':<19}-> {found.cure}"


def examine(home: Path, port: int, api_port: int, environ: Mapping[str, str], now: datetime) -> Iterator[Finding]:
    """Everything that can be seen without starting a program."""
    yield home_folder(home)
    yield from authority(home, now)
    yield from bundles(home)
    yield from ports(port, api_port)
    yield from token_asked(port, environ)
    yield from database(home)
    yield from set_aside(home)
    yield disk_space(home)
    yield clock(home, now)
    yield price_age(home, now.date())
    yield from proxy_settings(environ, port)
    yield from company_proxy(environ, port)


# ------------------------------------------------------------------------------------------------------------------
# Files


def home_folder(home: Path) -> Finding:
    """Whether the home can be written, and by nobody else."""
    if not home.exists():
        parent = next(p for p in home.absolute().parents if p.exists())
        if os.access(parent, os.W_OK | os.X_OK):
            return Finding("home", "ok", f"{home} (made on first use)")
        return Finding("home", "failure", f"{home} cannot be made in {parent}", "set HELIPROXY_HOME to another folder")
    if not home.is_dir() or not os.access(home, os.W_OK | os.X_OK):
        return Finding("home", "failure", f"{home} cannot be written", "chown it to you, or set HELIPROXY_HOME")
    if home.stat().st_mode & 0o022:
        return Finding("home", "warning", f"{home} can be written by others", f"chmod 700 '{home}'")
    return Finding("home", "ok", str(home))


def authority(home: Path, now: datetime) -> Iterator[Finding]:
    """Whether the certificate authority is there, private, valid now, and for all hosts we know."""
    from heliproxy import certs
    from heliproxy.hosts import CA_HOSTS

    paths = certs.ca_paths(home)
    if not paths.key_and_cert.exists():
        yield Finding("authority", "ok", "none yet; the first `run` or `serve` makes it")
        return
    for path, allowed in ((paths.folder, 0o700), (paths.key_and_cert, 0o600)):
        mode = path.stat().st_mode & 0o777
        if mode & ~allowed:
            cure = f"chmod {allowed:o} '{path}'; if others use this machine: heliproxy certs rotate"
            yield Finding("authority", "failure", f"{path} has mode {mode:04o}, open to others", cure)
    renew = "heliproxy certs rotate, then restart `heliproxy serve`"
    try:
        facts = certs.read_authority(home)
    except (OSError, ValueError) as e:
        yield Finding("authority", "failure", f"{paths.key_and_cert} cannot be read: {e}", renew)
        return
    until = f"{facts.not_after:%Y-%m-%d}"
    if now > facts.not_after:
        yield Finding("authority", "failure", f"expired on {until}", "start `heliproxy serve` or `run`, which renew it")
    elif now < facts.not_before:
        yield Finding("authority", "failure", f"valid only from {facts.not_before:%Y-%m-%d}", "set the clock right")
    elif facts.not_after - now < certs.RENEW_WITHIN:
        yield Finding("authority", "ok", f"valid until {until}; the next start renews it")
    elif not facts.is_ours:
        yield Finding("authority", "ok", f"your own, valid until {until}")
    elif not facts.hosts:
        yield Finding("authority", "warning", "not limited to LLM hosts: a stolen key could sign for any", renew)
    elif certs.minimal_hosts((*facts.hosts, *CA_HOSTS)) != certs.minimal_hosts(facts.hosts):
        yield Finding("authority", "ok", f"valid until {until}; the next start adds hosts that are new")
    else:
        yield Finding("authority", "ok", f"valid until {until}, for {len(facts.hosts)} domains and nothing else")


def bundles(home: Path) -> Iterator[Finding]:
    """Whether every trust file handed out so far holds the certificate that is in use now."""
    from heliproxy import certs

    ours = certs.ca_paths(home).cert
    made = sorted((home / certs.BUNDLE_FOLDER).glob("*.pem"))
    files = [path for path in made if not path.name.startswith("upstream-")]
    if not files or not ours.exists():
        yield Finding("bundles", "ok", "none yet; made when first needed")
        return
    wanted = certs.pem_keys(ours.read_bytes())
    stale = [path for path in files if not wanted <= certs.pem_keys(path.read_bytes())]
    for path in stale:
        cure = 'open a new `heliproxy run`, or eval "$(heliproxy env)" again'
        yield Finding("bundles", "warning", f"{path.name} lacks the certificate now in use", cure)
    if not stale:
        yield Finding("bundles", "ok", f"{len(files)} with the certificate in use")


def database(home: Path) -> Iterator[Finding]:
    """Whether the database is sound, can be written, and is only ours to read."""
    path = home / DATABASE_NAME
    if not path.exists():
        yield Finding("database", "ok", "none yet; the first logged call makes it")
        return
    if path.stat().st_mode & 0o077:
        yield Finding("database", "warning", f"{path} can be read by others", f"chmod 600 '{path}'")
    size = sum(p.stat().st_size for p in home.glob(DATABASE_NAME + "*"))
    restore = f"stop heliproxy, move {path} away, and restore a copy or start afresh"
    try:
        with closing(sqlite3.connect(path, timeout=2)) as conn:
            answer = conn.execute("PRAGMA quick_check(1)").fetchone()[0]
            if answer != "ok":
                yield Finding("database", "failure", f"{path} is damaged: {answer}", restore)
                return
            rows = conn.execute("SELECT count(*) FROM requests").fetchone()[0]
            conn.execute("BEGIN IMMEDIATE")
            conn.rollback()
    except sqlite3.DatabaseError as e:
        locked = "locked" in str(e)
        cure = (
            "end the program that holds it (an open editor?)" if locked else f"check its mode and the disk; {restore}"
        )
        yield Finding("database", "failure", f"{path}: {e}", cure)
        return
    yield Finding("database", "ok", f"{rows:,} requests, {size / MIB:,.1f} MiB, sound")


def set_aside(home: Path) -> Iterator[Finding]:
    """Files that were found damaged and renamed."""
    for path in sorted(home.glob("*.db.corrupt-*")):
        if not path.name.endswith(("-wal", "-shm")):
            cure = f"what is left of it: sqlite3 '{path}' .recover; then delete it"
            yield Finding("database", "warning", f"{path.name} was damaged, and a new file was begun", cure)


def disk_space(home: Path) -> Finding:
    """Whether there is room for more rows."""
    folder = next(p for p in (home.absolute(), *home.absolute().parents) if p.exists())
    free = shutil.disk_usage(folder).free
    text = f"{free / MIB:,.0f} MiB free"
    cure = "free some space, or move the home to another disk (HELIPROXY_HOME)"
    if free < FULL_BYTES:
        return Finding("disk", "failure", text, cure)
    return Finding("disk", "warning", text, cure) if free < TIGHT_BYTES else Finding("disk", "ok", text)


def clock(home: Path, now: datetime) -> Finding:
    """Whether the clock agrees with what was written here earlier; rate limits, prices and certificates need it."""
    cure = "set the clock right (timedatectl set-ntp true)"
    if now < OLDEST_CLOCK:
        return Finding("clock", "failure", f"it shows {now:%Y-%m-%d}", cure)
    newest = _newest_row(home / DATABASE_NAME)
    if newest is not None and newest > now + SKEW:
        return Finding("clock", "failure", f"the newest row is from {newest:%Y-%m-%d %H:%M} UTC, the future", cure)
    return Finding("clock", "ok", f"{now:%Y-%m-%d %H:%M} UTC")


def _newest_row(path: Path) -> datetime | None:
    if not path.exists():
        return None
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as conn:
            # By rowid: the last one written, whatever its time says. Imported rows may bring times of their own.
            sql = "SELECT created_at FROM requests WHERE source = 'proxy' ORDER BY rowid DESC LIMIT 1"
            row = conn.execute(sql).fetchone()
            return datetime.fromisoformat(row[0]) if row else None
    except (sqlite3.DatabaseError, ValueError, TypeError):
        return None  # `database` says what is wrong


def price_age(home: Path, today: date) -> Finding:
    """How old the price data last used here is."""
    try:
        made = date.fromisoformat((home / PRICES_DATE_NAME).read_text("ascii").strip())
    except (OSError, ValueError):
        return Finding("prices", "ok", "not used yet")
    days = (today - made).days
    if days > PRICES_STALE_DAYS:
        return Finding("prices", "warning", f"of {made}, {days} days old", "heliproxy prices update")
    return Finding("prices", "ok", f"of {made}")


# ------------------------------------------------------------------------------------------------------------------
# Ports


def ports(port: int, api_port: int) -> Iterator[Finding]:
    """Whether both ports are free, or held by a heliproxy; and what that one has lost."""
    for area, number, option in (("proxy port", port, "--port"), ("API port", api_port, "--api-port")):
        if not is_listening(number):
            yield Finding(area, "ok", f"{number} is free: no heliproxy serves there")
            continue
        facts = health(number)
        if facts is None:
            cure = f"end that program, or start heliproxy with {option} and another number"
            yield Finding(area, "failure", f"{number} is taken by another program", cure)
            continue
        workers = facts.get("workers") or ()
        by = f" with {len(workers)} workers" if workers else ""
        yield Finding(area, "ok", f"heliproxy {facts.get('version')} serves on {number}{by}")
        if area == "proxy port":
            yield losses(facts)


def token_asked(port: int, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Whether this shell has the token that a running proxy asks for, and sends it."""
    from heliproxy import attach
    from heliproxy.environment import original_env

    if not is_listening(port) or health(port) is None or not attach.asks_for_token(port):
        return
    missing = attach.lacks_token(port, environ.get(attach.TOKEN))
    if missing is not None:
        problem, _, cure = missing.rpartition(": ")
        yield Finding("token", "failure", problem, cure)
        return
    session = environ.get("HTTPS_PROXY", "")
    ours = session.endswith(f":{port}") and original_env(environ).get("HTTPS_PROXY") != session
    if ours and attach.lacks_token(port, _password(session)) is not None:
        cure = 'eval "$(heliproxy env)" again, with HELIPROXY_TOKEN set'
        yield Finding("token", "failure", "HTTPS_PROXY of this shell lacks the token that the proxy asks for", cure)
        return
    yield Finding("token", "ok", f"the proxy on {port} asks for it, and {attach.TOKEN} is it")


def _password(url: str) -> str | None:
    from urllib.parse import unquote, urlsplit

    try:
        return unquote(urlsplit(url).password or "") or None
    except ValueError:
        return None


def losses(facts: Mapping[str, Any]) -> Finding:
    """What a running proxy counted as lost since it started."""
    lost = [f"{facts[k]:,} {k.replace('_', ' ')}" for k in LOSSES if facts.get(k)]
    workers = [w for w in facts.get("workers") or () if w.get("recorder") != "running"]
    if workers:
        said = {"silent": "does not answer"}
        lost[:0] = [f"worker {w.get('worker')} {said.get(str(w.get('recorder')), 'is not running')}" for w in workers]
    elif facts.get("recorder") == "stopped":
        lost.insert(0, "the recorder has stopped")
    if facts.get("away_since"):
        waiting = facts.get("unwritten", 0)
        lost.insert(0, f"nothing could be written since {facts['away_since']}, {waiting:,} rows wait in memory")
    last = next((facts[k] for k in LAST_ERRORS if facts.get(k)), None)
    if lost and last:
        lost.append(f"the last: {str(last)[:200]}")
    if not lost:
        return Finding("losses", "ok", f"none in {facts.get('rows', 0):,} rows since it started")
    cure = "its log says why (disk full? database locked?); restart it when that is solved"
    return Finding("losses", "failure", ", ".join(lost), cure)


def is_listening(port: int) -> bool:
    """Whether something accepts connections on this loopback port."""
    with socket.socket() as s:
        s.settimeout(0.5)
        return s.connect_ex(("127.0.0.1", port)) == 0


def health(port: int, seconds: float = 3.0, *, flush: bool = False) -> dict[str, Any] | None:
    """What a heliproxy on this loopback port says about itself, with `flush` after all it has is written; None when it
    is none."""
    import http.client

    conn = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        conn.request("GET", "/health?flush=1" if flush else "/health")
        facts = json.loads(conn.getresponse().read(MIB))
    except (OSError, ValueError, RecursionError, http.client.HTTPException):
        return None
    finally:
        conn.close()
    return facts if isinstance(facts, dict) and "recorder" in facts else None


# ------------------------------------------------------------------------------------------------------------------
# The environment


def proxy_settings(environ: Mapping[str, str], port: int) -> Iterator[Finding]:
    """Variables that lead calls past the proxy, or to certificates that are not there."""
    from heliproxy.environment import ADDING_VARIABLES, REPLACING_VARIABLES, no_proxy, original_env
    from heliproxy.hosts import CA_HOSTS

    before = original_env(environ)
    traps = no_proxy(before, CA_HOSTS)[1]
    for warning in traps:
        yield Finding("NO_PROXY", "failure", warning, "take that entry out of NO_PROXY and no_proxy")
    if not traps:
        yield Finding("NO_PROXY", "ok", "no exception for an LLM host")
    names = (*REPLACING_VARIABLES, *ADDING_VARIABLES)
    missing = [n for n in names if environ.get(n) and not os.access(environ[n], os.R_OK)]
    for name in missing:
        yield Finding("trust", "failure", f"{name} names {environ[name]}, which cannot be read", f"unset {name}")
    if not missing:
        yield Finding("trust", "ok", "every certificate file that a variable names can be read")
    if environ.get("NODE_TLS_REJECT_UNAUTHORIZED") == "0":
        text = "NODE_TLS_REJECT_UNAUTHORIZED=0 turns off certificate checks in Node"
        yield Finding("trust", "warning", text, "unset NODE_TLS_REJECT_UNAUTHORIZED; heliproxy does not need it")
    yield from session(environ, before, port)


def session(environ: Mapping[str, str], before: Mapping[str, str], port: int) -> Iterator[Finding]:
    """Whether this shell's programs go through a proxy of ours; `before` is what it had before `heliproxy env`."""
    named = environ.get("HTTPS_PROXY") or environ.get("https_proxy") or ""
    ours = before.get("HTTPS_PROXY") != environ.get("HTTPS_PROXY")
    if not is_listening(port):
        if ours and named.endswith(f":{port}"):
            cure = 'heliproxy serve, or eval "$(heliproxy env --unset)"'
            shown = named.rpartition("@")[2].removeprefix("http://")  # without a token
            text = f"this shell sends its traffic to http://{shown}, where nothing listens"
            yield Finding("session", "failure", text, cure)
    elif not ours and not named.rstrip("/").endswith(f":{port}"):
        # No failure: a client with a base URL needs none of it. But it is the first reason for an empty log.
        cure = f'eval "$(heliproxy env --port {port})", `heliproxy run`, or a base URL'
        yield Finding("session", "skipped", "what is started in this shell does not go through the proxy", cure)


def company_proxy(environ: Mapping[str, str], port: int) -> Iterator[Finding]:
    """Whether the proxy that was set before ours, if any, can be chained and reached."""
    from heliproxy.chain import chain_of
    from heliproxy.environment import original_env

    try:
        chain = chain_of(original_env(environ), port)
    except ValueError as e:
        yield Finding("company", "failure", str(e), "name an http proxy in HELIPROXY_UPSTREAM_PROXY, or leave it empty")
        return
    for hop in dict.fromkeys(hop for hop in (chain.https, chain.http) if hop is not None) if chain else ():
        name = f"{hop.scheme}://{hop.host}:{hop.port}"
        try:
            socket.create_connection((hop.host, hop.port), timeout=3).close()
        except OSError as e:
            cure = "unset HTTPS_PROXY and HTTP_PROXY when you are outside its network"
            yield Finding("company", "failure", f"the proxy {name} cannot be reached: {e}", cure)
        else:
            yield Finding("company", "ok", f"calls go on through {name}")


# ------------------------------------------------------------------------------------------------------------------
# Handshakes

_CURES = {
    "untrusted": "certs/README.md names the variable it reads; something clears or overrides it here",
    "bypassed": "it ignores proxy variables here; give its programs a base URL, http://127.0.0.1:8080/oai/v1",
    "failed": "run it by hand: heliproxy run -- ...",
}


def handshakes(home: Path, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Whether each runtime on this machine finds a proxy of ours and trusts it."""
    from heliproxy.handshakes import shake_hands
    from heliproxy.serve import StartError
    from heliproxy.settings import Settings

    try:
        shakes = shake_hands(Settings(home=home), environ)
    except (OSError, StartError) as e:
        yield Finding("handshake", "failure", f"no proxy can be started: {e}", "solve what is said above first")
        return
    for shake in shakes:
        if shake.result == "absent":
            yield Finding(shake.runtime, "skipped", "not installed")
        elif shake.result == "ok":
            yield Finding(shake.runtime, "ok", f"{shake.detail} calls through the proxy and trusts it")
        else:
            yield Finding(shake.runtime, "failure", f"{shake.result}: {shake.detail}", _CURES[shake.result])
