"""Y = X Wᵀ in two matmuls, one for each half of W's rows."""

from dataclasses import dataclass

import torch

from blockshock.errors import ConfigError
from blockshock.methods.dense_single import DenseSingleLinear


@dataclass
class Twice:
    name: str
    parts: int = 2

    def check(self, job):
        if job.hardware.world_size != 1:
            raise ConfigError("hardware.world_size", job.hardware.world_size, "twice runs on one rank; set it to 1")

    def build(self, problem, weight):
        return TwiceLinear(problem, weight, self.parts)


class TwiceLinear(DenseSingleLinear):
    def __init__(self, problem, weight, parts):
        super().__init__(problem, weight)
        self.parts = parts

    def forward(self, x):
        return torch.cat([x @ rows.t() for rows in self.weight.chunk(self.parts)], dim=1)
