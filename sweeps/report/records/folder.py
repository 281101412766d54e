"""One run, read from its folder: status, configuration, environment and records, or what can't be read of them.

run = read_folder(Path("outputs/runs/phase1_forward/block_shock/20261128-101500-ab12"))
run.status["status"], run.records[0]["timings_ms"]["forward"]["p50_ms"]
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from blockshock.flatten import flatten
from blockshock.run_folder.files import Unreadable, parse_object, read_text
from blockshock.run_folder.folder import UNREADABLE, RunFolder
from sweeps.report.records.schema import checked_environment, first_problem


@dataclass
class Run:
    """Values nest as in the files. Where `status` is `unreadable` its reason names the file, and no records are here:
    a part of a run would be taken for all of it."""

    folder: str
    status: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    env: dict[str, Any] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)

    def rows(self) -> list[dict[str, Any]]:
        """One for each record, its fields flattened with dots and joined by `config.*`, `env.*` and the status; one of
        these alone where there is no record."""
        common = {"folder": self.folder, "status": self.status["status"], "reason": self.status["reason"]}
        common |= {name: self.status.get(name) for name in ("started", "ended", "config_hash", "host")}
        common |= flatten(self.config, "config.") | flatten(self.env, "env.")
        rows = []
        for number, record in enumerate(self.records, start=1):
            flat = flatten(record)
            wrong = first_problem(record, flat)
            if wrong:
                return [common | {"status": UNREADABLE, "reason": f"metrics.jsonl: line {number}: {wrong}"}]
            rows.append(flat | common)
        return rows or [common]


def read_folder(folder: Path) -> Run:
    """Raises FileNotFoundError where the folder has no status.json: a job that starts again has just cleared it."""
    run = Run(str(folder), RunFolder(folder).checked_status())
    try:
        run.config = _configuration(_text(folder / "config.yaml"))
        run.env = _environment(_text(folder / "env.json"))
        records = _records(folder / "metrics.jsonl", whole=run.status["status"] == "ok")
    except Unreadable as error:
        if run.status["status"] != UNREADABLE:
            run.status = run.status | {"status": UNREADABLE, "reason": str(error)}
        return run
    run.records = [] if run.status["status"] == UNREADABLE else records
    return run


def _records(path: Path, whole: bool) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl. Where a run goes on the last one may not be `whole`: it has no newline yet."""
    records = []
    for number, line in enumerate(_text(path).splitlines(keepends=True), start=1):
        name = f"{path.name}: line {number}"
        if line.endswith("\n"):
            records.append(parse_object(name, line))
        elif whole:
            raise Unreadable(f"{name}: not whole")
    return records


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except FileNotFoundError:
        return ""


def _configuration(text: str) -> dict[str, Any]:
    """A config.yaml. Jobs of a sweep share most sections, so each different section is parsed once."""
    sections = re.split(r"(?m)^(?=[^\s#-])", text)
    return {key: value for section in sections for key, value in _section(section).items()}


@lru_cache(maxsize=4096)
def _section(text: str) -> dict[str, Any]:
    try:
        section = yaml.load(text, _YAML)
    except yaml.YAMLError as error:
        raise Unreadable(f"config.yaml: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(section, dict | None):
        raise Unreadable("config.yaml: not keys and values")
    return section or {}


@lru_cache(maxsize=256)
def _environment(text: str) -> dict[str, Any]:
    return checked_environment(parse_object("env.json", text)) if text else {}


_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, where PyYAML was built with libyaml
