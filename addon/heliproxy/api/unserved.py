"""What Helicone's cloud has and we have not: answered 501 by name, never sent on to a cloud."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from heliproxy.api.endpoint import failure

AREAS = {
    "/v1/prompt-2025": "stored prompts",
    "/v2/prompt-2025": "stored prompts",
    "/v1/prompt": "stored prompts",
    "/v1/experiment": "experiments",
    "/v2/experiment": "experiments",
    "/v1/evaluator": "evaluators",
    "/v1/api-keys": "key management (any key is accepted)",
    "/v1/vault": "the key vault",
    "/v1/stripe": "billing",
    "/v1/credits": "credits",
    "/v1/integration": "integrations",
    "/v1/organization": "organizations",
    "/v1/playground": "the playground",
    "/v1/agent": "the agent",
    "/v1/wrapped": "the yearly review",
    "/v1/public/security": "prompt security as a service",
    "/v1/public/status": "provider status",
    "/v1/public/compare": "model comparison",
    "/v1/public/pi": "the device dashboard",
    "/v1/pi": "the device dashboard",
    "/v1/test": "gateway tests",
    "/v1/admin": "administration",
    "/v1/alert": "alerts (see `heliproxy budget`)",
    "/v1/slack": "Slack",
    "/v1/waitlist": "waiting lists",
    "/alerts": "alerts (see `heliproxy budget`)",
    "/alert": "alerts (see `heliproxy budget`)",
    "/api/graphql": "GraphQL",
    "/v1/request/{requestId}/assets": "assets",
}
"""Beginning of a path -> what lies there."""
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


async def not_here(request: Request) -> Response:
    area = AREAS[request.scope["unserved"]]
    return failure(f"{request.method} {request.url.path[:200]}: heliproxy does not have {area}", 501)


def routes() -> list[BaseRoute]:
    found: list[BaseRoute] = []
    for prefix in AREAS:

        async def answer(request: Request, prefix: str = prefix) -> Response:
            request.scope["unserved"] = prefix
            return await not_here(request)

        found.append(Route(prefix, answer, methods=METHODS))
        found.append(Route(prefix + "/{rest:path}", answer, methods=METHODS))
    return found
