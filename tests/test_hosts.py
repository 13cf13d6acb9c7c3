import re

import pytest

from heliproxy import hosts
from heliproxy.hosts import (
    CA_HOSTS,
    LLM_HOST_PATTERNS,
    Target,
    gateway_target,
    helicone_target,
    provider_for_host,
    route,
)

# host, path -> provider, format, price provider, model in the path
INFERENCE = [
    ("api.openai.com", "/v1/chat/completions", "openai", "openai_chat", "openai", None),
    ("eu.api.openai.com", "/v1/responses", "openai", "openai_responses", "openai", None),
    ("api.openai.com", "/v1/responses/compact", "openai", "openai_responses", "openai", None),
    ("api.openai.com", "/v1/completions", "openai", "openai_completions", "openai", None),
    ("api.openai.com", "/v1/embeddings", "openai", "openai_embeddings", "openai", None),
    ("api.openai.com", "/v1/images/edits", "openai", "openai_images", "openai", None),
    ("api.openai.com", "/v1/audio/transcriptions", "openai", "openai_transcription", "openai", None),
    ("api.openai.com", "/v1/audio/speech", "openai", "openai_speech", "openai", None),
    ("api.openai.com", "/v1/moderations", "openai", "openai_moderation", "openai", None),
    ("api.openai.com", "/v1/realtime?model=gpt-realtime", "openai", "openai_responses", "openai", None),
    ("chatgpt.com", "/backend-api/codex/responses", "chatgpt", "openai_responses", "openai", None),
    ("api.anthropic.com", "/v1/messages?beta=true", "anthropic", "anthropic_messages", "anthropic", None),
    ("api.anthropic.com", "/v1/complete", "anthropic", "anthropic_complete", "anthropic", None),
    ("api.anthropic.com", "/v1/chat/completions", "anthropic", "openai_chat", "anthropic", None),
    (
        "generativelanguage.googleapis.com",
        "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse",
        "google",
        "gemini_generate",
        "google",
        "gemini-2.5-flash",
    ),
    ("generativelanguage.googleapis.com", "/v1/models/m:batchEmbedContents", "google", "gemini_embed", "google", "m"),
    ("generativelanguage.googleapis.com", "/v1beta/interactions", "google", "gemini_interactions", "google", None),
    ("generativelanguage.googleapis.com", "/v1beta/openai/chat/completions", "google", "openai_chat", "google", None),
    ("cloudcode-pa.googleapis.com", "/v1internal:streamGenerateContent", "google", "gemini_generate", "google", None),
    (
        "us-central1-aiplatform.googleapis.com",
        "/v1/projects/p/locations/l/publishers/google/models/gemini-3-pro:generateContent",
        "vertex",
        "gemini_generate",
        "google",
        "gemini-3-pro",
    ),
    (
        "aiplatform.googleapis.com",
        "/v1/projects/p/locations/l/publishers/anthropic/models/claude-opus-4-8@20260101:streamRawPredict",
        "vertex",
        "anthropic_messages",
        "google",
        "claude-opus-4-8@20260101",
    ),
    (
        "aiplatform.googleapis.com",
        "/v1/projects/p/locations/l/endpoints/openapi/chat/completions",
        "vertex",
        "openai_chat",
        "google",
        None,
    ),
    (
        "aiplatform.googleapis.com",
        "/v1/projects/p/locations/l/publishers/google/models/text-embedding-005:predict",
        "vertex",
        "vertex_predict",
        "google",
        "text-embedding-005",
    ),
    (
        "acme.openai.azure.com",
        "/openai/deployments/my-gpt/chat/completions?api-version=2024-12-01",
        "azure",
        "openai_chat",
        "azure",
        "my-gpt",
    ),
    ("acme.openai.azure.com", "//openai/deployments/d/completions", "azure", "openai_completions", "azure", "d"),
    ("acme.services.ai.azure.com", "/models/chat/completions", "azure", "openai_chat", "azure", None),
    ("acme.services.ai.azure.com", "/anthropic/v1/messages", "azure", "anthropic_messages", "azure", None),
    ("acme.azure-api.net", "/team/openai/v1/responses", "azure", "openai_responses", "azure", None),
    (
        "bedrock-runtime.us-east-1.amazonaws.com",
        "/model/us.anthropic.claude-sonnet-5-v1%3A0/converse-stream",
        "bedrock",
        "bedrock_converse",
        "aws",
        "us.anthropic.claude-sonnet-5-v1:0",
    ),
    (
        "bedrock-runtime.eu-west-1.amazonaws.com",
        "/model/arn:aws:bedrock:eu-west-1:1:application-inference-profile/abc/invoke-with-response-stream",
        "bedrock",
        "bedrock_invoke",
        "aws",
        "arn:aws:bedrock:eu-west-1:1:application-inference-profile/abc",
    ),
    ("bedrock-runtime.us-west-2.amazonaws.com", "/openai/v1/chat/completions", "bedrock", "openai_chat", "aws", None),
    ("bedrock-mantle.us-east-1.api.aws", "/v1/responses", "bedrock", "openai_responses", "aws", None),
    ("api.mistral.ai", "/v1/fim/completions", "mistral", "openai_chat", "mistral", None),
    ("api.mistral.ai", "/v1/ocr", "mistral", "mistral_ocr", "mistral", None),
    ("api.mistral.ai", "/v1/conversations", "mistral", "openai_chat", "mistral", None),
    ("api.groq.com", "/openai/v1/chat/completions", "groq", "openai_chat", "groq", None),
    ("api.together.ai", "/v1/chat/completions", "together", "openai_chat", "together", None),
    ("openrouter.ai", "/api/v1/messages", "openrouter", "anthropic_messages", "openrouter", None),
    ("openrouter.ai", "/api/v1/images", "openrouter", "openai_images", "openrouter", None),
    ("api.deepseek.com", "/beta/chat/completions", "deepseek", "openai_chat", "deepseek", None),
    ("api.deepseek.com", "/anthropic/v1/messages", "deepseek", "anthropic_messages", "deepseek", None),
    ("api.x.ai", "/v1/responses", "x-ai", "openai_responses", "x-ai", None),
    ("api.perplexity.ai", "/chat/completions", "perplexity", "openai_chat", "perplexity", None),
    ("api.cohere.com", "/v2/chat", "cohere", "cohere_chat", "cohere", None),
    ("api.cohere.ai", "/v1/chat", "cohere", "cohere_chat", "cohere", None),
    ("api.cohere.com", "/v2/rerank", "cohere", "cohere_rerank", "cohere", None),
    ("api.cohere.com", "/v2/embed", "cohere", "cohere_embed", "cohere", None),
    (
        "router.huggingface.co",
        "/novita/v3/openai/chat/completions",
        "huggingface",
        "openai_chat",
        "huggingface_novita",
        None,
    ),
    ("router.huggingface.co", "/v1/chat/completions", "huggingface", "openai_chat", None, None),
    ("gateway.pydantic.dev", "/proxy/openai/responses", "pydantic-gateway", "openai_responses", "openai", None),
    (
        "acme.snowflakecomputing.com",
        "/api/v2/cortex/v1/chat/completions",
        "snowflake",
        "openai_chat",
        None,
        None,
    ),
    ("api.writer.com", "/v1/chat", "writer", "openai_chat", None, None),
    ("us.inference.heroku.com", "/v1/chat/completions", "heroku", "openai_chat", None, None),
    ("api.z.ai", "/api/paas/v4/chat/completions", "zai", "openai_chat", "zai", None),
    ("api.z.ai", "/api/anthropic/v1/messages", "zai", "anthropic_messages", "zai", None),
    ("api.business.githubcopilot.com", "/chat/completions", "copilot", "openai_chat", "github-copilot", None),
    ("api.voyageai.com", "/v1/embeddings", "voyageai", "openai_embeddings", "voyageai", None),
    ("localhost:11434", "/api/chat", "ollama", "ollama_chat", None, None),
    ("[::1]:11434", "/api/generate", "ollama", "ollama_chat", None, None),
    ("ollama.com", "/v1/chat/completions", "ollama", "openai_chat", None, None),
    ("127.0.0.1:1234", "/v1/chat/completions", "lmstudio", "openai_chat", None, None),
    ("127.0.0.1:8000", "/v1/chat/completions", "local", "openai_chat", None, None),
    ("api.deepinfra.com", "/v1/inference/some/model", "deepinfra", "", None, None),
]


@pytest.mark.parametrize(("host", "path", "provider", "form", "price", "model"), INFERENCE)
def test_inference_is_recognised(
    host: str, path: str, provider: str, form: str, price: str | None, model: str | None
) -> None:
    found = route("POST", host, path)
    assert found is not None
    assert found.inference
    assert (found.provider, found.format, found.price_provider, found.model) == (provider, form, price, model)


@pytest.mark.parametrize(
    ("method", "host", "path"),
    [
        ("GET", "api.openai.com", "/v1/responses/resp_1"),
        ("GET", "api.openai.com", "/v1/models"),
        ("POST", "api.openai.com", "/v1/responses/resp_1/cancel"),
        ("POST", "api.openai.com", "/v1/responses/input_tokens"),
        ("DELETE", "api.openai.com", "/v1/responses/resp_1"),
        ("POST", "api.openai.com", "/v1/threads/thread_1/messages"),
        ("POST", "api.openai.com", "/v1/threads/thread_1/runs"),
        ("POST", "api.openai.com", "/v1/conversations"),
        ("POST", "api.openai.com", "/v1/batches"),
        ("POST", "api.openai.com", "/v1/files"),
        ("POST", "api.openai.com", "/v1/vector_stores"),
        ("OPTIONS", "api.openai.com", "/v1/chat/completions"),
        ("POST", "chatgpt.com", "/backend-api/conversation"),
        ("GET", "chatgpt.com", "/backend-api/codex/models"),
        ("POST", "api.anthropic.com", "/v1/messages/count_tokens?beta=true"),
        ("POST", "api.anthropic.com", "/v1/messages/batches"),
        ("POST", "api.anthropic.com", "/api/event_logging/v2/batch"),
        ("POST", "api.anthropic.com", "/api/claude_code/metrics"),
        ("POST", "api.anthropic.com", "/api/eval/sdk"),
        ("POST", "generativelanguage.googleapis.com", "/v1beta/models/gemini-2.5-flash:countTokens"),
        ("POST", "generativelanguage.googleapis.com", "/upload/v1beta/files"),
        ("POST", "generativelanguage.googleapis.com", "/v1beta/cachedContents"),
        ("POST", "aiplatform.googleapis.com", "/v1/p/publishers/anthropic/models/count-tokens:rawPredict"),
        ("POST", "bedrock-runtime.us-east-1.amazonaws.com", "/model/m/count-tokens"),
        ("POST", "api.cohere.com", "/v1/tokenize"),
        ("POST", "api.replicate.com", "/v1/models/meta/llama-2-70b-chat/predictions"),
        ("POST", "api.x.ai", "/v1/batches/b/requests"),
        ("POST", "api.mistral.ai", "/v1/files"),
        ("POST", "localhost:11434", "/api/pull"),
        ("GET", "localhost:11434", "/api/tags"),
    ],
)
def test_other_calls_on_the_same_hosts_are_not_inference(method: str, host: str, path: str) -> None:
    found = route(method, host, path)
    assert found is not None
    assert not found.inference
    assert found.format == ""


@pytest.mark.parametrize(
    ("host", "path"),
    [
        ("example.com", "/v1/chat/completions"),
        ("api.openai.com.evil.net", "/v1/chat/completions"),
        ("evil-api.openai.com.evil", "/v1/chat/completions"),
        ("huggingface.co", "/api/models/x"),
        ("play.googleapis.com", "/log"),
        ("ab.chatgpt.com", "/otlp/v1/metrics"),
        ("models.opencode.ai", "/api.json"),
        ("s3.us-east-1.amazonaws.com", "/model/x/converse"),
        ("localhost:3000", "/chat/completions/page"),
        ("localhost:3000", "/v1/users"),
        ("", "/v1/chat/completions"),
    ],
)
def test_other_hosts_are_none_of_our_business(host: str, path: str) -> None:
    assert route("POST", host, path) is None


@pytest.mark.parametrize("host", ["API.OpenAI.com", "api.openai.com:443", "api.openai.com.", "Api.openai.com.:8443"])
def test_spelling_of_the_host_does_not_matter(host: str) -> None:
    found = route("post", host, "/v1/chat/completions/")
    assert found is not None
    assert (found.provider, found.host, found.inference) == ("openai", "api.openai.com", True)
    assert provider_for_host(host) == "openai"


def test_a_host_the_user_added_is_read_by_its_paths() -> None:
    found = hosts.custom_route("POST", "LLM.corp.example:8443", "/team/v1/chat/completions?x=1")
    assert found is not None
    assert (found.provider, found.format, found.price_provider) == ("llm.corp.example", "openai_chat", None)
    assert hosts.custom_route("GET", "llm.corp.example", "/v1/chat/completions") is None
    assert hosts.custom_route("POST", "llm.corp.example", "/v1/users") is None


def test_batch_results_are_marked() -> None:
    found = route("GET", "api.anthropic.com", "/v1/messages/batches/msgbatch_1/results")
    assert found is not None
    assert found.batch
    assert not found.inference


def test_every_format_in_the_tables_exists() -> None:
    from heliproxy.formats import FORMATS

    named = {form for _, form in hosts._COMMON} | {form for p in hosts.PROVIDERS for _, form in p.paths}
    assert named - {"", "-"} <= set(FORMATS)


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("api.openai.com:443", True),
        ("API.OPENAI.COM:443", True),
        ("api.openai.com.evil.net:443", False),
        ("xapi.openai.com:443", False),
        ("api-openai.com:443", False),
        ("apiXopenai.com:443", False),
        ("acme.openai.azure.com:443", True),
        ("openai.azure.com.evil.net:443", False),
        ("evil.net/api.openai.com:443", False),
        ("bedrock-runtime.us-east-1.amazonaws.com:443", True),
        ("s3.amazonaws.com:443", False),
        ("oauth2.googleapis.com:443", False),
        ("us-central1-aiplatform.googleapis.com:443", True),
        ("oai.helicone.ai:443", True),
        ("api.worker.helicone.ai:443", True),
        ("eu.api.helicone.ai:443", True),
        ("oai.hconeai.com:443", True),
        ("helicone.ai:443", False),
        ("www.helicone.ai:443", False),
        ("us.helicone.ai:443", False),
        ("oai.helicone.ai.evil.net:443", False),
        ("evilhelicone.ai:443", False),
        ("github.com:443", False),
        ("localhost:11434", True),
        ("localhost:443", False),
    ],
)
def test_only_llm_hosts_may_be_decrypted(host: str, allowed: bool) -> None:
    assert any(re.search(pattern, host) for pattern in LLM_HOST_PATTERNS) is allowed


def test_ca_vouches_for_domains_not_for_the_web() -> None:
    assert "api.openai.com" in CA_HOSTS
    assert "openai.azure.com" in CA_HOSTS
    assert all("*" not in name and "." in name for name in CA_HOSTS if name != "localhost")


PROVIDER = "provider"
HELICONE = [
    ("oai.helicone.ai", "/v1/chat/completions", ("api.openai.com", "/v1/chat/completions", PROVIDER)),
    ("oai.hconeai.com", "/v1/x?a=1", ("api.openai.com", "/v1/x?a=1", PROVIDER)),
    ("OAI.Helicone.AI:443", "/v1/x", ("api.openai.com", "/v1/x", PROVIDER)),
    ("my-oai-test.helicone.ai", "/v1/x", ("api.openai.com", "/v1/x", PROVIDER)),
    ("eu.oai.helicone.ai", "/v1/x", ("api.openai.com", "/v1/x", PROVIDER)),
    ("anthropic.helicone.ai", "/v1/messages", ("api.anthropic.com", "/v1/messages", PROVIDER)),
    ("gateway.helicone.ai", "/v1/x", ("", "/v1/x", "gateway")),
    ("ai-gateway.helicone.ai", "/v1/x", ("", "/v1/x", "ai-gateway")),
    ("generate.helicone.ai", "/v1", ("", "/v1", "generate")),
    ("api.helicone.ai", "/v1/request/query", ("", "/v1/request/query", "api")),
    ("eu.api.helicone.ai", "/v1/request/query", ("", "/v1/request/query", "api")),
    ("api.worker.helicone.ai", "/oai/v1/log", ("", "/oai/v1/log", "api")),
    ("api.hconeai.com", "/oai/v1/log", ("", "/oai/v1/log", "api")),
    ("vercel.helicone.ai", "/v1/ai", ("ai-gateway.vercel.sh", "/v1/ai", PROVIDER)),
    ("together.helicone.ai", "/v1/x", ("api.together.xyz", "/v1/x", PROVIDER)),
    ("google.helicone.ai", "/v1beta/x", ("generativelanguage.googleapis.com", "/v1beta/x", PROVIDER)),
    ("googles.helicone.ai", "/", None),
    ("llama.helicone.ai", "/v1/x", ("api.llama.com", "/v1/x", PROVIDER)),
    ("nvidia.helicone.ai", "/v1/x", ("integrate.api.nvidia.com", "/v1/x", PROVIDER)),
    ("openrouter.helicone.ai", "/api/v1/x", ("openrouter.ai", "/api/v1/x", PROVIDER)),
    ("deepinfra.helicone.ai", "/x", ("api.deepinfra.com", "/x", PROVIDER)),
    ("groq.helicone.ai", "/openai/v1/x", ("api.groq.com", "/openai/v1/x", PROVIDER)),
    ("perplexity.helicone.ai", "/x", ("api.perplexity.ai", "/x", PROVIDER)),
    ("hyperbolic.helicone.ai", "/v1/x", ("api.hyperbolic.xyz", "/v1/x", PROVIDER)),
    ("cerebras.helicone.ai", "/v1/x", ("api.cerebras.ai", "/v1/x", PROVIDER)),
    ("mistral.helicone.ai", "/v1/x", ("api.mistral.ai", "/v1/x", PROVIDER)),
    (
        "bedrock.helicone.ai",
        "/v1/us-west-2/model/m/converse",
        ("bedrock-runtime.us-west-2.amazonaws.com", "/model/m/converse", PROVIDER),
    ),
    ("bedrock.helicone.ai", "/model/m/converse", None),
    ("fireworks.helicone.ai", "/inference/v1/x", ("api.fireworks.ai", "/inference/v1/x", PROVIDER)),
    ("predibase.helicone.ai", "/x", ("api.app.predibase.com", "/x", PROVIDER)),
    ("qstash.helicone.ai", "/llm/v1/x", ("qstash.upstash.io", "/llm/v1/x", PROVIDER)),
    ("qstash.helicone.ai", "/other", None),
    ("llmmapper.helicone.ai", "/oai2ant/v1", ("gateway.llmmapper.com", "/oai2ant/v1", PROVIDER)),
    ("llmmapper.helicone.ai", "/other", None),
    ("x.helicone.ai", "/v1/x", ("api.x.ai", "/v1/x", PROVIDER)),
    ("xx.helicone.ai", "/v1/x", None),
    ("deepseek.helicone.ai", "/x", ("api.deepseek.com", "/x", PROVIDER)),
    ("nebius.helicone.ai", "/x", ("api.tokenfactory.nebius.com", "/x", PROVIDER)),
    ("novita.helicone.ai", "/x", ("api.novita.ai", "/x", PROVIDER)),
    ("firecrawl.helicone.ai", "/v0/crawl", ("api.firecrawl.dev", "/v0/crawl", PROVIDER)),
    ("unknown.helicone.ai", "/v1/x", None),
    ("helicone.ai", "/", None),
    ("www.helicone.ai", "/", None),
    ("us.helicone.ai", "/dashboard", None),
    ("oai.helicone.ai.evil.net", "/v1/x", None),
    ("oai.evilhelicone.ai", "/v1/x", None),
    ("api.openai.com", "/v1/x", None),
]


@pytest.mark.parametrize(("host", "path", "expected"), HELICONE)
def test_helicone_hosts_stand_for_providers(host: str, path: str, expected: tuple[str, str, str] | None) -> None:
    found = helicone_target(host, path)
    if expected is None:
        assert found is None
    else:
        real, real_path, kind = expected
        assert found == Target(real, 443, real_path, kind)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/oai/v1/chat/completions?x=1", ("api.openai.com", "/v1/chat/completions?x=1", PROVIDER)),
        ("/v1/gateway/oai/v1/chat/completions", ("api.openai.com", "/v1/chat/completions", PROVIDER)),
        ("/v1/gateway/anthropic/v1/messages", ("api.anthropic.com", "/v1/messages", PROVIDER)),
        ("/groq/openai/v1/chat/completions", ("api.groq.com", "/openai/v1/chat/completions", PROVIDER)),
        ("/openai/v1/responses", ("api.openai.com", "/v1/responses", PROVIDER)),
        ("/gateway/v1/x", ("", "/v1/x", "gateway")),
        ("/v1/gateway", ("", "/", "gateway")),
        ("/ai-gateway/v1/chat/completions", ("", "/v1/chat/completions", "ai-gateway")),
        (
            "/bedrock/v1/us-east-1/model/m/converse",
            ("bedrock-runtime.us-east-1.amazonaws.com", "/model/m/converse", PROVIDER),
        ),
        ("/v1/chat/completions", ("api.openai.com", "/v1/chat/completions", PROVIDER)),
        ("/v1/responses", ("api.openai.com", "/v1/responses", PROVIDER)),
        ("/v1/models", ("api.openai.com", "/v1/models", PROVIDER)),
        ("/v1/messages?beta=true", ("api.anthropic.com", "/v1/messages?beta=true", PROVIDER)),
        ("/v1/messages/count_tokens", ("api.anthropic.com", "/v1/messages/count_tokens", PROVIDER)),
        (
            "/v1beta/models/g:generateContent",
            ("generativelanguage.googleapis.com", "/v1beta/models/g:generateContent", PROVIDER),
        ),
        ("/v2/chat", ("api.cohere.com", "/v2/chat", PROVIDER)),
        ("/v1/gateway/nobody/v1/x", None),
        ("/v1/gatewayx/oai", None),
        ("/api/v1/request", None),
        ("/v1/request/query", None),
        ("/", None),
        ("", None),
    ],
)
def test_paths_on_our_own_port_name_the_provider(path: str, expected: tuple[str, str, str] | None) -> None:
    found = gateway_target(path)
    if expected is None:
        assert found is None
    else:
        host, real_path, kind = expected
        assert found == Target(host, 443, real_path, kind)
