"""OpenAI chat completions, and all who speak it: Azure, Groq, Mistral, DeepSeek, xAI, OpenRouter, vLLM and many more.

Sources: the types of the `openai` SDK; recorded exchanges for what the compatible providers add.
"""

from __future__ import annotations

from typing import Any

from heliproxy.exchange import Ask, Reply
from heliproxy.formats.base import JsonFormat, model_in_path, read_common_ask, take_error
from heliproxy.formats.openai_usage import fill_tier, fill_usage
from heliproxy.formats.output import Output
from heliproxy.formats.reading import Json, as_object, objects, string, text_of
from heliproxy.formats.streaming import StreamState


class OpenAIChat(JsonFormat):
    name = "openai_chat"
    terminal: tuple[bytes, ...] = (b"data: [DONE]", b"data:[DONE]")

    def __init__(self) -> None:
        self.state = ChatStream

    def read_ask(self, body: Json, path: str) -> Ask:
        ask = read_common_ask(body)
        if ask.model is None:  # Azure: the deployment is in the path
            deployment = model_in_path(path, "deployments")
            return Ask(deployment, ask.stream, ask.user, ask.preview, ask.tier)
        return ask

    def read(self, body: Json, reply: Reply) -> None:
        read_facts(body, reply)
        output = Output()
        for choice in objects(body.get("choices")):
            _read_message(as_object(choice.get("message")), output, choice.get("index", 0))
        for item in objects(body.get("outputs")):  # Mistral conversations
            output.say(text_of(item.get("content")))
        output.write_to(reply)


def read_facts(body: Json, reply: Reply) -> None:
    """Everything but text, of a whole completion or of one chunk."""
    model = string(body.get("model"))
    if model is not None:
        reply.model = model
    reply.response_id = string(body.get("id")) or reply.response_id
    for choice in objects(body.get("choices")):
        reason = string(choice.get("finish_reason"))
        reply.finish_reason = reason or reply.finish_reason
        if take_error(reply, choice):
            reply.complete = True
    fill_tier(reply, body.get("service_tier"))
    fill_usage(reply, body.get("usage"))
    fill_usage(reply, as_object(body.get("x_groq")).get("usage"))
    if take_error(reply, body):
        reply.complete = True


def _read_message(message: Json, output: Output, voice: Any) -> None:
    output.think(message.get("reasoning_content") or message.get("reasoning"), ("thought", _key(voice)))
    for part in objects(message.get("content")):  # Mistral: thinking as a content part
        output.think(text_of(part.get("thinking")))
    output.say(text_of(message.get("content")), voice)
    output.say(message.get("refusal"), voice)
    output.say(as_object(message.get("audio")).get("transcript"), voice)
    for call in objects(message.get("tool_calls")):
        _read_call(call, output, None)
    function = message.get("function_call")
    if isinstance(function, dict):
        output.call(function.get("name"), function.get("arguments"))


def _read_call(call: Json, output: Output, voice: Any) -> None:
    function = as_object(call.get("function")) or as_object(call.get("custom"))
    arguments = function.get("arguments", function.get("input"))
    if voice is None or function.get("name"):
        output.call(function.get("name"), arguments, voice)
    elif arguments is not None:
        output.arguments(arguments, voice)


def _key(index: Any) -> int:
    return index if isinstance(index, int) and not isinstance(index, bool) else 0


_NO_USAGE = (b'"usage":null', b'"usage": null')
_PLAIN_DELTA = frozenset(("content", "role"))


class ChatStream(StreamState):
    """Chunks; usage comes in the last one, if at all, and must not be summed."""

    tells_of_many = True

    def has_facts(self, data: bytes) -> bool:
        return (
            (b'"usage"' in data and data.count(b'"usage"') > sum(map(data.count, _NO_USAGE)))
            or (b'"finish_reason":"' in data or b'"finish_reason": "' in data)
            or b'"error"' in data
        )

    def facts(self, event: Json) -> None:
        read_facts(event, self.found)
        if self.found.finish_reason is not None:
            # Not everybody ends with [DONE]; a finish reason is as good.
            self.found.complete = True

    def _plain_text(self, choice: Any) -> bool:
        """Read a choice that is text and nothing else, as nearly all are. False: it is not, and nothing was read."""
        delta = choice.get("delta") if type(choice) is dict else None
        if type(delta) is not dict or not delta.keys() <= _PLAIN_DELTA or "text" in choice:
            return False
        said, index = delta.get("content"), choice.get("index")
        if type(said) is not str or type(index) is not int:
            return False
        self.output.say(said, index)
        return True

    def content(self, event: Json) -> None:
        choices = event.get("choices")
        if type(choices) is list and len(choices) == 1 and self._plain_text(choices[0]):
            return
        for choice in objects(choices):
            index = _key(choice.get("index"))
            delta = as_object(choice.get("delta")) or as_object(choice.get("message"))
            thought = delta.get("reasoning_content") or delta.get("reasoning")
            if thought:
                self.output.think(thought, ("thought", index))
            said = delta.get("content")
            if isinstance(said, str):
                self.output.say(said, index)
            elif said:
                for part in objects(said):
                    self.output.think(text_of(part.get("thinking")), ("thought", index))
                self.output.say(text_of(said), index)
            if delta.get("refusal"):
                self.output.say(delta["refusal"], index)
            for call in objects(delta.get("tool_calls")):
                _read_call(call, self.output, ("call", index, _key(call.get("index"))))
            function = delta.get("function_call")
            if isinstance(function, dict):
                _read_call({"function": function}, self.output, ("call", index, -1))
            if isinstance(choice.get("text"), str):
                self.output.say(choice["text"], index)
