"""Estimate the tokens of a call whose provider reported none (a stream without usage, a stream that was cut).

OpenAI's chat framing is known, so text prompts are exact there; tools and images follow rules found by measurement.
For other vendors the text is counted with o200k_base and scaled by what their own counts were on recorded exchanges.
Reasoning that is not shown cannot be counted: such an estimate is a lower bound.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from . import quick_json
from .encodings import CL100K, O200K, Budget, count_tokens
from .exchange import Reply, Usage
from .token_prompt import Image, Message, Prompt, parameters_of, read_prompt

MAX_CHARACTERS = 4 * 1024 * 1024
"""Tokenised for one estimate (about 0.3 s); what is beyond is extrapolated."""
_MAX_SCHEMA_DEPTH = 8


@dataclass(frozen=True, slots=True)
class Estimate:
    """A usage that was counted here, not reported."""

    usage: Usage
    lower_bound: bool
    """More was certainly or probably billed: hidden reasoning, files, a conversation kept by the provider."""
    extrapolated: bool = False
    """The text was too long to be tokenised whole."""


@dataclass(frozen=True, slots=True)
class _Family:
    """How the token counts of a group of models relate to those of an encoding."""

    pattern: re.Pattern[str]
    output: float
    text: float
    per_message: float = 0.0
    base: float = 0.0
    tools: float = 1.0
    """Times the tokens of the tools' JSON."""
    per_tool: float = 0.0
    tools_base: float = 0.0
    schema: float = 1.0
    """Times the tokens of an answer's JSON schema."""
    per_image: float = 800.0


# Medians over recorded exchanges; the newest Claude tokenizer makes half as many tokens again as the one before.
_FAMILIES = (
    _Family(
        re.compile(r"claude-(?:opus-(?:4[-.][789]|[5-9])|sonnet-[5-9]|haiku-[5-9]|fable|mythos)"),
        output=1.49,
        text=1.47,
        per_message=3.0,
        base=6.0,
        tools=1.39,
        per_tool=27.0,
        tools_base=290.0,
        per_image=1600.0,
    ),
    _Family(
        re.compile(r"claude"),
        output=1.16,
        text=1.15,
        per_message=2.3,
        base=5.0,
        tools=1.09,
        per_tool=21.0,
        tools_base=459.0,
        per_image=1600.0,
    ),
    _Family(re.compile(r"gemini-[12]|learnlm"), output=1.06, text=1.085, tools=0.6, schema=0.0, per_image=258.0),
    _Family(re.compile(r"gemini|gemma"), output=1.04, text=0.99, per_message=1.1, schema=0.0, per_image=1100.0),
    _Family(re.compile(r"nova"), output=1.01, text=1.25, tools=1.25, tools_base=330.0),
    _Family(
        re.compile(r"mistral|mixtral|ministral|codestral|devstral|pixtral|voxtral|magistral"),
        output=1.08,
        text=1.08,
        per_message=3.0,
        base=1.0,
        tools=1.7,
    ),
    _Family(re.compile(r"deepseek"), output=1.02, text=1.02, per_message=2.0, base=1.0, tools_base=200.0),
    _Family(re.compile(r"llama"), output=1.06, text=1.06, per_message=4.0, base=25.0, tools_base=500.0),
    _Family(re.compile(r"grok"), output=1.0, text=1.0, per_message=3.0, base=145.0),
    _Family(re.compile(r"command|cohere|embed-|rerank|aya"), output=1.0, text=1.0),
)
_OTHER = _Family(re.compile(""), output=1.0, text=1.0, per_message=3.0, base=3.0)

_OPENAI = re.compile(r"(?:^|[/:])(?:gpt-|o[1-9](?:-|$)|chatgpt|davinci|babbage|ada|curie|text-|codex|computer-use)")
_CL100K = re.compile(r"gpt-(?:3\.?5|4(?:-|$))|davinci|babbage|curie|(?:^|[/:])ada|text-")
_ONE_LESS = re.compile(r"gpt-5|(?:^|[/:])o[1-9](?:-|$)")
"""Models that need one token less for the same messages."""
_REASONING = re.compile(
    r"gpt-5(?!.*chat)|gpt-oss|(?:^|[/:])o[1-9](?:-|$)|gemini-(?:2\.5|[3-9])|reason|thinking|qwq|magistral|-r1|grok-(?:3-mini|[4-9])"
)
_NOT_REASONING = re.compile(r"non-reasoning|gemini-2\.5-flash-lite")
_NOT_TOKENS = ("image", "audio", "speech", "transcri", "translat", "rerank", "ocr", "moderation", "video", "realtime")


def estimate(format: str, provider: str, model: str | None, request: bytes, reply: Reply) -> Estimate | None:
    """Count what a call used. None when it is not of a kind that is billed by text tokens. Never raises.

    `request` is the decoded body as the client sent it. Figures the provider did report (the input of a stream cut
    after its first event) are kept.
    """
    if any(word in format for word in _NOT_TOKENS):
        return None
    body = _parse(request)
    prompt = read_prompt(body) if body is not None else Prompt()
    known = reply.usage
    if prompt.empty and not reply.text and known is None:
        return None
    name = _known_name(model, provider)
    budget = Budget(MAX_CHARACTERS)
    lower_bound = (_hides_reasoning(name, body) and not _shows_reasoning(known)) or not reply.complete
    if known is not None and known.input_tokens is not None:
        usage = known
    else:
        counted = None if prompt.empty else count_input(prompt, name, budget)
        usage = replace(known or Usage(), input_tokens=counted)
        lower_bound = lower_bound or prompt.unseen or counted is None
    if "embed" not in format:
        usage = replace(usage, output_tokens=_output(reply, name, budget))
    return Estimate(usage, lower_bound, budget.exceeded)


def _parse(request: bytes) -> Mapping[str, Any] | None:
    try:
        body = quick_json.read(request)
    except quick_json.REFUSED:
        try:
            body = json.loads(request)
        except (ValueError, RecursionError):
            return None
    return body if isinstance(body, dict) else None


def _hides_reasoning(model: str, body: Mapping[str, Any] | None) -> bool:
    if not _REASONING.search(model) or _NOT_REASONING.search(model):
        return False
    reasoning = (body or {}).get("reasoning")
    effort = (body or {}).get("reasoning_effort") or (reasoning.get("effort") if isinstance(reasoning, dict) else None)
    return effort != "none"


def _shows_reasoning(known: Usage | None) -> bool:
    return known is not None and known.reasoning_tokens is not None


def _output(reply: Reply, model: str, budget: Budget) -> int:
    """Visible output tokens, at least what the provider reported so far."""
    encoding, factor = _encoding(model)
    counted = count_tokens(reply.text, encoding, budget) * factor
    if factor == 1.0 and reply.tool_calls:
        # OpenAI frames each call; several are wrapped in one call of a hidden tool.
        counted += 7 if reply.tool_calls == 1 else 14 * reply.tool_calls
    known = reply.usage
    if known is None:
        return round(counted)
    counted += known.reasoning_tokens or 0
    return max(round(counted), known.output_tokens or 0)


def _known_name(model: str | None, provider: str) -> str:
    """The model in lower case; a name that tells nothing (an Azure deployment) counts as the provider's usual model."""
    name = (model or "").lower()
    if _OPENAI.search(name) or any(family.pattern.search(name) for family in _FAMILIES):
        return name
    usual = {"openai": "gpt-4o", "azure": "gpt-4o", "anthropic": "claude", "google": "gemini-2", "mistral": "mistral"}
    return usual.get(provider, name)


def _family(model: str) -> _Family | None:
    """None for OpenAI's own models, whose rules are known."""
    if _OPENAI.search(model):
        return None
    return next((family for family in _FAMILIES if family.pattern.search(model)), _OTHER)


def _encoding(model: str) -> tuple[str, float]:
    """The encoding to count a model's output with, and the factor to its own tokens."""
    family = _family(model)
    if family is not None:
        return O200K, family.output
    return (CL100K if _CL100K.search(model) else O200K), 1.0


def count_input(prompt: Prompt, model: str, budget: Budget) -> int:
    """Input tokens of a prompt on a model (name in lower case)."""
    family = _family(model)
    if family is None:
        return _openai_input(prompt, model, CL100K if _CL100K.search(model) else O200K, budget)
    plain = sum(count_tokens(text, O200K, budget) for text in prompt.plain) * family.text + prompt.plain_tokens
    if not prompt.messages:
        return round(plain)
    text = sum(count_tokens(_whole_text(message), O200K, budget) for message in prompt.messages)
    total = plain + text * family.text + family.per_message * len(prompt.messages) + family.base
    if prompt.tools:
        written = sum(count_tokens(_json(tool), O200K, budget) for tool in prompt.tools)
        total += written * family.tools + family.per_tool * len(prompt.tools) + family.tools_base
    if prompt.schema is not None:
        total += count_tokens(_json(prompt.schema), O200K, budget) * family.schema
    total += sum(family.per_image for _ in prompt.images) + 10.0 * prompt.audio_seconds
    return max(1, round(total))


def _whole_text(message: Message) -> str:
    return message.text + "".join(name + arguments for name, arguments in message.calls)


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except (ValueError, TypeError, RecursionError):
        return ""


def _openai_input(prompt: Prompt, model: str, encoding: str, budget: Budget) -> int:
    def count(text: str) -> int:
        return count_tokens(text, encoding, budget)

    total = prompt.plain_tokens + sum(count(text) for text in prompt.plain)
    if not prompt.messages:
        return total
    total += 3 - (1 if _ONE_LESS.search(model) else 0) + (61 if "gpt-oss" in model else 0)  # harmony's own system text
    for message in prompt.messages:
        total += 3 + count(message.role) + count(message.text)
        if message.name is not None:
            total += 1 + count(message.name)
        for name, arguments in message.calls:
            total += 3 + count(name) + count(arguments)
    if prompt.tools:
        total += count(render_tools(prompt.tools)) + 9
        if any(message.role in ("system", "developer") for message in prompt.messages):
            total -= 4  # the tools join the system message instead of making their own
    if prompt.forced_tool is not None:
        total += 4 + count(prompt.forced_tool)
    if prompt.schema is not None:
        total += round(count(_json(prompt.schema)) * 0.87) + 11
    total += sum(image_tokens(image, model) for image in prompt.images)
    return total + round(10 * prompt.audio_seconds)


def render_tools(tools: list[Mapping[str, Any]]) -> str:
    """The TypeScript namespace in which OpenAI shows functions to the model."""
    lines = ["namespace functions {", ""]
    for tool in tools:
        if isinstance(description := tool.get("description"), str) and description:
            lines += [f"// {line}" for line in description.split("\n")]
        parameters = parameters_of(tool)
        properties = parameters.get("properties")
        if isinstance(properties, dict) and properties:
            lines += [f"type {tool.get('name')} = (_: {{", *_properties(parameters, 0), "}) => any;", ""]
        else:
            lines += [f"type {tool.get('name')} = () => any;", ""]
    lines.append("} // namespace functions")
    return "\n".join(lines)


def _properties(schema: Mapping[str, Any], depth: int) -> list[str]:
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return []
    required = schema.get("required")
    needed = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
    lines = []
    for name, value in properties.items():
        value = value if isinstance(value, dict) else {}
        if isinstance(description := value.get("description"), str) and depth < 2:
            lines.append(f"// {description}")
        lines.append(f"{name}{'' if name in needed else '?'}: {_type(value, depth)},")
    return lines


def _type(schema: Mapping[str, Any], depth: int) -> str:
    if depth > _MAX_SCHEMA_DEPTH:
        return "any"
    if isinstance(values := schema.get("enum"), list):
        return " | ".join(_json(value) for value in values[:1000])
    for key in ("anyOf", "oneOf"):
        if isinstance(choices := schema.get(key), list):
            return " | ".join(_type(choice, depth + 1) for choice in choices[:100] if isinstance(choice, dict))
    kind = schema.get("type")
    if isinstance(kind, list):
        return " | ".join(str(item) for item in kind)
    if kind == "array":
        items = schema.get("items")
        return f"{_type(items, depth + 1)}[]" if isinstance(items, dict) else "any[]"
    if kind == "object":
        return "\n".join(["{", *_properties(schema, depth + 1), "}"]) if schema.get("properties") else "object"
    if kind in ("integer", "number"):
        return "number"
    return str(kind) if isinstance(kind, str) else "any"


_PATCH_MODELS = (
    (re.compile(r"gpt-(?:4\.1|5)-mini"), 1.62),
    (re.compile(r"gpt-(?:4\.1|5)-nano"), 2.46),
    (re.compile(r"o4-mini"), 1.72),
)
_TILE_MODELS = (
    (re.compile(r"4o-mini"), 2833, 5667),
    (re.compile(r"gpt-5"), 70, 140),
    (re.compile(r"(?:^|[/:])o[1-9]"), 75, 150),
)
_UNKNOWN_SIZE = (1024, 1024)


def image_tokens(image: Image, model: str) -> int:
    """What an OpenAI model reads for an image; one of unknown size counts as 1024 x 1024."""
    width, height = image.size or _UNKNOWN_SIZE
    for pattern, factor in _PATCH_MODELS:
        if pattern.search(model):
            return math.ceil(_patches(width, height) * factor)
    base, tile = next(((base, tile) for pattern, base, tile in _TILE_MODELS if pattern.search(model)), (85, 170))
    return base if image.low else base + tile * _tiles(width, height)


def _tiles(width: float, height: float) -> int:
    """512-pixel tiles once the image fits 2048 x 2048 and its short side 768."""
    for longest, side in ((2048, max), (768, min)):
        scale = min(1.0, longest / side(width, height))
        width, height = max(1.0, width * scale), max(1.0, height * scale)
    return math.ceil(round(width, 3) / 512) * math.ceil(round(height, 3) / 512)


def _patches(width: float, height: float) -> int:
    """32-pixel patches, shrunk to at most 1536 of them."""
    count = math.ceil(width / 32) * math.ceil(height / 32)
    if count <= 1536:
        return count
    scale = math.sqrt(32 * 32 * 1536 / (width * height))
    wide, high = width * scale / 32, height * scale / 32
    scale *= min(math.floor(wide) / wide if wide >= 1 else 1.0, math.floor(high) / high if high >= 1 else 1.0)
    return min(1536, math.ceil(width * scale / 32) * math.ceil(height * scale / 32))
