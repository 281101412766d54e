"""A place in a joint graph where the chunks of a loss go, and the values that are there for them.

place = Place(before=node, backward=below_tangents(graph), in_backward=False, tangent=tangent)
place.whole(mask)                       # a given value, copied here if it is computed later
place.new(node, chunk=3).add(...)       # a node that stands in the place of `node`
"""

from __future__ import annotations

import torch
from torch import fx

from checkpointing.compiled.loss.new_nodes import NewNodes


class Place:
    """Before the node `before`. With a `tangent`, the place is in the forward: what depends on it is computed for a
    tangent of 1."""

    def __init__(
        self, before: fx.Node, backward: frozenset[fx.Node], in_backward: bool, tangent: fx.Node | None = None
    ) -> None:
        self.before, self.backward, self.in_backward, self.tangent = before, backward, in_backward, tangent
        self._moved: dict[fx.Node, fx.Node] = {}
        self._position = {node: index for index, node in enumerate(before.graph.nodes)}

    def new(self, node: fx.Node, chunk: int | None = None) -> NewNodes:
        name = node.name if chunk is None else f"{node.name}_chunk_{chunk}"
        return NewNodes(self.before, node, name, self.in_backward)

    def whole(self, node: fx.Node) -> fx.Node:
        """A value that the region is given."""
        if node in self._moved:
            return self._moved[node]
        if node is self.tangent:
            value = node.meta["val"]
            one = self.new(node).add(
                torch.ops.aten.full.default, list(value.shape), 1, dtype=value.dtype, device=value.device
            )
            self._moved[node] = one
            return one
        is_early = self._position[node] < self._position[self.before]
        if node.op != "call_function" or (is_early and not (self.tangent is not None and node in self.backward)):
            return node
        sources = {source: self.whole(source) for source in node.all_input_nodes}
        with self.before.graph.inserting_before(self.before):
            copy = self.before.graph.node_copy(node, lambda source: sources[source])
        copy.meta = dict(node.meta)
        copy.meta["partitioner_tag"] = "is_backward" if self.in_backward else "is_forward"
        self._moved[node] = copy
        return copy
