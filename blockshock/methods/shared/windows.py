"""A pruned weight over ranks as overlapping 2:4 windows (masks/window.py): rank W·s + w holds window w of shard s.

    rank:    reads X[:, its window's columns] and multiplies by its 2:4 window: of a block's 6 (8) columns four
    all:     Y = Σ over ranks                                                 (an all-reduce)
    dX:      a column in two windows is summed over their ranks; the rank then has dX where it reads X

With one rank all windows are on it and are summed there (pruned/slide_sparse.py multiplies them in one matmul). The
parameter is the packed window, as it is for halves, and the same kernels multiply it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from blockshock.collectives.choice import check_collective, choose
from blockshock.collectives.parts import Parts, sum_parts
from blockshock.errors import ConfigError
from blockshock.kernels import check_kernel, make, packed_linear
from blockshock.masks.window import WindowMask, take_window
from blockshock.measure.roofline import Cost, all_reduce, matmul
from blockshock.measure.timing import region
from blockshock.methods import ParallelLinear, ring_roundings
from blockshock.ranks import distributed

if TYPE_CHECKING:
    from blockshock.config import Job
    from blockshock.methods.block_shock import BlockShock
    from blockshock.problem import Problem


def check_windows(job: Job, method: BlockShock) -> None:
    """Reject ranks and sizes that blocks and windows do not divide, and options that windows don't have."""
    mask: WindowMask = job.mask
    ranks, K, block = job.hardware.world_size, job.model.K, mask.block
    if ranks > 1 and ranks % mask.windows:
        problem = f"mask={mask.name} has {mask.windows} windows, one per rank; use 1 or a multiple of {mask.windows}"
        raise ConfigError("hardware.world_size", ranks, problem)
    step = block * max(1, ranks // mask.windows)
    if K % step:
        nearest = max(step, K // step * step)
        problem = f"mask={mask.name} on {ranks} ranks needs a multiple of {step}, such as {nearest}"
        raise ConfigError("model.K", K, problem)
    if method.weights != "packed":
        raise ConfigError("method.weights", method.weights, "windows are packed; use packed")
    if method.shard != "inputs":
        raise ConfigError("method.shard", method.shard, "windows share inputs; use inputs")
    check_collective(job, method, ranks, job.model.N)
    check_kernel(job, method.kernel, job.model.N, 4 * K // step)


class WindowsLinear(ParallelLinear):
    def __init__(self, method: BlockShock, problem: Problem, weight: Tensor) -> None:
        super().__init__()
        mask = problem.mask
        assert isinstance(mask, WindowMask)
        self.mask, self.batch, self.outputs, self.inputs = mask, problem.B, problem.N, problem.K
        self.itemsize = problem.dtype.itemsize
        self.ranks = distributed.world_size()
        shards = max(1, self.ranks // mask.windows)
        shard = distributed.rank() // mask.windows if self.ranks > 1 else 0
        self.columns = slice(shard * self.inputs // shards, (shard + 1) * self.inputs // shards)
        self.windows = [distributed.rank() % mask.windows] if self.ranks > 1 else list(range(mask.windows))
        self.width = 4 * self.inputs // (shards * mask.block)
        self.neighbours = distributed.subgroup(mask.windows if self.ranks > 1 else 1, 1)  # that share columns
        own = weight[:, self.columns].contiguous()
        masks = [mask.split(own)[window] for window in self.windows]
        self.kernels = [make(method.kernel, each, None, problem.B, problem.dtype) for each in masks]
        parts = [take_window(own, window, mask.block) for window in self.windows]
        self.weights = nn.ParameterList(
            nn.Parameter(kernel.adopt(kernel.layout.pack(part)))
            for kernel, part in zip(self.kernels, parts, strict=True)
        )
        self.collective = choose(
            method,
            self.matmul,
            dist.group.WORLD if self.ranks > 1 else None,
            batch=problem.B,
            features=self.width,
            width=problem.N,
            dtype=problem.dtype,
            device=problem.device,
            kernel=self.kernels[0].describe(),
        )

    def shard_input(self, x: Tensor) -> Tensor:
        return take_window(x[:, self.columns].contiguous(), self.windows[0], self.mask.block) if self.ranks > 1 else x

    def forward(self, x: Tensor) -> Tensor:
        total = self.collective.total
        if self.ranks > 1:
            x = _SumShared.apply(x, self) if self.neighbours else x
            return packed_linear(x, self.weights[0], self.kernels[0], total)
        parts = [take_window(x, window, self.mask.block) for window in self.windows]
        ys = [packed_linear(*each, total) for each in zip(parts, self.weights, self.kernels, strict=True)]
        y = ys[0]
        for other in ys[1:]:
            y = y + other
        return y

    def parts(self, x: Tensor) -> Parts | None:
        return sum_parts(self.collective.total, x, self.matmul)

    def matmul(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return self.kernels[0].matmul(x, self.weights[0], out)

    def sum_shared(self, dx: Tensor) -> Tensor:
        """dX of this rank's window, (B, width) -> the same, with what other windows add to the columns they share."""
        window, block = self.windows[0], self.mask.block
        mine = dx.view(len(dx), -1, 4)
        shared = dx.new_zeros(len(dx), mine.shape[1], block - 4)  # all but the first and the last pair of a block
        here = slice(max(0, 2 * window - 2), min(block - 4, 2 * window + 2))
        there = slice(here.start + 2 - 2 * window, here.stop + 2 - 2 * window)
        shared[:, :, here] = mine[:, :, there]
        with region("allreduce"):
            distributed.allreduce_sum(shared, self.neighbours)
        summed = mine.clone()
        summed[:, :, there] = shared[:, :, here]
        return summed.view(dx.shape)

    def assemble_input_grad(self, dx: Tensor) -> Tensor:
        if self.ranks == 1:
            return dx
        full = dx.new_zeros(len(dx), self.inputs)
        blocks = full[:, self.columns].unflatten(1, (-1, self.mask.block))
        last = self.windows[0] == self.mask.windows - 1
        width = 4 if last else 2  # a pair that two windows have comes from the right one
        start = 2 * self.windows[0]
        blocks[:, :, start : start + width] = dx.view(len(dx), -1, 4)[:, :, :width]
        return distributed.allreduce_sum(full)

    def place_weight(self, parts: list[Tensor]) -> Tensor:
        full = parts[0].new_zeros(self.outputs, self.inputs)
        blocks = full[:, self.columns].unflatten(1, (-1, self.mask.block))
        for window, kernel, part in zip(self.windows, self.kernels, parts, strict=True):
            blocks[:, :, 2 * window : 2 * window + 4] += kernel.layout.unpack(part).view(self.outputs, -1, 4)
        return full

    def costs(self) -> dict[str, Cost]:
        B, N, width, size = self.batch, self.outputs, self.width, self.itemsize
        x, y = B * width * size, B * N * size
        w = N * width // 2 * size + self.kernels[0].layout.metadata_bits / 8
        costs = {}
        for name, sides in {
            "forward": (x, w, y), "backward_input": (y, w, x), "backward_weight": (y, x, w),
        }.items():  # fmt: skip
            one = matmul(B, N, width / 2, *sides)
            costs[name] = Cost()
            for _ in self.windows:
                costs[name] += one
        if self.ranks > 1:
            costs["forward"] += all_reduce(self.ranks, y)
            shared = B * (width // 4) * (self.mask.block - 4) * size
            costs["backward_input"] += all_reduce(self.mask.windows, shared)
        return costs

    def collectives(self) -> dict[str, Counter[str]]:
        if self.ranks == 1:
            return {}
        return {each: Counter(all_reduce=1) for each in ("forward", "backward", "input_grad")}

    def roundings(self) -> dict[str, float]:
        """No column is in more than two windows."""
        return {"Y": ring_roundings(max(self.ranks, self.mask.windows)), "dX": ring_roundings(2), "dW": 1.0}

    def weight_bytes(self) -> int:
        return sum(kernel.weight_bytes for kernel in self.kernels)

    def flop_formulas(self) -> dict[Any, Callable[..., int]]:
        return self.kernels[0].flop_formulas()

    def describe(self) -> dict[str, Any]:
        kernel = {"kernel": self.kernels[0].describe(), "weights": "packed"}
        return {**kernel, "windows": self.mask.windows, **self.collective.describe()}


class _SumShared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: WindowsLinear) -> Tensor:
        ctx.layer = layer
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.sum_shared(grads[0].contiguous()), None
