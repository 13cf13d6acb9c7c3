#!/usr/bin/env python3
# ruff: noqa: E402 - a script finds the package beside it before it imports it
"""Take the README's pictures again: sample calls are made up, served, and looked at in Debian's Chromium.

scripts/screenshots.py scripts/pictures
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "addon"), str(ROOT / "tests"), str(ROOT / "scripts")]

from generate_rows import fill

from browser import chromium
from heliproxy.home import DATABASE_NAME
from heliproxy.serve import ProxyThread
from heliproxy.settings import Settings
from heliproxy.store import open_reader

WIDTH, HEIGHT = 1280, 860
# A request with a tool call and visible thinking, and a session of several steps: they show most.
REQUEST = """SELECT r.id FROM requests r JOIN bodies b ON b.request_id = r.id
WHERE r.format = 'anthropic_messages' AND r.status = 200 AND r.cache IS NULL AND r.session_id IS NULL
ORDER BY length(b.request) DESC, r.created_at DESC LIMIT 1"""
SESSION = "SELECT session_id FROM requests WHERE session_id IS NOT NULL GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 1"


def targets(home: Path) -> dict[str, str]:
    """File name and path of each picture."""
    with closing(open_reader(home / DATABASE_NAME)) as conn:
        request_id = conn.execute(REQUEST).fetchone()[0]
        session_id = conn.execute(SESSION).fetchone()[0]
    session = f"/sessions/{quote(session_id, safe='')}"
    return {
        "overview": "/?range=7d",
        "requests": "/requests",
        "request": f"/requests/{quote(request_id, safe='')}",
        "session": session,
        "timeline": f"{session}?view=timeline",
    }


def shoot(browser: Any, base: str, paths: dict[str, str], folder: Path) -> None:
    for scheme in ("light", "dark"):
        context = browser.new_context(base_url=base, viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme)
        page = context.new_page()
        for name, path in paths.items():
            if scheme == "dark" and name != "overview":
                continue
            page.goto(path)
            page.wait_for_timeout(300)  # plots are drawn after the page has loaded
            file = folder / f"{name}{'-dark' if scheme == 'dark' else ''}.png"
            page.screenshot(path=str(file))
            print(file)
        context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the pictures go")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name) / "home"
        fill(home, 4000, 20, datetime.now(UTC), bodies=True)
        with ProxyThread(Settings(home=home, port=0, api_port=0)) as proxy, chromium() as browser:
            shoot(browser, f"http://127.0.0.1:{proxy.api_port}", targets(home), folder)


if __name__ == "__main__":
    main()
