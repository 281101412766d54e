"""What ran, and on what: one row a run folder, how the runs ended, and the machines behind them.

from sweeps.report.records.runs import counts, jobs
counts(jobs(load_runs([...])))          # {"ok": 126, "unsupported": 54}
"""

from __future__ import annotations

import pandas as pd

ORDER = ("ok", "running", "unreadable", "failed", "oom", "timeout", "unsupported")
BROKEN = ("unreadable", "failed", "oom", "timeout")


def jobs(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a run folder: `folder`, `label`, `status`, `reason`, `started`, `ended`, `name` (experiment)."""
    one = runs.drop_duplicates("folder").reset_index(drop=True)
    named = one["config.experiment.name"] if "config.experiment.name" in one else pd.Series("", index=one.index)
    kept = one[["folder", "status", "reason", "started", "ended"]]
    return kept.assign(label=_labels(one), name=named.fillna("").astype(str))


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
    gpus: dict[str, int] = {}
    for value in runs.drop_duplicates("folder").get("env.gpus", []):
        if isinstance(value, list) and value:  # a job sees those that it may use
            gpus[value[0]["name"]] = max(len(value), gpus.get(value[0]["name"], 0))
    found = {"GPU": [f"{count} × {name}" for name, count in sorted(gpus.items())], **found}
    return {name: ", ".join(values) for name, values in found.items() if values}


def environments(runs: pd.DataFrame) -> list[dict[str, str]]:
    """The facts of each machine and set of versions that differs, and its `jobs`, the one with most of them first."""
    one = runs.drop_duplicates("folder")
    facts = pd.DataFrame(index=one.index)
    for name, column in {"host": "host", **FACTS, "platform": "platform"}.items():
        facts[name] = _as_text(one, f"env.{column}")
    gpus = [_gpus(value) for value in one["env.gpus"]] if "env.gpus" in one else [("", 0)] * len(one)
    facts.insert(1, "GPU", [name for name, _ in gpus])
    facts = facts.assign(_count=[count for _, count in gpus])[(facts != "").any(axis=1)]
    found = []
    for values, rows in facts.groupby([name for name in facts if name != "_count"], sort=False):
        named = {str(key): str(value) for key, value in zip(facts.columns, values, strict=False) if value != ""}
        if "GPU" in named:
            named["GPU"] = f"{rows['_count'].max()} × {named['GPU']}"  # a job sees those that it may use
        found.append((len(rows), named))
    return [{**named, "jobs": str(count)} for count, named in sorted(found, key=lambda pair: -pair[0])]


def _gpus(found: object) -> tuple[str, int]:
    """`NVIDIA H200, 140 GiB`, and how many a job saw."""
    if not isinstance(found, list) or not found:
        return "", 0
    return "; ".join(sorted({f"{gpu['name']}, {gpu['memory_bytes'] / 2**30:.0f} GiB" for gpu in found})), len(found)


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
    return sorted(set(_as_text(runs, column)) - {""})


def _as_text(runs: pd.DataFrame, column: str) -> pd.Series:
    """As text: whole numbers without a point, nothing as an empty string."""
    if column not in runs:
        return pd.Series("", index=runs.index)
    return runs[column].map(
        lambda v: "" if v is None or v != v else str(int(v)) if isinstance(v, float) and v.is_integer() else str(v)
    )


def _labels(one: pd.DataFrame) -> list[str]:
    """`phase1_forward block_shock complement_1100_0011 N=4096 B=64 bf16 P=2` of each run, from its configuration."""
    keys = {
        "phase.name": "",
        "phase.part": "",
        "method.name": "",
        "mask.name": "",
        "workload.name": "",
        "model.N": "N=",
        "model.K": "K=",
    }
    keys |= {
        "model.B": "B=",
        "workload.batch_size": "B=",
        "model.dtype": "",
        "hardware.world_size": "P=",
        "experiment.repeat": "repeat=",
    }
    columns = [key for key in keys if f"config.{key}" in one]
    labels = []
    for values in one[[f"config.{key}" for key in columns]].itertuples(index=False, name=None):
        given = {key: value for key, value in zip(columns, values, strict=True) if value is not None and value == value}
        if not given.get("experiment.repeat"):
            given.pop("experiment.repeat", None)
        if given.get("model.K") == given.get("model.N"):
            given.pop("model.K", None)
        labels.append(
            " ".join(f"{keys[key]}{int(v) if isinstance(v, float) else v}" for key, v in given.items() if v != "")
        )
    return labels
