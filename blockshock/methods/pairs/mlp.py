"""The MLP of a transformer as a pair of layers, and the problem of one by itself (workload=mlp_block).

    mlp = Mlp(hidden=4096, act=functional.gelu)
    h = mlp.activate(x @ weights.up.t());   y = h @ weights.down.t()

With `gated`, as in Llama, the first layer has twice the rows, the gate's over the up projection's, and
h = φ(x gateᵀ) ∘ (x upᵀ).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from blockshock.errors import ConfigError
from blockshock.masks.window import WindowMask
from blockshock.methods.pairs.pair import Between, PairWeights, ParallelPair
from blockshock.problem import Problem

if TYPE_CHECKING:
    from blockshock.config import Job
    from blockshock.methods import Method, ParallelModule

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
}


@dataclass(frozen=True)
class Mlp(Between):
    """φ, and the hidden features between the two layers."""

    hidden: int
    act: Callable[[Tensor], Tensor] = functional.gelu
    gated: bool = False

    @property
    def matrices(self) -> tuple[int, ...]:
        return (self.hidden, self.hidden) if self.gated else (self.hidden,)

    def activate(self, first: Tensor) -> Tensor:
        """(B, n), or (B, 2n) where gated -> (B, n), elementwise: any columns of the hidden layer by themselves."""
        if not self.gated:
            return self.act(first)
        gate, up = first.chunk(2, dim=1)
        return self.act(gate) * up

    def check_shares(self, job: Job) -> None:
        ranks = job.hardware.world_size
        if self.hidden % ranks:
            raise self.error(job, f"{job.method.name} on {ranks} ranks needs a multiple of {ranks}")

    def error(self, job: Job, problem: str, size: str = "") -> ConfigError:
        return ConfigError("workload.hidden", self.hidden, problem + (f" (the MLP's {size})" if size else ""))


class DenseMlp(nn.Module):
    """The MLP as one writes it."""

    def __init__(self, mlp: Mlp, weights: PairWeights) -> None:
        super().__init__()
        self.mlp = mlp
        self.up, self.down = nn.Parameter(weights.up), nn.Parameter(weights.down)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp.activate(x @ self.up.t()) @ self.down.t()


@dataclass(frozen=True)
class MlpProblem(Problem):
    """The pair in place of a layer: X (B, K), the first weight (rows, K), the second (N, hidden), Y (B, N)."""

    mlp: Mlp
    pairing: type[ParallelPair]

    def weights(self) -> PairWeights:
        """Normal, of variance 1/K and 1/hidden, so that Y is of order one."""
        return PairWeights(self._weight("W_up", self.mlp.rows, self.K), self._weight("W_down", self.N, self.mlp.hidden))

    def kept(self) -> list[torch.Tensor] | None:
        mask, weights = self.mask, self.weights()
        return [mask.keep(weights.up), mask.keep(weights.down)] if isinstance(mask, WindowMask) else None

    def weight_quantities(self) -> list[str]:
        return ["dW_up", "dW_down"]

    def build(self, method: Method, weights: PairWeights) -> ParallelModule:
        return self.pairing(self, method, self.mlp, self.mlp.activate, weights)

    def dense(self, dtype: torch.dtype) -> nn.Module:
        weights = self.weights()
        return DenseMlp(self.mlp, PairWeights(weights.up.to(dtype), weights.down.to(dtype)))
