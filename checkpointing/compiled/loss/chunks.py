"""A loss region rewritten so that it is computed in chunks of rows, one after the other.

    write_chunks(graph, region, chunks=8)       # in place; what it made before is erased

Each chunk: logits of its rows → their losses → gradient of the logits → gradient of these rows' hidden states, and a
part of the gradients of weight and bias, which are summed in float32 (a part that was rounded to 16 bits before it is
added would be further from the truth than one matmul over all rows). There are two ways:

- `_in_forward`: all of it in the forward, as Liger and `linear_cross_entropy` do: three matmuls, and gradients that
  wait for the backward, which scales them by the tangent. It needs a region that is linear in one scalar tangent.
- `_in_backward`: the forward computes losses, and the backward the logits again, chunk by chunk: four matmuls, nothing
  large is saved, and the tangent may be any. In float16 it is the only way: a gradient that a tangent was to scale up
  first, as loss scaling does, would vanish without it.

16-bit matmuls need a vocabulary that is a multiple of `ALIGNED` for the fast kernels: the weight is padded once, and so
is the gradient of each chunk. The padding of the logits is cut off before anything reads them, so it counts nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

from checkpointing.compiled.kernels import tensors
from checkpointing.compiled.loss.linear_in_tangent import linear_tangent
from checkpointing.compiled.loss.loss_region import End, LossRegion
from checkpointing.compiled.loss.new_nodes import NewNodes
from checkpointing.compiled.loss.place import Place
from checkpointing.compiled.loss.row_rules import COLUMNS, arguments, packet, value_of
from checkpointing.compiled.partition import IN_FORWARD

aten = torch.ops.aten

ALIGNED = 8  # elements of 16 bits: 16 bytes, as the tensor cores' loads want them
_OWN_CHECKPOINT = 2**30  # of which the nodes are that run again; above those of the user's checkpoints


def write_chunks(graph: fx.Graph, region: LossRegion, chunks: int) -> int:
    """Rewrite the region, and return the number of chunks: no more than it has rows."""
    rows = region.rules.rows
    size = -(-rows // min(chunks, rows))
    writer = _Writer(graph, region, [(start, min(start + size, rows)) for start in range(0, rows, size)])
    tangent = linear_tangent(graph, region)
    if tangent is not None and region.logits.meta["val"].dtype != torch.float16:
        _in_forward(writer, tangent)
    else:
        _in_backward(writer)
    writer.erase()
    return len(writer.bounds)


def _in_forward(writer: _Writer, tangent: fx.Node) -> None:
    region = writer.region
    place = Place(region.start, region.backward, in_backward=False, tangent=tangent)
    for chunk in range(len(writer.bounds)):
        writer.compute(place, region.kept, chunk)
        writer.end(place, region.ends, chunk)
    writer.finish(place, region.exits, region.ends)
    for node in [*region.exits, *(end.node for end in region.ends)]:
        if node in region.backward:
            writer.scale(node, tangent)


def _in_backward(writer: _Writer) -> None:
    region = writer.region
    first = [node for node in region.kept if node not in region.backward]
    then = [node for node in region.kept if node in region.backward]
    ends = {late: [end for end in region.ends if (end.node in region.backward) == late] for late in (False, True)}
    exits = {late: [node for node in region.exits if (node in region.backward) == late] for late in (False, True)}
    forward = Place(region.start, region.backward, in_backward=False)
    for chunk in range(len(writer.bounds)):
        writer.compute(forward, first, chunk)
        for node in forward.added():
            writer.run_again(node, chunk)
        writer.end(forward, ends[False], chunk)
    writer.finish(forward, exits[False], ends[False])
    backward = Place(region.backward_start, region.backward, in_backward=True)
    for chunk in range(len(writer.bounds)):
        writer.compute(backward, then, chunk)
        writer.end(backward, ends[True], chunk)
    writer.finish(backward, exits[True], ends[True])


class _Writer:
    """`bounds` are the first row of each chunk and the one after its last."""

    def __init__(self, graph: fx.Graph, region: LossRegion, bounds: Sequence[tuple[int, int]]) -> None:
        self.graph, self.region, self.rules, self.bounds = graph, region, region.rules, bounds
        self.made: dict[tuple[fx.Node, int, int], fx.Node] = {}  # (node, its layout, chunk) → its rows
        self.parts: dict[fx.Node, list[fx.Node]] = {}  # end → the rows of each chunk, or the sum so far
        self.results: dict[fx.Node, fx.Node] = {}
        self.padding: dict[tuple[fx.Node, int], fx.Node] = {}
        self.vocabulary = region.logits.meta["val"].shape[1]
        self.aligned = ALIGNED if region.logits.meta["val"].element_size() == 2 else 1
        self.kept = frozenset(region.kept)
        self.replaced = self.kept | {end.node for end in region.ends}

    def compute(self, place: Place, nodes: Sequence[fx.Node], chunk: int) -> None:
        """The rows of kept nodes."""
        for node in nodes:
            layout = self.region.layouts[node]
            make = self._logits if node is self.region.logits else self._by_rule
            self.made[node, layout, chunk] = make(place, node, layout, chunk)

    def _logits(self, place: Place, node: fx.Node, _: int, chunk: int) -> fx.Node:
        new = place.new(node, chunk)
        given = [self._rows(place, self.region.hidden, 1, chunk), self._aligned(place, self.region.weight, 1)]
        if node.target is aten.addmm.default:
            given.insert(0, self._aligned(place, arguments(node)[0], 0))
        return new.slice(new.add(node.target, *given), 1, 0, self.vocabulary)

    def _by_rule(self, place: Place, node: fx.Node, layout: int, chunk: int) -> fx.Node:
        start, stop = self.bounds[chunk]
        call = self.rules.call(
            node, layout, stop - start, lambda source, own: self._operand(place, node, layout, source, own, chunk)
        )
        if isinstance(call, fx.Node):
            return call
        target, args, kwargs = call
        return place.new(node, chunk).add(target, *args, **kwargs)

    def _operand(
        self, place: Place, node: fx.Node, layout: int, source: fx.Node, own: int | None, chunk: int
    ) -> fx.Node:
        """An operand of `node` for one chunk: the rows that it has by its layout `own`, or the whole of it."""
        if own is not None:
            return self._rows(place, source, own, chunk)
        spread = self.rules.spread(node, source, layout)
        whole = place.whole(source)
        if spread == "whole":
            return whole
        value, out = value_of(source), value_of(node)
        assert value is not None
        assert out is not None
        rest = value.shape[value.dim() - (out.dim() - layout) :]
        new = place.new(node, chunk)
        if spread == "one":
            return new.view(whole, (1, *rest))
        expanded = new.add(aten.expand.default, whole, [*out.shape[:layout], *rest])
        flat = new.add(aten.reshape.default, expanded, [self.rules.rows, *rest])
        return new.slice(flat, 0, *self.bounds[chunk])

    def _rows(self, place: Place, node: fx.Node, layout: int, chunk: int) -> fx.Node:
        """The rows of a kept node, or of one that is given."""
        key = (node, layout, chunk)
        if key not in self.made:
            self.made[key] = (
                self._by_rule(place, node, layout, chunk)
                if self._is_in_chunks(node, layout)
                else self._cut(place, node, layout, chunk)
            )
        return self.made[key]

    def _is_in_chunks(self, node: fx.Node, layout: int) -> bool:
        """Whether a value that is given is as wide as the logits, or made from one, so that it is computed in chunks
        too: labels as rows of the vocabulary."""
        operands = self.rules.operands(node, layout) if layout != COLUMNS else None
        if operands is None:
            return False
        wide = 2 * self.rules.width(node) > self.vocabulary
        return wide or any(self._is_in_chunks(arguments(node)[i], own) for i, own in operands.items())

    def _cut(self, place: Place, node: fx.Node, layout: int, chunk: int) -> fx.Node:
        value = value_of(node)
        assert value is not None
        new = place.new(node, chunk)
        if layout == COLUMNS:
            return new.slice(place.whole(node), 1, *self.bounds[chunk])
        flat = new.view(place.whole(node), (self.rules.rows, *value.shape[layout:]))
        return new.slice(flat, 0, *self.bounds[chunk])

    def _aligned(self, place: Place, node: fx.Node, dim: int) -> fx.Node:
        """A given value with its dimension of the vocabulary padded with zeros."""
        return self._padded(place, place.whole(node), dim)

    def _padded(self, place: Place, node: fx.Node, dim: int) -> fx.Node:
        """A transposed matrix is padded before it is transposed: so that both ways of reading it share one copy."""
        missing = -node.meta["val"].shape[dim] % self.aligned
        if not missing:
            return node
        if (node, dim) not in self.padding:
            new = place.new(node)
            source = arguments(node)[0] if packet(node) is aten.t or _swaps(node) else None
            if isinstance(source, fx.Node):
                padded = new.add(aten.permute.default, self._padded(place, source, 1 - dim), [1, 0])
            else:
                after = node.meta["val"].dim() - 1 - dim  # dimensions; two numbers for each, the last first
                padded = new.add(aten.constant_pad_nd.default, node, [0, 0] * after + [0, missing])
            self.padding[node, dim] = padded
        return self.padding[node, dim]

    def end(self, place: Place, ends: Sequence[End], chunk: int) -> None:
        """What the ends make of one chunk: rows, or a part of a sum."""
        for end in ends:
            new = place.new(end.node, chunk)
            parts = self.parts.setdefault(end.node, [])
            if end.by_row:
                gradient = self._padded(place, self._rows(place, arguments(end.node)[0], 1, chunk), 1)
                parts.append(new.add(aten.mm.default, gradient, self._aligned(place, arguments(end.node)[1], 0)))
                continue
            part = (self._product if end.node.target is aten.mm.default else self._sum)(place, new, end, chunk)
            self.parts[end.node] = [self._sum_so_far(new, parts[0], part) if parts else part]

    def _sum_so_far(self, new: NewNodes, total: fx.Node, part: fx.Node) -> fx.Node:
        """Written to memory after each chunk: inductor would otherwise put off the additions, keep the parts of all
        chunks until the end, and add them in one kernel. It writes what it is asked to read by strides."""
        total = new.add(aten.add.Tensor, total, part)
        value = total.meta["val"]
        return new.add(aten.as_strided.default, total, list(value.shape), list(value.stride()))

    def _product(self, place: Place, new: NewNodes, end: End, chunk: int) -> fx.Node:
        """The part of a weight's gradient, [V, H] or [H, V] with V padded, in float32 or better."""
        left, right = (self._rows(place, a, end.cut[i], chunk) for i, a in enumerate(arguments(end.node)))
        if arguments(end.node)[0] in self.kept:
            left = self._padded(place, left, 0)
        else:
            right = self._padded(place, right, 1)
        exact = _exact(left.meta["val"].dtype)
        if left.meta["val"].dtype == exact:
            return new.add(aten.mm.default, left, right)
        if left.meta["val"].device.type == "cpu":  # has no matmul that returns another type than it reads
            return new.add(aten.mm.default, new.cast(left, exact), new.cast(right, exact))
        return new.add(aten.mm.dtype, left, right, exact)

    def _sum(self, place: Place, new: NewNodes, end: End, chunk: int) -> fx.Node:
        source, layout = arguments(end.node)[0], end.cut[0]
        assert isinstance(source, fx.Node)
        count = source.meta["val"].dim()
        dims = arguments(end.node)[1] if len(arguments(end.node)) > 1 else None
        along = sorted({d % count for d in dims} if dims else range(count))
        moved = [0, *(d - layout + 1 for d in along if d >= layout)]
        exact = _exact(end.node.meta["val"].dtype)
        return new.add(aten.sum.dim_IntList, self._rows(place, source, layout, chunk), moved, dtype=exact)

    def finish(self, place: Place, exits: Sequence[fx.Node], ends: Sequence[End]) -> None:
        """The whole results in the place of what was there before."""
        for node in exits:
            layout = self.region.layouts[node]
            self._replace(place, node, [self.made[node, layout, i] for i in range(len(self.bounds))])
        for end in ends:
            if end.by_row:
                self._replace(place, end.node, self.parts[end.node])
                continue
            new = place.new(end.node)
            [total] = self.parts[end.node]
            if end.node.target is aten.mm.default:
                total = new.slice(total, 0, 0, end.node.meta["val"].shape[0])
                total = new.slice(total, 1, 0, end.node.meta["val"].shape[1])
            total = new.view(total, end.node.meta["val"].shape)
            self._keep(end.node, new.cast(total, end.node.meta["val"].dtype))

    def _replace(self, place: Place, node: fx.Node, rows: list[fx.Node]) -> None:
        new = place.new(node)
        whole = new.add(aten.cat.default, rows) if len(rows) > 1 else rows[0]
        self._keep(node, new.view(whole, node.meta["val"].shape))

    def _keep(self, node: fx.Node, result: fx.Node) -> None:
        self.results[node] = result
        node.replace_all_uses_with(result, delete_user_cb=lambda user: user not in self.replaced)

    def scale(self, node: fx.Node, tangent: fx.Node) -> None:
        """A gradient that was computed in the forward: saved, and multiplied by the tangent in the backward."""
        result = self.results[node]
        result.meta["recompute"] = CheckpointPolicy.MUST_SAVE
        result.meta[IN_FORWARD] = True
        new = NewNodes(self.region.backward_start, like=node)
        product = new.add(aten.mul.Tensor, result, tangent)
        scaled = new.cast(product, node.meta["val"].dtype)
        result.replace_all_uses_with(scaled, delete_user_cb=lambda user: user is not product)

    def run_again(self, node: fx.Node, chunk: int) -> None:
        """What is as wide as the logits is not saved for the backward."""
        start, stop = self.bounds[chunk]
        if 2 * sum(t.numel() for t in tensors(node)) > (stop - start) * self.vocabulary:
            node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
            node.meta["ac_graph_id"] = _OWN_CHECKPOINT

    def erase(self) -> None:
        for node in reversed([node for node in self.graph.nodes if node in self.replaced]):
            self.graph.erase_node(node)


def _swaps(node: fx.Node) -> bool:
    return packet(node) is aten.permute and list(arguments(node)[1]) == [1, 0]


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
