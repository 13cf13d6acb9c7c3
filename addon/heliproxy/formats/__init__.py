"""The wire formats we read, by name. A provider is a row in `hosts`; a format is code here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from heliproxy.formats.anthropic_messages import AnthropicMessages
from heliproxy.formats.openai_chat import OpenAIChat
from heliproxy.formats.openai_responses import OpenAIResponses

if TYPE_CHECKING:
    from collections.abc import Mapping

    from heliproxy.exchange import Format

_ALL = (
    OpenAIChat(),
    OpenAIResponses(),
    AnthropicMessages(),
)

FORMATS: Mapping[str, Format] = {form.name: form for form in _ALL}
