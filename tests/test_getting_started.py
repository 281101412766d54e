"""docs/getting-started.md runs as printed, from the first measurement on: what `make run` installs is here already."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.import_graph import ROOT

PAGE = (ROOT / "docs" / "getting-started.md").read_text()


@pytest.mark.slow
def test_the_page_runs_as_printed(tmp_path: Path) -> None:
    measured = PAGE.partition("## 2. ")[2]
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", measured, re.MULTILINE | re.DOTALL)
    assert [language for language, _ in blocks] == ["", "", "python"]
    printed = [_run(language, text, tmp_path) for language, text in blocks]
    for line in ("build ", "forward ", "roofline ", "error Y "):  # what the page explains
        assert f"\n  {line}" in printed[0]
    assert "2 ok" in printed[1]
    assert (tmp_path / "outputs" / "sweeps" / "first" / "report" / "report.html").is_file()
    assert len(re.findall(r"(dense_tp_row|block_shock) +512 +16 +[\d.]+ +True", printed[2])) == 2


def _run(language: str, text: str, folder: Path) -> str:
    command = [sys.executable, "-c", text] if language == "python" else ["bash", "-ec", text]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "CUDA_VISIBLE_DEVICES": ""}
    environment["XDG_CACHE_HOME"] = str(folder / "cache")
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout
