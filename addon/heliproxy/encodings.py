"""tiktoken's two current encodings, from rank files shipped in this package; nothing is ever downloaded.

tiktoken itself has no rank files and would fetch them with a blocking request at first use. Its `Encoding` is built
here from our copies instead, which are checked against the hashes tiktoken itself has compiled in. Loading takes 0.2
to 0.4 s and 50 to 85 MB, so it happens at the first estimate, and most installations never do it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import logging
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tiktoken import Encoding

logger = logging.getLogger(__name__)

O200K = "o200k_base"
CL100K = "cl100k_base"

SHA256 = {
    O200K: "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    CL100K: "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
}

# How text is cut before byte pairs are merged (published with the encodings).
_PATTERNS = {
    CL100K: r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"""
    r"""|\s++$|\s*[\r\n]|\s+(?!\S)|\s""",
    O200K: "|".join(
        (
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
            r"\p{N}{1,3}",
            r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        )
    ),
}

CHARS_PER_TOKEN = 4.0
"""When an encoding cannot be loaded."""
_PIECE = 64 * 1024
"""Characters encoded at once: bounds what one pathological run of letters can cost."""


@dataclass(slots=True)
class Budget:
    """How many more characters one estimate may tokenise; what is beyond is extrapolated."""

    left: int
    exceeded: bool = False


def count_tokens(text: str, encoding: str, budget: Budget) -> int:
    """Tokens of `text`. Within the budget exactly (unless the rank file is missing), beyond it by the rate so far."""
    if not text:
        return 0
    encoder = load(encoding)
    if encoder is None:
        return round(len(text) / CHARS_PER_TOKEN) or 1
    if len(text) <= budget.left:
        budget.left -= len(text)
        return _count(encoder, text)
    budget.exceeded = True
    sample = text[: budget.left]
    budget.left = 0
    if len(sample) < 1024:
        return round(len(text) / CHARS_PER_TOKEN) or 1
    return round(_count(encoder, sample) * len(text) / len(sample))


def _count(encoder: Encoding, text: str) -> int:
    if len(text) <= _PIECE:
        return len(encoder.encode_ordinary(text))
    return sum(len(encoder.encode_ordinary(text[start:end])) for start, end in _pieces(text))


def _pieces(text: str) -> list[tuple[int, int]]:
    """Cuts at line or word ends, where tokens end as well."""
    pieces, start = [], 0
    while start < len(text):
        end = min(start + _PIECE, len(text))
        if end < len(text):
            cut = text.rfind("\n", start + _PIECE // 2, end) + 1 or text.rfind(" ", start + _PIECE // 2, end)
            end = cut if cut > start else end
        pieces.append((start, end))
        start = end
    return pieces


@cache
def load(name: str) -> Encoding | None:
    """The encoding, or None (told once in the log) when its rank file is missing or damaged."""
    try:
        from tiktoken import Encoding

        ranks = _read_ranks(name)
        encoding = Encoding(name=f"heliproxy_{name}", pat_str=_PATTERNS[name], mergeable_ranks=ranks, special_tokens={})
        encoding._mergeable_ranks = {}  # what counts has its own copy; this one is 27 MB that only decoding reads
        return encoding
    except Exception as e:  # whatever is wrong with the file: estimates get coarser, rows still get written
        logger.warning("token counts are guessed from the text's length: %s cannot be loaded: %s", name, e)
        return None


def _read_ranks(name: str) -> dict[bytes, int]:
    import lzma  # missing from some Python builds

    packed = (files(__package__) / "price_data" / f"{name}.tiktoken.xz").read_bytes()
    content = lzma.decompress(packed)
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256[name]:
        raise ValueError(f"its rank file has sha256 {digest}, expected {SHA256[name]}")
    ranks = {}
    for line in io.BytesIO(content):  # not all lines at once: they are 200,000
        token, _, rank = line.partition(b" ")
        ranks[base64.b64decode(token)] = int(rank)
    return ranks
