"""What one running proxy owns besides its connections: the recorder with its database, prices, the API port."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
import sqlite3
import ssl
import urllib.error
import urllib.request
from collections.abc import Generator
from functools import partial
from typing import TYPE_CHECKING, Any

from heliproxy.colleagues import Colleagues, together
from heliproxy.direct_read import answers_first
from heliproxy.faults import Faults
from heliproxy.gates import Gates
from heliproxy.heap import give_back
from heliproxy.home import DATABASE_NAME, PRICES_DATE_NAME, make_private_file, make_private_folder
from heliproxy.log_handover import LogHandover
from heliproxy.record import Pricing
from heliproxy.recorder import Recorder
from heliproxy.rollup_thread import Filler
from heliproxy.secrets import install_secret
from heliproxy.settings import Settings, allowed_names
from heliproxy.store import Store, settle
from heliproxy.webhooks import Webhooks, open_webhooks

if TYPE_CHECKING:
    import uvicorn

    from heliproxy.addon import Heliproxy
    from heliproxy.housekeeping import Keeper

logger = logging.getLogger(__name__)


class LazyApp:
    """The ASGI app of the API, made at its first request: importing it takes longer than starting the proxy."""

    def __init__(self, addon: Heliproxy) -> None:
        self._addon = addon
        self._app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.made()(scope, receive, send)

    def made(self) -> Any:
        """The Starlette app itself."""
        if self._app is None:
            from heliproxy.api import create_app

            self._app = create_app(self._addon)
            keep_for_good()
        return self._app

    @property
    def state(self) -> Any:
        """What the app was made with."""
        return self.made().state

    def close(self) -> None:
        """Close what the app has kept open."""
        if self._app is not None:
            self._app.state.api.database.close()


class ApiServer:
    """The dashboard and REST port: uvicorn in mitmproxy's own event loop.

    Raises:
        OSError: from `start`, when the port cannot be had.
    """

    def __init__(self, app: LazyApp, host: str, port: int) -> None:
        self._app, self._host, self._port = app, host, port
        self._listener: socket.socket
        self._server: uvicorn.Server | None = None
        self._task: asyncio.Task[None] | None = None
        self.address: tuple[str, int] | None = None

    async def start(self) -> None:
        """Open the port. What serves it is imported at the first connection: a proxy may never be asked here."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind((self._host, self._port))
            self._listener.listen()
        except OSError:
            self._listener.close()
            raise
        self.address = self._listener.getsockname()[:2]
        try:
            asyncio.get_running_loop().add_reader(self._listener, self._serve)
        except NotImplementedError:  # Windows
            self._serve()

    def _serve(self) -> None:
        import uvicorn

        from heliproxy.api.wire import protocol_for

        class Server(uvicorn.Server):
            @contextlib.contextmanager
            def capture_signals(self) -> Generator[None]:
                yield  # signals are the proxy's business

        loop = asyncio.get_running_loop()
        with contextlib.suppress(NotImplementedError):
            loop.remove_reader(self._listener)
        config = uvicorn.Config(
            self._app,
            http=protocol_for(self._app.made),
            ws="none",
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
            server_header=False,
        )
        self._server = Server(config)
        self._task = loop.create_task(self._server.serve(sockets=[self._listener]))

    def take_back(self, sock: socket.socket, brought: bytes) -> None:
        """Serve a connection that the process beside this one has had; from any thread."""
        loop = self._task.get_loop() if self._task is not None else None
        if loop is None or self.stopping:
            sock.close()
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(lambda: loop.create_task(self._adopt(sock, brought)))

    async def _adopt(self, sock: socket.socket, brought: bytes) -> None:
        assert self._server is not None
        config = self._server.config
        protocol: Any = config.http_protocol_class(  # type: ignore[call-arg]
            config=config, server_state=self._server.server_state, app_state={}, _loop=asyncio.get_running_loop()
        )
        protocol.brought = brought
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, sock)
        except OSError:
            sock.close()

    @property
    def stopping(self) -> bool:
        """Whether the port is being closed; streams of live events then end by themselves."""
        return self._server is not None and self._server.should_exit

    async def stop(self) -> None:
        if self._server is not None and self._task is not None:
            self._server.should_exit = True
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self._task, 3)
        elif self.address is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()


class Services:
    """Opened when the proxy starts to run, closed when it is done."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.api: ApiServer | None = None
        self.api_error: str | None = None
        self.api_needed = False
        """Whether a proxy without its API port is of no use; whoever says so looks at `api_error`."""
        self.recorder: Recorder
        self.gates: Gates
        self.app: Any = None
        self.logs: LogHandover
        self.webhooks: Webhooks
        self.keeper: Keeper | None = None
        self.faults = Faults()
        self.colleagues: Colleagues | None = None
        """The other processes that serve the same port, if any."""

    def facts(self) -> dict[str, Any]:
        """Failures of hooks and policies so far, as `/health` says them."""
        return self.faults.facts() | self.gates.state.facts()

    async def own_facts(self, flush: bool) -> dict[str, Any]:
        """Everything `/health` says of this process; with `flush` once everything handed over before is committed."""
        flushed = {}
        if flush:
            flushed["flushed"] = await asyncio.get_running_loop().run_in_executor(None, self.recorder.flushed)
        return self.recorder.facts() | self.facts() | {"pid": os.getpid()} | flushed

    async def all_facts(self, flush: bool) -> dict[str, Any]:
        """As `own_facts`, of all processes that serve the port together."""
        if self.colleagues is None:
            return await self.own_facts(flush)
        own, others = await asyncio.gather(self.own_facts(flush), self.colleagues.ask(flush))
        return together({"worker": self.colleagues.number} | own, others, self.settings.workers)

    async def start(self, addon: Heliproxy) -> None:
        """Open the database and the API port.

        Raises:
            OSError: home cannot be made or read.
            Exception: the database is of a newer version, or cannot be opened at all.
        """
        home = self.settings.home
        make_private_folder(home)
        give_back()
        self.faults.install()
        secret = install_secret(home)
        self.recorder = Recorder(Store(home / DATABASE_NAME).writer, lambda: _pricing(self.settings, secret))
        await asyncio.get_running_loop().run_in_executor(None, self.recorder.start)
        self.recorder.courtesy.watch(asyncio.get_running_loop(), answers_first)
        self.gates = Gates(home, secret, partial(post, self.settings), self.settings.stream_usage)
        self.app = LazyApp(addon)
        self.logs = LogHandover(home, lambda: addon.settings.token, self.recorder)
        self.recorder.beside = self.logs
        if self.settings.api_port is not None:
            await self._start_api(self.settings.api_port)
        origin = "http://{}:{}".format(*(self.api.address if self.api and self.api.address else ("127.0.0.1", 8585)))
        self.webhooks = open_webhooks(home / DATABASE_NAME, secret, origin, allowed_names(self.settings))
        self.webhooks.attach(self.recorder)
        self.filler = Filler(home / DATABASE_NAME)
        if self.settings.worker:
            return  # the first worker does what is done once for the database
        self.filler.start()
        if self.settings.retention:
            from heliproxy.housekeeping import Keeper

            self.keeper = Keeper(home / DATABASE_NAME, self.settings.retention)
            self.keeper.start()

    async def _start_api(self, port: int) -> None:
        self.api = ApiServer(self.app, "127.0.0.1", port)
        self.logs.take_back = self.api.take_back
        try:
            await self.api.start()
        except OSError as e:
            from heliproxy.early import port_error

            loop = asyncio.get_running_loop()
            self.api_error = await loop.run_in_executor(None, port_error, "127.0.0.1", port, e, "--api-port")
            self.api = None
            if not self.api_needed:
                logger.warning("%s; the proxy works without dashboard and REST API", self.api_error)

    async def stop(self) -> None:
        if self.api is not None:
            await self.api.stop()
        loop = asyncio.get_running_loop()
        self.recorder.courtesy.unwatch()
        if self.keeper is not None:
            await loop.run_in_executor(None, self.keeper.stop)
        await loop.run_in_executor(None, self.logs.close)
        await loop.run_in_executor(None, self.recorder.close)
        await loop.run_in_executor(None, self.webhooks.close)
        await loop.run_in_executor(None, self.filler.close)
        self.app.close()
        self.gates.close()
        self.faults.uninstall()
        with contextlib.suppress(sqlite3.Error):
            await loop.run_in_executor(None, settle, self.settings.home / DATABASE_NAME)


def open_services(settings: Settings) -> Services:
    return Services(settings)


def _pricing(settings: Settings, secret: bytes) -> Pricing:
    # Imported on the recorder's thread, once the proxy has started or a row wants a price.
    from heliproxy.pricing import Prices
    from heliproxy.tokens import estimate

    prices = Prices(settings.home)
    if prices.snapshot_date is not None:
        with contextlib.suppress(OSError):  # a full disk is no reason not to price
            make_private_file(settings.home / PRICES_DATE_NAME)
            (settings.home / PRICES_DATE_NAME).write_text(prices.snapshot_date.isoformat(), "ascii")
    keep_for_good()
    return Pricing(prices, estimate, secret)


def keep_for_good() -> None:
    """Have Python's collector leave everything alone that exists now; it costs nothing.

    Code, prices and routes live as long as the process. To look through them all takes a full collection some 60 ms,
    in which nothing moves; and those come oftener the more is logged.
    """
    gc.freeze()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The call carries a key, which is for this host and no other."""

    def redirect_request(self, *_: Any) -> None:
        return None


def post(settings: Settings, url: str, headers: list[tuple[str, str]], body: bytes) -> tuple[int, bytes]:
    """Make one side call (moderation), with the operator's redirection of the host honoured; blocks.

    Raises:
        OSError: no answer came.
    """
    from heliproxy.certs import upstream_trust

    host = url.split("/")[2]
    upstream = settings.upstreams.get(host)
    if upstream is not None:
        url = upstream.origin + "/" + url.split("/", 3)[3]
    request = urllib.request.Request(url, body, dict(headers), method="POST")  # noqa: S310 - the URL is ours
    chain = settings.chain
    behind = {"https": chain.url} if chain is not None and chain.hop("https", request.host, 443) is not None else {}
    handlers: list[Any] = [urllib.request.ProxyHandler(behind), _NoRedirects]
    if url.startswith("https:"):
        trust = upstream_trust(settings.home, settings.upstream_ca)
        handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=str(trust))))
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=30) as response:
            return response.status, response.read(1 << 20)
    except urllib.error.HTTPError as e:
        with e:
            return e.code, e.read(1 << 20)
