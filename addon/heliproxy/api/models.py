"""Models and their prices, from our own price data (helicone-api.md section 1.7)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from anyio import to_thread
from starlette.responses import JSONResponse, Response

from heliproxy.api.endpoint import INTEGER, TEXT, Api, Call, Endpoint, a_list, an_object
from heliproxy.price_models import Tiered
from heliproxy.price_table import period_at, standard_prices

if TYPE_CHECKING:
    from heliproxy.price_models import Model, Provider

PRICES = {
    "input_mtok": "prompt",
    "output_mtok": "completion",
    "cache_read_mtok": "cacheRead",
    "cache_write_mtok": "cacheWrite",
    "input_audio_mtok": "audio",
    "output_reasoning_mtok": "thinking",
    "input_image_mtok": "image",
    "input_video_mtok": "video",
}
"""Keys of the price data -> Helicone's; both are USD per million tokens."""
SEARCHES = "web_searches_kcount"
AUTHORS = ("anthropic", "openai", "google", "mistral", "deepseek", "cohere", "x-ai", "meta", "moonshotai", "zai")
TESTS: dict[str, Callable[[str, str], bool]] = {
    "equals": lambda name, wanted: name == wanted,
    "startswith": lambda name, wanted: name.startswith(wanted),
    "includes": lambda name, wanted: wanted in name,
}
_CREATED = 1_700_000_000


class Registry:
    """The answers about models, made once: the data does not change while we run. Thread-safe."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._lock = threading.Lock()
        self._models: list[dict[str, Any]] | None = None

    def models(self) -> list[dict[str, Any]]:
        with self._lock:
            if self._models is None:
                from heliproxy.pricing import Prices

                providers = Prices(self._api.addon.settings.home).table.providers
                self._models = registry_models(providers, datetime.now(UTC))
            return self._models


def registry_models(providers: Iterable[Provider], now: datetime) -> list[dict[str, Any]]:
    """Every model once, with one endpoint for each provider that sells it."""
    found: dict[str, dict[str, Any]] = {}
    for provider in providers:
        for info in provider.read_models():
            pricing = prices_of(info, now)
            if pricing is None:
                continue
            model_id = info.id.rpartition("/")[2]
            model = found.setdefault(model_id, new_model(model_id, info, author_of(provider.id, info.id)))
            model["endpoints"].append(
                {"provider": provider.name, "providerSlug": provider.id, "supportsPtb": False, "pricing": pricing}
            )
    return [found[model_id] for model_id in sorted(found)]


def new_model(model_id: str, info: Model, author: str) -> dict[str, Any]:
    model: dict[str, Any] = {
        "id": model_id,
        "name": info.name or model_id,
        "author": author,
        "contextLength": info.context_window or 0,
        "endpoints": [],
        "inputModalities": ["text"],
        "outputModalities": ["text"],
        "supportedParameters": [],
    }
    if info.description:
        model["description"] = info.description.strip()
    return model


def author_of(provider_id: str, model_id: str) -> str:
    """Who made a model: its id's prefix (`meta-llama/...`), else who sells it."""
    prefix = model_id.rpartition("/")[0].rpartition("/")[2]
    if prefix:
        return prefix
    return next((author for author in AUTHORS if model_id.startswith(author)), provider_id)


def prices_of(info: Model, now: datetime) -> dict[str, float] | None:
    """Prices that hold now, at the lowest tier; None when the data has none."""
    named = standard_prices(info, period_at(info, now))
    found = {name: _lowest(named[key]) for key, name in PRICES.items() if key in named}
    if SEARCHES in named:
        found["web_search"] = _lowest(named[SEARCHES]) / 1000
    return {"prompt": 0.0, "completion": 0.0, **found} if found else None


def _lowest(price: float | Tiered) -> float:
    return price.base if isinstance(price, Tiered) else price


def _registry(call: Call) -> Registry:
    state = call.request.app.state
    if not hasattr(state, "registry"):
        state.registry = Registry(call.api)
    registry: Registry = state.registry
    return registry


async def registry(call: Call) -> Any:
    models = await to_thread.run_sync(_registry(call).models)
    sellers = {e["providerSlug"]: e["provider"] for model in models for e in model["endpoints"]}
    return {
        "models": models,
        "total": len(models),
        "filters": {
            "providers": [{"name": slug, "displayName": sellers[slug]} for slug in sorted(sellers)],
            "authors": sorted({model["author"] for model in models}),
            "capabilities": [],
        },
    }


async def openai_list(call: Call) -> Response:
    """The models as OpenAI lists them."""
    models = await to_thread.run_sync(_registry(call).models)
    lines = [{"id": m["id"], "object": "model", "created": _CREATED, "owned_by": m["author"]} for m in models]
    return JSONResponse({"object": "list", "data": lines})


async def llm_costs(call: Call) -> Response:
    """Prices as the calculator of Helicone's web site gives them: `?provider=&model=&operator=`."""
    query = call.request.query_params
    provider, model = query.get("provider", "").lower(), query.get("model", "").lower()
    operator = query.get("operator", "contains" if model else "equals").lower()
    test = TESTS.get(operator.replace("-", "").replace("_", ""), TESTS["includes"])
    lines = []
    for one in await to_thread.run_sync(_registry(call).models):
        if model and not test(one["id"].lower(), model):
            continue
        for endpoint in one["endpoints"]:
            if not provider or endpoint["providerSlug"] == provider:
                pricing = endpoint["pricing"]
                lines.append(
                    {
                        "provider": endpoint["providerSlug"].upper(),
                        "model": one["id"],
                        "operator": "equals",
                        "input_cost_per_1m": pricing["prompt"],
                        "output_cost_per_1m": pricing["completion"],
                    }
                )
    return JSONResponse({"metadata": {"total_models": len(lines)}, "data": lines})


LIST = an_object(
    "object data",
    object={"enum": ["list"]},
    data=a_list(an_object("id object created owned_by", id=TEXT, object=TEXT, created=INTEGER, owned_by=TEXT)),
)
REGISTRY = an_object(
    "models total filters",
    models=a_list(an_object("id name author contextLength endpoints", id=TEXT, name=TEXT, author=TEXT)),
    total=INTEGER,
    filters={"type": "object"},
)
COSTS = an_object("metadata data", metadata={"type": "object"}, data=a_list({"type": "object"}))
ENDPOINTS = (
    Endpoint("GET", "/v1/public/model-registry/models", registry, "List models with their prices", data=REGISTRY),
    Endpoint("GET", "/v1/models", openai_list, "List models", raw=LIST),
    Endpoint("GET", "/v1/models/multimodal", openai_list, "List models", raw=LIST),
    Endpoint(
        "GET",
        "/api/llm-costs",
        llm_costs,
        "Look prices up",
        raw=COSTS,
        query=(("provider", TEXT), ("model", TEXT), ("operator", TEXT)),
    ),
)
