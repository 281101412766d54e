"""What a rank needs of torch.distributed, and nothing when there is one rank only."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist

from blockshock.ranks.launched import RankInfo, joined_store


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def barrier() -> None:
    """Every rank has arrived, and on GPUs every rank's stream has run dry."""
    if is_distributed():
        allreduce_sum(torch.zeros(1, device=_device))
    if _device.type == "cuda":
        torch.cuda.synchronize(_device)


def allreduce_sum(tensor: torch.Tensor, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """Sum `tensor` over the ranks in place; returns it."""
    if is_distributed():
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=group)
    return tensor


def gather_tensors(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Every rank's `tensor`, all of one shape, in the order of the ranks."""
    if not is_distributed():
        return [tensor]
    gathered = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(gathered, tensor.contiguous())
    return gathered


def max_over_ranks(values: list[float]) -> list[float]:
    """Elementwise maximum over the ranks: the slowest rank's time, iteration by iteration."""
    if not is_distributed() or not values:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=_device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor.tolist()


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of `tensor`: its shard where it is a DTensor, else all of it."""
    # Known by its method: importing DTensor takes most of a second, which jobs without one need not spend.
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def local_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes that this rank holds of `tensors`."""
    parts = [local_part(tensor) for tensor in tensors]
    return sum(part.numel() * part.element_size() for part in parts)


def of_each_rank(value: Any) -> list[Any]:
    """Every rank's `value`, in the order of the ranks."""
    if not is_distributed():
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def from_rank_0(value: Any) -> Any:
    """Rank 0's `value`, on every rank."""
    if not is_distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=_device)
    return box[0]


@cache
def subgroup(size: int, stride: int) -> dist.ProcessGroup | None:
    """This rank's group of `size` ranks that are `stride` apart; None when it is this rank alone.

    All ranks must call it with the same arguments in the same order: every group of the kind is created by all.
    """
    if size == 1 or not is_distributed():
        return None
    if size == world_size():
        return dist.group.WORLD
    mine = None
    block = size * stride
    for first in range(0, world_size(), block):
        for offset in range(stride):
            members = list(range(first + offset, first + block, stride))
            group = dist.new_group(members)
            if rank() in members:
                mine = group
    return mine


_device = torch.device("cpu")


def initialize(info: RankInfo, device_type: str, backend: str, threads: int, timeout_s: float) -> torch.device:
    """Assign this rank's device by its local rank and, with more than one rank, join the process group (once)."""
    global _device
    torch.set_num_threads(threads)
    # A launcher may show every rank a GPU of its own; it then is number 0 of one.
    index = 0 if torch.cuda.device_count() == 1 else info.local_rank
    _device = torch.device("cuda", index) if device_type == "cuda" else torch.device("cpu")
    if _device.type == "cuda":
        torch.cuda.set_device(_device)
    if info.world_size > 1 and not is_distributed():
        store = joined_store()
        if info.store_address is not None:
            store = _store(info, *info.store_address, timedelta(seconds=timeout_s))
        dist.init_process_group(
            backend,
            store=store,
            rank=info.rank,
            world_size=info.world_size,
            timeout=timedelta(seconds=timeout_s),
            device_id=_device if _device.type == "cuda" and backend == "nccl" else None,
        )
    return _device


def _store(info: RankInfo, host: str, port: int, timeout: timedelta) -> dist.TCPStore:
    if info.store_listener is None:
        return dist.TCPStore(host, port, is_master=False, timeout=timeout)
    listener = info.store_listener.detach()
    return dist.TCPStore(host, port, is_master=True, timeout=timeout, wait_for_workers=False, master_listen_fd=listener)


def shutdown() -> None:
    subgroup.cache_clear()
    if is_distributed():
        dist.destroy_process_group()
