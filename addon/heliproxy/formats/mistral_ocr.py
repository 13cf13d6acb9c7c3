"""Mistral OCR: billed by the page."""

from __future__ import annotations

from heliproxy.exchange import Reply, Usage
from heliproxy.formats.base import JsonFormat
from heliproxy.formats.output import Output
from heliproxy.formats.reading import Json, amount, as_object, objects, string


class MistralOcr(JsonFormat):
    name = "mistral_ocr"

    def read(self, body: Json, reply: Reply) -> None:
        reply.model = string(body.get("model"))
        info = as_object(body.get("usage_info"))
        pages = amount(info.get("pages_processed"))
        if pages:
            reply.usage = Usage(units={"pages": pages})
            reply.usage_json = info
        output = Output()
        for page in objects(body.get("pages")):
            output.say(page.get("markdown"))
        output.write_to(reply)
