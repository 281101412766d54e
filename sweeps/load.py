"""Run folders to a table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
import yaml


def load_runs(paths: Iterable[str | PathLike[str]]) -> pd.DataFrame:
    """One row a record, from every run folder at or below `paths`; a run without records has one row of its status.

    Columns: the record's fields and `config.*`, flattened with dots (`timings_ms.forward.p50_ms`), `status`,
    `reason`, `config_hash` and `folder`. Works while runs are going on. Raises FileNotFoundError for a missing path.
    """
    rows = [row for path in paths for folder in run_folders(Path(path)) for row in _rows(folder)]
    return pd.json_normalize(rows)


def run_folders(path: Path) -> list[Path]:
    """The folders at or below `path` that hold a status.json, in order."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such folder of runs")
    return sorted(found.parent for found in path.rglob("status.json"))


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    status = json.loads((folder / "status.json").read_text())
    config_file = folder / "config.yaml"
    common = {
        "folder": str(folder),
        "status": status["status"],
        "reason": status["reason"],
        "config_hash": status["config_hash"],
        "config": yaml.safe_load(config_file.read_text()) if config_file.exists() else {},
    }
    records = list(_records(folder / "metrics.jsonl"))
    yield from ({**record, **common} for record in records)
    if not records:
        yield common


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a metrics.jsonl; one that is still being written has no newline yet."""
    if path.exists():
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)
