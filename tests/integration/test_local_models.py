"""Servers on this machine by their label, and base URLs that lead nowhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fakes import Asked, Upstream, chat_answer, json_answer
from heliproxy import hosts
from heliproxy.serve import ProxyThread
from heliproxy.settings import Settings, parse_upstreams
from running import Running

OLLAMA = {
    "model": "llama3.2",
    "message": {"role": "assistant", "content": "hi"},
    "done": True,
    "done_reason": "stop",
    "prompt_eval_count": 12,
    "eval_count": 3,
}


def answer(asked: Asked):
    return json_answer(OLLAMA if asked.path == "/api/chat" else chat_answer(model="qwen3"))


@pytest.fixture
def local() -> Iterator[Upstream]:
    with Upstream(answer) as up:
        yield up


@pytest.fixture
def run(home, local, monkeypatch) -> Iterator[Running]:
    monkeypatch.setitem(hosts.LOCAL_LABELS, "ollama", local.port)
    upstreams = parse_upstreams([f"vllm={local.url}/engine"])
    with ProxyThread(Settings(home=home, port=0, api_port=None, upstreams=upstreams)) as proxy:
        found = Running(proxy, home)
        yield found
        found.close()


@pytest.mark.parametrize(
    ("path", "provider", "seen", "tokens"),
    [
        ("/ollama/api/chat", "ollama", "/api/chat", (12, 3)),
        ("/ollama/v1/chat/completions", "ollama", "/v1/chat/completions", (1000, 100)),
        ("/v1/gateway/ollama/v1/chat/completions", "ollama", "/v1/chat/completions", (1000, 100)),
        ("/vllm/v1/chat/completions", "vllm", "/engine/v1/chat/completions", (1000, 100)),
    ],
)
def test_local_model_is_logged_and_costs_nothing(run, local, path, provider, seen, tokens):
    assert run.direct().post(run.url + path, json={"model": "m", "messages": []}).status_code == 200
    assert local.asked[-1].path == seen
    row = run.row()
    assert (row["provider"], row["input_tokens"], row["output_tokens"]) == (provider, *tokens)
    assert (row["cost_usd"], row["cost_source"]) == (0.0, "local")


def test_list_of_models_passes_without_a_row(run, local):
    assert run.direct().get(f"{run.url}/ollama/v1/models").status_code == 200
    assert local.asked[-1].path == "/v1/models"
    assert run.rows() == []


def test_llama_cpp_has_our_port_so_its_own_is_asked_for(run):
    refused = run.direct().post(f"{run.url}/llamacpp/v1/chat/completions", json={})
    assert refused.status_code == 400
    assert "--upstream llamacpp=http://127.0.0.1:PORT" in refused.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/gateway/nobody/v1/x", "/api.openai.com/v1/x", "/nothing"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_wrong_base_url_is_told_which_are_right(run, method, path):
    answer = run.direct().request(method, run.url + path, json={} if method == "POST" else None)
    assert answer.status_code == 404
    assert "/oai/v1" in answer.json()["error"]["message"]
