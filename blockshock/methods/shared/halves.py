"""Complementary halves over P = 2q ranks: two halves of the weight times q shards of it.

    shard=inputs     rank 2s + g holds half g of W[:, cols_s] and reads X[:, cols_s];   Y = Σ over all ranks
    shard=outputs    rank 2s + g holds half g of W[rows_s, :];   Y[:, rows_s] = Σ over a pair, gathered over shards

On two ranks they are the same. On more, sharding the inputs needs the one all-reduce of row-parallel forward, and
backward no more than a pair's sum of dX, or nothing where the halves read different columns. Sharding the outputs sums
in pairs only, but gathers as well, and sums dX over ranks. With one rank both halves are on it and are summed there.
Block-Shock and its ablation, the masked split, differ only in how a half is stored and multiplied, so they share this.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from blockshock.collectives.choice import CollectiveOptions, check_collective, choose
from blockshock.collectives.gradients import gather_columns, sum_gradient
from blockshock.collectives.parts import Parts, sum_parts
from blockshock.errors import ConfigError, one_of
from blockshock.masks import reject_pruning
from blockshock.measure.roofline import Cost, all_gather, all_reduce, matmul
from blockshock.methods import ParallelLinear, ring_roundings
from blockshock.ranks import distributed

if TYPE_CHECKING:
    from blockshock.config import Job
    from blockshock.problem import Problem


@dataclass(kw_only=True)
class HalvesOptions(CollectiveOptions):
    """Options of methods whose ranks hold complementary halves."""

    shard: str = "inputs"  # what is sharded on more than two ranks: inputs (W's columns) | outputs (W's rows)


def check_halves(job: Job, options: HalvesOptions) -> tuple[int, int]:
    """Refuse sizes and ranks that do not split into halves and shards, and ways to sum the halves' products that can't
    run; the rows and columns of W that one rank holds half of."""
    ranks, N, K = job.hardware.world_size, job.model.N, job.model.K
    name = job.method.name
    reject_pruning(job.mask, name)
    one_of("method.shard", options.shard, ("inputs", "outputs"))
    if ranks > 1 and ranks % 2:
        raise ConfigError("hardware.world_size", ranks, f"{name} needs 1 or an even number of ranks: two halves each")
    shards = max(1, ranks // 2)
    parts = {"N": 1, "K": 1} | {"K" if options.shard == "inputs" else "N": shards}
    if N % (4 * parts["N"]):  # 4: a mask's period may be four rows
        raise ConfigError("model.N", N, f"{name} on {ranks} ranks needs a multiple of {4 * parts['N']}")
    if K % (4 * parts["K"]):
        problem = f"{name} on {ranks} ranks needs a multiple of {4 * parts['K']}: 2:4 masks group four columns"
        raise ConfigError("model.K", K, problem)
    rows, columns = N // parts["N"], K // parts["K"]
    check_collective(job, options, ranks if options.shard == "inputs" else min(2, ranks), rows)
    return rows, columns


class HalvesLinear(ParallelLinear, ABC):
    """Who holds what, and the collectives. Subclasses store the local halves and multiply by them.

    When they have what `product` needs, they must `choose_collective`. With `summed=False` the rank's partial product
    is what comes out, and the gradient of its own X what goes back: whoever asked for that sums.
    """

    def __init__(self, problem: Problem, options: HalvesOptions, summed: bool = True) -> None:
        super().__init__()
        self.dtype, self.device, self.options = problem.dtype, problem.device, options
        self.batch, self.outputs, self.inputs = problem.B, problem.N, problem.K
        self.itemsize = problem.dtype.itemsize
        ranks, rank = distributed.world_size(), distributed.rank()
        self.ranks, self.shards = ranks, max(1, ranks // 2)
        shard = rank // 2 if ranks > 1 else 0
        by_columns = options.shard == "inputs"
        self.rows = _part(self.outputs, 1 if by_columns else self.shards, 0 if by_columns else shard)
        self.columns = _part(self.inputs, self.shards if by_columns else 1, shard if by_columns else 0)
        self.height, self.features = self.rows.stop - self.rows.start, self.columns.stop - self.columns.start
        self.half_indices = [rank % 2] if ranks > 1 else [0, 1]
        pair, same_half = distributed.subgroup(min(2, ranks), 1), distributed.subgroup(self.shards, 2)
        everyone = distributed.subgroup(ranks, 1)
        # Where all rows keep the same columns, half g reads only its own columns of X: then dX is left sharded over
        # the halves, each rank with the columns it read, as row-parallel leaves it.
        self.sharded_grad = problem.mask.period == 1
        self.pair, self.same_half = pair, same_half
        self.sum_group = everyone if by_columns else pair
        self.gather_group = None if by_columns else same_half
        if by_columns:
            self.grad_group = None if self.sharded_grad else pair
        else:
            self.grad_group = same_half if self.sharded_grad else everyone
        if not summed:
            self.sum_group = self.gather_group = self.grad_group = None

    def local_halves(self, problem: Problem, weight: torch.Tensor) -> list[torch.Tensor]:
        """The boolean masks of this rank's halves, of the rows and columns that it holds."""
        both = problem.halves(weight)
        return [both[index][self.rows, self.columns].contiguous() for index in self.half_indices]

    def shard_input(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.features == self.inputs else x[:, self.columns].contiguous()

    def choose_collective(self, options: CollectiveOptions, kernel: dict[str, Any]) -> None:
        """Decide how the pair's products are summed: a collective, in which `kernel` says what multiplies."""
        self.collective = choose(
            options,
            self.matmul,
            self.sum_group,
            batch=self.batch,
            features=self.features,
            width=self.height,
            dtype=self.dtype,
            device=self.device,
            kernel=kernel,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = sum_gradient(x, self.grad_group)
        y = self.multiply(x, 0)
        for half in range(1, len(self.half_indices)):
            y = y + self.multiply(x, half)
        return gather_columns(y, self.gather_group)

    @abstractmethod
    def multiply(self, x: torch.Tensor, half: int) -> torch.Tensor:
        """This rank's X -> (B, rows): the product with local half number `half`, summed by `self.collective.total`;
        differentiable."""

    @abstractmethod
    def matmul(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Rows of this rank's X -> their rows of Y: the first local half's product alone, into `out` where given."""

    @abstractmethod
    def dense_half(self, part: torch.Tensor, half: int) -> torch.Tensor:
        """A stored half, or its gradient, as a dense tensor of the rank's rows and columns."""

    def parts(self, x: torch.Tensor) -> Parts | None:
        return sum_parts(self.collective.total, x, self.matmul) if self.gather_group is None else None

    def assemble_input_grad(self, dx: torch.Tensor) -> torch.Tensor:
        full = dx.new_zeros(len(dx), self.inputs)
        full[:, self.columns] = dx
        if self.sharded_grad and self.pair:
            full = distributed.allreduce_sum(full, self.pair)
        by_columns = self.features < self.inputs
        return distributed.allreduce_sum(full, self.same_half) if by_columns else full

    def place_weight(self, parts: list[torch.Tensor]) -> torch.Tensor:
        full = parts[0].new_zeros(self.outputs, self.inputs)
        for half, part in enumerate(parts):
            full[self.rows, self.columns] += self.dense_half(part, half)
        return full

    @abstractmethod
    def half_bytes(self) -> float:
        """Bytes a product must read of one half's weight."""

    def costs(self) -> dict[str, Cost]:
        B, rows, K = self.batch, self.height, self.features
        count = len(self.half_indices)
        read = K / 2 if self.sharded_grad else K  # columns of X that one half needs
        x, y, w = B * read * self.itemsize, B * rows * self.itemsize, self.half_bytes()
        one = {
            "forward": matmul(B, rows, K / 2, x, w, y),
            "backward_input": matmul(B, rows, K / 2, y, w, x),
            "backward_weight": matmul(B, rows, K / 2, y, x, w),
        }
        costs = {
            name: Cost(count * cost.flops, count * cost.memory_bytes, count * cost.link_bytes)
            for name, cost in one.items()
        }
        if self.ranks > 1:
            size = B * self.outputs * self.itemsize
            reduced = B * read * self.itemsize
            if self.options.shard == "inputs":
                costs["forward"] += all_reduce(self.ranks, size)
                costs["backward_input"] += all_reduce(1 if self.sharded_grad else 2, reduced)
            else:
                costs["forward"] += all_reduce(2, B * rows * self.itemsize)
                costs["forward"] += all_gather(self.shards, size)
                costs["backward_input"] += all_reduce(self.shards if self.sharded_grad else self.ranks, reduced)
        return costs

    def collectives(self) -> dict[str, Counter[str]]:
        joins = bool(self.sharded_grad and self.pair) + (self.features < self.inputs)
        return {
            "forward": Counter(
                all_reduce=int(self.sum_group is not None), all_gather=int(self.gather_group is not None)
            ),
            "backward": Counter(all_reduce=int(self.grad_group is not None)),
            "input_grad": Counter(all_reduce=joins),
        }

    def roundings(self) -> dict[str, float]:
        if self.options.shard == "inputs":
            summed, over = max(2, self.ranks), 1 if self.sharded_grad else 2
        else:
            summed, over = 2, self.shards if self.sharded_grad else max(2, self.ranks)
        return {"Y": ring_roundings(summed), "dX": ring_roundings(over), "dW": 1.0}


def _part(size: int, parts: int, index: int) -> slice:
    return slice(index * size // parts, (index + 1) * size // parts)
