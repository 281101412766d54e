"""How Sphinx makes a site of the pages: `make docs`. Nothing is fetched, neither when it builds nor when it is read.

The source is the whole repository, so that links to CONTRIBUTING.md, records and files work as in a checkout.
"""

from __future__ import annotations

from importlib.metadata import version as installed
from typing import Any

from sphinx.application import Sphinx

project = html_title = "Block-Shock"
version = release = installed("block-shock")
root_doc = "docs/index"
include_patterns = ["docs/**", "CONTRIBUTING.md", "CHANGELOG.md", "outputs/reference/*/README.md"]
exclude_patterns = [".*", "build", "tests", "outputs/[!r]*"]
extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["colon_fence"]  # directives that other readers of Markdown show as text
myst_heading_anchors = 4
default_role = "code"  # docstrings write `name`
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
html_theme = "furo"
html_copy_source = html_show_sphinx = html_show_copyright = False


def as_pages_say(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """A package's docstring shows its use, as its page does at length: the reference leaves it out."""
    if what == "module":
        lines.clear()


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", as_pages_say)
