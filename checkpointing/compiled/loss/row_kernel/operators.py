"""Operators on a chunk of logits, row by row: what a loss needs of a softmax, and a gradient in the logits' place.

    stats = row_statistics(logits, vocabulary, labels, classes=None, sums=False)
    stats = row_gradient_(logits, vocabulary, labels, of_softmax, of_label, of_square, of_all, classes, sums)

`logits` are [rows, width] of 16 or 32 bits, of which the first `vocabulary` columns count; rows may be apart, elements
of one may not. `stats` are [3, rows] in float32: the logsumexp of each row, its logit at the label, and with `sums` the
sum of its logits, each times the weight of its class if `classes` [vocabulary] are given. The gradient of row r at
column j is

    (of_softmax[r] + of_square[r] · logsumexp[r]) · softmax[r, j] + of_label[r] · (j = label[r])
        + of_all[r] · classes[j]

and zero behind the vocabulary. Each cross entropy is of this form: its label smoothing is in `of_all`, the gradient of
a squared logsumexp in `of_square`. All is computed in float32, and the gradient rounded once. A label outside of
the vocabulary is an error. On CUDA the work is one Triton kernel; elsewhere PyTorch's operators do it.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)

_OPERATORS = torch.library.Library("checkpointing", "FRAGMENT")
_OPERATORS.define(
    "row_statistics(Tensor logits, int vocabulary, Tensor labels, Tensor? classes=None, bool sums=False) -> Tensor"
)
_OPERATORS.define(
    "row_gradient_(Tensor(a!) logits, int vocabulary, Tensor labels, Tensor of_softmax, Tensor of_label, "
    "Tensor? of_square=None, Tensor? of_all=None, Tensor? classes=None, bool sums=False) -> Tensor"
)
row_statistics = torch.ops.checkpointing.row_statistics.default
row_gradient_ = torch.ops.checkpointing.row_gradient_.default


def is_kernel_there(device: torch.device) -> bool:
    """Whether the operators are one kernel each on this device."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


def _statistics(
    logits: Tensor, vocabulary: int, labels: Tensor, classes: Tensor | None = None, sums: bool = False
) -> Tensor:
    x = logits[:, :vocabulary].float()
    at_label = x.gather(1, labels[:, None])[:, 0]
    weighted = (x if classes is None else x * classes.float()).sum(1) if sums else torch.zeros_like(at_label)
    return torch.stack([x.logsumexp(1), at_label, weighted])


def _gradient(
    logits: Tensor,
    vocabulary: int,
    labels: Tensor,
    of_softmax: Tensor,
    of_label: Tensor,
    of_square: Tensor | None = None,
    of_all: Tensor | None = None,
    classes: Tensor | None = None,
    sums: bool = False,
) -> Tensor:
    stats = _statistics(logits, vocabulary, labels, classes, sums)
    factor = of_softmax.float()
    if of_square is not None:
        factor = factor + of_square.float() * stats[0]
    gradient = logits[:, :vocabulary].float().softmax(1) * factor[:, None]
    if of_all is not None:
        gradient += of_all.float()[:, None] * (1 if classes is None else classes.float())
    gradient.scatter_add_(1, labels[:, None], of_label.float()[:, None])
    logits[:, :vocabulary] = gradient
    logits[:, vocabulary:] = 0
    return stats


def _statistics_on_cuda(
    logits: Tensor, vocabulary: int, labels: Tensor, classes: Tensor | None = None, sums: bool = False
) -> Tensor:
    from checkpointing.compiled.loss.row_kernel.kernel import launch

    with torch.cuda.device(logits.device):
        return launch(_checked(logits), vocabulary, labels, None, classes, sums)


def _gradient_on_cuda(
    logits: Tensor,
    vocabulary: int,
    labels: Tensor,
    of_softmax: Tensor,
    of_label: Tensor,
    of_square: Tensor | None = None,
    of_all: Tensor | None = None,
    classes: Tensor | None = None,
    sums: bool = False,
) -> Tensor:
    from checkpointing.compiled.loss.row_kernel.kernel import Gradient, launch

    gradient = Gradient(of_softmax, of_label, of_square, of_all)
    with torch.cuda.device(logits.device):
        return launch(_checked(logits), vocabulary, labels, gradient, classes, sums)


def _fake(logits: Tensor, vocabulary: int, labels: Tensor, *others: object, **named: object) -> Tensor:
    return logits.new_empty((3, logits.shape[0]), dtype=torch.float32)


def _checked(logits: Tensor) -> Tensor:
    if logits.dim() != 2 or logits.stride(1) != 1 or logits.dtype not in DTYPES:
        raise RuntimeError(
            f"logits of {tuple(logits.shape)} with strides {logits.stride()} in {logits.dtype}: rows without gaps, "
            "of 16 or 32 bits, are read"
        )
    return logits


_OPERATORS.impl("row_statistics", _statistics, "CompositeExplicitAutograd")
_OPERATORS.impl("row_gradient_", _gradient, "CompositeExplicitAutograd")
_OPERATORS.impl("row_statistics", _statistics_on_cuda, "CUDA")
_OPERATORS.impl("row_gradient_", _gradient_on_cuda, "CUDA")
_OPERATORS.impl("row_statistics", _fake, "Meta")
_OPERATORS.impl("row_gradient_", _fake, "Meta")
