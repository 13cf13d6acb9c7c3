"""The dashboard: server-rendered pages over the same queries as the command line and the REST API."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from heliproxy.api.pages import cachepage, groups, limits, login, overview, request, requests, sessions, sql, welcome
from heliproxy.api.pages.assets import Assets
from heliproxy.api.pages.context import Pages
from heliproxy.api.pages.live import Live
from heliproxy.api.pages.render import page
from heliproxy.migrations import SchemaError

if TYPE_CHECKING:
    from heliproxy.addon import Heliproxy

logger = logging.getLogger(__name__)

Handler = Callable[[Pages, Request], Response]

GET: tuple[tuple[str, Handler], ...] = (
    ("/", overview.overview),
    ("/requests", requests.requests),
    ("/requests.csv", requests.export_csv),
    ("/requests.json", requests.export_json),
    ("/requests/{request_id:path}/{side}.txt", request.body_text),
    ("/requests/{request_id:path}.json", request.request_json),
    ("/requests/{request_id:path}", request.request_page),
    ("/sessions", sessions.sessions),
    ("/sessions/{session_id:path}", sessions.session),
    ("/users", groups.users),
    ("/properties", groups.properties),
    ("/cache", cachepage.cache),
    ("/limits", limits.limits),
    ("/sql", sql.sql_page),
    ("/welcome", welcome.welcome),
    ("/login", login.form),
)


def routes(addon: Heliproxy) -> list[BaseRoute]:
    """The pages' routes for the app behind the API port, whose middleware checks host, origin and token."""

    def stopping() -> bool:
        services = addon.services
        return services is None or services.api is None or bool(getattr(services.api, "stopping", False))

    settings = addon.settings
    return page_routes(
        Pages(
            settings.home,
            recorder=lambda: addon.services.recorder if addon.services is not None else None,
            stopping=stopping,
            proxy_port=settings.port,
            token=lambda: addon.settings.token,
        )
    )


def page_routes(pages: Pages) -> list[BaseRoute]:
    """The routes over one home folder, with or without a running proxy."""
    found: list[BaseRoute] = [Route(path, guarded(pages, handler)) for path, handler in GET]
    found.append(Route("/cache/clear", guarded(pages, cachepage.clear), methods=["POST"]))
    found.append(Route("/login", login.Login(pages).__call__, methods=["POST"]))
    found.append(Route("/live", Live(pages).__call__))
    found.append(Mount("/static", Assets()))
    return found


def guarded(pages: Pages, handler: Handler) -> Callable[[Request], Response]:
    """The handler as an endpoint, run on a thread; a database that cannot be read becomes a page that says so."""

    def endpoint(request: Request) -> Response:
        try:
            return handler(pages, request)
        except FileNotFoundError:
            return welcome.welcome(pages, request)
        except (SchemaError, sqlite3.Error, OSError) as e:
            logger.warning("%s cannot be shown: %s", request.url.path, e)
            return page(request, "error.html", 503, title="The log cannot be read", text=str(e))

    return endpoint
