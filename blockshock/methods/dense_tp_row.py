"""Row-parallel tensor parallelism: the input features are sharded, an all-reduce sums (Megatron-LM, 2019).

rank r holds X_r = X[:, cols_r] and W_r = W[:, cols_r];   Y = Σ_r X_r W_rᵀ
dX_r = dY W_r stays on its rank, dW_r = dYᵀ X_r
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn

from blockshock import distributed
from blockshock.collectives import sum_over_ranks
from blockshock.errors import ConfigError
from blockshock.methods import ParallelLinear, ring_roundings
from blockshock.methods.dense_single import dense_costs
from blockshock.roofline import Cost, all_reduce

if TYPE_CHECKING:
    from blockshock.config import Job
    from blockshock.problem import Problem


@dataclass
class DenseTpRow:
    name: str

    def check(self, job: Job) -> None:
        check_shards(job, "K")

    def build(self, problem: Problem, weight: torch.Tensor) -> ParallelLinear:
        return DenseTpRowLinear(problem, weight)


def check_shards(job: Job, axis: str) -> None:
    """Refuse one rank, and a sharded axis that the ranks do not divide."""
    ranks, size = job.hardware.world_size, getattr(job.model, axis)
    if ranks < 2:
        raise ConfigError(
            "hardware.world_size",
            ranks,
            f"{job.method.name} shards over at least 2 ranks; one rank is dense_single",
        )
    if size % ranks:
        raise ConfigError(f"model.{axis}", size, f"{job.method.name} needs a multiple of {ranks} ranks")


class DenseTpRowLinear(ParallelLinear):
    def __init__(self, problem: Problem, weight: torch.Tensor) -> None:
        super().__init__()
        self.batch, self.features = problem.B, problem.K
        self.ranks, width = distributed.world_size(), problem.K // distributed.world_size()
        self.columns = slice(distributed.rank() * width, (distributed.rank() + 1) * width)
        self.weight = nn.Parameter(weight[:, self.columns].contiguous())  # (N, K/P)

    def shard_input(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, self.columns].contiguous()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sum_over_ranks(nn.functional.linear(x, self.weight), dist.group.WORLD)

    def assemble_input_grad(self, dx: torch.Tensor) -> torch.Tensor:
        full = dx.new_zeros(len(dx), self.features)
        full[:, self.columns] = dx
        return distributed.allreduce_sum(full)

    def place_weight(self, parts: list[torch.Tensor]) -> torch.Tensor:
        full = parts[0].new_zeros(len(parts[0]), self.features)
        full[:, self.columns] = parts[0]
        return full

    def costs(self) -> dict[str, Cost]:
        rows, width = self.weight.shape
        itemsize = self.weight.element_size()
        costs = dense_costs(self.batch, rows, width, itemsize)
        costs["forward"] += all_reduce(self.ranks, self.batch * rows * itemsize)
        return costs

    def roundings(self) -> dict[str, float]:
        return {"Y": ring_roundings(self.ranks), "dX": 1.0, "dW": 1.0}
