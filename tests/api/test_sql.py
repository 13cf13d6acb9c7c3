"""HQL: what runs, what does not, and how both end."""

from __future__ import annotations

import pytest

from api_rig import Rig
from heliproxy.api import sql as hql


@pytest.fixture
def logged(rig: Rig) -> Rig:
    for i in range(4):
        rig.add(
            f"r{i}", model=("a", "b")[i % 2], cost_usd=0.25, input_tokens=10, output_tokens=5, properties={"k": f"v{i}"}
        )
    return rig


def run(rig: Rig, sql: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = rig.post("/v1/helicone-sql/execute", {"sql": sql})["rows"]
    return rows


def test_the_view_answers(logged: Rig) -> None:
    sql = "SELECT model, count(*) AS n, sum(cost) / 1e9 AS usd FROM request_response_rmt GROUP BY model ORDER BY model;"
    assert run(logged, sql) == [{"model": "a", "n": 2, "usd": 0.5}, {"model": "b", "n": 2, "usd": 0.5}]
    found = logged.post("/v1/helicone-sql/execute", {"sql": "select 1 as one"})
    assert (found["rows"], found["rowCount"]) == ([{"one": 1}], 1)
    assert found["elapsedMilliseconds"] >= 0


def test_clickhouse_idioms(logged: Rig) -> None:
    sql = "SELECT count(*) n FROM request_response_rmt WHERE request_created_at > now() - INTERVAL 100 YEAR"
    assert run(logged, sql) == [{"n": 4}]
    assert run(logged, "SELECT DISTINCT toStartOfDay(request_created_at) d FROM request_response_rmt") == [
        {"d": "2026-09-01T00:00:00.000Z"}
    ]


def test_subqueries_and_json(logged: Rig) -> None:
    sql = "WITH t AS (SELECT id FROM requests) SELECT count(*) AS n FROM t, json_each('[1,2]')"
    assert run(logged, sql) == [{"n": 8}]
    assert run(logged, "WITH t AS (SELECT id FROM requests) SELECT count(*) AS n FROM t") == [{"n": 4}]
    sql = "SELECT json_extract(properties, '$.k') AS k FROM request_response_rmt WHERE request_id = 'r2'"
    assert run(logged, sql) == [{"k": "v2"}]


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("DELETE FROM requests", "[NOT_ALLOWED]"),
        ("INSERT INTO scores VALUES ('r0', 'q', 1, 'number')", "[NOT_ALLOWED]"),
        ("DROP TABLE requests", "[NOT_ALLOWED]"),
        ("CREATE TABLE x (a)", "[NOT_ALLOWED]"),
        ("PRAGMA query_only = 0", "[NOT_ALLOWED]"),
        ("ATTACH DATABASE 'x.db' AS x", "[NOT_ALLOWED]"),
        ("SELECT * FROM objects", "[NOT_ALLOWED]"),
        ("SELECT * FROM sqlite_master", "[NOT_ALLOWED]"),
        ("SELECT * FROM pragma_table_info('requests')", "[NOT_ALLOWED]"),
        ("SELECT load_extension('x')", "[NOT_ALLOWED]"),
        ("SELECT printf('%.*c', 900000000, 'x')", "[NOT_ALLOWED]"),
        ("SELECT 1; SELECT 2", "[NOT_ALLOWED]"),
        ("SELECT * FROM nope", "[UNKNOWN_TABLE]"),
        ("SELEC 1", "[SYNTAX_ERROR]"),
        ("SELECT zeroblob(100000000)", "[SYNTAX_ERROR]"),
        ("SELECT '\u0000", "[SYNTAX_ERROR]"),
        ("  ;", "[NOT_ALLOWED]"),
    ],
)
def test_only_reading_is_allowed(logged: Rig, sql: str, code: str) -> None:
    assert logged.error("/v1/helicone-sql/execute", {"sql": sql}).startswith(code)
    assert logged.post("/v1/request/count/query") == 4


def test_text_functions_are_those_of_sqlite(logged: Rig) -> None:
    sql = (
        "SELECT instr(123, 2) a, instr('h\u00e9llo', 'l') b, instr(x'616263', x'63') c, instr(NULL, 'a') d,"
        " replace(1.5, '.', ',') e, replace('a', '', 'b') f, replace('a', NULL, 'b') g,"
        " trim('  a ') h, trim('xax', 'x') i, ltrim(NULL) j, rtrim('ab', 'b') k, trim('a\t') l, ltrim('aab', 'a') m"
    )
    assert run(logged, sql) == [
        {"a": 2, "b": 3, "c": 3, "d": None, "e": "1,5", "f": "a", "g": None}
        | {"h": "a", "i": "a", "j": None, "k": "a", "l": "a\t", "m": "b"}
    ]


def test_endless_queries_end(logged: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hql, "SECONDS", 0.2)
    endless = "WITH RECURSIVE t(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM t) SELECT sum(x) FROM t"
    assert logged.error("/v1/helicone-sql/execute", {"sql": endless}).startswith("[TIMEOUT]")


def test_rows_are_bounded(logged: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hql, "MAX_ROWS", 600)
    many = "WITH RECURSIVE t(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM t) SELECT x FROM t LIMIT 5000"
    assert len(run(logged, many)) == 600


def test_odd_values_are_json(logged: Rig) -> None:
    assert run(logged, "SELECT 9e999 AS a, x'ff00' AS b, x'6869' AS c, 1 AS d, 2 AS d") == [
        {"a": None, "b": "/wA=", "c": "hi", "d": 1, "d_2": 2}
    ]


def test_a_result_as_csv(logged: Rig) -> None:
    url = logged.post("/v1/helicone-sql/download", {"sql": "SELECT id, '-1' AS '=f' FROM requests ORDER BY id LIMIT 2"})
    assert url.startswith("http://127.0.0.1:8585/v1/helicone-sql/download/")
    answer = logged.client.get(url)
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.text == "id,'=f\r\nr0,'-1\r\nr1,'-1\r\n"
    assert logged.client.get(url[:-3]).status_code == 404


def test_the_schema_lists_the_main_table_first(logged: Rig) -> None:
    tables = logged.get("/v1/helicone-sql/schema")
    assert tables[0]["table_name"] == "request_response_rmt"
    assert "request_created_at" in [column["name"] for column in tables[0]["columns"]]


def test_saved_queries(logged: Rig) -> None:
    (made,) = logged.post("/v1/helicone-sql/saved-query", {"name": "mine", "sql": "select 1"})
    assert logged.get("/v1/helicone-sql/saved-queries") == [made]
    put = logged.client.put(f"/v1/helicone-sql/saved-query/{made['id']}", json={"name": "yours", "sql": "select 2"})
    assert put.json()["data"]["name"] == "yours"
    assert logged.get(f"/v1/helicone-sql/saved-query/{made['id']}")["sql"] == "select 2"
    logged.post("/v1/helicone-sql/saved-queries/bulk-delete", {"ids": [made["id"]]})
    assert logged.get("/v1/helicone-sql/saved-queries") == []
    assert logged.client.delete("/v1/helicone-sql/saved-query/nope").status_code == 200
