"""Bodies longer than are held: they pass as they come, or are refused by what would have to read them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from fakes import Answer, Asked, Upstream, chat_answer, json_answer
from security.test_limits import costing_at_most
from served import CHAT, PATH, Served, query, served

SIZE = 96 << 20
PIECE = b"x" * (1 << 20)
HEAD = b'{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "'
SMALL, HELD = 32.0, 288.0
"""MiB that a body costs which passes from its beginning, and one whose length shows at 64 MiB only."""
POLICIES = (
    {"Helicone-Cache-Enabled": "true"},
    {"Helicone-RateLimit-Policy": "100;w=60"},
    {"Helicone-LLM-Security-Enabled": "true"},
)


def answer(asked: Asked) -> Answer:
    if asked.path == "/big":
        return Answer(200, steps=[PIECE] * 96, headers=[("content-type", "application/octet-stream")])
    digest = hashlib.sha256(asked.body).hexdigest()
    size = len(asked.body)
    asked.body = b""
    return json_answer(chat_answer(f"{size} {digest}"))


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream(answer) as up:
        yield up


@pytest.fixture(scope="module")
def proxy(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("long") / "home"
    with served(home, upstream.url, "--allow-target", f"127.0.0.1:{upstream.port}") as found:
        assert found.ask().status == 200
        found.health(flush=True)
        yield found


def body() -> Iterator[bytes]:
    yield HEAD
    yield from [PIECE] * (SIZE // len(PIECE) - 1)
    yield PIECE[len(HEAD) :]


DIGEST = hashlib.sha256(b"".join(body())).hexdigest()


def post(
    url: str, *, announced: bool, headers: Mapping[str, str] | None = None, via: str | None = None
) -> httpx.Response:
    sent = {"content-type": "application/json", "authorization": "Bearer sk-x"} | dict(headers or {})
    if announced:
        sent["content-length"] = str(SIZE)
    with httpx.Client(trust_env=False, timeout=60, proxy=via) as client:
        return client.post(url, content=body(), headers=sent)


@pytest.mark.parametrize("announced", [True, False])
def test_a_long_request_passes_and_is_logged_without_being_read(proxy: Served, announced: bool) -> None:
    with costing_at_most(proxy, SMALL if announced else HELD):
        reply = post(f"http://127.0.0.1:{proxy.port}{PATH}", announced=announced)
    assert reply.json()["choices"][0]["message"]["content"] == f"{SIZE} {DIGEST}"
    (row,) = query(proxy.home, "SELECT * FROM requests WHERE id = ?", reply.headers["helicone-id"])
    assert (row["status"], row["size_request"], row["truncated"], row["error"]) == (200, SIZE, 1, None)
    assert row["model"] == "gpt-4o-mini-2024-07-18"  # as the answer says
    assert row["parse_error"] == "request: it was too long to be held, and passed on unread"
    health = proxy.health()
    assert (health["lost_bodies"], health["errors"]) == (0, 0)


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("headers", POLICIES)
def test_policies_that_read_requests_refuse_long_ones(proxy: Served, headers: dict[str, str], announced: bool) -> None:
    with costing_at_most(proxy, HELD):
        reply = post(f"http://127.0.0.1:{proxy.port}{PATH}", announced=announced, headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")
    (row,) = query(proxy.home, "SELECT * FROM requests WHERE id = ?", reply.headers["helicone-id"])
    assert (row["status"], row["error_type"]) == (413, "request_too_large")


@pytest.mark.parametrize("announced", [True, False])
def test_our_own_api_refuses_them_at_the_proxys_port(proxy: Served, announced: bool) -> None:
    with costing_at_most(proxy, HELD):
        assert post(f"http://127.0.0.1:{proxy.port}/v1/traces", announced=announced).status_code == 413


def test_one_that_is_refused_anyway_is_not_kept(proxy: Served) -> None:
    page = {"origin": "http://evil.example", "sec-fetch-site": "cross-site"}
    with costing_at_most(proxy, HELD):
        assert post(f"http://127.0.0.1:{proxy.port}{PATH}", announced=False, headers=page).status_code == 403


@pytest.mark.parametrize("announced", [True, False])
def test_uploads_to_other_hosts_pass_as_they_come(proxy: Served, upstream: Upstream, announced: bool) -> None:
    with costing_at_most(proxy, SMALL):
        reply = post(f"{upstream.url}/x", announced=announced, via=f"http://127.0.0.1:{proxy.port}")
    assert DIGEST in reply.text


def test_downloads_from_other_hosts_pass_as_they_come(proxy: Served, upstream: Upstream) -> None:
    size = 0
    with (
        costing_at_most(proxy, SMALL),
        httpx.Client(trust_env=False, timeout=60, proxy=f"http://127.0.0.1:{proxy.port}") as client,
        client.stream("GET", f"{upstream.url}/big") as reply,
    ):
        for piece in reply.iter_raw():
            size += len(piece)
    assert size == SIZE


def test_the_next_call_on_the_connection_is_served(proxy: Served) -> None:
    with httpx.Client(trust_env=False, timeout=60) as client:
        url = f"http://127.0.0.1:{proxy.port}{PATH}"
        assert client.post(url, content=body(), headers=POLICIES[0]).status_code == 413
        assert client.post(url, content=body()).status_code == 200
        assert client.post(url, json=CHAT).status_code == 200


def test_mitmproxys_own_limits_still_count(tmp_path: Path, upstream: Upstream) -> None:
    with served(tmp_path / "home", upstream.url, "--set", "body_size_limit=1m") as found:
        assert post(f"http://127.0.0.1:{found.port}{PATH}", announced=True).status_code == 413
        assert found.ask().status == 200
