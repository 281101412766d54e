"""What both DTensor methods need: a linear layer under one of PyTorch's own tensor-parallel plans.

    linear = parallelized(shard, Shard(1), RowwiseParallel())    # shard (N, K/P): this rank's columns of the weight
    y = waited_for(linear(x))                                    # (B, N), a plain tensor

The weight is a DTensor made of the shards that the ranks hold, so that nothing is sent to build it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module


def parallelized(shard: torch.Tensor, placement: Shard, plan: ParallelStyle) -> nn.Module:
    """`nn.Linear` without a bias under `plan`, over all ranks, each of which gives its equal `shard` of the weight."""
    group = dist.group.WORLD
    assert group is not None, "DTensor needs a process group"
    mesh = DeviceMesh.from_group(group, shard.device.type)
    weight = DTensor.from_local(shard, mesh, [placement], run_check=False)
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight)
    return parallelize_module(linear, mesh, plan)


def waited_for(y: torch.Tensor) -> torch.Tensor:
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
