"""Collectives with the gradients that tensor parallelism needs (Megatron-LM, 2019, section 3: its f and g).

All assume that the loss is computed alike on every rank, so dY is the same everywhere.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

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
        with region("allreduce"):
            return allreduce_sum(partial, ctx.group), None


class _GatherColumns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group, ctx.width = group, local.shape[1]
        ranks = dist.get_world_size(group)
        stacked = torch.empty(ranks * len(local), local.shape[1], dtype=local.dtype, device=local.device)
        with region("allgather"):
            all_gather(stacked, local.contiguous(), group)
        return stacked.view(ranks, len(local), -1).transpose(0, 1).reshape(len(local), -1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        start = dist.get_rank(ctx.group) * ctx.width
        return grads[0][:, start : start + ctx.width], None


# torch 2.13 renames all_gather_into_tensor and warns of the old name; 2.11 has the old name only.
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def sum_gradient(x: torch.Tensor, group: Group) -> torch.Tensor:
    """`x` itself; its gradient is summed over the ranks (f of Megatron-LM)."""
    return x if group is None else _SumGradient.apply(x, group)


def gather_columns(local: torch.Tensor, group: Group) -> torch.Tensor:
    """(B, n) of each of P ranks -> (B, P·n) on all; the gradient is this rank's slice."""
    return local if group is None else _GatherColumns.apply(local, group)
