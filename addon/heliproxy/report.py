"""Tables as people and programs want them: terminal table, JSON, NDJSON, CSV, Markdown.

Values come in raw and are formatted here. Text from the traffic (names, previews, errors) is never trusted: control
characters cannot reach a terminal, nor formulas a spreadsheet.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import unicodedata
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from heliproxy.csv_cells import FORMULA_STARTS, safe_cell
from heliproxy.rounding import amount_text, decimal_text, without_noise

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SCHEMA_VERSION = 1
FORMATS = ("table", "json", "ndjson", "csv", "md")

# C0 and C1 controls, DEL, line separators, and the marks that reorder text on screen.
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
UNSAFE_LINES = re.compile(UNSAFE.pattern.replace("\x00-\x1f", "\x00-\x08\x0b-\x1f"))

BOLD, RED, PLAIN = "\x1b[1m", "\x1b[31m", "\x1b[0m"


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its key in the rows and in JSON, its title, and what its values are.

    `kind` is text, int, usd, ms, share or json. `rank` says what is hidden first on a narrow terminal: the highest;
    0 never is.
    """

    key: str
    title: str
    kind: str = "text"
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """Rows to be shown, with an optional total row and, for JSON, whatever else describes them."""

    columns: tuple[Column, ...]
    rows: Sequence[Mapping[str, Any]]
    total: Mapping[str, Any] | None = None
    about: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    """Sentences below the table."""
    bad: Callable[[Mapping[str, Any]], bool] | None = None
    """Which rows tell of a failure."""


def render(table: Table, form: str, *, width: int | None = None, color: bool = False) -> str:
    """The table in one of `FORMATS`, ending with a line end. `width` bounds a terminal table; None does not."""
    if form == "json":
        return render_json(table)
    if form == "ndjson":
        return "".join(json_line(table.columns, row) for row in table.rows)
    if form == "csv":
        return render_csv(table)
    return render_markdown(table) if form == "md" else render_terminal(table, width, color)


# -- for programs ---------------------------------------------------------------------------------------------------


def json_value(kind: str, value: Any) -> Any:
    """Numbers without noise, unknown as null."""
    if kind == "usd":
        return None if value is None or not math.isfinite(value) else without_noise(value)
    if isinstance(value, float):
        return rounded(value, 6 if kind == "share" else 3)
    return value


def rounded(value: float, digits: int) -> float | int | None:
    if value != value or value in (float("inf"), float("-inf")):
        return None  # JSON has no such numbers
    short = round(value, digits)
    return int(short) if short == int(short) and abs(short) < 2**53 else short


def json_row(columns: Sequence[Column], row: Mapping[str, Any]) -> dict[str, Any]:
    return {c.key: json_value(c.kind, row.get(c.key)) for c in columns}


def json_line(columns: Sequence[Column], row: Mapping[str, Any]) -> str:
    return json.dumps({"schema_version": SCHEMA_VERSION, **json_row(columns, row)}) + "\n"


def render_json(table: Table) -> str:
    document: dict[str, Any] = {"schema_version": SCHEMA_VERSION, **(table.about or {})}
    document["rows"] = [json_row(table.columns, row) for row in table.rows]
    if table.total is not None:
        document["total"] = json_row([c for c in table.columns if c.key in table.total], table.total)
    document["notes"] = list(table.notes)
    return json.dumps(document, indent=2) + "\n"


def render_csv(table: Table) -> str:
    """RFC 4180 with a header and without the total row, which a spreadsheet would add to the sum."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow([safe_cell(c.key) for c in table.columns])
    for row in table.rows:
        writer.writerow([csv_value(c.kind, row.get(c.key)) for c in table.columns])
    return out.getvalue()


def csv_value(kind: str, value: Any) -> Any:
    if kind == "usd":
        return None if value is None else decimal_text(value)
    plain = json.dumps(value) if kind == "json" and value else json_value(kind, value)
    if isinstance(plain, dict | list):
        return ""
    if not isinstance(plain, str):
        return plain
    text = neutral(plain, lines=True)
    return f"'{text}" if plain.startswith(FORMULA_STARTS) else text


# -- for people -----------------------------------------------------------------------------------------------------


def neutral(text: str, *, lines: bool = False) -> str:
    r"""`text` with everything a terminal might obey written out (`\x1b`); with `lines`, tabs and newlines stay."""
    return (UNSAFE_LINES if lines else UNSAFE).sub(lambda m: m[0].encode("unicode_escape").decode(), text)


def dollars(usd: float | None) -> str:
    """Four decimals, and for small amounts enough to show two digits; unknown is a dash, never $0."""
    if usd is None:
        return "–"
    return f"${amount_text(usd)}" if abs(usd) < 100 else f"${usd:,.2f}"


def duration(ms: float | None) -> str:
    if ms is None:
        return "–"
    if ms < 1000:
        return f"{ms:.0f} ms"
    return f"{ms / 1000:.2f} s" if ms < 100_000 else f"{ms / 1000:,.0f} s"


def count_text(value: float | None, *, short: bool = False) -> str:
    if value is None:
        return "–"
    if short and abs(value) >= 10_000:
        for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= size:
                return f"{value / size:.1f}{unit}"
    return f"{value:,.6g}" if isinstance(value, float) else f"{value:,}"


def cell(column: Column, value: Any, *, short: bool = False) -> str:
    if column.kind == "usd":
        return dollars(value)
    if column.kind == "ms":
        return duration(value)
    if column.kind == "share":
        return "–" if value is None else f"{value:.0%}" if value == 0 or value >= 0.01 else "<1%"
    if column.kind == "json":
        return neutral(" ".join(f"{k}={v}" for k, v in (value or {}).items()))
    if column.kind == "int" and isinstance(value, int | float):
        return count_text(value, short=short)
    return "–" if value is None else neutral(str(value))


def cells(columns: Sequence[Column], row: Mapping[str, Any], *, short: bool = False) -> list[str]:
    return [
        "unknown" if c.key == "cost_usd" and row.get("cost_usd") is None and row.get("unpriced") else text
        for c, text in ((c, cell(c, row.get(c.key), short=short)) for c in columns)
    ]


def display_width(text: str) -> int:
    """Columns on a terminal: wide East Asian characters take two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) or c == "\u200d" else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def cut(text: str, width: int) -> str:
    if display_width(text) <= width:
        return text
    while text and display_width(text) > width - 1:
        text = text[:-1]
    return text + "…"


def render_terminal(table: Table, width: int | None, color: bool) -> str:
    columns, widths, grid, hidden = layout(table, width)
    lines = [row_line(columns, widths, [c.title for c in columns])]
    ruler = "  ".join("─" * w for w in widths)
    styles = [BOLD] + [RED if table.bad and table.bad(row) else "" for row in table.rows]
    lines += [row_line(columns, widths, texts) for texts in grid[: len(table.rows)]]
    if table.total is not None:
        lines += [ruler, row_line(columns, widths, grid[-1])]
        styles += ["", BOLD]
    if color:
        lines = [f"{style}{line}{PLAIN}" if style else line for style, line in zip(styles, lines, strict=True)]
    lines += [neutral(note) for note in table.notes]
    if hidden:
        lines.append(f"not shown for lack of width: {', '.join(hidden)}")
    return "\n".join(lines) + "\n"


def row_line(columns: Sequence[Column], widths: Sequence[int], texts: Sequence[str]) -> str:
    parts = []
    for column, width, text in zip(columns, widths, texts, strict=True):
        text = cut(text, width)
        pad = " " * (width - display_width(text))
        parts.append(text + pad if column.kind in ("text", "json") else pad + text)
    return "  ".join(parts).rstrip()


def layout(table: Table, width: int | None) -> tuple[list[Column], list[int], list[list[str]], list[str]]:
    """Fit the table into `width`: (columns, their widths, cells with the total last, titles of hidden columns).

    First numbers are shortened, then texts, then columns hidden by their rank.
    """
    columns = list(table.columns)
    hidden: list[str] = []
    grid = cells_of(table, columns, short=False)
    widths = natural_widths(columns, grid)
    if width is None or total_width(widths) <= width:
        return columns, widths, grid, hidden
    while True:
        grid = cells_of(table, columns, short=True)
        widths = natural_widths(columns, grid)
        shrink(columns, widths, total_width(widths) - width)
        rank = max((c.rank for c in columns), default=0)
        if total_width(widths) <= width or rank == 0:
            return columns, widths, grid, hidden
        last = max(i for i, c in enumerate(columns) if c.rank == rank)
        hidden.append(columns.pop(last).title)


def cells_of(table: Table, columns: Sequence[Column], *, short: bool) -> list[list[str]]:
    grid = [cells(columns, row, short=short) for row in table.rows]
    if table.total is not None:
        grid.append(cells(columns, table.total, short=short))
        name_total(columns, grid[-1], table.total)
    return grid


def natural_widths(columns: Sequence[Column], grid: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(display_width, (c.title, *(texts[i] for texts in grid)))) for i, c in enumerate(columns)]


def total_width(widths: Sequence[int]) -> int:
    return sum(widths) + 2 * (len(widths) - 1)


def name_total(columns: Sequence[Column], texts: list[str], total: Mapping[str, Any]) -> None:
    for i, column in enumerate(columns):
        if column.key not in total:
            texts[i] = "" if i else "total"


def shrink(columns: Sequence[Column], widths: list[int], over: int) -> None:
    """Take `over` columns of screen from the widest texts, leaving each at least 10."""
    texts = [i for i, c in enumerate(columns) if c.kind in ("text", "json") and widths[i] > 10]
    while over > 0 and texts:
        widest = max(texts, key=lambda i: widths[i])
        if widths[widest] <= 10:
            return
        widths[widest] -= 1
        over -= 1


def render_markdown(table: Table) -> str:
    lines = [markdown_line([c.title for c in table.columns])]
    lines.append("|" + "|".join("---" if c.kind in ("text", "json") else "---:" for c in table.columns) + "|")
    lines += [markdown_line(cells(table.columns, row)) for row in table.rows]
    if table.total is not None:
        last = cells(table.columns, table.total)
        name_total(table.columns, last, table.total)
        lines.append(markdown_line([f"**{text}**" if text else "" for text in last]))
    if table.notes:
        lines += ["", *(markdown_text(note) for note in table.notes)]
    return "\n".join(lines) + "\n"


def markdown_line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(map(markdown_text, texts)) + " |"


def markdown_text(text: str) -> str:
    """`text` as it reads, inside a table cell: no markup but our own bold, no HTML, no cell borders."""
    bold = text.startswith("**") and text.endswith("**") and len(text) > 4
    inner = text[2:-2] if bold else text
    inner = neutral(inner).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "\\`")
    return f"**{inner}**" if bold else inner


# -- reports --------------------------------------------------------------------------------------------------------

COST_COLUMNS = (
    Column("requests", "requests", "int"),
    Column("errors", "errors", "int", 1),
    Column("hits", "hits", "int", 3),
    Column("input_tokens", "input", "int", 1),
    Column("output_tokens", "output", "int", 1),
    Column("cache_read_tokens", "cached", "int", 4),
    Column("reasoning_tokens", "reasoning", "int", 5),
    Column("cost_usd", "cost", "usd"),
    Column("fees_usd", "tool fees", "usd", 7),
    Column("saved_usd", "saved", "usd", 3),
    Column("p50_ms", "p50", "ms", 2),
    Column("p95_ms", "p95", "ms", 2),
    Column("estimated_share", "estimated", "share", 6),
    Column("unpriced", "unpriced", "int", 6),
)


def hideable(columns: tuple[Column, ...], rows: Sequence[Mapping[str, Any]]) -> tuple[Column, ...]:
    """The columns, with those that say nothing in any of `rows` made the first to be hidden."""
    return tuple(replace(c, rank=9) if c.rank and not any(row.get(c.key) for row in rows) else c for c in columns)


def request_word(count: int) -> str:
    return f"{count:,} request" if count == 1 else f"{count:,} requests"


def lost_words(count: int) -> str:
    """`3 requests whose end was not seen ...`."""
    return f"{request_word(count)} whose end was not seen, as heliproxy itself ended (killed, crashed, power cut)"
