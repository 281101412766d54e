"""Row-parallel tensor parallelism as PyTorch offers it: `RowwiseParallel` on a DTensor weight.

The peer of dense_tp_row: the same shards, products and all-reduce. What differs is PyTorch's: DTensor's dispatch on the
host, which a CUDA graph removes, and its functional collectives, which sum into a copy of the partial product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import RowwiseParallel

from blockshock.methods import ParallelLinear
from blockshock.methods.dense_tp_row import RowShardedLinear, check_shards
from blockshock.methods.shared.column_shard import Shards
from blockshock.methods.shared.dtensor import PlannedLinear, PlannedShard, reject_whole_step_graph

if TYPE_CHECKING:
    from blockshock.config import Job
    from blockshock.problem import Problem


@dataclass
class DTensorRow:
    name: str

    def check(self, job: Job) -> None:
        check_shards(job, "K")

    def check_in_step(self, job: Job) -> None:
        reject_whole_step_graph(self.name, job)

    def build(self, problem: Problem, weight: torch.Tensor) -> ParallelLinear:
        return DTensorRowLinear(problem, weight)

    def build_column_row(self, up: Problem, up_rows: torch.Tensor, down: Problem, down_weight: torch.Tensor) -> Shards:
        return PlannedShard(up, up_rows), DTensorRowLinear(down, down_weight)


class DTensorRowLinear(PlannedLinear, RowShardedLinear):
    def __init__(self, problem: Problem, weight: torch.Tensor) -> None:
        super().__init__(problem)
        plan = RowwiseParallel(input_layouts=Shard(-1), output_layouts=Replicate())
        self.follow(plan, self.own(weight), Shard(1))
