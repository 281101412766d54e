"""Both layers as the method builds them, one after the other: what works for every method and every mask.

    up      X -> all of X W_upᵀ on every rank          (a sum or a gather over B x hidden)
    φ       on every rank, of all hidden columns
    down    what the rank reads of it -> all of Y      (a sum or a gather over B x N)

Backward, a layer that shards its input leaves its gradient sharded, and `assemble_input_grad` joins it.
"""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from blockshock.errors import ConfigError
from blockshock.measure.roofline import Cost
from blockshock.measure.timing import region
from blockshock.methods import ParallelLinear
from blockshock.methods.pairs.pair import Activate, Between, PairWeights, ParallelPair
from blockshock.ranks import distributed

if TYPE_CHECKING:
    from blockshock.config import Job
    from blockshock.problem import Problem


class LayersPair(ParallelPair):
    PAIRING = "layers"

    def __init__(
        self, problem: Problem, method: Any, between: Between, activate: Activate, weights: PairWeights
    ) -> None:
        super().__init__(problem, method, between, activate, weights)
        self.up: ParallelLinear = method.build(problem.of_layer("up", between.rows, problem.K), weights.up)
        self.down = method.build(problem.of_layer("down", problem.N, between.hidden), weights.down)

    @classmethod
    def unsupported(cls, job: Job) -> str | None:
        return None

    @classmethod
    def check(cls, job: Job, between: Between) -> None:
        check_layer(job, between, N=between.rows)
        check_layer(job, between, K=between.hidden)

    @property
    def shares(self) -> int:
        return 1

    def first(self, x: Tensor) -> Tensor:
        first: Tensor = self.up(_Entered.apply(x, self.up))
        return first

    def enter_down(self, hidden: Tensor) -> Tensor:
        return _Entered.apply(hidden, self.down)

    def assemble_products(self, like_parameters: list[Tensor]) -> list[Tensor]:
        count = len(list(self.up.parameters()))
        return [self.up.assemble_weight(like_parameters[:count]), self.down.assemble_weight(like_parameters[count:])]

    def own_costs(self) -> dict[str, Cost]:
        """Without what joins a sharded dX: how is the method's own, and the floor stays a floor."""
        return self.up.costs()

    def collectives(self) -> dict[str, Counter[str]]:
        up, down = self.up.collectives(), self.down.collectives()
        none: Counter[str] = Counter()

        def of(*passes: str) -> Counter[str]:
            return sum((layer.get(each, none) for layer in (up, down) for each in passes), none)

        return {"forward": of("forward"), "backward": of("backward", "input_grad")}

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"up": self.up.describe(), "down": self.down.describe()}


def check_layer(job: Job, between: Between, N: int | None = None, K: int | None = None) -> None:
    """Let the method judge one of the two layers. An error names the key that a user would set."""
    check = getattr(job.method, "check", None)
    if check is None:
        return
    try:
        check(replace(job, model=replace(job.model, N=N or job.model.N, K=K or job.model.K)))
    except ConfigError as error:
        if error.key != ("model.N" if N else "model.K"):
            raise
        size = f"{'first' if N else 'second'} layer has {error.key[-1]}={error.value}"
        raise between.error(job, error.problem, size) from error


class _Entered(torch.autograd.Function):
    """All of a layer's input -> what this rank reads of it; the gradient is joined again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: ParallelLinear) -> Tensor:
        ctx.layer = layer
        own = layer.shard_input(x)
        return own.view_as(own) if own is x else own

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        with region("allreduce") if distributed.world_size() > 1 else nullcontext():
            return ctx.layer.assemble_input_grad(grads[0]), None
