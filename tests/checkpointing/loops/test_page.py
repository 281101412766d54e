"""docs/training-loop.md: each row of its table names a test that exists, and its first lines run."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.import_graph import ROOT

PAGE = (ROOT / "docs" / "training-loop.md").read_text()
TESTS = ROOT / "tests" / "checkpointing"


def rows() -> list[list[str]]:
    table = PAGE.partition("## Does it work with")[2].partition("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_each_row_says_yes_or_no_and_names_a_test_that_exists() -> None:
    known = {
        node.name
        for path in TESTS.rglob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    assert len(rows()) >= 25
    for what, answer, note, test in rows():
        assert answer in ("yes", "no"), what
        assert answer == "yes" or note, what
        assert test.strip("`") in known, what
    assert len({row[0] for row in rows()}) == len(rows())


def test_the_pages_lines_run_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(code, names)
