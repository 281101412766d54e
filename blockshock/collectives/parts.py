"""A forward in parts, to be timed one by one: this rank's matmuls, and the collective that joins them.

    parts = layer.parts(x)
    parts.matmul()                  # what the forward multiplies, chunk by chunk, where it is to be summed
    parts.collective()              # what joins the results, in region `parts.region`

Before the region a collective's input is written, so that it lies in the cache as a matmul leaves it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed import _functional_collectives as functional

from blockshock.collectives.gradients import all_gather, join_columns
from blockshock.collectives.matmul_all_reduce import MatmulAllReduce, Multiply, Total, row_chunks
from blockshock.measure.timing import region


@dataclass(frozen=True)
class Parts:
    matmul: Callable[[], object]
    collective: Callable[[], torch.Tensor]  # what the forward returns
    region: str
    chunks: int = 1  # each one's sum overlaps the next one's matmul
    forward: Callable[[], torch.Tensor] | None = None  # with the region in it; None: the layer's own forward has it


def sum_parts(total: Total, x: torch.Tensor, multiply: Multiply) -> Parts | None:
    """Of `total(x, multiply)`; None where this rank sums nothing."""
    if not isinstance(total, MatmulAllReduce):
        return None
    reduction, chunks = total.reduction, row_chunks(len(x), total.chunks)
    product = multiply(x, None).clone()

    def matmuls() -> None:
        partial, _ = reduction.place(len(x), x, whole=len(chunks) > 1)
        for chunk in chunks:
            multiply(x[chunk], None if partial is None else partial[chunk])

    def sums() -> torch.Tensor:
        partial, result = reduction.place(len(x), x, whole=True)
        assert partial is not None
        assert result is not None
        partial.copy_(product)
        with region("allreduce"):
            for chunk in chunks:
                reduction.add(partial[chunk], result[chunk])
            return reduction.finish(result)

    return Parts(matmuls, sums, "allreduce", len(chunks))


def gather_parts(x: torch.Tensor, multiply: Callable[[torch.Tensor], torch.Tensor], group: dist.ProcessGroup) -> Parts:
    """Of `gather_columns(multiply(x), group)`."""
    product = multiply(x).clone()

    def gather() -> torch.Tensor:
        own = torch.empty_like(product).copy_(product)
        with region("allgather"):
            stacked = own.new_empty(dist.get_world_size(group) * len(own), own.shape[1])
            all_gather(stacked, own, group)
            return join_columns(stacked, len(own))

    return Parts(lambda: multiply(x), gather, "allgather")


def functional_parts(
    x: torch.Tensor, multiply: Callable[[torch.Tensor], torch.Tensor], group: dist.ProcessGroup, gathers: bool
) -> Parts:
    """Of a DTensor layer: PyTorch's functional all-gather of columns or, else, its all-reduce."""
    product = multiply(x).clone()
    name = "allgather" if gathers else "allreduce"

    def join(own: torch.Tensor) -> torch.Tensor:
        with region(name):
            joined = (
                functional.all_gather_tensor(own, 1, group) if gathers else functional.all_reduce(own, "sum", group)
            )
            return functional.wait_tensor(joined)

    def collective() -> torch.Tensor:
        return join(torch.empty_like(product).copy_(product))

    # What the layer dispatches, called by hand: inside of PyTorch's own layer nothing can be in a region.
    return Parts(lambda: multiply(x), collective, name, forward=lambda: join(multiply(x)))
