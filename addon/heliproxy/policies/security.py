"""`Helicone-LLM-Security-Enabled`: the operator's rules file, and optionally a detector of their own (section 7).

Nothing is checked unless `security-rules.toml` exists in the home folder:

    [[rule]]
    name = "override"
    pattern = "ignore (all|your) previous instructions"   # Python regex, any case
    advanced = false                                       # true: only with Helicone-LLM-Security-Advanced

    [detector]                                             # one of the two; the text goes in, a verdict comes out
    command = ["my-detector", "--json"]                    # text on stdin; exit status 1 means threat
    url = "http://127.0.0.1:9100/check"                    # POST {"text": ..., "advanced": ...} -> {"threat": true}
    timeout = 5
"""

from __future__ import annotations

import json
import logging
import re
import subprocess
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)

RULES_NAME = "security-rules.toml"
MAX_TEXT = 100_000
NOT_CONFIGURED = (
    f"Helicone-LLM-Security-Enabled: no {RULES_NAME} in heliproxy's home folder, so prompts are not checked"
)


@dataclass(frozen=True, slots=True)
class Rule:
    """One pattern whose match is a threat."""

    name: str
    pattern: re.Pattern[str]
    advanced: bool = False


@dataclass(frozen=True, slots=True)
class Detector:
    """A program or a service of the operator that judges texts."""

    command: tuple[str, ...] = ()
    url: str = ""
    timeout_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Rules:
    """All that the rules file says."""

    rules: tuple[Rule, ...] = ()
    detector: Detector | None = None


def load_rules(home: Path) -> Rules | None:
    """The rules of this home, or None when there is no file. Raises ValueError naming what is wrong in it."""
    path = home / RULES_NAME
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return None
    try:
        return parse_rules(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, ValueError) as e:
        raise ValueError(f"{path}: {e}") from e


def parse_rules(data: dict[str, Any]) -> Rules:
    """Rules out of the decoded file. Raises ValueError."""
    entries = data.get("rule", [])
    if not isinstance(entries, list):
        raise ValueError("'rule' must be written as [[rule]]")  # noqa: TRY004 (one error class for the file)
    return Rules(tuple(_rule(entry, i) for i, entry in enumerate(entries, 1)), _detector(data.get("detector")))


def _rule(entry: Any, number: int) -> Rule:
    pattern = entry.get("pattern") if isinstance(entry, dict) else None
    if not isinstance(pattern, str) or not pattern:
        raise ValueError(f"rule {number} has no 'pattern'")
    try:
        compiled = re.compile(pattern, re.IGNORECASE)
    except re.error as e:
        raise ValueError(f"rule {number}: pattern {pattern!r}: {e}") from e
    return Rule(str(entry.get("name") or f"rule {number}"), compiled, entry.get("advanced") is True)


def _detector(entry: Any) -> Detector | None:
    if entry is None:
        return None
    if not isinstance(entry, dict):
        raise ValueError("'detector' must be a table")  # noqa: TRY004
    command, url, timeout = entry.get("command", []), entry.get("url", ""), entry.get("timeout", 5)
    if not isinstance(command, list) or not all(isinstance(part, str) for part in command):
        raise ValueError("detector.command must be a list of strings")
    if not isinstance(url, str) or (url and not url.startswith(("http://", "https://"))):
        raise ValueError("detector.url must be an http or https URL")
    if bool(command) == bool(url):
        raise ValueError("detector needs either 'command' or 'url'")
    if not isinstance(timeout, int | float) or not 0 < timeout <= 60:
        raise ValueError("detector.timeout must be more than 0 and at most 60 seconds")
    return Detector(tuple(command), url, float(timeout))


def threat(rules: Rules, text: str, *, advanced: bool = False) -> str | None:
    """The name of the rule or detector that refuses this text, or None.

    Blocks (regular expressions, the detector): run it in an executor. A failing detector allows, with a log line.
    """
    text = text[:MAX_TEXT]
    for rule in rules.rules:
        if (advanced or not rule.advanced) and rule.pattern.search(text):
            return rule.name
    if rules.detector is None:
        return None
    try:
        found = (
            _ask_command(rules.detector, text) if rules.detector.command else _ask_url(rules.detector, text, advanced)
        )
    except (OSError, ValueError, subprocess.SubprocessError) as e:
        logger.warning("security detector failed, the prompt passes: %s", e)
        return None
    return "detector" if found else None


def _ask_command(detector: Detector, text: str) -> bool:
    done = subprocess.run(
        detector.command,
        input=text.encode("utf-8", "replace"),
        capture_output=True,
        timeout=detector.timeout_s,
        check=False,
    )
    if done.returncode not in (0, 1):
        raise ValueError(f"{detector.command[0]} ended with {done.returncode}")
    return done.returncode == 1


def _ask_url(detector: Detector, text: str, advanced: bool) -> bool:
    import urllib.request

    body = json.dumps({"text": text, "advanced": advanced}).encode()
    request = urllib.request.Request(detector.url, body, {"content-type": "application/json"})  # noqa: S310
    # No proxy: it would be ourselves.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=detector.timeout_s) as response:
        value = json.loads(response.read(1 << 20))
    return isinstance(value, dict) and value.get("threat") is True
