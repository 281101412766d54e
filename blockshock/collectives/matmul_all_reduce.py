"""Y = Σ over a group of each rank's product, whole or in chunks of X's rows whose sums overlap the next product.

    total = MatmulAllReduce(reduction, chunks=4)
    y = total(x, multiply)            # multiply(x_rows, out) -> (rows, R), written into `out` where one is given

With chunks, on a GPU: the products follow one another on the current stream, and each chunk's sum runs on a stream of
higher priority as soon as its product is done.

    current   product 0 | product 1 | product 2 |      wait
    side                  sum 0       sum 1       sum 2

Every call ends with the current stream waiting for the side stream, so what runs later, in a CUDA graph or eagerly, may
reuse any memory involved, and the allocator needs no record of the second stream.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any, Protocol

import torch

from blockshock.collectives import in_graph
from blockshock.collectives.reductions import Reduction
from blockshock.measure.timing import region

Multiply = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]

ROW_MULTIPLE = 128  # chunks start at multiples of a product's usual tile
FEWEST_ROWS = 256  # in a chunk: below, a product no longer fills a GPU


class Total(Protocol):
    """How a rank-local product becomes the sum over the ranks that hold parts of it."""

    def __call__(self, x: torch.Tensor, multiply: Multiply) -> torch.Tensor: ...


def alone(x: torch.Tensor, multiply: Multiply) -> torch.Tensor:
    """The `Total` of one rank: its own product."""
    return multiply(x, None)


class MatmulAllReduce:
    """The `Total` by `reduction`, in `chunks` chunks of rows. Its result is ordinary memory, new in every call."""

    def __init__(self, reduction: Reduction, chunks: int = 1) -> None:
        self.reduction, self.chunks = reduction, chunks

    def __call__(self, x: torch.Tensor, multiply: Multiply) -> torch.Tensor:
        if in_graph.tracing():
            return in_graph.all_reduce(multiply(x, None), self.reduction.group)
        if self.chunks > 1:
            return self._overlapped(x, multiply)
        partial, total = self.reduction.place(len(x), x)
        product = multiply(x, partial)
        with region("allreduce"):
            return self.reduction.finish(self.reduction.add(product, product if total is None else total))

    def _overlapped(self, x: torch.Tensor, multiply: Multiply) -> torch.Tensor:
        """Region `allreduce` is what the products don't hide: from the last product's end to the last sum's end."""
        partial, total = self.reduction.place(len(x), x, whole=True)
        assert partial is not None
        assert total is not None
        rows = row_chunks(len(x), self.chunks)
        if x.device.type != "cuda":
            for chunk in rows:
                self.reduction.add(multiply(x[chunk], partial[chunk]), total[chunk])
            with region("allreduce"):
                return self.reduction.finish(total)
        current, side = torch.cuda.current_stream(x.device), side_stream(x.device.index)
        for chunk in rows:
            multiply(x[chunk], partial[chunk])
            side.wait_stream(current)
            with torch.cuda.stream(side):
                self.reduction.add(partial[chunk], total[chunk])
        with region("allreduce"):
            with torch.cuda.stream(side):
                self.reduction.finish(total)
            current.wait_stream(side)
        return total

    def describe(self) -> dict[str, Any]:
        return {"implementation": self.reduction.name, "chunks": self.chunks}


def row_chunks(rows: int, chunks: int) -> list[slice]:
    """`rows` in `chunks` consecutive slices of about one size that start at multiples of 128.

    Each has 256 rows at least where `rows >= 256 * chunks`: bounds are rounded down, which takes none below.
    """
    bounds = [index * rows // chunks // ROW_MULTIPLE * ROW_MULTIPLE for index in range(chunks)] + [rows]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def most_chunks(rows: int) -> int:
    """Into how many chunks that many rows can be split."""
    return max(1, rows // FEWEST_ROWS)


@cache
def side_stream(device_index: int) -> torch.cuda.Stream:
    """One stream a device for the sums, of high priority: a sum must not wait until the product has filled the GPU.

    One for all layers, so that two sums through one symmetric buffer never run at a time: their signals would mix.
    """
    return torch.cuda.Stream(device_index, priority=-1)
