"""The ablation of Block-Shock (H3): the same complementary halves, multiplied densely with their zeros.

Whatever Block-Shock gains over this comes from its kernels; whatever this gains comes from the split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from blockshock.methods import ParallelLinear
from blockshock.methods.halves import HalvesLinear, check_halves

if TYPE_CHECKING:
    from blockshock.config import Job
    from blockshock.problem import Problem


@dataclass
class MaskedSplitDense:
    name: str

    def check(self, job: Job) -> None:
        check_halves(job)

    def build(self, problem: Problem, weight: torch.Tensor) -> ParallelLinear:
        return MaskedSplitLinear(problem, weight)


class MaskedSplitLinear(HalvesLinear):
    """Parameters are dense (N/q, K) with exact zeros outside the mask; gradients are masked, so zeros stay zero."""

    def __init__(self, problem: Problem, weight: torch.Tensor) -> None:
        super().__init__(problem)
        self.masks = self.local_halves(problem, weight)
        zero = weight.new_zeros(())
        self.weights = nn.ParameterList(nn.Parameter(torch.where(mask, weight[self.rows], zero)) for mask in self.masks)

    def multiply(self, x: torch.Tensor, half: int) -> torch.Tensor:
        return _MaskedGradLinear.apply(x, self.weights[half], self.masks[half])

    def dense_half(self, part: torch.Tensor, half: int) -> torch.Tensor:
        return part

    def half_bytes(self) -> float:
        return self.weights[0].numel() * self.itemsize


class _MaskedGradLinear(torch.autograd.Function):
    """Y = X Wᵀ whose weight gradient is zero where the mask is."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight, mask)
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        x, weight, mask = ctx.saved_tensors
        dy = grads[0]
        dx = dy @ weight if ctx.needs_input_grad[0] else None
        dw = (dy.t() @ x).masked_fill_(~mask, 0.0) if ctx.needs_input_grad[1] else None
        return dx, dw, None
