"""Runs the proxy: headless with only the mitmproxy addons it needs, in a thread for `run`, or inside mitmweb."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mitmproxy import exceptions, options
from mitmproxy.proxy import mode_servers, mode_specs

from heliproxy.addon import Heliproxy
from heliproxy.certs import prepare
from heliproxy.colleagues import Colleagues
from heliproxy.dispatch import DirectDispatch
from heliproxy.early import OptionError, port_error
from heliproxy.early import StartError as StartError
from heliproxy.lean import Master, core, disable_h2c, next_layer, proxyserver, tlsconfig
from heliproxy.log_lines import log_to_stderr
from heliproxy.services import Services, open_services
from heliproxy.settings import Settings
from heliproxy.workers import BACKLOG

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

logger = logging.getLogger(__name__)

OPEN_FILES = 65536
"""As many may a proxy have open, where the system lets it."""


class HeadlessMaster(Master):
    """mitmproxy's core with the addons a forward proxy needs, and ours."""

    def __init__(self, opts: options.Options, heliproxy: Heliproxy, everything: bool = False) -> None:
        super().__init__(opts, with_termlog=False)
        self._legacy_log_events.uninstall()
        self.addons = DirectDispatch(self)
        chain: list[Any]
        if everything:
            from mitmproxy import addons as stock

            chain = [heliproxy, *stock.default_addons()]
        else:
            heliproxy.alone = True
            chain = [
                core.Core(),
                disable_h2c.DisableH2C(),
                heliproxy,
                proxyserver.Proxyserver(),
                next_layer.NextLayer(),
                tlsconfig.TlsConfig(),
            ]
        self.addons.add(*chain)


class Proxy:
    """One headless proxy in the running event loop; `listener` is a bound port to use instead of binding one.

    Raises:
        StartError: from `start`, when a port is taken or the database cannot be opened.
    """

    def __init__(self, settings: Settings, listener: socket.socket | None = None) -> None:
        self.settings = settings
        self._listener = listener
        self.addon = self._new_addon()
        self.master: HeadlessMaster | None = None
        self._task: asyncio.Task[None] | None = None

    def _new_addon(self) -> Heliproxy:
        return Heliproxy(self._open_services)

    def _open_services(self, found: Settings) -> Services:
        services = open_services(replace(found, worker=self.settings.worker, workers=self.settings.workers))
        services.api_needed = True
        return services

    async def start(self) -> None:
        opts = options.Options()
        known = {name.partition("=")[0] for name in self.settings.mitm_options}
        self.master = HeadlessMaster(opts, self.addon)
        if not all(name in opts for name in known):
            # An option of an addon we leave out: run with all of mitmproxy's.
            opts = options.Options()
            self.addon = self._new_addon()
            self.master = HeadlessMaster(opts, self.addon, everything=True)
        try:
            opts.update(**option_values(self.settings))
            opts.set(*self.settings.mitm_options)
        except (exceptions.OptionsError, ValueError, KeyError) as e:
            raise OptionError(f"--set: {e}") from e
        _tighten(self.settings.home / "ca" / "mitmproxy-dhparam.pem")
        server = self.master.addons.get("proxyserver")
        modes = [mode_specs.ProxyMode.parse(m) for m in opts.mode]
        log = logging.getLogger(proxyserver.__name__)
        errors = _Errors()
        log.addFilter(errors)
        try:
            if self._listener is not None:
                await _adopt(server, modes[0], self._listener, shared=self.settings.worker is not None)
            started = await server.servers.update(modes)
        finally:
            log.removeFilter(errors)
        if not started:
            raise StartError(_port_error(server, opts, errors.messages))
        _widen(server)
        self._task = asyncio.get_running_loop().create_task(self._run())
        await self._until_running()

    async def _until_running(self) -> None:
        assert self._task is not None
        while self.addon.services is None and self.addon.startup_error is None and not self._task.done():
            await asyncio.sleep(0.002)
        reason = self.addon.startup_error
        if reason is None and self.addon.services is not None:
            reason = self.addon.services.api_error
        if reason is not None or self._task.done():
            await self.stop()
            raise StartError(reason or "the proxy stopped while starting")

    async def _run(self) -> None:
        assert self.master is not None
        await self.master.run()

    @property
    def port(self) -> int:
        """The port really listened on."""
        assert self.master is not None
        addresses = self.master.addons.get("proxyserver").listen_addrs()
        return int(addresses[0][1])

    @property
    def api_port(self) -> int | None:
        services = self.addon.services
        return (
            services.api.address[1]
            if services is not None and services.api is not None and services.api.address
            else None
        )

    async def wait(self) -> None:
        """Return when the proxy has stopped."""
        assert self._task is not None
        await self._task

    async def stop(self) -> None:
        """Let exchanges under way end, write what is left, close all ports."""
        assert self.master is not None
        self.master.should_exit.set()
        if self._task is not None:
            await self._task
        await self.master.addons.get("proxyserver").servers.update([])


async def _adopt(
    server: proxyserver.Proxyserver, mode: mode_specs.ProxyMode, listener: socket.socket, *, shared: bool
) -> None:
    """Have mitmproxy serve a port that is bound already, for which it has no option: it keeps a server it finds.

    From a `shared` one it takes a single connection at a time, and leaves the next to a process that is less busy.
    """
    instance: Any = mode_servers.ServerInstance.make(mode, server)
    backlog = 1 if shared else BACKLOG
    instance._servers = [await asyncio.start_server(instance.handle_stream, sock=listener, backlog=backlog)]
    listener.listen(BACKLOG)
    server.servers._instances[mode] = instance


def _widen(server: proxyserver.Proxyserver) -> None:
    """Let more connections wait to be accepted than asyncio's hundred: more of them than that come at once."""
    for instance in server.servers:
        for listening in getattr(instance, "_servers", ()):
            for waiting in getattr(listening, "sockets", ()):
                with contextlib.suppress(AttributeError, OSError):
                    waiting._sock.listen(BACKLOG)


def _allow_many_files() -> None:
    """Raise this process's own bound of open files: each call under way has two."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _tighten(path: Path) -> None:
    """Make a file that mitmproxy has written, by the umask, its owner's alone."""
    with contextlib.suppress(OSError):
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)


class _Errors(logging.Filter):
    """Keeps the errors of a logger, so that they are not shown: one message says them, and with our options."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.ERROR:
            return True
        self.messages.append(record.getMessage())
        return False


def _port_error(server: proxyserver.Proxyserver, opts: options.Options, messages: Sequence[str]) -> str:
    for instance in server.servers:
        error, mode = instance.last_exception, instance.mode
        port = mode.listen_port(opts.listen_port)
        if isinstance(error, OSError) and port is not None:
            cause = error.__cause__  # without what mitmproxy says around it
            return port_error(mode.listen_host(opts.listen_host), port, cause if isinstance(cause, OSError) else error)
    return messages[0].splitlines()[0] if messages else "cannot listen, and mitmproxy does not say why"


def option_values(settings: Settings) -> dict[str, Any]:
    """The mitmproxy options one set of settings stands for.

    Raises:
        OSError: the CA cannot be made.
    """
    ca, trust = prepare(settings.home, tuple(settings.upstreams), settings.upstream_ca)
    values: dict[str, Any] = {
        "listen_host": settings.host,
        "listen_port": settings.port,
        "confdir": str(ca.folder),
        "upstream_cert": False,
        "connection_strategy": "lazy",
        "ssl_verify_upstream_trusted_ca": str(trust),
    }
    return values | heliproxy_options(settings)


def heliproxy_options(settings: Settings) -> dict[str, Any]:
    """The `heliproxy_*` options one set of settings stands for."""
    return {
        "heliproxy_home": str(settings.home),
        "heliproxy_api_port": -1 if settings.api_port is None else settings.api_port,
        "heliproxy_upstream": [f"{host}={u.origin}" for host, u in settings.upstreams.items()],
        "heliproxy_upstream_ca": str(settings.upstream_ca or ""),
        "heliproxy_default_header": list(settings.default_headers),
        "heliproxy_allow_target": list(settings.allowed_targets),
        "heliproxy_stream_usage": settings.stream_usage,
        "heliproxy_upstream_timeout": f"{settings.upstream_timeout:g}",
        "heliproxy_keep_days": _days(settings.retention.keep_days),
        "heliproxy_keep_bodies_days": _days(settings.retention.keep_bodies_days),
        "heliproxy_max_db_size": "" if settings.retention.max_bytes is None else str(settings.retention.max_bytes),
        "heliproxy_run_id": settings.run_id or "",
        "heliproxy_token": settings.token or "",
    }


def _days(days: float | None) -> str:
    return "" if days is None else f"{days:g}"


def quiet_logging(level: int = logging.WARNING) -> None:
    """Send warnings to stderr; mitmproxy's line for every connection and stream is left out."""
    log_to_stderr(level)
    logging.getLogger("mitmproxy").setLevel(logging.ERROR)


async def serve(settings: Settings, ready: Callable[[Proxy], None], listener: socket.socket | None = None) -> None:
    """Run a proxy until SIGTERM or SIGINT; a worker also ends with the process that watches over it.

    Raises:
        StartError: it cannot start.
    """
    _allow_many_files()
    proxy = Proxy(settings, listener)
    await proxy.start()
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    ready(proxy)
    if settings.worker is not None:
        await _meet(proxy, settings.worker, stopped.set)
    await stopped.wait()
    await proxy.stop()


async def _meet(proxy: Proxy, number: int, alone: Callable[[], object]) -> None:
    """Let the other workers ask how this one is, and this one's API ask them."""
    services = proxy.addon.services
    if services is None:
        return
    services.colleagues = Colleagues(number, services.own_facts, alone)
    await services.colleagues.listen()


class ProxyThread:
    """A headless proxy in a thread of its own: `with ProxyThread(settings) as proxy: proxy.port`.

    Raises:
        StartError: on entering, when the proxy cannot start.
    """

    def __init__(self, settings: Settings, listener: socket.socket | None = None) -> None:
        self._settings = settings
        self._listener = listener
        self._thread = threading.Thread(target=self._main, name="heliproxy", daemon=True)
        self._ready = threading.Event()
        self._error: Exception | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self.proxy: Proxy | None = None
        self.port = 0
        self.api_port: int | None = None

    def __enter__(self) -> ProxyThread:
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise self._error
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    @property
    def addon(self) -> Heliproxy:
        assert self.proxy is not None
        return self.proxy.addon

    def flush(self) -> None:
        """Return once every exchange finished so far is in the database."""
        self.addon.recorder.flush()

    def _main(self) -> None:
        asyncio.run(self._amain())

    async def _amain(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        proxy = Proxy(self._settings, self._listener)
        try:
            await proxy.start()
        except Exception as e:
            self._error = e if isinstance(e, StartError) else StartError(f"{type(e).__name__}: {e}")
            self._error.__cause__ = e
            self._ready.set()
            return
        self.proxy, self.port, self.api_port = proxy, proxy.port, proxy.api_port
        self._ready.set()
        await self._stop.wait()
        await proxy.stop()


def web(settings: Settings, arguments: Sequence[str] = ()) -> None:
    """Run mitmweb with our addon until it is stopped."""
    from mitmproxy.tools import main

    script = Path(__file__).parent / "shims" / "mitmproxy" / "script.py"
    values = option_values(settings)
    listen = ["--listen-host", values.pop("listen_host"), "--listen-port", str(values.pop("listen_port"))]
    pairs = [(name, item) for name, value in values.items() for item in (value if isinstance(value, list) else [value])]
    sets = [
        part
        for name, item in pairs
        for part in ("--set", f"{name}={str(item).lower() if isinstance(item, bool) else item}")
    ]
    extra = [part for item in settings.mitm_options for part in ("--set", item)]
    main.mitmweb(["-s", str(script), *listen, *sets, *extra, *arguments])
