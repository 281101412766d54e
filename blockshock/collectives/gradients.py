"""Collectives with the gradients that tensor parallelism needs (Megatron-LM, 2019, section 3: its f and g).

All assume that the loss is computed alike on every rank, so dY is the same everywhere.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed as dist

from blockshock.collectives import in_graph
from blockshock.measure.timing import region
from blockshock.ranks.distributed import allreduce_sum

Group = dist.ProcessGroup | None  # None: this rank alone


class _SumGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Group) -> torch.Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        partial = grads[0].contiguous()
        if in_graph.tracing():
            return in_graph.all_reduce(partial, ctx.group), None
        with region("allreduce"):
            return allreduce_sum(partial, ctx.group), None


class _GatherColumns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group, ctx.width = group, local.shape[1]
        return join_columns(_gathered(local.contiguous(), group), len(local))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        start = dist.get_rank(ctx.group) * ctx.width
        return grads[0][:, start : start + ctx.width], None


class _ScatterSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: dist.ProcessGroup, *blocks: torch.Tensor) -> torch.Tensor:
        ctx.group = group
        if in_graph.tracing():
            return in_graph.reduce_scatter(torch.cat(blocks), group)
        own = torch.empty_like(blocks[0])
        with region("reducescatter"):
            reduce_scatter(own, _stacked(blocks), group=group)
        return own

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        stacked = _gathered(grads[0].contiguous(), ctx.group)
        return (None, *stacked.chunk(dist.get_world_size(ctx.group)))


def _gathered(own: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """(B, n) of each of P ranks -> (P·B, n)."""
    if in_graph.tracing():
        return in_graph.all_gather(own, group)
    stacked = own.new_empty(dist.get_world_size(group) * len(own), own.shape[1])
    with region("allgather"):
        all_gather(stacked, own, group)
    return stacked


def join_columns(stacked: torch.Tensor, rows: int) -> torch.Tensor:
    """(P·B, n) of `rows` = B -> (B, P·n)."""
    return stacked.view(len(stacked) // rows, rows, -1).transpose(0, 1).reshape(rows, -1)


def _stacked(blocks: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """(B, n) each -> (P·B, n): no copy where the blocks lie one after another in one buffer already."""
    first, size = blocks[0], blocks[0].nbytes
    places = [block.data_ptr() - first.data_ptr() for block in blocks]
    one_buffer = len({block.untyped_storage().data_ptr() for block in blocks}) == 1
    if (
        one_buffer
        and all(block.is_contiguous() for block in blocks)
        and places == [n * size for n in range(len(blocks))]
    ):
        return first.as_strided((len(blocks) * len(first), first.shape[1]), (first.shape[1], 1))
    return torch.cat(blocks)


class _JoinGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, columns: OwnColumns, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.columns, ctx.group = columns, group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        own = ctx.columns.take(grads[0])
        stacked = _gathered(own, ctx.group).view(dist.get_world_size(ctx.group), *own.shape)
        return ctx.columns.put(stacked), None, None


# torch 2.13 renames all_gather_into_tensor and reduce_scatter_tensor and warns of the old names, which 2.11 has only.
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class OwnColumns(Protocol):
    """Which columns of a (B, K) matrix are this rank's, where every rank has as many and each column is one rank's."""

    def take(self, full: torch.Tensor) -> torch.Tensor:
        """(B, K) -> (B, K/P), contiguous: this rank's."""

    def put(self, stacked: torch.Tensor) -> torch.Tensor:
        """(P, B, K/P), every rank's in their order -> (B, K)."""


def sum_gradient(x: torch.Tensor, group: Group) -> torch.Tensor:
    """`x` itself; its gradient is summed over the ranks (f of Megatron-LM)."""
    return x if group is None else _SumGradient.apply(x, group)


def gather_columns(local: torch.Tensor, group: Group) -> torch.Tensor:
    """(B, n) of each of P ranks -> (B, P·n) on all; the gradient is this rank's slice."""
    return local if group is None else _GatherColumns.apply(local, group)


def scatter_sum(blocks: list[torch.Tensor], group: dist.ProcessGroup) -> torch.Tensor:
    """P partial products (B, n), one for each rank of the group -> this rank's, summed over the ranks.

    The rank's loss must depend on the others' blocks through them alone, so their gradients come from them.
    """
    return _ScatterSum.apply(group, *blocks)


def join_gradient(x: torch.Tensor, columns: OwnColumns, group: dist.ProcessGroup) -> torch.Tensor:
    """`x` itself, of which this rank reads its own columns; their gradients are gathered from all ranks."""
    return _JoinGradient.apply(x, columns, group)
