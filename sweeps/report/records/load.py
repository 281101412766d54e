"""Run folders and packed experiments to a table.

from sweeps import load_runs
runs = load_runs(["outputs/sweeps/first_picture", "outputs/reference/bench_h200"])
runs[["method", "N", "timings_ms.forward.p50_ms", "status"]]
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd

from blockshock.run_folder.files import Unreadable
from blockshock.run_folder.folder import UNREADABLE
from sweeps.report.records.folder import Run, read_folder
from sweeps.report.records.packed import PACKED, read_packed


def load_runs(paths: Iterable[str | PathLike[str]]) -> pd.DataFrame:
    """One row a record, from every run folder and packed experiment at or below `paths`, links followed; a run without
    records has one row of its status.

    Columns: the record's fields, `config.*` and `env.*`, flattened with dots (`timings_ms.forward.p50_ms`), `status`,
    `reason`, `started`, `ended`, `config_hash`, `host` and `folder` (of a packed run, `<file>/<its folder>`). A run
    found through two of the paths, or as a folder and packed, counts once. Works while runs are going on. A run of
    which a file can't be read, or that is `ok` without records, has one row with the status `unreadable` and a reason
    that names the file; so has a packed experiment that can't be read. Raises FileNotFoundError for a missing path.
    """
    folders, packs = find_runs(paths)
    rows: list[dict[str, Any]] = []
    for folder in folders:
        try:
            rows += read_folder(folder).rows()
        except FileNotFoundError:
            continue  # a job that starts again has just cleared its folder
    for pack in packs:
        seen = {_identity(row) for row in rows}
        rows += [row for row in _packed_rows(pack) if _identity(row) not in seen or row["status"] == UNREADABLE]
    return pd.DataFrame(rows)


def find_runs(paths: Iterable[str | PathLike[str]]) -> tuple[list[Path], list[Path]]:
    """The folders at or below `paths` that hold a status.json, and the packed experiments, each in order and once."""
    folders: dict[str, Path] = {}
    packs: dict[str, Path] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such folder of runs")
        if path.is_file():
            packs.setdefault(os.path.realpath(path), path)
        for folder, names in sorted(_walk(path)):
            if "status.json" in names:
                folders.setdefault(os.path.realpath(folder), folder)
            if PACKED in names:
                packs.setdefault(os.path.realpath(folder / PACKED), folder / PACKED)
    return list(folders.values()), list(packs.values())


def _walk(path: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder at or below `path` and the names of its files; a link to a folder above itself is no circle."""
    entered = set()
    for folder, below, names in os.walk(path, followlinks=True):
        here = os.path.realpath(folder)
        if here in entered:
            below.clear()
            continue
        entered.add(here)
        yield Path(folder), names


def _packed_rows(pack: Path) -> list[dict[str, Any]]:
    try:
        packed = [
            Run(f"{pack}/{run.folder}", run.status, run.config, run.env, run.records) for run in read_packed(pack)
        ]
    except Unreadable as error:
        return Run(str(pack.parent), {"status": UNREADABLE, "reason": str(error)}).rows()
    return [row for run in packed for row in run.rows()]


def _identity(row: dict[str, Any]) -> tuple[Any, ...]:
    """The same for a run's folder and its packed copy, and for no two runs."""
    return row["config_hash"], row["started"], row["host"]
