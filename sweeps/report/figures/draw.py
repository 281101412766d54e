"""Draws the report's figures: each that has something to show, as PNG and SVG, with the data behind it as CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sweeps.report.figures import FigureSpec, ReportData
from sweeps.report.page.page import DrawnFigure
from sweeps.report.problems import attempt
from sweeps.report.spreadsheet import write_csv
from sweeps.report.tables.clocks import remark_of_any


def draw(data: ReportData, folder: Path, problems: list[str], specs: Sequence[FigureSpec]) -> list[DrawnFigure]:
    """The figures `specs`, in `folder`; one that can't be drawn is a line of `problems`. Those of an earlier report
    that have nothing to show now go."""
    drawn = []
    for spec in specs:
        for path in _files(folder, spec.name):
            path.unlink(missing_ok=True)
        with own_style():
            figure = attempt(problems, f"the figure “{spec.title}”", None, _draw, spec, data, folder)
        if figure:
            drawn.append(figure)
    return drawn


@contextmanager
def own_style() -> Iterator[None]:
    """The report's look, whatever a user's matplotlibrc sets; a name with two $ is no formula."""
    import matplotlib as mpl
    import seaborn as sns

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(sns.axes_style("whitegrid"))
        mpl.rcParams.update({"svg.hashsalt": "block-shock", "text.parse_math": False})
        yield


def _draw(spec: FigureSpec, data: ReportData, folder: Path) -> DrawnFigure | None:
    selected = spec.select(data)
    if selected.empty:
        return None
    svg, png, csv = _files(folder, spec.name)
    figure = spec.draw(selected)
    figure.savefig(svg, metadata={"Date": None})
    figure.set_layout_engine("none")  # it is laid out now, and that takes as long as drawing
    figure.savefig(png, dpi=150)
    write_csv(selected, csv)
    reading = spec.reading + remark_of_any(selected)
    return DrawnFigure(spec.name, spec.title, reading, svg, csv, " ".join(figure.get_suptitle().split()))


def _files(folder: Path, name: str) -> tuple[Path, Path, Path]:
    base = folder / name
    return base.with_suffix(".svg"), base.with_suffix(".png"), base.with_suffix(".csv")
