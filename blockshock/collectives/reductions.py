"""Ways to sum a partial product over a group, each with one rounding an addition (bf16 + bf16 -> bf16).

A reduction says where the product should write (`place`), adds one chunk on the current stream (`add`), and ends
(`finish`). The results of all are the same on every rank of the group.

`nccl`, `gloo`  the process group's own all-reduce, in place in the result
`one_shot`      every rank reads all partial products and adds them: one exchange, P-1 times the bytes; for small ones
`two_shot`      every rank adds 1/P of the rows, then collects the rest: two exchanges, 2(P-1)/P times the bytes
`copy`          a pair exchanges its partial products by the copy engines, which leaves the processors to the next
                chunk's product, and adds: the bytes of one_shot

A new one is a subclass of `Reduction` and its entry in REDUCTIONS, at the end of this file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.distributed as dist

from blockshock.collectives.symmetric import SymmetricBuffer
from blockshock.dtypes import torch_name

TWO_SHOT_RANKS = (2, 4, 8)  # the sizes for which PyTorch compiles it out of place
SHOT_DTYPES = (torch.bfloat16, torch.float32)  # for which PyTorch compiles both shots

Places = tuple[torch.Tensor | None, torch.Tensor | None]


class Reduction(ABC):
    """One layer's way to sum. Its result is the same on every rank of the group."""

    name: ClassVar[str]  # the value of `method.collective`, if its backend is NCCL
    backend: ClassVar[str] = "nccl"  # of process groups on which it works: nccl | gloo
    symmetric: ClassVar[bool] = False  # whether products must be in memory that peers read

    group: dist.ProcessGroup

    @classmethod
    def unsupported(cls, ranks: int, dtype: torch.dtype, size: int) -> str | None:
        """Why it can't sum `size` bytes over `ranks` ranks; None if it can on a fitting machine."""
        return None

    @classmethod
    @abstractmethod
    def build(cls, group: dist.ProcessGroup, width: int, buffer: SymmetricBuffer | None) -> Reduction:
        """For partial products (B, width); `buffer` is there if it is `symmetric`."""

    @abstractmethod
    def place(self, rows: int, like: torch.Tensor, whole: bool = False) -> Places:
        """(where the product is to be written, where the sum will be), both (rows, R), of dtype and device of `like`.

        (None, None): anywhere, and in the product's own place. `whole`: a place for all of it is needed, since
        chunks will be written there.
        """

    @abstractmethod
    def add(self, partial: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        """Begin to sum `partial` over the group into `total` (of one shape); returns `total`."""

    def finish(self, total: torch.Tensor) -> torch.Tensor:
        """Order all sums begun before what follows on the current stream; returns `total`."""
        return total


class AllReduce(Reduction):
    """NCCL's own all-reduce, on the current stream."""

    name = "nccl"

    def __init__(self, group: dist.ProcessGroup, width: int) -> None:
        self.group, self._width = group, width

    @classmethod
    def build(cls, group: dist.ProcessGroup, width: int, buffer: SymmetricBuffer | None) -> Reduction:
        return cls(group, width)

    def place(self, rows: int, like: torch.Tensor, whole: bool = False) -> Places:
        if not whole:
            return None, None
        total = like.new_empty(rows, self._width)
        return total, total

    def add(self, partial: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(total, group=self.group)
        return total


class GlooAllReduce(AllReduce):
    """gloo's, in threads beside the next chunk's product."""

    name = "gloo"
    backend = "gloo"

    def __init__(self, group: dist.ProcessGroup, width: int) -> None:
        super().__init__(group, width)
        self._works: list[dist.Work] = []

    def add(self, partial: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        work = dist.all_reduce(total, group=self.group, async_op=True)
        assert work is not None
        self._works.append(work)
        return total

    def finish(self, total: torch.Tensor) -> torch.Tensor:
        for work in self._works:
            work.wait()
        self._works.clear()
        return total


class Symmetric(Reduction):
    """The product goes into memory that peers read; the sum is ordinary memory, which no later product overwrites.

    A rank's next product overwrites what its peers read. It may: both shots begin and end with a barrier of the ranks
    on the device (one for each block of rows that the same thread block of every rank works on), and so does `Copy`.
    The kernel is done on this rank when every peer has passed the last barrier, after its reads of this rank's memory.
    Whatever follows on the stream, or on one that waits for it, comes after that. Chunks have rows of their own in the
    buffer, since the next chunk is written while this one is read. Two sums through one buffer never run at a time:
    the signals of their barriers are in the same place.
    """

    symmetric = True

    def __init__(self, group: dist.ProcessGroup, buffer: SymmetricBuffer, width: int) -> None:
        self.group, self.buffer, self._width = group, buffer, width

    @classmethod
    def build(cls, group: dist.ProcessGroup, width: int, buffer: SymmetricBuffer | None) -> Reduction:
        assert buffer is not None
        return cls(group, buffer, width)

    @classmethod
    def unsupported(cls, ranks: int, dtype: torch.dtype, size: int) -> str | None:
        return None if size % 16 == 0 else f"needs a partial product of a multiple of 16 bytes, not {size}"

    def place(self, rows: int, like: torch.Tensor, whole: bool = False) -> Places:
        return self.buffer.view((rows, self._width), like.dtype), like.new_empty(rows, self._width)


class OneShot(Symmetric):
    name = "one_shot"

    @classmethod
    def unsupported(cls, ranks: int, dtype: torch.dtype, size: int) -> str | None:
        if dtype not in SHOT_DTYPES:
            return f"adds bf16 and fp32, not {torch_name(dtype)}"
        return super().unsupported(ranks, dtype, size)

    def add(self, partial: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        return torch.ops.symm_mem.one_shot_all_reduce_out(partial, "sum", self.buffer.group_name, total)


class TwoShot(OneShot):
    name = "two_shot"

    @classmethod
    def unsupported(cls, ranks: int, dtype: torch.dtype, size: int) -> str | None:
        if ranks not in TWO_SHOT_RANKS:
            return f"is for {', '.join(map(str, TWO_SHOT_RANKS))} ranks, not for {ranks}"
        return super().unsupported(ranks, dtype, size)

    def add(self, partial: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        return torch.ops.symm_mem.two_shot_all_reduce_out(partial, "sum", self.buffer.group_name, total)


class Copy(Symmetric):
    name = "copy"

    @classmethod
    def unsupported(cls, ranks: int, dtype: torch.dtype, size: int) -> str | None:
        return super().unsupported(ranks, dtype, size) if ranks == 2 else f"is for pairs, not for {ranks} ranks"

    def add(self, partial: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        self.buffer.barrier()  # the peer has written these rows
        total.copy_(self.buffer.of_peer(partial))
        return total.add_(partial)

    def finish(self, total: torch.Tensor) -> torch.Tensor:
        self.buffer.barrier()  # the peer has read all rows
        return total


# By name. Those on NCCL are the values of `method.collective`; `auto` tries them in this order.
REDUCTIONS: dict[str, type[Reduction]] = {
    "nccl": AllReduce,
    "one_shot": OneShot,
    "two_shot": TwoShot,
    "copy": Copy,
    "gloo": GlooAllReduce,
}
GPU_NAMES = tuple(name for name, reduction in REDUCTIONS.items() if reduction.backend == "nccl")
