"""`make docs` builds the pages and an API reference into a site, without warnings; it loads nothing from outside."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.import_graph import ROOT

MISSING = [name for name in ("sphinx", "myst_parser", "furo") if find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}: pip install 'block-shock[docs]'"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT, out)
    assert (done.returncode, done.stderr) == (0, "")
    return out


def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """As in the Makefile."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-c", str(ROOT / "docs")]
    assert " ".join(command[1:-1]) in (ROOT / "Makefile").read_text()
    return subprocess.run([*command, str(source), str(out)], cwd=source, capture_output=True, text=True)


def test_every_page_is_in_the_site(site: Path) -> None:
    pages = {path.relative_to(ROOT).with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    assert [str(page) for page in sorted(pages) if not (site / page).is_file()] == []
    assert "does that beat dense tensor parallelism" in (site / "docs" / "index.html").read_text()  # README's


@pytest.mark.parametrize("package", ["checkpointing", "profiler", "profiler.traces", "sweeps"])
def test_every_public_function_and_class_is_in_the_reference(package: str, site: Path) -> None:
    module = importlib.import_module(package)
    names = [name for name in module.__all__ if callable(getattr(module, name))]
    reference = (site / "docs" / "reference" / "api.html").read_text()
    assert names
    assert [name for name in names if f'id="{package}.{name}"' not in reference] == []


def test_no_page_loads_anything_from_outside(site: Path) -> None:
    """Links lead outside; scripts, styles, fonts and pictures are in the site."""
    loads = re.compile(r"""<(?:script|img|iframe)[^>]*\ssrc="(?:https?:)?//|<link[^>]*\shref="(?:https?:)?//""")
    styles = re.compile(r"""(?:@import|url\()\s*["']?(?:https?:)?//""")
    assert [page.name for page in site.rglob("*.html") if loads.search(page.read_text())] == []
    assert [sheet.name for sheet in site.rglob("*.css") if styles.search(sheet.read_text())] == []


@pytest.mark.parametrize("link", ["gone.md", "index.md#gone", "../CONTRIBUTING.md"])
def test_a_broken_link_fails_the_build(link: str, tmp_path: Path) -> None:
    (tmp_path / "source" / "docs").mkdir(parents=True)
    page = tmp_path / "source" / "docs" / "index.md"
    page.write_text("# Title\n\n[home](index.md#title)\n")
    assert build(tmp_path / "source", tmp_path / "good").returncode == 0
    page.write_text(f"# Title\n\n[broken]({link})\n")
    done = build(tmp_path / "source", tmp_path / "bad")
    assert done.returncode != 0
    assert "xref_missing" in done.stderr
