"""The formats of OpenAI's smaller endpoints: completions, embeddings, images, moderation."""

from __future__ import annotations

from heliproxy.exchange import Ask, Reply, Usage
from heliproxy.formats.base import JsonFormat, prompt_text, read_common_ask
from heliproxy.formats.multipart import form_fields
from heliproxy.formats.openai_chat import ChatStream, OpenAIChat, read_facts
from heliproxy.formats.openai_usage import fill_usage, read_usage
from heliproxy.formats.output import Output
from heliproxy.formats.reading import Json, as_list, as_object, objects, string
from heliproxy.formats.streaming import StreamState


class OpenAICompletions(OpenAIChat):
    """Legacy completions: `text` where chat has `message`; usage and stream as in chat."""

    name = "openai_completions"

    def read(self, body: Json, reply: Reply) -> None:
        read_facts(body, reply)
        output = Output()
        for index, choice in enumerate(objects(body.get("choices"))):
            output.say(choice.get("text"), index)
            output.say(as_object(choice.get("message")).get("content"), index)
        output.write_to(reply)


class OpenAIEmbeddings(OpenAIChat):
    """Embeddings of OpenAI, Azure, Mistral, Voyage, Perplexity and others: input tokens only."""

    name = "openai_embeddings"
    terminal = ()

    def read(self, body: Json, reply: Reply) -> None:
        read_facts(body, reply)
        reply.response_id = string(body.get("id"))


class OpenAIImages(JsonFormat):
    """Image generation and edits. Tokens for the newer models; for all, the number of images."""

    name = "openai_images"

    def __init__(self) -> None:
        self.state = ImageStream

    def parse_request(self, body: bytes, path: str) -> Ask:
        fields = form_fields(body)
        return read_fields(fields) if fields is not None else super().parse_request(body, path)

    def read(self, body: Json, reply: Reply) -> None:
        read_facts(body, reply)
        read_images(body, reply, len(as_list(body.get("data"))))


def read_fields(fields: Json) -> Ask:
    """The request as a multipart form."""
    return Ask(
        model=string(fields.get("model")),
        stream=fields.get("stream") == "true",
        user=string(fields.get("user")),
        preview=prompt_text(fields),
    )


def read_images(body: Json, reply: Reply, images: int) -> None:
    """Usage of an image call: what it writes are image tokens, unless it says otherwise."""
    raw = as_object(body.get("usage"))
    usage = read_usage(raw) or Usage()
    written = usage.output_image_tokens
    if written is None and not any(isinstance(raw.get(n), dict) for n in ("output_tokens_details", "cost_details")):
        written = usage.output_tokens
    fields = {name: getattr(usage, name) for name in Usage.__slots__}
    fields["output_image_tokens"] = written
    if images:
        fields["units"] = {**usage.units, "images": images}
    found = Usage(**fields)
    reply.usage = found if found != Usage() and (raw or images) else None
    reply.usage_json = raw or None


class ImageStream(StreamState):
    """Partial images are big and say nothing; the completed one has the usage."""

    def take(self, name: str, data: bytes) -> None:
        if b"partial_image" not in data[:200] or b'"error"' in data:
            super().take(name, data)

    def has_facts(self, data: bytes) -> bool:
        return b'"usage"' in data or b'"error"' in data

    def facts(self, event: Json) -> None:
        read_facts(event, self.found)
        if str(event.get("type", "")).endswith(".completed"):
            self.found.complete = True
            read_images(event, self.found, 1)

    def content(self, event: Json) -> None:
        """Images are no text."""


class OpenAIModeration(JsonFormat):
    """Moderation: free, and without usage."""

    name = "openai_moderation"

    def read_ask(self, body: Json, path: str) -> Ask:
        return read_common_ask(body)

    def read(self, body: Json, reply: Reply) -> None:
        reply.model = string(body.get("model"))
        reply.response_id = string(body.get("id"))
        fill_usage(reply, body.get("usage"))
        flagged = any(result.get("flagged") is True for result in objects(body.get("results")))
        reply.preview = "flagged" if flagged else ""


__all__ = ["ChatStream", "OpenAICompletions", "OpenAIEmbeddings", "OpenAIImages", "OpenAIModeration"]
