"""Values into tables, for people and for programs."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from heliproxy import report
from heliproxy.report import Column, Table, render
from heliproxy.rounding import decimal_text

COLUMNS = (
    Column("model", "model"),
    Column("requests", "requests", "int"),
    Column("cost_usd", "cost", "usd"),
    Column("p95_ms", "p95", "ms", 2),
    Column("share", "estimated", "share", 1),
)
ROWS = (
    {"model": "gpt-4o", "requests": 12345, "cost_usd": 1.5, "p95_ms": 1234.5678, "share": 0.25},
    {"model": None, "requests": 1, "cost_usd": None, "p95_ms": None, "share": 0.0, "unpriced": 1},
)
TOTAL = {"requests": 12346, "cost_usd": 1.5, "p95_ms": 1200.0, "share": 0.2}
TABLE = Table(COLUMNS, ROWS, TOTAL, {"command": "costs"}, ("One note.",))


def test_terminal_table_ends_with_the_total_and_never_shows_an_unknown_cost_as_zero() -> None:
    assert render(TABLE, "table").splitlines() == [
        "model   requests     cost     p95  estimated",
        "gpt-4o    12,345  $1.5000  1.23 s        25%",
        "–              1  unknown       –         0%",
        "──────  ────────  ───────  ──────  ─────────",
        "total     12,346  $1.5000  1.20 s        20%",
        "One note.",
    ]


def test_narrow_terminal_shortens_numbers_then_texts_then_hides_columns() -> None:
    long = Table(COLUMNS, [{**ROWS[0], "model": "a-very-long-model-name-indeed"}], TOTAL)
    for width in range(24, 70):
        lines = render(long, "table", width=width).splitlines()
        fitting = [line for line in lines if not line.startswith("not shown")]
        assert max(map(report.display_width, fitting)) <= max(width, 29)
    narrow = render(long, "table", width=36)
    assert narrow.splitlines()[-1] == "not shown for lack of width: p95, estimated"
    assert "a-very-lo" in narrow
    assert "12.3k" in narrow


def test_colours_only_when_asked() -> None:
    assert "\x1b" not in render(TABLE, "table")
    table = Table(COLUMNS, ROWS, TOTAL, bad=lambda row: row["model"] is None)
    lines = render(table, "table", color=True).splitlines()
    assert lines[0].startswith("\x1b[1mmodel")
    assert lines[2].startswith("\x1b[31m")


def test_json_has_raw_numbers_decimal_money_and_null_for_unknown() -> None:
    assert json.loads(render(TABLE, "json")) == {
        "schema_version": 1,
        "command": "costs",
        "rows": [
            {"model": "gpt-4o", "requests": 12345, "cost_usd": 1.5, "p95_ms": 1234.568, "share": 0.25},
            {"model": None, "requests": 1, "cost_usd": None, "p95_ms": None, "share": 0},
        ],
        "total": {"requests": 12346, "cost_usd": 1.5, "p95_ms": 1200, "share": 0.2},
        "notes": ["One note."],
    }


def test_ndjson_is_one_object_a_row() -> None:
    lines = render(TABLE, "ndjson").splitlines()
    assert [json.loads(line)["model"] for line in lines] == ["gpt-4o", None]
    assert json.loads(lines[0])["schema_version"] == 1


@pytest.mark.parametrize("form", report.FORMATS)
def test_empty_table_still_has_its_header(form: str) -> None:
    text = render(Table(COLUMNS, []), form)
    assert ("model" in text) == (form not in ("ndjson", "json"))
    if form == "json":
        assert json.loads(text)["rows"] == []


def test_csv_is_rfc_4180() -> None:
    rows = [{"model": 'a "quoted", name\nin two lines', "requests": -3, "cost_usd": -0.5}]
    text = render(Table(COLUMNS, rows), "csv")
    assert text == ('model,requests,cost_usd,p95_ms,share\r\n"a ""quoted"", name\nin two lines",-3,-0.5,,\r\n')


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_csv_text_cannot_be_a_formula(start: str) -> None:
    text = render(Table(COLUMNS, [{"model": f"{start}cmd|' /C calc'!A0"}]), "csv")
    [[cell, *_]] = list(csv.reader(io.StringIO(text, newline="")))[1:]
    assert cell.startswith("'")


@pytest.mark.parametrize("form", ["table", "md", "csv"])
@pytest.mark.parametrize("evil", ["\x1b[2J", "\x9b2J", "\x07", "\u202e", "\x7f", "\ud800", "\x00", "\u2028"])
def test_control_characters_are_written_out(form: str, evil: str) -> None:
    table = Table(COLUMNS, [{"model": f"a{evil}b"}], notes=(f"note {evil}",))
    text = render(table, form)
    assert evil not in text
    assert "a\\" in text
    text.encode()


def test_json_output_is_ascii() -> None:
    text = render(Table(COLUMNS, [{"model": "\x9b é \ud800"}]), "json")
    assert text.isascii()


def test_markdown_cells_cannot_break_out() -> None:
    rows: list[dict[str, Any]] = [{"model": "a|b\nc <b>`x`", "requests": 1}]
    lines = render(Table(COLUMNS[:2], rows, {"requests": 1}), "md").splitlines()
    assert lines == [
        "| model | requests |",
        "|---|---:|",
        "| a\\|b\\\\nc &lt;b>\\`x\\` | 1 |",
        "| **total** | **1** |",
    ]


@pytest.mark.parametrize(
    ("usd", "shown"),
    [
        (None, "–"),
        (0.0, "$0.0000"),
        (0.0000001, "$0.00000010"),
        (0.000135, "$0.00014"),
        (0.0099, "$0.0099"),
        (0.5, "$0.5000"),
        (99.12345, "$99.1235"),
        (1234.5, "$1,234.50"),
    ],
)
def test_dollars(usd: float | None, shown: str) -> None:
    assert report.dollars(usd) == shown


@pytest.mark.parametrize(
    ("usd", "text"), [(0.0, "0"), (1e-9, "0.000000001"), (0.1 + 0.2, "0.3"), (1234.5, "1234.5"), (-1e-12, "0")]
)
def test_decimal_text(usd: float, text: str) -> None:
    assert decimal_text(usd) == text


def test_wide_characters_keep_columns_straight() -> None:
    lines = render(
        Table(COLUMNS[:2], [{"model": "日本語", "requests": 1}, {"model": "e\u0301", "requests": 2}]), "table"
    )
    assert len({report.display_width(line) for line in lines.splitlines()}) == 1


def test_columns_without_news_are_hidden_first() -> None:
    columns = (Column("a", "a"), Column("b", "b", "int", 1), Column("c", "c", "int", 2))
    assert [c.rank for c in report.hideable(columns, [{"a": "x", "b": 0, "c": 5}])] == [0, 9, 2]
