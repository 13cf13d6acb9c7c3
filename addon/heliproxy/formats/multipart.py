"""Read the short fields of a multipart form: the model of an upload, not the upload."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from heliproxy.formats.reading import Json

_FIELD_LIMIT = 4096
"""Bytes of one field that are read."""
_NAME = re.compile(rb'^content-disposition:[^\r\n]*?[; ]name="?([^"\r\n;]+)', re.IGNORECASE | re.MULTILINE)
_FILE = re.compile(rb"^content-disposition:[^\r\n]*[; ]filename\*?=", re.IGNORECASE | re.MULTILINE)


def form_fields(body: bytes) -> Json | None:
    """The text fields by name; None when the body is no form. The boundary is the first line of the body."""
    if not body.startswith(b"--"):
        return None
    boundary = body[:200].split(b"\n", 1)[0].rstrip(b"\r")
    if len(boundary) < 4:
        return None
    fields: Json = {}
    position = 0
    while len(fields) < 100:
        start = position + len(boundary)
        position = body.find(boundary, start)
        if position < 0:
            return fields
        head, found, value = body[start : min(position, start + 2 * _FIELD_LIMIT)].partition(b"\r\n\r\n")
        name = _NAME.search(head)
        if found and name is not None and _FILE.search(head) is None:
            text = value[:_FIELD_LIMIT].removesuffix(b"\r\n").decode("utf-8", "replace")
            fields.setdefault(name[1].decode("utf-8", "replace"), text)
    return fields
