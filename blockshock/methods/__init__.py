"""Ways of computing Y = X Wᵀ over the ranks.

A method is a dataclass with `name`, its own options, `check(job)` (raise ConfigError for what can't run) and
`build(problem, weight) -> ParallelLinear`. A phase drives the layer through this interface and never asks which it is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from blockshock.measure.roofline import Cost
from blockshock.ranks import distributed

if TYPE_CHECKING:
    from blockshock.collectives.parts import Parts
    from blockshock.problem import Problem


class ParallelModule(nn.Module, ABC):
    """One rank's part of what a method builds: a linear layer, or the pair of layers of an MLP.

    The input is what `shard_input` returns; the output is all of Y on every rank. Weight gradients land in `.grad` of
    the parameters, whatever shape the method stores them in, so any torch optimizer works.
    """

    def shard_input(self, x: torch.Tensor) -> torch.Tensor:
        """What this rank reads of X (B, K): all of it unless a method shards the input."""
        return x

    @abstractmethod
    def assemble_weights(self, like_parameters: list[torch.Tensor]) -> list[torch.Tensor]:
        """The dense tensors of which the ranks hold parts, in the order of `Problem.dense`'s parameters: made of this
        rank's parameters, or of their gradients. A collective: all ranks must call it."""

    def assemble_input_grad(self, dx: torch.Tensor) -> torch.Tensor:
        """All of dX (B, K) from what the ranks' backward passes left. A collective."""
        return dx

    def after_optimizer_step(self, step: int) -> None:
        """Whatever must follow an update of the weights before the next forward, in region `compress`."""

    @abstractmethod
    def costs(self) -> dict[str, Cost]:
        """The least work of one rank: `forward`, `backward_input`, `backward_weight`."""

    def roundings(self) -> dict[str, float]:
        """Error of Y, dX and dW over that of the dense products in this dtype: what the method's own roundings add."""
        return {"Y": 1.0, "dX": 1.0, "dW": 1.0}

    def describe(self) -> dict[str, Any]:
        """What the record should say of this layer: the kernel chosen, and so on."""
        return {}

    def collectives(self) -> dict[str, Counter[str]]:
        """How many collectives of a kind `forward`, `backward` and `input_grad` (what `assemble_input_grad` joins)
        start, whatever the number of chunks in which each is sent. Nothing that is missing is sent."""
        return {}

    def parts(self, x: torch.Tensor) -> Parts | None:
        """The forward of `shard_input`'s `x` in parts that can be timed one by one; None where it is of other parts
        than a matmul and a collective. Every rank must call it, without gradients."""
        return None

    def flop_formulas(self) -> dict[Any, Callable[..., int]]:
        """FLOPs of the layer's operators that PyTorch's own counter does not know, by operator."""
        return {}

    def weight_bytes(self) -> int:
        """Bytes a rank holds for its weights: parameters and what the kernel needs beside them."""
        return distributed.local_bytes(self.parameters())


class ParallelLinear(ParallelModule):
    """One rank's part of a linear layer."""

    def assemble_weights(self, like_parameters: list[torch.Tensor]) -> list[torch.Tensor]:
        return [self.assemble_weight(like_parameters)]

    def assemble_weight(self, like_parameters: list[torch.Tensor]) -> torch.Tensor:
        """The dense (N, K) tensor of which the ranks hold parts: of the parameters, or of their gradients.

        A collective: all ranks must call it. Parts are disjoint, so the sum over ranks is exact.
        """
        return distributed.allreduce_sum(self.place_weight([distributed.local_part(part) for part in like_parameters]))

    @abstractmethod
    def place_weight(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """This rank's parts in a dense (N, K) tensor, zeros elsewhere."""


class Method(Protocol):
    name: str  # and, where not every job can run, check(self, job: Job) -> None

    def build(self, problem: Problem, weight: torch.Tensor) -> ParallelLinear: ...


def ring_roundings(ranks: int) -> float:
    """Error of a sum of `ranks` rounded partial products, added around a ring, over that of one rounded product.

    The partial products have 1/P of the variance each and are rounded once: together 1. The ring rounds the sums of
    2, 3, ..., P of them, of variance k/P: together (P+1)/2 - 1/P. docs/method.md derives it.
    """
    return math.sqrt(1 + (ranks + 1) / 2 - 1 / ranks) if ranks > 1 else 1.0
