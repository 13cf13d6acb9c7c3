"""What most formats share: JSON in, JSON or server-sent events out."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING
from urllib.parse import unquote

from heliproxy.exchange import Ask, Reply, StreamParser
from heliproxy.formats.errors import fill_error, parse_error_body
from heliproxy.formats.output import PREVIEW_LIMIT
from heliproxy.formats.reading import Json, clean, load_object, objects, string, text_of
from heliproxy.formats.streaming import EventParser, SniffingParser, StreamState, WholeBody, sse_parser

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_STREAM_STARTS = (b"data:", b"event:", b"id:", b"retry:", b":")


class JsonFormat:
    """A format whose whole replies are one JSON object and whose streams are server-sent events.

    Subclasses override `read_ask` and `read`, and give `state` when the format can stream.
    """

    name = ""
    terminal: tuple[bytes, ...] = ()
    state: Callable[[], StreamState] | None = None

    def parse_request(self, body: bytes, path: str) -> Ask:
        return self.read_ask(load_object(body), path)

    def read_ask(self, body: Json, path: str) -> Ask:
        return read_common_ask(body)

    def parse_response(self, body: bytes, headers: Mapping[str, str]) -> Reply:
        if self.state is not None and body.lstrip(b" \t\r\n\xef\xbb\xbf").startswith(_STREAM_STARTS):
            parser = self.stream(headers.get("content-type", ""))
            parser.feed(body)
            return parser.result()
        found = load_object(body)
        reply = Reply()
        if found:
            self.read(found, reply)
        return reply

    def read(self, body: Json, reply: Reply) -> None:
        """Fill `reply` from a whole response."""
        raise NotImplementedError

    def parse_error(self, body: bytes) -> Reply:
        return parse_error_body(body)

    def stream(self, content_type: str) -> StreamParser:
        return SniffingParser(self._choose)

    def _choose(self, start: bytes) -> StreamParser:
        if start in b"{[" or self.state is None:
            return WholeBody(lambda body: self.parse_response(body, {}))
        return self.event_parser(self.state())

    def event_parser(self, state: StreamState) -> EventParser:
        return sse_parser(state)


def read_common_ask(body: Json) -> Ask:
    """The request fields nearly every provider names alike."""
    metadata = body.get("metadata")
    user = body.get("user") or body.get("safety_identifier")
    if user is None and isinstance(metadata, dict):
        user = without_session(metadata.get("user_id"))
    return Ask(
        model=string(body.get("model")),
        stream=body.get("stream") is True,
        user=string(user),
        preview=last_said(body.get("messages")) or prompt_text(body),
        tier=string(body.get("service_tier")),
    )


def without_session(user_id: object) -> object:
    """Who is meant by the `metadata.user_id` of Claude Code, which names the session too; others stay as they are.

    JSON with `account_uuid` (empty with an API key), `device_id` and `session_id`; older versions wrote
    `user_<device>_account_<account>_session_<session>`. With the session left in, every session were another user.
    """
    if not isinstance(user_id, str):
        return user_id
    if user_id.startswith("{"):
        packed = load_object(user_id)
        return packed.get("account_uuid") or packed.get("device_id") or user_id
    who, _, session = user_id.partition("_session_")
    return who if session and who.startswith("user_") else user_id


def last_said(messages: object) -> str:
    """The text of the last message of the user, as a preview."""
    for message in reversed(objects(messages)):
        if message.get("role") in ("user", "USER", "human"):
            text = text_of(message.get("content")).strip()
            if text:
                return clean(text[:PREVIEW_LIMIT])
    return ""


def prompt_text(body: Json) -> str:
    """The prompt of a request that has no messages, as a preview."""
    for name in ("prompt", "input", "message", "query", "text", "instruction"):
        text = text_of(body.get(name)).strip()
        if text:
            return clean(text[:PREVIEW_LIMIT])
    return ""


def model_in_path(path: str, before: str) -> str | None:
    """The path segment after `before`, decoded: the model of `/model/{id}/converse` or `/models/{id}:verb`."""
    segments = path.partition("?")[0].split("/")
    for index, segment in enumerate(segments[:-1]):
        if segment == before and segments[index + 1]:
            return string(unquote(segments[index + 1]))
    return None


def take_error(reply: Reply, body: Json) -> bool:
    """Fill the error of a 200 whose body says that it failed; whether there was one."""
    error = body.get("error")
    if not error or not isinstance(error, dict | str | list):
        return False
    fill_error(reply, copy.copy(body))
    return True
