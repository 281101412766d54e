"""Draws the report's figures: each that has something to show, as PNG and SVG, with the data behind it as CSV."""

from __future__ import annotations

from pathlib import Path

from sweeps.report.figures import FIGURES, ReportData
from sweeps.report.page.page import Picture


def draw(measured: ReportData, folder: Path) -> list[Picture]:
    """The figures of FIGURES, in `folder`. Those of an earlier report that have nothing to show now go."""
    import matplotlib as mpl
    import seaborn as sns

    pictures = []
    with sns.axes_style("whitegrid"), mpl.rc_context({"svg.hashsalt": "block-shock"}):
        for plot in FIGURES:
            data, base = plot.select(measured), folder / plot.name
            if data.empty:
                for ending in (".svg", ".png", ".csv"):
                    base.with_suffix(ending).unlink(missing_ok=True)
                continue
            figure = plot.draw(data)
            figure.savefig(base.with_suffix(".svg"), metadata={"Date": None})
            figure.set_layout_engine("none")  # it is laid out now, and that takes as long as drawing
            figure.savefig(base.with_suffix(".png"), dpi=150)
            data.to_csv(base.with_suffix(".csv"), index=False)
            pictures.append(
                Picture(plot.name, plot.title, plot.reading, base.with_suffix(".svg"), base.with_suffix(".csv"))
            )
    return pictures
