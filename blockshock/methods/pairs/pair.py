"""What a pair of layers computes, whoever computes it, and what every pairing has in common.

    mlp = Mlp(hidden=4096, act=functional.gelu)
    h = mlp.activate(x @ weights.up.t());   y = h @ weights.down.t()

With `gated`, as in Llama, the first layer has twice the rows, the gate's over the up projection's, and
h = φ(x gateᵀ) ∘ (x upᵀ): one product and, over ranks, one collective serve both.

A pair reads all of X on every rank and leaves all of Y and all of dX on every rank, as the residual stream around an
MLP needs. (A row-parallel layer by itself may leave dX sharded.)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from blockshock.measure.roofline import Cost
from blockshock.methods import ParallelLinear, ParallelModule, ring_roundings
from blockshock.ranks import distributed

if TYPE_CHECKING:
    from blockshock.config import Job
    from blockshock.problem import Problem

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
}


@dataclass(frozen=True)
class Mlp:
    """φ, and the hidden features between the two layers."""

    hidden: int
    act: Callable[[Tensor], Tensor] = functional.gelu
    gated: bool = False

    @property
    def rows(self) -> int:
        """Output features of the first layer."""
        return 2 * self.hidden if self.gated else self.hidden

    def activate(self, first: Tensor) -> Tensor:
        """(B, n), or (B, 2n) where gated -> (B, n), elementwise: any columns of the hidden layer by themselves."""
        if not self.gated:
            return self.act(first)
        gate, up = first.chunk(2, dim=1)
        return self.act(gate) * up

    def rows_of(self, first: Tensor, part: int, parts: int) -> Tensor:
        """The rows of the first layer's weight that make share number `part` of `parts` of the hidden columns."""
        return torch.cat([each.chunk(parts)[part] for each in first.chunk(2 if self.gated else 1)])

    def join_rows(self, shares: list[Tensor]) -> Tensor:
        """The inverse of `rows_of`."""
        split = [share.chunk(2 if self.gated else 1) for share in shares]
        return torch.cat([part for layer in zip(*split, strict=True) for part in layer])


class MlpWeights(NamedTuple):
    """Dense, the same on every rank."""

    up: Tensor  # (rows, K)
    down: Tensor  # (N, hidden)
    up_bias: Tensor | None = None  # (rows,)
    down_bias: Tensor | None = None  # (N,)


class DenseMlp(nn.Module):
    """The MLP as one writes it."""

    def __init__(self, mlp: Mlp, weights: MlpWeights) -> None:
        super().__init__()
        self.mlp = mlp
        self.up, self.down = nn.Parameter(weights.up), nn.Parameter(weights.down)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp.activate(x @ self.up.t()) @ self.down.t()


def _parameter(bias: Tensor | None, own: Callable[[Tensor], Tensor]) -> nn.Parameter | None:
    return None if bias is None else nn.Parameter(own(bias))


class ParallelMlp(ParallelModule):
    """One rank's part of the pair. A pairing says how it is split, and what it sends."""

    PAIRING: ClassVar[str]

    down: ParallelLinear

    def __init__(self, problem: Problem, mlp: Mlp, weights: MlpWeights) -> None:
        super().__init__()
        self.mlp, self.batch, self.itemsize = mlp, problem.B, problem.dtype.itemsize
        self.outputs, self.inputs = problem.N, problem.K
        self.ranks = distributed.world_size()
        self.up_bias = _parameter(weights.up_bias, self.own_rows)
        self.down_bias = _parameter(weights.down_bias, Tensor.clone)  # the same on every rank, and so is its gradient

    @classmethod
    @abstractmethod
    def unsupported(cls, job: Job, mlp: Mlp) -> str | None:
        """Why the job's method can't be paired in this way, whatever the sizes; None if it can."""

    @classmethod
    @abstractmethod
    def check(cls, job: Job, mlp: Mlp) -> None:
        """Reject sizes that this pairing of the job's method can't split."""

    @classmethod
    @abstractmethod
    def build(cls, problem: Problem, method: Any, mlp: Mlp, weights: MlpWeights) -> ParallelMlp: ...

    def own_rows(self, first: Tensor) -> Tensor:
        """Of the first layer's rows, those of the hidden columns that this rank sees between the layers."""
        return self.mlp.rows_of(first, distributed.rank(), self.ranks)

    def join_own_rows(self, own: Tensor) -> Tensor:
        """The inverse. A collective."""
        return self.mlp.join_rows(distributed.gather_tensors(own))

    @abstractmethod
    def first(self, x: Tensor) -> Tensor:
        """(B, K) -> the first layer's output (B, rows) or this rank's columns of it, without the bias."""

    @abstractmethod
    def enter_down(self, hidden: Tensor) -> Tensor:
        """The hidden layer as `first` left it, activated -> what the second layer reads of it."""

    @abstractmethod
    def assemble_products(self, like_parameters: list[Tensor]) -> list[Tensor]:
        """The dense weights (rows, K) and (N, hidden), or their gradients. A collective."""

    @abstractmethod
    def own_costs(self) -> dict[str, Cost]:
        """Of the first layer, and of what is sent between the layers and for dX."""

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        if self.up_bias is not None:
            first = first + self.up_bias
        y: Tensor = self.down(self.enter_down(self.mlp.activate(first)))
        return y if self.down_bias is None else y + self.down_bias

    def assemble_weights(self, like_parameters: list[Tensor]) -> list[Tensor]:
        biases = [name for name in ("up_bias", "down_bias") if getattr(self, name) is not None]
        own = dict(zip(biases, like_parameters, strict=False))  # a module's own parameters come before its parts'
        weights = self.assemble_products(like_parameters[len(biases) :])
        if "up_bias" in own:
            weights.append(self.join_own_rows(own["up_bias"]))
        return weights + ([own["down_bias"]] if "down_bias" in own else [])

    def costs(self) -> dict[str, Cost]:
        own, down = self.own_costs(), self.down.costs()
        return {name: own[name] + down[name] for name in own}

    def roundings(self) -> dict[str, float]:
        """Every rounding of the dense MLP is one of some quantity; a sum over ranks makes up to ring(P) of it.

        So the error is at most ring(P) times the dense MLP's in the same dtype, whichever of the quantities are sums.
        """
        return dict.fromkeys(("Y", "dX", "dW"), ring_roundings(self.ranks))

    def flop_formulas(self) -> dict[Any, Callable[..., int]]:
        return {op: count for layer in self.layers() for op, count in layer.flop_formulas().items()}

    def after_optimizer_step(self, step: int) -> None:
        for layer in self.layers():
            layer.after_optimizer_step(step)

    def weight_bytes(self) -> int:
        own = sum(layer.weight_bytes() for layer in self.layers())
        inside = {id(parameter) for layer in self.layers() for parameter in layer.parameters()}
        return own + distributed.local_bytes(p for p in self.parameters() if id(p) not in inside)

    def layers(self) -> list[ParallelLinear]:
        """The method's own layers among the parts."""
        return [module for module in self.modules() if isinstance(module, ParallelLinear)]

    def describe(self) -> dict[str, Any]:
        return {"pairing": self.PAIRING, "hidden": self.mlp.hidden}
