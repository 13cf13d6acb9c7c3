"""Turns values into pages: the templates, and how money, tokens, times and statuses are written."""

from __future__ import annotations

import json
from datetime import UTC, datetime, tzinfo
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from heliproxy import __version__
from heliproxy.conversation import visible
from heliproxy.rounding import decimal_text
from heliproxy.statuses import CANCELLED, LOST, failure_mark, is_failed, open_word

FOLDER = Path(__file__).parent
# Everything comes from us: no inline script or style, no frame, no other host. Images and sounds in prompts arrive as
# data: URLs.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
PAGES = (
    ("/", "Overview"),
    ("/requests", "Requests"),
    ("/sessions", "Sessions"),
    ("/users", "Users"),
    ("/properties", "Properties"),
    ("/cache", "Cache"),
    ("/limits", "Limits"),
    ("/sql", "SQL"),
)
STATUS_WORDS = {-2: "timeout", -3: "cancelled", -4: "blocked", 0: "no answer"}


@cache
def environment() -> Environment:
    """The template environment: everything is escaped, an unknown name is an error."""
    env = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=shown,
    )
    env.filters |= {
        "money": money,
        "number": number,
        "tokens": tokens,
        "ms": duration,
        "status": status_word,
        "status_class": status_class,
        "share": share,
        "clock": clock,
        "path": lambda text: quote(str(text), safe=""),
        "visible": lambda text: visible(str(text)),
        "short": short,
        "exact": exact,
        "size": size,
        "pretty": pretty,
        "tidy_json": tidy_json,
    }
    env.globals |= {
        "pages": PAGES,
        "version": __version__,
        "link": link,
        "image_source": image_source,
        "audio_source": audio_source,
    }
    return env


def shown(value: Any) -> Any:
    """What a template writes for a value: text with its control characters visible, whatever page it is on."""
    return visible(value) if type(value) is str else value


def page(request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """Render a template as a response."""
    text = environment().get_template(template).render(here=request.url.path, **values)
    # Lone surrogates of a prompt have no place in UTF-8.
    return HTMLResponse(text.encode("utf-8", "replace"), status_code=status, headers=HEADERS)


def link(path: str, params: dict[str, Any] | None = None, **changes: Any) -> str:
    """A URL of ours with these query parameters, of which `changes` replace or (None) remove some."""
    found = {key: value for key, value in {**(params or {}), **changes}.items() if value not in (None, "", [])}
    return f"{path}?{urlencode(found, doseq=True, errors='replace')}" if found else path


def money(usd: float | None) -> str:
    """Dollars with as many digits as matter: $0.000123, $0.0412, $12.35, $1,234."""
    if usd is None:
        return "–"
    if usd == 0:
        return "$0"
    size_of = abs(usd)
    digits = 0 if size_of >= 1000 else 2 if size_of >= 1 else 4 if size_of >= 0.01 else 6
    if size_of < 0.0000005:
        return "<$0.000001"
    return f"${usd:,.{digits}f}"


def number(value: float | None) -> str:
    """1,234,567; fractions keep two digits; nothing known is a dash."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def tokens(value: float | None) -> str:
    """Counts in few characters: 987, 12.3k, 4.56M."""
    if value is None:
        return "–"
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            scaled = value / (1e3 if letter == "k" else limit)
            return (
                f"{scaled:.2f}{letter}"
                if scaled < 10
                else f"{scaled:.1f}{letter}"
                if scaled < 100
                else f"{scaled:.0f}{letter}"
            )
    return f"{value:,.0f}"


def duration(value_ms: float | None) -> str:
    """Milliseconds as people say them: 87 ms, 1.24 s, 3 min 05 s."""
    if value_ms is None:
        return "–"
    if value_ms < 10:
        return f"{value_ms:.1f} ms"
    if value_ms < 1000:
        return f"{value_ms:.0f} ms"
    seconds = value_ms / 1000
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def share(part: float | None, whole: float | None) -> str:
    """A percentage: 12 %, 0.4 %."""
    if not whole or part is None:
        return "–"
    percent = 100 * part / whole
    return f"{percent:.0f} %" if percent >= 10 or percent == 0 else f"{percent:.1f} %"


def size(count: int | None) -> str:
    """Bytes: 812 B, 12.3 kB, 1.05 MB."""
    if count is None:
        return "–"
    if count < 1000:
        return f"{count} B"
    return f"{count / 1e3:.1f} kB" if count < 1e6 else f"{count / 1e6:.2f} MB"


def status_word(status: int | None, error_type: str | None = None) -> str:
    """The status in a word or two: "200", "timeout"; "200 cut" for an answer that broke off after its good status."""
    if status is None:
        return open_word(error_type)
    return f"{STATUS_WORDS.get(status, status)} {failure_mark(status, error_type)}".rstrip()


def status_class(status: int | None, error_type: str | None = None) -> str:
    """ok, warn (the client's doing, or refused by us) or bad."""
    if status is None:
        return "warn" if error_type == LOST else "open"
    if status in (CANCELLED, 429):
        return "warn"
    return "bad" if is_failed(status, error_type) else "ok"


def short(text: str | None, limit: int = 160) -> str:
    """One line of a longer text, controls made visible."""
    line = " ".join(visible((text or "")[: limit * 4]).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def exact(value: float | None) -> str:
    """The number itself, to the digit that `heliproxy costs` prints."""
    return "" if value is None else str(value) if isinstance(value, int) else decimal_text(value)


def clock(text: str | None, zone: tzinfo | None, style: str = "full") -> str:
    """A stored UTC time in the reader's zone; `style` is full, time or day."""
    if not text:
        return "–"
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return text
    at = (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(zone)
    form = {"full": "%Y-%m-%d %H:%M:%S", "time": "%H:%M:%S", "day": "%Y-%m-%d", "short": "%d %b %H:%M:%S"}[style]
    return at.strftime(form)


def pretty(data: bytes | None, limit: int = 200_000) -> str:
    """A body for the raw view: JSON indented, anything else as text; controls made visible."""
    if not data:
        return ""
    text = data[: limit * 4].decode("utf-8", "replace")
    if text.lstrip()[:1] in ("{", "[") and len(data) <= limit * 4:
        try:
            text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
        except (ValueError, RecursionError):
            pass  # shown as it is
    cut = text if len(text) <= limit else f"{text[:limit]}\n… {len(text) - limit:,} characters more"
    return visible(cut)


def tidy_json(text: str) -> str:
    """Indent a text that is JSON; anything else stays."""
    if text[:1] not in ("{", "["):
        return text
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text


_INLINE_IMAGES = (
    "data:image/png;base64,",
    "data:image/jpeg;base64,",
    "data:image/gif;base64,",
    "data:image/webp;base64,",
)


_INLINE_SOUNDS = tuple(
    f"data:audio/{kind};base64,"
    for kind in ("wav", "x-wav", "mpeg", "mp3", "ogg", "opus", "webm", "flac", "aac", "mp4")
)


def audio_source(source: str) -> str:
    """The `data:` URL of a recording that may be played in the page, else ""."""
    return source if source[:40].lower().startswith(_INLINE_SOUNDS) else ""


def image_source(source: str) -> str:
    """The `data:` URL of an image that may be shown in the page, else "": remote ones are never fetched."""
    return source if source[:40].lower().startswith(_INLINE_IMAGES) else ""
