"""Nodes of a loss read as operations on forms (`forms`), whichever operators the loss was decomposed into.

    reader = Reader(region)
    reader.form(node)           # a `Row` or a `Wide`; `UnknownFormError` where the node has no such form
    reader.labels, reader.classes

Rounding between the operators is not kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from checkpointing.compiled.loss.loss_region import LossRegion
from checkpointing.compiled.loss.row_kernel.forms import (
    AT_LABEL,
    CLASSES,
    LABEL,
    LOGITS,
    ONE,
    WEIGHTED,
    Form,
    Row,
    UnknownFormError,
    Wide,
    value,
)
from checkpointing.compiled.loss.row_kernel.operations import RULES
from checkpointing.compiled.loss.row_rules import COLUMNS, arguments, packet, value_of

aten, prims = torch.ops.aten, torch.ops.prims

_SAME = frozenset(
    (
        aten.view, aten._unsafe_view, aten.reshape, aten.unsqueeze, aten.squeeze, aten.expand, aten.clone, aten.alias,
        aten.detach, aten.permute, aten.t, aten.transpose, aten._to_copy, prims.convert_element_type,
    )
)  # fmt: skip
_TURNED = frozenset((aten.permute, aten.t, aten.transpose))
_NUMBERS = {aten.full: 1, aten.scalar_tensor: 0}  # operator → the position of its number


class Reader:
    """`labels` and `classes` are found on the way: there may be one of each."""

    def __init__(self, region: LossRegion) -> None:
        self.region, self.rules = region, region.rules
        self.vocabulary: int = region.logits.meta["val"].shape[1]
        self.labels: fx.Node | None = None
        self.classes: fx.Node | None = None
        self._forms: dict[fx.Node, Form] = {region.logits: Wide.basis(LOGITS)}
        self._depending: dict[fx.Node, bool] = {}

    def form(self, node: fx.Node) -> Form:
        if node not in self._forms:
            self._forms[node] = self._read(node)
        return self._forms[node]

    def _read(self, node: fx.Node) -> Form:
        kind = packet(node)
        if kind in _NUMBERS and isinstance(number := arguments(node)[_NUMBERS[kind]], int | float):
            return self._as_wide(node, Row.given(number))
        if kind is prims.iota and arguments(node)[0] == self.vocabulary and not node.kwargs.get("start"):
            return None if node.kwargs.get("step", 1) == 1 else self.unknown(node)
        if kind in _SAME and (self._depends(node) or self.is_wide(node) or self._is_vector(node)):
            source = arguments(node)[0]
            turned = kind in _TURNED and self.region.layouts.get(node) != COLUMNS
            if turned or (_is_float(source) and not _is_float(node)):
                self.unknown(node)
            return self._as_wide(node, self.form(source))
        if self._is_vector(node) and not any(self._is_vector(source) for source in node.all_input_nodes):
            return Wide.basis(CLASSES) if self._are_classes(node) else self.unknown(node)
        if not (self.is_wide(node) or self._is_vector(node) or self._is_narrow(node)):
            self.unknown(node)
        if not (self._depends(node) or self.is_wide(node) or self._is_vector(node)):
            return Row.given(("node", node))
        rule = RULES.get(kind)
        return self._as_wide(node, rule(self, node)) if rule is not None else self.unknown(node)

    def _is_narrow(self, node: fx.Node) -> bool:
        """Whether it is one number, or one per row."""
        found = value_of(node)
        return found is not None and (
            found.numel() == 1 or (self.rules.leading(found.shape) is not None and self.rules.width(node) == 1)
        )

    def _depends(self, node: fx.Node) -> bool:
        """Whether a value is computed from logits, or from something as wide, which is not to be computed for it."""
        if node not in self._depending:
            self._depending[node] = node in self.region.layouts or self._reads_wide(node)
        return self._depending[node]

    def _reads_wide(self, node: fx.Node) -> bool:
        shape = value_of(node)
        layout = self.rules.leading(shape.shape) if shape is not None else None
        operands = self.rules.operands(node, layout) if layout is not None else None
        return operands is not None and any(
            self.is_wide(source) or self._depends(source)
            for source in (arguments(node)[position] for position in operands)
            if isinstance(source, fx.Node)
        )

    def is_wide(self, node: fx.Node) -> bool:
        found = value_of(node)
        return found is not None and found.dim() >= 2 and self.rules.width(node) == self.vocabulary

    def _is_vector(self, node: fx.Node) -> bool:
        found = value_of(node)
        return found is not None and found.numel() == self.vocabulary == found.shape[-1]

    def _are_classes(self, node: fx.Node) -> bool:
        found = value_of(node)
        assert found is not None
        if not found.is_floating_point():
            return False
        self.classes = self.classes or node
        return _same(self.classes, node)

    def _as_wide(self, node: fx.Node, form: Form) -> Form:
        """A value of the row that is expanded to all columns."""
        if isinstance(form, Row) and (self.is_wide(node) or self._is_vector(node)):
            return Wide.basis(ONE, form)
        return form

    def operands(self, node: fx.Node) -> list[Form]:
        """Of an operator that works element by element; numbers as rows."""
        self.check_aligned(node)
        found: list[Form] = []
        for argument in arguments(node):
            found.append(self.form(argument) if isinstance(argument, fx.Node) else Row.given(argument))
        if any(isinstance(form, Wide) for form in found):
            found = [Wide.basis(ONE, form) if isinstance(form, Row) else form for form in found]
        return found

    def check_aligned(self, node: fx.Node) -> None:
        """Operands of a row meet that row of the result, those of a column that column."""
        found = value_of(node)
        layout = self.rules.leading(found.shape) if found is not None else None
        by_row = (self.rules.operands(node, layout) if layout is not None else None) or {}
        for position, argument in enumerate(arguments(node)):
            number = isinstance(argument, int | float) and not isinstance(argument, bool)
            if isinstance(argument, fx.Node) and (operand := value_of(argument)) is not None:
                number = operand.numel() == 1 or self._is_vector(argument) or position in by_row
            if not number or node.kwargs:
                self.unknown(node)

    def labelled(self, wide: Wide) -> Row:
        """The value of each row at its label."""
        total = Row()
        for (name, exponent), factor in wide.terms:
            at = {LOGITS: value(AT_LABEL), ONE: Row.given(1), LABEL: Row.given(1)}.get(name)
            if name in (CLASSES, WEIGHTED):
                at = Row.given(("at", self.classes, self.labels))
                at = at * value(AT_LABEL) if name == WEIGHTED else at
            if at is None or exponent.terms:
                raise UnknownFormError("a probability by itself")
            total += at * factor
        return total

    def label(self, node: fx.Node) -> None:
        """`node` are labels, the same as all others."""
        found = value_of(node)
        assert found is not None
        while packet(node) in (aten.unsqueeze, aten.expand, aten.squeeze):
            node = arguments(node)[0]
        self.labels = self.labels or node
        if found.dtype != torch.int64 or not _same(self.labels, node):
            raise UnknownFormError("rows with several labels")

    def unknown(self, node: fx.Node) -> Any:
        raise UnknownFormError(f"{node.target} ({node.name})")


def _is_float(node: fx.Node) -> bool:
    found = value_of(node)
    return found is not None and found.is_floating_point()


def _same(one: Any, other: Any) -> bool:
    """Whether two nodes compute the same: equal operators of equal operands, however they are viewed."""
    if isinstance(one, fx.Node) and isinstance(other, fx.Node):
        one, other = _unviewed(one), _unviewed(other)
        if one is other:
            return True
        if one.op != "call_function" or other.op != "call_function" or one.target is not other.target:
            return _number(one) is not None and _number(one) == _number(other)
        alike = len(arguments(one)) == len(arguments(other)) and dict(one.kwargs) == dict(other.kwargs)
        return alike and all(_same(a, b) for a, b in zip(arguments(one), arguments(other), strict=True))
    return type(one) is type(other) and bool(one == other)


def _unviewed(node: fx.Node) -> fx.Node:
    while packet(node) in (aten.view, aten._unsafe_view, aten.reshape, aten.unsqueeze, aten.squeeze, aten.expand):
        node = arguments(node)[0]
    return node


def _number(node: fx.Node) -> Any:
    return arguments(node)[_NUMBERS[packet(node)]] if packet(node) in _NUMBERS else None
