"""A loss region rewritten so that it is computed in chunks of rows, one after the other.

    write_chunks(graph, region, chunks=8)       # in place; what it made before is erased

Each chunk: logits of its rows → their losses → gradient of the logits → gradient of these rows' hidden states, and a
part of the gradients of weight and bias, which are summed in float32 (a part that was rounded to 16 bits before it is
added would be further from the truth than one matmul over all rows). There are two ways:

- `_in_forward`: all of it in the forward, as Liger and `linear_cross_entropy` do: three matmuls, and gradients that
  wait for the backward, which scales them by the tangent. It needs a region that is linear in one scalar tangent.
- `_in_backward`: the forward computes losses, and the backward the logits again, chunk by chunk: four matmuls, nothing
  as wide as the logits is saved, and the tangent may be any. In float16 it is the only way: a gradient that a tangent
  was to scale up first, as loss scaling does, would vanish without it.

A chunk waits for all that the chunk before makes, and adds to the sums where they are (`ordered_matmuls`). The
vocabulary is padded once for all matmuls (`alignment`). The padding of the logits is cut off before anything reads
them, so it counts nowhere.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

from checkpointing.compiled.loss.alignment import Alignment
from checkpointing.compiled.loss.linear_in_tangent import linear_tangent
from checkpointing.compiled.loss.loss_region import End, LossRegion
from checkpointing.compiled.loss.new_nodes import NewNodes
from checkpointing.compiled.loss.ordered_matmuls import added, matmul_after
from checkpointing.compiled.loss.place import Place
from checkpointing.compiled.loss.row_kernel.by_kernel import write_by_kernel
from checkpointing.compiled.loss.row_kernel.row_form import RowForm
from checkpointing.compiled.loss.row_rules import COLUMNS, arguments, value_of
from checkpointing.compiled.partition import IN_FORWARD

aten = torch.ops.aten


def write_chunks(graph: fx.Graph, region: LossRegion, chunks: int, form: RowForm | None = None) -> int:
    """Rewrite the region, and return the number of chunks: no more than it has rows. With a `form`, by the kernel."""
    rows = region.rules.rows
    size = -(-rows // min(chunks, rows))
    writer = Writer(graph, region, [(start, min(start + size, rows)) for start in range(0, rows, size)])
    tangent = linear_tangent(graph, region)
    if tangent is not None and region.logits.meta["val"].dtype != torch.float16:
        _in_forward(writer, tangent, form)
    else:
        _in_backward(writer, form)
    writer.erase()
    return len(writer.bounds)


def _in_forward(writer: Writer, tangent: fx.Node, form: RowForm | None) -> None:
    region = writer.region
    place = Place(region.start, region.backward, in_backward=False, tangent=tangent)
    if form is not None:
        write_by_kernel(writer, place, form, region.exits, region.ends)
    else:
        writer.write(place, region.kept, region.exits, region.ends)
    for node in [*region.exits, *(end.node for end in region.ends)]:
        if node in region.backward:
            writer.scale(node, tangent)


def _in_backward(writer: Writer, form: RowForm | None) -> None:
    region = writer.region
    ends = {late: [end for end in region.ends if (end.node in region.backward) == late] for late in (False, True)}
    exits = {late: [node for node in region.exits if (node in region.backward) == late] for late in (False, True)}
    tangents = [node for node in writer.graph.find_nodes(op="placeholder") if node in region.backward]
    forward = Place(region.start, region.backward, in_backward=False)
    backward = Place(region.backward_start, region.backward, in_backward=True)
    if form is not None:
        write_by_kernel(writer, forward, form, exits[False], ends[False])
        write_by_kernel(writer, backward, form, exits[True], ends[True], tangents)
        return
    early = [node for node in region.kept if node not in region.backward]
    late = [node for node in region.kept if node in region.backward]
    again = writer.wide_sources([*late, *(end.node for end in ends[True])], early)
    read = {source for node in (*late, *again, *(end.node for end in ends[True])) for source in node.all_input_nodes}
    shared = [node for node in early if node in read - set(again) and node not in exits[False]]
    writer.write(forward, early, exits[False], ends[False], shared)
    writer.forget(again)
    nodes = [node for node in region.kept if node in region.backward or node in again]
    writer.write(backward, nodes, exits[True], ends[True], after=tangents)


class Writer:
    """`bounds` are the first row of each chunk and the one after its last."""

    def __init__(self, graph: fx.Graph, region: LossRegion, bounds: Sequence[tuple[int, int]]) -> None:
        self.graph, self.region, self.rules, self.bounds = graph, region, region.rules, bounds
        self.made: dict[tuple[fx.Node, int, int], fx.Node] = {}  # (node, its layout, chunk) → its rows
        self.parts: dict[fx.Node, list[fx.Node]] = {}  # end → the rows of each chunk, or the sum so far
        self.results: dict[fx.Node, fx.Node] = {}
        self.alignment = Alignment(region.logits)
        self.vocabulary = self.alignment.vocabulary
        self.kept = frozenset(region.kept)
        self.replaced = self.kept | {end.node for end in region.ends}

    def write(
        self,
        place: Place,
        nodes: Sequence[fx.Node],
        exits: Sequence[fx.Node],
        ends: Sequence[End],
        shared: Sequence[fx.Node] = (),
        after: Sequence[fx.Node] = (),
    ) -> None:
        """The rows of `nodes` chunk by chunk, the first chunk after the nodes `after`; then the whole results.

        `shared` are those of `nodes` that another place reads.
        """
        for chunk in range(len(self.bounds)):
            for node in nodes:
                layout = self.region.layouts[node]
                if node is self.region.logits:
                    logits = self.logits_of(place, chunk, after)
                    self.made[node, layout, chunk] = place.new(node, chunk).slice(logits, 1, 0, self.vocabulary)
                else:
                    self.made[node, layout, chunk] = self._by_rule(place, node, layout, chunk)
            self.write_ends(place, ends, chunk)
            leaving = [self.made[node, self.region.layouts[node], chunk] for node in (*exits, *shared)]
            after = list(dict.fromkeys([*leaving, *(self.parts[end.node][-1] for end in ends)]))
        for node in exits:
            layout = self.region.layouts[node]
            self._replace(place, node, [self.made[node, layout, i] for i in range(len(self.bounds))])
        self.finish_ends(place, ends)

    def wide_sources(self, nodes: Sequence[fx.Node], among: Sequence[fx.Node]) -> set[fx.Node]:
        """What of `among` is as wide as the logits, or a result of several in one, and `nodes` are computed from."""
        found: set[fx.Node] = set()
        pending = [source for node in nodes for source in node.all_input_nodes]
        while pending:
            node = pending.pop()
            several = not isinstance(node.meta.get("val"), torch.Tensor)
            if node in among and node not in found and (several or 2 * self.rules.width(node) > self.vocabulary):
                found.add(node)
                pending += node.all_input_nodes
        return found

    def forget(self, nodes: Collection[fx.Node]) -> None:
        """Compute anew, where they are needed next, the rows of `nodes` and of what is as wide as the logits."""
        wide = {n for n, *_ in self.made if n not in self.kept and 2 * self.rules.width(n) > self.vocabulary}
        self.made = {key: rows for key, rows in self.made.items() if key[0] not in nodes and key[0] not in wide}

    def logits_of(self, place: Place, chunk: int, after: Sequence[fx.Node]) -> fx.Node:
        """Of a chunk, with the vocabulary padded, once the nodes `after` have been computed."""
        node = self.region.logits
        new = place.new(node, chunk)
        hidden, weight = self._rows(place, self.region.hidden, 1, chunk), self._aligned(place, self.region.weight, 1)
        bias = self._aligned(place, arguments(node)[0], 0) if node.target is aten.addmm.default else None
        if after:
            return new.add(matmul_after, hidden, weight, bias, list(after))
        return new.add(node.target, *([] if bias is None else [bias]), hidden, weight)

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
        flat = new.view(new.contiguous(place.whole(node)), (self.rules.rows, *value.shape[layout:]))
        return new.slice(flat, 0, *self.bounds[chunk])

    def _aligned(self, place: Place, node: fx.Node, dim: int) -> fx.Node:
        """A given value with its dimension of the vocabulary padded with zeros."""
        return self.alignment.padded(place.new(node), place.whole(node), dim)

    def write_ends(self, place: Place, ends: Sequence[End], chunk: int) -> None:
        for end in sorted(ends, key=lambda end: end.node.target is not aten.mm.default):  # sums read what is padded
            self._end(place, end, chunk)

    def _end(self, place: Place, end: End, chunk: int) -> None:
        """What an end makes of one chunk: rows, or a part of a sum."""
        new = place.new(end.node, chunk)
        parts = self.parts.setdefault(end.node, [])
        if end.by_row:
            gradient = self.alignment.padded(new, self._rows(place, arguments(end.node)[0], 1, chunk), 1)
            parts.append(new.add(aten.mm.default, gradient, self._aligned(place, arguments(end.node)[1], 0)))
            return
        add = self._add_product if end.node.target is aten.mm.default else self._add_rows
        self.parts[end.node] = [add(place, new, end, chunk, parts[0] if parts else None)]

    def _add_product(self, place: Place, new: NewNodes, end: End, chunk: int, total: fx.Node | None) -> fx.Node:
        """The gradient of a weight so far, [V, H] or [H, V] with V padded, in float32 or better."""
        left, right = (self._rows(place, a, end.cut[i], chunk) for i, a in enumerate(arguments(end.node)))
        if arguments(end.node)[0] in self.kept:
            left = self.alignment.padded(new, left, 0)
        else:
            right = self.alignment.padded(new, right, 1)
        if total is not None:
            return added(new, total, left, right)
        exact = _exact(left.meta["val"].dtype)
        if left.meta["val"].dtype == exact:
            return new.add(aten.mm.default, left, right)
        if left.meta["val"].device.type == "cpu":  # has no matmul that returns another type than it reads
            return new.add(aten.mm.default, new.cast(left, exact), new.cast(right, exact))
        return new.add(aten.mm.dtype, left, right, exact)

    def _add_rows(self, place: Place, new: NewNodes, end: End, chunk: int, total: fx.Node | None) -> fx.Node:
        """The gradient of a bias so far, in float32 or better."""
        source, layout = arguments(end.node)[0], end.cut[0]
        assert isinstance(source, fx.Node)
        count = source.meta["val"].dim()
        dims = arguments(end.node)[1] if len(arguments(end.node)) > 1 else None
        along = sorted({d % count for d in dims} if dims else range(count))
        moved = [0, *(d - layout + 1 for d in along if d >= layout)]
        exact = _exact(end.node.meta["val"].dtype)
        rows = self.alignment.known(self._rows(place, source, layout, chunk))
        part = new.add(aten.sum.dim_IntList, rows, moved, dtype=exact)
        return part if total is None else new.add(aten.add.Tensor, total, part)

    def finish_ends(self, place: Place, ends: Sequence[End]) -> None:
        """The whole results in the place of what was there before."""
        for end in ends:
            if end.by_row:
                self._replace(place, end.node, self.parts[end.node])
                continue
            new = place.new(end.node)
            [total] = self.parts[end.node]
            if end.node.target is aten.mm.default:
                total = new.slice(total, 0, 0, end.node.meta["val"].shape[0])
                total = new.slice(total, 1, 0, end.node.meta["val"].shape[1])
            elif self.alignment.missing and total.meta["val"].shape[-1:] == (self.vocabulary + self.alignment.missing,):
                total = new.slice(total, total.meta["val"].dim() - 1, 0, self.vocabulary)
            total = new.view(total, end.node.meta["val"].shape)
            self.keep(end.node, new.cast(total, end.node.meta["val"].dtype))

    def _replace(self, place: Place, node: fx.Node, rows: list[fx.Node]) -> None:
        new = place.new(node)
        whole = new.add(aten.cat.default, rows) if len(rows) > 1 else rows[0]
        self.keep(node, new.view(whole, node.meta["val"].shape))

    def keep(self, node: fx.Node, result: fx.Node) -> None:
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

    def erase(self) -> None:
        for node in reversed([node for node in self.graph.nodes if node in self.replaced]):
            self.graph.erase_node(node)


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
