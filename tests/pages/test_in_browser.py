"""The pages in Debian's Chromium, over a log full of hostile text, behind the real API."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from browser import Watch, axe_script, chromium, need_chromium
from heliproxy.home import DATABASE_NAME
from heliproxy.serve import ProxyThread
from heliproxy.settings import Settings
from heliproxy.store import Record, open_reader
from heliproxy.times import stored_time

QUESTION = "SELECT date(created_at) AS day, sum(cost_usd) AS usd, max(model) FROM requests GROUP BY 1"
PAGES = (
    "/", "/?by=property:App", "/requests", "/requests?column=App", "/sessions", "/users", "/properties",
    "/properties?key=App", "/cache", "/limits", "/sql", f"/sql?q={QUESTION}", "/welcome", "/login",
)  # fmt: skip
WIDTHS = (1280, 400)


@pytest.fixture(scope="module")
def proxy(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyThread]:
    need_chromium()
    home = tmp_path_factory.mktemp("home")
    shutil.copy(log / DATABASE_NAME, home / DATABASE_NAME)
    with ProxyThread(Settings(home=home, port=0, api_port=0)) as found:
        yield found


@pytest.fixture(scope="module")
def browser(proxy: ProxyThread) -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def tab(browser: Any, proxy: ProxyThread) -> Iterator[Any]:
    context = browser.new_context(
        base_url=f"http://127.0.0.1:{proxy.api_port}", viewport={"width": 1280, "height": 900}
    )
    page = context.new_page()
    watch = Watch(page)
    yield page
    context.close()
    assert watch.problems == []


def hostile_urls(proxy: ProxyThread) -> list[str]:
    conn = open_reader(proxy.addon.settings.home / DATABASE_NAME)
    try:
        ids = conn.execute("SELECT id, session_id FROM requests WHERE id LIKE 'hostile-%' OR id = 'long'").fetchall()
    finally:
        conn.close()
    urls = [f"/requests/{quote(request_id, safe='')}" for request_id, _ in ids]
    sessions = sorted({session for _, session in ids})
    return urls + [
        f"/sessions/{quote(s, safe='')}?view={view}" for s in sessions for view in ("tree", "timeline", "chat")
    ]


def overflow(tab: Any) -> int:
    """CSS pixels that the page is wider than the window."""
    found: int = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return found


@pytest.mark.parametrize("path", PAGES)
def test_page_behaves_at_both_widths(tab: Any, path: str) -> None:
    for width in WIDTHS:
        tab.set_viewport_size({"width": width, "height": 900})
        answer = tab.goto(path)
        assert answer.status == 200
        tab.wait_for_load_state("load")
        assert overflow(tab) <= 0


def test_all_pages_are_in_sight_on_a_narrow_screen(tab: Any) -> None:
    tab.set_viewport_size({"width": 400, "height": 900})
    tab.goto("/")
    boxes = [link.bounding_box() for link in tab.locator(".nav a").all()]
    assert len(boxes) == 8
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 400 for box in boxes)


@pytest.mark.parametrize("path", ["/", "/users", "/properties", "/sessions"])
def test_cost_is_not_cut_off_on_a_narrow_screen(tab: Any, path: str) -> None:
    tab.set_viewport_size({"width": 400, "height": 900})
    tab.goto(path)
    cut = "[...document.querySelectorAll('.flush, .scroll')].filter((e) => e.scrollWidth > e.clientWidth + 1).length"
    assert tab.evaluate(cut) == 0


def test_line_of_one_value_is_drawn_as_a_point(browser: Any, tmp_path: Path) -> None:
    with ProxyThread(Settings(home=tmp_path / "home", port=0, api_port=0)) as proxy:
        row = {
            "id": "one",
            "created_at": stored_time(datetime.now(UTC)),
            "status": 200,
            "model": "m",
            "latency_ms": 9.0,
        }
        proxy.addon.recorder.put(Record(row))
        proxy.flush()  # the page is made once
        context = browser.new_context(base_url=f"http://127.0.0.1:{proxy.api_port}")
        page = context.new_page()
        page.goto("/?range=7d")
        page.wait_for_selector("[data-chart=chart-latency] canvas")
        page.wait_for_timeout(100)
        coloured = page.evaluate(
            """() => {
                const canvas = document.querySelector("[data-chart=chart-latency] canvas");
                const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
                let found = 0;
                for (let i = 0; i < data.length; i += 4) found += data[i + 3] > 200 && data[i] - data[i + 2] > 80;
                return found;
            }"""
        )
        context.close()
    assert coloured > 10


def test_labels_of_small_amounts_fit_beside_the_plot(browser: Any, tmp_path: Path) -> None:
    with ProxyThread(Settings(home=tmp_path / "home", port=0, api_port=0)) as proxy:
        made = stored_time(datetime.now(UTC))
        row = {"id": "hit", "created_at": made, "status": 200, "model": "m", "cache": "HIT", "saved_usd": 0.00021}
        proxy.addon.recorder.put(Record(row))
        proxy.flush()
        context = browser.new_context(base_url=f"http://127.0.0.1:{proxy.api_port}")
        page = context.new_page()
        page.goto("/?range=7d")
        chart = "[data-chart=chart-saved]"
        page.wait_for_selector(f"{chart} canvas")
        room = page.locator(f"{chart} .u-over").bounding_box()["x"] - page.locator(chart).bounding_box()["x"]
        label = page.evaluate(
            """() => {
                const pen = document.createElement("canvas").getContext("2d");
                pen.font = "11px system-ui";
                return pen.measureText("$0.00015").width;
            }"""
        )
        context.close()
    assert label + 5 < room < 2 * label  # uPlot leaves 5 between label and plot


def test_hostile_data_stays_text(tab: Any, proxy: ProxyThread) -> None:
    tab.set_viewport_size({"width": 400, "height": 900})
    for url in hostile_urls(proxy):
        assert tab.goto(url).status == 200
        for summary in tab.locator("details:not(.menu) > summary").all()[:40]:
            if summary.is_visible():
                summary.click()
        assert overflow(tab) <= 0, url
        assert tab.locator("main img[src^='http']").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_violation(browser: Any, proxy: ProxyThread, scheme: str) -> None:
    script = axe_script()
    context = browser.new_context(base_url=f"http://127.0.0.1:{proxy.api_port}", color_scheme=scheme)
    page = context.new_page()
    ordinary = page.request.get("/requests.json?status=ok").json()[20]["id"]
    found: list[str] = []
    # What the colours do not change is looked at once.
    options = "{}" if scheme == "light" else "{runOnly: ['color-contrast']}"
    shown = PAGES if scheme == "light" else ("/", "/requests", "/sessions", "/cache", "/sql")
    for path in (*shown, f"/requests/{ordinary}", *hostile_urls(proxy)[-4:]):
        page.goto(path)
        page.evaluate(script)
        result = page.evaluate(f"axe.run(document, {options})")
        assert result["passes"]
        found += [
            f"{path}: {rule['id']} {node['html'][:150]} {node['failureSummary'][:300]}"
            for rule in result["violations"]
            if rule["impact"] in ("serious", "critical")
            for node in rule["nodes"][:3]
        ]
    context.close()
    assert found == []


def add_rows(proxy: ProxyThread, count: int, start: int = 0) -> None:
    for number in range(start, start + count):
        row = {
            "id": f"live-{number:05}", "created_at": f"2099-01-01T00:00:00.{number % 1000:03}Z", "status": 200,
            "model": "live-model", "provider": "openai", "preview": f"question {number} <b>bold</b>", "cost_usd": 0.001,
            "latency_ms": 5.0, "usage_source": "provider", "input_tokens": 1, "output_tokens": 1,
        }  # fmt: skip
        proxy.addon.recorder.put(Record(row))


def test_new_rows_appear_without_a_reload(tab: Any, proxy: ProxyThread) -> None:
    tab.goto("/requests")
    tab.wait_for_selector("#live[data-state=on]")
    add_rows(proxy, 1)
    tab.wait_for_selector("#r-live-00000")
    assert "question 0 <b>bold</b>" in tab.locator("#r-live-00000").inner_text()
    assert tab.locator("tbody b").count() == 0


def test_new_rows_obey_the_filter(tab: Any, proxy: ProxyThread) -> None:
    tab.goto("/requests?model=live-model&q=wanted")
    tab.wait_for_selector("#live[data-state=on]")
    add_rows(proxy, 3, 10)
    row = {
        "id": "wanted",
        "created_at": "2099-01-02T00:00:00.000Z",
        "status": 200,
        "model": "live-model",
        "preview": "the wanted one",
    }
    proxy.addon.recorder.put(Record(row))
    tab.wait_for_selector("#r-wanted")
    assert tab.locator("tbody tr").count() == 1


def test_many_new_rows_leave_the_page_responsive(tab: Any, proxy: ProxyThread) -> None:
    tab.goto("/requests")
    tab.wait_for_selector("#live[data-state=on]")
    tab.evaluate(
        """() => {
            window.worst = 0;
            let last = performance.now();
            const tick = () => {
                const now = performance.now();
                window.worst = Math.max(window.worst, now - last);
                last = now;
                requestAnimationFrame(tick);
            };
            requestAnimationFrame(tick);
        }"""
    )
    add_rows(proxy, 2000, 1000)
    tab.wait_for_selector("#r-live-02999")
    assert tab.locator("tbody tr").count() <= 200
    assert tab.evaluate("window.worst") < 1000


def test_keys_move_open_and_search(tab: Any) -> None:
    tab.goto("/requests?before=2098-01-01~x")
    for key in ("j", "j", "k"):
        tab.keyboard.press(key)
    assert tab.locator("tr.at").count() == 1
    first = tab.locator("tr[data-row]").first.get_attribute("id")
    assert tab.locator("tr.at").get_attribute("id") == first
    tab.keyboard.press("/")
    assert tab.evaluate("document.activeElement.id") == "search"
    tab.keyboard.press("Escape")
    tab.keyboard.press("j")
    tab.keyboard.press("k")
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/requests/*-*")
    tab.keyboard.press("?")
    assert tab.locator("dialog#help").is_visible()


def test_ctrl_enter_asks_the_question(tab: Any) -> None:
    tab.goto("/sql")
    tab.get_by_label("Question in SQL").fill("SELECT 6 * 7 AS answer")
    with tab.expect_navigation():
        tab.keyboard.press("Control+Enter")
    assert tab.get_by_role("cell", name="42").is_visible()


def test_feedback_property_and_score_are_stored_and_shown(tab: Any) -> None:
    request_id = tab.request.get("/requests.json?status=ok").json()[-1]["id"]
    tab.goto(f"/requests/{request_id}")
    tab.get_by_role("button", name="Bad", exact=True).click()
    tab.wait_for_selector("button[aria-pressed=true]")
    tab.get_by_label("Property name").fill("Reviewed")
    tab.get_by_label("Property value").fill("<yes>")
    with tab.expect_navigation():
        tab.get_by_label("Property value").press("Enter")
    assert tab.get_by_role("button", name="Bad", exact=True).get_attribute("aria-pressed") == "true"
    assert tab.get_by_role("link", name="<yes>").is_visible()
    tab.get_by_label("Score name").fill("quality")
    tab.get_by_label("Score value").fill("0.75")
    with tab.expect_navigation():
        tab.get_by_label("Score value").press("Enter")
    assert "0.75" in tab.get_by_role("region", name="Scores").inner_text()


def test_theme_is_kept(tab: Any) -> None:
    tab.goto("/")
    before = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    tab.get_by_label("Light or dark").click()
    after = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert after != before
    tab.goto("/requests")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == after


def test_first_request_ends_the_waiting(browser: Any, tmp_path: Path) -> None:
    with ProxyThread(Settings(home=tmp_path / "home", port=0, api_port=0)) as proxy:
        context = browser.new_context(base_url=f"http://127.0.0.1:{proxy.api_port}")
        page = context.new_page()
        watch = Watch(page)
        page.goto("/")
        page.get_by_text("Waiting for the first request").wait_for()
        page.wait_for_selector("#live[data-state=on]")
        add_rows(proxy, 1)
        page.wait_for_selector("#total-requests")
        context.close()
    assert watch.problems == []


def test_token_opens_the_pages_once(browser: Any, tmp_path: Path) -> None:
    with ProxyThread(Settings(home=tmp_path / "home", port=0, api_port=0, token="s3cret")) as proxy:
        context = browser.new_context(base_url=f"http://127.0.0.1:{proxy.api_port}")
        page = context.new_page()
        page.goto("/requests")
        page.get_by_label("Token").fill("s3cret")
        page.get_by_label("Token").press("Enter")
        page.wait_for_url(lambda url: url.endswith(f":{proxy.api_port}/requests"))
        context.clear_cookies()
        page.goto("/login?to=/users#s3cret")
        page.wait_for_url(lambda url: url.endswith(f":{proxy.api_port}/users"))
        page.wait_for_load_state()
        page.get_by_role("heading", name="Users").wait_for()
        assert "s3cret" not in page.content()
        context.close()
