"""Collectives of a step that is being written as a graph, by torch.compile or by `profiler`: PyTorch's functional ones.

    if tracing():
        total = all_reduce(partial, group)        # new memory, waited for at once: two nodes of the graph

In-place collectives and the work objects that they return are no nodes of a graph. What runs eagerly keeps them.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.fx.experimental.proxy_tensor import get_proxy_mode


def tracing() -> bool:
    """Whether operators are written down here, not run."""
    return torch.compiler.is_compiling() or get_proxy_mode() is not None


def all_reduce(partial: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The sum of every rank's `partial`, on all."""
    return _waited_for(torch.ops._c10d_functional.all_reduce(partial, "sum", group.group_name))


def all_gather(own: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """(B, n) of each of P ranks -> (P·B, n) on all."""
    ranks = dist.get_world_size(group)
    return _waited_for(torch.ops._c10d_functional.all_gather_into_tensor(own, ranks, group.group_name))


def reduce_scatter(stacked: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """(P·B, n) of each of P ranks -> this rank's (B, n), summed."""
    ranks = dist.get_world_size(group)
    return _waited_for(torch.ops._c10d_functional.reduce_scatter_tensor(stacked, "sum", ranks, group.group_name))


def _waited_for(pending: torch.Tensor) -> torch.Tensor:
    done: torch.Tensor = torch.ops._c10d_functional.wait_tensor(pending)
    return done
