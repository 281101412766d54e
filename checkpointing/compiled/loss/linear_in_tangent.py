"""Whether what a loss region makes for the backward is its tangent times something that the forward can compute.

tangent = linear_tangent(graph, region)         # the scalar that everything can be scaled by at the end, or None
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from checkpointing.compiled.loss.loss_region import LossRegion
from checkpointing.compiled.loss.row_rules import arguments, packet

aten, prims = torch.ops.aten, torch.ops.prims

_OF_ONE = frozenset(  # linear in their first operand, which is all they read of a tangent
    (
        aten.neg, aten.view, aten._unsafe_view, aten.reshape, aten.unsqueeze, aten.squeeze, aten.expand, aten.permute,
        aten.t, aten.transpose, aten.clone, aten._to_copy, aten.detach, aten.alias, aten.slice, aten.sum, aten.mean,
        aten.gather, aten.div, prims.convert_element_type, aten.nll_loss_backward, aten._softmax_backward_data,
        aten._log_softmax_backward_data, aten.tanh_backward, aten.sigmoid_backward, aten.threshold_backward,
    )
)  # fmt: skip
_OF_EITHER = frozenset((aten.mul, aten.mm))
_OF_BOTH = frozenset((aten.add, aten.sub))
_SAME = frozenset((aten.expand, aten.view, aten.unsqueeze, aten._to_copy, prims.convert_element_type))


def linear_tangent(graph: fx.Graph, region: LossRegion) -> fx.Node | None:
    """The one scalar tangent in which the region's backward is linear; None if it is not, or there are several."""
    needed = set(region.kept) | {end.node for end in region.ends}
    for node in reversed(list(graph.nodes)):
        if node in needed:
            needed.update(node.all_input_nodes)
    tangents = [node for node in needed & region.backward if node.op == "placeholder"]
    if len(tangents) != 1 or tangents[0].meta["val"].dim():
        return None
    linear = all(_is_linear(node, region.backward) for node in needed & region.backward if node.op == "call_function")
    return tangents[0] if linear else None


def _is_linear(node: fx.Node, backward: frozenset[fx.Node]) -> bool:
    """Of a node that reads something of a tangent: whether twice as much of it gives twice the result."""
    kind = packet(node)
    reads = [isinstance(a, fx.Node) and a in backward for a in arguments(node)]
    if any(a in backward for value in node.kwargs.values() if isinstance(a := value, fx.Node)):
        return False
    if kind in _OF_ONE:
        return reads[0] and sum(reads) == 1
    if kind in _OF_EITHER:
        return sum(reads) == 1
    if kind in _OF_BOTH:
        return all(reads[:2])
    if kind is aten.where:
        return not reads[0] and all(read or _is_zero(a) for read, a in zip(reads[1:], arguments(node)[1:], strict=True))
    if kind is aten.scatter_add:
        return reads[3] and not reads[2] and (reads[0] or _is_zero(arguments(node)[0]))
    if kind is aten.masked_fill:
        return reads[0] and not reads[1] and not reads[2] and _is_zero(arguments(node)[2])
    if kind is aten.constant_pad_nd:
        return len(arguments(node)) < 3 or arguments(node)[2] == 0
    return False


def _is_zero(value: Any) -> bool:
    while isinstance(value, fx.Node) and packet(value) in _SAME:
        value = value.args[0]
    if isinstance(value, fx.Node):
        value = {aten.full: value.args[1:2], aten.scalar_tensor: value.args[:1]}.get(packet(value), (None,))[0]
    return isinstance(value, int | float) and value == 0
