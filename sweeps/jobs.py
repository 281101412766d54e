"""What ran, and on what: one row a run folder, how the runs ended, and the machines behind them.

from sweeps.jobs import counts, jobs
counts(jobs(load_runs([...])))          # {"ok": 126, "unsupported": 54}
"""

from __future__ import annotations

import pandas as pd

ORDER = ("ok", "running", "failed", "oom", "timeout", "unsupported")
BROKEN = ("failed", "oom", "timeout")


def jobs(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a run folder: `folder`, `label`, `status`, `reason`, `started`, `ended`, `name` (experiment)."""
    one = runs.drop_duplicates("folder").reset_index(drop=True)
    named = one["config.experiment.name"] if "config.experiment.name" in one else pd.Series("", index=one.index)
    labels = [_label(row) for _, row in one.iterrows()]
    kept = one[["folder", "status", "reason", "started", "ended"]]
    return kept.assign(label=labels, name=named.fillna("").astype(str))


def counts(found: pd.DataFrame) -> dict[str, int]:
    """Runs by status, in the order a reader wants them."""
    by = found["status"].value_counts()
    return {status: int(by[status]) for status in (*ORDER, *sorted(set(by.index) - set(ORDER))) if status in by}


def reasons(found: pd.DataFrame, status: str) -> list[tuple[str, int]]:
    """Why runs have this status, and how many for each reason, the most frequent first."""
    return [
        (str(reason), int(n)) for reason, n in found.loc[found["status"] == status, "reason"].value_counts().items()
    ]


def when(found: pd.DataFrame) -> str:
    """From the first start to the last end, in UTC, to the minute."""
    times = sorted(
        str(value)[:16].replace("T", " ") for value in [*found["started"].dropna(), *found["ended"].dropna()]
    )
    if not times:
        return ""
    first, last = times[0], times[-1]
    return f"{first} UTC" if first == last else f"{first} – {last[11:] if last[:10] == first[:10] else last} UTC"


def machines(runs: pd.DataFrame) -> dict[str, str]:
    """Versions and devices from the runs' env.json; several values are all named."""
    found = {name: _values(runs, f"env.{column}") for name, column in FACTS.items()}
    gpus = [
        f"{len(value)} × {value[0]['name']}" for value in runs.get("env.gpus", []) if isinstance(value, list) and value
    ]
    found = {"GPU": sorted(set(gpus)), **found}
    return {name: ", ".join(values) for name, values in found.items() if values}


FACTS = {
    "CPU": "cpu.name",
    "PyTorch": "torch",
    "CUDA": "cuda",
    "driver": "driver",
    "NCCL": "nccl",
    "cuSPARSELt": "cusparselt",
    "Triton": "packages.triton",
    "Python": "python",
    "Block-Shock": "blockshock",
    "commit": "git_commit",
}


def _values(runs: pd.DataFrame, column: str) -> list[str]:
    if column not in runs:
        return []
    values = runs[column].dropna().unique()
    return sorted({str(int(v)) if isinstance(v, float) and v.is_integer() else str(v) for v in values})


def _label(row: pd.Series) -> str:
    """`phase1_forward block_shock complement_1100_0011 N=4096 B=64 bf16 P=2`, from the configuration."""
    keys = {"phase.name": "", "method.name": "", "mask.name": "", "model.N": "N=", "model.K": "K=", "model.B": "B="}
    keys |= {"model.dtype": "", "hardware.world_size": "P="}
    parts = []
    for key, prefix in keys.items():
        value = row.get(f"config.{key}")
        if value is None or value != value or (key == "model.K" and value == row.get("config.model.N")):
            continue  # missing (NaN is not itself), or K = N
        parts.append(f"{prefix}{int(value) if isinstance(value, float) else value}")
    return " ".join(parts)
