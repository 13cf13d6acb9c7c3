"""Content blocks of every format as parts."""

from __future__ import annotations

import json
from typing import Any

from heliproxy.conversation.values import Part
from heliproxy.formats.reading import as_list, as_object, clean, objects, string

DATA_LIMIT = 20_000
"""Characters kept of a value nobody knows how to show."""
_TEXT_TYPES = frozenset({"", "text", "input_text", "output_text", "summary_text", "reasoning_text"})
_CALL_TYPES = frozenset(
    {"tool_use", "server_tool_use", "mcp_tool_use", "function_call", "custom_tool_call", "mcp_call"}
)
_SILENT = frozenset({"cachePoint", "cache_control", "ephemeral"})


def compact(value: Any) -> str:
    """A value as one line of JSON; a string as itself."""
    if isinstance(value, str):
        return clean(value)
    try:
        return clean(json.dumps(value, ensure_ascii=False))
    except (ValueError, RecursionError):
        return "(too deep to show)"


def data_part(value: Any, name: str = "") -> Part:
    """A value shown as JSON."""
    try:
        text = json.dumps(value, ensure_ascii=False, indent=2)
    except (ValueError, RecursionError):
        text = "(too deep to show)"
    return Part("data", clean(text[:DATA_LIMIT]), name=name)


def text_part(value: Any, kind: str = "text") -> list[Part]:
    return [Part(kind, clean(value))] if isinstance(value, str) and value else []


def word(value: Any) -> str:
    """A name or id: a short string, else ""."""
    return string(value) or ""


def parts(content: Any) -> list[Part]:
    """The parts of a message's content: a string, a block, or a list of both."""
    if isinstance(content, str):
        return text_part(content)
    if isinstance(content, dict):
        return block(content)
    found: list[Part] = []
    for item in as_list(content):
        found += text_part(item) if isinstance(item, str) else block(item) if isinstance(item, dict) else []
    return found


def block(item: dict[str, Any]) -> list[Part]:
    """One content block, whatever the format."""
    kind = item.get("type")
    kind = kind if isinstance(kind, str) else ""
    if isinstance(item.get("text"), str) and kind in _TEXT_TYPES:
        return text_part(item["text"], "thinking" if item.get("thought") is True else "text")
    for reader in (_thinking, _call, _result, _media, _google, _converse, _hosted_tool):
        found = reader(kind, item)
        if found is not None:
            return found
    if kind == "refusal":
        return text_part(item.get("refusal"), "refusal")
    if set(item) <= _SILENT | {"type"}:
        return []
    return [data_part(item, kind)]


def _thinking(kind: str, item: dict[str, Any]) -> list[Part] | None:
    if kind == "redacted_thinking":
        return [Part("thinking", "(redacted by the provider)")]
    if kind not in ("thinking", "reasoning"):
        return None
    text = item.get("thinking") if "thinking" in item else item.get("text")
    if isinstance(text, list):  # Mistral
        return [Part("thinking", part.text) for part in parts(text)]
    found = text_part(text, "thinking")
    for key in ("summary", "content"):
        found += [Part("thinking", part.text) for part in parts(item.get(key)) if part.text]
    if not found and (item.get("encrypted_content") or item.get("signature")):
        found = [Part("thinking", "(not shown by the provider)")]
    return found


def _call(kind: str, item: dict[str, Any]) -> list[Part] | None:
    if kind not in _CALL_TYPES:
        return None
    arguments = item.get("arguments") if "arguments" in item else item.get("input")
    call = tool_call(item.get("name"), arguments, item.get("call_id") or item.get("id"))
    if kind == "mcp_call" and item.get("output"):
        return [call, Part("tool_result", compact(item["output"]), name=call.name, id=call.id)]
    return [call]


def tool_call(name: Any, arguments: Any, call_id: Any) -> Part:
    return Part("tool_call", "" if arguments is None else compact(arguments), name=word(name), id=word(call_id))


def _result(kind: str, item: dict[str, Any]) -> list[Part] | None:
    if kind == "compaction":
        return [Part("thinking", "(the history so far, compacted)"), *parts(item.get("content"))]
    if not kind.endswith(("tool_result", "_call_output", "tool_search_output")):
        return None
    if kind == "tool_search_output":
        return [Part("tool_result", compact([tool.get("name") for tool in objects(item.get("tools"))]))]
    content = item.get("content") if "content" in item else item.get("output")
    call_id = item.get("tool_use_id") or item.get("call_id")
    return tool_result(content, call_id, failed=item.get("is_error") is True)


def tool_result(content: Any, call_id: Any, name: Any = "", failed: bool = False) -> list[Part]:
    """A tool's answer: its text as one part, media in it as parts of their own."""
    inner = parts(content) if isinstance(content, str | list) else [Part("text", compact(content))] if content else []
    text = "\n".join(part.text for part in inner if part.text)
    media = [part for part in inner if part.source or part.kind in ("image", "audio", "file")]
    first = Part("tool_result", text, name=word(name) or ("failed" if failed else ""), id=word(call_id))
    return [first, *media]


def _media(kind: str, item: dict[str, Any]) -> list[Part] | None:
    if kind in ("image_url", "input_image"):
        url = item.get("image_url") or item.get("file_id")
        return [linked("image", as_object(url).get("url") if isinstance(url, dict) else url)]
    if kind == "image_generation_call":
        return [encoded("image", item.get("result"), "image/png")]
    if kind in ("input_audio", "audio", "audio_url"):
        audio = item.get("input_audio") or item.get("audio") or item.get("audio_url") or item
        if isinstance(audio, str):
            return [linked("audio", audio) if "://" in audio[:10] else encoded("audio", audio, "audio/mpeg")]
        audio = as_object(audio)
        if audio.get("url"):
            return [linked("audio", audio["url"])]
        found = [encoded("audio", audio.get("data"), f"audio/{word(audio.get('format')) or 'mpeg'}")]
        return found + text_part(audio.get("transcript"))
    if kind == "document_url":
        return [linked("file", item.get("document_url"), word(item.get("document_name")))]
    if kind in ("image", "document", "file", "input_file", "video_url"):
        return _sourced("image" if kind == "image" else "file", item)
    return None


def _sourced(kind: str, item: dict[str, Any]) -> list[Part]:
    """Anthropic's `source`, OpenAI's `file`."""
    source = as_object(item.get("source") or item.get("file") or item.get("video_url") or item)
    name = word(item.get("title") or source.get("filename") or item.get("name"))
    media = word(source.get("media_type"))
    if source.get("type") == "text":
        return [Part("file", clean(str(source.get("data", ""))), name=name, media=media)]
    if isinstance(source.get("content"), str | list):
        return [Part("file", part.text, name=name) for part in parts(source["content"])]
    if source.get("data") and isinstance(source["data"], str):
        return [encoded(kind, source["data"], media or "application/octet-stream", name)]
    link = source.get("url") or source.get("file_data") or source.get("file_url") or source.get("file_id")
    return [linked(kind, link, name, media)]


def encoded(kind: str, base64: Any, media: str, name: str = "") -> Part:
    """Media given as base64 text."""
    if not isinstance(base64, str) or not base64:
        return Part(kind, name=name, media=media)
    if base64.startswith("data:"):
        return linked(kind, base64, name, media)
    return Part(kind, name=name, media=media, source=clean(f"data:{media};base64,{base64}"))


def linked(kind: str, url: Any, name: str = "", media: str = "") -> Part:
    """Media given by a URL or a file id."""
    source = clean(url) if isinstance(url, str) else ""
    if source.startswith("data:"):
        media = source[5:200].partition(";")[0].partition(",")[0] or media
    return Part(kind, name=name, media=media, source=source)


def _google(_: str, item: dict[str, Any]) -> list[Part] | None:
    """Gemini's parts, which have no type."""
    inline = item.get("inlineData") or item.get("inline_data")
    if isinstance(inline, dict):
        media = word(inline.get("mimeType") or inline.get("mime_type"))
        return [encoded(media_kind(media), inline.get("data"), media)]
    link = item.get("fileData") or item.get("file_data")
    if isinstance(link, dict):
        media = word(link.get("mimeType") or link.get("mime_type"))
        return [linked(media_kind(media), link.get("fileUri") or link.get("file_uri"), media=media)]
    call = item.get("functionCall") or item.get("function_call")
    if isinstance(call, dict):
        return [tool_call(call.get("name"), call.get("args"), call.get("id"))]
    answer = item.get("functionResponse") or item.get("function_response")
    if isinstance(answer, dict):
        return tool_result(answer.get("response"), answer.get("id"), answer.get("name"))
    code = item.get("executableCode") or item.get("executable_code")
    if isinstance(code, dict):
        return [tool_call("code", code.get("code"), None)]
    ran = item.get("codeExecutionResult") or item.get("code_execution_result")
    if isinstance(ran, dict):
        return tool_result(ran.get("output"), None, "code")
    return None


def media_kind(media: str) -> str:
    start = media.partition("/")[0]
    return start if start in ("image", "audio") else "file"


def _converse(_: str, item: dict[str, Any]) -> list[Part] | None:
    """Bedrock Converse's blocks: an object with one key."""
    if isinstance(item.get("toolUse"), dict):
        use = item["toolUse"]
        return [tool_call(use.get("name"), use.get("input"), use.get("toolUseId"))]
    if isinstance(item.get("toolResult"), dict):
        result = item["toolResult"]
        return tool_result(result.get("content"), result.get("toolUseId"), failed=result.get("status") == "error")
    if isinstance(item.get("reasoningContent"), dict):
        thought = as_object(item["reasoningContent"].get("reasoningText"))
        return text_part(thought.get("text"), "thinking") or [Part("thinking", "(redacted by the provider)")]
    for kind in ("image", "document", "video", "audio"):
        if isinstance(item.get(kind), dict) and "source" in item[kind]:
            return [_converse_media(kind, item[kind])]
    if isinstance(item.get("guardContent"), dict):
        return parts(as_object(item["guardContent"].get("text")).get("text"))
    if isinstance(item.get("citationsContent"), dict):
        return parts(item["citationsContent"].get("content"))
    if "json" in item and len(item) == 1:
        return [Part("text", compact(item["json"]))]
    return [] if "cachePoint" in item else None


def _converse_media(kind: str, item: dict[str, Any]) -> Part:
    source = as_object(item.get("source"))
    media = f"{kind}/{word(item.get('format'))}" if kind in ("image", "audio") else ""
    shown = kind if kind in ("image", "audio") else "file"
    link = as_object(source.get("s3Location")).get("uri")
    return (
        linked(shown, link, word(item.get("name")), media)
        if link
        else encoded(shown, source.get("bytes"), media or "application/octet-stream", word(item.get("name")))
    )


def _hosted_tool(kind: str, item: dict[str, Any]) -> list[Part] | None:
    """Tools that run at the provider (web_search_call, code_interpreter_call, ...): what they were asked."""
    if not kind.endswith("_call"):
        return None
    asked = item.get("action") or item.get("code") or item.get("queries") or item.get("query")
    call = tool_call(kind.removesuffix("_call"), asked, item.get("call_id") or item.get("id"))
    outputs = item.get("outputs") or item.get("results")
    return [call, *tool_result(compact(outputs)[:DATA_LIMIT], call.id, call.name)] if outputs else [call]


def message_parts(message: dict[str, Any]) -> list[Part]:
    """Everything in one chat message: thoughts, content, tool calls, media beside the content."""
    found: list[Part] = []
    for key in ("reasoning_content", "reasoning", "thinking"):
        if isinstance(message.get(key), str) and message[key]:
            found += text_part(message[key], "thinking")
            break
    if message.get("role") in ("tool", "function"):
        return found + tool_result(message.get("content"), message.get("tool_call_id"), message.get("name"))
    found += parts(message.get("content"))
    found += text_part(message.get("tool_plan"), "thinking")
    found += text_part(message.get("refusal"), "refusal")
    for image in as_list(message.get("images")):
        found += [encoded("image", image, "image/png")] if isinstance(image, str) else parts(image)
    audio = message.get("audio")
    if isinstance(audio, dict):
        found += [Part("audio", media="audio/wav")] if "data" in audio else []
        found += text_part(audio.get("transcript"))
    for call in objects(message.get("tool_calls")):
        found.append(_message_call(call))
    legacy = message.get("function_call")
    if isinstance(legacy, dict):
        found.append(tool_call(legacy.get("name"), legacy.get("arguments"), None))
    return found


def _message_call(call: dict[str, Any]) -> Part:
    function = as_object(call.get("function") or call.get("custom") or call)
    arguments = next((function[key] for key in ("arguments", "input", "parameters") if key in function), None)
    return tool_call(function.get("name"), arguments, call.get("id"))
