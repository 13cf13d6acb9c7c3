"""Which requests are meant: filters, and the SQL conditions they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from heliproxy.times import stored_time

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

# A client that went away (-3) is "aborted", not an error; no status means still in flight.
ERROR = "((r.status >= 400 OR r.status < 100 OR r.error_type IS NOT NULL) AND r.status <> -3)"
# A failed call that reported no usage costs nothing; every other call without a price has an unknown cost.
UNPRICED = (
    "(r.cost_usd IS NULL AND r.status IS NOT NULL "
    f"AND (NOT {ERROR} OR r.input_tokens IS NOT NULL OR r.output_tokens IS NOT NULL))"
)

STATUS_CONDITIONS = {
    "ok": f"(r.status IS NOT NULL AND r.status <> -3 AND NOT {ERROR})",
    "error": ERROR,
    "cached": "r.cache = 'HIT'",
    "aborted": "r.status = -3",
    "timeout": "r.status = -2",
    "incomplete": "r.status IS NULL",
}
STATUS_FORMS = ", ".join((*STATUS_CONDITIONS, "a code such as 429", "a class such as 5xx"))


@dataclass(frozen=True, slots=True)
class Filters:
    """Which requests are meant. Several values of one field are alternatives; different fields must all hold.

    Names match whole, `*` in them anything. `since` is inclusive, `until` exclusive; both are aware.
    """

    since: datetime | None = None
    until: datetime | None = None
    models: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()
    """Forms of `STATUS_FORMS`."""
    properties: tuple[tuple[str, str], ...] = ()
    """Pairs of name and value."""

    def condition(self) -> tuple[str, list[Any]]:
        """A condition on `requests r`, with its parameters. Raises ValueError for an unknown status form."""
        terms: list[str] = []
        values: list[Any] = []
        for column, wanted in (
            ("r.model", self.models),
            ("r.provider", tuple(p.lower() for p in self.providers)),
            ("r.user_id", self.users),
            ("r.session_id", self.sessions),
            ("r.host", tuple(h.lower() for h in self.hosts)),
            ("r.run_id", self.runs),
            ("r.key_fingerprint", self.keys),
            ("r.prompt_id", self.prompts),
        ):
            if wanted:
                terms.append(any_of(f"{column} {'GLOB' if '*' in name else '='} ?" for name in wanted))
                # In GLOB, [ and ? are special too; we give a meaning to * only.
                values += [n.replace("[", "[[]").replace("?", "[?]") if "*" in n else n for n in wanted]
        if self.since is not None:
            terms.append("r.created_at >= ?")
            values.append(stored_time(self.since))
        if self.until is not None:
            terms.append("r.created_at < ?")
            values.append(stored_time(self.until))
        if self.statuses:
            terms.append(any_of(map(status_condition, self.statuses)))
        for name, value in self.properties:
            terms.append(
                "EXISTS (SELECT 1 FROM properties p WHERE p.request_id = r.id AND p.key = ? COLLATE NOCASE "
                "AND p.value = ?)"
            )
            values += [name, value]
        return " AND ".join(terms) or "1", values


def any_of(terms: Iterable[str]) -> str:
    return "(" + " OR ".join(terms) + ")"


def status_condition(form: str) -> str:
    """The condition for one of `STATUS_FORMS`. Raises ValueError."""
    word = form.strip().lower()
    if word in STATUS_CONDITIONS:
        return STATUS_CONDITIONS[word]
    if len(word) == 3 and word.endswith("xx") and word[0] in "12345":
        return f"(r.status >= {word[0]}00 AND r.status < {word[0]}00 + 100)"
    if word.removeprefix("-").isdecimal() and word.isascii() and len(word) <= 4:
        return f"r.status = {int(word)}"
    raise ValueError(f"unknown status {form!r}; expected {STATUS_FORMS}")
