"""Speech to text and text to speech, of OpenAI, Mistral, Groq and others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from heliproxy.exchange import Ask, Reply, Usage
from heliproxy.formats.base import JsonFormat
from heliproxy.formats.multipart import form_fields
from heliproxy.formats.openai_chat import read_facts
from heliproxy.formats.openai_completions import read_fields
from heliproxy.formats.output import Output
from heliproxy.formats.reading import Json, amount, load_object
from heliproxy.formats.streaming import StreamState

if TYPE_CHECKING:
    from collections.abc import Mapping


class OpenAITranscription(JsonFormat):
    """Transcription and translation: tokens or seconds; JSON, an event stream, or plain text and subtitles."""

    name = "openai_transcription"
    terminal: tuple[bytes, ...] = (b"event: transcript.text.done",)

    def __init__(self) -> None:
        self.state = TranscriptStream

    def parse_request(self, body: bytes, path: str) -> Ask:
        fields = form_fields(body)
        return read_fields(fields) if fields is not None else super().parse_request(body, path)

    def parse_response(self, body: bytes, headers: Mapping[str, str]) -> Reply:
        reply = super().parse_response(body, headers)
        if not load_object(body) and not reply.text and headers.get("content-type", "").startswith("text/plain"):
            output = Output()
            output.say(body.decode("utf-8", "replace"))
            output.write_to(reply)
        return reply

    def read(self, body: Json, reply: Reply) -> None:
        read_facts(body, reply)
        seconds = amount(body.get("duration"))
        if reply.usage is None and seconds:  # whisper's verbose_json
            reply.usage = Usage(units={"audio_seconds": seconds})
        output = Output()
        output.say(body.get("text"))
        output.write_to(reply)


class TranscriptStream(StreamState):
    def has_facts(self, data: bytes) -> bool:
        return b'.done"' in data or b'"usage"' in data or b'"error"' in data

    def facts(self, event: Json) -> None:
        read_facts(event, self.found)
        if str(event.get("type", "")).endswith(".done"):
            self.found.complete = True

    def content(self, event: Json) -> None:
        if str(event.get("type", "")).endswith(".delta"):
            self.output.say(event.get("delta") or event.get("text"))


class OpenAISpeech(JsonFormat):
    """Text to speech: sound without usage, or an event stream that ends with it."""

    name = "openai_speech"
    terminal: tuple[bytes, ...] = (b"event: speech.audio.done",)

    def __init__(self) -> None:
        self.state = SpeechStream

    def read(self, body: Json, reply: Reply) -> None:
        read_facts(body, reply)


class SpeechStream(TranscriptStream):
    def take(self, name: str, data: bytes) -> None:
        if b"speech.audio.delta" not in data[:200]:
            super().take(name, data)

    def content(self, event: Json) -> None:
        """Sound is no text."""
