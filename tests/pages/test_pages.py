"""The pages as their server sends them."""

from __future__ import annotations

import csv
import io
import json
import re
from contextlib import closing
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from click.testing import CliRunner
from starlette.applications import Starlette
from starlette.testclient import TestClient

from heliproxy.api.pages import page_routes
from heliproxy.api.pages.context import Pages
from heliproxy.api.pages.render import audio_source, duration, image_source, money, share, tokens
from heliproxy.api.pages.request import timing_text
from heliproxy.home import DATABASE_NAME
from heliproxy.reports_cli import costs
from heliproxy.rounding import decimal_text
from heliproxy.store import Record, Store

NOW = datetime(2026, 11, 20, 15, 0, tzinfo=UTC)
MARKUP = "<img src=x onerror=alert(1)>"
ALL = (
    "/",
    "/?by=provider&range=30d",
    "/?by=property:App",
    "/?since=2026-11-18&until=2026-11-19",
    "/requests",
    "/requests?column=App&column=Environment",
    "/requests?q=haiku&status=ok&model=gpt-*",
    "/requests?property=App%3Dagent",
    "/sessions",
    "/users",
    "/users?sort=requests",
    "/properties",
    "/properties?key=App",
    "/cache",
    "/limits",
    "/sql",
    "/sql?q=SELECT+model,+count(*)+FROM+requests+GROUP+BY+1",
    "/welcome",
    "/login",
)


class Elements(HTMLParser):
    """Every element of a page with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("path", ALL)
def test_page_is_served_with_nothing_inline_and_nothing_from_elsewhere(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert_harmless(answer.text)


def assert_harmless(text: str) -> None:
    for tag, attributes in Elements(text).found:
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("/", "#", "data:image/png", "data:image/jpeg")), (
                tag,
                name,
                value,
            )
            assert value is None or not value.startswith("//")
        if tag == "script":
            assert attributes.get("src") or attributes.get("type") == "application/json"


def test_hostile_request_is_shown_as_text(client: TestClient, conn: Any) -> None:
    ids = [row[0] for row in conn.execute("SELECT id FROM requests WHERE id LIKE 'hostile-%' OR id = 'long'")]
    assert len(ids) == 12
    for request_id in ids:
        answer = client.get(f"/requests/{quote(request_id, safe='')}")
        assert answer.status_code == 200, request_id
        assert_harmless(answer.text)
        assert "\x1b" not in answer.text
        assert "\u202e" not in answer.text


def test_hostile_session_is_shown_as_text(client: TestClient, conn: Any) -> None:
    for (session_id,) in conn.execute("SELECT DISTINCT session_id FROM requests WHERE session_id LIKE 'session %'"):
        for view in ("tree", "timeline", "chat", MARKUP):
            answer = client.get(f"/sessions/{quote(session_id, safe='')}", params={"view": view})
            assert answer.status_code == 200
            assert_harmless(answer.text)


@pytest.mark.parametrize(
    "path", ["/requests/nothing", "/sessions/nothing", "/requests/nothing.json", "/requests/x/request.txt"]
)
def test_unknown_id_is_a_404(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    "query",
    [
        "status=never",
        "since=yesterday-ish",
        "property=novalue",
        "before=x",
        "before=a~b",
        "range=%00",
        "offset=-1",
        "q=%25_%5C",
    ],
)
def test_nonsense_in_the_url_is_no_error(client: TestClient, query: str) -> None:
    for path in ("/requests", "/", "/sessions"):
        assert client.get(f"{path}?{query}").status_code == 200


@pytest.mark.parametrize("path", ["/requests", "/", "/sessions", "/users", "/cache"])
@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("range=xx", "&#39;xx&#39; is no range; expected today, 7d, 30d, all."),
        ("status=never", "&#39;never&#39;"),
        ("since=soon", "&#39;soon&#39; is not a time"),
        ("property=novalue", "expected NAME=VALUE"),
        ("range=%3Cb%3E", "&lt;b&gt;"),
    ],
)
def test_what_is_not_understood_is_said(client: TestClient, path: str, query: str, said: str) -> None:
    notices = re.findall(r'<div class="notice bad" role="alert">(.*?)</div>', client.get(f"{path}?{query}").text)
    assert len(notices) == 1
    assert said in notices[0]


def test_paging_visits_every_request_once(client: TestClient, conn: Any) -> None:
    seen: list[str] = []
    url = "/requests"
    while url:
        text = client.get(url).text
        seen += re.findall(r'<tr data-row id="r-([^"]*)"', text)
        following = re.search(r'rel="next" href="([^"]+)"', text)
        url = following.group(1).replace("&amp;", "&") if following else ""
    assert len(seen) == conn.execute("SELECT count(*) FROM requests").fetchone()[0]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(
    ("query", "where"),
    [
        ("model=gpt-5", "model = 'gpt-5'"),
        ("model=claude-*", "model LIKE 'claude-%'"),
        ("user=ada", "user_id = 'ada'"),
        ("status=cached", "cache = 'HIT'"),
        ("status=429", "status = 429"),
        ("property=App%3Dagent", "id IN (SELECT request_id FROM properties WHERE key = 'App' AND value = 'agent')"),
        ("q=HAIKU", "preview LIKE '%haiku%'"),
        ("q=haiku&user=ada", "preview LIKE '%haiku%' AND user_id = 'ada'"),
        ("since=2026-11-18&until=2026-11-18", "created_at >= '2026-11-18' AND created_at < '2026-11-19'"),
    ],
)
def test_export_holds_exactly_what_the_filter_means(client: TestClient, conn: Any, query: str, where: str) -> None:
    rows = client.get(f"/requests.json?{query}").json()
    wanted = {row[0] for row in conn.execute(f"SELECT id FROM requests WHERE {where}")}
    assert wanted
    assert {row["id"] for row in rows} == wanted


def test_csv_is_safe_to_open_in_a_spreadsheet(client: TestClient) -> None:
    rows = list(csv.reader(io.StringIO(client.get("/requests.csv").text)))
    assert len({len(row) for row in rows}) == 1
    assert not [cell for row in rows for cell in row if cell[:1] in ("=", "+", "@")]


def test_overview_equals_heliproxy_costs_to_the_last_digit(client: TestClient, log: Path) -> None:
    printed = CliRunner().invoke(
        costs, ["--home", str(log), "--since", "2026-11-12", "--until", "2026-11-17", "-z", "UTC", "-f", "json"]
    )
    assert printed.exit_code == 0, printed.output
    told = json.loads(printed.stdout)
    page = client.get("/?since=2026-11-12&until=2026-11-17").text
    shown = dict(re.findall(r'id="total-(\w+)"><data value="([^"]*)"', page))
    total = told["total"]
    assert shown["cost"] == decimal_text(total["cost_usd"]) > "0"
    assert shown["requests"] == str(total["requests"])
    assert shown["input"] == str(total["input_tokens"])
    assert shown["output"] == str(total["output_tokens"])
    assert shown["errors"] == str(total["errors"])
    assert shown["hits"] == str(total["hits"])


def test_charts_add_up_to_the_total(client: TestClient) -> None:
    page = client.get("/?range=30d").text
    chart = json.loads(re.search(r'id="chart-requests">(.*?)</script>', page, re.DOTALL).group(1))  # type: ignore[union-attr]
    total = re.search(r'id="total-requests"><data value="(\d+)"', page)
    assert total is not None
    assert sum(value or 0 for series in chart["series"] for value in series["values"]) == int(total.group(1))
    assert len(chart["times"]) == len(chart["labels"]) == len(chart["starts"]) == 31


def chart(text: str, name: str) -> Any:
    """The data of one plot of a page."""
    found = re.search(rf'id="chart-{name}">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found.group(1))


def test_plot_names_only_groups_it_shows_in_the_colours_of_the_others(client: TestClient) -> None:
    page = client.get("/?range=30d").text
    colours = {series["name"]: series["colour"] for series in chart(page, "requests")["series"]}
    errors = chart(page, "errors")["series"]
    assert errors
    assert all(any(series["values"]) for series in errors)
    assert all(series["colour"] == colours[series["name"]] for series in errors)


def small_log(home: Path, *rows: dict[str, Any]) -> TestClient:
    """The pages over a log of these rows, at `NOW`."""
    writer = Store(home / DATABASE_NAME).writer()
    for number, row in enumerate(rows):
        writer.add(Record({"id": f"r{number}", "model": "gpt-4o", "provider": "openai", "latency_ms": 9.0, **row}))
    writer.flush(force=True)
    writer.close()
    return TestClient(Starlette(routes=page_routes(Pages(home, now=lambda: NOW, zone=UTC))))


@pytest.mark.parametrize(
    ("reported", "shown"),
    [
        ({}, "–"),
        ({"input_tokens": 0}, "0"),
        ({"output_tokens": 7}, "7"),
        ({"input_tokens": 5, "output_tokens": 7}, "12"),
    ],
)
def test_overview_has_a_dash_for_tokens_that_nobody_reported(
    tmp_path: Path, reported: dict[str, int], shown: str
) -> None:
    client = small_log(tmp_path, {"created_at": "2026-11-20T14:00:00.000Z", "status": 502, **reported})
    models = client.get("/?range=7d").text.partition('aria-label="Models"')[2]
    assert re.findall(r'<td class="n optional">(?:<data[^>]*>)?([^<]*)', models)[0] == shown


def test_seven_days_are_drawn_by_day_whatever_was_logged(tmp_path: Path) -> None:
    client = small_log(tmp_path, {"created_at": "2026-11-20T14:00:00.000Z", "status": 200})
    plot = chart(client.get("/?range=7d").text, "requests")
    assert [label for _, label in plot["ticks"]] == [f"{day} Nov" for day in range(13, 21)]


def test_hours_say_which_day_they_belong_to(tmp_path: Path) -> None:
    client = small_log(tmp_path, {"created_at": "2026-11-20T14:00:00.000Z", "status": 200})
    ticks = chart(client.get("/?since=36h").text, "requests")["ticks"]
    assert ticks[0] == [0, "03:00", 3, "19 Nov"]
    assert ticks[21] == [21, "00:00", 0, "20 Nov"]


@pytest.mark.parametrize(
    ("first", "marked"), [("2026-11-20T00:00:00.000Z", "Today"), ("2026-11-19T23:00:00.000Z", "7 days")]
)
def test_first_day_of_a_log_is_shown_by_hour(tmp_path: Path, first: str, marked: str) -> None:
    page = small_log(tmp_path, {"created_at": first, "status": 200}).get("/").text
    assert re.search(r'aria-current="true">([^<]*)<', page).group(1) == marked  # type: ignore[union-attr]


def test_answer_that_broke_off_is_no_success(tmp_path: Path) -> None:
    row = {"created_at": "2026-11-20T14:00:00.000Z", "status": 200, "error_type": "incomplete_stream", "error": "cut",
           "session_id": "s1"}  # fmt: skip
    client = small_log(tmp_path, row)
    for path in ("/requests", "/requests/r0", "/sessions/s1", "/sessions/s1?view=chat"):
        assert '<span class="badge bad" title="incomplete_stream">200 cut</span>' in client.get(path).text
    assert 'class="failed"' in client.get("/sessions/s1?view=timeline").text
    assert "1 failed" in client.get("/sessions/s1").text


def test_several_values_of_a_filter_are_removed_one_by_one(client: TestClient) -> None:
    page = client.get("/requests?model=gpt-4o-mini&model=gpt-5&status=ok").text
    chips = re.findall(r'class="chip" href="([^"]*)" title="[^"]*">([^<]*) <', page)
    assert chips == [
        ("/requests?model=gpt-5&amp;status=ok", "model: gpt-4o-mini"),
        ("/requests?model=gpt-4o-mini&amp;status=ok", "model: gpt-5"),
        ("/requests?model=gpt-4o-mini&amp;model=gpt-5", "status: ok"),
    ]
    form = page.partition('class="filters"')[2].partition("</form>")[0]
    assert form.count('type="hidden" name="model"') == 2


def test_filters_outlast_another_one(client: TestClient) -> None:
    page = client.get("/requests?run=r1&host=h1&key=k1&prompt=p1&provider=openai&session=s1").text
    form = page.partition('class="filters"')[2].partition("</form>")[0]
    wanted = {"run": "r1", "host": "h1", "key": "k1", "prompt": "p1", "provider": "openai", "session": "s1"}
    for name, value in wanted.items():
        assert f'<input type="hidden" name="{name}" value="{value}">' in form


def test_request_page_shows_what_was_said_and_what_it_cost(client: TestClient, conn: Any) -> None:
    found = conn.execute(
        "SELECT id, preview, answer_preview, cost_usd FROM requests WHERE format = 'anthropic_messages' "
        "AND status = 200 AND cache IS NULL AND cost_usd IS NOT NULL LIMIT 1"
    ).fetchone()
    text = client.get(f"/requests/{found[0]}").text
    assert decimal_text(found[3]) in text
    assert "search_documents" in text
    assert "You are a careful assistant." in text
    assert "ANTHROPIC_API_KEY" in text


@pytest.mark.parametrize(
    ("ttft", "attempts", "text"),
    [
        (None, [], "Done after 24 ms."),
        (None, [{}, {}], "Done after 24 ms, 2 attempts."),
        (9.0, [], "First byte after 9.0 ms, done after 24 ms."),
    ],
)
def test_timing_names_a_first_byte_only_of_streams(ttft: float | None, attempts: list[Any], text: str) -> None:
    assert timing_text({"cache": None, "ttft_ms": ttft, "latency_ms": 24.0}, attempts) == text


def test_request_json_has_row_and_bodies(client: TestClient, conn: Any) -> None:
    (request_id,) = conn.execute(
        "SELECT id FROM requests WHERE format = 'openai_chat' AND status = 200 LIMIT 1"
    ).fetchone()
    found = client.get(f"/requests/{request_id}.json").json()
    assert found["id"] == request_id
    assert found["request"]["messages"][0]["role"] == "system"
    assert set(found["properties"]) == {"App", "Environment"}


def test_stored_body_is_plain_text_whatever_it_is(client: TestClient) -> None:
    answer = client.get("/requests/long/request.txt")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert len(answer.content) == 1 << 20


def test_cut_body_still_shows_its_conversation(client: TestClient) -> None:
    text = client.get("/requests/long").text
    assert "lorem ipsum lorem" in text
    assert "characters more, see the raw body" in text


@pytest.mark.parametrize(
    "question",
    [
        "DELETE FROM requests",
        "DROP TABLE requests",
        "INSERT INTO scores VALUES ('a', 'b', 1, 'c')",
        "ATTACH DATABASE '/tmp/x.db' AS x",
        "PRAGMA journal_mode = DELETE",
        "SELECT load_extension('x')",
        "VACUUM INTO 'copy.db'",
        "SELECT 1; SELECT 2",
        "SELEC",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT randomblob(99999999) FROM n, n m",
        "SELECT '\x00'",
    ],
)
def test_sql_refuses_all_but_reading(client: TestClient, conn: Any, question: str) -> None:
    before = conn.execute("SELECT count(*) FROM requests").fetchone()
    answer = client.get("/sql", params={"q": question})
    assert answer.status_code == 200
    assert 'class="notice bad gap"' in answer.text
    assert conn.execute("SELECT count(*) FROM requests").fetchone() == before


def test_sql_stops_in_time(log: Path) -> None:
    from heliproxy.api.pages.sql import ask
    from heliproxy.store import open_reader

    endless = "SELECT count(*) FROM properties a, properties b, properties c, properties d"
    for question, seconds, error in ((endless, 0.2, "stopped after 0.2 s"), ("SELECT 1", 5.0, "")):
        with closing(open_reader(log / "heliproxy.db")) as conn:
            assert ask(conn, question, seconds=seconds).error == error


def test_empty_log_teaches_how_to_connect(tmp_path: Path) -> None:
    with TestClient(Starlette(routes=page_routes(Pages(tmp_path)))) as client:
        for path in ("/", "/requests", "/sessions", "/cache"):
            text = client.get(path).text
            assert "heliproxy run -- python app.py" in text
            assert "eval &#34;$(heliproxy env)&#34;" in text


def test_page_says_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "heliproxy.db").write_bytes(b"this is no database" * 100)
    with TestClient(Starlette(routes=page_routes(Pages(tmp_path)))) as client:
        answer = client.get("/")
        assert answer.status_code == 503
        assert "not a SQLite database" in answer.text


def test_token_is_taken_once_and_kept_as_a_cookie(tmp_path: Path) -> None:
    pages = Pages(tmp_path, token=lambda: "s3cret")
    with TestClient(Starlette(routes=page_routes(pages)), base_url="http://127.0.0.1:8585") as client:
        assert "HELIPROXY_TOKEN" in client.get("/login").text
        for wrong in ({"token": "s3cre"}, {"token": None}, [], {"token": "\ud800"}):
            assert client.post("/login", content=json.dumps(wrong)).status_code == 401
        assert client.post("/login", content=b"x" * 20_000).status_code == 413
        answer = client.post("/login", json={"token": "s3cret"})
        assert answer.status_code == 200
        assert "HttpOnly" in answer.headers["set-cookie"]
        assert "samesite=strict" in answer.headers["set-cookie"].lower()


@pytest.mark.parametrize(
    ("usd", "text"),
    [
        (None, "–"),
        (0.0, "$0"),
        (1e-9, "<$0.000001"),
        (0.000123, "$0.000123"),
        (0.0412, "$0.0412"),
        (12.349, "$12.35"),
        (1234.6, "$1,235"),
    ],
)
def test_money_has_as_many_digits_as_matter(usd: float | None, text: str) -> None:
    assert money(usd) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "–"),
        (0, "0"),
        (987, "987"),
        (9_999, "9,999"),
        (12_345, "12.3k"),
        (987_654, "988k"),
        (4_560_000, "4.56M"),
        (2.5e9, "2.50G"),
    ],
)
def test_counts_stay_short(count: float | None, text: str) -> None:
    assert tokens(count) == text


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (None, "–"),
        (0.0, "0.0 ms"),
        (87.4, "87 ms"),
        (1240, "1.24 s"),
        (12_400, "12.4 s"),
        (185_000, "3 min 05 s"),
        (7_500_000, "2 h 05 min"),
    ],
)
def test_durations_read_as_people_say_them(ms: float | None, text: str) -> None:
    assert duration(ms) == text


def test_shares_of_nothing_are_unknown() -> None:
    assert [share(1, 0), share(None, 4), share(1, 4), share(1, 400)] == ["–", "–", "25 %", "0.2 %"]


@pytest.mark.parametrize(
    ("source", "played"),
    [
        ("data:audio/wav;base64,AAAA", True),
        ("DATA:AUDIO/MPEG;BASE64,AAAA", True),
        ("data:text/html;base64,AAAA", False),
        ("data:audio/wav,AAAA", False),
        ("https://tracker.example/a.wav", False),
    ],
)
def test_only_recordings_in_the_log_itself_are_played(source: str, played: bool) -> None:
    assert bool(audio_source(source)) is played


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("data:image/png;base64,AAAA", True),
        ("DATA:IMAGE/PNG;BASE64,AAAA", True),
        ("data:image/svg+xml;base64,AAAA", False),
        ("data:text/html;base64,AAAA", False),
        ("https://tracker.example/a.png", False),
        ("file-123", False),
    ],
)
def test_only_pictures_in_the_log_itself_are_shown(source: str, shown: bool) -> None:
    assert image_source(source) == (source if shown else "")


def test_idle_times_of_a_session_are_shortened() -> None:
    from heliproxy.api.pages.sessions import without_idle

    spans = [(0.0, 100.0), (100_000.0, 100_100.0)]
    assert without_idle(spans) == ([(0.0, 100.0), (120.0, 220.0)], True)
    assert without_idle([(0.0, 100.0), (50.0, 200.0)]) == ([(0.0, 100.0), (50.0, 200.0)], False)


def test_results_are_kept_until_the_log_changes(tmp_path: Path) -> None:
    from heliproxy.api.pages.kept import Kept

    now = [100.0]
    calls: list[float] = []
    path = tmp_path / "log"
    path.write_text("1")

    def compute() -> float:
        calls.append(now[0])
        now[0] += 0.1
        return now[0]

    kept = Kept(path, clock=lambda: now[0])
    first = kept.get("a", compute)
    now[0] += 1000
    assert kept.get("a", compute) == first
    path.write_text("changed")
    assert kept.get("a", compute) != first
    path.write_text("changed again")
    now[0] += 0.5  # five times as long as it took: still fresh enough
    kept.get("a", compute)
    now[0] += 1.0
    kept.get("a", compute)
    assert len(calls) == 3


def test_window_names_the_same_time_as_the_command_line(pages: Pages) -> None:
    from starlette.datastructures import QueryParams

    from heliproxy.api.pages.window import read_window

    now = datetime(2026, 11, 20, 15, 0, tzinfo=UTC)
    assert read_window(QueryParams("range=7d"), now, UTC).since == now - timedelta(days=7)
    assert read_window(QueryParams("range=today"), now, UTC).since == datetime(2026, 11, 20, tzinfo=UTC)
    custom = read_window(QueryParams("since=2026-11-01&until=2026-11-02"), now, UTC)
    assert (custom.since, custom.until) == (datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 11, 3, tzinfo=UTC))
    assert read_window(QueryParams("since=soon"), now, UTC).problem.startswith("'soon' is not a time")
