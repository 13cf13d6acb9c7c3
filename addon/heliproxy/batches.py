"""The results of an Anthropic batch: one download that holds many answers, each a call of its own.

`GET /v1/messages/batches/{id}/results` is JSON lines: `{"custom_id": ..., "result": {"type": "succeeded", "message":
{...}}}`. A result's row has an id made of the batch and its custom id, so that a second download changes nothing.
Source: Anthropic's Message Batches API.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from heliproxy.exchange import Exchange

MAX_RESULTS = 100_000
"""A batch holds at most this many requests."""
_JSON = ((b"content-type", b"application/json"),)


def results(exchange: Exchange) -> Iterator[Exchange]:
    """The calls in a downloaded results file, as exchanges that are over; what was never run makes none."""
    lines = bytes(exchange.sink.head).splitlines() if exchange.sink is not None else []
    for line in lines[:MAX_RESULTS]:
        found = _read(line)
        if found is not None:
            yield _call(exchange, *found)


def _read(line: bytes) -> tuple[str, int, Any] | None:
    """(custom id, status, body) of one line; None when it is none, or its request was cancelled or expired."""
    try:
        value = json.loads(line)
        kind, custom_id = value["result"]["type"], str(value["custom_id"])
        if kind == "succeeded":
            return custom_id, 200, value["result"]["message"]
        if kind == "errored":
            return custom_id, 500, value["result"]["error"]
    except (ValueError, RecursionError, LookupError, TypeError):
        pass
    return None


def _call(exchange: Exchange, custom_id: str, status: int, body: Any) -> Exchange:
    path = exchange.path.partition("?")[0]
    data = json.dumps(body).encode()
    return replace(
        exchange,
        id=str(uuid.uuid5(uuid.NAMESPACE_URL, f"https://{exchange.route.host}{path}#{custom_id}")),
        route=replace(exchange.route, format="anthropic_messages", inference=True),
        status=status,
        response_headers=_JSON,
        chunks=[data],
        size_response=len(data),
        first_byte=None,
        ended=exchange.started,
        properties={**exchange.properties, "batch_custom_id": custom_id[:1024]},
        logged=True,
        after=[],
        sink=None,
        ask=None,
    )
