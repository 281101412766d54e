"""Memory of which every rank of a group holds an equal piece that its peers read and write directly (NVLink or PCIe).

    buffer, problem = symmetric_buffer(group, device, size)    # a collective over all ranks; at build time only
    buffer.view((B, R), torch.bfloat16)                        # this rank's piece

One buffer a group, shared by all layers, since a step uses it for one sum after another. A larger request makes a
larger buffer; layers built earlier keep the one they have, whose address their CUDA graphs hold. It is freed with the
last layer that uses it. It lies outside of PyTorch's allocator: `live_bytes` counts it.
"""

from __future__ import annotations

import os
import socket
from math import prod
from typing import Any
from weakref import WeakSet, WeakValueDictionary

import torch
import torch.distributed as dist

from blockshock.ranks import distributed

GRANULE = 1 << 21  # bytes: what the driver allocates at a time


class SymmetricBuffer:
    """This rank's piece and the way to its peers'."""

    def __init__(self, memory: torch.Tensor, handle: Any, group_name: str, generation: int) -> None:
        self.memory, self.group_name, self.generation = memory, group_name, generation
        self._handle = handle

    def view(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """The piece's beginning as a contiguous tensor."""
        size = prod(shape) * dtype.itemsize
        if size > len(self.memory):
            raise ValueError(f"{size} bytes of partial products in a symmetric buffer made for {len(self.memory)}")
        return self.memory[:size].view(dtype).view(shape)

    def of_peer(self, own: torch.Tensor) -> torch.Tensor:
        """In a pair, the part of the peer's piece that corresponds to `own`, a part of this rank's."""
        peer = 1 - self._handle.rank
        return self._handle.get_buffer(peer, tuple(own.shape), own.dtype, own.storage_offset())

    def barrier(self) -> None:
        """On the current stream: what the ranks did before is done, and visible to all after."""
        self._handle.barrier(channel=0)


_newest: WeakValueDictionary[str, SymmetricBuffer] = WeakValueDictionary()  # by group
_live: WeakSet[SymmetricBuffer] = WeakSet()
_generations = 0


def live_bytes() -> int:
    """Bytes that this rank holds in symmetric buffers."""
    return sum(len(buffer.memory) for buffer in _live)


def symmetric_buffer(
    group: dist.ProcessGroup, device: torch.device, size: int
) -> tuple[SymmetricBuffer | None, str | None]:
    """(the group's buffer, of `size` bytes at least; None), or (None, why there can be none on this machine).

    All ranks of the job must call it at the same time, each with its group, and get an answer of the same kind.
    """
    global _generations
    name = group.group_name
    known = _newest.get(name)
    # A rank may have dropped its layers earlier than another: only what all have kept can be used again.
    held = float(known.generation) if known is not None and len(known.memory) >= size else -1.0
    largest, smallest = distributed.max_over_ranks([held, -held])
    if known is not None and 0 <= largest == -smallest:
        return known, None
    import torch.distributed._symmetric_memory as symm_mem

    os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")  # none of the reductions uses NVLink multicast
    problem = first_over_ranks(_unreachable(group, device))
    if problem:
        return None, problem
    memory, problem = None, None
    try:
        # Not symm_mem.empty: it may take the piece from a pool, from another place where a rank freed others earlier.
        memory = symm_mem._SymmetricMemory.empty_strided_p2p(
            (-(-size // GRANULE) * GRANULE,), (1,), torch.uint8, device
        )
    except RuntimeError as error:  # this driver or GPU can't share memory
        problem = _first_line(error)
    problem = first_over_ranks(problem)  # before the exchange, in which the others would wait for ever
    if memory is None or problem:
        return None, problem
    handle = None
    try:
        handle = symm_mem.rendezvous(memory, name)
    except RuntimeError as error:
        problem = _first_line(error)
    problem = first_over_ranks(problem)
    if handle is None or problem:
        return None, problem
    _generations += 1
    buffer = SymmetricBuffer(memory, handle, name, _generations)
    _newest[name] = buffer
    _live.add(buffer)
    return buffer, None


def first_over_ranks(problem: str | None) -> str | None:
    """The first rank's problem, on every rank; None if no rank has one."""
    problems: list[str | None] = [None] * distributed.world_size()
    dist.all_gather_object(problems, problem)
    return next((each for each in problems if each), None)


def _unreachable(group: dist.ProcessGroup, device: torch.device) -> str | None:
    """Why this rank can't read its peers' memory, as far as can be said before trying."""
    where: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(where, (socket.gethostname(), device.index), group=group)
    if len({host for host, _ in where}) > 1:
        return "the ranks of a sum are on several hosts"
    if len(set(where)) < len(where):
        return "the ranks of a sum see one GPU each, under the same number: ranks can't be told apart"
    for _, index in where:
        if index != device.index and not torch.cuda.can_device_access_peer(device.index, index):
            return f"GPU {device.index} can't read the memory of GPU {index}"
    return None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200]
