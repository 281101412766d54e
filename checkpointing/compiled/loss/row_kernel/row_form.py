"""Whether a loss region is one that the kernel of a row knows: a cross entropy with all that goes with it.

    form = row_form(region)         # a `RowForm`; `UnknownFormError` says what the kernel does not know

Label smoothing, class weights, ignored labels and powers of the logsumexp come out as factors of the kernel; a soft cap
of the logits, or a softmax that is read as such, has no form.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from checkpointing.compiled.loss.loss_region import LossRegion
from checkpointing.compiled.loss.row_kernel.forms import (
    CLASSES,
    HIGHEST,
    LABEL,
    LSE,
    ONE,
    SOFTMAX,
    SUM,
    WEIGHTED_SUM,
    Given,
    Row,
    UnknownFormError,
    Wide,
)
from checkpointing.compiled.loss.row_kernel.operators import DTYPES
from checkpointing.compiled.loss.row_kernel.reader import Reader
from checkpointing.compiled.loss.row_rules import arguments


@dataclass(frozen=True)
class RowForm:
    """`exits` are polynomials in the statistics; the four factors are given, `of_square` and `of_all` None if zero.

    `classes` is the node of the classes' weights if the kernel reads them, and `sums` whether an exit reads the sum.
    """

    exits: dict[fx.Node, Row]
    gradients: tuple[fx.Node, ...]  # the nodes that the ends read: all are the gradient of the logits
    labels: fx.Node
    of_softmax: Given
    of_label: Given
    of_square: Given | None
    of_all: Given | None
    classes: fx.Node | None
    sums: bool


def row_form(region: LossRegion) -> RowForm:
    logits = region.logits.meta["val"]
    rows, vocabulary = logits.shape
    if logits.dtype not in DTYPES:
        raise UnknownFormError(f"logits in {str(logits.dtype).removeprefix('torch.')}")
    if rows == vocabulary or vocabulary < 2:
        raise UnknownFormError(f"{vocabulary} classes of {rows} rows")
    reader = Reader(region)
    exits: dict[fx.Node, Row] = {}
    for node in region.exits:
        form = reader.form(node)
        if not isinstance(form, Row):
            raise UnknownFormError(f"{node.name}, which leaves the loss")
        exits[node] = form
    sources = tuple(dict.fromkeys(_gradient(end.node, region) for end in region.ends))
    found = [reader.form(node) for node in sources]
    gradient = found[0]
    if not isinstance(gradient, Wide) or any(other != gradient for other in found):
        raise UnknownFormError("more than one gradient of the logits")
    wrong = next((node for node in sources if node.meta["val"].dtype != logits.dtype), None)
    if wrong is not None:
        raise UnknownFormError(f"a gradient of another type than the logits ({wrong.name})")
    return _form(reader, exits, sources, gradient)


def _form(reader: Reader, exits: dict[fx.Node, Row], sources: tuple[fx.Node, ...], gradient: Wide) -> RowForm:
    factors = {name: factor for (name, exponent), factor in gradient.terms if not exponent.terms}
    known = {SOFTMAX, LABEL, ONE, CLASSES}
    if len(factors) != len(gradient.terms) or not factors.keys() <= known:
        raise UnknownFormError("a gradient that is no softmax of the logits")
    softmax = dict(factors.get(SOFTMAX, Row()).terms)
    of_softmax, of_square = softmax.pop((), 0), softmax.pop((LSE,), None)
    if softmax:
        raise UnknownFormError("a gradient that depends otherwise on the logits of its row")
    used = {name for form in exits.values() for monomial, _ in form.terms for name in monomial}
    if HIGHEST in used:
        raise UnknownFormError("the largest logit of a row")
    weighs, counts = CLASSES in factors or WEIGHTED_SUM in used, ONE in factors or SUM in used
    if weighs and counts:
        raise UnknownFormError("classes with weights and without")
    if reader.labels is None:
        raise UnknownFormError("a loss without labels")
    every = factors.get(CLASSES, factors.get(ONE))
    return RowForm(
        exits=exits,
        gradients=sources,
        labels=reader.labels,
        of_softmax=of_softmax,
        of_label=factors.get(LABEL, Row()).constant,
        of_square=of_square,
        of_all=None if every is None else every.constant,
        classes=reader.classes if weighs else None,
        sums=bool({SUM, WEIGHTED_SUM} & used),
    )


def _gradient(end: fx.Node, region: LossRegion) -> fx.Node:
    """Of the operands of an end the one that is rows of the vocabulary."""
    return next(a for a in arguments(end) if isinstance(a, fx.Node) and a in region.kept)
