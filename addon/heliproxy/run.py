"""`heliproxy run -- COMMAND`: a program with a proxy of its own, and what it cost.

The program keeps this process's terminal, process group, stdin and stdout. All we say goes to stderr, after it ended.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import secrets
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import click

from heliproxy.options import proxy_options

if TYPE_CHECKING:
    from heliproxy.serve import ProxyThread
    from heliproxy.settings import Settings

NOT_FOUND = 127
NOT_EXECUTABLE = 126
LONG_SECONDS = 5.0
"""A program that ran for so long without any call may have made them past the proxy; a shorter one just made none."""

FORWARDED = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGINT", "SIGQUIT")
    if hasattr(signal, name)
)
FROM_KEYBOARD = {"SIGINT", "SIGQUIT"}
"""The terminal sends these to the whole process group, so the program already has them."""


@click.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@proxy_options(port=0, api_port=None, shared=False)
@click.option("--quiet", "-q", is_flag=True, help="Print no summary.")
@click.option(
    "--summary-file", type=click.Path(path_type=Path, dir_okay=False), help="Write the summary there as JSON."
)
@click.option(
    "--java", is_flag=True, help="Set JAVA_TOOL_OPTIONS, as is done anyway for java, mvn, gradle and the like."
)
@click.option(
    "--attach", is_flag=True, help="Use the `heliproxy serve` that is running on --port (8080), not a proxy of its own."
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run_command(
    settings: Settings, quiet: bool, summary_file: Path | None, java: bool, attach: bool, command: tuple[str, ...]
) -> None:
    """Run COMMAND with its LLM calls going through a proxy made for it; print on stderr what they cost.

    Exits with COMMAND's own status (127: not found, 126: not executable, 128+n: ended by signal n).

    \b
    heliproxy run -- python app.py
    heliproxy run --default-header 'Helicone-Property-App: ci' -- pytest
    """
    try:
        if attach:
            _refuse_options_of_serve(settings)
        status = run(settings, command, quiet=quiet, summary_file=summary_file, java=java, attach=attach)
    except OSError as e:
        raise click.ClickException(str(e)) from e
    _leave(status)


def run(
    settings: Settings,
    command: Sequence[str],
    *,
    quiet: bool = False,
    summary_file: Path | None = None,
    java: bool = False,
    attach: bool = False,
) -> int:
    """Run the command through a proxy of its own, or one that is running, and return the exit status to pass on.

    Raises:
        OSError: no trust file or summary can be written.
        click.ClickException: the proxy cannot start.
    """
    program = find_program(command[0], os.environ)
    if isinstance(program, int):
        reason = "command not found" if program == NOT_FOUND else "not executable"
        click.echo(f"heliproxy: {command[0]}: {reason}", err=True)
        return program

    from heliproxy import environment
    from heliproxy.hosts import CA_HOSTS

    run_id = secrets.token_hex(4)
    name = Path(command[0]).name
    before = environment.original_env(os.environ)
    with held_log() as log, _proxy(settings, run_id, attach) as proxy:
        found = environment.child_env(
            before,
            proxy.port,
            environment.home_trust(settings.home),
            run_id=run_id,
            java=java or name in environment.JAVA_COMMANDS,
            hosts=CA_HOSTS,
            attached=attach,
        )
        _say([f"heliproxy: {w}" for w in found.warnings])
        begun = time.monotonic()
        status = supervise(program, command, before | found.changes, proxy.start)
        took = time.monotonic() - begun
    if quiet and summary_file is None:
        return status
    refused, passed_on = proxy.troubles()
    facts = summary(settings.home, run_id)
    if summary_file is not None:
        from heliproxy.home import make_private_file
        from heliproxy.secrets import redact_argument

        shown = [redact_argument(one) for one in command]
        facts_out = {**facts, "command": shown, "exit_status": status, "refused": dict(refused)}
        make_private_file(summary_file)
        summary_file.write_text(json.dumps(facts_out, indent=2) + "\n", encoding="utf-8")
    if not quiet:
        _say([*log, *summary_lines(facts), *trouble_lines(facts, refused, name, passed_on, found.warnings, took)])
    return status


def _leave(status: int) -> NoReturn:
    """End at once. All is written; taking Python down takes time, and a thread may still be importing."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


# ------------------------------------------------------------------------------------------------------------------
# The proxy


class _Running(Protocol):
    """The proxy that a program uses."""

    port: int

    def start(self, child: int) -> None:
        """Do what is left to do once the program runs."""

    def troubles(self) -> tuple[Counter[str], int]:
        """Hosts whose certificate was refused, with how often; and how many calls to known hosts there were."""


class _Own:
    """A proxy of this run alone that runs before the program does."""

    def __init__(self, thread: ProxyThread) -> None:
        self._thread = thread
        self.port = thread.port

    def start(self, child: int) -> None:
        """Nothing is left to do."""

    def troubles(self) -> tuple[Counter[str], int]:
        return Counter(self._thread.addon.refused), sum(self._thread.addon.seen.values())


class _Shared:
    """A `heliproxy serve` that was there before, and stays."""

    def __init__(self, port: int) -> None:
        self.port = port

    def start(self, child: int) -> None:
        """Nothing is left to do."""

    def troubles(self) -> tuple[Counter[str], int]:
        """Nothing: what others do cannot be told from what this run does."""
        return Counter(), 0


@contextmanager
def _proxy(settings: Settings, run_id: str, attach: bool) -> Iterator[_Running]:
    if attach:
        from heliproxy import attach as attaching

        port = settings.port or attaching.PORT
        attaching.check(settings.home, port)
        yield _Shared(port)
        attaching.wait_written(port)
        return
    from heliproxy import early

    own = replace(settings, run_id=run_id)
    try:
        if early.suits(own):
            with early.EarlyProxy(own) as proxy:
                yield proxy
            return
        from heliproxy.serve import ProxyThread

        with ProxyThread(own) as thread:
            yield _Own(thread)
    except early.OptionError as e:
        raise click.UsageError(str(e)) from e
    except early.StartError as e:
        raise click.ClickException(str(e)) from e


def _refuse_options_of_serve(settings: Settings) -> None:
    given = {
        "--upstream": settings.upstreams,
        "--upstream-ca": settings.upstream_ca,
        "--set": settings.mitm_options,
        "--default-header": settings.default_headers,
        "--allow-target": settings.allowed_targets,
        "--stream-usage": settings.stream_usage,
        "--api-port": settings.api_port is not None,
    }
    for option, value in given.items():
        if value:
            raise click.UsageError(f"{option} is for the proxy that is running: give it to `heliproxy serve`")


# ------------------------------------------------------------------------------------------------------------------
# The program


def find_program(name: str, environ: Mapping[str, str]) -> str | int:
    """The file a shell would run for this name, or the exit status it would give instead."""
    found = shutil.which(name, path=environ.get("PATH"))
    if found is not None:
        return found
    if os.sep in name:
        exists = Path(name).exists()
    else:
        exists = any((Path(d) / name).is_file() for d in environ.get("PATH", "").split(os.pathsep) if d)
    return NOT_EXECUTABLE if exists else NOT_FOUND


def supervise(
    program: str, command: Sequence[str], env: Mapping[str, str], started: Callable[[int], None] = lambda _: None
) -> int:
    """Run the program in the foreground, passing signals on and stopping when it stops; return its exit status.

    `started` is called with the program's process id, where there is one.
    """
    if os.name == "nt":
        import subprocess

        return subprocess.call(list(command), executable=program, env=dict(env))
    child = 0
    early: list[int] = []

    def forward(number: int, _frame: Any) -> None:
        if signal.Signals(number).name in FROM_KEYBOARD and _in_foreground():
            return
        if child:
            _kill(child, number)
        else:
            early.append(number)

    with handled(FORWARDED, forward), handled((signal.SIGTSTP,), lambda *_: None):
        try:
            child = spawn(program, command, env)
        except OSError as e:
            click.echo(f"heliproxy: {command[0]}: {e.strerror}", err=True)
            return NOT_FOUND if e.errno == errno.ENOENT else NOT_EXECUTABLE
        for number in early:
            _kill(child, number)
        started(child)
        return _wait(child)


def spawn(program: str, command: Sequence[str], env: Mapping[str, str]) -> int:
    """Start the program in our process group and return its process id. Raises OSError."""
    # Python ignores these itself; a program must find them as a shell would have left them.
    defaults = [getattr(signal, n) for n in ("SIGPIPE", "SIGXFSZ") if hasattr(signal, n)]
    try:
        return os.posix_spawn(program, list(command), env, setsigdef=defaults)
    except OSError as e:
        if e.errno != errno.ENOEXEC:
            raise
        # A script without a #! line: shells run it themselves.
        return os.posix_spawn("/bin/sh", ["sh", program, *command[1:]], env, setsigdef=defaults)


def _wait(child: int) -> int:
    while True:
        _, status = os.waitpid(child, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            # Ctrl-Z stopped the program: stop as well, or the shell would not take the terminal back.
            _stop_with(os.WSTOPSIG(status))
            _kill(child, signal.SIGCONT)
        elif os.WIFSIGNALED(status):
            return 128 + os.WTERMSIG(status)
        else:
            return os.WEXITSTATUS(status)


def _stop_with(number: int) -> None:
    if number not in (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
        os.kill(os.getpid(), signal.SIGSTOP)
        return
    previous = signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    signal.signal(number, previous)


def _kill(child: int, number: int) -> None:
    try:
        os.kill(child, number)
    except ProcessLookupError:
        pass  # it ended just now; waitpid tells how


def _in_foreground() -> bool:
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


@contextmanager
def handled(numbers: Sequence[int], handler: Any) -> Iterator[None]:
    """Handle these signals for a while; those ignored when we were started (nohup) stay ignored."""
    previous = {n: signal.getsignal(n) for n in numbers}
    taken = [n for n, h in previous.items() if h is not signal.SIG_IGN]
    for number in taken:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, previous[number])


# ------------------------------------------------------------------------------------------------------------------
# The summary


@contextmanager
def held_log() -> Iterator[list[str]]:
    """Collect warnings instead of printing them into the program's screen; each one once."""
    lines: dict[str, None] = {}

    class Held(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            from heliproxy.log_lines import log_line

            if len(lines) < 20:
                lines[log_line(record)] = None

    handler = Held(logging.WARNING)
    logging.getLogger("mitmproxy").setLevel(logging.CRITICAL)
    logging.getLogger().addHandler(handler)
    collected: list[str] = []
    try:
        yield collected
    finally:
        logging.getLogger().removeHandler(handler)
        collected += lines


def summary(home: Path, run_id: str) -> dict[str, Any]:
    """Read what one run did, as plain values: totals, and `models` as a list, dearest first."""
    from heliproxy import queries
    from heliproxy.filters import Filters
    from heliproxy.home import DATABASE_NAME
    from heliproxy.rounding import without_noise
    from heliproxy.store import open_reader

    conn = open_reader(home / DATABASE_NAME)
    try:
        found = queries.costs(conn, ("model",), Filters(runs=(run_id,)))
    finally:
        conn.close()
    total = found.total
    facts = {
        "run_id": run_id,
        "requests": total.requests,
        "cached": total.hits,
        "failed": total.errors,
        "cancelled": total.aborted,
        "input_tokens": total.input_tokens,
        "output_tokens": total.output_tokens,
        "estimated": total.estimated,
        "unpriced": total.unpriced,
        "lost": found.lost,
        "cost_usd": total.cost_usd,
        "saved_usd": total.saved_usd,
        "models": [
            {"model": line.key[0], "requests": line.requests, "cost_usd": without_noise(line.cost_usd)}
            for line in found.lines
        ],
    }
    return {name: without_noise(value) for name, value in facts.items()}


def money(usd: float | None) -> str:
    """Dollars with cents, or with as many digits as a small amount needs."""
    if usd is None:
        return "unknown"
    if usd == 0:
        return "$0"
    if abs(usd) >= 1:
        return f"${usd:,.2f}"
    return f"${usd:.4f}" if abs(usd) >= 0.001 else f"${usd:.2g}" if abs(usd) >= 0.0001 else f"${usd:.8f}".rstrip("0")


def summary_lines(facts: Mapping[str, Any], most: int = 8) -> list[str]:
    """The summary as printed; empty when nothing was logged."""
    if not facts["requests"]:
        return []
    parts = [_count(facts["requests"], "request")]
    parts += [f"{facts[name]:,} {name}" for name in ("cached", "failed", "cancelled") if facts[name]]
    parts += [f"{facts[name] or 0:,} {word}" for name, word in (("input_tokens", "in"), ("output_tokens", "out"))]
    parts.append(money(facts["cost_usd"]))
    saved = f"   (saved {money(facts['saved_usd'])})" if facts["saved_usd"] else ""
    lines = ["", f"── {' · '.join(parts)}{saved}"]
    shown = [(str(row["model"] or "(no model)"), row) for row in facts["models"][:most]]
    width = max(len(name) for name, _ in shown)
    lines += [f"   {name:<{width}}  {row['requests']:>5,}   {money(row['cost_usd'])}" for name, row in shown]
    if len(facts["models"]) > most:
        lines.append(f"   and {len(facts['models']) - most} more")
    if facts["unpriced"]:
        lines.append(f"   cost unknown for {_count(facts['unpriced'], 'request')}")
    if facts.get("lost"):
        from heliproxy.report import lost_words

        lines.append(f"   cost unknown for {lost_words(facts['lost'])}")
    if facts["estimated"]:
        lines.append(f"   tokens estimated for {_count(facts['estimated'], 'request')}")
    lines.append(f"   details: heliproxy requests --run {facts['run_id']}")
    return lines


def trouble_lines(
    facts: Mapping[str, Any],
    refused: Mapping[str, int],
    program: str,
    passed_on: int,
    warnings: Sequence[str],
    seconds: float,
) -> list[str]:
    """Why calls may be missing: certificates refused, or nothing seen of a program that ran for `seconds`."""
    lines = [
        f"heliproxy: {host} was refused by the program {_count(times, 'time')}: it does not trust our certificate."
        f" {trust_hint(program)}"
        for host, times in sorted(refused.items())
    ]
    if facts["requests"] or refused:
        return lines
    if passed_on:
        return ["heliproxy: the program reached an LLM provider, but made no call that is logged"]
    if seconds < LONG_SECONDS:
        return ["heliproxy: no LLM calls logged"]
    reason = "see the warning about NO_PROXY above" if any("NO_PROXY" in w for w in warnings) else bypass_hint(program)
    return [f"heliproxy: no LLM calls logged; if the program made any, {reason}"]


def trust_hint(program: str) -> str:
    """Which variable the runtime of this program reads its certificates from."""
    match runtime(program):
        case "python":
            return "Python clients read SSL_CERT_FILE or REQUESTS_CA_BUNDLE; does the program set its own?"
        case "node":
            return "Node reads NODE_EXTRA_CA_CERTS, once, at its start; does something clear it on the way?"
        case "java":
            return "Java reads -Djavax.net.ssl.trustStore; does the program set its own?"
        case _:
            return "It may carry roots of its own; a base URL works without: see certs/README.md"


def bypass_hint(program: str) -> str:
    """The likely reason why the calls of this program went past the proxy."""
    match runtime(program):
        case "python":
            return "it may use urllib3 or http.client directly, which ignore proxies: give it a base URL instead"
        case "node":
            return "its HTTP client may ignore HTTPS_PROXY, or NODE_OPTIONS was cleared: give it a base URL instead"
        case "php":
            return "PHP streams ignore proxies (curl does not): give it a base URL instead"
        case "java":
            return "its HTTP client may ignore -Dhttps.proxyHost: give it a base URL instead"
        case _:
            return "it may ignore HTTPS_PROXY (for Java: add --java): give it a base URL instead"


def runtime(program: str) -> str:
    """A guess from the program's file name: python, node, php, java or other."""
    from heliproxy.environment import JAVA_COMMANDS

    stem = program.lower().removesuffix(".exe")
    if stem in JAVA_COMMANDS:
        return "java"
    if stem.startswith(("python", "pypy", "pytest", "uv", "ipython", "jupyter", "pip", "flask", "uvicorn")):
        return "python"
    if stem in {"node", "nodejs", "npm", "npx", "pnpm", "yarn", "tsx", "ts-node"}:
        return "node"
    return "php" if stem.startswith("php") or stem == "composer" else "other"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _say(lines: Sequence[str]) -> None:
    try:
        for line in lines:
            click.echo(line, err=True)
    except OSError:
        pass  # the terminal is gone; the rows are in the database
