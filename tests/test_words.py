"""What users read is in plain words and short: pages, help texts, comments in conf/, messages and the report's page."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.import_graph import PACKAGES, ROOT

WORDS = 12_000
# What programs write: three pages, and tables in another. The index holds the table of contents.
GENERATED = {"docs/index.md", "docs/reference/claims.md", "docs/reference/columns.md", "docs/reference/keys.md"}
TABLE = re.compile(r"<!-- table\b.*?(?=<!-- end|\Z)", re.DOTALL)

# The phrase, and what to write instead.
PHRASES = {
    r"ma[dk]e again": "recompute",
    r"to the bit|bit for bit": "bitwise identical",
    r"goes on where it stopped|(?:command|one) that goes on": "resumes; the command to resume",
    r"(?:is|are|was|were|be) refused": "is rejected, is an error",
    r"held against|holds? .{1,40} against": "compared with",
    r"surely": "significantly",
    r"(?:one|each|line|row|task|processe?s?|GPUs?|memory|bytes|seconds|minutes|ms|times|cores|hours?)"
    r" a (?:rank|job|step|run|node|host|value|sample|measurement|pair|GPU|check|line|key|second|record|size)": "per",
    r"on as many": "on the same number of",
    r"beside": "next to, compared with",
    r"peers": "baselines; of ranks: the other ranks",
    r"(?:sparse|dense|half-K|rank-local|matrix|next|single|whole|unaligned) products?|products? of matri": "matmul",
    r"the law(?:'s)?": "the model, the bound",
    r"has an owner": "is attributed to a module",
    r"so that no job results": "is empty: no jobs to run",
    r"hold both answers": "inconclusive: the intervals include 1.0",
    r"least added time": "a solver minimises the slowdown",
    r"no plan needs less": "is below the minimum of",
    r"gone\b.{0,12}\bleft": "elapsed, ETA",
    r"against rank": "over the nodes in order",
}
FORBIDDEN = re.compile("|".join(rf"\b(?:{phrase})\b" for phrase in PHRASES), re.IGNORECASE)
HELP = (
    "blockshock.cli.main",
    "blockshock.cli.tune",
    "blockshock.cli.doctor",
    "sweeps.report.command",
    "sweeps.artifact.command",
    "sweeps.status",
)
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))),
]


def found_in(text: str) -> list[str]:
    plain = re.sub(r"\s+", " ", re.sub(r"`[^`\n]*`|\]\([^)]*\)", "", text))
    return [plain[max(0, found.start() - 40) : found.end() + 40] for found in FORBIDDEN.finditer(plain)]


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_in_plain_words(page: str) -> None:
    assert found_in(re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)) == []


@pytest.mark.parametrize("module", HELP)
def test_help_is_in_plain_words(module: str) -> None:
    code = f"import sys; sys.argv = ['command', '--help']; import {module} as command; command.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, found_in(done.stdout)) == (0, [])
    assert len(done.stdout.split()) > 20


def test_comments_of_the_configuration_are_in_plain_words() -> None:
    comments = {
        str(path.relative_to(ROOT)): found_in("\n".join(re.findall(r"#.*", path.read_text())))
        for path in (ROOT / "conf").rglob("*.yaml")
    }
    assert {path: words for path, words in comments.items() if words} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_messages_are_in_plain_words(package: str) -> None:
    """Every text of several words in the code that is no docstring: errors, logs, captions, titles, tables."""
    found = {
        f"{path.relative_to(ROOT)}:{line}": words
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, text in texts(path)
        if (words := found_in(text))
    }
    assert found == {}


def test_the_reports_page_is_in_plain_words() -> None:
    for path in (ROOT / "sweeps" / "report" / "page").glob("*.html"):
        assert found_in(re.sub(r"<[^>]*>|\{[{%#].*?[}%#]\}", " ", path.read_text())) == []


@cache
def texts(path: Path) -> tuple[tuple[int, str], ...]:
    return tuple(_texts(ast.parse(path.read_text())))


def _texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield (
                node.lineno,
                "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values),
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def test_the_pages_are_short() -> None:
    """Words have a letter: numbers and the bars of tables are none, and neither are names of tests."""
    words = {}
    for page in {*PAGES} - GENERATED - {"CONTRIBUTING.md"}:
        text = re.sub(r"`test_\w+`", "", TABLE.sub("", (ROOT / page).read_text()))
        words[page] = sum(any(letter.isalpha() for letter in word) for word in text.split())
    assert sum(words.values()) <= WORDS, words
