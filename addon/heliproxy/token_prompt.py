"""What a request makes the model read, from any of the request shapes: for estimates when no usage was reported."""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

_MAX_MESSAGES = 20_000
_MAX_DEPTH = 12


@dataclass(slots=True)
class Message:
    role: str
    text: str = ""
    name: str | None = None
    calls: list[tuple[str, str]] = field(default_factory=list)
    """Tool calls the message repeats: name and JSON arguments."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image to be read; the size is in pixels, None when it cannot be known here."""

    size: tuple[int, int] | None
    low: bool = False


@dataclass(slots=True)
class Prompt:
    """The parts of a request that become input tokens."""

    messages: list[Message] = field(default_factory=list)
    plain: list[str] = field(default_factory=list)
    """Texts without any chat framing: completions, embeddings."""
    plain_tokens: int = 0
    """Tokens the client has already counted: prompts given as token arrays."""
    tools: list[Mapping[str, Any]] = field(default_factory=list)
    """Function definitions: name, description, parameters."""
    forced_tool: str | None = None
    schema: Any = None
    """A JSON schema the answer must obey."""
    images: list[Image] = field(default_factory=list)
    audio_seconds: float = 0.0
    unseen: bool = False
    """Part of the input is not in the request: files, URLs, an earlier conversation kept by the provider."""

    @property
    def empty(self) -> bool:
        return not (self.messages or self.plain or self.plain_tokens or self.images or self.audio_seconds)


def read_prompt(request: Mapping[str, Any]) -> Prompt:
    """Read a request body of any known shape. Never raises; what is not understood is left out."""
    prompt = Prompt()
    request = _unwrap(request)
    _read_system(prompt, request)
    for message in _list(request.get("messages"))[:_MAX_MESSAGES]:  # OpenAI, Anthropic, Bedrock, Cohere v2, Ollama
        _read_message(prompt, message)
    for message in _list(request.get("chat_history")):  # Cohere v1
        _read_message(prompt, message)
    if isinstance(text := request.get("message"), str):
        prompt.messages.append(Message("user", text))
    _read_contents(prompt, request)
    _read_input(prompt, request)
    _read_plain(prompt, request)
    _read_tools(prompt, request)
    _read_schema(prompt, request)
    if any(request.get(key) for key in ("previous_response_id", "conversation", "cachedContent", "cached_content")):
        prompt.unseen = True
    return prompt


def _unwrap(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Code Assist wraps the request it forwards."""
    inner = request.get("request")
    return inner if isinstance(inner, dict) and "contents" in inner else request


def _read_system(prompt: Prompt, request: Mapping[str, Any]) -> None:
    for key in ("system", "instructions", "preamble", "systemInstruction", "system_instruction"):
        value = request.get(key)
        if not value:
            continue
        message = Message("system")
        parts = value.get("parts") if isinstance(value, dict) else value
        _read_content(prompt, message, parts)
        prompt.messages.append(message)


def _read_message(prompt: Prompt, item: Any) -> None:
    if not isinstance(item, dict):
        return
    message = Message(str(item.get("role") or "user").lower())
    name = item.get("name")
    message.name = name if isinstance(name, str) and name else None
    for key in ("content", "parts", "message", "reasoning_content", "refusal"):
        _read_content(prompt, message, item.get(key))
    for image in _list(item.get("images")):  # Ollama: base64 without a header
        prompt.images.append(Image(image_size(image) if isinstance(image, str) else None))
    for call in _list(item.get("tool_calls")):
        if isinstance(call, dict):
            function = call.get("function")
            _read_call(message, function if isinstance(function, dict) else call)
    if isinstance(call := item.get("function_call"), dict):
        _read_call(message, call)
    prompt.messages.append(message)


def _read_call(message: Message, call: Mapping[str, Any]) -> None:
    arguments = next((call[key] for key in ("arguments", "input", "args", "parameters") if call.get(key)), "")
    name = call.get("name")
    message.calls.append((name if isinstance(name, str) else "", _as_text(arguments)))


def _read_content(prompt: Prompt, message: Message, content: Any, depth: int = 0) -> None:
    """Text, or a list of parts in the manner of OpenAI, Anthropic, Bedrock or Gemini."""
    if isinstance(content, str):
        message.text += content
    elif isinstance(content, list) and depth < _MAX_DEPTH:
        for part in content:
            _read_content(prompt, message, part, depth + 1)
    elif isinstance(content, dict) and depth < _MAX_DEPTH:
        _read_part(prompt, message, content, depth + 1)


def _read_part(prompt: Prompt, message: Message, part: Mapping[str, Any], depth: int) -> None:
    kind = part.get("type")
    for key in ("text", "thinking", "refusal", "output"):
        if isinstance(text := part.get(key), str):
            message.text += text
    if kind in ("tool_use", "server_tool_use", "function_call"):
        _read_call(message, part)
    for key in ("toolUse", "functionCall", "function_call"):
        if isinstance(call := part.get(key), dict):
            _read_call(message, call)
    for key in ("toolResult", "functionResponse", "function_response", "json", "response", "search_result"):
        if (value := part.get(key)) is not None:
            _read_result(prompt, message, value, depth)
    if kind in ("tool_result", "document", "search_result") or "content" in part:
        _read_content(prompt, message, part.get("content"), depth)
    _read_media(prompt, part)


def _read_result(prompt: Prompt, message: Message, value: Any, depth: int) -> None:
    if isinstance(value, dict) and isinstance(value.get("content"), list):
        _read_content(prompt, message, value["content"], depth)
    else:
        message.text += _as_text(value)


def _read_media(prompt: Prompt, part: Mapping[str, Any]) -> None:
    kind = part.get("type")
    if kind in ("image_url", "input_image"):
        source = part.get("image_url")
        url = source.get("url") if isinstance(source, dict) else source
        detail = part.get("detail") or (source.get("detail") if isinstance(source, dict) else None)
        _add_image(prompt, url if isinstance(url, str) else "", low=detail == "low")
    elif kind == "image" or "image" in part:
        source = part.get("source") or part.get("image")
        source = source.get("source", source) if isinstance(source, dict) else {}
        data = source.get("data") or source.get("bytes") or source.get("url") if isinstance(source, dict) else None
        _add_image(prompt, data if isinstance(data, str) else "")
    elif kind == "input_audio":
        audio = part.get("input_audio")
        prompt.audio_seconds += _audio_seconds(audio if isinstance(audio, dict) else {})
    elif (
        kind in ("file", "input_file")
        or "document" in part
        or "video" in part
        or (kind == "document" and isinstance(source := part.get("source"), dict) and source.get("type") != "text")
    ):
        prompt.unseen = True
    for key in ("inlineData", "inline_data", "fileData", "file_data"):
        if isinstance(blob := part.get(key), dict):
            mime = str(blob.get("mimeType") or blob.get("mime_type") or "")
            if mime.startswith("image/"):
                _add_image(prompt, blob["data"] if isinstance(blob.get("data"), str) else "")
            else:
                prompt.unseen = True


def _add_image(prompt: Prompt, source: str, low: bool = False) -> None:
    data = source.partition(",")[2] if source.startswith("data:") else source
    size = None if source.startswith(("http:", "https:", "gs:", "s3:")) else image_size(data)
    prompt.images.append(Image(size, low))
    if size is None and not low:
        prompt.unseen = True


def _read_contents(prompt: Prompt, request: Mapping[str, Any]) -> None:
    """Gemini: contents with parts; embeddings have one `content`, batches a list of requests."""
    contents = request.get("contents")
    for item in contents if isinstance(contents, list) else [contents]:
        if isinstance(item, str):
            prompt.messages.append(Message("user", item))
        elif isinstance(item, dict):
            _read_message(prompt, item if "parts" in item else {"role": "user", "parts": [item]})
    embedded = [request.get("content")] if "contents" not in request and "messages" not in request else []
    embedded += [item.get("content") for item in _list(request.get("requests")) if isinstance(item, dict)]
    for content in embedded:
        if isinstance(content, dict):
            message = Message("user")
            _read_content(prompt, message, content.get("parts"))
            prompt.plain.append(message.text)


def _read_input(prompt: Prompt, request: Mapping[str, Any]) -> None:
    """OpenAI Responses and embeddings share the key `input`."""
    value = request.get("input")
    responses = any(
        key in request for key in ("instructions", "max_output_tokens", "store", "include", "previous_response_id")
    )
    if isinstance(value, str):
        if responses or "stream" in request or "tools" in request or "reasoning" in request or "text" in request:
            prompt.messages.append(Message("user", value))
        else:
            prompt.plain.append(value)
        return
    for item in _list(value)[:_MAX_MESSAGES]:
        if isinstance(item, str):
            prompt.plain.append(item)
        elif isinstance(item, int):
            prompt.plain_tokens += 1
        elif isinstance(item, list):
            prompt.plain_tokens += len(item)
        elif isinstance(item, dict):
            _read_item(prompt, item)


def _read_item(prompt: Prompt, item: Mapping[str, Any]) -> None:
    kind = item.get("type")
    if kind in ("function_call", "custom_tool_call"):
        message = Message("assistant")
        _read_call(message, item)
        prompt.messages.append(message)
    elif kind in ("function_call_output", "custom_tool_call_output"):
        message = Message("tool")
        _read_content(prompt, message, item.get("output"))
        prompt.messages.append(message)
    elif kind in (None, "message"):
        _read_message(prompt, item)
    elif kind != "reasoning":
        message = Message("assistant")
        _read_content(prompt, message, [item])
        prompt.messages.append(message)


def _read_plain(prompt: Prompt, request: Mapping[str, Any]) -> None:
    """Completions (OpenAI, Ollama generate, Bedrock Titan and Llama) and embeddings (Cohere, Titan, Voyage)."""
    for key in ("prompt", "inputText", "texts", "inputs", "query", "suffix"):
        value = request.get(key)
        if isinstance(value, str):
            prompt.plain.append(value)
        for item in _list(value)[:_MAX_MESSAGES]:
            if isinstance(item, str):
                prompt.plain.append(item)
            elif isinstance(item, int):
                prompt.plain_tokens += 1
            elif isinstance(item, list):
                prompt.plain_tokens += len(item)


def _read_tools(prompt: Prompt, request: Mapping[str, Any]) -> None:
    config = request.get("toolConfig")
    tools = _list(request.get("tools")) or _list(config.get("tools") if isinstance(config, dict) else None)
    for tool in tools:
        if isinstance(tool, dict):
            prompt.tools.extend(_functions(tool))
    prompt.tools.extend(item for item in _list(request.get("functions")) if isinstance(item, dict))
    choice = request.get("tool_choice") or request.get("function_call")
    if isinstance(choice, dict):
        function = choice.get("function")
        name = (function if isinstance(function, dict) else choice).get("name")
        prompt.forced_tool = name if isinstance(name, str) else None


def _functions(tool: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Function definitions in the manner of OpenAI, Responses, Anthropic, Bedrock, Gemini and Cohere."""
    for key in ("functionDeclarations", "function_declarations"):
        for declared in _list(tool.get(key)):
            if isinstance(declared, dict):
                yield declared
    inner = tool.get("function") or tool.get("toolSpec")
    if isinstance(inner, dict):
        yield inner
    elif isinstance(tool.get("name"), str):
        yield tool


def parameters_of(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """The JSON schema of a function's arguments."""
    for key in ("parameters", "input_schema", "inputSchema", "parameter_definitions", "parametersJsonSchema"):
        if isinstance(value := tool.get(key), dict):
            inner = value.get("json")
            return inner if isinstance(inner, dict) else value
    return {}


def _read_schema(prompt: Prompt, request: Mapping[str, Any]) -> None:
    text = request.get("text")
    generation = request.get("generationConfig")
    for value in (request.get("response_format"), text.get("format") if isinstance(text, dict) else None):
        if isinstance(value, dict) and value.get("type") == "json_schema":
            inner = value.get("json_schema")
            prompt.schema = (inner if isinstance(inner, dict) else value).get("schema")
    if isinstance(generation, dict):
        prompt.schema = generation.get("responseSchema") or generation.get("responseJsonSchema") or prompt.schema


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (ValueError, TypeError, RecursionError):
        return ""


def image_size(data: str) -> tuple[int, int] | None:
    """Width and height of a base64 PNG, GIF, WebP or JPEG, from its header."""
    try:
        head = base64.b64decode(data[: 64 * 1024 // 4 * 4] + "==", validate=False)
    except (binascii.Error, ValueError):
        return None
    try:
        if head.startswith(b"\x89PNG"):
            return _sane(*struct.unpack(">II", head[16:24]))
        if head.startswith(b"GIF8"):
            return _sane(*struct.unpack("<HH", head[6:10]))
        if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            return _webp_size(head)
        if head.startswith(b"\xff\xd8"):
            return _jpeg_size(head)
    except (struct.error, IndexError):
        return None
    return None


def _sane(width: int, height: int) -> tuple[int, int] | None:
    return (width, height) if 0 < width < 1 << 20 and 0 < height < 1 << 20 else None


def _webp_size(head: bytes) -> tuple[int, int] | None:
    kind = head[12:16]
    if kind == b"VP8X":
        return _sane(1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little"))
    if kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return _sane(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    width, height = struct.unpack("<HH", head[26:30])
    return _sane(width & 0x3FFF, height & 0x3FFF)


def _jpeg_size(head: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 < len(head):
        if head[at] != 0xFF:
            at += 1
            continue
        marker = head[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", head[at + 5 : at + 9])
            return _sane(width, height)
        if marker == 0xFF or 0xD0 <= marker <= 0xD9:
            at += 1 if marker == 0xFF else 2
            continue
        at += 2 + int(struct.unpack(">H", head[at + 2 : at + 4])[0])
    return None


def _audio_seconds(audio: Mapping[str, Any]) -> float:
    """Length of inline audio, from a WAV header or a usual MP3 bit rate (128 kbit/s)."""
    data = audio.get("data")
    if not isinstance(data, str):
        return 0.0
    size = len(data) * 3 // 4
    rate = 16_000.0
    if audio.get("format") == "wav":
        try:
            head = base64.b64decode(data[:64] + "==", validate=False)
            rate = float(struct.unpack("<I", head[28:32])[0]) or rate
        except (binascii.Error, ValueError, struct.error):
            pass
    return size / rate
