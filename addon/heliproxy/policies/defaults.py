"""Default `Helicone-*` headers for apps that cannot set their own: environment, a file, the command line.

Variables and file are those of Helicone's own mitmproxy script (helicone-api.md section 0.6). A request's own
header always wins; of the defaults, the command line wins over the environment, and that over the file.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from heliproxy.settings import Settings

PROPERTIES_FILE = Path(".helicone") / "custom_properties.json"
MAX_FILE_BYTES = 1 << 20

ENVIRONMENT: Mapping[str, str] = {
    "HELICONE_CACHE_ENABLED": "Helicone-Cache-Enabled",
    "HELICONE_CACHE_BUCKET_MAX_SIZE": "Helicone-Cache-Bucket-Max-Size",
    "HELICONE_CACHE_SEED": "Helicone-Cache-Seed",
    "HELICONE_CACHE_IGNORE_KEYS": "Helicone-Cache-Ignore-Keys",
    "HELICONE_CACHE_CONTROL": "Cache-Control",
    "HELICONE_USER_ID": "Helicone-User-Id",
    "HELICONE_SESSION_ID": "Helicone-Session-Id",
    "HELICONE_SESSION_NAME": "Helicone-Session-Name",
    "HELICONE_SESSION_PATH": "Helicone-Session-Path",
    "HELICONE_PROMPT_ID": "Helicone-Prompt-Id",
    "HELICONE_RATELIMIT_POLICY": "Helicone-RateLimit-Policy",
    "HELICONE_RETRY_ENABLED": "Helicone-Retry-Enabled",
    "HELICONE_RETRY_NUM": "Helicone-Retry-Num",
    "HELICONE_RETRY_FACTOR": "Helicone-Retry-Factor",
    "HELICONE_RETRY_MIN_TIMEOUT": "Helicone-Retry-Min-Timeout",
    "HELICONE_RETRY_MAX_TIMEOUT": "Helicone-Retry-Max-Timeout",
    "HELICONE_OMIT_REQUEST": "Helicone-Omit-Request",
    "HELICONE_OMIT_RESPONSE": "Helicone-Omit-Response",
    "HELICONE_MODERATIONS_ENABLED": "Helicone-Moderations-Enabled",
    "HELICONE_LLM_SECURITY_ENABLED": "Helicone-LLM-Security-Enabled",
    "HELICONE_TOKEN_LIMIT_EXCEPTION_HANDLER": "Helicone-Token-Limit-Exception-Handler",
    "HELICONE_STREAM_USAGE": "Helicone-Stream-Usage",
}
_PROPERTY = "HELICONE_PROPERTY_"
_ALLOWED_OTHERS = frozenset({"cache-control", "x-stripe-customer-id"})
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)

Pairs = tuple[tuple[str, str], ...]


def default_headers(settings: Settings) -> Pairs:
    """The defaults of this process: its environment, the user's file, and the settings' lines.

    Raises ValueError for a line that is not a header we take.
    """
    try:
        home = Path.home()
    except RuntimeError:
        home = None
    return collect_headers(os.environ, home, settings.default_headers)


def collect_headers(env: Mapping[str, str], home: Path | None = None, lines: Iterable[str] = ()) -> Pairs:
    """All defaults, one per name, for `directives.parse`.

    `home` is the user's home folder (None: no file is read), `lines` are `Name: value`. Raises ValueError for a
    line that is not one. An unreadable file counts as empty.
    """
    found: dict[str, tuple[str, str]] = {}
    sources = [
        from_properties_file(home / PROPERTIES_FILE) if home else (),
        from_environment(env),
        tuple(parse_header_line(line) for line in lines),
    ]
    for source in sources:
        for name, value in source:
            found[name.lower()] = (name, value)
    return tuple(found.values())


def from_environment(env: Mapping[str, str]) -> Pairs:
    """Headers out of `HELICONE_*` variables; `HELICONE_PROPERTY_APP_NAME` is the property `app_name`."""
    found = [(header, env[variable]) for variable, header in ENVIRONMENT.items() if env.get(variable)]
    for variable, value in env.items():
        # Windows upper-cases variable names; properties are lower case anyway.
        name = variable[len(_PROPERTY) :].lower()
        if variable.upper().startswith(_PROPERTY) and value and _NAME.fullmatch(name):
            found.append((f"Helicone-Property-{name}", value))
    return tuple(found)


def from_properties_file(path: Path) -> Pairs:
    """Property headers out of the JSON object Helicone's Python client writes: names with or without the prefix."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return ()
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return ()
    if not isinstance(data, dict):
        return ()
    found = []
    for key, value in data.items():
        name = re.sub(r"(?i)^helicone-property-", "", key.strip())
        text = value if isinstance(value, str) else json.dumps(value)
        if value is None or not _NAME.fullmatch(name):
            continue
        known = key.strip().lower().startswith("helicone-") and name == key.strip()
        found.append((name if known else f"Helicone-Property-{name}", text))
    return tuple(found)


def parse_header_line(line: str) -> tuple[str, str]:
    """`Helicone-User-Id: me` as name and value. Raises ValueError naming the line and what is expected."""
    name, colon, value = line.partition(":")
    name, value = name.strip(), value.strip()
    if not colon or not value or not _NAME.fullmatch(name):
        raise ValueError(f"default header {line!r}: expected 'Helicone-Name: value'")
    if not name.lower().startswith("helicone-") and name.lower() not in _ALLOWED_OTHERS:
        raise ValueError(f"default header {name!r}: only Helicone-* headers and Cache-Control can have a default")
    return name, value
