"""What pages say: whether a sentence stands on one, and which of its numbers no claim holds.

missing(said, "docs/results.md")           # those of the sentences that do not stand there
unclaimed("docs/results.md", said, exempt) # numbers with their words around, outside of the sentences
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

from sweeps.artifact.claims import ROOT

# Numbers that look measured: with decimals, or with a unit behind.
MEASURED = re.compile(
    r"(?<![\w.\-/=×])[+−-]?\d+(?:\.\d+(?:e-?\d+)?(?![\w.]*\d)|(?=\s?(?:%|ms|µs|MiB|GiB|GB|TB|times|jobs|runs|cases)|\ss\b))"
)
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\([^)]*\)")
_CODE = re.compile(r"`[^`]*`")


@cache
def plain(page: str) -> str:
    """The page in one line, as wrapping and emphasis differ from sentence to sentence."""
    return one_line((ROOT / page).read_text(encoding="utf-8"))


def one_line(text: str) -> str:
    return " ".join(text.replace("**", "").split())


def missing(sentences: Iterable[str], page: str) -> list[str]:
    return [sentence for sentence in sentences if one_line(sentence) not in plain(page)]


def unclaimed(page: str, sentences: Iterable[str], exempt: Iterable[str]) -> list[str]:
    """Each measured number of `page` that stands neither in `sentences` nor in what the patterns `exempt` match."""
    text = (ROOT / page).read_text(encoding="utf-8")
    text = one_line(_LINK.sub("]()", _FENCE.sub(" ", text)))
    for sentence in sorted((one_line(_LINK.sub("]()", s)) for s in sentences), key=len, reverse=True):
        text = text.replace(sentence, " ▮ ")
    for pattern in exempt:
        text = re.sub(pattern, " ▮ ", text)
    text = _CODE.sub(" ▮ ", text)
    return [text[max(0, found.start() - 40) : found.end() + 25] for found in MEASURED.finditer(text)]
