"""JSON out of stored bodies, of which long ones were cut at the storage limit."""

from __future__ import annotations

import re
from typing import Any

from heliproxy.formats.reading import load

_TOKENS = re.compile(r'"(?:[^"\\]++|\\.)*+("?)|[\[\]{},]', re.DOTALL)
"""A string, its closing quote apart: one without an end is read once, and not from each quote in it again."""
_TRIES = 40
"""Commas tried, from the end, to find a place where the JSON can be closed."""


def load_cut(data: bytes) -> Any:
    """The JSON value in `data`; of one that was cut, as much as can be read; None when it is no JSON."""
    found = load(data)
    if found is not None or data[:64].lstrip(b" \t\r\n\xef\xbb\xbf")[:1] not in (b"{", b"["):
        return found
    return _closed(data.decode("utf-8", "replace").removeprefix("\ufeff"))


def _closed(text: str) -> Any:
    """Close what is open at the end of `text`: first the string, if it broke off in one, then the brackets."""
    stack: list[str] = []
    commas: list[tuple[int, str]] = []
    end = 0
    for match in _TOKENS.finditer(text):
        mark = match.group()
        if mark[0] == '"' and not match[1]:
            break
        end = match.end()
        if mark in "{[":
            stack.append("}" if mark == "{" else "]")
        elif mark in "}]":
            if not stack:
                return None
            stack.pop()
        elif mark == ",":
            commas.append((match.start(), "".join(reversed(stack))))
            del commas[:-_TRIES]
    closers = "".join(reversed(stack))
    rest = text[end:]
    if '"' in rest:
        # Drop half an escape: a backslash, or \u with fewer than four digits.
        body = (
            re.sub(r"\\(?:u[0-9a-fA-F]{0,3})?$", "", text)
            if re.search(r"(?<!\\)(?:\\\\)*\\(?:u[0-9a-fA-F]{0,3})?$", text)
            else text
        )
        for ending in ('"', '": null'):
            found = load(body + ending + closers)
            if found is not None:
                return found
    for ending in ("", " null", ": null"):
        found = load(text + ending + closers)
        if found is not None:
            return found
    for place, closing in reversed(commas):
        found = load(text[:place] + closing)
        if found is not None:
            return found
    return None
