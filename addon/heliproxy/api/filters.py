"""Helicone's filter tree as a SQL condition on `requests r` (helicone-api.md section 1.9).

Values come loosely typed and are coerced to their column's type. Every column of a table object and every operator
of a column counts; all must hold. What cannot be understood is refused with the path to it. Text that is absent is
'' for operators, as in Helicone's own store, and the value "null" (or null) asks for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from heliproxy.api.errors import bad
from heliproxy.api.fields import moment
from heliproxy.policies.prompt import input_name
from heliproxy.times import stored_time

MAX_LEAVES = 400
"""SQLite's own bound for the depth of an expression is 1000."""
MAX_DEPTH = 40
"""Times that "and" and "or" may alternate; a chain of one of them counts once."""
MAX_VALUE = 10_000
MAX_PATTERN = 500
"""Characters of a pattern, which is looked for anew at each place of a body."""

TEXT_OPERATORS = ("equals", "not-equals", "like", "ilike", "contains", "not-contains")
NUMBER_OPERATORS = ("equals", "not-equals", "gte", "lte", "gt", "lt")
TIME_OPERATORS = ("equals", "not-equals", "gte", "lte", "gt", "lt")
FLAG_OPERATORS = ("equals", "not-equals")
OPERATORS = {"text": TEXT_OPERATORS, "number": NUMBER_OPERATORS, "time": TIME_OPERATORS, "flag": FLAG_OPERATORS}
COMPARISONS = {"gte": ">=", "lte": "<=", "gt": ">", "lt": "<"}


BRANCH = frozenset({"left", "operator", "right"})


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the filter language: its type and the SQL expression behind it.

    `inside` wraps a finished condition, for columns that live in another table.
    """

    kind: str
    sql: str
    inside: str = "{}"


@dataclass(frozen=True, slots=True)
class Condition:
    """SQL with its parameters."""

    sql: str
    values: tuple[Any, ...] = ()


PROMPT_TOKENS = (
    "max(0, r.input_tokens - coalesce(r.cache_read_tokens, 0) - coalesce(r.cache_write_tokens, 0) "
    "- coalesce(r.input_audio_tokens, 0))"
)
COMPLETION_TOKENS = "max(0, r.output_tokens - coalesce(r.reasoning_tokens, 0) - coalesce(r.output_audio_tokens, 0))"
TOTAL_TOKENS = "(coalesce(r.input_tokens, 0) + coalesce(r.output_tokens, 0))"
ENDED = "strftime('%Y-%m-%dT%H:%M:%fZ', r.created_at, printf('%+.3f seconds', coalesce(r.latency_ms, 0) / 1000.0))"
URL = "coalesce(r.target_url, CASE WHEN r.host <> '' THEN 'https://' || r.host || r.path ELSE r.path END)"
_BODY = "(SELECT body_text(b.{0}, b.encoding) FROM bodies b WHERE b.request_id = r.id)"
REQUEST_BODY, RESPONSE_BODY = _BODY.format("request"), _BODY.format("response")
_SESSIONS = (
    "r.session_id IN (SELECT s.session_id FROM requests s WHERE s.session_id IS NOT NULL "
    "GROUP BY s.session_id HAVING {})"
)
_USERS = "r.user_id IN (SELECT s.user_id FROM requests s WHERE s.user_id IS NOT NULL GROUP BY s.user_id HAVING {})"
_FEEDBACK = "EXISTS (SELECT 1 FROM feedback f WHERE f.request_id = r.id AND f.name = 'rating' AND {})"
_SESSION_TAG = (
    "(SELECT json_extract(o.value, '$.tag') FROM objects o WHERE o.kind = 'session-tag' AND o.id = r.session_id)"
)

_REQUEST_RESPONSE = {
    "country_code": Column("text", "NULL"),
    "latency": Column("number", "r.latency_ms"),
    "cost": Column("number", "r.cost_usd"),
    "provider": Column("text", "lower(r.provider)"),
    "time_to_first_token": Column("number", "r.ttft_ms"),
    "status": Column("number", "r.status"),
    "request_created_at": Column("time", "r.created_at"),
    "response_created_at": Column("time", ENDED),
    "model": Column("text", "r.model"),
    "user_id": Column("text", "r.user_id"),
    "organization_id": Column("text", "'local'"),
    "node_id": Column("text", "NULL"),
    "job_id": Column("text", "NULL"),
    "threat": Column("flag", "(r.status IS -4)"),
    "request_id": Column("text", "r.id"),
    "prompt_tokens": Column("number", PROMPT_TOKENS),
    "completion_tokens": Column("number", COMPLETION_TOKENS),
    "prompt_cache_read_tokens": Column("number", "r.cache_read_tokens"),
    "prompt_cache_write_tokens": Column("number", "r.cache_write_tokens"),
    "reasoning_tokens": Column("number", "r.reasoning_tokens"),
    "total_tokens": Column("number", TOTAL_TOKENS),
    "target_url": Column("text", URL),
    "property_key": Column("text", "p.key", "EXISTS (SELECT 1 FROM properties p WHERE p.request_id = r.id AND {})"),
    "scores_column": Column("text", "s.name", "EXISTS (SELECT 1 FROM scores s WHERE s.request_id = r.id AND {})"),
    "request_body": Column("text", REQUEST_BODY),
    "response_body": Column("text", RESPONSE_BODY),
    "cache_enabled": Column("flag", "(r.cache IS NOT NULL)"),
    "cache_reference_id": Column("text", "r.cache_reference_id"),
    "cached": Column("flag", "(r.cache IS 'HIT')"),
    "assets": Column("text", "NULL"),
    "helicone-score-feedback": Column(
        "flag", "(SELECT s.value <> 0 FROM scores s WHERE s.request_id = r.id AND s.name = 'helicone-score-feedback')"
    ),
    "prompt_id": Column("text", "r.prompt_id"),
    "prompt_version": Column("text", "NULL"),
    "request_referrer": Column("text", "r.source"),
    "is_passthrough_billing": Column("flag", "0"),
    "properties": Column("keyed text", "properties"),
    "search_properties": Column("keyed text", "properties"),
    "scores": Column("keyed number", "scores"),
}
_SESSION = {
    "session_session_id": Column("text", "r.session_id"),
    "session_session_name": Column("text", "r.session_name"),
    "session_total_cost": Column("number", "sum(s.cost_usd)", _SESSIONS),
    "session_total_tokens": Column(
        "number", "sum(coalesce(s.input_tokens, 0) + coalesce(s.output_tokens, 0))", _SESSIONS
    ),
    "session_prompt_tokens": Column("number", "sum(s.input_tokens)", _SESSIONS),
    "session_completion_tokens": Column("number", "sum(s.output_tokens)", _SESSIONS),
    "session_total_requests": Column("number", "count(*)", _SESSIONS),
    "session_created_at": Column("time", "min(s.created_at)", _SESSIONS),
    "session_latest_request_created_at": Column("time", "max(s.created_at)", _SESSIONS),
    "session_tag": Column("text", _SESSION_TAG),
}
_DAYS = "count(DISTINCT substr(s.created_at, 1, 10))"
_USER = {
    "user_user_id": Column("text", "r.user_id"),
    "user_active_for": Column("number", _DAYS, _USERS),
    "user_first_active": Column("time", "min(s.created_at)", _USERS),
    "user_last_active": Column("time", "max(s.created_at)", _USERS),
    "user_total_requests": Column("number", "count(*)", _USERS),
    "user_average_requests_per_day_active": Column("number", f"(1.0 * count(*) / {_DAYS})", _USERS),
    "user_average_tokens_per_request": Column(
        "number", "(1.0 * sum(coalesce(s.input_tokens, 0) + coalesce(s.output_tokens, 0)) / count(*))", _USERS
    ),
    "user_total_prompt_tokens": Column("number", "sum(s.input_tokens)", _USERS),
    "user_total_completion_tokens": Column("number", "sum(s.output_tokens)", _USERS),
    "user_cost": Column("number", "sum(s.cost_usd)", _USERS),
}
_REQUEST = {
    "prompt": Column("text", REQUEST_BODY),
    "created_at": Column("time", "r.created_at"),
    "user_id": Column("text", "r.user_id"),
    "auth_hash": Column("text", "r.key_fingerprint"),
    "org_id": Column("text", "'local'"),
    "id": Column("text", "r.id"),
    "node_id": Column("text", "NULL"),
    "model": Column("text", "r.request_model"),
    "modelOverride": Column("text", "NULL"),
    "path": Column("text", "r.path"),
    "country_code": Column("text", "NULL"),
    "prompt_id": Column("text", "r.prompt_id"),
}
_RESPONSE = {
    "body_tokens": Column("number", TOTAL_TOKENS),
    "body_model": Column("text", "r.response_model"),
    "body_completion": Column("text", RESPONSE_BODY),
    "status": Column("number", "r.status"),
    "model": Column("text", "r.response_model"),
}
_RATED = {
    "id": Column("text", "f.request_id", _FEEDBACK),
    "created_at": Column("time", "f.created_at", _FEEDBACK),
    "rating": Column("flag", "(f.value = 'true')", _FEEDBACK),
    "response_id": Column("text", "coalesce(r.response_id, r.id)", _FEEDBACK),
}
TABLES: Mapping[str, Mapping[str, Column]] = {
    "request_response_rmt": _REQUEST_RESPONSE,
    "request_response_log": _REQUEST_RESPONSE,
    "request": _REQUEST,
    "response": _RESPONSE,
    "feedback": _RATED,
    "sessions_request_response_rmt": _SESSION,
    "users_view": _USER,
    "values": {},
    "properties": {},
}
KEYED: Mapping[str, Callable[[str], str]] = {"properties": str, "values": input_name}
"""Tables that are themselves `{key: {operator: value}}`, and how the property behind a key is called: the inputs of
prompts are kept as properties of their own."""


def condition(tree: Any, where: str = "filter") -> Condition:
    """Compile a filter. Raises ApiError(400) that names the part that is wrong."""
    found = _Compiler().node(tree, where, 0)
    return Condition(found.sql, tuple(map(_storable, found.values)))


def _storable(value: Any) -> Any:
    """Text as it is stored: SQLite takes no lone surrogates."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) and not value.isascii() else value


class _Compiler:
    def __init__(self) -> None:
        self.leaves = 0

    def node(self, node: Any, where: str, depth: int) -> Condition:
        if node is None or node == "all" or node == {}:
            return Condition("1")
        if depth > MAX_DEPTH:
            raise bad(f"the filter is nested more than {MAX_DEPTH} levels deep")
        if not isinstance(node, dict):
            raise bad(f'{_place(where)} should be "all", a branch or a leaf, not {_shown(node)}')
        if BRANCH & node.keys():
            return self.branch(node, where, depth)
        return _joined([self.table(name, columns, f"{where}.{name}") for name, columns in node.items()], "AND")

    def branch(self, node: Mapping[str, Any], where: str, depth: int) -> Condition:
        """A branch, with the branches of the same operator below it: a long chain makes no deep expression."""
        operator = self.operator(node, where)
        parts: list[Condition] = []
        waiting: list[tuple[Any, str]] = [(node["right"], f"{where}.right"), (node["left"], f"{where}.left")]
        while waiting:
            inner, place = waiting.pop()
            if len(parts) + len(waiting) > MAX_LEAVES:
                raise bad(f"the filter has more than {MAX_LEAVES} conditions")
            if isinstance(inner, dict) and BRANCH & inner.keys() and self.operator(inner, place) == operator:
                waiting += [(inner["right"], f"{place}.right"), (inner["left"], f"{place}.left")]
            else:
                parts.append(self.node(inner, place, depth + 1))
        return _joined(parts, operator)

    def operator(self, node: Mapping[str, Any], where: str) -> str:
        """The operator of a branch that has all its parts."""
        for name in ("left", "operator", "right"):
            if name not in node:
                raise bad(f"{_place(where)} is a branch without '{name}'; it needs left, operator and right")
        extra = sorted(node.keys() - BRANCH)
        if extra:
            raise bad(f"{_place(where)} is a branch, so {_shown(extra[0])} has no place in it")
        operator = node["operator"]
        if not isinstance(operator, str) or operator.lower() not in ("and", "or"):
            raise bad(f'{_place(where)}.operator should be "and" or "or", not {_shown(operator)}')
        return operator.upper()

    def table(self, name: str, columns: Any, where: str) -> Condition:
        if name not in TABLES:
            raise bad(f"{_place(where)}: there is no table {_shown(name)}; expected one of {', '.join(TABLES)}")
        if name in KEYED:
            return self.keyed("properties", "text", columns, where, KEYED[name])
        parts = []
        for column, operators in _object(columns, where).items():
            found = TABLES[name].get(column)
            if found is None:
                raise bad(
                    f"{_place(where)}: there is no column {_shown(column)}; expected one of {', '.join(TABLES[name])}"
                )
            inner = f"{where}.{column}"
            if found.kind.startswith("keyed"):
                parts.append(self.keyed(found.sql, found.kind.removeprefix("keyed "), operators, inner))
            else:
                parts.append(self.column(found, operators, inner))
        return _joined(parts, "AND")

    def keyed(self, table: str, kind: str, keys: Any, where: str, named: Callable[[str], str] = str) -> Condition:
        """`{key: {operator: value}}` on properties or scores."""
        name = "key" if table == "properties" else "name"
        sql = f"(SELECT x.value FROM {table} x WHERE x.request_id = r.id AND x.{name} = ? COLLATE NOCASE LIMIT 1)"
        parts = []
        for key, operators in _object(keys, where).items():
            wanted = named(key)[:MAX_VALUE]
            parts.append(self.column(Column(kind, sql), operators, f"{where}.{key}", (wanted,)))
        return _joined(parts, "AND")

    def column(self, column: Column, operators: Any, where: str, before: tuple[Any, ...] = ()) -> Condition:
        """`{operator: value}` on one column; `before` are the parameters of the column's own SQL."""
        parts = []
        for operator, value in _object(operators, where).items():
            self.leaves += 1
            if self.leaves > MAX_LEAVES:
                raise bad(f"the filter has more than {MAX_LEAVES} conditions")
            allowed = OPERATORS[column.kind]
            if operator not in allowed:
                raise bad(
                    f"{_place(where)}: {_shown(operator)} is no operator here; expected one of {', '.join(allowed)}"
                )
            parts.append(MAKERS[column.kind](column.sql, before, operator, value, f"{where}.{operator}"))
        joined = _joined(parts, "AND")
        return Condition(column.inside.format(joined.sql), joined.values)


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict) or not value:
        raise bad(f"{_place(where)} should be an object that is not empty, not {_shown(value)}")
    return value


def _joined(parts: list[Condition], operator: str) -> Condition:
    if len(parts) == 1:
        return parts[0]
    values = tuple(value for part in parts for value in part.values)
    return Condition("(" + f" {operator} ".join(part.sql for part in parts) + ")", values)


def _place(where: str) -> str:
    """A path short enough for a message."""
    return where if len(where) <= 200 else f"{where[:60]}...{where[-120:]}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


# -- one operator ---------------------------------------------------------------------------------------------------


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.lower() == "null")


def _null(sql: str, before: tuple[Any, ...], operator: str, where: str) -> Condition:
    if operator not in ("equals", "not-equals"):
        raise bad(f'{_place(where)}: only equals and not-equals take "null"')
    return Condition(f"{sql} IS {'NOT ' if operator == 'not-equals' else ''}NULL", before)


def _text(sql: str, before: tuple[Any, ...], operator: str, value: Any, where: str) -> Condition:
    if _is_null(value):
        if operator in ("equals", "not-equals"):
            twice = before + before
            empty = f"({sql} IS NULL OR {sql} = '')"
            return Condition(empty if operator == "equals" else f"NOT {empty}", twice)
        value = "null" if value is not None else None
    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, int | float):
        value = str(value)
    if not isinstance(value, str):
        raise bad(f"{_place(where)} should be text, not {_shown(value)}")
    if len(value) > MAX_VALUE:
        raise bad(f"{_place(where)} is longer than {MAX_VALUE} characters")
    if operator in ("like", "ilike") and len(value) > MAX_PATTERN:
        raise bad(f"{_place(where)}: a pattern has at most {MAX_PATTERN} characters; `contains` takes longer texts")
    if sql == "lower(r.provider)":
        value = value.lower()
    present = f"coalesce({sql}, '')"
    if operator == "equals":
        # Without coalesce for real values, so that an index can be used.
        return Condition(f"{sql} = ?" if value else f"{present} = ''", (*before, value) if value else before)
    if operator == "not-equals":
        return Condition(f"{present} <> ?", (*before, value))
    if operator in ("contains", "not-contains"):
        found = _contains(present, before, value)
        return Condition(f"NOT {found.sql}", found.values) if operator == "not-contains" else found
    if operator == "ilike":
        if value.isascii():
            return Condition(f"{present} LIKE ? ESCAPE '\\'", (*before, value))
        return Condition(f"fold({present}) LIKE ? ESCAPE '\\'", (*before, value.casefold()))
    return Condition(f"{present} GLOB ?", (*before, glob_of(value)))


def _contains(present: str, before: tuple[Any, ...], value: str) -> Condition:
    if value.isascii():
        return Condition(f"(instr(lower({present}), ?) > 0)", (*before, value.lower()))
    return Condition(f"(instr(fold({present}), ?) > 0)", (*before, value.casefold()))


def glob_of(pattern: str) -> str:
    """A LIKE pattern (`%`, `_`, backslash escapes) as a GLOB pattern, which minds case."""
    found = []
    escaped = False
    for char in pattern:
        if escaped or char not in "%_\\":
            found.append(f"[{char}]" if char in "*?[" else char)
            escaped = False
        elif char == "\\":
            escaped = True
        else:
            found.append("*" if char == "%" else "?")
    if escaped:
        found.append("\\")
    return "".join(found)


def _number(sql: str, before: tuple[Any, ...], operator: str, value: Any, where: str) -> Condition:
    if _is_null(value):
        return _null(sql, before, operator, where)
    number = to_number(value)
    if number is None:
        raise bad(f"{_place(where)} should be a number, not {_shown(value)}")
    if operator == "equals":
        return Condition(f"{sql} = ?", (*before, number))
    if operator == "not-equals":
        return Condition(f"{sql} IS NOT ?", (*before, number))
    return Condition(f"{sql} {COMPARISONS[operator]} ?", (*before, number))


def to_number(value: Any) -> float | int | None:
    """A number as clients send it, also as text or as true/false; None for anything else."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str):
        try:
            value = float(value.strip())
        except ValueError:
            return None
        if value.is_integer() and abs(value) < 2**53:
            return int(value)
    if isinstance(value, int):
        return value if abs(value) < 2**63 else None
    return value if isinstance(value, float) and math.isfinite(value) else None


def _time(sql: str, before: tuple[Any, ...], operator: str, value: Any, where: str) -> Condition:
    if _is_null(value):
        return _null(sql, before, operator, where)
    at = moment(value)
    if at is None:
        raise bad(f"{_place(where)} should be a time such as 2026-01-31T23:59:59Z, not {_shown(value)}")
    stored = stored_time(at)
    if operator == "equals":
        return Condition(f"{sql} = ?", (*before, stored))
    if operator == "not-equals":
        return Condition(f"{sql} IS NOT ?", (*before, stored))
    return Condition(f"{sql} {COMPARISONS[operator]} ?", (*before, stored))


def _flag(sql: str, before: tuple[Any, ...], operator: str, value: Any, where: str) -> Condition:
    if _is_null(value):
        return _null(sql, before, operator, where)
    truth = {"true": 1, "1": 1, "false": 0, "0": 0}.get(str(value).lower())
    if truth is None or isinstance(value, dict | list):
        raise bad(f"{_place(where)} should be true or false, not {_shown(value)}")
    return Condition(f"{sql} IS {'NOT ' if operator == 'not-equals' else ''}?", (*before, truth))


Maker = Callable[[str, tuple[Any, ...], str, Any, str], Condition]
MAKERS: Mapping[str, Maker] = {"text": _text, "number": _number, "time": _time, "flag": _flag}
