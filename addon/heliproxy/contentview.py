"""What heliproxy adds to mitmweb and the mitmproxy console: a content view, comments and marks, commands.

An addon of its own, beside the proxy's: mitmdump and `heliproxy serve`, which show no flows, pay nothing for it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mitmproxy import command, contentviews, ctx, exceptions, flow, hooks, http, types
from mitmproxy.log import ALERT
from mitmproxy.net import encoding

from heliproxy import hosts
from heliproxy.conversation import as_text, read_request, read_response, visible
from heliproxy.exchange import Exchange, Outcome
from heliproxy.formats.reading import as_object, load_object
from heliproxy.home import DATABASE_NAME
from heliproxy.redact import redact_body
from heliproxy.rounding import without_noise
from heliproxy.secrets import carried_secrets, scrub_bytes
from heliproxy.statuses import is_failed

if TYPE_CHECKING:
    from mitmproxy.addonmanager import Loader
    from mitmproxy.addons.view import View

    from heliproxy.addon import Heliproxy

logger = logging.getLogger(__name__)

KEY = "heliproxy"
"""Of `flow.metadata`: what we know about a flow, as plain JSON."""
FLOWS = 2000
"""Flows that mitmweb and the console keep, unless told otherwise."""
SLACK = 20
"""One flow in so many may be too many before old ones are removed, all at once."""
NOTED = (
    "id", "model", "status", "input_tokens", "cache_read_tokens", "output_tokens", "usage_source", "cost_usd",
    "saved_usd", "cache", "finish_reason", "error_type", "user_id", "session_id",
)  # fmt: skip
SUMMED = ("input_tokens", "cache_read_tokens", "output_tokens", "cost_usd", "saved_usd")
RESPONSES = 1000
"""Responses of one WebSocket whose ids are kept with its flow."""
LIMITED = ":hourglass:"
FAILED = ":red_circle:"


class LlmContentview(contentviews.Contentview):
    """Shows the body of a call to a model as the conversation it carries."""

    @property
    def name(self) -> str:
        return "LLM"

    def render_priority(self, data: bytes, metadata: contentviews.Metadata) -> float:
        return 2.0 if data and format_of(metadata) else -1.0

    def prettify(self, data: bytes, metadata: contentviews.Metadata) -> str:
        content_type = metadata.content_type or ""
        data = without_keys(data, metadata.flow)
        if metadata.websocket_message is not None:
            return message_text(data)
        if isinstance(metadata.http_message, http.Request):
            return request_text(data, content_type)
        facts = summary(known(metadata.flow))
        answer = as_text(read_response(data, content_type))
        if not answer:
            answer = "(nothing was answered)"
        return f"{facts}\n\n{answer}" if facts else answer


def without_keys(data: bytes, of: flow.Flow | None) -> bytes:
    """A body as the log would keep it: our view is what people show to others."""
    request = of.request if isinstance(of, http.HTTPFlow) else None
    keys = carried_secrets(request.headers.fields, request.path) if request is not None else ()
    return redact_body(scrub_bytes(data, keys))


def format_of(metadata: contentviews.Metadata) -> str:
    """The wire format of the flow a message belongs to; "" when it is no call to a model."""
    message = metadata.http_message or metadata.websocket_message
    if not isinstance(metadata.flow, http.HTTPFlow) or message is None:
        return ""
    noted = known(metadata.flow).get("format")
    if isinstance(noted, str):
        return noted
    request = metadata.flow.request
    route = hosts.route(request.method, request.host, request.path)
    return route.format if route is not None and route.inference else ""


def request_text(data: bytes, content_type: str) -> str:
    """A request: its settings on top, then its turns, the tools it offers last."""
    asked = read_request(data, content_type)
    blocks = ["\n".join(f"{name}: {visible(value)}" for name, value in asked.settings.items())]
    blocks.append(as_text(asked.turns))
    if asked.tools:
        blocks.append(
            "tools\n" + "\n".join(f"  {visible(tool.name)}  {visible(tool.description)}" for tool in asked.tools)
        )
    return "\n\n".join(block for block in blocks if block)


ENDINGS = ("response.completed", "response.done", "response.incomplete", "response.failed", "error")
"""Messages that carry a whole answer, or why there is none."""


def message_text(data: bytes) -> str:
    """One message of a WebSocket: what is asked or answered as a conversation, steps in between as a line."""
    event = load_object(data)
    kind = event.get("type")
    if not isinstance(kind, str):
        return visible(data.decode("utf-8", "replace"))
    title, sound = visible(kind), event.get("delta") if "audio.delta" in kind else event.get("audio")
    if kind == "response.create":
        return f"{title}\n\n{request_text(data, '')}".rstrip()
    if kind == "conversation.item.create":
        asked = read_request(json.dumps({"input": [event.get("item")]}).encode())
        return f"{title}\n\n{as_text(asked.turns)}".rstrip()
    if kind in ENDINGS:
        answer = as_text(read_response(b"data: " + data.replace(b"\n", b" "), "text/event-stream"))
        usage = as_object(event.get("response")).get("usage")
        return "\n\n".join(filter(None, (title, answer, f"usage: {visible(json.dumps(usage))}" if usage else "")))
    if isinstance(sound, str):
        return f"{title}  ({len(sound) * 3 // 4:,} bytes of audio)"
    if isinstance(event.get("delta"), str):
        return f"{title}  {visible(event['delta'])}"
    rest = {name: value for name, value in event.items() if name != "type"}
    return f"{title}\n{visible(json.dumps(rest, indent=2, ensure_ascii=False))}"


def known(of: flow.Flow | None) -> Mapping[str, Any]:
    """What was noted about a flow."""
    noted = of.metadata.get(KEY) if of is not None else None
    return noted if isinstance(noted, dict) else {}


def summary(facts: Mapping[str, Any]) -> str:
    """One line: model · tokens · cost · finish reason · HIT; "" when nothing is known yet."""
    if "status" not in facts:
        return ""
    mark = "~" if facts.get("usage_source") == "estimated" else ""
    parts: list[str | None] = [facts.get("model")]
    if facts.get("responses", 1) > 1:
        parts.append(f"{facts['responses']:,} responses")
    inputs, outputs = facts.get("input_tokens"), facts.get("output_tokens")
    if facts.get("cache") == "HIT":
        parts.append("HIT")
        saved = facts.get("saved_usd")
        parts.append(f"{dollars(saved)} saved" if saved else None)
    elif inputs is not None or outputs is not None:
        parts.append(f"{mark}{amount(inputs)} → {mark}{amount(outputs)} tokens")
        parts.append(dollars(facts.get("cost_usd")))
    parts += [facts.get("finish_reason"), facts.get("error_type")]
    return visible(" · ".join(part for part in parts if part))


def amount(count: int | None) -> str:
    return "?" if count is None else f"{count:,}"


def dollars(usd: float | None) -> str:
    if usd is None:
        return "cost unknown"
    return f"${usd:.6f}".rstrip("0").rstrip(".") if usd < 1 else f"${usd:,.2f}"


def mark_of(status: int | None, error_type: str | None = None) -> str:
    """The mark of a flow that did not succeed, else ""."""
    if status == 429:
        return LIMITED
    return FAILED if is_failed(status, error_type) else ""


def annotate(of: http.HTTPFlow, row: Mapping[str, Any], body: bytes | None, cut: bool) -> None:
    """Write what the log knows onto the flow; put back the (decoded) body of a response that was streamed.

    A comment or mark of the user's own stays.
    """
    of.metadata[KEY] = {**known(of), **{name: row.get(name) for name in NOTED}}
    if not of.comment:
        of.comment = summary(known(of)) + (" · body cut" if cut else "")
    if not of.marked:
        of.marked = mark_of(row.get("status"), row.get("error_type"))
    response = of.response
    if response is not None and response.data.content is None and body is not None:
        response.data.content = encoded(body, response.headers.get("content-encoding", ""))


def add_response(of: http.HTTPFlow, row: Mapping[str, Any]) -> None:
    """Write one more response of a WebSocket onto its flow, which sums them up."""
    before = known(of)
    if of.comment == summary(before):
        of.comment = ""
    count = before.get("responses", 0)
    facts = {**before, **{name: row.get(name) for name in NOTED}}
    if count:
        facts |= {name: added(before.get(name), row.get(name)) for name in SUMMED}
        facts["id"] = before["id"]
    facts["responses"] = count + 1
    facts["ids"] = [*before.get("ids", ()), row.get("id")][-RESPONSES:]
    of.metadata[KEY] = facts
    of.comment = of.comment or summary(facts)
    of.marked = of.marked or mark_of(row.get("status"), row.get("error_type"))


def added(one: float | None, other: float | None) -> float | None:
    return one if other is None else other if one is None else without_noise(one + other)


def encoded(body: bytes, coding: str) -> bytes | None:
    """The body as it would be on the wire, as mitmproxy expects it; None when we cannot."""
    try:
        return encoding.encode(body, coding) if coding else body
    except ValueError:
        return None


class FlowTools:
    """The addon: notes on flows, a bound on their number, and the commands."""

    name = "heliproxy-flows"

    def load(self, loader: Loader) -> None:
        loader.add_option(
            "heliproxy_flows",
            int,
            FLOWS,
            "Flows that mitmweb and the console keep; the oldest finished ones are removed. 0 keeps all.",
        )
        contentviews.add(LlmContentview())

    def running(self) -> None:
        # mitmweb has a column for comments, which it does not show unless asked.
        options = ctx.options
        if "web_columns" in options and options.web_columns == options.default("web_columns"):
            columns = [name for name in options.web_columns if name != "comment"]
            place = columns.index("path") + 1 if "path" in columns else len(columns)
            options.update(web_columns=[*columns[:place], "comment", *columns[place:]])

    def _view(self) -> View | None:
        view: View | None = ctx.master.addons.get("view")
        return view

    def _proxy(self) -> Heliproxy | None:
        proxy: Heliproxy | None = ctx.master.addons.get("heliproxy")
        return proxy

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        view, proxy = self._view(), self._proxy()
        if view is None:
            return
        self._bound(view)
        exchange = proxy.live.get(flow.id) if proxy is not None else None
        if exchange is None:
            return
        flow.metadata[KEY] = {"id": exchange.id, "format": exchange.route.format}

    def request(self, flow: http.HTTPFlow) -> None:
        self._watch(flow)

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        # Again: a gateway that moved on to its next upstream has forgotten what was to be done at the end.
        self._watch(flow)

    def websocket_start(self, flow: http.HTTPFlow) -> None:
        proxy = self._proxy()
        opened = proxy.sockets.by_flow.get(flow.id) if proxy is not None and KEY in flow.metadata else None
        if opened is None:
            return
        act = partial(_answered, flow, asyncio.get_running_loop())
        opened.opened = lambda exchange: exchange.after.append(act)

    def _watch(self, flow: http.HTTPFlow) -> None:
        """Have the flow annotated when its row is made."""
        proxy = self._proxy()
        exchange = proxy.live.get(flow.id) if proxy is not None and KEY in flow.metadata else None
        if exchange is None or any(isinstance(act, partial) and act.func is _ended for act in exchange.after):
            return
        flow.metadata[KEY]["format"] = exchange.route.format
        exchange.after.append(partial(_ended, flow, asyncio.get_running_loop()))

    def _bound(self, view: View) -> None:
        limit = ctx.options.heliproxy_flows
        count = view.store_count()
        if limit <= 0 or count <= limit + limit // SLACK:
            return
        over = count - limit
        for old in [one for one in view.resolve("@all") if not is_live(one)][:over]:
            view.remove([old])  # one by one: removing several is announced to the user

    @command.command("heliproxy.cost")  # type: ignore[untyped-decorator]
    def cost(self, flows: Sequence[flow.Flow]) -> str:
        """Sum up tokens and dollars of the selected flows."""
        facts = [known(one) for one in flows if "status" in known(one)]
        text = cost_text(facts)
        logger.log(ALERT, text)
        return text

    @command.command("heliproxy.export")  # type: ignore[untyped-decorator]
    def export(self, flows: Sequence[flow.Flow], path: types.Path) -> None:
        """Write the selected flows' requests as the log has them, one JSON object a line."""
        proxy = self._proxy()
        if proxy is None:
            raise_error("heliproxy is not loaded")
        try:
            count = export(proxy.settings.home / DATABASE_NAME, ids_of(flows), Path(path).expanduser())
        except Exception as e:
            raise_error(f"not exported: {e}")
        logger.log(ALERT, "Exported %d requests to %s", count, path)

    @command.command("heliproxy.feedback")  # type: ignore[untyped-decorator]
    def feedback(self, flows: Sequence[flow.Flow], rating: types.Choice("heliproxy.feedback.ratings")) -> None:  # type: ignore[valid-type]
        """Rate the selected flows' answers as good or bad."""
        proxy = self._proxy()
        ids = ids_of(flows)
        if proxy is None or proxy.services is None:
            raise_error("heliproxy is not running")
        recorder = proxy.recorder

        def rate() -> None:
            writer = recorder.writer
            assert writer is not None
            for request_id in ids:
                writer.add_feedback(request_id, rating == "good")

        # The recorder may be busy; the interface must not wait for it.
        threading.Thread(target=_call, args=(recorder.call, rate), daemon=True).start()
        logger.log(ALERT, "Rated %d requests as %s", len(ids), rating)

    @command.command("heliproxy.feedback.ratings")  # type: ignore[untyped-decorator]
    def ratings(self) -> Sequence[str]:
        """The ratings there are."""
        return ["good", "bad"]


def _call(call: Any, job: Any) -> None:
    try:
        call(job)
    except Exception as e:
        logger.error("the rating could not be stored: %s", e)


def raise_error(text: str) -> NoReturn:
    """Fail a command with a message for the user."""
    raise exceptions.CommandError(text)


def is_live(one: flow.Flow) -> bool:
    """Whether a flow is still under way."""
    if one.error is not None or not isinstance(one, http.HTTPFlow):
        return False
    if one.websocket is not None:
        return one.websocket.timestamp_end is None
    return one.response is None or one.response.timestamp_end is None


def ids_of(flows: Sequence[flow.Flow]) -> list[str]:
    """The ids under which the flows' calls are logged."""
    found = [known(one) for one in flows if "id" in known(one)]
    return [str(request_id) for facts in found for request_id in facts.get("ids", (facts["id"],))]


def cost_text(facts: Sequence[Mapping[str, Any]]) -> str:
    """One sentence about several calls."""
    if not facts:
        return "no call to a model among the selected flows"
    costs = [fact["cost_usd"] for fact in facts if fact.get("cost_usd") is not None]
    inputs = sum(fact.get("input_tokens") or 0 for fact in facts)
    outputs = sum(fact.get("output_tokens") or 0 for fact in facts)
    calls = sum(fact.get("responses", 1) for fact in facts)
    text = f"{calls} call{'' if calls == 1 else 's'} · {dollars(sum(costs))}"
    text += f" · {inputs:,} → {outputs:,} tokens"
    unknown = len(facts) - len(costs)
    return f"{text} · {unknown} without a known cost" if unknown else text


def export(database: Path, ids: Sequence[str], path: Path) -> int:
    """Write requests as newline-delimited JSON to a file only the user can read; returns how many.

    Raises OSError or sqlite3.Error.
    """
    from contextlib import closing

    from heliproxy.api.pages.request import detail_values
    from heliproxy.home import make_private_file
    from heliproxy.queries import request_detail
    from heliproxy.store import open_reader

    count = 0
    make_private_file(path)
    with closing(open_reader(database)) as conn, path.open("w", encoding="utf-8", errors="replace") as out:
        for request_id in ids:
            detail = request_detail(conn, request_id)
            if detail is not None:
                out.write(json.dumps(detail_values(detail)) + "\n")
                count += 1
    return count


def _ended(of: http.HTTPFlow, loop: asyncio.AbstractEventLoop, exchange: Exchange, outcome: Outcome) -> None:
    """On the recorder's thread, once the row is made: hand what it says to the event loop, which owns the flow."""
    sink = exchange.sink
    body = bytes(sink.head) if sink is not None else None
    cut = bool(sink is not None and sink.truncated)
    try:
        loop.call_soon_threadsafe(_show, of, dict(outcome.row), body, cut)
    except RuntimeError:
        pass  # the loop is closed: nobody looks any more


def _answered(of: http.HTTPFlow, loop: asyncio.AbstractEventLoop, _: Exchange, outcome: Outcome) -> None:
    """As `_ended`, for one response of a WebSocket."""
    try:
        loop.call_soon_threadsafe(_show_response, of, dict(outcome.row))
    except RuntimeError:
        pass  # the loop is closed


def _show_response(of: http.HTTPFlow, row: Mapping[str, Any]) -> None:
    add_response(of, row)
    ctx.master.addons.trigger(hooks.UpdateHook([of]))


def _show(of: http.HTTPFlow, row: Mapping[str, Any], body: bytes | None, cut: bool) -> None:
    annotate(of, row, body, cut)
    ctx.master.addons.trigger(hooks.UpdateHook([of]))
