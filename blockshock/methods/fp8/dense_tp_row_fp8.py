"""Row-parallel with the matmul in fp8: what a dense layer gains from fewer bits, next to what a split gains.

    x8 = e4m3(X_r / s),   w8 = e4m3(W_r / t);   Y = Σ_r s t x8 w8ᵀ, summed in the model's dtype

One scale per tensor: the least power of two with which the largest value fits (448). Dividing by it rounds nothing.
X is scaled and rounded in every forward, W when it is built and after each update. Gradients are dense_tp_row's, by the
weight before rounding.

e4m3 has 3 bits of mantissa (Micikevicius et al., FP8 Formats for Deep Learning, 2022), m - 3 fewer than a dtype of m
bits, so rounding to it errs 2^(m-3) times as much. X and W are rounded independently: their errors in Y add as squares,
also to those of the sum over the ranks. So Y has sqrt(2 · 4^(m-3) + ring(P)²) roundings. That counts what is large: of
values below 2^-15 of the largest, which e4m3 holds with fewer bits or not at all, the energy is taken to be small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from blockshock.collectives.choice import CollectiveOptions, check_collective
from blockshock.dtypes import DTYPES
from blockshock.errors import ConfigError
from blockshock.measure import nvml
from blockshock.measure.roofline import Cost
from blockshock.measure.timing import region
from blockshock.methods.dense_tp_row import DenseTpRowLinear, check_shards
from blockshock.ranks import distributed

if TYPE_CHECKING:
    from blockshock.config import Job
    from blockshock.methods import ParallelLinear
    from blockshock.problem import Problem

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max  # 448
SMALLEST = 2.0**-60  # of amax: zeros have a scale, too
MANTISSA = {torch.bfloat16: 7, torch.float16: 10}
MULTIPLE = 16  # of N and a rank's K: torch._scaled_mm
NEEDED = (8, 9)  # compute capability


@dataclass
class DenseTpRowFp8(CollectiveOptions):
    name: str

    def check(self, job: Job) -> None:
        check_shards(job, "K")
        check_collective(job, self, job.hardware.world_size, job.model.N)
        if DTYPES[job.model.dtype] not in MANTISSA:
            raise ConfigError("model.dtype", job.model.dtype, f"{self.name} sums bf16 and fp16; use bf16")
        for axis, size in (("N", job.model.N), ("K", job.model.K // job.hardware.world_size)):
            if size % MULTIPLE:
                problem = f"{self.name} needs a multiple of {MULTIPLE} on each rank, not {size}"
                raise ConfigError(f"model.{axis}", getattr(job.model, axis), problem)
        capability = nvml.capability() if job.hardware.device == "cuda" else None
        if capability is not None and capability < NEEDED:
            found, needed = (".".join(map(str, each)) for each in (capability, NEEDED))
            problem = f"needs a GPU with fp8 (compute capability {needed}), not {found}; use dense_tp_row"
            raise ConfigError("method", self.name, problem)

    def check_in_step(self, job: Job) -> None:
        raise ConfigError("method", self.name, "rounds weights between steps, outside of a graph; use dense_tp_row")

    def build(self, problem: Problem, weight: torch.Tensor) -> ParallelLinear:
        return DenseTpRowFp8Linear(problem, weight, self)


def rounded(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(x / scale in e4m3, the scale): a power of two, a float32 tensor of one number on the same device."""
    largest = torch.linalg.vector_norm(x, math.inf).float().clamp_min(SMALLEST)
    scale = torch.exp2(torch.ceil(torch.log2(largest / LARGEST)))
    return (x * scale.reciprocal()).to(FP8), scale


class DenseTpRowFp8Linear(DenseTpRowLinear):
    KERNEL: ClassVar[str] = "fp8"

    def prepare(self) -> None:
        self.weight8, self.scale = rounded(self.weight.detach())

    def matmul(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        x8, scale = rounded(x)
        weight8 = self.weight8.t()
        if out is None:
            return torch._scaled_mm(x8, weight8, scale, self.scale, out_dtype=x.dtype)
        return torch._scaled_mm(x8, weight8, scale, self.scale, out_dtype=x.dtype, out=out)

    def after_optimizer_step(self, step: int) -> None:
        with region("compress"), torch.no_grad():
            weight8, scale = rounded(self.weight)
            self.weight8.copy_(weight8)  # in place: a graph reads it
            self.scale.copy_(scale)

    def costs(self) -> dict[str, Cost]:
        costs = super().costs()
        saved = self.outputs * (self.features // self.ranks) * (self.itemsize - 1)
        return {**costs, "forward": costs["forward"] + Cost(memory_bytes=-saved)}

    def roundings(self) -> dict[str, float]:
        found = super().roundings()
        factor = 2.0 ** (MANTISSA[self.weight.dtype] - 3)
        return {**found, "Y": math.sqrt(2 * factor**2 + found["Y"] ** 2)}

    def weight_bytes(self) -> int:
        return super().weight_bytes() + distributed.local_bytes([self.weight8])

    def describe(self) -> dict[str, Any]:
        return {"kernel": {"name": self.KERNEL}, **super().describe()}
