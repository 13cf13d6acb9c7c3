"""What a handler is given, and how a route is described: the same table makes the router and the OpenAPI document."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from heliproxy.api.database import Database
from heliproxy.api.errors import ApiError
from heliproxy.api.fields import Fields, parse_json, read_body
from heliproxy.api.links import is_signed, signed_link
from heliproxy.api.pager import Pages

if TYPE_CHECKING:
    from heliproxy.addon import Heliproxy
    from heliproxy.recorder import Recorder
    from heliproxy.store import Writer


class Api:
    """What all handlers share. `clock`: Unix seconds."""

    def __init__(self, addon: Heliproxy, secret: Callable[[], bytes], clock: Callable[[], float] = time.time) -> None:
        from heliproxy.home import DATABASE_NAME

        self.addon = addon
        self.clock = clock
        self.secret = secret
        self.database = Database(addon.settings.home / DATABASE_NAME, lambda: addon.recorder)
        self.pages = Pages()
        self.downloads: dict[str, str] = {}
        """SQL of results to be fetched as CSV, by their unguessable name."""

    @property
    def recorder(self) -> Recorder:
        return self.addon.recorder

    @property
    def token(self) -> str | None:
        return self.addon.settings.token


class Call:
    """One request to the API."""

    def __init__(self, api: Api, request: Request) -> None:
        self.api = api
        self.request = request

    def path(self, name: str) -> str:
        return str(self.request.path_params[name])

    @property
    def origin(self) -> str:
        """Scheme and authority the client used, so that links we give work for it."""
        url = self.request.url
        return f"{url.scheme}://{url.netloc}"

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Header fields as text; bytes that are no UTF-8 come as surrogates."""
        return [(n.decode("latin-1"), v.decode("utf-8", "surrogateescape")) for n, v in self.request.headers.raw]

    async def body(self) -> bytes:
        return await read_body(self.request)

    async def json(self) -> Any:
        """The JSON body; None when there is none."""
        raw = await self.body()
        return parse_json(raw) if raw.strip() else None

    async def fields(self) -> Fields:
        """The JSON object of the body; empty when there is no body."""
        value = await self.json()
        if value is None:
            return Fields({})
        if not isinstance(value, dict):
            raise ApiError(422, "the body should be a JSON object")
        return Fields(value)

    async def read[T](self, job: Callable[[sqlite3.Connection], T]) -> T:
        return await self.api.database.read(job)

    async def write[T](self, job: Callable[[Writer], T]) -> T:
        return await self.api.database.write(job)

    def signed_url(self, path: str, thing: str) -> str:
        """A link that needs no other right than to be known, at the address the client used."""
        return signed_link(self.origin, self.api.secret(), path, thing)

    def check_signature(self, path: str) -> str:
        """The id a signed link is about. Raises ApiError(403)."""
        query = self.request.query_params
        thing = query.get("id", "")
        if not is_signed(self.api.secret(), path, thing, query.get("signature", "")):
            raise ApiError(403, "this link is not valid; ask for the request again to get a new one")
        return thing


Handler = Callable[[Call], Awaitable[Any]]
"""Gives a Response, or a value that is sent as `{"data": value, "error": null}`."""
Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One operation."""

    method: str
    path: str
    handler: Handler
    summary: str
    body: Schema | None = None
    """JSON schema of the request body."""
    data: Schema = field(default_factory=dict)
    """JSON schema of `data` in the answer."""
    raw: Schema | None = None
    """JSON schema of the whole answer, where it is no envelope."""
    status: int = 200
    query: tuple[tuple[str, Schema], ...] = ()
    media: str = "application/json"
    """Content type of the answer."""
    body_required: bool = True
    documented: bool = True


async def run(endpoint: Endpoint, call: Call) -> Response:
    """Call a handler and put what it gives into an envelope."""
    result = await endpoint.handler(call)
    if isinstance(result, Response):
        return result
    return envelope(result, endpoint.status)


def envelope(data: Any, status: int = 200) -> Response:
    return JSONResponse({"data": data, "error": None}, status)


def failure(message: str, status: int) -> Response:
    return JSONResponse({"data": None, "error": message}, status)


# -- schemas --------------------------------------------------------------------------------------------------------

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
INTEGER: Schema = {"type": "integer"}
FLAG: Schema = {"type": "boolean"}
ANY: Schema = {}
NULL: Schema = {"type": "null"}
FILTER: Schema = {
    "description": 'A filter: "all", {}, {left, operator, right} or {table: {column: {operator: value}}}.',
    "anyOf": [{"type": "string", "enum": ["all"]}, {"type": "object"}],
}
TIME_FILTER: Schema = {
    "type": "object",
    "properties": {"start": {"type": "string"}, "end": {"type": "string"}},
    "description": "Both ends are ISO 8601 times.",
}


def orders(*names: str) -> Schema:
    return {"type": "object", "properties": {name: {"enum": ["asc", "desc"]} for name in names}}


def an_object(required: str = "", /, **properties: Schema) -> Schema:
    """An object; `required` lists names, separated by spaces."""
    found: Schema = {"type": "object", "properties": properties}
    if required:
        found["required"] = required.split()
    return found


def a_list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, NULL]}
