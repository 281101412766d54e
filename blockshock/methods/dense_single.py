"""The whole layer on one device: what every other method is compared with.

Y = X Wᵀ
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from blockshock.errors import ConfigError
from blockshock.measure.roofline import Cost, matmul
from blockshock.methods import ParallelLinear

if TYPE_CHECKING:
    from blockshock.config import Job
    from blockshock.problem import Problem


@dataclass
class DenseSingle:
    name: str

    def check(self, job: Job) -> None:
        if job.hardware.world_size != 1:
            raise ConfigError(
                "hardware.world_size", job.hardware.world_size, "dense_single runs on one rank; set it to 1"
            )

    def build(self, problem: Problem, weight: torch.Tensor) -> ParallelLinear:
        return DenseSingleLinear(problem, weight)


class DenseSingleLinear(ParallelLinear):
    def __init__(self, problem: Problem, weight: torch.Tensor) -> None:
        super().__init__()
        self.batch = problem.B
        self.weight = nn.Parameter(weight.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight)

    def place_weight(self, parts: list[torch.Tensor]) -> torch.Tensor:
        return parts[0].clone()

    def costs(self) -> dict[str, Cost]:
        return dense_costs(self.batch, len(self.weight), self.weight.shape[1], self.weight.element_size())


def dense_costs(B: int, N: int, K: int, itemsize: int) -> dict[str, Cost]:
    """The three products of a dense (N, K) linear layer on B rows."""
    x, w, y = B * K * itemsize, N * K * itemsize, B * N * itemsize
    return {
        "forward": matmul(B, N, K, x, w, y),
        "backward_input": matmul(B, K, N, y, w, x),
        "backward_weight": matmul(N, K, B, y, x, w),
    }
