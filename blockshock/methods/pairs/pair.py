"""What a pair of layers computes, whoever computes it, and what every pairing has in common.

    h = activate(x @ weights.up.t() + weights.up_bias);   y = h @ weights.down.t() + weights.down_bias

Between the layers, a hidden feature is computed from a few of the first layer's outputs: an MLP's from one (two where
gated, as in Llama), attention's from those of its head. The first layer's weight is a stack of matrices, such as gate
and up, or query, key and value: one product and, over ranks, one collective serve all of them.

A pair reads all of X on every rank and leaves all of Y and all of dX on every rank, as the residual stream around it
needs. (A row-parallel layer by itself may leave dX sharded.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from blockshock.measure.roofline import Cost
from blockshock.methods import ParallelLinear, ParallelModule, ring_roundings
from blockshock.ranks import distributed

if TYPE_CHECKING:
    from blockshock.config import Job
    from blockshock.errors import ConfigError
    from blockshock.problem import Problem


# The first layer's output (B, rows), or a share of it, and what a call of the pair adds -> (B, hidden), or that share.
Activate = Callable[..., Tensor]


class Between(ABC):
    """Which rows of the first layer make which hidden features: an MLP's (mlp.py) or attention's (sites/attention.py).

    It says what ranks can share, and how. What computes the features is the pair's `activate`.
    """

    hidden: int  # features that the second layer reads

    @property
    @abstractmethod
    def matrices(self) -> tuple[int, ...]:
        """Rows of each of the matrices that make the first layer's weight."""

    @abstractmethod
    def check_shares(self, job: Job) -> None:
        """Reject ranks that can't share the hidden features equally."""

    @abstractmethod
    def error(self, job: Job, problem: str, size: str = "") -> ConfigError:
        """That a method can't build a layer; `size` says of which features, "first layer has N=128"."""

    @property
    def rows(self) -> int:
        """Output features of the first layer."""
        return sum(self.matrices)

    def rows_of(self, first: Tensor, part: int, parts: int) -> Tensor:
        """The rows of the first layer's weight that make share number `part` of `parts` of the hidden features."""
        return torch.cat([each.chunk(parts)[part] for each in first.split(self.matrices)])

    def join_rows(self, shares: list[Tensor]) -> Tensor:
        """The inverse of `rows_of`."""
        split = [share.split([rows // len(shares) for rows in self.matrices]) for share in shares]
        return torch.cat([part for matrix in zip(*split, strict=True) for part in matrix])


class PairWeights(NamedTuple):
    """Dense, the same on every rank."""

    up: Tensor  # (rows, K)
    down: Tensor  # (N, hidden)
    up_bias: Tensor | None = None  # (rows,)
    down_bias: Tensor | None = None  # (N,)


def _parameter(bias: Tensor | None, own: Callable[[Tensor], Tensor]) -> nn.Parameter | None:
    return None if bias is None else nn.Parameter(own(bias))


class ParallelPair(ParallelModule):
    """One rank's part of the pair. A pairing says how it is split, and what it sends."""

    PAIRING: ClassVar[str]

    down: ParallelLinear

    def __init__(
        self, problem: Problem, method: Any, between: Between, activate: Activate, weights: PairWeights
    ) -> None:
        """`method`: whose layers the pairing builds."""
        super().__init__()
        self.between, self.activate = between, activate
        self.batch, self.itemsize = problem.B, problem.dtype.itemsize
        self.outputs, self.inputs = problem.N, problem.K
        self.ranks = distributed.world_size()
        self.up_bias = _parameter(weights.up_bias, self.own_rows)
        self.down_bias = _parameter(weights.down_bias, Tensor.clone)  # the same on every rank, and so is its gradient

    @classmethod
    @abstractmethod
    def unsupported(cls, job: Job) -> str | None:
        """Why the job's method can't be paired in this way, whatever the sizes; None if it can."""

    @classmethod
    @abstractmethod
    def check(cls, job: Job, between: Between) -> None:
        """Reject sizes that this pairing of the job's method can't split."""

    @property
    def shares(self) -> int:
        """Ranks that share the hidden features between the layers; 1: every rank has all of them."""
        return self.ranks

    def own_rows(self, first: Tensor) -> Tensor:
        """Of the first layer's rows, those of the hidden features that this rank sees between the layers."""
        return first.clone() if self.shares == 1 else self.between.rows_of(first, distributed.rank(), self.shares)

    def join_own_rows(self, own: Tensor) -> Tensor:
        """The inverse. A collective."""
        return own if self.shares == 1 else self.between.join_rows(distributed.gather_tensors(own))

    @abstractmethod
    def first(self, x: Tensor) -> Tensor:
        """(B, K) -> the first layer's output (B, rows) or this rank's columns of it, without the bias."""

    @abstractmethod
    def enter_down(self, hidden: Tensor) -> Tensor:
        """The hidden features as `activate` left them -> what the second layer reads of them."""

    @abstractmethod
    def assemble_products(self, like_parameters: list[Tensor]) -> list[Tensor]:
        """The dense weights (rows, K) and (N, hidden), or their gradients. A collective."""

    @abstractmethod
    def own_costs(self) -> dict[str, Cost]:
        """Of the first layer, and of what is sent between the layers and for dX."""

    def forward(self, x: Tensor, *call: Any) -> Tensor:
        """(B, K) -> (B, N). `call`: what `activate` takes besides the first layer's output."""
        first = self.first(x)
        if self.up_bias is not None:
            first = first + self.up_bias
        hidden = self.activate(first, *call)
        y: Tensor = self.down(self.enter_down(hidden))
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
        """Every rounding of the dense pair is one of some quantity; a sum over ranks makes up to ring(P) of it.

        So the error is at most ring(P) times the dense pair's in the same dtype, whichever of the quantities are sums.
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
        sent = {each: dict(+counts) for each, counts in self.collectives().items()}
        return {"pairing": self.PAIRING, "hidden": self.between.hidden, "collectives": sent}
