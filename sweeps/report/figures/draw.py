"""Draws the report's figures: each that has something to show, as PNG and SVG, with the data behind it as CSV."""

from __future__ import annotations

from pathlib import Path

from sweeps.report.figures import FIGURES, ReportData
from sweeps.report.page.page import DrawnFigure


def draw(data: ReportData, folder: Path) -> list[DrawnFigure]:
    """The figures of FIGURES, in `folder`. Those of an earlier report that have nothing to show now go."""
    import matplotlib as mpl
    import seaborn as sns

    drawn = []
    with sns.axes_style("whitegrid"), mpl.rc_context({"svg.hashsalt": "block-shock"}):
        for spec in FIGURES:
            selected, base = spec.select(data), folder / spec.name
            svg, png, csv = (base.with_suffix(ending) for ending in (".svg", ".png", ".csv"))
            if selected.empty:
                for path in (svg, png, csv):
                    path.unlink(missing_ok=True)
                continue
            figure = spec.draw(selected)
            figure.savefig(svg, metadata={"Date": None})
            figure.set_layout_engine("none")  # it is laid out now, and that takes as long as drawing
            figure.savefig(png, dpi=150)
            selected.to_csv(csv, index=False)
            drawn.append(DrawnFigure(spec.name, spec.title, spec.reading, svg, csv))
    return drawn
