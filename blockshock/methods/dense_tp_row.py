"""Row-parallel tensor parallelism: the input features are sharded, an all-reduce sums (Megatron-LM, 2019).

rank r holds X_r = X[:, cols_r] and W_r = W[:, cols_r];   Y = Σ_r X_r W_rᵀ
dX_r = dY W_r stays on its rank, dW_r = dYᵀ X_r
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.distributed as dist
from torch import nn

from blockshock.collectives.choice import CollectiveOptions, check_collective, choose
from blockshock.collectives.parts import Parts, sum_parts
from blockshock.errors import ConfigError
from blockshock.measure.roofline import Cost, all_reduce
from blockshock.methods import ParallelLinear, ring_roundings
from blockshock.methods.dense_single import dense_costs
from blockshock.methods.shared.column_shard import ColumnShard, Shards
from blockshock.methods.shared.dense_linear import dense_linear, matmul
from blockshock.ranks import distributed

if TYPE_CHECKING:
    from blockshock.config import Job
    from blockshock.problem import Problem


@dataclass
class DenseTpRow(CollectiveOptions):
    name: str

    def check(self, job: Job) -> None:
        check_shards(job, "K")
        check_collective(job, self, job.hardware.world_size, job.model.N)

    def build(self, problem: Problem, weight: torch.Tensor) -> ParallelLinear:
        return DenseTpRowLinear(problem, weight, self)

    def build_column_row(self, up: Problem, up_rows: torch.Tensor, down: Problem, down_weight: torch.Tensor) -> Shards:
        return ColumnShard(up, up_rows), DenseTpRowLinear(down, down_weight, self)


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
        raise ConfigError(f"model.{axis}", size, f"{job.method.name} on {ranks} ranks needs a multiple of {ranks}")


class RowShardedLinear(ParallelLinear):
    """What a rank reads, holds and sums where the input features are sharded, whoever multiplies."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.batch, self.outputs, self.features = problem.B, problem.N, problem.K
        self.itemsize = problem.dtype.itemsize
        self.ranks, self.width = distributed.world_size(), problem.K // distributed.world_size()
        self.columns = slice(distributed.rank() * self.width, (distributed.rank() + 1) * self.width)

    def own(self, weight: torch.Tensor) -> torch.Tensor:
        """(N, K) -> this rank's columns (N, K/P), contiguous."""
        return weight[:, self.columns].contiguous()

    def shard_input(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, self.columns].contiguous()

    def assemble_input_grad(self, dx: torch.Tensor) -> torch.Tensor:
        full = dx.new_zeros(len(dx), self.features)
        full[:, self.columns] = dx
        return distributed.allreduce_sum(full)

    def place_weight(self, parts: list[torch.Tensor]) -> torch.Tensor:
        full = parts[0].new_zeros(len(parts[0]), self.features)
        full[:, self.columns] = parts[0]
        return full

    def costs(self) -> dict[str, Cost]:
        costs = dense_costs(self.batch, self.outputs, self.width, self.itemsize)
        costs["forward"] += all_reduce(self.ranks, self.batch * self.outputs * self.itemsize)
        return costs

    def collectives(self) -> dict[str, Counter[str]]:
        return {"forward": Counter(all_reduce=1), "input_grad": Counter(all_reduce=1)}

    def roundings(self) -> dict[str, float]:
        return {"Y": ring_roundings(self.ranks), "dX": 1.0, "dW": 1.0}


AUTO = CollectiveOptions()


class DenseTpRowLinear(RowShardedLinear):
    KERNEL: ClassVar[str] = "dense"

    def __init__(self, problem: Problem, weight: torch.Tensor, options: CollectiveOptions = AUTO) -> None:
        super().__init__(problem)
        self.weight = nn.Parameter(self.own(weight))
        self.prepare()
        self.collective = choose(
            options,
            self.matmul,
            dist.group.WORLD,
            batch=problem.B,
            features=self.width,
            width=problem.N,
            dtype=problem.dtype,
            device=problem.device,
            kernel={"name": self.KERNEL},
        )

    def prepare(self) -> None:
        """What `matmul` needs beside the weight."""

    def matmul(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """This rank's X (B, K/P) -> its partial sums (B, N), into `out` where given."""
        return matmul(x, out, weight=self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return dense_linear(x, self.weight, self.collective.total, multiply=self.matmul)

    def parts(self, x: torch.Tensor) -> Parts | None:
        return sum_parts(self.collective.total, x, self.matmul)

    def describe(self) -> dict[str, Any]:
        return self.collective.describe()
