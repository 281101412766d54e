"""Complementary halves over P = 2q ranks: two halves of the weight times q shards of its rows.

    rank 2s + g holds half g of W[rows_s, :];   Y[:, rows_s] = Σ_g X (W∘M_g)[rows_s]ᵀ in a pair, gathered over shards

With one rank both halves are on it and are summed there. Block-Shock and its ablation, the masked split, differ only
in how a half is stored and multiplied, so they share this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from blockshock import distributed
from blockshock.collectives import gather_columns, sum_gradient, sum_over_ranks
from blockshock.errors import ConfigError
from blockshock.methods import ParallelLinear, ring_roundings
from blockshock.roofline import Cost, all_gather, all_reduce, product

if TYPE_CHECKING:
    from blockshock.config import Job
    from blockshock.problem import Problem


def check_halves(job: Job) -> int:
    """Refuse sizes and ranks that do not split into halves and shards; the rows of W that one rank holds."""
    ranks, N, K = job.hardware.world_size, job.model.N, job.model.K
    name = job.method.name
    if ranks > 1 and ranks % 2:
        raise ConfigError("hardware.world_size", ranks, f"{name} needs 1 or an even number of ranks: two halves each")
    shards = max(1, ranks // 2)
    rows = 4 * shards  # 4: a mask's period may be four rows
    if N % rows:
        raise ConfigError("model.N", N, f"{name} on {ranks} ranks needs a multiple of {rows}")
    if K % 4:
        raise ConfigError("model.K", K, f"{name} needs a multiple of 4: 2:4 masks group four columns")
    return N // shards


class HalvesLinear(ParallelLinear):
    """Who holds what, and the collectives. Subclasses store the local halves and multiply by them."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.batch, self.outputs, self.features = problem.B, problem.N, problem.K
        self.itemsize = problem.dtype.itemsize
        ranks, rank = distributed.world_size(), distributed.rank()
        self.ranks = ranks
        self.shards = max(1, ranks // 2)
        height = self.outputs // self.shards
        shard = rank // 2 if ranks > 1 else 0
        self.rows = slice(shard * height, (shard + 1) * height)
        self.half_indices = [rank % 2] if ranks > 1 else [0, 1]
        self.pair = distributed.subgroup(min(2, ranks), 1)
        self.shard_group = distributed.subgroup(self.shards, 2)
        # Where all rows keep the same columns, half g reads only its own columns of X: then dX is left sharded over
        # the halves, each rank with the columns it read, as row-parallel leaves it.
        self.sharded_grad = problem.mask.period == 1
        everyone = distributed.subgroup(ranks, 1)
        self.grad_group = self.shard_group if self.sharded_grad else everyone

    def local_halves(self, problem: Problem, weight: torch.Tensor) -> list[torch.Tensor]:
        """The boolean masks (N/q, K) of this rank's halves."""
        both = problem.halves(weight)
        return [both[index][self.rows].contiguous() for index in self.half_indices]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = sum_gradient(x, self.grad_group)
        partial = self.multiply(x, 0)
        for half in range(1, len(self.half_indices)):
            partial = partial + self.multiply(x, half)
        return gather_columns(sum_over_ranks(partial, self.pair), self.shard_group)

    def multiply(self, x: torch.Tensor, half: int) -> torch.Tensor:
        """(B, K) -> (B, N/q): the rank-local product with local half number `half`."""
        raise NotImplementedError(f"{type(self).__name__} multiplies by nothing")

    def dense_half(self, part: torch.Tensor, half: int) -> torch.Tensor:
        """A stored half, or its gradient, as a dense (N/q, K) tensor."""
        raise NotImplementedError(f"{type(self).__name__} stores nothing")

    def assemble_input_grad(self, dx: torch.Tensor) -> torch.Tensor:
        return distributed.allreduce_sum(dx.clone(), self.pair) if self.sharded_grad and self.pair else dx

    def place_weight(self, parts: list[torch.Tensor]) -> torch.Tensor:
        full = parts[0].new_zeros(self.outputs, self.features)
        for half, part in enumerate(parts):
            full[self.rows] += self.dense_half(part, half)
        return full

    def half_bytes(self) -> float:
        """Bytes a product must read of one half's weight."""
        raise NotImplementedError(f"{type(self).__name__} states no bytes")

    def costs(self) -> dict[str, Cost]:
        B, rows, K = self.batch, self.rows.stop - self.rows.start, self.features
        count = len(self.half_indices)
        read = K / 2 if self.sharded_grad else K  # columns of X that one half needs
        x, y, w = B * read * self.itemsize, B * rows * self.itemsize, self.half_bytes()
        one = {
            "forward": product(B, rows, K / 2, x, w, y),
            "backward_input": product(B, rows, K / 2, y, w, x),
            "backward_weight": product(B, rows, K / 2, y, x, w),
        }
        costs = {
            name: Cost(count * cost.flops, count * cost.memory_bytes, count * cost.link_bytes)
            for name, cost in one.items()
        }
        if self.ranks > 1:
            costs["forward"] += all_reduce(2, B * rows * self.itemsize)
            costs["forward"] += all_gather(self.shards, B * self.outputs * self.itemsize)
            reduced = B * read * self.itemsize
            costs["backward_input"] += all_reduce(self.shards if self.sharded_grad else self.ranks, reduced)
        return costs

    def roundings(self) -> dict[str, float]:
        summed = self.shards if self.sharded_grad else max(2, self.ranks)
        return {"Y": ring_roundings(2), "dX": ring_roundings(summed), "dW": 1.0}
