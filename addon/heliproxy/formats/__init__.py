"""The wire formats we read, by name. A provider is a row in `hosts`; a format is code here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from heliproxy.formats.anthropic_complete import AnthropicComplete
from heliproxy.formats.anthropic_messages import AnthropicMessages
from heliproxy.formats.bedrock import BedrockConverse, BedrockInvoke
from heliproxy.formats.cohere import CohereChat, CohereEmbed, CohereRerank
from heliproxy.formats.gemini import GeminiEmbed, GeminiGenerate, GeminiInteractions, VertexPredict
from heliproxy.formats.mistral_ocr import MistralOcr
from heliproxy.formats.ollama import OllamaChat, OllamaEmbed
from heliproxy.formats.openai_audio import OpenAISpeech, OpenAITranscription
from heliproxy.formats.openai_chat import OpenAIChat
from heliproxy.formats.openai_completions import OpenAICompletions, OpenAIEmbeddings, OpenAIImages, OpenAIModeration
from heliproxy.formats.openai_responses import OpenAIResponses

if TYPE_CHECKING:
    from collections.abc import Mapping

    from heliproxy.exchange import Format

_ALL = (
    OpenAIChat(),
    OpenAIResponses(),
    OpenAICompletions(),
    OpenAIEmbeddings(),
    OpenAIImages(),
    OpenAITranscription(),
    OpenAISpeech(),
    OpenAIModeration(),
    AnthropicMessages(),
    AnthropicComplete(),
    GeminiGenerate(),
    GeminiEmbed(),
    GeminiInteractions(),
    VertexPredict(),
    BedrockConverse(),
    BedrockInvoke(),
    CohereChat(),
    CohereEmbed(),
    CohereRerank(),
    MistralOcr(),
    OllamaChat(),
    OllamaEmbed(),
)

FORMATS: Mapping[str, Format] = {form.name: form for form in _ALL}
