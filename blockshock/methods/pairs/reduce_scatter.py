"""Complementary halves of both layers, for masks whose rows all keep the same columns (docs/method.md derives it).

    rank g:   for each rank r   partial_r = X W_g[rows_r]ᵀ     its half of the first layer, by hidden columns
    rank r:   H_r = φ(Σ_g partial_r)                           a reduce-scatter, half of an all-reduce's bytes
    all:      Y = Σ_r H_r W_down[:, rows_r]ᵀ                   an all-reduce

A 2:4 half has two of every four weights of each hidden unit, so every hidden sum needs every rank, before φ. The second
layer's half of such a mask reads its own hidden columns and no others, so a rank needs no more of H than those: and
with those side by side its half is a dense matrix, row-parallel's. (Which hidden units are whose is free: a rank gets
consecutive ones.) Backward mirrors it: an all-gather of the hidden gradient, and one of dX, of which each rank has the
columns that its half reads.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from blockshock.collectives import in_graph
from blockshock.collectives.choice import Chosen
from blockshock.collectives.gradients import join_gradient, scatter_sum
from blockshock.collectives.matmul_all_reduce import Multiply
from blockshock.kernels.choice import blocks_of_mask
from blockshock.kernels.gpu.columns import Places, put, take
from blockshock.kernels.layouts import BlockLayout
from blockshock.masks import prunes
from blockshock.measure.roofline import Cost, all_gather, reduce_scatter
from blockshock.methods.dense_tp_row import DenseTpRowLinear
from blockshock.methods.pairs.column_row import check_shares
from blockshock.methods.pairs.layers import check_layer
from blockshock.methods.pairs.pair import Activate, Between, PairWeights, ParallelPair
from blockshock.ranks import distributed

if TYPE_CHECKING:
    from blockshock.config import Job
    from blockshock.methods.shared.halves import HalvesLinear, HalvesOptions
    from blockshock.problem import Problem


class ReduceScatterPair(ParallelPair):
    PAIRING = "reduce_scatter"

    def __init__(
        self, problem: Problem, method: Any, between: Between, activate: Activate, weights: PairWeights
    ) -> None:
        super().__init__(problem, method, between, activate, weights)
        block = problem.of_layer("up", between.rows // self.ranks, problem.K)
        blocks = [between.rows_of(weights.up, rank, self.ranks).contiguous() for rank in range(self.ranks)]
        self.blocks = nn.ModuleList(method.build_partial(block, rows) for rows in blocks)
        self.places = [_Into() for _ in blocks]
        for layer, place in zip(self.halves(), self.places, strict=True):
            layer.collective = Chosen(place)
        down = problem.of_layer("down", problem.N, between.hidden)
        self.down = DenseTpRowLinear(down, weights.down, method)
        first, second = (
            BlockLayout.of(half, 1) for half in problem.of_layer("up", 4, problem.K).halves(weights.up[:4])
        )
        assert first is not None
        assert second is not None
        self.columns = HalfColumns(self.ranks, first.columns + second.columns)

    @classmethod
    def unsupported(cls, job: Job) -> str | None:
        options: HalvesOptions = job.method
        if not hasattr(options, "build_partial"):
            return "is for complementary halves; use layers"
        if job.hardware.world_size % 2:
            return "needs pairs of ranks, of which each has one half; use layers"
        if prunes(job.mask) or blocks_of_mask(job) != 1:
            return f"needs a mask whose rows keep the same columns, as 1100 does, not {job.mask.name}; use layers"
        if options.shard != "inputs" and job.hardware.world_size > 2:
            return "needs method.shard=inputs; use layers"
        return None

    @classmethod
    def check(cls, job: Job, between: Between) -> None:
        check_shares(job, between)
        check_layer(job, between, N=between.rows // job.hardware.world_size)

    def halves(self) -> list[HalvesLinear]:
        return cast("list[HalvesLinear]", list(self.blocks))  # as `build_partial` made them

    def first(self, x: Tensor) -> Tensor:
        group = dist.group.WORLD
        assert group is not None
        own = self.halves()[0].shard_input(join_gradient(x, self.columns, group))
        width = self.between.rows // self.ranks
        if in_graph.tracing():
            return scatter_sum([layer(own) for layer in self.halves()], group)
        stacked = torch.empty(self.ranks, len(x), width, dtype=x.dtype, device=x.device)
        partials = []
        for layer, place, out in zip(self.halves(), self.places, stacked, strict=True):
            place.out = out.data  # no view to autograd, for which the product is new
            partials.append(layer(own))
            place.out = None
        return scatter_sum(partials, group)

    def enter_down(self, hidden: Tensor) -> Tensor:
        return hidden

    def assemble_products(self, like_parameters: list[Tensor]) -> list[Tensor]:
        *blocks, down = like_parameters
        shares = [layer.assemble_weight([part]) for layer, part in zip(self.halves(), blocks, strict=True)]
        return [self.between.join_rows(shares), self.down.assemble_weight([down])]

    def own_costs(self) -> dict[str, Cost]:
        one = self.halves()[0].costs()
        sums = {name: Cost(cost.flops, cost.memory_bytes) for name, cost in one.items()}  # what it would send itself
        costs = {}
        for name, cost in sums.items():
            costs[name] = Cost()
            for _ in self.blocks:
                costs[name] += cost
        size = self.batch * self.between.rows * self.itemsize
        costs["forward"] += reduce_scatter(self.ranks, size)
        costs["backward_input"] += all_gather(self.ranks, size)
        costs["backward_input"] += all_gather(self.ranks, self.batch * self.inputs * self.itemsize)
        return costs

    def collectives(self) -> dict[str, Counter[str]]:
        return {"forward": Counter(reduce_scatter=1, all_reduce=1), "backward": Counter(all_gather=2)}

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"up": self.halves()[0].describe(), "down": self.down.describe()}


class _Into:
    """The `Total` of a product that is written where the reduce-scatter reads it."""

    out: Tensor | None = None

    def __call__(self, x: Tensor, multiply: Multiply) -> Tensor:
        return multiply(x, self.out)


@dataclass(frozen=True)
class HalfColumns:
    """The columns of X that halves of P = 2q ranks read: rank 2s + g those of half g among shard s's K/q columns."""

    ranks: int
    places: Places  # of the two halves, among every four columns

    def take(self, full: Tensor) -> Tensor:
        shard, half = divmod(distributed.rank(), 2)
        columns = full.chunk(self.ranks // 2, dim=1)[shard].contiguous()
        return take(columns, (self.places[half],))[0]

    def put(self, stacked: Tensor) -> Tensor:
        joined = [put(pair, self.places) for pair in stacked.chunk(self.ranks // 2)]
        return torch.cat(joined, dim=1) if len(joined) > 1 else joined[0]
