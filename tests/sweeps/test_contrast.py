"""Every text of a report has a contrast of 4.5 or more with its background (WCAG 2, 1.4.3).

Chromium computes the colours, in the light and the dark theme. A figure's text is compared with the colour under its
middle, a page's text with its nearest background.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from profiler.batch_analysis import plot_peak, plot_step_time
from profiler.costs.memory import CATEGORIES
from sweeps.report import write_report
from sweeps.report.figures import FIGURES
from sweeps.report.figures.draw import own_style
from sweeps.report.page.dark_mode import DARK, with_dark_mode
from sweeps.report.page.short_svg import compact
from sweeps.report.tables.report_data import read_report_data
from tests.sweeps.browser import Page
from tests.sweeps.conftest import benchmark_rows, writer
from tests.sweeps.test_report import write_mixed

LEAST = 4.5
COLOURS = """
  const parts = text => [...text.matchAll(/[\\d.]+/g)].map(Number);
  const over = (text, opacity, under) => { const [r, g, b, a = 1] = parts(text);
    return [r, g, b].map((value, i) => value * a * opacity + under[i] * (1 - a * opacity)); };
  const light = rgb => rgb.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const contrast = (a, b) => { const [low, high] = [light(a), light(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05); };"""
# Of each text of an SVG its comment-free id, its colour, what lies under its middle, and the contrast.
OF_FIGURE = f"""(paper => {{ {COLOURS}
  return [...document.querySelectorAll('g[id^="text_"]')].filter(text => text.querySelector("use")).map(text => {{
    const box = text.getBoundingClientRect(), painted = [];
    for (const shape of document.elementsFromPoint(box.x + box.width / 2, box.y + box.height / 2)) {{
      const style = getComputedStyle(shape);
      if (text.contains(shape) || shape.closest('g[id^="text_"]') || style.fill === "none" || shape.localName === "svg")
        continue;
      painted.unshift([style.fill, style.fillOpacity * style.opacity]);
    }}
    const ground = painted.reduce((under, [fill, opacity]) => over(fill, opacity, under), paper);
    const style = getComputedStyle(text.querySelector("use"));
    const ink = over(style.fill, style.fillOpacity * style.opacity, ground);
    return {{ id: text.id, ink, ground, contrast: contrast(ink, ground), painted: painted.length }};
  }}); }})"""
# Of each element of the page with text of its own the same.
OF_PAGE = f"""(() => {{ {COLOURS}
  document.querySelectorAll("details").forEach(box => {{ box.open = true; }});
  const own = [...document.body.querySelectorAll("*")].filter(e => !["SCRIPT", "TEMPLATE", "STYLE"].includes(e.tagName)
    && [...e.childNodes].some(node => node.nodeType === 3 && node.data.trim()) && e.getClientRects().length);
  return own.map(element => {{
    const above = [];
    for (let at = element; at; at = at.parentElement) above.unshift(getComputedStyle(at).backgroundColor);
    const ground = above.reduce((under, colour) => over(colour, 1, under), [255, 255, 255]);
    const ink = over(getComputedStyle(element).color, 1, ground);
    return {{ tag: element.tagName, kind: element.className, text: element.textContent.trim().slice(0, 40), ink, ground,
      contrast: contrast(ink, ground) }};
  }}); }})()"""
PAPER = {False: "#ffffff", True: DARK["#ffffff"]}
THEMES = pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])


@pytest.fixture(scope="module")
def top(tmp_path_factory) -> Path:
    """Something for every figure and every table."""
    top = tmp_path_factory.mktemp("contrast")
    write_mixed(writer(top / "runs"))
    for ranks in (1, 2):
        writer(top / "runs")(f"bench{ranks}", benchmark_rows(ranks))
    return top


@pytest.fixture(scope="module")
def figures(top) -> dict[str, Path]:
    """Every kind of figure as the page holds it."""
    data, drawn = read_report_data([top / "runs"]), {}
    sizes = [4, 8, 16]
    parts = {name: [2**30 * size for size in sizes] for name in CATEGORIES}
    peaks = [2**30 * size * len(parts) for size in sizes]
    times = {"step_time_s": [0.1, 0.2, 0.4], "node_time_s": [0.05, 0.1, 0.3]}
    batches = pd.DataFrame({"batch_size": sizes, **parts, "measured_peak_bytes": peaks, **times})
    with own_style():
        for spec in FIGURES:
            drawn[spec.name] = spec.draw(spec.select(data))
            drawn[spec.name].savefig(top / f"{spec.name}.svg")
    for name, plot in {"batch_peak_memory": plot_peak, "batch_step_time": plot_step_time}.items():
        with own_style():
            plot(batches).savefig(top / f"{name}.svg")
        drawn[name] = None
    for name in drawn:
        path = top / f"{name}.svg"
        path.write_text(with_dark_mode(compact(path.read_text())))
    return {name: top / f"{name}.svg" for name in drawn}


@THEMES
def test_every_text_of_every_figure_has_a_contrast_of_4_5(figures, dark):
    low, seen, on_cells = {}, 0, 0
    paper = [int(PAPER[dark][i : i + 2], 16) for i in (1, 3, 5)]
    with Page(next(iter(figures.values())), 2400, dark) as page:
        size = {"width": 2400, "height": 3600, "deviceScaleFactor": 1, "mobile": False}
        page.call("Emulation.setDeviceMetricsOverride", **size)
        for name, path in figures.items():
            page.call("Page.navigate", url=path.resolve().as_uri())
            page._until("Page.loadEventFired")
            texts = page.evaluate(f"{OF_FIGURE}({paper})")
            assert len(texts) >= 4, name
            low |= {f"{name} {text['id']}": text for text in texts if text["contrast"] < LEAST}
            seen += len(texts)
            on_cells += sum(text["painted"] > 1 and name.startswith(("speedup", "bench")) for text in texts)
    assert not low
    assert seen > 200
    assert on_cells > 20  # what lies under a number of a map was seen


@pytest.fixture(scope="module")
def report(top) -> Path:
    """The page, which has both themes."""
    return write_report([top / "runs"], top / "out")


@THEMES
def test_every_text_of_the_page_has_a_contrast_of_4_5(report, dark):
    with Page(report, 1400, dark) as page:
        texts = page.evaluate(OF_PAGE)
    kinds = " ".join(text["kind"] for text in texts).split()
    assert {"soft", "fail", "chip", "finding", "number", "best", "outcome", "count"} <= set(kinds)
    assert {"TH", "TD", "A", "P", "H1", "BUTTON", "SUMMARY", "DT", "FIGCAPTION"} <= {text["tag"] for text in texts}
    assert [text for text in texts if text["contrast"] < LEAST] == []
