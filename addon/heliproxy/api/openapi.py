"""The OpenAPI document, made from the same table as the router."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from heliproxy import __version__
from heliproxy.api.endpoint import NULL, TEXT, Endpoint, Schema, an_object

ERROR = {
    "anyOf": [
        an_object("error", data=NULL, error={}),
        an_object("isValid errors", isValid={"type": "boolean"}, errors={"type": "array"}),  # of the typed log
    ]
}
FAILURE = {"description": "What was wrong", "content": {"application/json": {"schema": ERROR}}}
PARAMETER = re.compile(r"\{(\w+)\}")
HEALTH: dict[str, Any] = {
    "get": {
        "summary": "What works and what was lost",
        "operationId": "get_health",
        "responses": {
            "200": {
                "description": "OK",
                "content": {"application/json": {"schema": an_object("status version", status=TEXT, version=TEXT)}},
            }
        },
    }
}


def document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """OpenAPI 3.1. Operations we answer with 501 are not in it."""
    paths: dict[str, dict[str, Any]] = {"/health": HEALTH}
    for endpoint in endpoints:
        if endpoint.documented:
            paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {"title": "heliproxy", "version": __version__, "summary": "Helicone's REST API, served locally"},
        "paths": paths,
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def operation(endpoint: Endpoint) -> dict[str, Any]:
    found: dict[str, Any] = {
        "summary": endpoint.summary,
        "operationId": operation_id(endpoint),
        "responses": {
            str(endpoint.status): {
                "description": "OK",
                "content": {endpoint.media: {"schema": answer_schema(endpoint)}},
            },
            "4XX": FAILURE,
        },
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in PARAMETER.findall(endpoint.path)
    ]
    parameters += [{"name": name, "in": "query", "schema": schema} for name, schema in endpoint.query]
    if parameters:
        found["parameters"] = parameters
    if endpoint.body is not None:
        found["requestBody"] = {
            "required": endpoint.body_required,
            "content": {"application/json": {"schema": endpoint.body}},
        }
    return found


def operation_id(endpoint: Endpoint) -> str:
    words = re.sub(r"[^A-Za-z0-9]+", "_", endpoint.path).strip("_")
    return f"{endpoint.method.lower()}_{words}"


def answer_schema(endpoint: Endpoint) -> Schema:
    if endpoint.raw is not None:
        return endpoint.raw
    return an_object("data error", data=endpoint.data, error=NULL)
