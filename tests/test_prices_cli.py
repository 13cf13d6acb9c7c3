"""`heliproxy prices` and `heliproxy recost`."""

from __future__ import annotations

import json
import shutil
import sqlite3
import zipfile
from pathlib import Path
from typing import Any

import genai_prices
import pytest
from click.testing import CliRunner, Result

from heliproxy import price_update, prices_cli
from heliproxy.price_dump import plain
from heliproxy.pricing import Prices
from heliproxy.recost import recost_rows
from heliproxy.store import Record, Store


def invoke(*args: str, home: Path) -> Result:
    command = prices_cli.recost if args[0] == "recost" else prices_cli.prices
    rest = args[1:] if args[0] == "recost" else args
    return CliRunner().invoke(command, [*rest, "--home", str(home)])


@pytest.fixture(scope="session")
def published() -> list[dict[str, Any]]:
    """The installed data in the shape in which it is published."""
    from genai_prices.data import providers

    raw: list[dict[str, Any]] = plain(providers)
    return raw


def changed(published: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A newer edition: gpt-4o at another price, one model more."""
    raw = json.loads(json.dumps(published))
    openai = next(provider for provider in raw if provider["id"] == "openai")
    next(model for model in openai["models"] if model["id"] == "gpt-4o")["prices"] = {"input_mtok": 7, "output_mtok": 9}
    openai["models"].append(
        {"id": "gpt-99", "match": {"equals": "gpt-99"}, "prices": {"input_mtok": 1, "output_mtok": 2}}
    )
    return raw


def test_show_names_source_and_price(home: Path) -> None:
    result = invoke("show", "gpt-4o-mini", home=home)
    assert result.exit_code == 0
    assert "openai:gpt-4o-mini  (genai-prices, genai-prices " in result.stdout
    assert "input $0.15, cache_read $0.075, output $0.6" in result.stdout
    assert not home.exists()


def test_show_json_lists_every_source(home: Path) -> None:
    home.mkdir()
    (home / "prices.toml").write_text('[[price]]\nmodel = "gpt-4o"\ninput = 1\n', encoding="utf-8")
    quotes = json.loads(invoke("show", "gpt-4o", "--json", home=home).stdout)
    assert [quote["source"] for quote in quotes] == ["override", "genai-prices"]
    assert quotes[0]["prices"] == "input $1"


def test_show_at_a_time(home: Path) -> None:
    assert "input $10," in invoke("show", "o3", "--at", "2025-06-01", home=home).stdout
    assert "input $2," in invoke("show", "o3", "--at", "2025-07-01", home=home).stdout


def test_show_unknown_model_fails(home: Path) -> None:
    result = invoke("show", "no-such-model", home=home)
    assert result.exit_code == 1
    assert "no source knows a price for 'no-such-model'" in result.output


def test_alias_is_listed_used_and_removed(home: Path) -> None:
    made = invoke("alias", "my-deployment", "gpt-4o", home=home)
    assert (made.exit_code, made.stdout) == (0, "my-deployment is priced as gpt-4o from now on\n")
    assert invoke("alias", home=home).stdout == "my-deployment = gpt-4o\n"
    assert "azure:gpt-4o" in invoke("show", "my-deployment", "--provider", "azure", home=home).stdout
    assert invoke("alias", "my-deployment", "--remove", home=home).stdout == "forgot the alias my-deployment\n"
    assert invoke("alias", home=home).stdout == ""
    assert "no alias 'my-deployment'" in invoke("alias", "my-deployment", "--remove", home=home).output


def test_alias_of_an_unknown_model_is_noted(home: Path) -> None:
    assert "no source knows a price" in invoke("alias", "a", "no-such-model", home=home).output
    assert invoke("alias", "a", home=home).exit_code == 2


def test_update_from_a_file_shows_the_changes_and_keeps_the_last(home: Path, tmp_path: Path, published: Any) -> None:
    file = tmp_path / "data.json"
    file.write_text(json.dumps(changed(published)), encoding="utf-8")
    dry = invoke("update", "--from", str(file), "--dry-run", home=home)
    assert "+ openai:gpt-99  input $1, output $2" in dry.output
    assert "~ openai:gpt-4o  input $2.5, cache_read $1.25, output $10" in dry.output
    assert not (home / "prices.json").exists()

    assert invoke("update", "--from", str(file), home=home).exit_code == 0
    assert (home / "prices.json").stat().st_mode & 0o777 == 0o600
    assert "input $7, output $9" in invoke("show", "gpt-4o", home=home).stdout

    file.write_text(json.dumps(published), encoding="utf-8")
    assert "- openai:gpt-99" in invoke("update", "--from", str(file), home=home).output
    assert "+ openai:gpt-99" in invoke("update", "--revert", home=home).output
    assert "input $7, output $9" in invoke("show", "gpt-4o", home=home).stdout


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is not JSON"),
        ("{}", "is not a price table"),
        ("[]", "non-empty array"),
        ('[{"id": "openai"}]', "does not validate"),
        ('[{"id": "openai", "name": "x", "api_pattern": "x", "models": []}]', "it has no price for openai:gpt-4o"),
    ],
)
def test_unfit_data_changes_nothing(home: Path, tmp_path: Path, content: str, reason: str) -> None:
    file = tmp_path / "data.json"
    file.write_text(content, encoding="utf-8")
    result = invoke("update", "--from", str(file), home=home)
    assert result.exit_code == 1
    assert "the prices in use stay" in result.output
    assert reason in result.output
    assert not home.exists()


@pytest.mark.parametrize("indent", [None, 1])
def test_table_stored_by_an_older_version_is_read(home: Path, published: Any, indent: int | None) -> None:
    home.mkdir()
    stored = {"version": "genai-prices 0.9", "providers": changed(published)}
    (home / "prices.json").write_text(json.dumps(stored, indent=indent), encoding="utf-8")
    assert Prices(home).table.version == "genai-prices 0.9"
    assert "input $7, output $9" in invoke("show", "gpt-4o", home=home).stdout


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\n]}\n", b"\n"),  # cut short
        (b'{"id":"openai",', b'{"id":"openai"'),
        (b'{"id":"openai",', b'{"id":7,"was":"openai",'),
        (b'"input_mtok":7', b'"input_mtok":-7'),
        (b'{"equals":"gpt-99"}', b'{"eqauls":"gpt-99"}'),
        (b'"version":"', b'"version":7,"v":"'),
        (b'"dated":"', b'"dated":"on '),
        (b'"dated":"', b'"dated":5,"d":"'),
    ],
)
def test_stored_table_that_was_damaged_is_refused(
    home: Path, published: Any, caplog: pytest.LogCaptureFixture, old: bytes, new: bytes
) -> None:
    home.mkdir()
    price_update.store_table(home, json.dumps(changed(published)).encode(), "data.json")
    assert "input $7, output $9" in invoke("show", "gpt-4o", home=home).stdout
    file = home / "prices.json"
    assert file.read_bytes().count(old)
    file.write_bytes(file.read_bytes().replace(old, new))
    assert "input $2.5, cache_read $1.25, output $10" in invoke("show", "gpt-4o", home=home).stdout
    assert "the stored price table is not used: " in caplog.text


def test_stored_table_is_read_as_its_models_are_called(home: Path, published: Any) -> None:
    home.mkdir()
    price_update.store_table(home, json.dumps(changed(published)).encode(), "data.json")
    table = Prices(home).table
    assert table.find("openai", "gpt-99") is not None
    assert [provider.id for provider in table.providers if provider._models is not None] == ["openai"]
    assert table.dated == Prices(None).table.dated


def test_stored_table_that_was_edited_is_checked_and_used(home: Path, published: Any) -> None:
    home.mkdir()
    price_update.store_table(home, json.dumps(changed(published)).encode(), "data.json")
    file = home / "prices.json"
    file.write_bytes(file.read_bytes().replace(b'"input_mtok":7,', b'"input_mtok":8,'))
    assert "input $8, output $9" in invoke("show", "gpt-4o", home=home).stdout


def test_data_that_genai_prices_itself_refuses_changes_nothing(home: Path, tmp_path: Path, published: Any) -> None:
    raw = json.loads(json.dumps(published))
    del raw[0]["api_pattern"]  # of no use to us
    file = tmp_path / "data.json"
    file.write_text(json.dumps(raw), encoding="utf-8")
    assert "does not validate" in invoke("update", "--from", str(file), home=home).output


def test_table_that_lost_most_models_is_refused(home: Path, tmp_path: Path, published: Any) -> None:
    file = tmp_path / "data.json"
    kept = [provider for provider in published if provider["id"] in ("openai", "anthropic", "google")]
    file.write_text(json.dumps(kept), encoding="utf-8")
    assert "models where the table in use has" in invoke("update", "--from", str(file), home=home).output


def test_update_from_a_wheel(home: Path, tmp_path: Path) -> None:
    package = Path(genai_prices.__file__).parent
    wheel = tmp_path / "genai_prices-99.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in package.glob("*.py"):
            archive.write(file, f"genai_prices/{file.name}")
        archive.writestr(
            "genai_prices-99.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: genai-prices\nVersion: 99.0\n"
        )
    result = invoke("update", "--wheel", str(wheel), home=home)
    assert result.exit_code == 0, result.output
    assert "-> genai-prices 99.0: 0 models change" in result.output
    assert Prices(home).table.version == "genai-prices 99.0"


def test_other_zip_is_no_wheel(home: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("other/__init__.py", "")
    assert "is not a usable genai-prices wheel" in invoke("update", "--wheel", str(wheel), home=home).output


def test_update_needs_one_source(home: Path) -> None:
    assert invoke("update", home=home).exit_code == 2
    assert invoke("update", "--online", "--revert", home=home).exit_code == 2


def test_failed_download_changes_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(price_update, "download", lambda: (_ for _ in ()).throw(OSError("no route")))
    assert "the prices in use stay: no route" in invoke("update", "--online", home=home).output


def row(number: int, **values: Any) -> Record:
    fixed = {
        "id": f"id-{number}",
        "created_at": f"2026-08-{number:02}T10:00:00.000Z",
        "provider": "openai",
        "host": "api.openai.com",
        "path": "/v1/chat/completions",
        "method": "POST",
        "model": "gpt-4o-mini",
        "request_model": "gpt-4o-mini",
        "response_model": "gpt-4o-mini-2024-07-18",
        "format": "openai_chat",
        "status": 200,
        "usage_source": "provider",
        "input_tokens": 1000,
        "output_tokens": 100,
    }
    return Record({**fixed, **values})


def stored(home: Path, *records: Record) -> Path:
    path = home / "heliproxy.db"
    writer = Store(path).writer()
    for record in records:
        writer.add(record)
    writer.close()
    return path


def costs(path: Path) -> dict[str, tuple[Any, ...]]:
    conn = sqlite3.connect(path)
    try:
        return {row[0]: row[1:] for row in conn.execute("SELECT id, cost_usd, cost_source, price_id FROM requests")}
    finally:
        conn.close()


RIGHT = (1000 * 0.15 + 100 * 0.6) / 1e6


def test_recost_prices_what_the_columns_and_the_usage_object_say(home: Path) -> None:
    anthropic = {
        "provider": "anthropic",
        "host": "api.anthropic.com",
        "path": "/v1/messages",
        "format": "anthropic_messages",
        "model": "claude-sonnet-4-5",
        "request_model": "claude-sonnet-4-5",
        "response_model": "claude-sonnet-4-5-20250929",
    }
    searched = {"input_tokens": 1000, "output_tokens": 100, "server_tool_use": {"web_search_requests": 1}}
    path = stored(
        home,
        row(1),
        row(2, cost_usd=5.0, cost_source="genai-prices", price_version="old"),
        row(3, cost_usd=5.0, cost_source="provider"),
        row(4, usage_source="none", input_tokens=None, output_tokens=None),
        row(5, cache="HIT", cost_usd=0.0, cost_source="cache", input_tokens=0, output_tokens=0),
        row(6, response_model="no-such-model", model="no-such-model", request_model=None),
        row(
            7,
            response_model="no-such-model",
            model="no-such-model",
            request_model=None,
            cost_usd=0.5,
            cost_source="override",
        ),
        row(8, **anthropic, usage_json=json.dumps(searched)),
        row(9, **anthropic, usage_json='{"input_tokens": 7}'),
        row(10, **anthropic, usage_json="{"),
        row(11, service_tier="priority", cost_usd=1.0, cost_source="genai-prices"),
    )
    result = invoke("recost", home=home)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(
        "8 requests looked at, 6 changed (4 had no price before), 1 still without a price\n"
    )
    found = costs(path)
    assert found["id-1"] == (pytest.approx(RIGHT), "genai-prices", "openai:gpt-4o-mini")
    assert found["id-2"][0] == pytest.approx(RIGHT)
    assert found["id-3"][:2] == (5.0, "provider")
    assert found["id-4"][0] is None
    assert found["id-5"][:2] == (0.0, "cache")
    assert found["id-6"][0] is None
    assert found["id-7"][:2] == (0.5, "override")
    assert found["id-8"][0] == pytest.approx(0.0045 + 0.01)
    assert found["id-9"][0] == found["id-10"][0] == pytest.approx(0.0045)
    assert found["id-11"][0] == pytest.approx((1000 * 0.25 + 100 * 1.0) / 1e6)


def test_recost_of_a_time_and_dry_run(home: Path) -> None:
    path = stored(home, *(row(number) for number in range(1, 11)))
    assert "10 would change" in invoke("recost", "--dry-run", home=home).stdout
    assert all(cost[0] is None for cost in costs(path).values())
    assert "5 requests looked at, 5 changed" in invoke("recost", "--since", "2026-08-06T00:00Z", home=home).stdout
    assert sum(cost[0] is not None for cost in costs(path).values()) == 5


def test_recost_of_many_rows_and_of_a_copy(home: Path, tmp_path: Path) -> None:
    path = stored(home, *(row(1 + number % 28, id=f"many-{number}") for number in range(1201)))
    copy = tmp_path / "copy.db"
    shutil.copy(path, copy)
    totals = recost_rows(copy, Prices(home))
    assert (totals.rows, totals.changed) == (1201, 1201)
    assert recost_rows(copy, Prices(home)).changed == 0
    assert totals.after_usd == pytest.approx(1201 * RIGHT)


def test_recost_without_a_database_fails(home: Path) -> None:
    result = invoke("recost", home=home)
    assert result.exit_code == 1
    assert "no database" in result.output


def test_check_reports_what_needs_attention(home: Path) -> None:
    assert invoke("check", home=home).output.startswith("prices: genai-prices ")
    stored(home, row(1, response_model="mystery-1"), row(2, response_model="mystery-1"), row(3, cost_usd=1.0))
    (home / "prices.toml").write_text('[[price]]\nmodel = "m"\ninptu = 1\n', encoding="utf-8")
    result = invoke("check", home=home)
    assert result.exit_code == 1
    assert "openai:mystery-1  2 requests" in result.output
    assert "ignored: prices.toml, line 1: 'inptu' is not a price" in result.output


@pytest.mark.parametrize("args", [("recost", "--since", "foo"), ("show", "gpt-4o", "--at", "foo")])
def test_time_that_is_none_is_a_usage_error_of_its_option(home: Path, args: tuple[str, ...]) -> None:
    result = invoke(*args, home=home)
    assert result.exit_code == 2
    assert args[-2] in result.output
