"""The two tables of a profile, their columns, and the files that hold them.

node_stats(analysis, profile)              # one row a node
activation_stats(analysis, profile)        # one row an activation
read_csv(folder, NODE_STATS)               # what save_csv wrote; names the file if it is not there
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from profiler.costs.memory import MemoryCurve
from profiler.costs.profile import Profile
from profiler.costs.recompute import recompute_cost
from profiler.costs.storage import StorageAnalysis, tensors_of
from profiler.errors import MissingStatsError
from profiler.flops import flops_of

if TYPE_CHECKING:
    import pandas as pd

NODE_STATS = "profiler_stats_node_stats.csv"
ACTIVATION_STATS = "profiler_stats_activation_stats.csv"
MEMORY_CURVE = "profiler_stats_memory_curve.csv"

COLUMNS = {
    NODE_STATS: [
        "rank",
        "node_name",
        "target",
        "node_type",
        "region",
        "module",
        "median_run_time_s",
        "median_peak_mem_bytes",
        "median_active_mem_bytes",
        "output_bytes",
        "workspace_bytes",
        "flops",
        "device",
    ],
    ACTIVATION_STATS: [
        "activation_name",
        "node_type",
        "creation_rank",
        "last_fw_use_rank",
        "first_bw_use_rank",
        "last_bw_use_rank",
        "median_mem_size_bytes",
        "inactive_time_s",
        "recomp_time_s",
        "recomp_memory_bytes",
    ],
    MEMORY_CURVE: [
        "rank",
        "node_name",
        "region",
        "module",
        "parameters",
        "buffers",
        "inputs",
        "gradients",
        "optimizer_state",
        "activations",
        "temporaries",
        "workspace",
        "live_bytes",
        "total_bytes",
    ],
}


def node_stats(analysis: StorageAnalysis, profile: Profile) -> pd.DataFrame:
    """One row a node, in order of rank, with the columns of `NODE_STATS`.

    `median_active_mem_bytes` is the memory in use when the node starts. `output_bytes` are the bytes of the
    storages that the node makes (a placeholder: that it brings), so that a view has 0. `workspace_bytes` is
    peak − active − outputs as the allocator rounds them. `flops` counts matrix products, convolutions and
    attention.
    """
    import pandas as pd

    nodes, devices = analysis.nodes, [_device(analysis, rank) for rank in range(len(analysis.nodes))]
    return pd.DataFrame(
        {
            "rank": np.arange(len(nodes)),
            "node_name": [node.name for node in nodes],
            "target": [_target(str(node.target)) for node in nodes],
            "node_type": [analysis.node_type(rank).value for rank in range(len(nodes))],
            "region": [node.meta["region"].value for node in nodes],
            "module": [node.meta["module"] for node in nodes],
            "median_run_time_s": profile.run_time_s,
            "median_peak_mem_bytes": profile.peak_bytes,
            "median_active_mem_bytes": profile.before_bytes,
            "output_bytes": [sum(analysis.storages[index].bytes for index in created) for created in analysis.created],
            "workspace_bytes": profile.workspace_bytes,
            "flops": [flops_of(node) for node in nodes],
            "device": devices,
        }
    )[COLUMNS[NODE_STATS]]


def activation_stats(analysis: StorageAnalysis, profile: Profile) -> pd.DataFrame:
    """One row an activation, in order of creation, with the columns of `ACTIVATION_STATS`.

    `inactive_time_s` is the run time of the nodes after its last use in the forward and before its first in
    the backward. The recompute columns say what making it again costs when every other activation is kept.
    """
    import pandas as pd

    elapsed = np.concatenate([[0.0], np.cumsum(profile.run_time_s)])  # before each rank
    kept = [activation.storage.index for activation in analysis.activations]
    rows = []
    for activation in analysis.activations:
        cost = recompute_cost(analysis, activation.storage, kept, profile.run_time_s, profile.memory)
        rows.append(
            [
                activation.name,
                activation.storage.node_type.value,
                activation.creation_rank,
                activation.last_fw_use_rank,
                activation.first_bw_use_rank,
                activation.last_bw_use_rank,
                activation.storage.bytes,
                elapsed[activation.first_bw_use_rank] - elapsed[activation.last_fw_use_rank + 1],
                cost.seconds,
                cost.memory_bytes,
            ]
        )
    return pd.DataFrame(rows, columns=COLUMNS[ACTIVATION_STATS])


def _target(target: str) -> str:
    return "getitem" if "built-in function getitem" in target else target


def _device(analysis: StorageAnalysis, rank: int) -> str:
    """Where the node's value is; a node without a tensor runs on the CPU, or on its inputs' device."""
    node = analysis.nodes[rank]
    for candidate in (node, *node.all_input_nodes):
        for tensor in tensors_of(candidate):
            return str(tensor.device)
    return "cpu"


def save_csv(folder: Path, nodes: pd.DataFrame, activations: pd.DataFrame, curve: MemoryCurve) -> Sequence[Path]:
    """Write the three tables into `folder`, which is made if it is not there. Returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, table in ((NODE_STATS, nodes), (ACTIVATION_STATS, activations), (MEMORY_CURVE, curve.table)):
        paths.append(folder / name)
        table.to_csv(paths[-1], index=False)
    return paths


def read_csv(folder: Path, name: str) -> pd.DataFrame:
    """One of the three tables of a folder. Raises MissingStatsError, which names the file."""
    import pandas as pd

    path = folder / name
    if not path.is_file():
        raise MissingStatsError(f"{path} is not there: profile that run again")
    table = pd.read_csv(path)
    problems = schema_problems(name, table)
    if problems:
        raise MissingStatsError(f"{path} is incomplete ({problems[0]}): profile that run again")
    return table


def schema_problems(name: str, table: pd.DataFrame) -> list[str]:
    """What is wrong with a table of kind `name`: missing or unknown columns, empty cells."""
    expected, found = COLUMNS[name], list(table.columns)
    problems = [f"column {column} is missing" for column in expected if column not in found]
    problems += [f"column {column} is unknown" for column in found if column not in expected]
    return problems + [f"column {column} has empty cells" for column in found if table[column].isna().any()]
