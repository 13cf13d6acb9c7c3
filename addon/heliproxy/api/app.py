"""The app: every route in one table, behind one guard."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from heliproxy import __version__
from heliproxy.api import (
    datasets,
    evals,
    feedback,
    hooks,
    logs,
    metrics,
    models,
    pages,
    properties,
    requests,
    sessions,
    sql,
    unserved,
    users,
)
from heliproxy.api.endpoint import Api, Call, Endpoint, failure, run
from heliproxy.api.errors import ApiError
from heliproxy.api.guard import Guard
from heliproxy.api.openapi import document
from heliproxy.directives import PROPERTY_PREFIX
from heliproxy.policies.answers import error_body
from heliproxy.secrets import install_secret

if TYPE_CHECKING:
    from heliproxy.addon import Heliproxy

logger = logging.getLogger(__name__)

# Routes are tried in this order, and logs come most often.
ENDPOINTS: tuple[Endpoint, ...] = (
    *logs.ENDPOINTS,
    *requests.ENDPOINTS,
    *feedback.ENDPOINTS,
    *sessions.ENDPOINTS,
    *users.ENDPOINTS,
    *properties.ENDPOINTS,
    *metrics.ENDPOINTS,
    *evals.ENDPOINTS,
    *models.ENDPOINTS,
    *sql.ENDPOINTS,
    *datasets.ENDPOINTS,
    *hooks.ENDPOINTS,
)


WHERE_ELSE = (
    "the API's paths are in /openapi.json; "
    "on the proxy's port, base URLs for SDKs are /oai/v1 for OpenAI, /anthropic for Anthropic, /groq/openai/v1 and so"
    " on, /gateway with Helicone-Target-URL for any other, /ai-gateway/v1, and /ollama/v1 for a model on this machine"
)


def build(addon: Heliproxy) -> Starlette:
    secret = cache(lambda: install_secret(addon.settings.home))
    api = Api(addon, secret)
    app = Starlette(
        routes=[
            Route("/health", health),
            Route("/openapi.json", openapi_document),
            Route("/helicone/test", hello),
            *routes(api, ENDPOINTS),
            *pages.routes(addon),
            *unserved.routes(),
        ],
        middleware=[Middleware(Guard, token=lambda: api.token)],
        exception_handlers={
            ApiError: api_error,
            HTTPException: http_error,
            ClientDisconnect: disconnected,
            sqlite3.Error: database_error,
            Exception: unexpected,
        },
    )
    app.state.addon = addon
    app.state.api = api
    app.state.guard = Guard(app, token=lambda: api.token)
    return app


def routes(api: Api, endpoints: Sequence[Endpoint]) -> list[BaseRoute]:
    """One route a path, so that a wrong method is answered with all the right ones. Paths without parameters first."""
    by_path: dict[str, dict[str, Endpoint]] = {}
    for endpoint in endpoints:
        by_path.setdefault(endpoint.path, {})[endpoint.method] = endpoint
    ordered = sorted(by_path, key=lambda path: path.count("{"))
    return [Route(path, dispatcher(api, by_path[path]), methods=list(by_path[path])) for path in ordered]


def dispatcher(api: Api, methods: Mapping[str, Endpoint]) -> Callable[[Request], Any]:
    async def dispatch(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        return await run(methods[method], Call(api, request))

    return dispatch


WRONG = ("lost_rows", "lost_bodies", "errors", "hook_errors", "policy_errors", "away_since")
"""Facts that make the health "degraded" when they are not 0 or null."""


async def health(request: Request) -> Response:
    """What works and what was lost; 200 also when degraded, for the proxy itself goes on.

    Of several workers it gives the sums, and what each of them says. With `?flush=1` it answers once everything handed
    over before is committed (`flushed` true), or cannot be.
    """
    addon = request.app.state.addon
    flush = bool(request.query_params.get("flush"))
    if addon.services is not None:
        facts = await addon.services.all_facts(flush)
    else:
        flushed = {"flushed": await to_thread.run_sync(addon.recorder.flushed)} if flush else {}
        facts = addon.recorder.facts() | flushed
    healthy = facts["recorder"] == "running" and not any(facts.get(name) for name in WRONG)
    return JSONResponse({"status": "ok" if healthy else "degraded", "version": __version__, **facts})


async def openapi_document(request: Request) -> Response:  # noqa: ARG001 - Starlette's signature
    return JSONResponse(document(ENDPOINTS))


async def hello(request: Request) -> Response:
    """What Helicone's proxy hosts answer to those who want to know whether they get there."""
    start = len(PROPERTY_PREFIX)
    found = {name[start:]: value for name, value in request.headers.items() if name.startswith(PROPERTY_PREFIX)}
    return JSONResponse({"test": "Hello World!", "properties": found})


async def api_error(request: Request, error: Exception) -> Response:  # noqa: ARG001 - Starlette's signature
    assert isinstance(error, ApiError)
    return failure(error.message, error.status)


async def http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        # Who comes here is an SDK with a wrong base URL more often than a client of the API.
        message = f"there is no {request.method} {request.url.path[:200]} here; {WHERE_ELSE}"
        return JSONResponse({"data": None, **error_body(message, "not_found")}, 404)
    response = failure(error.detail, error.status_code)
    response.headers.update(error.headers or {})
    return response


async def disconnected(request: Request, error: Exception) -> Response:  # noqa: ARG001
    return Response(status_code=499)


async def database_error(request: Request, error: Exception) -> Response:
    logger.warning("%s %s: %s", request.method, request.url.path, error, exc_info=error)
    return failure(f"the database failed: {error}", 503)


async def unexpected(request: Request, error: Exception) -> Response:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return failure("an error in heliproxy; its log says more", 500)
