"""Run folders to a table.

from sweeps import load_runs
runs = load_runs(["outputs/sweeps/first_picture"])
runs[["method", "N", "timings_ms.forward.p50_ms", "status"]]
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
import yaml


def load_runs(paths: Iterable[str | PathLike[str]]) -> pd.DataFrame:
    """One row a record, from every run folder at or below `paths`; a run without records has one row of its status.

    Columns: the record's fields, `config.*` and `env.*`, flattened with dots (`timings_ms.forward.p50_ms`), `status`,
    `reason`, `started`, `ended`, `config_hash`, `host` and `folder`. A run found through two of the paths counts once.
    Works while runs are going on. Raises FileNotFoundError for a missing path, ValueError for a file that is no record.
    """
    folders = {folder.resolve(): folder for path in paths for folder in run_folders(Path(path))}
    return pd.DataFrame([row for folder in folders.values() for row in _rows(folder)])


def run_folders(path: Path) -> list[Path]:
    """The folders at or below `path` that hold a status.json, in order."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such folder of runs")
    return sorted(found.parent for found in path.rglob("status.json"))


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    try:
        status = _json(folder / "status.json", (folder / "status.json").read_text())
    except FileNotFoundError:
        return  # a job that starts again has just cleared its folder
    config, env = _text(folder / "config.yaml"), _text(folder / "env.json")
    common = {
        "folder": str(folder),
        "status": status["status"],
        "reason": status["reason"],
        "started": status["started"],
        "ended": status["ended"],
        "config_hash": status["config_hash"],
        "host": status.get("host"),
        **{f"config.{key}": value for key, value in _configuration(config).items()},
        **(_environment(env) if env else {}),
    }
    records = [_flat(record) | common for record in _records(folder / "metrics.jsonl")]
    yield from records or [common]


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a metrics.jsonl; one that is still being written has no newline yet."""
    for line in _text(path).splitlines(keepends=True):
        if line.endswith("\n"):
            yield _json(path, line)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _json(path: Path, text: str) -> dict[str, Any]:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error}); move this run folder away to report on the others") from error


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _configuration(text: str) -> dict[str, Any]:
    """A config.yaml, flattened. Jobs of a sweep share most sections, so each different section is parsed once."""
    sections = re.split(r"(?m)^(?=[^\s#-])", text)
    return {key: value for section in sections for key, value in _section(section).items()}


@lru_cache(maxsize=4096)
def _section(text: str) -> dict[str, Any]:
    return _flat(yaml.load(text, _YAML) or {})


@lru_cache(maxsize=256)
def _environment(text: str) -> dict[str, Any]:
    return {f"env.{key}": value for key, value in _flat(json.loads(text)).items()}


_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, where PyYAML was built with libyaml
