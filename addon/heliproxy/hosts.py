"""Whose host is it, and is this call inference? Tables, and the few functions that read them.

A provider is a row: its hosts, its id in the price data, the paths that only it has. Which wire format a path
speaks is mostly the same for everybody, since everybody copied OpenAI. Helicone's own hosts are told by their
first label, in the order in which Helicone's worker tests them (helicone/worker/src/index.ts).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from urllib.parse import unquote


@dataclass(frozen=True, slots=True)
class Route:
    """What a request to a known host is."""

    provider: str
    """Lower-case id: openai, anthropic, azure, bedrock, google, vertex, x-ai, ..."""
    host: str
    format: str
    """Key into `formats.FORMATS`; empty when the body's format is unknown."""
    price_provider: str | None
    """Provider id in the price data; None: search all, or free (ollama, local)."""
    inference: bool
    """False: a known host, but no call to a model; it passes and makes no row."""
    batch: bool = False
    """The results of a batch: JSON lines that each hold a response."""
    model: str | None = None
    """The model when the path names it."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request to a Helicone host, or to our own port, really goes."""

    host: str
    """Empty when the request itself must say (gateway, ai-gateway, generate, api)."""
    port: int
    path: str
    kind: str
    """provider, gateway, ai-gateway, api, generate, or local: a server on this machine that `host` is the label of."""


@dataclass(frozen=True, slots=True)
class Provider:
    """One row: a company's hosts."""

    id: str
    hosts: tuple[str, ...]
    """Host names; `*` stands for one or more labels or for part of one, as in `*.openai.azure.com`."""
    price: str | None = None
    paths: tuple[tuple[str, str], ...] = ()
    """Patterns that the end of a path matches, with their format; tried before the common ones."""
    generative: str = ""
    """Paths (pattern) that call a model in a way we cannot read: logged, with the format unknown. Jobs that are only
    started here (Replicate's predictions, videos, batches) are none: their work, and its bill, come later."""


# ---------------------------------------------------------------------------------------------------------------
# Paths. The first pattern found in the path wins; all end at its end. "-" marks a call that is not inference.

_NO = "-"

_COMMON: tuple[tuple[str, str], ...] = (
    (r"/(?:count_tokens|count-tokens|input_tokens|tokenize|detokenize)$", _NO),
    (r"/models/count-tokens(?:@[^/:]+)?:(?:stream)?[rR]awPredict$", _NO),
    (r"/chat/completions$", "openai_chat"),
    (r"/fim/completions$", "openai_chat"),
    (r"/agents/completions$", "openai_chat"),
    (r"/completions$", "openai_completions"),
    (r"/responses(?:/compact)?$", "openai_responses"),
    (r"/v1/realtime$", "openai_responses"),
    (r"/embeddings$", "openai_embeddings"),
    (r"/(?:contextualized|multimodal)embeddings$", "openai_embeddings"),
    (r"/images/(?:generations|edits|variations)$", "openai_images"),
    (r"/audio/(?:transcriptions|translations)$", "openai_transcription"),
    (r"/audio/speech$", "openai_speech"),
    (r"/moderations$", "openai_moderation"),
    (r"/v\d+/messages$", "anthropic_messages"),
    (r"/anthropic/messages$", "anthropic_messages"),
    (r"/v\d+/complete$", "anthropic_complete"),
    (r"/rerank$", "cohere_rerank"),
    (r"/ocr$", "mistral_ocr"),
    (r":(?:generateContent|streamGenerateContent)$", "gemini_generate"),
    (r":(?:embedContent|batchEmbedContents)$", "gemini_embed"),
    (r"/interactions$", "gemini_interactions"),
    (r"/publishers/anthropic/models/[^/]+:(?:raw|streamRaw)Predict$", "anthropic_messages"),
    (r"/publishers/[^/]+/models/[^/]+:(?:raw|streamRaw)Predict$", "openai_chat"),
    (r"/models/[^/]+:predict$", "vertex_predict"),
    (r"/endpoints/[^/]+:(?:predict|rawPredict|streamRawPredict)$", "vertex_predict"),
    (r"/model/.+/(?:converse|converse-stream)$", "bedrock_converse"),
    (r"/model/.+/(?:invoke|invoke-with-response-stream)$", "bedrock_invoke"),
)

_COHERE = (
    (r"/v\d+/chat$", "cohere_chat"),
    (r"/v\d+/generate$", "cohere_chat"),
    (r"/v\d+/embed$", "cohere_embed"),
)
_OLLAMA = (
    (r"/api/chat$", "ollama_chat"),
    (r"/api/generate$", "ollama_chat"),
    (r"/api/embed(?:dings)?$", "ollama_embed"),
)
_MISTRAL = ((r"/v1/conversations(?:/[^/]+)?$", "openai_chat"),)

# ---------------------------------------------------------------------------------------------------------------
# Providers

PROVIDERS: tuple[Provider, ...] = (
    Provider("openai", ("api.openai.com", "us.api.openai.com", "eu.api.openai.com", "*.api.openai.com"), "openai"),
    Provider("chatgpt", ("chatgpt.com",), "openai"),
    Provider("anthropic", ("api.anthropic.com",), "anthropic"),
    Provider("google", ("generativelanguage.googleapis.com",), "google",
             generative=r":(?:generateText|generateMessage|generateAnswer)$"),
    Provider("google", ("cloudcode-pa.googleapis.com", "*-cloudcode-pa.googleapis.com",
                        "*-cloudcode-pa.sandbox.googleapis.com"), "google"),
    Provider("vertex", ("aiplatform.googleapis.com", "*-aiplatform.googleapis.com", "aiplatform.*.rep.googleapis.com"),
             "google"),
    Provider("azure", ("*.openai.azure.com", "*.openai.azure.us", "*.services.ai.azure.com",
                       "*.cognitiveservices.azure.com", "*.azure-api.net", "*.models.ai.azure.com",
                       "*.inference.ai.azure.com"), "azure"),
    Provider("bedrock", ("bedrock-runtime.*.amazonaws.com", "bedrock-runtime-fips.*.amazonaws.com",
                         "bedrock-runtime.*.amazonaws.com.cn", "*.bedrock-runtime.*.vpce.amazonaws.com",
                         "bedrock-runtime.*.api.aws", "bedrock-mantle.*.api.aws", "bedrock-mantle.*.amazonaws.com"),
             "aws"),
    Provider("mistral", ("api.mistral.ai", "codestral.mistral.ai"), "mistral", _MISTRAL),
    Provider("groq", ("api.groq.com",), "groq"),
    Provider("together", ("api.together.xyz", "api.together.ai"), "together", generative=r"^/inference$"),
    Provider("fireworks", ("api.fireworks.ai",), "fireworks", generative=r"^/inference/v1/workflows/"),
    Provider("openrouter", ("openrouter.ai", "api.openrouter.ai"), "openrouter", ((r"/images$", "openai_images"),)),
    Provider("deepseek", ("api.deepseek.com",), "deepseek"),
    Provider("x-ai", ("api.x.ai", "*.api.x.ai"), "x-ai"),
    Provider("perplexity", ("api.perplexity.ai",), "perplexity", ((r"/v\d+/sonar$", "openai_chat"),)),
    Provider("cohere", ("api.cohere.com", "api.cohere.ai"), "cohere", _COHERE,
             generative=r"^/v\d+/(?:summarize|classify)$"),
    Provider("cerebras", ("api.cerebras.ai",), "cerebras"),
    Provider("huggingface", ("router.huggingface.co", "api-inference.huggingface.co", "*.endpoints.huggingface.cloud"),
             None, generative=r"^/(?:[\w-]+/)?models/[^?]+$"),
    Provider("deepinfra", ("api.deepinfra.com",), None, generative=r"^/v1/inference/"),
    Provider("hyperbolic", ("api.hyperbolic.xyz",), None,
             generative=r"^/v1/(?:image/generation|audio/generation)$"),
    Provider("nebius", ("api.tokenfactory.nebius.com", "api.studio.nebius.com", "api.studio.nebius.ai",
                        "api.tokenfactory.*.nebius.com"), None),
    Provider("novita", ("api.novita.ai",), "novita"),
    Provider("nvidia", ("integrate.api.nvidia.com", "ai.api.nvidia.com"), None),
    Provider("llama", ("api.llama.com",), None),
    Provider("meta", ("api.meta.ai",), "meta"),
    Provider("vercel", ("ai-gateway.vercel.sh",), None,
             ((r"/v\d+/ai/language-model$", ""), (r"/v\d+/ai/embedding-model$", ""))),
    Provider("copilot", ("api.githubcopilot.com", "api.*.githubcopilot.com", "copilot-proxy.githubusercontent.com"),
             "github-copilot", ((r"/v1/engines/[^/]+/completions$", "openai_completions"),)),
    Provider("github-models", ("models.github.ai", "models.inference.ai.azure.com"), "azure"),
    Provider("voyageai", ("api.voyageai.com",), "voyageai"),
    Provider("jina", ("api.jina.ai",), None),
    Provider("moonshotai", ("api.moonshot.ai", "api.moonshot.cn"), "moonshotai"),
    Provider("zai", ("api.z.ai",), "zai"),
    Provider("zhipuai", ("open.bigmodel.cn",), "zhipuai"),
    Provider("minimax", ("api.minimax.io", "api.minimaxi.com", "api.minimax.chat"), "minimax",
             ((r"/text/chatcompletion_v2$", "openai_chat"),)),
    Provider("alibaba", ("dashscope.aliyuncs.com", "dashscope-intl.aliyuncs.com", "dashscope-us.aliyuncs.com"), None),
    Provider("siliconflow", ("api.siliconflow.cn", "api.siliconflow.com"), None),
    Provider("sambanova", ("api.sambanova.ai",), None),
    Provider("scaleway", ("api.scaleway.ai",), None),
    Provider("ovhcloud", ("*.endpoints.kepler.ai.cloud.ovh.net", "*.endpoints.ai.cloud.ovh.net"), "ovhcloud"),
    Provider("writer", ("api.writer.com",), None, ((r"^/v1/chat$", "openai_chat"),)),
    Provider("ai21", ("api.ai21.com",), None),
    Provider("reka", ("api.reka.ai",), None),
    Provider("inception", ("api.inceptionlabs.ai",), None),
    Provider("snowflake", ("*.snowflakecomputing.com",), None,
             ((r"^/api/v2/cortex/inference:complete$", "openai_chat"),)),
    Provider("heroku", ("inference.heroku.com", "*.inference.heroku.com"), None,
             ((r"^/v1/agents/heroku$", "openai_chat"),)),
    Provider("crusoe", ("api.inference.crusoecloud.com", "managed-inference-api-proxy.crusoecloud.com",
                        "*.inference.crusoecloud.com"), None),
    Provider("portkey", ("api.portkey.ai",), None),
    Provider("pydantic-gateway", ("gateway.pydantic.dev", "gateway-us.pydantic.dev", "gateway-eu.pydantic.dev",
                                  "*.gateway.pydantic.dev"), None),
    Provider("cloudflare", ("gateway.ai.cloudflare.com",), "cloudflare", generative=r"/workers-ai/@"),
    Provider("replicate", ("api.replicate.com",), None),
    Provider("predibase", ("serving.app.predibase.com", "api.app.predibase.com"), None,
             generative=r"/llms/[^/]+/generate(?:_stream)?$"),
    Provider("avian", ("api.avian.io",), "avian"),
    Provider("arcee", ("api.arcee.ai", "conductor.arcee.ai"), "arcee"),
    Provider("baseten", ("inference.baseten.co",), "baseten"),
    Provider("chutes", ("llm.chutes.ai",), None),
    Provider("lemonfox", ("api.lemonfox.ai",), None),
    Provider("anyscale", ("api.endpoints.anyscale.com",), None),
    Provider("canopywave", ("inference.canopywave.io", "api.canopywave.io"), None),
    Provider("lambda", ("api.lambda.ai", "api.lambdalabs.com"), None),
    Provider("stepfun", ("api.stepfun.com", "api.stepfun.ai"), None),
    Provider("baichuan", ("api.baichuan-ai.com",), None),
    Provider("volcengine", ("ark.*.volces.com", "ark.*.bytepluses.com"), None),
    Provider("ollama", ("ollama.com", "api.ollama.com"), None, _OLLAMA),
)  # fmt: skip

# A local server is told by its port (with the plain name of the loopback host), or else by its path.
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1", "0.0.0.0", "host.docker.internal")  # noqa: S104 - a name to match
LOCAL_PORTS = {11434: "ollama", 1234: "lmstudio"}
_LOCAL = Provider("local", (), None, _OLLAMA)
_LOCAL_PATH = re.compile(r"^(?:/v\d+/|/api/(?:chat|generate|embed|embeddings|v\d+/)|/openai/v\d+/|/engines/)")

_HF_SHAPE = re.compile(r"^/([\w-]+)/")
_HF_PRICED = frozenset(
    "cerebras fireworks-ai groq hyperbolic nebius novita nscale ovhcloud publicai sambanova together".split()  # noqa: SIM905
)
_PATH_PROVIDERS = {
    "openai": "openai", "azure": "azure", "anthropic": "anthropic", "groq": "groq", "google-vertex": "google",
    "google-ai-studio": "google", "google-vertex-ai": "google", "gemini": "google", "bedrock": "aws",
    "aws-bedrock": "aws", "mistral": "mistral", "deepseek": "deepseek", "cohere": "cohere", "openrouter": "openrouter",
    "perplexity-ai": "perplexity", "cerebras": "cerebras", "grok": "x-ai", "xai": "x-ai", "workers-ai": "cloudflare",
}  # fmt: skip
"""Gateways that name the provider in the path (pydantic, Cloudflare): its id in the price data."""


def _host_pattern(name: str) -> str:
    """A regex for a host name in which `*` stands for any non-empty run of name characters and dots."""
    return re.escape(name).replace(r"\*", r"[a-z0-9_.-]+")


class _Rules:
    """The rules of one provider, compiled when the first path of one of its hosts comes."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider

    @cached_property
    def table(self) -> tuple[tuple[re.Pattern[str], str], ...]:
        return tuple((re.compile(pattern), form) for pattern, form in self.provider.paths + _COMMON)

    @cached_property
    def generative(self) -> re.Pattern[str] | None:
        return re.compile(self.provider.generative) if self.provider.generative else None


_EXACT: dict[str, _Rules] = {}
_PATTERNS: list[tuple[re.Pattern[str], _Rules]] = []
for _provider in PROVIDERS:
    _row = _Rules(_provider)
    for _name in _provider.hosts:
        if "*" in _name:
            _PATTERNS.append((re.compile(_host_pattern(_name)), _row))
        else:
            _EXACT[_name] = _row
_LOCAL_RULES = _Rules(_LOCAL)
_PORT_RULES = {port: _Rules(Provider(name, (), None, _OLLAMA)) for port, name in LOCAL_PORTS.items()}


def normal_host(host: str) -> tuple[str, int | None]:
    """A host as clients write it (`API.OpenAI.com.:443`, `[::1]:11434`) as lower-case name and port."""
    name = host.strip().lower()
    port: int | None = None
    if name.startswith("["):
        name, _, rest = name[1:].partition("]")
        rest = rest.removeprefix(":")
        port = int(rest) if rest.isascii() and rest.isdigit() else None
    elif name.count(":") == 1:
        name, _, rest = name.partition(":")
        port = int(rest[:6]) if rest.isascii() and rest.isdigit() else None
    return name.rstrip("."), port


def _rules_for(name: str, port: int | None) -> _Rules | None:
    if name in LOCAL_HOSTS:
        return _PORT_RULES.get(port or 0)
    found = _EXACT.get(name)
    if found is not None:
        return found
    return next((rules for pattern, rules in _PATTERNS if pattern.fullmatch(name)), None)


def provider_for_host(host: str) -> str | None:
    """The provider a host belongs to; None for hosts we do not know."""
    rules = _rules_for(*normal_host(host))
    return rules.provider.id if rules is not None else None


def route(method: str, host: str, path: str) -> Route | None:
    """What a request is; None when its host is no LLM host at all. `path` includes the query.

    Only POST is inference. A WebSocket upgrade is a GET: ask again with POST to learn what the socket will carry.
    """
    found = _route(host, path.partition("?")[0])
    if found is None or not found.inference or method.upper() == "POST":
        return found
    batch = found.batch
    return Route(found.provider, found.host, "", found.price_provider, inference=False, batch=batch)


def local_route(method: str, label: str, path: str) -> Route:
    """What a request to a server under one of the `LOCAL_LABELS` is; its models cost nothing."""
    plain = re.sub(r"/{2,}", "/", path.partition("?")[0]).rstrip("/")
    form = _format(_LOCAL_RULES, plain) if method.upper() == "POST" else None
    inference = form not in (None, _NO)
    return Route(label, "127.0.0.1", form or "" if inference else "", None, inference, model=_model_in(plain))


def custom_route(method: str, host: str, path: str) -> Route | None:
    """What a request to a host that the user added is, by its path alone; None when the path is no model call.

    The provider is the host's own name, and no price data is tied to it.
    """
    name, _ = normal_host(host)
    plain = re.sub(r"/{2,}", "/", path.partition("?")[0]).rstrip("/")
    form = _format(_LOCAL_RULES, plain)
    if form in (None, _NO) or method.upper() != "POST":
        return None
    return Route(name, name, form or "", None, inference=True, model=_model_in(plain))


@lru_cache(maxsize=1024)
def _route(host: str, path: str) -> Route | None:
    name, port = normal_host(host)
    path = re.sub(r"/{2,}", "/", path)
    path = path.rstrip("/") or "/"
    rules = _rules_for(name, port)
    if rules is None:
        if name not in LOCAL_HOSTS or not _LOCAL_PATH.match(path):
            return None
        form = _format(_LOCAL_RULES, path)
        return _made(_LOCAL_RULES, name, path, form) if form not in (None, _NO) else None
    return _made(rules, name, path, _format(rules, path))


def _format(rules: _Rules, path: str) -> str | None:
    for pattern, form in rules.table:
        if pattern.search(path):
            return form
    if rules.generative is not None and rules.generative.search(path):
        return ""
    return None


def _made(rules: _Rules, name: str, path: str, form: str | None) -> Route:
    inference = form is not None and form != _NO
    if rules.provider.id == "chatgpt" and not path.startswith("/backend-api/"):
        inference = False
    return Route(
        provider=rules.provider.id,
        host=name,
        format=form if inference and form else "",
        price_provider=_price_provider(rules.provider, path),
        inference=inference,
        batch=_BATCH.search(path) is not None,
        model=_model_in(path) if inference else None,
    )


_BATCH = re.compile(r"/v1/messages/batches/[^/]+/results$")
_MODEL = re.compile(
    r"/(?:models|tunedModels|endpoints)/([^/:]+)(?::|$)|/(?:deployments|engines)/([^/]+)/|/model/(.+)/(?:converse|invoke)"
)


def _model_in(path: str) -> str | None:
    found = _MODEL.search(path)
    if found is None:
        return None
    return unquote(next(group for group in found.groups() if group))[:300]


def _price_provider(provider: Provider, path: str) -> str | None:
    if provider.id == "huggingface":
        found = _HF_SHAPE.match(path)
        return f"huggingface_{found[1]}" if found is not None and found[1] in _HF_PRICED else None
    if provider.id in ("pydantic-gateway", "cloudflare"):
        named = (_PATH_PROVIDERS[part] for part in path.split("/") if part in _PATH_PROVIDERS)
        return next(named, None)
    return provider.price


# ---------------------------------------------------------------------------------------------------------------
# Helicone's hosts

_LABELS: tuple[tuple[str, bool, str, str], ...] = (
    # label, whether it must be the whole first label, kind, host it stands for
    ("ai-gateway", False, "ai-gateway", ""),
    ("gateway", False, "gateway", ""),
    ("generate", False, "generate", ""),
    ("oai", False, "provider", "api.openai.com"),
    ("anthropic", False, "provider", "api.anthropic.com"),
    ("api", False, "api", ""),
    ("vercel", False, "provider", "ai-gateway.vercel.sh"),
    ("together", False, "provider", "api.together.xyz"),
    ("llmmapper", False, "provider", "gateway.llmmapper.com"),
    ("google", True, "provider", "generativelanguage.googleapis.com"),
    ("llama", True, "provider", "api.llama.com"),
    ("nvidia", True, "provider", "integrate.api.nvidia.com"),
    ("openrouter", False, "provider", "openrouter.ai"),
    ("deepinfra", False, "provider", "api.deepinfra.com"),
    ("groq", False, "provider", "api.groq.com"),
    ("perplexity", True, "provider", "api.perplexity.ai"),
    ("hyperbolic", False, "provider", "api.hyperbolic.xyz"),
    ("cerebras", False, "provider", "api.cerebras.ai"),
    ("mistral", False, "provider", "api.mistral.ai"),
    ("bedrock", False, "provider", ""),
    ("fireworks", False, "provider", "api.fireworks.ai"),
    ("predibase", False, "provider", "api.app.predibase.com"),
    ("qstash", False, "provider", "qstash.upstash.io"),
    ("x", True, "provider", "api.x.ai"),
    ("deepseek", False, "provider", "api.deepseek.com"),
    ("nebius", True, "provider", "api.tokenfactory.nebius.com"),
    ("novita", True, "provider", "api.novita.ai"),
    ("firecrawl", False, "provider", "api.firecrawl.dev"),
)
_HELICONE = re.compile(r"(?:[a-z0-9_-]+\.)+(?:helicone\.ai|hconeai\.com)")
_WEBSITES = ("www", "docs", "us", "eu", "status", "app", "blog", "cdn")
"""First labels of Helicone's web pages; a browser that visits them is not our business."""


def is_helicone_host(host: str) -> bool:
    """Whether a request to this host is meant for Helicone's services (not for its web pages)."""
    name, _ = normal_host(host)
    return _HELICONE.fullmatch(name) is not None and _first_label(name) not in _WEBSITES


def _first_label(name: str) -> str:
    """The first label, without the region that may stand before it (`eu.api.helicone.ai`)."""
    labels = name.split(".")
    return labels[1] if labels[0] in ("eu", "us") and len(labels) > 3 else labels[0]


def helicone_target(host: str, path: str) -> Target | None:
    """Where a request to one of Helicone's hosts goes; None for other hosts and for labels Helicone does not know."""
    name, _ = normal_host(host)
    if _HELICONE.fullmatch(name) is None:
        return None
    label = _first_label(name)
    if label in _WEBSITES:
        return None
    for word, whole, kind, real in _LABELS:
        if label == word if whole else word in label:
            return _target(word, kind, real, path)
    return None


def _target(word: str, kind: str, real: str, path: str) -> Target | None:
    if word == "bedrock":
        found = re.match(r"/v1/([a-z0-9-]+)(/.*)?$", path)
        if found is None:
            return None
        return Target(f"bedrock-runtime.{found[1]}.amazonaws.com", 443, found[2] or "/", kind)
    if word == "firecrawl":
        verb = next((verb for verb in ("scrape", "search", "crawl") if verb in path), None)
        return Target(real, 443, f"/v0/{verb}", kind) if verb is not None else None
    if (word == "llmmapper" and not path.startswith("/oai2ant")) or (word == "qstash" and not path.startswith("/llm")):
        return None
    return Target(real, 443, path, kind)


_GATEWAY_LABELS: dict[str, tuple[str, str, str]] = {
    word: (word, kind, real) for word, _, kind, real in _LABELS if kind != "api"
} | {
    alias: (alias, "provider", real)
    for alias, real in (
        ("openai", "api.openai.com"),
        ("gemini", "generativelanguage.googleapis.com"),
        ("xai", "api.x.ai"),
        ("cohere", "api.cohere.com"),
    )
}
LOCAL_LABELS = {"ollama": 11434, "lmstudio": 1234, "vllm": 8000, "llamacpp": 0}
"""Servers on this machine, by the label of their base URL, at the port each listens on when nothing else is said.
llama.cpp's is 8080, which is ours: the operator must say where it is (0)."""
_BARE: tuple[tuple[str, str], ...] = (
    (r"^/v1/messages(?:/|$)", "api.anthropic.com"),
    (r"^/v1/complete$", "api.anthropic.com"),
    (r"^/v1beta/", "generativelanguage.googleapis.com"),
    (r"^/v1/models/[^/]+:\w+$", "generativelanguage.googleapis.com"),
    (r"^/v1/ocr$", "api.mistral.ai"),
    (r"^/v[12]/chat$|^/v2/(?:embed|rerank)$|^/v1/(?:embed|rerank|generate)$", "api.cohere.com"),
    (r"^/v1/(?:chat/completions|completions|responses|embeddings|images|audio|moderations)(?:/|$)", "api.openai.com"),
    (r"^/v1/(?:models|files|batches|uploads|vector_stores|conversations|realtime)(?:/|$)", "api.openai.com"),
)
_BARE_PATTERNS = tuple((re.compile(pattern), real) for pattern, real in _BARE)


def gateway_target(path: str) -> Target | None:
    """Where a request to our own port goes: `/v1/gateway/<label>/...`, `/<label>/...`, or a bare provider path.

    `<label>` is the first label of Helicone's host (oai, anthropic, groq, ...). None when the path is none of these.
    """
    plain, mark, query = path.partition("?")
    rest = plain.removeprefix("/v1/gateway")
    if rest == plain or (rest and not rest.startswith("/")):
        rest = plain
    elif rest in ("", "/"):
        return Target("", 443, "/" + mark + query, "gateway")
    label, _, tail = rest.removeprefix("/").partition("/")
    known = _GATEWAY_LABELS.get(label.lower())
    if known is not None:
        return _target(*known, path=f"/{tail}{mark}{query}")
    if label.lower() in LOCAL_LABELS:
        return Target(label.lower(), LOCAL_LABELS[label.lower()], f"/{tail}{mark}{query}", "local")
    if rest != plain:
        return None
    for pattern, real in _BARE_PATTERNS:
        if pattern.search(plain):
            return Target(real, 443, path, "provider")
    return None


# ---------------------------------------------------------------------------------------------------------------
# What mitmproxy may decrypt


def _allow_patterns() -> tuple[str, ...]:
    """One regex a provider, for mitmproxy's `allow_hosts`, which searches them in `host:port`: so they are anchored."""
    found: list[str] = []
    for provider in PROVIDERS:
        names = "|".join(_host_pattern(name) for name in provider.hosts)
        found.append(rf"(?i)^(?:{names})\.?:\d+$")
    sites = "|".join(_WEBSITES)
    found.append(rf"(?i)^(?!(?:{sites})\.helicone\.ai\.?:)(?:[a-z0-9_-]+\.)+(?:helicone\.ai|hconeai\.com)\.?:\d+$")
    local = "|".join(re.escape(name) for name in LOCAL_HOSTS)
    ports = "|".join(map(str, LOCAL_PORTS))
    found.append(rf"(?i)^\[?(?:{local})\]?:(?:{ports})$")
    return tuple(found)


LLM_HOST_PATTERNS: tuple[str, ...] = _allow_patterns()


def _ca_hosts() -> tuple[str, ...]:
    """The domains a CA needs to sign for; a name stands for itself and all below it, as in RFC 5280 4.2.1.10."""
    names: set[str] = {"helicone.ai", "hconeai.com", "localhost"}
    for provider in PROVIDERS:
        for name in provider.hosts:
            names.add(name.rpartition("*")[2].partition(".")[2] if "*" in name else name)
    return tuple(sorted(names))


CA_HOSTS: tuple[str, ...] = _ca_hosts()
"""For the name constraints of our CA: it can vouch for LLM hosts and for nothing else."""
