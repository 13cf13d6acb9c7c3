"""A proxy whose port takes connections before it runs, so that a program can start while the proxy still does.

Importing mitmproxy takes longer than most programs need to get to their first call. The port is bound and all that can
be expected to fail is tried first; then the program starts, and a thread brings up the proxy. Connections wait in the
port's queue until then. A program that ends without having connected waits for nothing.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import threading
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from heliproxy.home import DATABASE_NAME

if TYPE_CHECKING:
    from heliproxy.serve import ProxyThread
    from heliproxy.settings import Settings

QUEUE = 128
"""Connections that may wait while the proxy starts."""
ASK_SECONDS = 1.0
"""How long whatever holds a port may take to say that it is a heliproxy."""
GRACE_SECONDS = 3.0
"""How long a program may take to end by itself when its proxy could not start."""


class StartError(Exception):
    """The proxy cannot start; the message says why and what to do."""


class OptionError(StartError):
    """An option was given a value that cannot be used; the message names both."""


def suits(settings: Settings) -> bool:
    """Whether these settings can be judged without mitmproxy, and all the proxy opens is its one port."""
    return os.name == "posix" and not settings.mitm_options and settings.api_port is None


def check(settings: Settings) -> None:
    """Try what is known to keep proxies from starting; makes the files that a proxy needs.

    Raises:
        StartError: the settings or the database are unusable.
        OSError: home cannot be written, a file of certificates cannot be read.
    """
    import sqlite3

    from heliproxy.certs import prepare
    from heliproxy.migrations import SchemaError
    from heliproxy.policies.defaults import default_headers
    from heliproxy.store import Store

    prepare(settings.home, tuple(settings.upstreams), settings.upstream_ca)
    try:
        default_headers(settings)
        Store(settings.home / DATABASE_NAME).writer().close()
    except ValueError as e:
        raise OptionError(f"--default-header: {e}") from e
    except (SchemaError, sqlite3.Error) as e:
        raise StartError(str(e)) from e


def listen(host: str, port: int) -> socket.socket:
    """Bind a port (0: a free one). Connections are accepted by the system, and wait.

    Raises:
        StartError: it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(QUEUE)
        listener.setblocking(False)
    except OSError as e:
        listener.close()
        raise StartError(port_error(host, port, e)) from e
    return listener


def port_error(host: str, port: int, error: OSError, option: str = "--port") -> str:
    """Say why a port cannot be had, and what holds it when that is a heliproxy; asks there, so it blocks."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    where = f"cannot listen on {address}"
    if error.errno == errno.EADDRINUSE and port:
        from heliproxy.doctor import health

        if health(port, ASK_SECONDS) is not None:
            return (
                f"{where}: another heliproxy serves there; use it (`heliproxy run --attach`, `heliproxy env`), stop it,"
                f" or choose another {option}"
            )
    number = error.errno or 0  # negative for a name that leads nowhere
    reason = os.strerror(number) if number > 0 else error.strerror or str(error)
    return f"{where}: {reason}; another {option} may be free"


class EarlyProxy:
    """A proxy for one program: `with EarlyProxy(settings) as proxy:` binds `proxy.port`, `proxy.start(child)` runs it.

    Raises:
        StartError, OSError: on entering as `check` and `listen`; on leaving StartError, when the proxy failed to start
            after all. The program was ended then.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._importing = True
        """Nothing is open yet but the port; leaving may drop the rest. Changed under the lock."""
        self._dropped = False
        self._over = threading.Event()
        self._error: StartError | None = None
        self._proxy: ProxyThread | None = None
        self._thread: threading.Thread | None = None
        self._listener: socket.socket
        self.port = 0

    def __enter__(self) -> EarlyProxy:
        check(self._settings)
        self._listener = listen(self._settings.host, self._settings.port)
        self.port = int(self._listener.getsockname()[1])
        return self

    def start(self, child: int) -> None:
        """Bring up the proxy in a thread; should it fail, end the process `child`, which cannot do without."""
        self._thread = threading.Thread(target=self._start, args=(child,), name="heliproxy-start", daemon=True)
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        with self._lock:
            self._dropped = self._thread is None or (self._importing and not self._is_asked())
        if not self._dropped and self._thread is not None:
            self._thread.join()
        if self._proxy is not None:
            self._proxy.__exit__(*exc)
        self._listener.close()
        if self._error is not None:
            raise self._error

    def troubles(self) -> tuple[Counter[str], int]:
        """Hosts whose certificate was refused, with how often; and how many calls to known hosts there were."""
        if self._proxy is None:
            return Counter(), 0
        return Counter(self._proxy.addon.refused), sum(self._proxy.addon.seen.values())

    def _is_asked(self) -> bool:
        """Whether a connection waits, be it closed by now."""
        return bool(select.select([self._listener], [], [], 0)[0])

    def _start(self, child: int) -> None:
        try:
            from heliproxy.serve import ProxyThread

            with self._lock:
                if self._dropped:
                    return
                self._importing = False
            proxy = ProxyThread(replace(self._settings, port=self.port), self._listener)
            proxy.__enter__()
            self._proxy = proxy
        except Exception as e:
            with self._lock:
                if self._dropped:
                    return
                self._importing = False
                self._error = e if isinstance(e, StartError) else StartError(f"{type(e).__name__}: {e}")
                self._listener.close()
            self._end(child)

    def _end(self, child: int) -> None:
        for number in (signal.SIGTERM, signal.SIGCONT, signal.SIGKILL):
            if number == signal.SIGKILL and self._over.wait(GRACE_SECONDS):
                return
            try:
                os.kill(child, number)
            except ProcessLookupError:
                return
