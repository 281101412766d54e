"""What `blockshock-report` does besides a report: packs run folders, unpacks them, and draws single figures."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from blockshock.errors import ConfigError, one_of
from sweeps.report.figures import FIGURES
from sweeps.report.figures.batches import draw_batches
from sweeps.report.figures.draw import draw
from sweeps.report.page.page import DrawnFigure
from sweeps.report.records.load import find_runs
from sweeps.report.records.packed import PACKED, pack, unpack
from sweeps.report.tables.report_data import read_report_data
from sweeps.text import counted, shown

BATCHES = "batch_"  # figures of the batch analysis are called batch_<what>_<model>


def pack_each(tops: Sequence[Path], out: Path | None, keep: Sequence[str]) -> None:
    """One file for each folder of `tops`, in it or at `out`. Runs that can't be read are named on stderr.

    Raises ConfigError, ValueError, OSError.
    """
    if out and len(tops) > 1:
        raise ConfigError("--out", out, f"is one file for {len(tops)} folders; pack them one by one")
    for top in tops:
        folders, _ = find_runs([top])
        if not folders:
            raise ValueError(f"{top}: no run folder here (a run folder holds a status.json)")
        target = out or top / PACKED
        left_out = pack(folders, top, target, keep)
        for line in left_out:
            print(f"blockshock-report: {line}; this run is left out", file=sys.stderr)
        count = counted(len(folders) - len(left_out), "run")
        print(f"packed {count} into {shown(target)} ({target.stat().st_size} bytes)")


def unpack_each(paths: Sequence[Path], out: Path | None) -> None:
    """The run folders of each packed experiment, beside it or below `out`. Raises Unreadable, ValueError, OSError."""
    for path in paths:
        _, packs = find_runs([path])
        if not packs:
            raise ValueError(f"{path}: no {PACKED} here")
        for packed in packs:
            folders = unpack(packed, out or packed.parent)
            print(f"unpacked {counted(len(folders), 'run')} into {shown(out or packed.parent)}")


def draw_some(paths: Sequence[Path], names: Sequence[str], out: Path) -> None:
    """The figures `names` as <out>/<name>.png and nothing else. Raises ConfigError, FileNotFoundError, ValueError."""
    specs = [spec for spec in FIGURES if spec.name in names]
    for name in names:
        if not name.startswith(BATCHES):
            one_of("--figures", name, [spec.name for spec in FIGURES])
    data = read_report_data(paths)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary, "figures")
        folder.mkdir()
        problems: list[str] = []
        drawn: list[DrawnFigure] = draw(data, folder, problems, specs)
        if any(name.startswith(BATCHES) for name in names):
            drawn += draw_batches(data.runs, Path(temporary), problems)
        missing = sorted(set(names) - {figure.name for figure in drawn})
        if missing:
            why = f" ({'; '.join(problems)})" if problems else ""
            raise ValueError(f"{', '.join(map(str, paths))}: nothing to draw for {', '.join(missing)}{why}")
        out.mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copyfile(folder / f"{name}.png", out / f"{name}.png")
            print(f"drawn: {shown(out / name)}.png")
