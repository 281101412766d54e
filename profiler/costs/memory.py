"""Live bytes at every node of a traced step, and what the peak consists of.

    curve = simulate(analyse(step))                       # a forecast: workspaces count as zero
    curve = simulate(analyse(step), measured=...)         # with what a profile measured
    curve.peak_bytes, curve.peak_node, curve.breakdown()

During a node, memory holds the storages that are alive (its own outputs among them), rounded up to the
allocator's granularity, and the node's workspace. The caching allocator of CUDA hands out multiples of 512
bytes, and may hand out a larger block than was asked for; a profile measures how much larger. A CPU's bytes
are counted as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from profiler.costs.storage import StorageAnalysis
from profiler.graph.lift import NodeType

if TYPE_CHECKING:
    import pandas as pd

CUDA_ROUNDING = 512  # bytes: kMinBlockSize of the caching allocator

CATEGORY = {
    NodeType.PARAM: "parameters",
    NodeType.BUFFER: "buffers",
    NodeType.INPUT: "inputs",
    NodeType.GRAD: "gradients",
    NodeType.OPT_STATE: "optimizer_state",
    NodeType.ACT: "activations",
    NodeType.OTHER: "temporaries",
}
CATEGORIES = [*CATEGORY.values(), "workspace"]


@dataclass(frozen=True)
class MeasuredMemory:
    """What a profile adds to the graph; all in bytes."""

    workspace: Mapping[int, int] = field(default_factory=dict)  # rank → peak during the node − before − outputs
    excess: Mapping[int, int] = field(default_factory=dict)  # storage → what the allocator gave beyond the rounding
    resident: int = 0  # memory of libraries and of other tensors of the process, there throughout


@dataclass(frozen=True)
class MemoryCurve:
    """Simulated memory against rank. `table` has one row a node and a column of bytes for each category.

    In `table`, `live_bytes` is the sum of the storages that are alive, and `total_bytes` adds the workspace:
    the operator's own, plus what the allocator gave beyond what was asked for, plus what libraries hold.
    """

    table: pd.DataFrame  # rank, node_name, region, module, the categories, live_bytes, total_bytes
    device: torch.device
    rounding: int

    @property
    def peak_rank(self) -> int:
        return int(self.table["total_bytes"].to_numpy().argmax())

    @property
    def peak_bytes(self) -> int:
        return int(self.table["total_bytes"].iloc[self.peak_rank])

    @property
    def peak_node(self) -> str:
        return str(self.table["node_name"].iloc[self.peak_rank])

    @property
    def peak_region(self) -> str:
        return str(self.table["region"].iloc[self.peak_rank])

    def breakdown(self) -> dict[str, int]:
        """Category → bytes at the peak. They add up to `peak_bytes` exactly."""
        row = self.table.iloc[self.peak_rank]
        return {category: int(row[category]) for category in CATEGORIES}


def default_rounding(device: torch.device) -> int:
    """Bytes to which the device's allocator rounds: 512 on CUDA, none elsewhere."""
    return CUDA_ROUNDING if device.type == "cuda" else 1


def rounded(size: int, rounding: int) -> int:
    """`size` bytes as the allocator counts them."""
    return -(-size // rounding) * rounding


def simulate(
    analysis: StorageAnalysis, measured: MeasuredMemory | None = None, rounding: int | None = None
) -> MemoryCurve:
    """Memory on the step's device, rank by rank.

    `rounding` is in bytes and by default the device's; 512 on a graph traced on the CPU is a forecast for
    CUDA.
    """
    import pandas as pd

    measured = measured or MeasuredMemory()
    rounding = rounding or default_rounding(analysis.device)
    count = len(analysis.nodes)
    changes = {category: np.zeros(count + 1, dtype=np.int64) for category in CATEGORIES}
    for storage in analysis.storages:
        if storage.device != analysis.device:
            continue
        start = 0 if storage.owned_by_user else storage.created
        excess = measured.excess.get(storage.index, 0)  # less than nothing: the real tensor is smaller
        for category, size in (
            (CATEGORY[storage.node_type], rounded(storage.bytes, rounding) + min(0, excess)),
            ("workspace", max(0, excess)),
        ):
            changes[category][start] += size
            changes[category][storage.last + 1] -= size
    columns = {category: np.cumsum(change[:-1]) for category, change in changes.items()}
    live = sum(columns[category] for category in CATEGORY.values())
    columns["workspace"] = columns["workspace"] + measured.resident
    for rank, size in measured.workspace.items():
        columns["workspace"][rank] += size
    table = pd.DataFrame(
        {
            "rank": np.arange(count),
            "node_name": [node.name for node in analysis.nodes],
            "region": [str(node.meta["region"].value) for node in analysis.nodes],
            "module": [node.meta["module"] for node in analysis.nodes],
            **columns,
            "live_bytes": live,
            "total_bytes": live + columns["workspace"],
        }
    )
    return MemoryCurve(table, analysis.device, rounding)
