"""Webhooks: who is told of new requests. Delivery is in `heliproxy.webhooks`."""

from __future__ import annotations

import http.client
import json
import secrets
import uuid
from typing import Any

from anyio import to_thread

from heliproxy.api.endpoint import FLAG, NULL, TEXT, Call, Endpoint, a_list, an_object
from heliproxy.api.errors import bad, not_found
from heliproxy.api.objects import DELETE, get_object, list_objects, put_object
from heliproxy.settings import allowed_names
from heliproxy.webhooks import KIND, check_destination, hook_of, post

MAX_HOOKS = 50


async def create(call: Call) -> Any:
    fields = await call.fields()
    destination = fields.required_text("destination", limit=2000)
    try:
        check_destination(destination, allowed_names(call.api.addon.settings))
    except ValueError as e:
        raise bad(f"'destination': {e}") from e
    config = fields.object("config").values
    rate = config.get("sampleRate", 100)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 100:
        raise bad("'config.sampleRate' should be a percentage from 0 to 100")
    if len(await call.read(lambda conn: list_objects(conn, KIND))) >= MAX_HOOKS:
        raise bad(f"there are {MAX_HOOKS} webhooks already")
    hook_id = str(uuid.uuid4())
    value = {
        "destination": destination,
        "config": dict(config),
        "includeData": fields.flag("includeData") is not False,
        "hmac_key": secrets.token_hex(32),
        "version": "2025-04-03",
    }
    await call.write(lambda writer: put_object(writer, KIND, hook_id, value))
    return {"id": hook_id}


async def listed(call: Call) -> Any:
    return [
        {
            "id": one["id"],
            "created_at": one["created_at"],
            "destination": one["destination"],
            "version": one["version"],
            "config": json.dumps(one["config"]),
            "hmac_key": one["hmac_key"],
        }
        for one in await call.read(lambda conn: list_objects(conn, KIND))
    ]


async def the_hook(call: Call) -> dict[str, Any]:
    hook_id = call.path("webhookId")
    found = await call.read(lambda conn: get_object(conn, KIND, hook_id))
    if found is None:
        raise not_found("Webhook")
    return {**found, "id": hook_id}


async def delete(call: Call) -> Any:
    hook = await the_hook(call)
    await call.write(lambda writer: writer.write([(DELETE, (KIND, hook["id"]))]))


async def test(call: Call) -> Any:
    """Send one example, once, and say what came back."""
    hook = hook_of(await the_hook(call))
    request_id = str(uuid.uuid4())
    note = {
        "request_id": request_id,
        "request_body": "{}",
        "response_body": "{}",
        "properties": {},
        "test": True,
    }
    body = json.dumps(note).encode()
    try:
        status = await to_thread.run_sync(post, hook, body, request_id, allowed_names(call.api.addon.settings))
    except (OSError, http.client.HTTPException, ValueError) as e:
        return {"success": False, "message": f"{type(e).__name__}: {e}"}
    return {"success": 200 <= status < 300, "message": f"the destination answered {status}"}


HOOK = an_object(
    "id created_at destination version config hmac_key",
    id=TEXT,
    created_at=TEXT,
    destination=TEXT,
    version=TEXT,
    config=TEXT,
    hmac_key=TEXT,
)
ENDPOINTS = (
    Endpoint(
        "POST",
        "/v1/webhooks",
        create,
        "Create a webhook",
        an_object("destination config", destination=TEXT, config={"type": "object"}, includeData=FLAG),
        an_object("id", id=TEXT),
    ),
    Endpoint("GET", "/v1/webhooks", listed, "List webhooks", data=a_list(HOOK)),
    Endpoint("DELETE", "/v1/webhooks/{webhookId}", delete, "Delete a webhook", data=NULL),
    Endpoint(
        "POST",
        "/v1/webhooks/{webhookId}/test",
        test,
        "Send an example to a webhook",
        data=an_object("success message", success=FLAG, message=TEXT),
    ),
)
