"""What it would cost to make an activation again in the backward instead of keeping it.

    cost = recompute_cost(analysis, activation.storage, kept, run_time_s=profile.run_time_s)
    cost.seconds, cost.memory_bytes, cost.ranks

Every node that has to run again is counted once. The walk back from the activation stops at what is there in
the backward: parameters, buffers, the batch, and the activations that are kept. An in-place operator belongs
to the storage that it changes, so making the storage again runs it again.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from profiler.costs.memory import MeasuredMemory, default_rounding, rounded
from profiler.costs.storage import Storage, StorageAnalysis
from profiler.graph.regions import Region


@dataclass(frozen=True)
class RecomputeCost:
    """`ranks` of the nodes to run again, in order; their time; and the most memory that running them takes.

    `memory_bytes` counts the activation itself, the other results while they live, and workspaces.
    """

    ranks: list[int]
    seconds: float
    memory_bytes: int


def recompute_cost(
    analysis: StorageAnalysis,
    target: Storage,
    kept: Collection[int],
    run_time_s: Sequence[float] | np.ndarray,
    measured: MeasuredMemory | None = None,
) -> RecomputeCost:
    """The cost of making `target` again when the storages with indices in `kept` are kept."""
    ranks = _nodes_to_run(analysis, target, set(kept) - {target.index})
    return RecomputeCost(
        ranks=ranks,
        seconds=float(sum(run_time_s[rank] for rank in ranks)),
        memory_bytes=_peak(analysis, target, ranks, measured or MeasuredMemory()),
    )


def _nodes_to_run(analysis: StorageAnalysis, target: Storage, kept: set[int]) -> list[int]:
    pending = [rank for rank in target.writers if _in_forward(analysis, rank)]
    needed: set[int] = set()
    while pending:
        rank = pending.pop()
        if rank in needed:
            continue
        needed.add(rank)
        for argument in analysis.nodes[rank].all_input_nodes:
            held = [analysis.storages[index] for index in analysis.held_by(argument)]
            gone = [storage for storage in held if not storage.owned_by_user and storage.index not in kept]
            if held and not gone:
                continue  # it is there, or is a view of what is there
            if argument.op not in ("placeholder", "get_attr"):
                pending.append(analysis.rank_of[argument])
            for storage in gone:
                pending += [writer for writer in storage.writers if writer < rank]
    return sorted(needed)


def _in_forward(analysis: StorageAnalysis, rank: int) -> bool:
    """The backward may write into an activation in place: that is no part of making it."""
    return analysis.nodes[rank].meta["region"] in (Region.FORWARD, Region.LOSS)


def _peak(analysis: StorageAnalysis, target: Storage, ranks: list[int], measured: MeasuredMemory) -> int:
    rounding = default_rounding(analysis.device)
    sizes = {
        index: rounded(analysis.storages[index].bytes, rounding) + measured.excess.get(index, 0)
        for rank in ranks
        for index in analysis.created[rank]
        if analysis.storages[index].device == analysis.device
    }
    last_use: dict[int, int] = {}
    for rank in ranks:
        used = [index for node in analysis.nodes[rank].all_input_nodes for index in analysis.held_by(node)]
        last_use.update(dict.fromkeys([*used, *analysis.held[rank]], rank))
    live = peak = 0
    for rank in ranks:
        live += sum(sizes.get(index, 0) for index in analysis.created[rank])
        peak = max(peak, live + measured.workspace.get(rank, 0))
        live -= sum(size for i, size in sizes.items() if last_use[i] == rank and i != target.index)
    return peak
