"""Helicone's SQL, on SQLite: read-only, one SELECT, bounded in time, rows and size (helicone-api.md section 1.7).

The main table is the view `request_response_rmt`. Three locks, one behind the other: the connection is opened
read-only, an authorizer lets nothing but reading pass, and a clock ends what runs too long.
"""

from __future__ import annotations

import base64
import csv
import io
import math
import re
import secrets
import sqlite3
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

from starlette.responses import Response

from heliproxy.api.database import body_text
from heliproxy.api.endpoint import ANY, INTEGER, NULL, NUMBER, TEXT, Api, Call, Endpoint, a_list, an_object
from heliproxy.api.errors import ApiError, not_found
from heliproxy.api.objects import DELETE, get_object, list_objects, put_object
from heliproxy.csv_cells import safe_cell
from heliproxy.rounding import without_noise
from heliproxy.store import open_reader
from heliproxy.times import stored_time

MAX_ROWS = 300_000
MAX_BYTES = 64 * 1024 * 1024
"""Of one result, as JSON, about."""
MAX_VALUE = 4 * 1024 * 1024
"""Bytes of one text or blob SQLite may make; a stored body has at most 1 MiB."""
MAX_COLUMNS = 128
"""Of a result: no clock and no count looks at a row before all of it is in memory."""
MAX_PATTERN = 500
"""Bytes of a pattern for LIKE or GLOB, which are looked for anew at each place of a text."""
MAX_TRIMMED = 200
MAX_SQL = 100_000
SECONDS = 20.0
STEPS = 5000
MAX_DOWNLOADS = 100
VIEW = "request_response_rmt"
TABLES = (VIEW, "requests", "properties", "scores", "feedback", "bodies")
"""What may be read; webhooks with their keys may not."""
VALUES = ("json_each", "json_tree")
SLOW = ("printf", "format", "json_patch", "jsonb_patch", "load_extension", "fts3_tokenizer")
"""Functions that are refused: the first can be busy for minutes within one step, which no clock ends."""
KIND = "saved-query"
DOWNLOAD = "/v1/helicone-sql/download"

_INTERVAL = re.compile(r"\bINTERVAL\s+'?(\d{1,6})'?\s+(SECOND|MINUTE|HOUR|DAY|WEEK|MONTH|YEAR)S?\b", re.IGNORECASE)
_NOW_MINUS = re.compile(r"\bnow\(\)\s*-\s*" + _INTERVAL.pattern, re.IGNORECASE)
_UNITS = {"second": "seconds", "minute": "minutes", "hour": "hours", "day": "days", "month": "months", "year": "years"}


class SqlError(ApiError):
    """What Helicone's clients see: `[CODE] text`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(400, f"[{code}] {message}")


def authorizer(others: frozenset[str]) -> Callable[..., int]:
    """SQLite's question whether a statement may do something: reading our tables, and calling harmless functions.

    `others`: tables there are besides, in lower case.
    """

    def authorize(action: int, first: str | None, second: str | None, _database: str | None, source: str | None) -> int:
        if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION:
            return sqlite3.SQLITE_DENY if second in SLOW and source != VIEW else sqlite3.SQLITE_OK
        if action != sqlite3.SQLITE_READ:
            return sqlite3.SQLITE_DENY
        if first in TABLES or first in VALUES or not first:
            return sqlite3.SQLITE_OK
        # No column is read of `WITH t AS (...) SELECT count(*) FROM t`, where t is a name for the rows of others.
        named = not second and first.lower() not in others and not first.lower().startswith(("sqlite_", "pragma_"))
        return sqlite3.SQLITE_OK if named else sqlite3.SQLITE_DENY

    return authorize


def clickhouse_words(sql: str) -> str:
    """The one ClickHouse idiom every example uses, in SQLite's words: `now() - INTERVAL 7 DAY`."""

    def moment(found: re.Match[str]) -> str:
        number, unit = int(found[1]), found[2].lower()
        if unit == "week":
            number, unit = number * 7, "day"
        return f"strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-{number} {_UNITS[unit]}')"

    return _NOW_MINUS.sub(moment, sql)


def add_functions(conn: sqlite3.Connection) -> None:
    """A few of ClickHouse's functions that Helicone's examples use."""
    conn.create_function("now", 0, lambda: stored_time(datetime.now(UTC)))
    for name, digits, rest in (
        ("toStartOfMinute", 16, ":00.000Z"),
        ("toStartOfHour", 13, ":00:00.000Z"),
        ("toStartOfDay", 10, "T00:00:00.000Z"),
        ("toStartOfMonth", 7, "-01T00:00:00.000Z"),
        ("toDate", 10, ""),
    ):
        conn.create_function(name, 1, _cut(digits, rest), deterministic=True)
    conn.create_function("body_text", 2, body_text, deterministic=True)
    conn.create_function("toDateTime", 1, lambda text: text, deterministic=True)


def _cut(digits: int, rest: str) -> Callable[[Any], Any]:
    return lambda text: f"{text[:digits]}{rest}" if isinstance(text, str) and len(text) >= digits else None


def add_quick_functions(conn: sqlite3.Connection) -> None:
    """SQLite's own compare a long text with a long part of it at each place, for hours if need be; these do not."""
    conn.create_function("instr", 2, _instr, deterministic=True)
    conn.create_function("replace", 3, _replace, deterministic=True)
    for name, strip in (("trim", str.strip), ("ltrim", str.lstrip), ("rtrim", str.rstrip)):
        conn.create_function(name, 1, partial(_trim, strip), deterministic=True)
        conn.create_function(name, 2, partial(_trim, strip), deterministic=True)


def _instr(value: Any, part: Any) -> int | None:
    if value is None or part is None:
        return None
    if isinstance(value, bytes) and isinstance(part, bytes):
        return value.find(part) + 1
    return _as_text(value).find(_as_text(part)) + 1


def _replace(value: Any, old: Any, new: Any) -> str | None:
    if value is None or old is None or new is None:
        return None
    text, part, other = _as_text(value), _as_text(old), _as_text(new)
    if not part:
        return text
    if len(text) + text.count(part) * (len(other) - len(part)) > MAX_VALUE:
        raise ValueError("string or blob too big")
    return text.replace(part, other)


def _trim(strip: Callable[[str, str], str], value: Any, characters: Any = " ") -> str | None:
    if value is None or characters is None:
        return None
    if len(_as_text(characters)) > MAX_TRIMMED:
        raise ValueError("too many characters to trim")
    return strip(_as_text(value), _as_text(characters))


def _as_text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def lock(conn: sqlite3.Connection, deadline: float) -> None:
    """Let this connection do nothing but read our tables, until `deadline` (monotonic seconds)."""
    conn.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE)
    conn.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    conn.setlimit(sqlite3.SQLITE_LIMIT_COLUMN, MAX_COLUMNS)
    conn.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, MAX_PATTERN)
    add_functions(conn)
    add_quick_functions(conn)
    others = frozenset(name.lower() for (name,) in conn.execute("SELECT name FROM sqlite_master")) - {*TABLES}
    for table in VALUES:  # connected now, since that is more than reading
        conn.execute(f"SELECT 1 FROM {table}('[]')").fetchall()
    conn.set_authorizer(authorizer(others))
    conn.set_progress_handler(lambda: time.monotonic() > deadline, STEPS)


def run(api: Api, sql: str) -> tuple[list[str], list[tuple[Any, ...]], int]:
    """Run one query on a connection of its own: (column names, rows, bytes). Raises SqlError."""
    if len(sql) > MAX_SQL:
        raise SqlError("TOO_LARGE", f"the query is longer than {MAX_SQL} characters")
    from heliproxy.home import DATABASE_NAME

    try:
        conn = open_reader(api.addon.settings.home / DATABASE_NAME)
    except (OSError, sqlite3.Error) as e:
        raise ApiError(503, f"the database cannot be read: {e}") from e
    deadline = time.monotonic() + SECONDS
    try:
        lock(conn, deadline)
        cursor = conn.execute(clickhouse_words(sql).strip().rstrip(";"))
        if cursor.description is None:
            raise SqlError("NOT_ALLOWED", "only SELECT is allowed")
        return _collect(cursor)
    except sqlite3.Error as e:
        raise refused(str(e)) from e
    except (ValueError, UnicodeError, OverflowError) as e:
        raise SqlError("SYNTAX_ERROR", str(e)) from e
    except MemoryError as e:
        raise SqlError("TOO_LARGE", "the result does not fit into memory") from e
    finally:
        conn.close()


def _collect(cursor: sqlite3.Cursor) -> tuple[list[str], list[tuple[Any, ...]], int]:
    names = unique([column[0] for column in cursor.description])
    rows: list[tuple[Any, ...]] = []
    size = 0
    for row in cursor:
        values = tuple(plain(value) for value in row)
        size += sum(len(value) if isinstance(value, str) else 8 for value in values)
        if size > MAX_BYTES:
            raise SqlError("TOO_LARGE", f"the result is larger than {MAX_BYTES >> 20} MiB; select less")
        rows.append(values)
        if len(rows) == MAX_ROWS:
            break
    return names, rows, size


def refused(message: str) -> SqlError:
    if "interrupted" in message:
        return SqlError("TIMEOUT", f"the query took longer than {SECONDS:.0f} s")
    if "not authorized" in message or "prohibited" in message or "readonly" in message or "one statement" in message:
        return SqlError("NOT_ALLOWED", f"only one SELECT on {', '.join(TABLES)} is allowed ({message})")
    if "no such table" in message:
        return SqlError("UNKNOWN_TABLE", message)
    return SqlError("SYNTAX_ERROR", message)


def unique(names: list[str]) -> list[str]:
    """Column names, repeated ones numbered, as they become keys."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return found


def plain(value: Any) -> Any:
    """A value JSON can hold: blobs as text or base64, no infinities, sums without noise."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    return None if isinstance(value, float) and not math.isfinite(value) else without_noise(value)


# -- handlers -------------------------------------------------------------------------------------------------------


async def execute(call: Call) -> Any:
    sql = (await call.fields()).required_text("sql", limit=MAX_SQL)
    began = time.perf_counter()
    # The connection that is handed in only makes sure that everything waiting has been stored.
    names, rows, size = await call.read(lambda _: run(call.api, sql))
    return {
        "rows": [dict(zip(names, row, strict=True)) for row in rows],
        "rowCount": len(rows),
        "size": size,
        "elapsedMilliseconds": round((time.perf_counter() - began) * 1000, 1),
    }


async def schema(call: Call) -> Any:
    def read(conn: sqlite3.Connection) -> list[dict[str, Any]]:
        found = []
        for table in TABLES:
            columns = [
                {
                    "name": name,
                    "type": kind or "ANY",
                    "default_type": "",
                    "default_expression": "",
                    "comment": "",
                    "codec_expression": "",
                    "ttl_expression": "",
                }
                for _, name, kind, *_ in conn.execute(f"PRAGMA table_info({table})")
            ]
            found.append({"table_name": table, "columns": columns})
        return found

    return await call.read(read)


async def download(call: Call) -> Any:
    """A link to the result as CSV; the query runs again when the link is followed."""
    sql = (await call.fields()).required_text("sql", limit=MAX_SQL)
    await call.read(lambda _: run(call.api, sql))
    downloads = call.api.downloads
    while len(downloads) >= MAX_DOWNLOADS:
        downloads.pop(next(iter(downloads)))
    name = secrets.token_urlsafe(24)
    downloads[name] = sql
    return f"{call.origin}{DOWNLOAD}/{name}"


async def downloaded(call: Call) -> Response:
    sql = call.api.downloads.get(call.path("name"))
    if sql is None:
        raise not_found("Download")
    names, rows, _ = await call.read(lambda _: run(call.api, sql))
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([safe_cell(name) for name in names])
    writer.writerows([[safe_cell(value) for value in row] for row in rows])
    headers = {"content-disposition": 'attachment; filename="result.csv"'}
    return Response(out.getvalue(), media_type="text/csv; charset=utf-8", headers=headers)


async def saved(call: Call) -> Any:
    return [shown(query) for query in await call.read(lambda conn: list_objects(conn, KIND))]


def shown(query: dict[str, Any]) -> dict[str, Any]:
    return {"organization_id": "local", **query}


async def one(call: Call) -> Any:
    query_id = call.path("queryId")
    found = await call.read(lambda conn: get_object(conn, KIND, query_id))
    if found is None:
        raise not_found("Query")
    return shown({**found, "id": query_id})


async def save(call: Call) -> Any:
    found = await stored(call, str(uuid.uuid4()))
    return [found]


async def update(call: Call) -> Any:
    await one(call)
    return await stored(call, call.path("queryId"))


async def stored(call: Call, query_id: str) -> Any:
    fields = await call.fields()
    value = {"name": fields.required_text("name", limit=200), "sql": fields.required_text("sql", limit=MAX_SQL)}
    await call.write(lambda writer: put_object(writer, KIND, query_id, value))
    found = await call.read(lambda conn: get_object(conn, KIND, query_id))
    return shown({**(found or value), "id": query_id})


async def delete(call: Call) -> Any:
    query_id = call.path("queryId")
    await call.write(lambda writer: writer.write([(DELETE, (KIND, query_id))]))


async def delete_many(call: Call) -> Any:
    ids = (await call.fields()).texts("ids", most=1000)
    await call.write(lambda writer: writer.write([(DELETE, (KIND, query_id)) for query_id in ids]))


SQL = an_object("sql", sql={"type": "string", "minLength": 1})
NAMED = an_object("name sql", name={"type": "string", "minLength": 1}, sql={"type": "string", "minLength": 1})
SAVED = an_object("id name sql created_at updated_at", id=TEXT, name=TEXT, sql=TEXT, created_at=TEXT, updated_at=TEXT)
RESULT = an_object(
    "rows rowCount size elapsedMilliseconds",
    rows=a_list({"type": "object"}),
    rowCount=INTEGER,
    size=NUMBER,
    elapsedMilliseconds=NUMBER,
)
BASE = "/v1/helicone-sql"
ENDPOINTS = (
    Endpoint("POST", f"{BASE}/execute", execute, "Run a SELECT", SQL, RESULT),
    Endpoint(
        "GET",
        f"{BASE}/schema",
        schema,
        "Tables and columns",
        data=a_list(an_object("table_name columns", table_name=TEXT, columns=a_list(ANY))),
    ),
    Endpoint("POST", DOWNLOAD, download, "Get a link to a result as CSV", SQL, TEXT),
    Endpoint("GET", DOWNLOAD + "/{name}", downloaded, "Get a result as CSV", raw=TEXT, media="text/csv"),
    Endpoint("GET", f"{BASE}/saved-queries", saved, "List saved queries", data=a_list(SAVED)),
    Endpoint("POST", f"{BASE}/saved-query", save, "Save a query", NAMED, a_list(SAVED)),
    Endpoint("GET", BASE + "/saved-query/{queryId}", one, "Get a saved query", data=SAVED),
    Endpoint("PUT", BASE + "/saved-query/{queryId}", update, "Change a saved query", NAMED, SAVED),
    Endpoint("DELETE", BASE + "/saved-query/{queryId}", delete, "Delete a saved query", data=NULL),
    Endpoint(
        "POST",
        f"{BASE}/saved-queries/bulk-delete",
        delete_many,
        "Delete saved queries",
        an_object("ids", ids=a_list(TEXT)),
        NULL,
    ),
)
