"""Chunks of a loss that the kernel computes: each a matmul, one call of the kernel, and the matmuls of its gradient.

    write_by_kernel(writer, place, form, exits, ends)       # in the place of `Writer.write`

The factors of the gradient are computed for all rows before the first chunk, and what leaves the loss from the
statistics of all rows after the last. The gradient takes the logits' place, whose padding it fills with zeros: the
matmuls read it as it is.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import fx
from torch._higher_order_ops.auto_functionalize import auto_functionalized

from checkpointing.compiled.loss.loss_region import End
from checkpointing.compiled.loss.new_nodes import NewNodes
from checkpointing.compiled.loss.place import Place
from checkpointing.compiled.loss.row_kernel.forms import AT_LABEL, LSE, SUM, WEIGHTED_SUM, Given, Row
from checkpointing.compiled.loss.row_kernel.operators import row_gradient_, row_statistics
from checkpointing.compiled.loss.row_kernel.row_form import RowForm
from checkpointing.compiled.loss.row_rules import COLUMNS

if TYPE_CHECKING:
    from checkpointing.compiled.loss.chunks import Writer

aten = torch.ops.aten

_STATISTICS = {LSE: 0, AT_LABEL: 1, SUM: 2, WEIGHTED_SUM: 2}
_CALLS = {"add": aten.add.Tensor, "mul": aten.mul.Tensor, "div": aten.div.Tensor}


def write_by_kernel(
    writer: Writer,
    place: Place,
    form: RowForm,
    exits: Sequence[fx.Node],
    ends: Sequence[End],
    after: Sequence[fx.Node] = (),
) -> None:
    """Without ends, the logits are read once and stay what they are."""
    if not exits and not ends:
        return
    logits = writer.region.logits
    given = _Emitted(place, logits, form)
    labels, classes = given.labels, given.classes
    factors = [given.rows(factor) for factor in (form.of_softmax, form.of_label, form.of_square, form.of_all) if ends]
    chunks: list[fx.Node] = []
    for chunk, (start, stop) in enumerate(writer.bounds):
        new = place.new(logits, chunk)
        made = writer.logits_of(place, chunk, after)
        inputs = {"vocabulary": writer.vocabulary, "labels": new.slice(labels, 0, start, stop)}
        options = {"classes": classes, "sums": form.sums}
        if ends:
            some = [None if factor is None else new.slice(factor, 0, start, stop) for factor in factors]
            named = dict(zip(("of_softmax", "of_label", "of_square", "of_all"), some, strict=True))
            both = new.add(auto_functionalized, row_gradient_, logits=made, **inputs, **named, **options)
            chunks.append(new.add(operator.getitem, both, 0))
            _hand_over(writer, new, form, new.add(operator.getitem, both, 1), chunk)
        else:
            chunks.append(new.add(row_statistics, made, *inputs.values(), **options))
        writer.write_ends(place, ends, chunk)
        after = [chunks[-1], *(writer.parts[end.node][-1] for end in ends)]
    writer.finish_ends(place, ends)
    new = place.new(logits)
    stats = new.add(aten.cat.default, chunks, 1) if len(chunks) > 1 else chunks[0]
    for node in exits:
        new = place.new(node)
        row = given.polynomial(form.exits[node], stats)
        writer.keep(node, new.cast(new.view(row, node.meta["val"].shape), node.meta["val"].dtype))


def _hand_over(writer: Writer, new: NewNodes, form: RowForm, gradient: fx.Node, chunk: int) -> None:
    """The gradient of a chunk, padded as it is, for the matmuls that read it."""
    rows = writer.alignment.cut(new, gradient)
    for node in form.gradients:
        layout = writer.region.layouts[node]
        by_column = layout == COLUMNS
        writer.made[node, layout, chunk] = new.add(aten.permute.default, rows, [1, 0]) if by_column else rows


class _Emitted:
    """Given values as nodes at a place: numbers, [] or [rows], in float32."""

    def __init__(self, place: Place, logits: fx.Node, form: RowForm) -> None:
        self.place, self.new = place, place.new(logits)
        self.count: int = logits.meta["val"].shape[0]
        self.device = logits.meta["val"].device
        self.labels = self._flat(form.labels)
        self.classes = None if form.classes is None else self._flat(form.classes)
        self._made: dict[Given, fx.Node | float] = {}

    def rows(self, given: Given | None) -> fx.Node | None:
        """[rows] without gaps; None for None."""
        if given is None:
            return None
        made = self._emit(given)
        if isinstance(made, fx.Node) and made.meta["val"].dim():
            return self.new.contiguous(made)
        number = 1 if isinstance(made, fx.Node) else made
        whole = self.new.add(aten.full.default, [self.count], number, dtype=torch.float32, device=self.device)
        return self.new.add(aten.mul.Tensor, whole, made) if isinstance(made, fx.Node) else whole

    def polynomial(self, row: Row, stats: fx.Node) -> fx.Node:
        """[rows], of `stats` [3, rows]."""
        total: fx.Node | float = 0.0
        for monomial, given in row.terms:
            product: fx.Node | float = 1.0
            for name in monomial:
                product = self._call("mul", self.new.add(aten.select.int, stats, 0, _STATISTICS[name]), product)
            total = self._call("add", self._times(product, given), total)
        if isinstance(total, fx.Node) and total.meta["val"].dim():
            return total
        zeros = self.new.add(aten.full.default, [self.count], 0.0, dtype=torch.float32, device=self.device)
        return self.new.add(aten.add.Tensor, zeros, total)

    def _times(self, product: fx.Node | float, given: Given) -> fx.Node | float:
        """Their product, or zero where a condition of `given` leaves the product out: it may be infinite there."""
        kind, *operands = given if isinstance(given, tuple) else (None,)
        if product == 1:
            return self._emit(given)
        if kind == "where":
            condition, *branches = operands
            chosen = [0.0 if branch == 0 else self._times(product, branch) for branch in branches]
            return self.new.add(aten.where.self, self._flat(condition), *map(self._tensor, chosen))
        if kind in ("mul", "div") and _chooses(operands[0]):
            return self._call(kind, self._times(product, operands[0]), self._emit(operands[1]))
        if kind == "mul" and _chooses(operands[1]):
            return self._call(kind, self._times(product, operands[1]), self._emit(operands[0]))
        return self._call("mul", product, self._emit(given))

    def _emit(self, given: Given) -> fx.Node | float:
        if given not in self._made:
            self._made[given] = self._computed(given)
        return self._made[given]

    def _computed(self, given: Given) -> fx.Node | float:
        if not isinstance(given, tuple):
            return given
        kind, *operands = given
        if kind == "node":
            return self._number(operands[0])
        if kind == "at":
            classes, labels = self._flat(operands[0]), self._flat(operands[1])
            return self.new.cast(self.new.add(aten.index.Tensor, classes, [labels]), torch.float32)
        if kind == "sum":
            return self.new.add(aten.sum.default, self._flat(operands[0]), dtype=torch.float32)
        if kind == "where":
            condition, *branches = operands
            tensors = [self._tensor(self._emit(branch)) for branch in branches]
            return self.new.add(aten.where.self, self._flat(condition), *tensors)
        return self._call(kind, *(self._emit(operand) for operand in operands))

    def _call(self, kind: str, left: fx.Node | float, right: fx.Node | float) -> fx.Node | float:
        if kind == "add" and (left == 0 or right == 0):
            return right if left == 0 else left
        if kind == "mul" and right == 1:
            return left
        if not isinstance(left, fx.Node):
            if not isinstance(right, fx.Node):
                return {"add": left + right, "mul": left * right}[kind] if kind != "div" else left / right
            if kind != "div":
                left, right = right, left
            else:
                left = self._tensor(left)
        return self.new.add(_CALLS[kind], left, right)

    def _tensor(self, number: fx.Node | float) -> fx.Node:
        if isinstance(number, fx.Node):
            return number
        return self.new.add(aten.full.default, [], number, dtype=torch.float32, device=self.device)

    def _number(self, node: fx.Node) -> fx.Node:
        return self.new.cast(self._flat(node), torch.float32)

    def _flat(self, node: fx.Node) -> fx.Node:
        """A given value as a vector, or [] if it is one number."""
        whole = self.place.whole(node)
        count = whole.meta["val"].numel()
        return self.new.view(self.new.contiguous(whole), (count,) if count > 1 else ())


def _chooses(given: Given) -> bool:
    """Whether a condition decides between two values in it."""
    return isinstance(given, tuple) and (given[0] == "where" or any(map(_chooses, given[1:])))
