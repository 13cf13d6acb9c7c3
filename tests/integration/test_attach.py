"""`heliproxy run --attach`: programs that share the proxy of a running `heliproxy serve`, told apart in the log."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes import Answer, Upstream, chat_answer, json_answer
from heliproxy import certs
from heliproxy.environment import run_of
from heliproxy.hosts import CA_HOSTS
from heliproxy.serve import ProxyThread
from heliproxy.settings import Settings, parse_upstreams
from running import Running

ROOT = Path(__file__).resolve().parents[2]
URL = "https://api.openai.com/v1/chat/completions"
BODY = '{"model": "gpt-4o-mini", "messages": []}'
URLLIB = (
    f"import urllib.request as u; u.urlopen(u.Request({URL!r}, {BODY!r}.encode(), {{'content-type': 'text/json'}}))"
)
HTTPX = f"import httpx; httpx.post({URL!r}, content={BODY!r})"
AIOHTTP = f"""if True:
    import aiohttp, asyncio
    async def main():
        async with aiohttp.ClientSession() as s, s.post({URL!r}, data={BODY!r}) as r:
            await r.read()
    asyncio.run(main())
"""
FETCH = f"fetch({URL!r}, {{method: 'POST', body: {BODY!r}}}).then(r => r.text())"


@pytest.fixture
def serve(home) -> Iterator[Running]:
    with Upstream(lambda _: json_answer(chat_answer())) as up:
        settings = Settings(home=home, port=0, api_port=0, upstreams=parse_upstreams([f"api.openai.com={up.url}"]))
        with ProxyThread(settings) as proxy:
            run = Running(proxy, home)
            yield run
            run.close()


def attach(home: Path, port: int, *command: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(home.parent),
        "HELIPROXY_HOME": str(home),
        "PYTHONPATH": str(ROOT / "addon"),
        "PYTHONWARNINGS": "ignore",
    }
    ours = [sys.executable, "-m", "heliproxy", "run", "--attach", "--port", str(port), *options, "--", *command]
    return subprocess.run(ours, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "command",
    [
        (sys.executable, "-c", URLLIB),
        (sys.executable, "-c", HTTPX),
        (sys.executable, "-c", AIOHTTP),
        ("curl", "-sS", URL, "-d", BODY),
        ("node", "-e", FETCH),
    ],
    ids=["urllib", "httpx", "aiohttp", "curl", "node"],
)
def test_calls_carry_the_run_and_the_summary_counts_them_alone(serve, home, command):
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    serve.direct().post(f"{serve.url}/oai/v1/chat/completions", content=BODY)  # another program's
    file = home / "summary.json"
    shown = attach(home, serve.proxy.port, *command, options=("--summary-file", str(file)))
    assert shown.returncode == 0, shown.stderr
    facts = json.loads(file.read_text())
    assert facts["requests"] == 1, shown.stderr
    assert "── 1 request · 1,000 in · 100 out" in shown.stderr
    assert [row["run_id"] for row in serve.rows()] == [None, facts["run_id"]]


def test_proxy_password_goes_no_further(home):
    with Upstream(lambda _: Answer(body=b"plain")) as up:
        settings = Settings(home=home, port=0, api_port=None, allowed_targets=("localhost",))
        with ProxyThread(settings) as proxy:
            command = ["curl", "-sS", "-x", f"http://run:aaaa1111@127.0.0.1:{proxy.port}", "--noproxy", "", up.url]
            shown = subprocess.run(command, capture_output=True, text=True)
        assert shown.stdout == "plain", shown.stderr
        assert up.asked[0].header("proxy-authorization") is None


def test_nothing_or_another_home_to_attach_to_is_an_error(serve, home, tmp_path):
    other = tmp_path / "other"
    certs.ensure_ca(other, CA_HOSTS)
    shown = attach(other, serve.proxy.port, "true")
    assert (shown.returncode, "has another home" in shown.stderr) == (1, True)
    with Upstream(lambda _: Answer(404)) as stranger:
        shown = attach(home, stranger.port, "true")
    assert (shown.returncode, "is no heliproxy" in shown.stderr) == (1, True)
    shown = attach(home, stranger.port, "true")
    assert (shown.returncode, "start `heliproxy serve`" in shown.stderr) == (1, True)


def test_options_of_the_proxy_are_refused(home):
    shown = attach(home, 1, "true", options=("--default-header", "Helicone-User-Id: b"))
    assert (shown.returncode, "give it to `heliproxy serve`" in shown.stderr) == (2, True)


@pytest.mark.parametrize(
    ("value", "run_id"),
    [
        ("Basic cnVuOmFhYWExMTEx", "aaaa1111"),
        ("basic cnVuOmFhYWExMTEx", "aaaa1111"),
        ("Basic YWw6YWFhYTExMTE=", None),
        ("Basic cnVuOicgT1IgMQ==", None),
        ("Basic ***", None),
        ("Bearer cnVuOmFhYWExMTEx", None),
        ("", None),
    ],
)
def test_run_id_is_read_from_nothing_else(value, run_id):
    assert run_of(value) == run_id
