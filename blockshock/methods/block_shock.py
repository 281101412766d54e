"""Block-Shock: W = W₀ + W₁ with complementary 2:4 halves, one on each rank of a pair, multiplied by sparse kernels.

    rank 2s + g:   partial = X[:, cols_s] W_g[:, cols_s]ᵀ     (half of the multiplications, 9/16 of the weight's bytes)
    all ranks:     Y = Σ partial                              (halves.py has the other way to shard, over rows of W)

`weights=packed` (default): the parameter *is* the packed matrix (N, K/2q) that the kernel reads. Gradient and
optimizer state are packed as well, and nothing is ever compressed again.
`weights=masked`: the classic alternative. The parameter is a dense masked copy; its compressed form is made again
every `compress_every` optimizer steps (1: always; K: every K steps, in between the product lags behind; 0: once).

With a mask that prunes, the weight is no sum of halves: the ranks hold overlapping 2:4 windows (shared/windows.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from blockshock.errors import ConfigError, at_least, one_of
from blockshock.kernels import check_kernel, make, masked_linear, packed_linear
from blockshock.kernels.choice import IN_A_GRAPH, blocks_of_mask
from blockshock.masks import prunes
from blockshock.measure.timing import region
from blockshock.methods import ParallelLinear
from blockshock.methods.shared.halves import HalvesLinear, HalvesOptions, check_halves
from blockshock.methods.shared.windows import WindowsLinear, check_windows

if TYPE_CHECKING:
    from blockshock.config import Job
    from blockshock.problem import Problem


@dataclass
class BlockShock(HalvesOptions):
    name: str
    kernel: str = "auto"  # auto | gather | triton | sparse_mma | cusparselt | masked_dense | reference
    weights: str = "packed"  # packed | masked
    compress_every: int = 1  # optimizer steps, with weights=masked

    def check(self, job: Job) -> None:
        if prunes(job.mask):
            check_windows(job, self)
            return
        rows, columns = check_halves(job, self)
        one_of("method.weights", self.weights, ("packed", "masked"))
        at_least("method.compress_every", self.compress_every, 0)
        if self.weights == "packed" and self.compress_every != 1:
            raise ConfigError(
                "method.compress_every",
                self.compress_every,
                "packed weights are never compressed; set weights=masked",
            )
        check_kernel(job, self.kernel, rows, columns)

    def check_in_step(self, job: Job) -> None:
        super().check_in_step(job)
        if self.kernel not in IN_A_GRAPH and self.kernel != "auto":
            problem = f"is no operator of a graph; use auto or {', '.join(IN_A_GRAPH)}"
            raise ConfigError("method.kernel", self.kernel, problem)
        if self.weights != "packed":
            raise ConfigError("method.weights", self.weights, "are compressed between steps; use packed")
        if self.kernel == "auto":
            self.kernel = "gather" if blocks_of_mask(job) else "masked_dense"

    def build(self, problem: Problem, weight: torch.Tensor) -> ParallelLinear:
        return (WindowsLinear if prunes(problem.mask) else BlockShockLinear)(self, problem, weight)

    def build_partial(self, problem: Problem, weight: torch.Tensor) -> HalvesLinear:
        """This rank's product alone, not summed: for pairs of layers, which sum in a way of their own."""
        return BlockShockLinear(self, problem, weight, summed=False)


class BlockShockLinear(HalvesLinear):
    def __init__(self, method: BlockShock, problem: Problem, weight: torch.Tensor, summed: bool = True) -> None:
        super().__init__(problem, method, summed)
        self.method = method
        masks = self.local_halves(problem, weight)
        self.kernels = [make(method.kernel, mask, problem.mask.period, problem.B, problem.dtype) for mask in masks]
        rows = weight[self.rows, self.columns].contiguous()
        packed = [kernel.adopt(kernel.layout.pack(rows)) for kernel in self.kernels]
        if method.weights == "packed":
            self.weights = nn.ParameterList(nn.Parameter(values) for values in packed)
            self.compressed: list[torch.Tensor] = []
        else:
            self.weights = nn.ParameterList(
                nn.Parameter(kernel.layout.unpack(values)) for kernel, values in zip(self.kernels, packed, strict=True)
            )
            self.compressed = packed
        self.choose_collective(method, self.kernels[0].describe())

    def multiply(self, x: torch.Tensor, half: int) -> torch.Tensor:
        total = self.collective.total
        if self.compressed:
            return masked_linear(x, self.weights[half], self.compressed[half], self.kernels[half], total)
        return packed_linear(x, self.weights[half], self.kernels[half], total)

    def matmul(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        values = self.compressed[0] if self.compressed else self.weights[0]
        return self.kernels[0].matmul(x, values, out)

    def after_optimizer_step(self, step: int) -> None:
        """Compress again after optimizer step number `step` (from 1), where the method says so."""
        every = self.method.compress_every
        if not self.compressed or every == 0 or step % every:
            return
        with region("compress"), torch.no_grad():
            for kernel, values, weight in zip(self.kernels, self.compressed, self.weights, strict=True):
                kernel.recompress(values, weight)

    def dense_half(self, part: torch.Tensor, half: int) -> torch.Tensor:
        return part if self.compressed else self.kernels[half].layout.unpack(part)

    def half_bytes(self) -> float:
        layout = self.kernels[0].layout
        return layout.rows * layout.features // 2 * self.itemsize + layout.metadata_bits / 8

    def weight_bytes(self) -> int:
        dense = sum(w.numel() * self.itemsize for w in self.weights) if self.compressed else 0
        return dense + sum(kernel.weight_bytes for kernel in self.kernels)

    def flop_formulas(self) -> dict[Any, Callable[..., int]]:
        return self.kernels[0].flop_formulas()

    def describe(self) -> dict[str, Any]:
        return {"kernel": self.kernels[0].describe(), "weights": self.method.weights, **self.collective.describe()}
