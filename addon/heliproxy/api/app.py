"""The app: every route, in one list."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from heliproxy import __version__

if TYPE_CHECKING:
    from heliproxy.addon import Heliproxy


def build(addon: Heliproxy) -> Starlette:
    app = Starlette(routes=[Route("/health", health)], exception_handlers={HTTPException: http_error})
    app.state.addon = addon
    return app


async def health(request: Request) -> Response:
    """What works and what was lost; 200 also when degraded, for the proxy itself goes on."""
    recorder = request.app.state.addon.recorder
    counters = recorder.counters
    lost = counters.lost_rows + counters.lost_bodies
    return JSONResponse(
        {
            "status": "ok" if recorder.alive and not lost and not counters.errors else "degraded",
            "version": __version__,
            "rows": counters.rows,
            "lost_rows": counters.lost_rows,
            "lost_bodies": counters.lost_bodies,
            "errors": counters.errors,
            "last_error": counters.last_error,
        }
    )


async def http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"data": None, "error": error.detail}, error.status_code, error.headers)
