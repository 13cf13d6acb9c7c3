"""Legacy prompts: `<helicone-prompt-input key="name">value</helicone-prompt-input>` inside the body (section 7).

Only with `Helicone-Prompt-Id` (or a `Helicone-Prompt-Mode` other than `deactivated`): the tags go, their text
stays and is sent; the inputs are logged.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

INPUT_PREFIX = "Helicone-Prompt-Input-"
MAX_INPUTS = 50
MAX_KEY = 64
MAX_VALUE = 1024
_MARK = b"helicone-"
_OPEN = re.compile(r"<helicone-(prompt-input|auto-prompt-input)((?:\s[^<>]*)?/?)>")
_CLOSE = {kind: re.compile(rf"</helicone-{kind}\s*>") for kind in ("prompt-input", "auto-prompt-input")}
_STATIC = re.compile(r"</?helicone-prompt-static\s*>")
_ATTRIBUTE = re.compile(r"""\b(?:key|idx)\s*=\s*(?:"([^"]*)"|'([^']*)'|\{?["']?([\w.-]+)["']?\}?)""")


@dataclass(frozen=True, slots=True)
class Stripped:
    """A body without prompt tags."""

    body: bytes
    inputs: dict[str, str] = field(default_factory=dict)
    template: Any = None
    """The JSON body with an empty tag in each input's place; None when nothing was found."""


def input_properties(inputs: Mapping[str, str]) -> dict[str, str]:
    """The inputs of a prompt as properties of the row: `Helicone-Prompt-Input-name`."""
    kept = list(inputs.items())[:MAX_INPUTS]
    return {input_name(key): value[:MAX_VALUE] for key, value in kept}


def input_name(key: str) -> str:
    """The property that keeps the input of this name."""
    return f"{INPUT_PREFIX}{key[:MAX_KEY]}"


def strip_tags(body: bytes) -> Stripped:
    """Take the tags out of every string of a JSON body. Without tags, or without JSON, the very same bytes."""
    if _MARK not in body:
        return Stripped(body)
    try:
        value = json.loads(body)
        inputs: dict[str, str] = {}
        plain = _walk(value, inputs, keep_tag=False)
        if plain == value:
            return Stripped(body)
        template = _walk(value, {}, keep_tag=True)
    except (ValueError, RecursionError):
        return Stripped(body)
    return Stripped(json.dumps(plain, separators=(",", ":")).encode("ascii"), inputs, template)


def _walk(value: Any, inputs: dict[str, str], *, keep_tag: bool) -> Any:
    if isinstance(value, str):
        return _strip(value, inputs, keep_tag=keep_tag)
    if isinstance(value, list):
        return [_walk(item, inputs, keep_tag=keep_tag) for item in value]
    if isinstance(value, dict):
        return {key: _walk(item, inputs, keep_tag=keep_tag) for key, item in value.items()}
    return value


def _strip(text: str, inputs: dict[str, str], *, keep_tag: bool) -> str:
    if "helicone-" not in text:
        return text

    kept: list[str] = []
    at, place = 0, 0
    unclosed: set[str] = set()
    while opened := _OPEN.search(text, place):
        kind, attributes = opened.groups()
        content, end = "", opened.end()
        if not attributes.endswith("/"):
            # Asked once for the last one without an end, not again for each of thousands.
            closed = None if kind in unclosed else _CLOSE[kind].search(text, end)
            if closed is None:
                unclosed.add(kind)
                place = end
                continue
            content, end = text[opened.end() : closed.start()], closed.end()
        attribute = _ATTRIBUTE.search(attributes)
        key = next((group for group in attribute.groups() if group is not None), "") if attribute else ""
        inputs[key or str(len(inputs))] = content
        kept += text[at : opened.start()], f'<helicone-{kind} key="{key}" />' if keep_tag else content
        at = place = end
    return _STATIC.sub("", "".join((*kept, text[at:])))
