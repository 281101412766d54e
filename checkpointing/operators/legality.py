"""Which forward values may be recomputed in the backward, and why the others may not.

Running a node a second time gives the same value if it reads what it read the first time. That is so when none of
the memory that it reads is written to later, and when running it changes nothing but its own results. Random
operators and batch norm are made so by `purity`.
"""

from collections.abc import Collection

from checkpointing.operators.purity import draws_from_own_generator, updates_running_statistics
from profiler import Region, Storage, StorageAnalysis
from profiler.costs.storage import written
from profiler.graph.fake_tensors import communicates

_FORWARD = (Region.FORWARD, Region.LOSS)


def why_not_recomputable(analysis: StorageAnalysis, unsteady: Collection[str] = ()) -> dict[int, str]:
    """Forward value (storage) → the reason why it has to be kept. Values that are not in it may be recomputed.

    `unsteady` are operators that were seen to give two results for the same inputs.
    """
    regions = [node.meta["region"] for node in analysis.nodes]
    backward_start = max(rank for rank, region in enumerate(regions) if region in _FORWARD) + 1
    reasons: dict[int, str] = {}
    active = {activation.storage.index for activation in analysis.activations}
    obstacles = {
        rank: _obstacle(analysis, rank, unsteady) for rank in range(backward_start) if regions[rank] in _FORWARD
    }
    for storage in analysis.storages:
        if storage.owned_by_user or regions[storage.created] not in _FORWARD:
            continue
        reason = _outside(analysis, storage, regions, storage.index in active)
        for rank in storage.writers:
            reason = reason or obstacles.get(rank)
        if reason:
            reasons[storage.index] = reason
    spreads = True
    while spreads:
        spreads = _spread(analysis, regions, reasons, active)
    return reasons


def _spread(analysis: StorageAnalysis, regions: list[Region], reasons: dict[int, str], active: set[int]) -> bool:
    """Whether a value was found that is made from a temporary which is gone and cannot be recomputed."""
    found = False
    for storage in analysis.storages:
        if storage.index in reasons or storage.owned_by_user or regions[storage.created] not in _FORWARD:
            continue
        read = {
            i for r in storage.writers for node in analysis.nodes[r].all_input_nodes for i in analysis.held_by(node)
        }
        lost = [index for index in read if index in reasons and index not in active]
        if lost:
            reasons[storage.index] = f"is made from {analysis.storages[lost[0]].name}, which is gone by then"
            found = True
    return found


def _outside(analysis: StorageAnalysis, storage: Storage, regions: list[Region], active: bool) -> str | None:
    """A use that redirecting the backward's readers to a copy would not serve."""
    if storage.device != analysis.device:
        return f"is on {storage.device}"
    for rank in storage.writers:
        if regions[rank] not in _FORWARD:
            return f"is changed in the {regions[rank].value} by {analysis.nodes[rank].name}"
    for rank in storage.holders:
        for user in analysis.nodes[rank].users:
            region = user.meta["region"]
            if region in (Region.OPTIMIZER, Region.OUTPUT):
                return f"is used in the {region.value} by {user.name}"
            if region is Region.BACKWARD and not active:
                return f"is viewed in the backward by {user.name}"
    return None


def _obstacle(analysis: StorageAnalysis, rank: int, unsteady: Collection[str]) -> str | None:
    """Why the node at `rank` may not run a second time, or None."""
    node = analysis.nodes[rank]
    if node.op != "call_function":
        return f"{node.name} is an input"
    if draws_from_own_generator(node):
        return f"{node.name} draws from a generator of its own"
    if communicates(node):
        return f"{node.name} waits for other ranks"
    if str(node.target) in unsteady:
        return f"{node.name} gave two results for the same inputs"
    statistics = written(node) if updates_running_statistics(node) else []  # the second run is given none
    changed = {index for argument in written(node) if not statistics for index in analysis.held_by(argument)}
    for index in changed:
        if analysis.storages[index].owned_by_user:
            return f"{node.name} changes {analysis.storages[index].name} in place"
    if len(changed) + len(analysis.created[rank]) > 1 and changed:
        return f"{node.name} changes one value and makes another"
    own = changed | set(analysis.created[rank])
    for argument in node.all_input_nodes:
        for index in analysis.held_by(argument) if argument not in statistics else ():
            storage = analysis.storages[index]
            if index in own:
                continue
            for writer in storage.writers:
                if writer > rank and analysis.nodes[writer].meta["region"] is not Region.OPTIMIZER:
                    return f"{node.name} reads {storage.name}, which {analysis.nodes[writer].name} changes later"
    return None
