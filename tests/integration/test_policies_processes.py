"""Policies of `heliproxy serve` as processes: several on one home, killed and started again; and with real SDKs."""

from __future__ import annotations

import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from fakes import Asked, Upstream, chat_answer, chat_chunks, json_answer, sse_answer
from rig import CHAT, KEY, chat, error, redirects, rigged

ON = {"Helicone-Cache-Enabled": "true"}


class Served:
    """One `heliproxy serve` process and a client of its port."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process, self.url = process, url
        self.http = httpx.Client(base_url=url, timeout=20, trust_env=False)

    def ask(self, headers: dict[str, str], path: str = CHAT, **body: Any) -> httpx.Response:
        return self.http.post(path, json=chat(**body), headers=headers)

    def kill(self) -> None:
        """As the kernel does it when memory runs out."""
        self.process.kill()
        self.process.wait()
        self.http.close()


@contextmanager
def serving(home: Path, up: Upstream, count: int = 1, *options: str) -> Iterator[list[Served]]:
    """So many processes, started at the same time."""
    arguments = [part for pair in redirects(up) for part in ("--upstream", pair)]
    command = [sys.executable, "-m", "heliproxy", "serve", "--home", str(home), "--port", "0", "--api-port", "0"]
    with ExitStack() as stack:
        started = []
        for _ in range(count):
            process = subprocess.Popen([*command, *arguments, *options], stdout=subprocess.PIPE, text=True)
            stack.callback(stop, process)
            started.append(process)
        served = []
        for process in started:
            assert process.stdout is not None
            ready = re.search(r"proxy (http://\S+)", process.stdout.readline())
            assert ready is not None
            served.append(Served(process, ready[1]))
            stack.callback(served[-1].http.close)
        yield served


def stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.wait(20)
    assert process.stdout is not None
    process.stdout.close()


def fresh(asked: Asked) -> Any:
    return json_answer(chat_answer(str(uuid.uuid4())))


def test_limit_is_exact_over_two_processes_and_outlives_a_kill(home: Path) -> None:
    limit = {"Helicone-RateLimit-Policy": "10;w=6000"}
    with Upstream(fresh) as up, serving(home, up, 2) as both:
        with ThreadPoolExecutor(20) as pool:
            statuses = list(pool.map(lambda i: both[i % 2].ask(limit).status_code, range(100)))
        assert (statuses.count(200), statuses.count(429), len(up.asked)) == (10, 90, 10)
        for one in both:
            one.kill()
        with serving(home, up) as (third,):
            denied = third.ask(limit)
            assert (denied.status_code, denied.headers["helicone-ratelimit-remaining"]) == (429, "0")
            # Another key has its own bucket, as fresh as ever.
            other = third.ask(limit | {"Helicone-Auth": KEY})
            assert other.headers["helicone-ratelimit-remaining"] == "9"


def test_entries_are_shared_by_processes_and_outlive_a_kill(home: Path) -> None:
    bucket = ON | {"Helicone-Cache-Bucket-Max-Size": "2"}
    with Upstream(fresh) as up, serving(home, up, 2) as (one, two):
        answers = [served.ask(ON, text="a") for served in (one, two, one, two)]
        assert [a.headers["helicone-cache"] for a in answers] == ["MISS", "HIT", "HIT", "HIT"]
        assert len({a.content for a in answers}) == 1
        filled = [served.ask(bucket, text="b").headers["helicone-cache"] for served in (one, two, one, two)]
        assert filled == ["MISS", "MISS", "HIT", "HIT"]
        one.kill()
        two.kill()
        with serving(home, up) as (three,):
            again = three.ask(ON, text="a")
            assert (again.headers["helicone-cache"], again.content) == ("HIT", answers[0].content)
            assert three.ask(bucket, text="b").headers["helicone-cache"] == "HIT"
        assert len(up.asked) == 3


def test_allowed_target_and_defaults_from_the_command_line(home: Path) -> None:
    options = ("--allow-target", "localhost", "--default-header", "Helicone-Cache-Enabled: true")
    with Upstream(fresh) as up, serving(home, up, 1, *options) as (served,):
        target = {"Helicone-Target-URL": f"http://localhost:{up.port}"}
        found = [served.ask(target, "/gateway/v1/chat/completions", text="x") for _ in range(2)]
        assert [r.headers["helicone-cache"] for r in found] == ["MISS", "HIT"]
        assert up.asked[0].path == "/v1/chat/completions"
        inside = {"Helicone-Target-URL": "http://127.0.0.1:9"}
        assert served.ask(inside, "/gateway/v1/chat/completions").status_code == 500


# ---------------------------------------------------------------- the snippets of Helicone's documents, by SDK


def test_snippets_of_cache_limit_and_retry_run_with_the_sdks(tmp_path: Path) -> None:
    with rigged(tmp_path / "home") as rig:
        run = rig.run
        client = run.openai(
            base_url="https://oai.helicone.ai/v1",
            default_headers={
                "Helicone-Auth": KEY,
                "Helicone-Cache-Enabled": "true",
                "Cache-Control": "max-age=3600",
                "Helicone-Cache-Bucket-Max-Size": "1",
                "Helicone-Cache-Seed": "user-123",
                "Helicone-Retry-Enabled": "true",
                "Helicone-Retry-Num": "3",
                "Helicone-Retry-Min-Timeout": "1",
                "Helicone-Retry-Max-Timeout": "2",
                "Helicone-RateLimit-Policy": "2;w=60;u=request;s=user",
                "Helicone-User-Id": "ada",
            },
        )
        rig.script = [error(500), error(429)]
        question: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]}
        first = client.chat.completions.create(**question)
        second = client.chat.completions.create(**question)
        assert first == second
        assert rig.calls == 3
        streams = [list(client.chat.completions.create(**question, stream=True)) for _ in range(2)]
        assert streams[0] == streams[1]
        assert rig.calls == 4
        with pytest.raises(openai.RateLimitError) as denied:
            client.chat.completions.create(**question, temperature=0.5)
        assert denied.value.response.headers["x-helicone-error"] == "rate_limited"
        assert [row["cache"] for row in run.wait_rows(5)] == ["MISS", "HIT", "MISS", "HIT", "MISS"]


def test_anthropic_streams_are_cached_and_called_again(tmp_path: Path) -> None:
    with rigged(tmp_path / "home") as rig:
        headers = ON | {"Helicone-Retry-Enabled": "true", "Helicone-Retry-Min-Timeout": "1"}
        client: anthropic.Anthropic = rig.run.anthropic(
            base_url="https://anthropic.helicone.ai", default_headers=headers
        )
        rig.script = [error(529)]
        question: Any = {"model": "claude-opus-4-8", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
        texts = [client.messages.create(**question).content[0].text for _ in range(2)]  # type: ignore[union-attr]
        assert texts == ["answer 1"] * 2
        assert rig.calls == 2


def test_stream_of_an_sdk_that_stops_reading_at_done_is_cached(tmp_path: Path) -> None:
    with rigged(tmp_path / "home") as rig:
        rig.script = [sse_answer(chat_chunks(["Hel", "lo"]))]
        client = rig.run.openai(default_headers=ON)
        question: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        for _ in range(3):
            chunks = client.chat.completions.create(**question)
            assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello"
        assert rig.calls == 1
