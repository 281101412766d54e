"""What both DTensor methods need: a dense layer's shards under one of PyTorch's own tensor-parallel plans.

    class DTensorRowLinear(PlannedLinear, RowShardedLinear):
        def __init__(self, problem, weight):
            super().__init__(problem)
            self.follow(RowwiseParallel(...), self.own(weight), Shard(1))      # own: (N, K/P), this rank's columns

The weight is a DTensor made of the shards that the ranks hold, so that nothing is sent to build it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, parallelize_module

from blockshock.collectives.parts import Parts, functional_parts
from blockshock.errors import ConfigError
from blockshock.methods import ParallelLinear
from blockshock.ranks.distributed import local_part

if TYPE_CHECKING:
    from blockshock.config import Job
    from blockshock.problem import Problem


def reject_whole_step_graph(name: str, job: Job) -> None:
    """For methods that trace the optimizer as well: their graphs hold plain tensors."""
    if getattr(job.method, "traces_whole_step", False):
        problem = f"method={job.method.name} can't trace a DTensor; use dense_tp_row, or method=recompute_compiled"
        raise ConfigError("method", name, problem)


class PlannedLinear(ParallelLinear):
    """The matmuls and collectives of a sharded layer, left to PyTorch: to be inherited before what shards it."""

    def follow(self, plan: ParallelStyle, shard: torch.Tensor, placement: Shard) -> None:
        """Put the weight under `plan`; of `placement`, this rank has `shard`."""
        self.plan = type(plan).__name__
        self.linear = _parallelized(shard, placement, plan)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _waited_for(self.linear(x))

    def parts(self, x: torch.Tensor) -> Parts:
        weight = self.linear.weight
        assert isinstance(weight, torch.Tensor)
        assert dist.group.WORLD is not None
        multiply = partial(nn.functional.linear, weight=local_part(weight))
        return functional_parts(x, multiply, dist.group.WORLD, gathers=self.plan == "ColwiseParallel")

    def describe(self) -> dict[str, Any]:
        return {"plan": self.plan}


class PlannedShard(nn.Module):
    """Column-parallel up to the gather, which the next layer of a pair makes needless: this rank's columns."""

    def __init__(self, up: Problem, up_rows: torch.Tensor) -> None:
        super().__init__()
        plan = ColwiseParallel(input_layouts=Replicate(), output_layouts=Shard(-1))
        self.linear = _parallelized(up_rows, Shard(0), plan)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _waited_for(self.linear(x))


def _parallelized(shard: torch.Tensor, placement: Shard, plan: ParallelStyle) -> nn.Module:
    """`nn.Linear` without a bias under `plan`, over all ranks, each of which gives its equal `shard` of the weight."""
    group = dist.group.WORLD
    assert group is not None, "DTensor needs a process group"
    mesh = DeviceMesh.from_group(group, shard.device.type)
    weight = DTensor.from_local(shard, mesh, [placement], run_check=False)
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight)
    return parallelize_module(linear, mesh, plan)


def _waited_for(y: torch.Tensor) -> torch.Tensor:
    """`y` as a plain tensor: PyTorch waits for a collective at the first operation on its result, not before, and a
    measurement of the layer must hold all of it."""
    return _WaitedFor.apply(y) if isinstance(y, AsyncCollectiveTensor) else y


class _WaitedFor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: AsyncCollectiveTensor) -> torch.Tensor:
        return y.wait()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0]
