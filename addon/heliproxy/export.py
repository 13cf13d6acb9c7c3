"""Requests out of our file and into it: JSON lines, JSON and CSV as Helicone's export tool writes them."""

from __future__ import annotations

import csv
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

from heliproxy.api.filters import Condition
from heliproxy.api.rows import bodies_of, helicone_request, request_rows, without_odd_numbers
from heliproxy.bodies import Body, read_body
from heliproxy.csv_cells import safe_cell
from heliproxy.home import make_private_file
from heliproxy.ingest import provider_name
from heliproxy.record import utc_text
from heliproxy.redact import redact_body
from heliproxy.report import UNSAFE, neutral
from heliproxy.secrets import redact_path
from heliproxy.store import COLUMNS, FEEDBACK_SCORE, SET_FEEDBACK, SET_SCORE, Record, Writer

OWN = "heliproxy"
"""Key under which an exported row has what Helicone has no word for; importing it back loses nothing."""
CSV_COLUMNS = (
    "response_id", "response_created_at", "response_status", "request_created_at", "request_body",
    "request_properties", "request_user_id", "model", "prompt_tokens", "completion_tokens", "latency", "cost",
)  # fmt: skip
_SAID = frozenset(
    "id created_at status user_id request_model response_model latency_ms ttft_ms cost_usd prompt_id "  # noqa: SIM905
    "cache_reference_id response_id model preview answer_preview".split()
)
"""Columns that Helicone's words carry already; previews are made again from bodies."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which requests are exported: `since` and `until` as stored times (both inclusive), properties that must match."""

    since: str
    until: str
    properties: tuple[tuple[str, str], ...] = ()

    def condition(self) -> Condition:
        sql, values = "r.created_at >= ? AND r.created_at <= ?", [self.since, self.until]
        for key, value in self.properties:
            sql += (
                " AND EXISTS (SELECT 1 FROM properties p WHERE p.request_id = r.id AND p.key = ? COLLATE NOCASE "
                "AND p.value = ?)"
            )
            values += [key, value]
        return Condition(sql, tuple(values))


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an export has come, so that it can go on: what was asked for, and the last request written."""

    wanted: Wanted
    form: str
    output: str
    bodies: bool
    written: int = 0
    after: tuple[str, str] | None = None
    """Time and id of the last request."""
    size: int = 0
    """Bytes of the output after it; what stands beyond was cut off in the middle."""


def save_progress(path: Path, progress: Progress) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)  # perhaps another's, or a link to who knows where
    make_private_file(temporary)
    temporary.write_text(json.dumps(asdict(progress)))
    temporary.replace(path)


def load_progress(path: Path) -> Progress | None:
    """The saved progress, or None when there is none. Raises ValueError when it cannot be read, or is another user's.

    It names a file to be cut and written, and lies in whatever folder one happens to be in.
    """
    if hasattr(os, "geteuid") and os.path.lexists(path) and path.lstat().st_uid != os.geteuid():
        raise ValueError(f"{path} was written by another user")
    try:
        raw = json.loads(path.read_text())
        wanted = raw.pop("wanted")
        properties = tuple((key, value) for key, value in wanted.pop("properties"))
        after = raw.pop("after")
        return Progress(Wanted(**wanted, properties=properties), after=tuple(after) if after else None, **raw)
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as e:
        raise ValueError(f"{path} is not the state of an export") from e


def request_ids(
    conn: sqlite3.Connection, wanted: Wanted, size: int, after: tuple[str, str] | None = None
) -> Iterator[list[str]]:
    """Ids of finished requests, oldest first, `size` at a time; `after` goes on behind that request."""
    where = wanted.condition()
    while True:
        sql, values = where.sql, list(where.values)
        if after is not None:
            sql, values = f"({sql}) AND (r.created_at, r.id) > (?, ?)", [*values, *after]
        found = conn.execute(
            f"SELECT r.created_at, r.id FROM requests r WHERE {sql} AND r.status IS NOT NULL "
            "ORDER BY r.created_at, r.id LIMIT ?",
            [*values, size],
        ).fetchall()
        if not found:
            return
        after = found[-1]
        yield [request_id for _, request_id in found]


def batches(
    conn: sqlite3.Connection,
    wanted: Wanted,
    size: int,
    after: tuple[str, str] | None = None,
    *,
    bodies: bool = False,
) -> Iterator[list[dict[str, Any]]]:
    """Exported requests, oldest first, `size` at a time."""
    for ids in request_ids(conn, wanted, size, after):
        yield [exported(conn, row, bodies=bodies) for row in request_rows(conn, ids, COLUMNS)]


def exported(conn: sqlite3.Connection, row: Mapping[str, Any], *, bodies: bool) -> dict[str, Any]:
    """One request in Helicone's words, with ours beside them."""
    said = helicone_request(dict(row), None)
    if bodies:
        found = bodies_of(read_body(conn, row["id"]))
        said |= {"request_body": found["request"], "response_body": found["response"]}
    own = {name: row[name] for name in COLUMNS if name not in _SAID and row[name] not in (None, "")}
    return without_odd_numbers({**said, OWN: own})  # type: ignore[no-any-return]


# -- writing --------------------------------------------------------------------------------------------------------


def json_line(row: Mapping[str, Any]) -> str:
    """One object as JSON, in which what a terminal obeys (C1 controls, marks that reorder text) is escaped."""
    text = json.dumps(row, ensure_ascii=False, separators=(",", ":"))
    return text if text.isprintable() else UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def csv_row(row: Mapping[str, Any]) -> list[Any]:
    """One line of Helicone's CSV; objects are JSON, and no cell is taken for a formula."""
    values = {**row, "latency": row["delay_ms"]}
    return [csv_cell(values.get(name)) for name in CSV_COLUMNS]


def csv_cell(value: Any) -> Any:
    if isinstance(value, dict | list):
        return json_line(value) if value else ""  # type: ignore[arg-type]
    return safe_cell(neutral(value, lines=True)) if isinstance(value, str) else value


class Output:
    """Writes rows in one of the formats; `start` and `end` are for what comes around them."""

    def __init__(self, stream: TextIO, form: str) -> None:
        self._stream = stream
        self._form = form
        self._first = True
        self._csv = csv.writer(stream)

    def start(self) -> None:
        if self._form == "json":
            self._stream.write("[")
        elif self._form == "csv":
            self._csv.writerow(CSV_COLUMNS)

    def write(self, row: Mapping[str, Any]) -> None:
        if self._form == "csv":
            self._csv.writerow(csv_row(row))
        elif self._form == "json":
            self._stream.write(("\n" if self._first else ",\n") + json_line(row))
        else:
            self._stream.write(json_line(row) + "\n")
        self._first = False

    def end(self) -> None:
        if self._form == "json":
            self._stream.write("\n]\n")
        self._stream.flush()


# -- reading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Imported:
    """One request read from an export."""

    record: Record
    scores: Mapping[str, float] = field(default_factory=dict)
    rating: bool | None = None
    rated_at: str | None = None


def read_exported(value: Any) -> Imported:
    """A request from one exported object, ours or Helicone's. Raises ValueError that says what is wrong."""
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004 - one kind of error for all bad lines
    request_id, created = value.get("request_id"), _time(value.get("request_created_at"))
    if not isinstance(request_id, str) or not request_id:
        raise ValueError("it has no request_id")
    if created is None:
        raise ValueError("its request_created_at is not a time")
    row: dict[str, Any] = {
        "id": request_id,
        "created_at": created,
        "status": _integer(value.get("response_status")) or 0,
        "user_id": _text(value.get("request_user_id")),
        "request_model": _text(value.get("request_model")),
        "response_model": _text(value.get("response_model")),
        "model": _text(value.get("model")) or _text(value.get("response_model")),
        "latency_ms": _number(value.get("delay_ms", value.get("latency"))),
        "ttft_ms": _number(value.get("time_to_first_token")),
        "prompt_id": _text(value.get("prompt_id")),
        # Helicone gives every row one; where a provider gave none, we repeat the request's.
        "response_id": None if value.get("response_id") == request_id else _text(value.get("response_id")),
        "cache_reference_id": _text(value.get("cache_reference_id")),
        "provider": provider_name(value.get("provider")),
        "source": "import",
        "incomplete": 0,
    }
    row.update(_place(value))
    row.update(_tokens(value))
    row.update(_cost(value))
    properties = _properties(value)
    row.update(_session(properties))
    own = value.get(OWN)
    if isinstance(own, dict):
        row.update({name: own[name] for name in COLUMNS if name in own and name not in _SAID and _plain(own[name])})
    rating = value.get("feedback_rating")
    return Imported(
        Record(row, properties, _bodies(value)),
        {name: float(score) for name, score in _object(value.get("scores")).items() if _number(score) is not None},
        rating if isinstance(rating, bool) else None,
        _time(value.get("feedback_created_at")),
    )


def _plain(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e15 or value != value:
        return None
    return float(value)


def _integer(value: Any) -> int | None:
    found = _number(value)
    return None if found is None else int(found)


def _time(value: Any) -> str | None:
    """A stored time from ISO text or from ClickHouse's `2026-09-01 10:00:00.000`."""
    from heliproxy.api.fields import moment

    at = moment(value)
    return None if at is None else utc_text(at.timestamp())


def _place(value: Mapping[str, Any]) -> dict[str, Any]:
    url = _text(value.get("target_url")) or _text(value.get("request_path")) or ""
    try:
        parts = urlsplit(url)
    except ValueError:
        return {"path": redact_path(url)}
    if not parts.netloc:
        return {"path": redact_path(url) if url else None}
    host = parts.netloc.rpartition("@")[2]
    return {"host": host, "path": redact_path(parts.path + (f"?{parts.query}" if parts.query else ""))}


def _tokens(value: Mapping[str, Any]) -> dict[str, Any]:
    """Helicone's counts exclude each other, ours include: input is all that was read, output all that was written."""
    names = ("prompt_tokens", "prompt_cache_read_tokens", "prompt_cache_write_tokens", "prompt_audio_tokens")
    prompt, read, write, heard = (_integer(value.get(name)) for name in names)
    outputs = ("completion_tokens", "reasoning_tokens", "completion_audio_tokens")
    completion, reasoning, spoken = (_integer(value.get(name)) for name in outputs)
    known = prompt is not None or completion is not None
    return {
        "input_tokens": None if prompt is None else prompt + (read or 0) + (write or 0) + (heard or 0),
        "cache_read_tokens": read,
        "cache_write_tokens": write,
        "input_audio_tokens": heard or None,
        "output_tokens": None if completion is None else completion + (reasoning or 0) + (spoken or 0),
        "reasoning_tokens": reasoning,
        "output_audio_tokens": spoken or None,
        "usage_source": "provider" if known else "none",
    }


def _cost(value: Mapping[str, Any]) -> dict[str, Any]:
    cost = _number(value.get("costUSD"))
    if cost is None:
        cost = _number(value.get("cost"))
    return {"cost_usd": cost, "cost_source": None if cost is None else "import"}


def _properties(value: Mapping[str, Any]) -> dict[str, str]:
    found = {**_object(value.get("request_properties")), **_object(value.get("properties"))}
    return {name: str(inner) for name, inner in found.items() if name and _plain(inner)}


def _session(properties: Mapping[str, str]) -> dict[str, str]:
    lower = {name.lower(): inner for name, inner in properties.items()}
    names = {"session_id": "id", "session_name": "name", "session_path": "path"}
    return {
        column: lower[f"helicone-session-{name}"]
        for column, name in names.items()
        if f"helicone-session-{name}" in lower
    }


def _bodies(value: Mapping[str, Any]) -> Body | None:
    """The bodies of an export that has them; placeholders are none."""
    sides: list[bytes | None] = []
    for name in ("request_body", "response_body"):
        body = value.get(name)
        if body in (None, "", {}) or (isinstance(body, dict) and "helicone_message" in body):
            sides.append(None)
        else:
            text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
            sides.append(text.encode("utf-8", "replace"))
    if sides == [None, None]:
        return None
    sides = [None if body is None else redact_body(body) for body in sides]
    return Body(sides[0], sides[1], "application/json", "application/json")


def read_lines(lines: Iterable[str]) -> Iterator[tuple[int, Imported | ValueError]]:
    """Requests of JSON lines with their line numbers; a line that is none gives its error."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield number, read_exported(json.loads(line))
        except (ValueError, RecursionError) as e:
            yield number, e if isinstance(e, ValueError) else ValueError("it is nested too deeply")


def store(writer: Writer, found: Sequence[Imported], known: Callable[[str], bool]) -> int:
    """Store what is not there yet; returns how many were new."""
    new = 0
    for one in found:
        request_id = one.record.row["id"]
        if known(request_id):
            continue
        writer.add(one.record)
        new += 1
        writes: list[tuple[str, tuple[Any, ...]]] = [
            (SET_SCORE, (request_id, name, score, "number")) for name, score in one.scores.items()
        ]
        if one.rating is not None:
            text = str(one.rating).lower()
            at = one.rated_at or one.record.row["created_at"]
            writes.append((SET_FEEDBACK, (request_id, "rating", text, "boolean", at)))
            writes.append((SET_SCORE, (request_id, FEEDBACK_SCORE, float(one.rating), "boolean")))
        if writes:
            writer.write(writes)
    writer.flush(force=True)
    return new
