"""An all-reduce by way of rank 0."""

import torch
import torch.distributed as dist

from blockshock.collectives.reductions import AllReduce


class ReduceThenBroadcast(AllReduce):
    name = "reduce_broadcast"

    def add(self, partial: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        dist.reduce(total, dst=0, group=self._group)
        dist.broadcast(total, src=0, group=self._group)
        return total
