"""What a request asks: its turns, its tools, its settings."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from heliproxy.conversation.blocks import compact, data_part, message_parts, parts, text_part, word
from heliproxy.conversation.loading import load_cut
from heliproxy.conversation.values import Part, Tool, Turn
from heliproxy.formats.openai_responses import created
from heliproxy.formats.reading import as_list, as_object, clean, objects

SETTING_LIMIT = 300
"""Characters shown of one setting."""
_SYSTEM = ("system", "instructions", "system_instruction", "systemInstruction", "preamble")
_HISTORY = ("chat_history", "history", "messages", "contents")
_PROMPT = ("input", "prompt", "message", "query", "text", "texts", "content", "inputText", "instruction")
_ASSISTANT = {"model": "assistant", "ai": "assistant", "CHATBOT": "assistant", "USER": "user", "SYSTEM": "system"}
_SAID = frozenset(
    {*_SYSTEM, *_HISTORY, *_PROMPT, "tools", "functions", "toolConfig", "tool_results", "documents", "document", "type"}
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as people read it."""

    turns: tuple[Turn, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)
    tools: tuple[Tool, ...] = ()


def read_request(body: bytes, content_type: str = "") -> Asked:
    """Read a decoded request body. Never raises."""
    if not body:
        return Asked()
    if content_type.lower().startswith("multipart/form-data") or body[:2] == b"--":
        return _form(body)
    found = load_cut(body)
    if isinstance(found, list):
        return Asked((Turn("user", tuple(parts(found) or [data_part(found)])),))
    if not isinstance(found, dict):
        return Asked((Turn("user", (Part("text", body.decode("utf-8", "replace")),)),))
    return _object(found)


def _object(body: dict[str, Any]) -> Asked:
    if body.get("type") == "response.create":
        body = {key: value for key, value in created(body).items() if key != "items"}
    inner = body.get("request")
    if isinstance(inner, dict) and "contents" in inner:  # Code Assist wraps the request
        body = {**{key: value for key, value in body.items() if key != "request"}, **inner}
    turns: list[Turn] = []
    for key in _SYSTEM:
        turns += _spoken("system", _unwrapped(body.get(key)))
    for key in _HISTORY:
        turns += messages(body.get(key))
    for key in _PROMPT:
        if key in ("input", "prompt") or not isinstance(body.get(key), dict):
            turns += _prompt(body.get(key), key)
    for entry in objects(body.get("requests")):  # Gemini's batches
        turns += messages(entry.get("content"))
    turns += _extras(body)
    said = _SAID - ({"text"} if isinstance(body.get("text"), dict) else set())
    settings = {word(key): compact(value)[:SETTING_LIMIT] for key, value in body.items() if key not in said}
    return Asked(tuple(turns), {key: value for key, value in settings.items() if key}, tuple(_tools(body)))


def _unwrapped(value: Any) -> Any:
    """Gemini's system instruction is a content object."""
    return value.get("parts") if isinstance(value, dict) and "parts" in value else value


def _spoken(role: str, content: Any, name: Any = "") -> list[Turn]:
    found = parts(content)
    return [Turn(role, tuple(found), word(name))] if found else []


def messages(value: Any) -> list[Turn]:
    """A list of messages, of any format's shape, as turns."""
    if isinstance(value, dict):
        value = [value]
    turns: list[Turn] = []
    for item in as_list(value):
        if isinstance(item, str):
            turns += _spoken("user", item)
        elif isinstance(item, dict):
            turns += message(item)
    return turns


def message(item: dict[str, Any]) -> list[Turn]:
    """One message; an item of the Responses API without a role is a turn of the party that makes such items."""
    role = item.get("role")
    if isinstance(role, str) and role:
        content = message_parts(item)
        if "parts" in item:
            content += parts(item["parts"])
        if isinstance(item.get("message"), str):  # Cohere v1 history
            content += text_part(item["message"])
        for result in objects(item.get("tool_results")):
            content += [Part("tool_result", compact(result.get("outputs")))]
        role = _ASSISTANT.get(role, role)
        if role == "user" and content and all(part.kind == "tool_result" for part in content):
            role = "tool"
        return [Turn(word(role), tuple(content), word(item.get("name")))] if content else []
    if "parts" in item:
        return _spoken("user", item["parts"])
    kind = item.get("type")
    kind = kind if isinstance(kind, str) else ""
    if kind == "item_reference":
        return [Turn("assistant", (Part("data", f"(refers to {word(item.get('id'))})"),))]
    role = (
        "tool" if kind.endswith("_output") else "assistant" if kind.endswith("_call") or kind == "reasoning" else "user"
    )
    return _spoken(role, item)


def _prompt(value: Any, key: str) -> list[Turn]:
    if isinstance(value, str):
        return _spoken("user", value)
    if isinstance(value, dict):
        return messages([value]) if "role" in value or "parts" in value else _spoken("user", _unwrapped(value))
    items = as_list(value)
    counts = [len(item) if isinstance(item, list) else 1 for item in items if isinstance(item, int | list)]
    if items and len(counts) == len(items):
        return [Turn("user", (Part("data", f"({sum(counts):,} tokens, sent as numbers)"),))]
    if key in ("input", "prompt") and any(isinstance(item, dict) for item in items):
        return messages(items)
    return _spoken("user", items)


def _extras(body: dict[str, Any]) -> list[Turn]:
    """What some formats put beside the messages: documents to rank or to cite, results of tools."""
    turns: list[Turn] = []
    documents = as_list(body.get("documents"))
    if documents:
        found = [
            Part("file", part.text or compact(part.source)) for item in documents for part in parts(_document(item))
        ]
        turns.append(Turn("user", tuple(found)))
    if isinstance(body.get("document"), dict):  # Mistral OCR
        turns += _spoken("user", body["document"])
    for result in objects(body.get("tool_results")):
        turns.append(Turn("tool", (Part("tool_result", compact(result.get("outputs"))),)))
    return turns


def _document(item: Any) -> Any:
    return item if isinstance(item, str) else {"type": "text", "text": compact(item)}


def _tools(body: dict[str, Any]) -> list[Tool]:
    offered = [*as_list(body.get("tools")), *as_list(body.get("functions"))]
    offered += as_list(as_object(body.get("toolConfig")).get("tools"))
    found: list[Tool] = []
    for item in objects(offered):
        declared = item.get("functionDeclarations") or item.get("function_declarations")
        for tool in objects(declared) if declared else [item]:
            inner = as_object(tool.get("function") or tool.get("toolSpec") or tool.get("custom") or tool)
            name = word(inner.get("name")) or word(inner.get("type")) or next(iter(map(word, inner)), "")
            if name:
                found.append(Tool(name, word(inner.get("description"))))
    return found


_BOUNDARY = re.compile(rb"--[^\r\n]{1,200}")
_FIELD = re.compile(rb'\bname="([^"]*)"', re.IGNORECASE)
_FILE = re.compile(rb'\bfilename="([^"]*)"', re.IGNORECASE)
_TYPE = re.compile(rb"content-type:\s*([^\r\n;]+)", re.IGNORECASE)


def _form(body: bytes) -> Asked:
    """A multipart form: files and prompts are turns, other fields are settings."""
    boundary = _BOUNDARY.match(body)
    if boundary is None:
        return Asked((Turn("user", (Part("file", text=f"({len(body):,} bytes)"),)),))
    said: list[Part] = []
    settings: dict[str, str] = {}
    for section in body.split(boundary.group())[1:101]:
        head, _, content = section.partition(b"\r\n\r\n")
        name = _FIELD.search(head)
        if name is None:
            continue
        content = content.removesuffix(b"\r\n")
        file = _FILE.search(head)
        if file is not None:
            media = _TYPE.search(head)
            media_type = _plain(media.group(1)) if media else ""
            kind = media_type.partition("/")[0]
            said.append(
                Part(
                    kind if kind in ("image", "audio") else "file",
                    f"({len(content):,} bytes)",
                    name=_plain(file.group(1)),
                    media=media_type,
                )
            )
        elif name.group(1) in (b"prompt", b"input"):
            said += text_part(_plain(content))
        else:
            settings[_plain(name.group(1))] = _plain(content)[:SETTING_LIMIT]
    return Asked((Turn("user", tuple(said)),) if said else (), settings)


def _plain(data: bytes) -> str:
    return clean(data.decode("utf-8", "replace"))
