"""One running proxy for the policy tests of a module, with fake upstreams that count what reaches them.

The host a call went to is the first segment of the path its upstream saw: `/openai/v1/chat/completions`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from fakes import Answer, Asked, Upstream, chat_answer, chat_chunks, json_answer, message_answer, sse_answer
from heliproxy.serve import ProxyThread
from heliproxy.settings import Settings, parse_upstreams
from running import Running

HOSTS = {
    "api.openai.com": "openai",
    "api.anthropic.com": "anthropic",
    "api.groq.com": "groq",
    "api.together.xyz": "together",
    "openrouter.ai": "openrouter",
    "ai-gateway.vercel.sh": "vercel",
    "gateway.llmmapper.com": "llmmapper",
    "generativelanguage.googleapis.com": "google",
    "api.llama.com": "llama",
    "integrate.api.nvidia.com": "nvidia",
    "api.deepinfra.com": "deepinfra",
    "api.perplexity.ai": "perplexity",
    "api.hyperbolic.xyz": "hyperbolic",
    "api.cerebras.ai": "cerebras",
    "api.mistral.ai": "mistral",
    "bedrock-runtime.us-east-1.amazonaws.com": "bedrock",
    "api.fireworks.ai": "fireworks",
    "api.app.predibase.com": "predibase",
    "qstash.upstash.io": "qstash",
    "api.x.ai": "x",
    "api.deepseek.com": "deepseek",
    "api.tokenfactory.nebius.com": "nebius",
    "api.novita.ai": "novita",
    "api.firecrawl.dev": "firecrawl",
    "llm.example.com": "example",
}
KEY = "Bearer sk-helicone-aaaaaa1-bbbbbbb-ccccccc-ddddddd"
CHAT = "/oai/v1/chat/completions"
Scripted = Answer | Callable[[Asked], Answer]


class Rig:
    """A proxy, its upstream, and a client that talks to the proxy's own port."""

    def __init__(self, run: Running, up: Upstream) -> None:
        self.run, self.up = run, up
        self.http = run.direct(base_url=run.url)
        self.script: list[Scripted] = []
        """What the upstream answers next; when it is empty, each call gets a new answer of its own."""
        self.answered = 0

    def reset(self) -> None:
        self.script.clear()
        self.up.asked.clear()
        self.answered = 0

    @property
    def calls(self) -> int:
        return len(self.up.asked)

    @property
    def last(self) -> Asked:
        return self.up.asked[-1]

    def ask(self, headers: dict[str, str] | None = None, path: str = CHAT, **body: Any) -> httpx.Response:
        """POST a chat (or `path` with another body); returns the whole response."""
        sent = {"authorization": "Bearer sk-provider"} | (headers or {})
        return self.http.post(path, json=chat(**body), headers=sent)

    def row(self, response: httpx.Response) -> dict[str, Any]:
        """The row of a response."""
        (row,) = self.rows(response.headers["helicone-id"])
        return row

    def rows(self, request_id: str) -> list[dict[str, Any]]:
        return self.run.rows(f"SELECT * FROM requests WHERE id = '{request_id}'")

    def properties(self, response: httpx.Response) -> dict[str, str]:
        found = self.run.rows(f"SELECT * FROM properties WHERE request_id = '{response.headers['helicone-id']}'")
        return {row["key"]: row["value"] for row in found}

    def answer(self, asked: Asked) -> Answer:
        if self.script:
            scripted = self.script.pop(0)
            return scripted(asked) if callable(scripted) else scripted
        self.answered += 1
        text = f"answer {self.answered}"
        body = asked.json if asked.body.startswith(b"{") else {}
        if "/messages" in asked.path:
            return json_answer(message_answer(text))
        if body.get("stream"):
            return sse_answer(chat_chunks([text, "!"]))
        return json_answer(chat_answer(text))


def redirects(up: Upstream) -> list[str]:
    """`HOST=URL` pairs that lead every host to `up`."""
    return [f"{host}={up.url}/{name}" for host, name in HOSTS.items()]


@contextmanager
def rigged(home: Path, **settings: Any) -> Iterator[Rig]:
    """A rig with a proxy of these settings."""
    with Upstream(lambda asked: Answer(500)) as up, rigged_on(up, home, **settings) as rig:
        yield rig


@contextmanager
def rigged_on(up: Upstream, home: Path, **settings: Any) -> Iterator[Rig]:
    """A rig on an upstream that is there already, and stays."""
    upstreams = parse_upstreams(redirects(up))
    with ProxyThread(Settings(home=home, port=0, api_port=None, upstreams=upstreams, **settings)) as proxy:
        run = Running(proxy, home)
        rig = Rig(run, up)
        up.handler = rig.answer
        try:
            yield rig
        finally:
            run.close()


def chat(**fields: Any) -> dict[str, Any]:
    """A chat request; `text` is what the user says, new in each call unless it is given."""
    text = fields.pop("text", None) or f"say {uuid.uuid4()}"
    return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}]} | fields


def error(status: int, message: str = "no", **headers: str) -> Answer:
    return json_answer({"error": {"message": message, "type": "server_error"}}, status, **headers)


def cut() -> Answer:
    """The connection is closed in place of an answer."""
    return Answer(cut_before=True)


def text_of(response: httpx.Response) -> str:
    """What the model said."""
    value = response.json()
    if "choices" in value:
        return str(value["choices"][0]["message"]["content"])
    return str(value["content"][0]["text"])
