"""The tensors of one job, made from independent seeds: the same on every rank and at every world size.

Y = X Wᵀ with X (B, K), W (N, K); the target and the upstream gradient are (B, N).
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import nn

from blockshock.config import Job
from blockshock.dtypes import DTYPES
from blockshock.masks import Mask, halves
from blockshock.masks.pattern import PatternMask
from blockshock.masks.window import WindowMask
from blockshock.workloads import Inputs

if TYPE_CHECKING:
    from blockshock.methods import Method, ParallelModule


def generator(seed: int, name: str, device: torch.device) -> torch.Generator:
    """A generator for one named tensor; two names never share a stream, whatever the seed."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)


_UNPRUNED = PatternMask("unpruned", "1100")


def problem_of(job: Job, device: torch.device) -> Problem:
    """What `job` computes: a linear layer, unless its workload has a `problem(job, device)` of its own."""
    make = getattr(job.workload, "problem", Problem.of)
    problem: Problem = make(job, device)
    return problem


class LargeRun(NamedTuple):
    """A dense training run that is worth keeping, of large outputs and weights."""

    name: str  # all that it depends on but seed, dtypes, device and optimizer
    outputs: int  # elements of Y
    weights: list[int]  # elements of each of `dense`'s parameters


class DenseLayer(nn.Module):
    """The layer as one writes it, in any dtype: what every method's is compared with."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.t()


@dataclass(frozen=True)
class Problem:
    """Sizes, dtype and device, and the tensors on demand: a caller that drops one frees its memory."""

    N: int
    K: int
    B: int
    dtype: torch.dtype
    device: torch.device
    seed: int
    workload: Inputs | None  # None: in a model, whose batches its own problem draws
    mask: Mask | WindowMask

    has_input_grad: ClassVar[bool] = True  # whether dX is one of its quantities

    @classmethod
    def of(cls, job: Job, device: torch.device) -> Problem:
        m = job.model
        return cls(m.N, m.K, m.B, DTYPES[m.dtype], device, job.experiment.seed, job.workload, job.mask)

    def inputs(self, step: int = 0) -> torch.Tensor:
        """X (B, K) from the workload; every `step` has a batch of its own."""
        assert self.workload is not None
        return self.workload.make(self.B, self.K, self._generator("X", step)).to(self.dtype)

    def weight(self) -> torch.Tensor:
        """W (N, K), normal with variance 1/K, so that Y is of order one."""
        return self._weight("W", self.N, self.K)

    def of_layer(self, name: str, N: int, K: int) -> Problem:
        """A layer (N, K) within this problem; its mask is drawn from a stream of its own."""
        seed = generator(self.seed, name, torch.device("cpu")).initial_seed()
        return Problem(N, K, self.B, self.dtype, self.device, seed, self.workload, self.mask)

    def weights(self) -> Any:
        """What `build` puts over the ranks, the same on each."""
        return self.weight()

    def build(self, method: Method, weights: Any) -> ParallelModule:
        """The method's part of this rank. A collective."""
        return method.build(self, weights)

    def dense(self, dtype: torch.dtype) -> nn.Module:
        """The same on one device, in `dtype`, from the weights as rounded to the dtype under test."""
        return DenseLayer(self.weight().to(dtype))

    def kept(self) -> list[torch.Tensor] | None:
        """Where `dense`'s parameters hold weights that the mask has not pruned; None where it prunes nothing.

        Gradients are compared there. Elsewhere a dense method has some, and a window none.
        """
        return [self.mask.keep(self.weight())] if isinstance(self.mask, WindowMask) else None

    def energy_kept(self) -> float | None:
        """The share of the weights' squared norm that pruning has left."""
        if not isinstance(self.mask, WindowMask):
            return None
        full = dataclasses.replace(self, mask=_UNPRUNED)
        parts = [list(problem.dense(torch.float64).parameters()) for problem in (self, full)]
        kept, all_ = (sum(float(part.detach().square().sum()) for part in weights) for weights in parts)
        return kept / all_

    def weight_quantities(self) -> list[str]:
        """The quantity as which each of `dense`'s parameters' gradients is judged."""
        return ["dW"]

    def cast(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The inputs as `dense(dtype)` reads them."""
        return x.to(dtype)

    def loss(self, kind: str, y: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """`phase.loss` of Y and the target."""
        return nn.functional.mse_loss(y, target.to(y.dtype)) if kind == "mse" else y.sum()

    def loss_name(self, kind: str) -> str:
        return kind

    def large_run(self) -> LargeRun | None:
        """Of `dense`, where no sample of a batch depends on another. None: a run costs too little to be kept."""
        return None

    def target(self, step: int = 0) -> torch.Tensor:
        """(B, N), what the mean squared error compares Y with."""
        return self._normal("target", self.B, self.N, step=step).to(self.dtype)

    def upstream_gradient(self, step: int = 0) -> torch.Tensor:
        """dY (B, N), what correctness checks feed backward."""
        return self._normal("dY", self.B, self.N, step=step).to(self.dtype)

    def halves(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """M₀ and M₁, boolean (N, K)."""
        return halves(self.mask, weight, self._generator("mask", 0))

    def _weight(self, name: str, rows: int, columns: int) -> torch.Tensor:
        weight = self._normal(name, rows, columns).mul_(columns**-0.5).to(self.dtype)
        return self.mask.prune(weight) if isinstance(self.mask, WindowMask) else weight

    def _generator(self, name: str, step: int) -> torch.Generator:
        return generator(self.seed, f"{name}/{step}", self.device)

    def _normal(self, name: str, *shape: int, step: int = 0) -> torch.Tensor:
        return torch.randn(*shape, generator=self._generator(name, step), device=self.device)
