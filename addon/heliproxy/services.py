"""What one running proxy owns besides its connections: the recorder with its database, prices, the API port."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from heliproxy.home import DATABASE_NAME, make_private_folder
from heliproxy.record import Pricing
from heliproxy.recorder import Recorder
from heliproxy.secrets import install_secret
from heliproxy.settings import Settings
from heliproxy.store import Store

if TYPE_CHECKING:
    import uvicorn

    from heliproxy.addon import Heliproxy

logger = logging.getLogger(__name__)


class ApiServer:
    """The dashboard and REST port: uvicorn in mitmproxy's own event loop.

    Raises:
        OSError: from `start`, when the port cannot be had.
    """

    def __init__(self, app: Any, host: str, port: int) -> None:
        self._app, self._host, self._port = app, host, port
        self._server: uvicorn.Server | None = None
        self._task: asyncio.Task[None] | None = None
        self.address: tuple[str, int] | None = None

    async def start(self) -> None:
        import uvicorn

        class Server(uvicorn.Server):
            @contextlib.contextmanager
            def capture_signals(self) -> Generator[None]:
                yield  # signals are the proxy's business

        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self._host, self._port))
        except OSError:
            listener.close()
            raise
        self.address = listener.getsockname()[:2]
        config = uvicorn.Config(
            self._app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1, server_header=False
        )
        self._server = Server(config)
        self._task = asyncio.get_running_loop().create_task(self._server.serve(sockets=[listener]))
        while not self._server.started and not self._task.done():
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        if self._server is not None and self._task is not None:
            self._server.should_exit = True
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self._task, 3)


class Services:
    """Opened when the proxy starts to run, closed when it is done."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.api: ApiServer | None = None
        self.api_error: str | None = None
        self.recorder: Recorder

    async def start(self, addon: Heliproxy) -> None:
        """Open the database and the API port.

        Raises:
            OSError: home cannot be made or read.
            Exception: the database is of a newer version, or cannot be opened at all.
        """
        home = self.settings.home
        make_private_folder(home)
        secret = install_secret(home)
        self.recorder = Recorder(Store(home / DATABASE_NAME).writer, lambda: _pricing(self.settings, secret))
        await asyncio.get_running_loop().run_in_executor(None, self.recorder.start)
        if self.settings.api_port is not None:
            await self._start_api(addon, self.settings.api_port)

    async def _start_api(self, addon: Heliproxy, port: int) -> None:
        from heliproxy.api import create_app

        self.api = ApiServer(create_app(addon), "127.0.0.1", port)
        try:
            await self.api.start()
        except OSError as e:
            self.api_error = f"the API port 127.0.0.1:{port} cannot be opened: {e.strerror}"
            self.api = None
            logger.warning("%s; the proxy works without dashboard and REST API", self.api_error)

    async def stop(self) -> None:
        if self.api is not None:
            await self.api.stop()
        await asyncio.get_running_loop().run_in_executor(None, self.recorder.close)


def open_services(settings: Settings) -> Services:
    return Services(settings)


def _pricing(settings: Settings, secret: bytes) -> Pricing:
    # Imported on the recorder's thread: the price table takes a third of a second that no request should wait for.
    from heliproxy.pricing import Prices
    from heliproxy.tokens import estimate

    return Pricing(Prices(settings.home), estimate, secret)
