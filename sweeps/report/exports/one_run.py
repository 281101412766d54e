"""A run as programs that compare runs see it: what was set, what was measured at each step, and what it ran on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

# Numbers of a record that say which measurement it is, or when, and measure nothing.
NOT_MEASURED = ("schema", "timestamp_unix", "seed", "N", "K", "B", "world_size")
STEP = "drift.step"  # of records that follow one another within a run


@dataclass(frozen=True)
class Measurement:
    step: int
    unix_s: float
    numbers: dict[str, float]  # by the field's name: timings_ms.forward.p50_ms


@dataclass(frozen=True)
class OneRun:
    name: str  # of its folder, unique among the runs
    experiment: str
    status: str
    set: dict[str, str | int | float | bool]  # the configuration, by key
    ran_on: dict[str, str]
    measurements: list[Measurement]


def each_run(runs: pd.DataFrame) -> Iterator[OneRun]:
    """From `load_runs`' rows, in their order; runs without records too."""
    names = _names(list(dict.fromkeys(runs["folder"])))
    for folder, rows in runs.groupby("folder", sort=False):
        records = rows.to_dict("records")
        first = {str(key): value for key, value in records[0].items() if not _nothing(value)}
        config = {key.removeprefix("config."): value for key, value in first.items() if key.startswith("config.")}
        env = {key.removeprefix("env."): str(value) for key, value in first.items() if key.startswith("env.")}
        kept = ("reason", "started", "ended", "config_hash")
        yield OneRun(
            name=names[str(folder)],
            experiment=str(config.get("experiment.name") or "block-shock"),
            status=str(first["status"]),
            set={key: value if isinstance(value, str | int | float) else str(value) for key, value in config.items()},
            ran_on=env | {key: str(first[key]) for key in kept if key in first},
            measurements=[
                _measurement(place, {str(key): value for key, value in record.items()})
                for place, record in enumerate(records)
                if not _nothing(record.get("phase"))
            ],
        )


def _names(folders: list[str]) -> dict[str, str]:
    """The last part of each path, with as many before it as tell them apart."""
    for depth in range(1, max((len(Path(folder).parts) for folder in folders), default=1) + 1):
        names = {folder: "_".join(part.strip("/") for part in Path(folder).parts[-depth:]) for folder in folders}
        if len(set(names.values())) == len(folders):
            break
    return names


def _measurement(place: int, record: dict[str, Any]) -> Measurement:
    left_out = ("config.", "env.")
    numbers = {
        key: float(value)
        for key, value in record.items()
        if key not in NOT_MEASURED
        and not key.startswith(left_out)
        and isinstance(value, int | float)
        and math.isfinite(value)
    }
    step = int(numbers.get(STEP, place))
    return Measurement(step, float(record["timestamp_unix"]), numbers)


def _nothing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
