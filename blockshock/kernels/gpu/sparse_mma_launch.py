"""Any 2:4 half times few rows of X on sparse tensor cores: packed values and two-bit places, read once.

    metadata = arrange(places)                                  # once for a mask: uint8 (R, K/2) -> int32 (R, K/32)
    work = MmaWorkspace(tiles, R, B, device)                       # once for a shape
    matmul(x, values, metadata, out, tiles, work)              # out (B, R) = x (B, K) · Wᵀ, one launch

The kernel (sparse_mma.cu) is bound by the bytes of the weight: K values and K/4 bytes of metadata a row, 9/16 of dense.
It feeds mma.sp.m16n8k32 (PTX ISA, "Matrix fragments for sparse mma.m16n8k32 with .f16 and .bf16 types"), on GPUs of
capability 8.0 and later.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from blockshock.kernels.gpu import nvrtc

STEP = 128  # columns of W that a step takes: K must be a multiple


@dataclass(frozen=True)
class MmaTiles:
    """How a product is cut up.

    rows, batch: rows of W and of X for one block of threads; `along` of its `warps` share a step of 128 columns, the
    others share the rows, so that a warp has rows·along/(16·warps) tiles of 16 rows: 1, 2 or 4. `split` blocks share K,
    and add their sums through each other's shared memory if they are a `cluster` (capability 9.0, at most eight), else
    through the workspace. `stages` steps of shared memory. `prefetch`: bytes that one miss brings to L2.
    """

    rows: int = 128
    batch: int = 16
    warps: int = 8
    along: int = 1
    split: int = 1
    stages: int = 6
    cluster: bool = False
    prefetch: int = 128

    def __post_init__(self) -> None:
        shape = self.warps in (2, 4, 8, 16) and self.along in (1, 2, 4) and self.batch in (8, 16, 32, 64)
        if not (shape and self.height in (1, 2, 4) and 16 * self.height * self.warps == self.rows * self.along):
            raise ValueError(f"{self}: warps must be 2, 4, 8 or 16 with 1, 2 or 4 tiles of 16 rows, batch 8 to 64")
        if self.stages < 2 or (self.cluster and not 2 <= self.split <= 8):
            raise ValueError(f"{self}: two stages or more, and a cluster is 2 to 8 blocks")

    @property
    def height(self) -> int:
        return self.rows * self.along // (16 * self.warps)

    @property
    def shared(self) -> int:
        """Bytes of shared memory a block."""
        ring = self.stages * ((128 + 16) * self.rows + 256 * self.batch)
        return max(ring, 4 * self.along * self.batch * (self.rows + 4))

    def fits(self, R: int, K: int, capability: tuple[int, int] = (9, 0), room: int = 227 * 1024) -> bool:
        """Whether a weight (R, K) can be cut up so, on a GPU that gives a block `room` bytes of shared memory."""
        whole = R % self.rows == 0 and K % STEP == 0 and self.split <= K // STEP
        return whole and self.shared <= room - 128 and capability >= ((9, 0) if self.cluster else (8, 0))


class MmaWorkspace:
    """Partial sums and counters of arrived blocks, where K is split without clusters. Every launch leaves zeros."""

    def __init__(self, tiles: MmaTiles, R: int, B: int, device: torch.device) -> None:
        used = tiles.split > 1 and not tiles.cluster
        blocks = R // tiles.rows * -(-B // tiles.batch) if used else 1
        size = blocks * tiles.split * tiles.rows * tiles.batch if used else 1
        self.partial = torch.empty(size, dtype=torch.float32, device=device)
        self.arrived = torch.zeros(blocks, dtype=torch.int32, device=device)


def arrange(places: torch.Tensor) -> torch.Tensor:
    """uint8 places (R, K/2), each 0 to 3 and ascending in its group of four -> int32 (R/16, K/128, 32, 2).

    Words as the lanes of a warp hold them: lane 4·g + t of tile T and step s has, for pair p of MMAs, the columns
    128·s + 64·p + 16·t and 15 more, of row 16·T + g in the low half and of row 16·T + g + 8 in the high one. So lanes
    with t of 0 and 1 hold the first MMA's (sparsity selector 0), 2 and 3 the second's (selector 1). R is a multiple of
    16, K of 128.
    """
    R, kept = places.shape
    groups = places[:, 0::2] | (places[:, 1::2] << 2)  # four bits for each four columns
    octets = (groups[:, 0::2] | (groups[:, 1::2] << 4)).view(R // 16, 2, 8, kept // 64, 2, 4, 2)  # T half g s p t byte
    return octets.permute(0, 3, 2, 5, 4, 1, 6).reshape(-1).view(torch.int32).view(R // 16, kept // 64, 32, 2)


def matmul(
    x: torch.Tensor,
    values: torch.Tensor,
    metadata: torch.Tensor,
    out: torch.Tensor,
    tiles: MmaTiles,
    work: MmaWorkspace,
) -> torch.Tensor:
    """x (B, K), values (R, K/2), both contiguous bfloat16 or float16, -> out (B, R), sums in float32."""
    B, K = x.shape
    R = len(values)
    grid = (R // tiles.rows, -(-B // tiles.batch), tiles.split)
    kernel = _kernel(tiles, x.dtype, x.device.index)
    kernel.launch(grid, 32 * tiles.warps, (x, values, metadata, out, work.partial, work.arrived, B, R, K))
    return out


def cubin(tiles: MmaTiles, dtype: torch.dtype, capability: tuple[int, int]) -> bytes:
    """The compiled kernel; needs no GPU."""
    given = {
        "ROWS": tiles.rows, "BATCH": tiles.batch, "WARPS": tiles.warps, "ALONG": tiles.along, "SPLIT": tiles.split,
        "STAGES": tiles.stages, "CLUSTER": int(tiles.cluster), "PREFETCH": tiles.prefetch,
        "BF16": int(dtype == torch.bfloat16),
    }  # fmt: skip
    source = Path(__file__).with_name("sparse_mma.cu").read_text()
    return nvrtc.compile(source, "product", tuple(f"-D{k}={v}" for k, v in given.items()), capability)


@cache
def _kernel(tiles: MmaTiles, dtype: torch.dtype, device: int) -> nvrtc.CompiledKernel:
    with torch.cuda.device(device):
        return nvrtc.CompiledKernel(cubin(tiles, dtype, torch.cuda.get_device_capability()), "product", tiles.shared)
