"""Which operators compute each row of their result from the same rows of their operands, and how to run them on a few.

    rules = RowRules(rows=8192)
    rules.layout(node, layouts)             # where the rows of the result are, given where those of its operands are
    rules.operands(node, layout)            # the other way round: what must be cut into rows to compute some of them
    rules.call(node, layout, count, value)  # (target, arguments, keywords) of the node on `count` rows

The rows of logits [rows, vocabulary] stay together through views ([batch, sequence, vocabulary]) and through whatever
works on columns alone. A layout says where they are: the number of leading dimensions that hold them, 1 or more, or
`COLUMNS` for a transposed matrix. On a few rows the leading dimensions are one: [batch, sequence, n] → [count, n].
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from checkpointing.compiled.kernels import is_called, is_random

aten, prims = torch.ops.aten, torch.ops.prims

COLUMNS = 0  # the layout of a matrix whose columns are the rows

Operands = dict[int, int]  # position of an argument → its layout
Call = tuple[Any, tuple[Any, ...], dict[str, Any]]
Value = Callable[[fx.Node, int | None], Any]  # node, its layout or None → the node with the rows, or with all of it

_COPIES = (aten.clone, aten._to_copy, aten.detach, aten.alias, prims.convert_element_type)
_LIKE = (aten.zeros_like, aten.ones_like, aten.full_like)
_VIEWS = (aten.view, aten._unsafe_view, aten.reshape, aten.unsqueeze, aten.squeeze)
_TRANSPOSES = (aten.permute, aten.t, aten.transpose)
_REDUCTIONS = (aten.sum, aten.mean, aten.amax, aten.amin, aten.logsumexp)
_ALONG = {  # operator → positions of its operands, position of its dimension
    aten._softmax: ((0,), 1),
    aten._log_softmax: ((0,), 1),
    aten._softmax_backward_data: ((0, 1), 2),
    aten._log_softmax_backward_data: ((0, 1), 2),
    aten.gather: ((0, 2), 1),
    aten.slice: ((0,), 1),
}
_PUTS: dict[Any, dict[str, tuple[int, ...]]] = {  # operator → overload → positions of its operands
    aten.scatter: {"value": (0, 2), "src": (0, 2, 3)},
    aten.scatter_add: {"default": (0, 2, 3)},
}
SOFTMAXES = (aten.exp, aten._softmax, aten._log_softmax, aten.logsumexp)


def packet(node: fx.Node) -> Any:
    """The operator without its overload, or what is called if it is no operator of torch."""
    return node.target.overloadpacket if isinstance(node.target, torch._ops.OpOverload) else node.target


def arguments(node: fx.Node) -> Any:
    """The node's arguments by position, of whatever types its operator takes."""
    return node.args


def value_of(node: fx.Node) -> Tensor | None:
    """The fake tensor of the node's result, the first of several; None if there is none."""
    value = node.meta.get("val")
    value = value[0] if isinstance(value, tuple | list) and value else value
    return value if isinstance(value, Tensor) else None


@dataclass(frozen=True)
class RowRules:
    """`rows` is 2 or more: with one row, a dimension of size 1 would say nothing."""

    rows: int

    def leading(self, shape: Sequence[int]) -> int | None:
        """How many leading dimensions hold the rows; None if no number of them does."""
        return next((n for n in range(1, len(shape) + 1) if prod(shape[:n]) == self.rows), None)

    def width(self, node: fx.Node) -> int:
        """Elements of the node's result per row."""
        value = value_of(node)
        return value.numel() // self.rows if value is not None else 0

    def is_light(self, node: fx.Node) -> bool:
        """Whether a node may be computed a second time, in another place: no matmul, and no random numbers."""
        value = value_of(node)
        leading = self.leading(value.shape) if value is not None else None
        by_row = leading is not None and self.operands(node, leading) is not None
        return not is_random(node) and (by_row or not is_called(node))

    def layout(self, node: fx.Node, layouts: Mapping[fx.Node, int]) -> int | None:
        """Where the rows of the result are, if it is computed row by row from operands in `layouts`."""
        value = value_of(node)
        if value is None:
            return None
        for layout in (self.leading(value.shape), COLUMNS):
            if layout is None:
                continue
            operands = self.operands(node, layout)
            if operands is not None and all(operands.get(i) == layouts[a] for i, a in _tensors(node) if a in layouts):
                return layout
        return None

    def operands(self, node: fx.Node, layout: int) -> Operands | None:
        """The operands of which a few rows suffice for those of the result, and their layouts; None if none would."""
        value, kind = value_of(node), packet(node)
        if (
            value is None
            or node.op != "call_function"
            or any(isinstance(a, list) and _nodes(a) for a in arguments(node))
        ):
            return None
        if kind in _TRANSPOSES:
            source = value_of(arguments(node)[0])
            swaps = value.dim() == 2 and source is not None and source.shape == value.shape[::-1]
            swaps = swaps and (kind is not aten.permute or list(arguments(node)[1]) in ([1, 0], [-1, -2]))
            return {0: COLUMNS if layout else 1} if swaps and layout in (0, 1) else None
        if layout == COLUMNS:
            return (
                {0: COLUMNS} if kind in _COPIES or (kind is aten.constant_pad_nd and not any(_pad(node)[:2])) else None
            )
        if self.leading(value.shape) != layout:
            return None
        if kind in _COPIES or kind in _LIKE:
            return {0: layout}
        if kind is aten.full:
            return {}
        if kind in _VIEWS:
            source = value_of(arguments(node)[0])
            leading = None if source is None else self.leading(source.shape)
            return None if leading is None else {0: leading}
        if kind is aten.constant_pad_nd:
            return {0: layout} if not any(_pad(node)[2 * (value.dim() - layout) :]) else None
        if kind in _ALONG or kind in _PUTS or kind in _REDUCTIONS:
            return self._along(node, layout)
        if _broadcasts(node):
            return {i: layout for i, a in _tensors(node) if _spread(value_of(a), layout, value) == "rows"}
        if kind is aten.nll_loss_forward:
            return {0: 1, 1: 1} if arguments(node)[3] == 0 else None
        if kind is aten.nll_loss_backward:
            return {0: 1, 1: 1, 2: 1} if arguments(node)[4] == 0 else {1: 1, 2: 1}
        return {0: layout} if kind is operator.getitem and arguments(node)[1] == 0 else None

    def _along(self, node: fx.Node, layout: int) -> Operands | None:
        """Of an operator that works along dimensions, none of which may hold rows."""
        positions: tuple[int, ...]
        if packet(node) in _REDUCTIONS:
            positions, dims = (0,), arguments(node)[1] if len(arguments(node)) > 1 else None
        elif packet(node) in _PUTS:
            overload = str(node.target).rsplit(".", 1)[-1]
            if overload not in _PUTS[packet(node)]:
                return None
            positions, dims = _PUTS[packet(node)][overload], arguments(node)[1]
        else:
            positions, at = _ALONG[packet(node)]
            dims = arguments(node)[at] if len(arguments(node)) > at else 0
        sources = [value_of(arguments(node)[i]) for i in positions]
        first = sources[0]
        if first is None or dims is None or dims == []:
            return None
        along = [dim % first.dim() for dim in ([dims] if isinstance(dims, int) else dims)]
        same = all(s is not None and s.shape[:layout] == first.shape[:layout] for s in sources)
        held = same and min(along) >= layout and self.leading(first.shape) == layout
        return dict.fromkeys(positions, layout) if held else None

    def call(self, node: fx.Node, layout: int, count: int, value: Value) -> Call | fx.Node:
        """How to compute `count` rows of the node's result, or the node that has them.

        `value(source, its layout)` is the operand's rows, `value(source, None)` the whole operand.
        """
        out, kind, operands = value_of(node), packet(node), self.operands(node, layout)
        assert out is not None
        assert operands is not None
        shape = [count, *out.shape[layout:]]
        if kind in _VIEWS:
            source = value(arguments(node)[0], operands[0])
            return source if list(source.meta["val"].shape) == shape else (aten.view.default, (source, shape), {})
        args = [value(a, operands.get(i)) if isinstance(a, fx.Node) else a for i, a in enumerate(arguments(node))]
        if kind is aten.full:
            args[0] = shape
        elif kind is aten.expand:
            args[1] = shape
        elif kind is aten.constant_pad_nd and layout:
            args[1] = _pad(node)[: 2 * (out.dim() - layout)]
        elif layout > 1 and (kind in _ALONG or kind in _PUTS or kind in _REDUCTIONS):
            at = _ALONG[kind][1] if kind in _ALONG else 1
            source = value_of(arguments(node)[0])
            assert source is not None
            dims = args[at]
            moved = [dim % source.dim() - layout + 1 for dim in ([dims] if isinstance(dims, int) else dims)]
            args[at] = moved[0] if isinstance(dims, int) else moved
        return node.target, tuple(args), dict(node.kwargs)

    def spread(self, node: fx.Node, source: fx.Node, layout: int) -> str:
        """How an operand that is no rows meets those of the result: "whole", "one" (leading dimensions of size 1),
        or "some" (it has some of the leading dimensions)."""
        out, value = value_of(node), value_of(source)
        return _spread(value, layout, out) if _broadcasts(node) and layout else "whole"


def _broadcasts(node: fx.Node) -> bool:
    """Whether the node works element by element on operands that are expanded to its result's shape."""
    if not isinstance(node.target, torch._ops.OpOverload) or is_random(node):
        return False
    return packet(node) is aten.expand or torch.Tag.pointwise in node.target.tags


def _spread(source: Tensor | None, layout: int, out: Tensor | None) -> str:
    """How an operand of an elementwise operator meets the leading dimensions of its result, by the rules of
    broadcasting."""
    if source is None or out is None:
        return "whole"
    own = source.dim() - (out.dim() - layout)
    leading = source.shape[: max(own, 0)]
    if not leading:
        return "whole"
    if all(size == 1 for size in leading):
        return "one"
    return "rows" if leading == out.shape[:layout] else "some"


def _tensors(node: fx.Node) -> list[tuple[int, fx.Node]]:
    return [(i, a) for i, a in enumerate(arguments(node)) if isinstance(a, fx.Node)]


def _nodes(values: Sequence[Any]) -> list[fx.Node]:
    return [value for value in values if isinstance(value, fx.Node)]


def _pad(node: fx.Node) -> list[int]:
    """Two numbers a dimension, the last dimension first."""
    return list(arguments(node)[1])
