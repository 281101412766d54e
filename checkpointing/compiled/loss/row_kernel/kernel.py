"""The Triton kernel: one program per row of logits, which it reads twice and writes once.

    stats = launch(logits, vocabulary, labels, Gradient(of_softmax, of_label), sums=False)      # on CUDA tensors

The first pass computes maximum and sum of exponentials together (online softmax, Milakov and Gimelshein 2018), each
lane for its own columns: the lanes meet once, at the end of the row. The second pass finds the row in the L2 cache, as
few programs of many warps are at work at a time. A row of one tile stays in registers and is read once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

VECTOR_BYTES = 16  # what a thread loads at once, where rows are whole units of it
LEAST_COLUMNS = 256
REGISTERS = 64  # per thread: a multiprocessor then has room for 32 warps


@dataclass(frozen=True)
class Tile:
    """Columns that a program reads at a time, a power of two, its warps, and how many tiles it has asked for."""

    columns: int = 8192
    warps: int = 16
    stages: int = 1

    def of(self, width: int) -> Tile:
        """As much of it as a row of `width` fills."""
        columns = min(self.columns, max(LEAST_COLUMNS, triton.next_power_of_2(width)))
        warps = max(1, self.warps * columns // self.columns)
        return Tile(columns, warps, self.stages)


@dataclass(frozen=True)
class Gradient:
    """The factors of each row, [rows] each: see `operators`."""

    of_softmax: Tensor
    of_label: Tensor
    of_square: Tensor | None = None
    of_all: Tensor | None = None

    def factors(self) -> list[Tensor | None]:
        """In float32, without gaps."""
        given = (self.of_softmax, self.of_label, self.of_square, self.of_all)
        return [None if value is None else value.float().contiguous() for value in given]


def launch(
    logits: Tensor,
    vocabulary: int,
    labels: Tensor,
    gradient: Gradient | None = None,
    classes: Tensor | None = None,
    sums: bool = False,
    tile: Tile | None = None,
) -> Tensor:
    """The statistics [3, rows] of `logits` [rows, width], whose place the gradient takes if one is asked for."""
    rows, width = logits.shape
    stats = torch.empty((3, rows), dtype=torch.float32, device=logits.device)
    if rows == 0:
        return stats
    stride = logits.stride(0) if rows > 1 else width
    vector = VECTOR_BYTES // logits.element_size()
    if width % vector or stride % vector or logits.data_ptr() % VECTOR_BYTES:
        vector = 1
    tile = (tile or Tile()).of(width)
    factors = gradient.factors() if gradient is not None else [None] * 4
    _rows[(rows,)](
        logits, stats, labels.contiguous(), *factors, None if classes is None else classes.contiguous(),
        stride, vocabulary, width, rows,
        VECTOR=vector, LANES=tile.columns // vector, ONCE=tile.columns >= width, WRITE=gradient is not None,
        SQUARE=factors[2] is not None, ALL=factors[3] is not None, CLASSES=classes is not None, SUMS=sums,
        STAGES=tile.stages, num_warps=tile.warps, maxnreg=REGISTERS, debug=True, sanitize_overflow=False,
    )  # fmt: skip
    return stats


@triton.jit
def _tile(
    row, first, vocabulary, width,
    VECTOR: tl.constexpr, LANES: tl.constexpr, EVICTION: tl.constexpr,
):  # fmt: skip
    """Columns [LANES, VECTOR] from the vector `first` on in float32, -inf behind the vocabulary; where each is."""
    group = first + tl.arange(0, LANES)
    column = group[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    inside = (group * VECTOR < width)[:, None]  # the same for a whole vector: it is loaded at once
    x = tl.load(row + column, mask=inside, other=0.0, eviction_policy=EVICTION).to(tl.float32)
    return tl.where(column < vocabulary, x, -float("inf")), column, inside


@triton.jit
def _of_classes(classes, column, vocabulary, CLASSES: tl.constexpr):
    """The weight of each column's class: 1 without weights, 0 behind the vocabulary."""
    weight = tl.where(column < vocabulary, 1.0, 0.0)
    if CLASSES:
        weight = tl.load(classes + column, mask=column < vocabulary, other=0.0).to(tl.float32)
    return weight


@triton.jit
def _added(
    x, column, highest, total, weighted, classes, vocabulary, CLASSES: tl.constexpr, SUMS: tl.constexpr
):  # fmt: skip
    """Each lane's maximum, sum of exponentials below it and weighted sum, with those of a tile."""
    higher = tl.maximum(highest, tl.max(x, 1))
    total = total * tl.exp(highest - higher) + tl.sum(tl.exp(x - higher[:, None]), 1)
    if SUMS:
        term = tl.where(column < vocabulary, x, 0.0) * _of_classes(classes, column, vocabulary, CLASSES)
        weighted += tl.sum(term, 1)
    return higher, total, weighted


@triton.jit
def _write(
    row, x, column, inside, top, scale, label, from_label, from_all, classes, vocabulary,
    ALL: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """The gradient of one tile in the tile's place, zeros behind the vocabulary."""
    gradient = tl.exp(x - top) * scale
    if ALL:
        gradient += from_all * _of_classes(classes, column, vocabulary, CLASSES)
    gradient = tl.where(column == label, gradient + from_label, gradient)
    gradient = tl.where(column < vocabulary, gradient, 0.0)
    tl.store(row + column, gradient.to(row.dtype.element_ty), mask=inside, eviction_policy="evict_first")


@triton.jit
def _rows(
    logits, stats, labels, of_softmax, of_label, of_square, of_all, classes, stride, vocabulary, width, rows,
    VECTOR: tl.constexpr, LANES: tl.constexpr, ONCE: tl.constexpr, WRITE: tl.constexpr,
    SQUARE: tl.constexpr, ALL: tl.constexpr, CLASSES: tl.constexpr, SUMS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64)
    row = logits + tl.multiple_of(index * stride, VECTOR)
    vectors = tl.cdiv(width, VECTOR)
    label = tl.load(labels + index)
    known = (label >= 0) & (label < vocabulary)
    tl.device_assert(known, "label out of bounds")
    at_label = tl.load(row + label, mask=known, other=float("nan")).to(tl.float32)

    highest = tl.full([LANES], -3.4028234e38, tl.float32)  # no infinity: that minus itself is no number
    total = tl.zeros([LANES], tl.float32)
    weighted = tl.zeros([LANES], tl.float32)
    x, column, inside = _tile(row, 0, vocabulary, width, VECTOR, LANES, "evict_last")
    highest, total, weighted = _added(x, column, highest, total, weighted, classes, vocabulary, CLASSES, SUMS)
    if not ONCE:
        for first in tl.range(LANES, vectors, LANES, num_stages=STAGES):
            x, column, inside = _tile(row, first, vocabulary, width, VECTOR, LANES, "evict_last")
            highest, total, weighted = _added(x, column, highest, total, weighted, classes, vocabulary, CLASSES, SUMS)
    top = tl.max(highest, 0)
    exponentials = tl.sum(total * tl.exp(highest - top), 0)
    lse = top + tl.log(exponentials)
    tl.store(stats + index, lse)
    tl.store(stats + rows + index, at_label)
    tl.store(stats + 2 * rows + index, tl.sum(weighted, 0))

    if WRITE:
        scale = tl.load(of_softmax + index)
        if SQUARE:
            scale += tl.load(of_square + index) * lse
        scale = scale / exponentials
        from_label = tl.load(of_label + index)
        from_all = 0.0
        if ALL:
            from_all = tl.load(of_all + index)
        if ONCE:
            _write(row, x, column, inside, top, scale, label, from_label, from_all, classes, vocabulary, ALL, CLASSES)
        else:
            for first in tl.range(0, vectors, LANES, num_stages=STAGES):
                x, column, inside = _tile(row, first, vocabulary, width, VECTOR, LANES, "evict_first")
                _write(
                    row, x, column, inside, top, scale, label, from_label, from_all, classes, vocabulary, ALL, CLASSES
                )
