"""Run folders to a table.

from sweeps import load_runs
runs = load_runs(["outputs/sweeps/first_picture"])
runs[["method", "N", "timings_ms.forward.p50_ms", "status"]]
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from blockshock.run_folder.files import Unreadable, parse_object, read_text
from blockshock.run_folder.folder import UNREADABLE, RunFolder
from sweeps.report.records.schema import wrong_in


def load_runs(paths: Iterable[str | PathLike[str]]) -> pd.DataFrame:
    """One row a record, from every run folder at or below `paths`; a run without records has one row of its status.

    Columns: the record's fields, `config.*` and `env.*`, flattened with dots (`timings_ms.forward.p50_ms`), `status`,
    `reason`, `started`, `ended`, `config_hash`, `host` and `folder`. A run found through two of the paths counts once.
    Works while runs are going on. A run of which a file can't be read, or that is `ok` without records, has one row
    with the status `unreadable` and a reason that names the file. Raises FileNotFoundError for a missing path.
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
        status = RunFolder(folder).checked_status()
    except FileNotFoundError:
        return  # a job that starts again has just cleared its folder
    common = {"folder": str(folder), "status": status["status"], "reason": status["reason"]}
    common |= {name: status.get(name) for name in ("started", "ended", "config_hash", "host")}
    try:
        common |= {f"config.{key}": value for key, value in _configuration(_text(folder / "config.yaml")).items()}
        env = _text(folder / "env.json")
        common |= _environment(env) if env else {}
        found = list(_records(folder / "metrics.jsonl", whole=status["status"] == "ok"))
    except Unreadable as error:
        # Without what could be read: a part of a run would be taken for all of it.
        why = status["reason"] if status["status"] == UNREADABLE else str(error)
        yield common | {"status": UNREADABLE, "reason": why}
        return
    yield from [record | common for record in found if status["status"] != UNREADABLE] or [common]


def _records(path: Path, whole: bool) -> Iterator[dict[str, Any]]:
    """The lines of a metrics.jsonl. Where a run goes on the last one may not be `whole`: it has no newline yet."""
    for number, line in enumerate(_text(path).splitlines(keepends=True), start=1):
        name = f"{path.name}: line {number}"
        if line.endswith("\n"):
            record = _flat(parse_object(name, line))
            wrong = wrong_in(record)
            if wrong:
                raise Unreadable(f"{name}: {wrong}")
            yield record
        elif whole:
            raise Unreadable(f"{name}: not whole")


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except FileNotFoundError:
        return ""


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
    try:
        found = yaml.load(text, _YAML)
    except yaml.YAMLError as error:
        raise Unreadable(f"config.yaml: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(found, dict | None):
        raise Unreadable("config.yaml: not keys and values")
    return _flat(found or {})


@lru_cache(maxsize=256)
def _environment(text: str) -> dict[str, Any]:
    found = parse_object("env.json", text)
    gpus = found.get("gpus") or []
    if not (
        isinstance(gpus, list) and all(isinstance(gpu, dict) and {"name", "memory_bytes"} <= set(gpu) for gpu in gpus)
    ):
        raise Unreadable("env.json: gpus is no list of names and memory_bytes")
    return {f"env.{key}": value for key, value in _flat(found).items()}


_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, where PyYAML was built with libyaml
