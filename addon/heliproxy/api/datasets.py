"""Datasets: named sets of requests whose bodies may be edited (helicone-api.md section 1.7)."""

from __future__ import annotations

import sqlite3
import uuid
from typing import Any

from starlette.responses import JSONResponse, Response

from heliproxy.api.endpoint import ANY, INTEGER, NULL, TEXT, Call, Endpoint, a_list, an_object
from heliproxy.api.errors import bad, not_found
from heliproxy.api.fields import page
from heliproxy.api.links import DATASET_BODY_PATH as BODY_PATH
from heliproxy.api.objects import DELETE, DELETE_BELOW, below, get_object, list_objects, put_object, put_objects
from heliproxy.api.rows import bodies_of
from heliproxy.bodies import read_body
from heliproxy.store import Writer

KIND = "dataset"
ROW = "dataset-row"
"""Ids: dataset, slash, row."""
MAX_REQUESTS = 10_000
ROWS = "FROM objects WHERE kind = ? AND id >= ? AND id < ?"


async def create(call: Call) -> Any:
    fields = await call.fields()
    name = fields.required_text("datasetName", limit=200)
    ids = fields.texts("requestIds", most=MAX_REQUESTS)
    meta = fields.object("meta").values
    dataset_id = str(uuid.uuid4())
    value = {"name": name, "dataset_type": "helicone", "meta": dict(meta) or None}
    rows = await new_rows(call, dataset_id, ids)

    def store(writer: Writer) -> None:
        put_object(writer, KIND, dataset_id, value)
        put_objects(writer, ROW, rows)

    await call.write(store)
    return {"datasetId": dataset_id}


async def new_rows(call: Call, dataset_id: str, ids: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """The rows of some requests. Raises ApiError(400) that names an unknown one."""

    def known(conn: sqlite3.Connection) -> str | None:
        sql = "SELECT 1 FROM requests WHERE id = ?"
        return next((one for one in ids if conn.execute(sql, (one,)).fetchone() is None), None)

    missing = await call.read(known)
    if missing is not None:
        raise bad(f"there is no request {missing[:80]!r}")
    return [(f"{dataset_id}/{uuid.uuid4()}", {"origin_request_id": one}) for one in ids]


async def the_dataset(call: Call) -> str:
    """The id of the dataset in the path. Raises ApiError(404)."""
    dataset_id = call.path("datasetId")
    if await call.read(lambda conn: get_object(conn, KIND, dataset_id)) is None:
        raise not_found("Dataset")
    return dataset_id


async def mutate(call: Call) -> Any:
    """Add requests, and remove rows by their own id or by their request's."""
    dataset_id = await the_dataset(call)
    fields = await call.fields()
    removed = set(fields.texts("removeRequests", most=MAX_REQUESTS, required=False))
    rows = await new_rows(call, dataset_id, fields.texts("addRequests", most=MAX_REQUESTS, required=False))
    old = await call.read(lambda conn: rows_of(conn, dataset_id))
    gone = [row["key"] for row in old if row["id"] in removed or row["origin_request_id"] in removed]
    there = {row["origin_request_id"] for row in old if row["key"] not in gone}

    def store(writer: Writer) -> None:
        writer.write([(DELETE, (ROW, key)) for key in gone])
        put_objects(writer, ROW, [row for row in rows if row[1]["origin_request_id"] not in there])

    await call.write(store)


def rows_of(conn: sqlite3.Connection, dataset_id: str, limit: int = -1, offset: int = 0) -> list[dict[str, Any]]:
    """Rows of a dataset in the order they were added: key, id, created_at, origin_request_id."""
    found = conn.execute(
        f"SELECT id, created_at, json_extract(value, '$.origin_request_id') {ROWS} "
        "ORDER BY created_at, id LIMIT ? OFFSET ?",
        (ROW, *below(dataset_id), limit, offset),
    )
    return [
        {"key": key, "id": key.partition("/")[2], "created_at": created, "origin_request_id": origin}
        for key, created, origin in found
    ]


async def query_rows(call: Call) -> Any:
    dataset_id = await the_dataset(call)
    offset, limit = page(await call.fields(), 100)
    rows = await call.read(lambda conn: rows_of(conn, dataset_id, limit, offset))
    return [
        {
            "id": row["id"],
            "origin_request_id": row["origin_request_id"],
            "dataset_id": dataset_id,
            "created_at": row["created_at"],
            "signed_url": {"data": call.signed_url(BODY_PATH, row["key"]), "error": None},
        }
        for row in rows
    ]


async def signed_row(call: Call) -> Response:
    """The bodies of one row: as edited, else as logged."""
    key = call.check_signature(BODY_PATH)

    def read(conn: sqlite3.Connection) -> dict[str, Any] | None:
        row = get_object(conn, ROW, key)
        if row is None:
            return None
        if "request" in row:
            return {"request": row["request"], "response": row["response"]}
        return bodies_of(read_body(conn, row["origin_request_id"]))

    found = await call.read(read)
    if found is None:
        raise not_found("Row")
    return JSONResponse(found)


async def edit(call: Call) -> Any:
    """Replace the bodies of one row; the logged request stays as it was."""
    dataset_id = await the_dataset(call)
    wanted = call.path("requestId")
    fields = await call.fields()
    rows = await call.read(lambda conn: rows_of(conn, dataset_id))
    row = next((one for one in rows if wanted in (one["id"], one["origin_request_id"])), None)
    if row is None:
        raise not_found("Row")
    value = {
        "origin_request_id": row["origin_request_id"],
        "request": fields.get("requestBody"),
        "response": fields.get("responseBody"),
    }
    await call.write(lambda writer: put_object(writer, ROW, row["key"], value))
    return {"id": row["id"]}


async def count(call: Call) -> Any:
    dataset_id = await the_dataset(call)
    sql = f"SELECT count(*) {ROWS}"
    return await call.read(lambda conn: conn.execute(sql, (ROW, *below(dataset_id))).fetchone()[0])


async def query(call: Call) -> Any:
    wanted = (await call.fields()).texts("datasetIds", most=1000, required=False)

    def read(conn: sqlite3.Connection) -> list[dict[str, Any]]:
        found = [one for one in list_objects(conn, KIND) if not wanted or one["id"] in wanted]
        sql = f"SELECT count(*) {ROWS}"
        for one in found:
            one["requests_count"] = conn.execute(sql, (ROW, *below(one["id"]))).fetchone()[0]
            one["organization"] = "local"
            del one["updated_at"]
        return found

    return await call.read(read)


async def delete(call: Call) -> Any:
    dataset_id = await the_dataset(call)
    writes = [(DELETE, (KIND, dataset_id)), (DELETE_BELOW, (ROW, *below(dataset_id)))]
    await call.write(lambda writer: writer.write(writes))


BASE = "/v1/helicone-dataset"
DATASET = an_object("id name created_at dataset_type requests_count", id=TEXT, name=TEXT, requests_count=INTEGER)
SIGNED = an_object("data", data=TEXT)
LINE = an_object(
    "id origin_request_id dataset_id created_at signed_url",
    id=TEXT,
    origin_request_id=TEXT,
    dataset_id=TEXT,
    created_at=TEXT,
    signed_url=SIGNED,
)
ENDPOINTS = (
    Endpoint(
        "POST",
        BASE,
        create,
        "Create a dataset",
        an_object(
            "datasetName requestIds",
            datasetName={"type": "string", "minLength": 1},
            requestIds=a_list(TEXT),
            meta={"type": "object"},
        ),
        an_object("datasetId", datasetId=TEXT),
    ),
    Endpoint("POST", f"{BASE}/query", query, "List datasets", an_object(datasetIds=a_list(TEXT)), a_list(DATASET)),
    Endpoint(
        "POST",
        BASE + "/{datasetId}/mutate",
        mutate,
        "Add and remove requests",
        an_object(addRequests=a_list(TEXT), removeRequests=a_list(TEXT)),
        NULL,
    ),
    Endpoint(
        "POST",
        BASE + "/{datasetId}/query",
        query_rows,
        "Query the rows of a dataset",
        an_object(limit=INTEGER, offset=INTEGER),
        a_list(LINE),
    ),
    Endpoint("POST", BASE + "/{datasetId}/count", count, "Count rows", an_object(), INTEGER, body_required=False),
    Endpoint(
        "POST",
        BASE + "/{datasetId}/request/{requestId}",
        edit,
        "Edit the bodies of a row",
        an_object(requestBody=ANY, responseBody=ANY),
        an_object("id", id=TEXT),
    ),
    Endpoint("POST", BASE + "/{datasetId}/delete", delete, "Delete a dataset", an_object(), NULL, body_required=False),
    Endpoint(
        "GET",
        BODY_PATH,
        signed_row,
        "Get the bodies behind a signed link",
        raw=an_object("request response", request=ANY, response=ANY),
        query=(("id", TEXT), ("signature", TEXT)),
    ),
)
