"""Numbers for programs are the numbers that were meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from heliproxy.api.pages.request import detail_values
from heliproxy.home import DATABASE_NAME
from heliproxy.queries import Detail
from heliproxy.rounding import without_noise
from heliproxy.store import Record, Store
from heliproxy.terminal_cli import statusline_command


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (0.1 + 0.2, 0.3),
        (0.4015893649999999, 0.401589365),
        (1e-9 + 2e-9, 3e-9),
        (-0.1 - 0.2, -0.3),
        (1234567.25, 1234567.25),
        (3, 3),
        (True, True),
        (None, None),
        ("0.30000000000000004", "0.30000000000000004"),
        (float("inf"), float("inf")),
    ],
)
def test_noise_of_sums_is_left_out(value: Any, plain: Any) -> None:
    assert without_noise(value) == plain
    assert type(without_noise(value)) is type(plain)


def test_statusline_adds_up_to_the_cent(tmp_path: Path) -> None:
    writer = Store(tmp_path / DATABASE_NAME).writer()
    for number, cost in enumerate((0.1, 0.2)):
        row = {"id": f"r{number}", "created_at": "2026-11-20T14:00:00.000Z", "status": 200, "cost_usd": cost}
        writer.add(Record({**row, "session_id": "s1", "model": f"m{number}"}))
    writer.flush(force=True)
    writer.close()
    result = CliRunner().invoke(
        statusline_command, ["--home", str(tmp_path), "--session", "s1", "--show", "session", "--json"]
    )
    assert json.loads(result.stdout)["session"]["cost_usd"] == 0.3


def test_request_as_json_has_no_noise() -> None:
    detail = Detail({"id": "r", "cost_usd": 0.1 + 0.2}, {}, {}, [], [], None)
    assert detail_values(detail)["cost_usd"] == 0.3
