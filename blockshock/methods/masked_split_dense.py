"""The ablation of Block-Shock (H3): the same complementary halves, multiplied densely with their zeros.

Whatever Block-Shock gains over this comes from its kernels; whatever this gains comes from the split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from blockshock.methods import ParallelLinear
from blockshock.methods.shared.dense_linear import dense_linear, matmul
from blockshock.methods.shared.halves import HalvesLinear, HalvesOptions, check_halves

if TYPE_CHECKING:
    from blockshock.config import Job
    from blockshock.problem import Problem


@dataclass
class MaskedSplitDense(HalvesOptions):
    name: str

    def check(self, job: Job) -> None:
        check_halves(job, self)

    def build(self, problem: Problem, weight: torch.Tensor) -> ParallelLinear:
        return MaskedSplitLinear(self, problem, weight)

    def build_partial(self, problem: Problem, weight: torch.Tensor) -> HalvesLinear:
        """This rank's product alone, not summed: for pairs of layers, which sum in a way of their own."""
        return MaskedSplitLinear(self, problem, weight, summed=False)


class MaskedSplitLinear(HalvesLinear):
    """Parameters are dense, with exact zeros outside the mask; gradients are masked, so zeros stay zero."""

    def __init__(self, options: HalvesOptions, problem: Problem, weight: torch.Tensor, summed: bool = True) -> None:
        super().__init__(problem, options, summed)
        self.masks = self.local_halves(problem, weight)
        own, zero = weight[self.rows, self.columns], weight.new_zeros(())
        self.weights = nn.ParameterList(nn.Parameter(torch.where(mask, own, zero)) for mask in self.masks)
        self.choose_collective(options, {"name": "dense"})

    def multiply(self, x: torch.Tensor, half: int) -> torch.Tensor:
        return dense_linear(x, self.weights[half], self.collective.total, self.masks[half])

    def matmul(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        return matmul(x, out, weight=self.weights[0])

    def dense_half(self, part: torch.Tensor, half: int) -> torch.Tensor:
        return part

    def half_bytes(self) -> float:
        return self.weights[0].numel() * self.itemsize

    def describe(self) -> dict[str, Any]:
        return self.collective.describe()
