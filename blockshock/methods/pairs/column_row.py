"""Megatron's pairing: column-parallel, then row-parallel, and nothing is sent between them (2019, section 3).

rank r:   H_r = φ(X W_up[rows_r]ᵀ)               its hidden columns
all:      Y = Σ_r H_r W_down[:, rows_r]ᵀ         the one all-reduce; backward, one of dX
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from torch import Tensor

from blockshock.collectives.choice import CollectiveOptions, check_collective
from blockshock.errors import ConfigError
from blockshock.measure.roofline import Cost, all_reduce
from blockshock.methods.dense_single import dense_costs
from blockshock.methods.pairs.pair import Activate, Between, PairWeights, ParallelPair
from blockshock.ranks import distributed

if TYPE_CHECKING:
    from blockshock.config import Job
    from blockshock.problem import Problem


class ColumnRowPair(ParallelPair):
    PAIRING = "column_row"

    def __init__(
        self, problem: Problem, method: Any, between: Between, activate: Activate, weights: PairWeights
    ) -> None:
        super().__init__(problem, method, between, activate, weights)
        up = problem.of_layer("up", between.rows, problem.K)
        down = problem.of_layer("down", problem.N, between.hidden)
        self.up, self.down = method.build_column_row(up, self.own_rows(weights.up), down, weights.down)

    @classmethod
    def unsupported(cls, job: Job) -> str | None:
        if hasattr(job.method, "build_column_row"):
            return None
        return "is dense tensor parallelism's: no rank has all weights of a hidden unit in halves; use dense_tp_row"

    @classmethod
    def check(cls, job: Job, between: Between) -> None:
        check_shares(job, between)
        if isinstance(job.method, CollectiveOptions):
            check_collective(job, job.method, job.hardware.world_size, job.model.N)

    def first(self, x: Tensor) -> Tensor:
        first: Tensor = self.up(x)
        return first

    def enter_down(self, hidden: Tensor) -> Tensor:
        return hidden

    def assemble_products(self, like_parameters: list[Tensor]) -> list[Tensor]:
        up, *down = (distributed.local_part(part) for part in like_parameters)
        return [self.join_own_rows(up), self.down.assemble_weight(down)]

    def own_costs(self) -> dict[str, Cost]:
        costs = dense_costs(self.batch, self.between.rows // self.ranks, self.inputs, self.itemsize)
        costs["backward_input"] += all_reduce(self.ranks, self.batch * self.inputs * self.itemsize)
        return costs

    def collectives(self) -> dict[str, Counter[str]]:
        return {"forward": Counter(all_reduce=1), "backward": Counter(all_reduce=1)}

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"down": self.down.describe()}


def check_shares(job: Job, between: Between) -> None:
    """Reject one rank, and hidden features that the ranks can't share equally."""
    ranks = job.hardware.world_size
    if ranks < 2:
        problem = f"{job.method.name} shares the hidden features over at least 2 ranks; one rank is dense_single"
        raise ConfigError("hardware.world_size", ranks, problem)
    between.check_shares(job)
