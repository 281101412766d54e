"""Each operator on forms: the forms of its operands → the form of its result.

RULES[torch.ops.aten.exp](reader, node)         # x - r → softmax · exp(logsumexp - r)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from checkpointing.compiled.loss.row_kernel import forms
from checkpointing.compiled.loss.row_kernel.forms import (
    CLASSES,
    HIGHEST,
    LABEL,
    LOGITS,
    LSE,
    ONE,
    SOFTMAX,
    SUM,
    WEIGHTED,
    WEIGHTED_SUM,
    Exponential,
    Form,
    Row,
    Wide,
    value,
)
from checkpointing.compiled.loss.row_rules import arguments, packet

if TYPE_CHECKING:
    from checkpointing.compiled.loss.row_kernel.reader import Reader

aten = torch.ops.aten


def _highest(reader: Reader, node: fx.Node) -> Form:
    return value(HIGHEST) if _along_columns(reader, node) == Wide.basis(LOGITS) else reader.unknown(node)


def _sum(reader: Reader, node: fx.Node) -> Form:
    source, terms = _along_columns(reader, node), []
    if not isinstance(source, Wide):
        return reader.unknown(node)
    sums = {LOGITS: value(SUM), WEIGHTED: value(WEIGHTED_SUM), ONE: Row.given(reader.vocabulary)}
    for (name, exponent), factor in source.terms:
        if exponent.terms:
            alone = len(source.terms) == 1 and factor == Row.given(1)
            return Exponential(exponent) if alone else reader.unknown(node)
        of_classes = Row.given(("sum", reader.classes)) if name == CLASSES else Row.given(1)
        terms.append(sums.get(name, of_classes) * factor)
    total = Row()
    for term in terms:
        total += term
    return total.scaled(1 / reader.vocabulary) if packet(node) is aten.mean else total


def _logsumexp(reader: Reader, node: fx.Node) -> Form:
    return value(LSE) if _along_columns(reader, node) == Wide.basis(LOGITS) else reader.unknown(node)


def _along_columns(reader: Reader, node: fx.Node) -> Form:
    """The operand of an operator along the last dimension, which are the columns."""
    source, dims = arguments(node)[0], arguments(node)[1] if len(arguments(node)) > 1 else None
    count = source.meta["val"].dim()
    dims = [dims] if isinstance(dims, int) else dims
    last = dims is not None and [dim % count for dim in dims] == [count - 1]
    return reader.form(source) if last and reader.is_wide(source) else reader.unknown(node)


def _exponential(reader: Reader, node: fx.Node) -> Form:
    [source] = reader.operands(node)
    if not isinstance(source, Wide) or dict(source.terms).get((LOGITS, Row())) != Row.given(1):
        return reader.unknown(node)
    rest = Wide.of(term for term in source.terms if term[0] != (LOGITS, Row()))
    shift = rest.only(ONE) if rest.terms else Row()
    return Wide.basis(SOFTMAX, exponent=value(LSE) + shift) if shift is not None else reader.unknown(node)


def _logarithm(reader: Reader, node: fx.Node) -> Form:
    source = reader.form(arguments(node)[0])
    return source.exponent if isinstance(source, Exponential) else reader.unknown(node)


def _plus(reader: Reader, node: fx.Node) -> Form:
    left, right = reader.operands(node)
    if packet(node) is aten.sub and isinstance(right, Row | Wide):
        right = right.scaled(-1) if isinstance(right, Row) else right.times(Row.given(-1))
    if isinstance(left, Row) and isinstance(right, Row):
        return left + right
    return left + right if isinstance(left, Wide) and isinstance(right, Wide) else reader.unknown(node)


def _negative(reader: Reader, node: fx.Node) -> Form:
    [source] = reader.operands(node)
    if isinstance(source, Row):
        return source.scaled(-1)
    return source.times(Row.given(-1)) if isinstance(source, Wide) else reader.unknown(node)


def _times(reader: Reader, node: fx.Node) -> Form:
    left, right = reader.operands(node)
    if isinstance(left, Row) and isinstance(right, Row):
        return left * right
    if not (isinstance(left, Wide) and isinstance(right, Wide)):
        return reader.unknown(node)
    for one, other in ((left, right), (right, left)):
        if not one.terms:
            return one
        if (factor := one.only(ONE)) is not None:
            return other.times(factor)
        if (factor := one.only(LABEL)) is not None:
            return Wide.basis(LABEL, reader.labelled(other) * factor)
        names = {name for (name, exponent), _ in other.terms if not exponent.terms}
        if (factor := one.only(CLASSES)) is not None and names <= {LOGITS, ONE}:
            weighted = {LOGITS: WEIGHTED, ONE: CLASSES}
            return Wide.of(((weighted[name], Row()), its * factor) for (name, _), its in other.terms)
    return reader.unknown(node)


def _over(reader: Reader, node: fx.Node) -> Form:
    reader.check_aligned(node)
    left, right = (reader.form(a) if isinstance(a, fx.Node) else Row.given(a) for a in arguments(node))
    if isinstance(right, Exponential) and isinstance(left, Wide) and len(left.terms) == 1:
        [((name, exponent), factor)] = left.terms
        if name == SOFTMAX:
            return Wide.basis(SOFTMAX, factor, exponent + right.exponent.scaled(-1))
    right = right.only(ONE) if isinstance(right, Wide) else right
    if not isinstance(right, Row):
        return reader.unknown(node)
    divisor = right.constant
    if isinstance(left, Row):
        return Row.of({m: forms.divide(factor, divisor) for m, factor in left.terms})
    if isinstance(left, Wide):
        by = [(b, Row.of({m: forms.divide(f, divisor) for m, f in row.terms})) for b, row in left.terms]
        return Wide.of(by)
    return reader.unknown(node)


def _power(reader: Reader, node: fx.Node) -> Form:
    source, exponent = reader.form(arguments(node)[0]), arguments(node)[1]
    if not isinstance(source, Row) or exponent not in (0, 1, 2, 3):
        return reader.unknown(node)
    result = Row.given(1)
    for _ in range(int(exponent)):
        result *= source
    return result


def _taken(reader: Reader, node: fx.Node) -> Form:
    source, dim, index = arguments(node)[:3]
    found = reader.form(source)
    if not isinstance(found, Wide) or dim % source.meta["val"].dim() != source.meta["val"].dim() - 1:
        return reader.unknown(node)
    if reader.rules.width(index) != 1:
        return reader.unknown(node)
    reader.label(index)
    return reader.labelled(found)


def _put(reader: Reader, node: fx.Node) -> Form:
    """A value at each row's label, in zeros."""
    source, dim, index, put = arguments(node)
    zeros, last = reader.form(source), dim % source.meta["val"].dim() == source.meta["val"].dim() - 1
    if node.kwargs or not last or zeros != Wide.of([]) or reader.rules.width(index) != 1:
        return reader.unknown(node)
    form = reader.form(put) if isinstance(put, fx.Node) else Row.given(put)
    if not isinstance(form, Row):
        return reader.unknown(node)
    reader.label(index)
    return Wide.basis(LABEL, form)


def _equal(reader: Reader, node: fx.Node) -> Form:
    """Which column is the label's."""
    left, right = arguments(node)
    if not isinstance(right, fx.Node):
        return reader.unknown(node)
    columns, labels = (left, right) if reader.form(left) is None else (right, left)
    if reader.form(columns) is not None:
        return reader.unknown(node)
    form = reader.form(labels)
    row = form.only(ONE) if isinstance(form, Wide) else form
    if not isinstance(row, Row) or not isinstance(row.constant, tuple) or row.constant[0] != "node":
        return reader.unknown(node)
    reader.label(row.constant[1])
    return Wide.basis(LABEL)


def _where(reader: Reader, node: fx.Node) -> Form:
    condition, *branches = arguments(node)
    if not all(isinstance(branch, fx.Node) for branch in branches):
        return reader.unknown(node)
    reader.check_aligned(node)
    left, right = (reader.form(branch) for branch in branches)
    if _asks_for_infinity(condition) and left == Row() and right == value(HIGHEST):
        return right  # a logsumexp is the same whatever is subtracted and added
    asked = reader.form(condition)
    if isinstance(left, Wide) or isinstance(right, Wide) or isinstance(asked, Wide):
        left, right = (Wide.basis(ONE, form) if isinstance(form, Row) else form for form in (left, right))
    if isinstance(asked, Wide) and asked.only(ONE) is None:
        if asked != Wide.basis(LABEL) or not (isinstance(left, Wide) and isinstance(right, Wide)):
            return reader.unknown(node)
        difference = reader.labelled(left) + reader.labelled(right).scaled(-1)
        return right + Wide.basis(LABEL, difference)
    asked = asked.only(ONE) if isinstance(asked, Wide) else asked
    given = asked.constant if isinstance(asked, Row) else None
    if not isinstance(given, tuple) or given[0] != "node":
        return reader.unknown(node)
    if isinstance(left, Wide) and isinstance(right, Wide):
        return left.chosen(given[1], right)
    if isinstance(left, Row) and isinstance(right, Row):
        return left.chosen(given[1], right)
    return reader.unknown(node)


def _asks_for_infinity(condition: fx.Node) -> bool:
    return (
        packet(condition) is aten.eq
        and arguments(condition)[1] == math.inf
        and packet(arguments(condition)[0]) is aten.abs
    )


RULES: dict[Any, Callable[[Reader, fx.Node], Form]] = {
    aten.amax: _highest,
    aten.sum: _sum,
    aten.mean: _sum,
    aten.logsumexp: _logsumexp,
    aten.exp: _exponential,
    aten.log: _logarithm,
    aten.add: _plus,
    aten.sub: _plus,
    aten.neg: _negative,
    aten.mul: _times,
    aten.div: _over,
    aten.pow: _power,
    aten.gather: _taken,
    aten.scatter: _put,
    aten.scatter_add: _put,
    aten.eq: _equal,
    aten.where: _where,
}
