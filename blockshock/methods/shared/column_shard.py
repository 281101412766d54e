"""Column-parallel up to the gather: what the first layer of a pair leaves on each rank (Megatron-LM, 2019, section 3).

up, down = ColumnShard(problem, rows), DenseTpRowLinear(...)      # the two layers between which nothing is sent
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn

from blockshock.collectives.gradients import sum_gradient

if TYPE_CHECKING:
    from blockshock.methods import ParallelLinear
    from blockshock.problem import Problem

Shards = tuple[nn.Module, "ParallelLinear"]  # (B, K) -> (B, this rank's hidden columns); those -> all of Y (B, N)


class ColumnShard(nn.Module):
    """X (B, K) on every rank -> this rank's columns of X Wᵀ; the gradient of X is summed over the ranks."""

    def __init__(self, up: Problem, up_rows: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(up_rows.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(sum_gradient(x, dist.group.WORLD), self.weight)
