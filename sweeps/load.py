"""Run folders to a table.

from sweeps import load_runs
runs = load_runs(["outputs/sweeps/first_picture"])
runs[["method", "N", "timings_ms.forward.p50_ms", "status"]]
"""

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

    Columns: the record's fields, `config.*` and `env.*`, flattened with dots (`timings_ms.forward.p50_ms`), `status`,
    `reason`, `started`, `ended`, `config_hash` and `folder`. A run found through two of the paths counts once. Works
    while runs are going on. Raises FileNotFoundError for a missing path.
    """
    folders = {folder.resolve(): folder for path in paths for folder in run_folders(Path(path))}
    return pd.json_normalize([row for folder in folders.values() for row in _rows(folder)])


def run_folders(path: Path) -> list[Path]:
    """The folders at or below `path` that hold a status.json, in order."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such folder of runs")
    return sorted(found.parent for found in path.rglob("status.json"))


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    status = json.loads((folder / "status.json").read_text())
    config, env = folder / "config.yaml", folder / "env.json"
    common = {
        "folder": str(folder),
        "status": status["status"],
        "reason": status["reason"],
        "started": status["started"],
        "ended": status["ended"],
        "config_hash": status["config_hash"],
        "config": yaml.load(config.read_text(), _YAML) if config.exists() else {},
        "env": json.loads(env.read_text()) if env.exists() else {},
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


_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, where PyYAML was built with libyaml
