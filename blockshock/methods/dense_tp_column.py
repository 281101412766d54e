"""Column-parallel tensor parallelism: the output features are sharded, an all-gather joins them (Megatron-LM, 2019).

    rank r holds X and W_r = W[rows_r, :];   Y[:, rows_r] = X W_rᵀ, gathered on every rank
    dX = Σ_r dY[:, rows_r] W_r needs an all-reduce, dW_r = dY[:, rows_r]ᵀ X does not

(The name is the field's: W's transpose is what the papers write, and its columns are sharded.)
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn

from blockshock.collectives.gradients import gather_columns, sum_gradient
from blockshock.collectives.parts import Parts, gather_parts
from blockshock.measure.roofline import Cost, all_gather, all_reduce
from blockshock.methods import ParallelLinear, ring_roundings
from blockshock.methods.dense_single import dense_costs
from blockshock.methods.dense_tp_row import DenseTpRowLinear, check_shards
from blockshock.methods.shared.column_shard import ColumnShard, Shards
from blockshock.ranks import distributed

if TYPE_CHECKING:
    from blockshock.config import Job
    from blockshock.problem import Problem


@dataclass
class DenseTpColumn:
    name: str

    def check(self, job: Job) -> None:
        check_shards(job, "N")

    def build(self, problem: Problem, weight: torch.Tensor) -> ParallelLinear:
        return DenseTpColumnLinear(problem, weight)

    def build_column_row(self, up: Problem, up_rows: torch.Tensor, down: Problem, down_weight: torch.Tensor) -> Shards:
        return ColumnShard(up, up_rows), DenseTpRowLinear(down, down_weight)


class ColumnShardedLinear(ParallelLinear):
    """What a rank holds, gathers and sums where the output features are sharded, whoever multiplies."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.batch, self.outputs, self.features = problem.B, problem.N, problem.K
        self.itemsize = problem.dtype.itemsize
        self.ranks, height = distributed.world_size(), problem.N // distributed.world_size()
        self.rows = slice(distributed.rank() * height, (distributed.rank() + 1) * height)

    def own(self, weight: torch.Tensor) -> torch.Tensor:
        """(N, K) -> a copy of this rank's rows (N/P, K)."""
        return weight[self.rows].clone()

    def place_weight(self, parts: list[torch.Tensor]) -> torch.Tensor:
        full = parts[0].new_zeros(self.outputs, parts[0].shape[1])
        full[self.rows] = parts[0]
        return full

    def costs(self) -> dict[str, Cost]:
        costs = dense_costs(self.batch, self.outputs // self.ranks, self.features, self.itemsize)
        costs["forward"] += all_gather(self.ranks, self.batch * self.outputs * self.itemsize)
        costs["backward_input"] += all_reduce(self.ranks, self.batch * self.features * self.itemsize)
        return costs

    def collectives(self) -> dict[str, Counter[str]]:
        return {"forward": Counter(all_gather=1), "backward": Counter(all_reduce=1)}

    def roundings(self) -> dict[str, float]:
        return {"Y": 1.0, "dX": ring_roundings(self.ranks), "dW": 1.0}


class DenseTpColumnLinear(ColumnShardedLinear):
    def __init__(self, problem: Problem, weight: torch.Tensor) -> None:
        super().__init__(problem)
        self.weight = nn.Parameter(self.own(weight))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = sum_gradient(x, dist.group.WORLD)
        return gather_columns(nn.functional.linear(x, self.weight), dist.group.WORLD)

    def parts(self, x: torch.Tensor) -> Parts:
        assert dist.group.WORLD is not None
        return gather_parts(x, partial(nn.functional.linear, weight=self.weight), dist.group.WORLD)
