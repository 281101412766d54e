"""From run folders to a report: report.html, table.csv, table.md and figures/, readable while a sweep still goes on.

write_report(["outputs/sweeps/first_picture"], "outputs/sweeps/first_picture/report")
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import pandas as pd

from sweeps.jobs import BROKEN, counts, jobs, machines, reasons, when
from sweeps.load import load_runs
from sweeps.page import Content, Picture, page
from sweeps.profiles import draw_batches, profile_table
from sweeps.readable import markdown, readable, short, the_same
from sweeps.tables import drift, results
from sweeps.traces import trace_table


def write_report(paths: Sequence[str | PathLike[str]], out: str | PathLike[str]) -> Path:
    """Write the report on the run folders at or below `paths` into the folder `out`; the path of its report.html.

    Raises FileNotFoundError for a missing path and ValueError where there is no run folder.
    """
    runs = _load(paths)
    return _write(runs, results(runs), paths, Path(out))


def main() -> None:
    """The console script `blockshock-report`."""
    arguments = _parser().parse_args()
    out = arguments.out or arguments.folders[0] / "report"
    try:
        runs = _load(arguments.folders)
        table = results(runs)
        written = _write(runs, table, arguments.folders, out)
    except (OSError, ValueError) as error:
        _refuse(str(error))
    if table.empty and drift(runs).empty and profile_table(runs).empty and trace_table(runs).empty:
        ended = ", ".join(f"{count} {status}" for status, count in counts(jobs(runs)).items())
        _refuse(f"{_listed(arguments.folders)}: no records in {ended} runs; why stands in {written}")
    _print(table, written)


def _load(paths: Sequence[str | PathLike[str]]) -> pd.DataFrame:
    runs = load_runs(paths)
    if runs.empty:
        raise ValueError(f"{_listed(paths)}: no run folder here (a run folder holds a status.json)")
    return runs


def _write(runs: pd.DataFrame, table: pd.DataFrame, paths: Sequence[str | PathLike[str]], out: Path) -> Path:
    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    shown = readable(table)
    table.to_csv(out / "table.csv", index=False)
    (out / "table.md").write_text(markdown(shown), encoding="utf-8")
    profiles = profile_table(runs)
    if not profiles.empty:
        (out / "profiles.md").write_text(markdown(profiles), encoding="utf-8")
    traces = trace_table(runs)
    if not traces.empty:
        (out / "traces.md").write_text(markdown(traces), encoding="utf-8")
    found = jobs(runs)
    sizes = [tuple(row) for row in table[["N", "K", "B"]].to_numpy().tolist()]
    content = Content(
        title=", ".join(sorted(set(found["name"]) - {""})) or Path(paths[0]).resolve().name,
        when=when(found),
        machines=machines(runs),
        counts=counts(found),
        shown=shown,
        profiles=profiles,
        traces=traces,
        sizes=sizes,
        fastest=_fastest(table),
        the_same=the_same(table),
        above_one=bool((table["roofline_fraction"] > 1).any()),
        resident=bool(table["memory_peak_kind"].astype(str).str.startswith("resident").any()),
        pictures=[*_draw(runs, table, figures), *draw_batches(runs, out)],
        broken=_listing(found[found["status"].isin(BROKEN)]),
        running=_listing(found[found["status"] == "running"]),
        unsupported=reasons(found, "unsupported"),
        command=shlex.join(["blockshock-report", *map(_shown, paths), "--out", _shown(out)]),
    )
    target = out / "report.html"
    target.write_text(page(content), encoding="utf-8")
    return target


def _draw(runs: pd.DataFrame, table: pd.DataFrame, folder: Path) -> list[Picture]:
    """Each figure that has something to show, as PNG and SVG. Those of an earlier report that have nothing now go."""
    import matplotlib as mpl
    import seaborn as sns

    from sweeps.figures import FIGURES, Measured

    measured = Measured(table, drift(runs))
    pictures = []
    with sns.axes_style("whitegrid"), mpl.rc_context({"svg.hashsalt": "block-shock"}):
        for plot in FIGURES:
            svg, png = folder / f"{plot.name}.svg", folder / f"{plot.name}.png"
            figure = plot.draw(measured)
            if figure is None:
                svg.unlink(missing_ok=True)
                png.unlink(missing_ok=True)
                continue
            figure.savefig(svg, metadata={"Date": None})
            figure.savefig(png, dpi=150)
            pictures.append(Picture(plot.name, plot.title, plot.reading, svg))
    return pictures


def _fastest(table: pd.DataFrame) -> list[bool]:
    """Is a row the fastest forward of its size, among those timed alike on the same device?"""
    alike = ["device", "dtype", "workload", "timing_mode", "flush_l2", "N", "K", "B"]
    best = table.groupby(alike)["forward_p50_ms"].transform("min")
    rivals = table.groupby(alike)["forward_p50_ms"].transform("count")
    return ((table["forward_p50_ms"] == best) & (rivals > 1)).tolist()


def _listing(found: pd.DataFrame) -> list[dict[str, str]]:
    shown = found.assign(folder=found["folder"].map(_shown))
    return [{str(key): str(value) for key, value in row.items()} for row in shown.to_dict("records")]


def _print(table: pd.DataFrame, written: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 200)
    if not table.empty:
        rows, left_out = short(table)
        printed = Table(box=None, header_style="bold", padding=(0, 1))
        for name in rows.columns:
            text = name in ("method", "kernel", "mask", "timing")
            printed.add_column(name, no_wrap=not text, overflow="fold", justify="left" if text else "right")
        for row in rows.to_numpy().tolist():
            printed.add_row(*row, style="red" if any(cell.startswith("FAIL") for cell in row) else None)
        console.print(printed)
        if left_out:
            console.print(f"{left_out} more rows in {written.with_name('table.md')}", soft_wrap=True, highlight=False)
    console.print(f"report: {written}", soft_wrap=True, highlight=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="blockshock-report",
        description="Write a report on run folders: report.html (one file), table.csv, table.md and figures.",
        epilog="Works while a sweep is still going on. Example: blockshock-report outputs/sweeps/first_picture. "
        "Exit status: 0, or 2 when a folder is missing or holds no records.",
    )
    parser.add_argument("folders", metavar="DIR", nargs="+", type=Path, help="a run folder, or any folder above some")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where the report goes (default: <first DIR>/report)")
    return parser


def _listed(paths: Sequence[str | PathLike[str]]) -> str:
    return ", ".join(str(path) for path in paths)


def _shown(path: str | PathLike[str]) -> str:
    """Relative where that is shorter to type and to read: below the current folder."""
    absolute = Path(path).resolve()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(path)


def _refuse(message: str) -> None:
    print(f"blockshock-report: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
