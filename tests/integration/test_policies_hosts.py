"""Every host of Helicone's and where it leads, through a running proxy (helicone-proxy.md section 1)."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from fakes import Asked, json_answer, message_answer
from heliproxy.policies.sigv4 import Credentials, signed
from rig import KEY, Rig, chat, error, rigged


@pytest.fixture(scope="module")
def shared_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rigged(tmp_path_factory.mktemp("hosts") / "home") as rig:
        yield rig


@pytest.fixture
def rig(shared_rig: Rig) -> Rig:
    shared_rig.reset()
    return shared_rig


TABLE = [
    ("oai", "/v1/chat/completions", "/openai/v1/chat/completions", "openai"),
    ("anthropic", "/v1/messages", "/anthropic/v1/messages", "anthropic"),
    ("vercel", "/v1/chat/completions", "/vercel/v1/chat/completions", "vercel"),
    ("together", "/v1/chat/completions", "/together/v1/chat/completions", "together"),
    ("llmmapper", "/oai2ant/v1/chat/completions", "/llmmapper/oai2ant/v1/chat/completions", "llmmapper"),
    ("google", "/v1beta/models/gemini-2.5-flash:generateContent", None, "google"),
    ("llama", "/v1/chat/completions", "/llama/v1/chat/completions", "llama"),
    ("nvidia", "/v1/chat/completions", "/nvidia/v1/chat/completions", "nvidia"),
    ("openrouter", "/api/v1/chat/completions", "/openrouter/api/v1/chat/completions", "openrouter"),
    ("deepinfra", "/v1/openai/chat/completions", "/deepinfra/v1/openai/chat/completions", "deepinfra"),
    ("groq", "/openai/v1/chat/completions", "/groq/openai/v1/chat/completions", "groq"),
    ("perplexity", "/chat/completions", "/perplexity/chat/completions", "perplexity"),
    ("hyperbolic", "/v1/chat/completions", "/hyperbolic/v1/chat/completions", "hyperbolic"),
    ("cerebras", "/v1/chat/completions", "/cerebras/v1/chat/completions", "cerebras"),
    ("mistral", "/v1/chat/completions", "/mistral/v1/chat/completions", "mistral"),
    ("bedrock", "/v1/us-east-1/model/amazon.titan-text/invoke", "/bedrock/model/amazon.titan-text/invoke", "bedrock"),
    ("fireworks", "/inference/v1/chat/completions", "/fireworks/inference/v1/chat/completions", "fireworks"),
    ("predibase", "/v1/chat/completions", "/predibase/v1/chat/completions", "predibase"),
    ("qstash", "/llm/v1/chat/completions", "/qstash/llm/v1/chat/completions", "qstash"),
    ("x", "/v1/chat/completions", "/x/v1/chat/completions", "x-ai"),
    ("deepseek", "/v1/chat/completions", "/deepseek/v1/chat/completions", "deepseek"),
    ("nebius", "/v1/chat/completions", "/nebius/v1/chat/completions", "nebius"),
    ("novita", "/v3/openai/chat/completions", "/novita/v3/openai/chat/completions", "novita"),
]


@pytest.mark.parametrize(("label", "path", "seen", "provider"), TABLE, ids=[row[0] for row in TABLE])
@pytest.mark.parametrize("door", ["https://{}.helicone.ai", "https://{}.hconeai.com", "/{}", "/v1/gateway/{}"])
def test_each_host_leads_to_its_provider(
    rig: Rig, door: str, label: str, path: str, seen: str | None, provider: str
) -> None:
    client = rig.run.client() if door.startswith("https") else rig.http
    response = client.post(door.format(label) + f"{path}?a=%20b", json=chat(), headers={"authorization": "Bearer k"})
    assert response.status_code == 200
    assert rig.last.path == (seen or f"/{label}{path}") + "?a=%20b"
    assert rig.last.header("authorization") == "Bearer k"
    row = rig.row(response)
    assert (row["provider"], row["path"].partition("?")[0]) == (provider, "/" + rig.last.path.split("/", 2)[2][:-7])


@pytest.mark.parametrize(
    ("host", "seen"),
    [
        ("my-oai-proxy.helicone.ai", "openai"),  # contains
        ("eu.oai.helicone.ai", "openai"),
        ("groq-eu.helicone.ai", "groq"),
        ("gateway-oai.helicone.ai", None),  # the gateway's words come first
    ],
)
def test_labels_that_contain_a_word(rig: Rig, host: str, seen: str | None) -> None:
    response = rig.run.client().post(f"https://{host}/v1/chat/completions", json=chat())
    if seen is None:
        assert (response.status_code, response.text) == (400, "Missing target base url")
    else:
        assert rig.last.path == f"/{seen}/v1/chat/completions"


@pytest.mark.parametrize("host", ["xx", "mygoogle", "llama2", "nvidia1", "perplexity-x", "nebius-a", "novita-b"])
def test_labels_that_must_be_the_whole_word(rig: Rig, host: str) -> None:
    response = rig.run.client().post(f"https://{host}.helicone.ai/v1/chat/completions", json=chat())
    assert (response.status_code, response.headers["helicone-error"], rig.calls) == (500, "true", 0)
    assert "Could not determine worker type" in response.json()["helicone-message"]


@pytest.mark.parametrize("verb", ["scrape", "search", "crawl"])
def test_firecrawl_is_told_by_a_word_in_the_path(rig: Rig, verb: str) -> None:
    response = rig.run.client().post(f"https://firecrawl.helicone.ai/x/{verb}/y", json={"url": "u"})
    assert (response.status_code, rig.last.path) == (200, f"/firecrawl/v0/{verb}")


@pytest.mark.parametrize("host", ["api.worker.helicone.ai", "api.hconeai.com"])
def test_hosts_of_helicones_own_api_take_logs(rig: Rig, host: str) -> None:
    log = {
        "providerRequest": {"url": "https://api.openai.com/v1/chat/completions", "json": chat(), "meta": {}},
        "providerResponse": {"json": {"choices": []}, "status": 200, "headers": {}},
        "timing": {"startTime": {"seconds": 1, "milliseconds": 0}, "endTime": {"seconds": 2, "milliseconds": 0}},
    }
    response = rig.run.client().post(f"https://{host}/oai/v1/log", json=log, headers={"authorization": KEY})
    assert (response.status_code, response.text, rig.calls) == (200, "ok", 0)
    assert uuid.UUID(response.headers["helicone-id"])


# ---------------------------------------------------------------- the key in the path


@pytest.mark.parametrize("key", ["sk-helicone-aaaaaa1-bbbbbbb", "pk-helicone-a", "sk-helicone-eu-a", "sk-helicone"])
def test_key_in_the_path_never_reaches_the_provider(rig: Rig, key: str) -> None:
    response = rig.run.client().post(f"https://oai.helicone.ai/{key}/v1/chat/completions?a=b", json=chat())
    assert (response.status_code, rig.last.path) == (200, "/openai/v1/chat/completions?a=b")
    assert "helicone" not in str(rig.last.headers).lower()


def test_key_header_wins_over_the_key_in_the_path(rig: Rig) -> None:
    client = rig.run.client()
    url = "https://oai.helicone.ai{}/v1/chat/completions"
    both = client.post(url.format("/sk-helicone-path"), json=chat(), headers={"Helicone-Auth": KEY})
    header = client.post(url.format(""), json=chat(), headers={"Helicone-Auth": KEY})
    path = client.post(url.format("/sk-helicone-path"), json=chat())
    prints = [rig.row(response)["auth_fingerprint"] for response in (both, header, path)]
    assert prints[0] == prints[1] != prints[2]


# ---------------------------------------------------------------- files, on both hosts that have them


@pytest.mark.parametrize("base", ["/oai", "/anthropic", "https://oai.helicone.ai", "https://anthropic.helicone.ai"])
@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/files"), ("DELETE", "/v1/files/f-1?x=1")])
def test_files_pass_raw(rig: Rig, base: str, method: str, path: str) -> None:
    rig.script = [json_answer({"id": "f-1"})]
    client = rig.run.client() if base.startswith("https") else rig.http
    headers = {"Helicone-RateLimit-Policy": "1;w=60", "Helicone-Cache-Enabled": "true", "x-mine": "1"}
    response = client.request(method, base + path, content=b"\0\xff", headers=headers)
    assert (response.json(), rig.last.body, rig.last.header("x-mine")) == ({"id": "f-1"}, b"\0\xff", "1")
    assert not [name for name in response.headers if name.startswith("helicone")]


# ---------------------------------------------------------------- QStash


def test_callback_names_the_upstream_of_qstash(rig: Rig) -> None:
    headers = {"Upstash-Callback": "https://api.groq.com/dropped?x=1"}
    response = rig.run.client().post(
        "https://qstash.helicone.ai/llm/v1/chat/completions?a=b", json=chat(), headers=headers
    )
    assert (response.status_code, rig.last.path) == (200, "/groq/llm/v1/chat/completions?a=b")
    assert rig.last.header("upstash-callback") == headers["Upstash-Callback"]
    row = rig.row(response)
    assert (row["provider"], row["host"], row["input_tokens"]) == ("groq", "api.groq.com", 1000)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://169.254.169.254/", "http://10.0.0.1"])
def test_callback_inside_is_refused(rig: Rig, url: str) -> None:
    response = rig.ask({"Upstash-Callback": url}, path="/qstash/llm/v1/chat/completions")
    assert (response.status_code, rig.calls) == (500, 0)
    assert response.text.startswith(f'Invalid API base "{url}": it ')


@pytest.mark.parametrize("url", ["nonsense", "ftp://a.example"])
def test_callback_that_is_no_url_is_a_500(rig: Rig, url: str) -> None:
    response = rig.ask({"Upstash-Callback": url}, path="/qstash/llm/v1/chat/completions")
    assert (response.status_code, response.headers["helicone-error"], rig.calls) == (500, "true", 0)


def test_callback_means_nothing_elsewhere(rig: Rig) -> None:
    rig.ask({"Upstash-Callback": "https://api.groq.com"})
    assert rig.last.path == "/openai/v1/chat/completions"


# ---------------------------------------------------------------- Bedrock

AWS = {"aws-access-key": "AKID", "aws-secret-key": "canary-secret", "aws-session-token": "canary-token"}
INVOKE = "/v1/us-east-1/model/anthropic.claude-3-5-sonnet-20241022-v2%3A0/invoke"


def resigned(asked: Asked, credentials: Credentials) -> str:
    """The signature AWS would expect of what reached it."""
    names = (asked.header("authorization") or "").partition("SignedHeaders=")[2].partition(",")[0].split(";")
    kept = {n: asked.header(n) or "" for n in names if n not in ("x-amz-date", "x-amz-security-token")}
    now = datetime.strptime(asked.header("x-amz-date") or "", "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    path = asked.path.removeprefix("/bedrock")
    return signed(credentials, asked.method, path, kept, asked.body, "us-east-1", "bedrock", now)["authorization"]


@pytest.mark.parametrize("base", ["https://bedrock.helicone.ai", "/bedrock", "/v1/gateway/bedrock"])
def test_bedrock_is_signed_with_the_keys_that_came_along(rig: Rig, base: str) -> None:
    rig.script = [json_answer(message_answer(model="claude-3-5-sonnet-20241022"))]
    client = rig.run.client() if base.startswith("https") else rig.http
    body = json.dumps({"anthropic_version": "bedrock-2023-05-31", "max_tokens": 5, "messages": []})
    headers = AWS | {"content-type": "application/json", "authorization": "Bearer x", "x-amz-content-sha256": "old"}
    response = client.post(base + INVOKE, content=body, headers=headers)
    assert (response.status_code, rig.last.body) == (200, body.encode())
    assert rig.last.path == "/bedrock" + INVOKE.removeprefix("/v1/us-east-1")
    sent = {name.lower(): value for name, value in rig.last.headers}
    assert sent["authorization"] == resigned(rig.last, Credentials("AKID", "canary-secret", "canary-token"))
    assert "/us-east-1/bedrock/aws4_request" in sent["authorization"]
    assert "SignedHeaders=content-type;host;x-amz-date;x-amz-security-token," in sent["authorization"]
    assert sent["x-amz-security-token"] == "canary-token"
    assert not {*AWS, "x-amz-content-sha256"} & set(sent)
    row = rig.row(response)
    assert (row["provider"], row["host"]) == ("bedrock", "bedrock-runtime.us-east-1.amazonaws.com")
    assert row["request_model"] == "anthropic.claude-3-5-sonnet-20241022-v2:0"
    dump = [rig.run.rows(f"SELECT * FROM {table}") for table in ("requests", "bodies", "properties")]
    assert "canary" not in str(dump)


def test_bedrock_retries_are_signed_and_cached_answers_need_no_signature(rig: Rig) -> None:
    headers = AWS | {"Helicone-Cache-Enabled": "true", "Helicone-Retry-Enabled": "true"}
    headers |= {"Helicone-Retry-Min-Timeout": "1", "Helicone-Retry-Max-Timeout": "2"}
    rig.script = [error(503), json_answer(message_answer())]
    found = [rig.ask(headers, path="/bedrock" + INVOKE, text="once") for _ in range(2)]
    assert [r.headers["helicone-cache"] for r in found] == ["MISS", "HIT"]
    assert [bool(asked.header("x-amz-date")) for asked in rig.up.asked] == [True, True]
    other = rig.ask(headers | {"aws-secret-key": "other"}, path="/bedrock" + INVOKE, text="once")
    assert other.headers["helicone-cache"] == "MISS"


@pytest.mark.parametrize("headers", [{}, {"aws-access-key": "AKID"}])
def test_bedrock_without_both_keys_is_left_to_the_client(rig: Rig, headers: dict[str, str]) -> None:
    rig.script = [json_answer(message_answer())]
    rig.ask(headers | {"authorization": "Bearer bedrock-api-key"}, path="/bedrock" + INVOKE)
    assert rig.last.header("authorization") == "Bearer bedrock-api-key"
    assert rig.last.header("x-amz-date") is None


def test_keys_for_aws_sign_nothing_elsewhere(rig: Rig) -> None:
    rig.ask(AWS)
    assert rig.last.header("authorization") == "Bearer sk-provider"
