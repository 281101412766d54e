"""Who owns which memory in a traced step, and for how long.

Memory is owned by storages, not by nodes: a view, an in-place result and an element of a tuple belong to the
storage that they alias. The fake tensors in `node.meta["val"]` share storages exactly as the real ones will.

    analysis = analyse(step)
    for activation in analysis.activations: ...

A node's value lives from its own rank (its index in the graph) to the rank of its last user; a storage lives
while a value that holds it does. Parameters, buffers, optimizer state and the batch belong to the user and
live throughout. Ranks are inclusive at both ends.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from profiler.graph.lift import NodeType
from profiler.graph.regions import Region
from profiler.graph.step import TracedStep

_FORWARD = (Region.FORWARD, Region.LOSS)

# Batch norms: operator → positions of the running mean, the running variance and the flag `training` (-1: always).
# Most schemas do not say that the first two are written.
BATCH_NORMS: dict[Any, tuple[int, int, int]] = {
    torch.ops.aten.native_batch_norm.default: (3, 4, 5),
    torch.ops.aten._native_batch_norm_legit.default: (3, 4, 5),
    torch.ops.aten._batch_norm_with_update.default: (3, 4, -1),
    torch.ops.aten.cudnn_batch_norm.default: (3, 4, 5),
    torch.ops.aten.miopen_batch_norm.default: (3, 4, 5),
}
# The halves of a batch norm over several ranks, which also update running statistics without saying so.
_STATISTICS: dict[Any, tuple[int, int, int]] = BATCH_NORMS | {
    torch.ops.aten.batch_norm_gather_stats.default: (3, 4, -1),
    torch.ops.aten.batch_norm_gather_stats_with_counts.default: (3, 4, -1),
    torch.ops.aten.batch_norm_update_stats.default: (1, 2, -1),
}


@dataclass
class Storage:
    """One piece of memory. Ranks are indices of nodes."""

    index: int
    name: str  # of the node whose value it is; for an element of a tuple, of the node that takes it out
    node_type: NodeType
    bytes: int
    device: torch.device
    created: int  # rank of the producer; of the placeholder
    last: int  # last rank at which it is alive
    owned_by_user: bool  # exists before and after the step
    holders: list[int] = field(default_factory=list)  # ranks of nodes whose values alias it
    writers: list[int] = field(default_factory=list)  # ranks of nodes that fill or change it, the producer first
    readers: list[int] = field(default_factory=list)  # ranks of nodes that use its contents; a view does not


@dataclass(frozen=True)
class Activation:
    """A storage made in the forward or the loss and used in the backward, with the ranks of its uses."""

    storage: Storage
    creation_rank: int
    last_fw_use_rank: int  # the creation's if the forward has no use of it
    first_bw_use_rank: int
    last_bw_use_rank: int

    @property
    def name(self) -> str:
        return self.storage.name


@dataclass
class StorageAnalysis:
    """Storages of a step, and for each rank the storages of the node's value."""

    nodes: list[fx.Node]
    storages: list[Storage]
    held: list[list[int]]  # rank → indices of the storages that the node's value aliases
    created: list[list[int]]  # rank → indices of the storages that the node makes
    activations: list[Activation]
    device: torch.device  # of the step
    rank_of: dict[fx.Node, int]
    gradients: dict[str, int]  # name of a parameter → bytes of its gradient

    def held_by(self, node: fx.Node) -> list[int]:
        """Indices of the storages that the node's value aliases."""
        return self.held[self.rank_of[node]]

    def node_type(self, rank: int) -> NodeType:
        """The type of a node's outputs: of several, that of the largest which is not OTHER."""
        held = [self.storages[index] for index in self.held[rank]]
        typed = [storage for storage in held if storage.node_type is not NodeType.OTHER]
        return max(typed, key=lambda storage: storage.bytes).node_type if typed else NodeType.OTHER

    def is_view(self, rank: int) -> bool:
        """Whether the node makes no memory and touches none: a view, an element of a tuple."""
        return _is_view(self.nodes[rank], self.created[rank])

    def bytes_by_name(self, kind: NodeType) -> dict[str, int]:
        """Name of each parameter, buffer, state, input or (GRAD) parameter with a gradient → bytes."""
        if kind is NodeType.GRAD:
            return self.gradients
        return {
            node.meta["source"]: _tensor_bytes(node.meta["val"])
            for node in self.nodes
            if node.op == "placeholder" and node.meta["node_type"] is kind
        }


def analyse(step: TracedStep) -> StorageAnalysis:
    """Find the storages of a traced step, their types and lifetimes, and the activations."""
    nodes = step.nodes
    rank_of = {node: rank for rank, node in enumerate(nodes)}
    last_use = [max([rank_of[user] for user in node.users], default=rank) for rank, node in enumerate(nodes)]
    end = len(nodes) - 1
    same_as, batch_bytes = _batch_storages(step)
    by_key: dict[int, Storage] = {}
    held: list[list[int]] = []
    created: list[list[int]] = [[] for _ in nodes]
    for rank, node in enumerate(nodes):
        indices: list[int] = []
        mine = node.op in ("placeholder", "get_attr")
        for tensor in tensors_of(node):
            key = tensor.untyped_storage()._cdata
            key = same_as.get(key, key)
            if key not in by_key:
                by_key[key] = Storage(
                    index=len(by_key),
                    name=node.name,
                    node_type=node.meta.get("node_type", NodeType.OTHER),
                    bytes=batch_bytes.get(key, tensor.untyped_storage().nbytes()),
                    device=tensor.device,
                    created=rank,
                    last=rank,
                    owned_by_user=mine,
                )
                created[rank].append(by_key[key].index)
            storage = by_key[key]
            if storage.index not in indices:
                indices.append(storage.index)
            storage.last = end if storage.owned_by_user else max(storage.last, last_use[rank])
        held.append(indices)
    storages = list(by_key.values())
    for rank, indices in enumerate(held):
        for index in indices:
            storages[index].holders.append(rank)
    _name_elements(nodes, storages, held)
    _find_uses(nodes, storages, held, created, rank_of)
    activations = _find_types(step, storages, held, rank_of)
    gradients = {name: _tensor_bytes(node.meta["val"]) for name, node in step.gradients.items()}
    return StorageAnalysis(nodes, storages, held, created, activations, step.device, rank_of, gradients)


def tensors_of(node: fx.Node) -> list[Tensor]:
    """The (fake) tensors in a node's value, however nested; none for an output or a number."""
    if node.op == "output":
        return []
    return [leaf for leaf in pytree.tree_leaves(node.meta.get("val")) if isinstance(leaf, Tensor)]


def _tensor_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _batch_storages(step: TracedStep) -> tuple[dict[int, int], dict[int, int]]:
    """Tensors of the batch that share a storage: fake storage → the one that stands for it, and its bytes."""
    placeholders = step.graph.find_nodes(op="placeholder")[len(step.lifted) :]
    first: dict[int, int] = {}
    same_as: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for node, (identity, size) in zip(placeholders, step.batch_storages, strict=True):
        key = node.meta["val"].untyped_storage()._cdata
        same_as[key] = first.setdefault(identity, key)
        sizes[same_as[key]] = size
    return same_as, sizes


def _is_view(node: fx.Node, created: list[int]) -> bool:
    if node.op != "call_function" or created:
        return False
    schema = getattr(node.target, "_schema", None)
    return schema is None or not schema.is_mutable


def written(node: fx.Node) -> list[fx.Node]:
    """The argument nodes whose memory the node changes: by its operator's schema, and a batch norm's statistics."""
    if node.target in _STATISTICS:
        mean, variance, training = _STATISTICS[node.target]
        if training >= 0 and not node.args[training]:
            return []
        return [statistic for statistic in (node.args[mean], node.args[variance]) if isinstance(statistic, fx.Node)]
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    changed: list[fx.Node] = []
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            changed += [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, fx.Node)]
    return changed


def _name_elements(nodes: list[fx.Node], storages: list[Storage], held: list[list[int]]) -> None:
    for storage in storages:
        if len(held[storage.created]) > 1:
            alone = (rank for rank in storage.holders if held[rank] == [storage.index])
            storage.name = nodes[next(alone, storage.created)].name


def _find_uses(
    nodes: list[fx.Node],
    storages: list[Storage],
    held: list[list[int]],
    created: list[list[int]],
    rank_of: dict[fx.Node, int],
) -> None:
    for rank, node in enumerate(nodes):
        for index in created[rank]:
            storages[index].writers.append(rank)
        for argument in written(node):
            _add(storages, held[rank_of[argument]], "writers", rank)
        if not _is_view(node, created[rank]):
            for argument in node.all_input_nodes:
                _add(storages, held[rank_of[argument]], "readers", rank)


def _add(storages: list[Storage], indices: Iterable[int], attribute: str, rank: int) -> None:
    for index in indices:
        ranks = getattr(storages[index], attribute)
        if rank not in ranks[-1:]:
            ranks.append(rank)


def _find_types(
    step: TracedStep, storages: list[Storage], held: list[list[int]], rank_of: dict[fx.Node, int]
) -> list[Activation]:
    """Set the types of what the step itself makes. Returns the activations in the order of their creation."""
    regions = [node.meta["region"] for node in step.nodes]
    for node in step.gradients.values():
        for index in held[rank_of[node]]:
            if not storages[index].owned_by_user:
                storages[index].node_type = NodeType.GRAD
    activations: list[Activation] = []
    for storage in storages:
        if storage.owned_by_user or regions[storage.created] not in _FORWARD:
            continue
        backward = [rank for rank in storage.readers if regions[rank] is Region.BACKWARD]
        if backward:
            if storage.node_type is not NodeType.GRAD:
                storage.node_type = NodeType.ACT
            forward = [rank for rank in storage.readers if regions[rank] in _FORWARD]
            last_forward = max(forward, default=storage.created)
            activations.append(Activation(storage, storage.created, last_forward, min(backward), max(backward)))
    return activations
