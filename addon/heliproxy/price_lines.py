"""Price data as text: JSON with one provider a line, so that a provider can be read without the others.

`{"version":"genai-prices 0.2.3","dated":"2026-10-14","sha256":"...","providers":[`, then lines such as
`{"id":"openai",...,"models":[...]},`, then `]}`. A file whose providers have that digest was checked when it was
written.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import date

_MODELS = b',"models":['
"""Stands in no text, where the quotation marks would be escaped."""


def provider_line(provider: dict[str, Any]) -> bytes:
    """One provider, its models last."""
    kept = {key: value for key, value in provider.items() if key != "models"}
    return _compact({**kept, "models": provider.get("models", [])})


def head_of(line: bytes) -> Any:
    """What a line says of its provider, without the models."""
    head, cut, _ = line.partition(_MODELS)
    return json.loads(head + b"}" if cut else line)


def write_lines(version: str, providers: Iterable[dict[str, Any]], dated: date | None) -> bytes:
    """The whole file; the providers must have been checked."""
    lines = list(map(provider_line, providers))
    facts = {"version": version, "dated": dated and dated.isoformat(), "sha256": digest(lines)}
    return _compact(facts)[:-1] + b',"providers":[\n' + b",\n".join(lines) + b"\n]}\n"


def is_in_lines(content: bytes) -> bool:
    """Whether a file was written by `write_lines`, and not cut short."""
    first = content.partition(b"\n")[0]
    return first.startswith(b'{"version":') and first.endswith(b'"providers":[') and content.endswith(b"\n]}\n")


def digest(lines: Iterable[bytes]) -> str:
    return hashlib.sha256(b"\n".join(lines)).hexdigest()


def read_lines(content: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """What the first line says, and one line for each provider. Only for a file that `write_lines` made."""
    first, *lines, _ = content.rstrip(b"\n").split(b"\n")
    return json.loads(first + b"]}"), [line.removesuffix(b",") for line in lines]


def _compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")
