"""Column-parallel tensor parallelism as PyTorch offers it: `ColwiseParallel` on a DTensor weight, its output gathered.

The peer of dense_tp_column: the same shards and products, an all-gather forward and an all-reduce of dX backward;
the dispatch and the collectives are DTensor's (dtensor_row.py says what that changes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel

from blockshock.methods import ParallelLinear
from blockshock.methods.dense_tp_column import ColumnShardedLinear
from blockshock.methods.dense_tp_row import check_shards
from blockshock.methods.dtensor_row import DTensorRowLinear
from blockshock.methods.shared.column_shard import Shards
from blockshock.methods.shared.dtensor import PlannedLinear, PlannedShard, reject_whole_step_graph

if TYPE_CHECKING:
    from blockshock.config import Job
    from blockshock.problem import Problem


@dataclass
class DTensorColumn:
    name: str

    def check(self, job: Job) -> None:
        check_shards(job, "N")

    def check_in_step(self, job: Job) -> None:
        reject_whole_step_graph(self.name, job)

    def build(self, problem: Problem, weight: torch.Tensor) -> ParallelLinear:
        return DTensorColumnLinear(problem, weight)

    def build_column_row(self, up: Problem, up_rows: torch.Tensor, down: Problem, down_weight: torch.Tensor) -> Shards:
        return PlannedShard(up, up_rows), DTensorRowLinear(down, down_weight)


class DTensorColumnLinear(PlannedLinear, ColumnShardedLinear):
    def __init__(self, problem: Problem, weight: torch.Tensor) -> None:
        super().__init__(problem)
        plan = ColwiseParallel(input_layouts=Replicate(), output_layouts=Replicate())
        self.follow(plan, self.own(weight), Shard(0))
