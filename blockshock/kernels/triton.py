"""Our own products, in Triton: tuned tiles for each shape, for masks made of blocks (gpu/strided.py for few rows of
X, gpu/block_gemm.py for many) and any other (gpu/decompress.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from blockshock.dtypes import short_name, torch_name
from blockshock.kernels.gather import Gather
from blockshock.kernels.gpu import block_gemm, decompress, strided
from blockshock.kernels.gpu.block_gemm import GemmTiles
from blockshock.kernels.gpu.strided import StridedTiles, Workspace
from blockshock.kernels.gpu.triton_support import INSTALLED, INTERPRETED
from blockshock.kernels.gpu.tuning import Tuned, for_batch
from blockshock.kernels.kernel import FEW_ROWS, Half, Kernel, Shape
from blockshock.kernels.layouts import BlockLayout, PackedLayout, mask_key

# What to choose from, by the batch up to which it is good, found with a wider search on an H200.
STRIDED = (
    StridedTiles(64, 16, 64, 1, 4, 4),
    StridedTiles(64, 16, 64, 2, 4, 4),
    StridedTiles(64, 16, 64, 4, 4, 4),
    StridedTiles(128, 16, 64, 1, 8, 3),
    StridedTiles(128, 16, 32, 4, 8, 4),
    StridedTiles(64, 16, 32, 1, 4, 4),  # small layers
    StridedTiles(64, 64, 64, 2, 4, 4),
    StridedTiles(128, 64, 64, 1, 8, 3),
    StridedTiles(128, 64, 64, 2, 8, 3),
    StridedTiles(64, 64, 32, 1, 4, 4),
    StridedTiles(128, 128, 32, 1, 4, 4),
)
BLOCK_GEMM = (
    GemmTiles(64, 32, 128, warps=4, stages=4),
    GemmTiles(64, 64, 128, warps=4, stages=3),
    GemmTiles(64, 128, 64, warps=4, stages=4),
    GemmTiles(128, 64, 64, warps=4, stages=4),
    GemmTiles(128, 128, 64, warps=8, stages=3),
    GemmTiles(128, 128, 64, both=True, group=16, stages=3),
    GemmTiles(128, 256, 64, stages=3),
    GemmTiles(128, 256, 64, persistent=True, stages=3),
)
DECOMPRESS = (
    StridedTiles(64, 16, decompress.LANES, 1, 4, 2),
    StridedTiles(64, 16, decompress.LANES, 2, 4, 2),
    StridedTiles(64, 16, decompress.LANES, 4, 4, 2),
    StridedTiles(128, 64, decompress.LANES, 1, 8, 2),
    StridedTiles(128, 64, decompress.LANES, 2, 8, 2),
    StridedTiles(128, 64, decompress.LANES, 4, 8, 2),
)


class Triton(Kernel):
    """`Blocks` for masks made of blocks, `Decompress` for any other."""

    name = "triton"

    @classmethod
    def unsupported(cls, shape: Shape) -> str | None:
        here = torch.cuda.device_count() > 0  # a cluster's login node can't tell what its GPU nodes have
        on_gpu = shape.device == "cuda" and (INSTALLED or not here)
        if not on_gpu and not (INSTALLED and INTERPRETED):
            return "needs an NVIDIA GPU and Triton; use auto, gather or masked_dense"
        if shape.dtype not in (torch.bfloat16, torch.float16):
            it = short_name(shape.dtype)
            return f"multiplies bf16 and fp16, not {it}; use model.dtype=bf16, or kernel auto, gather or masked_dense"
        multiple = 128 if shape.blocks else decompress.COLUMNS
        if shape.rows % 128 or shape.features % multiple:
            return f"needs a rank's rows N={shape.rows} to be a multiple of 128 and K={shape.features} of {multiple}"
        return None

    @classmethod
    def worth_trying(cls, shape: Shape) -> bool:
        # On a CPU Triton only interprets. Many rows of X and a mask without blocks are cuSPARSELt's.
        return shape.device == "cuda" and (shape.blocks > 0 or shape.batch <= FEW_ROWS)

    @classmethod
    def build(cls, half: Half) -> Kernel:
        if half.blocks is not None:
            return Blocks(half.blocks, half.batch, half.dtype, half.device)
        return Decompress(half.packed, half.batch, half.dtype, half.device)


def _workspace(tiles: StridedTiles | GemmTiles, batch: int, *, rows: int, device: torch.device) -> Workspace:
    """What strided.py's and decompress.py's split sums need; block_gemm.py needs nothing."""
    return Workspace(tiles if isinstance(tiles, StridedTiles) else StridedTiles(), rows, batch, device)


class Blocks(Triton, Gather):
    """Forward with no pass over Y, and for few rows none over X; gradients as in Gather."""

    layout: BlockLayout

    def __init__(self, layout: BlockLayout, batch: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(layout, dtype)
        key = {"mask": mask_key(layout), "R": layout.rows, "K": layout.features, "B": batch, "dtype": torch_name(dtype)}
        x = torch.randn(batch, layout.features, device=device).to(dtype)
        values = torch.randn(layout.rows, layout.features // 2, device=device).to(dtype)
        out = torch.empty(batch, layout.rows, device=device, dtype=dtype)
        work = partial(_workspace, rows=layout.rows, device=device)
        choices = for_blocks(layout, batch)
        self.tuned = Tuned("triton", choices, key, device, partial(self._matmul, x, values, out), work)

    def _matmul(
        self, x: torch.Tensor, values: torch.Tensor, out: torch.Tensor, tiles: StridedTiles | GemmTiles, work: Workspace
    ) -> torch.Tensor:
        columns, block_rows = self.layout.columns, self.layout.block_rows
        if isinstance(tiles, GemmTiles):
            return block_gemm.matmul(x, values, columns, block_rows, out, tiles)
        return strided.matmul(x, values, columns, block_rows, out, tiles, work)

    def matmul(self, x: torch.Tensor, values: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        if out is None:
            out = x.new_empty(len(x), self.layout.rows)
        return self._matmul(x, values, out, self.tuned.tiles, self.tuned.work(len(x)))

    def describe(self) -> dict[str, Any]:
        variant = "block_gemm" if isinstance(self.tuned.tiles, GemmTiles) else "strided"
        return {**super().describe(), "variant": variant, **asdict(self.tuned.tiles)}


def for_blocks(layout: BlockLayout, B: int) -> Sequence[StridedTiles | GemmTiles]:
    """What to choose from for B rows of X: a few can't fill block_gemm's tiles, many are slow in strided's."""
    few = for_batch([t for t in STRIDED if t.fits(layout.rows, layout.features, layout.blocks)], B)
    many = for_batch([t for t in BLOCK_GEMM if t.fits(layout.rows, layout.features, layout.columns)], B)
    if B < 64 or not many:
        return few
    return [*few, *many] if B <= 128 else many


class Decompress(Triton):
    """Forward with tiles of the weight made dense in registers; gradients with the weight made dense in memory."""

    layout: PackedLayout

    def __init__(self, layout: PackedLayout, batch: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(layout, dtype)
        if layout.flags is None:  # a mask with a period that is not made of blocks: its rows once each
            places = layout.places.repeat(layout.rows // layout.period, 1)
            layout = self.layout = PackedLayout(layout.rows, layout.features, None, decompress.flags_of(places))
        assert layout.flags is not None
        self.flags = layout.flags
        key = {"mask": "any", "R": layout.rows, "K": layout.features, "B": batch, "dtype": torch_name(dtype)}
        fitting = [tiles for tiles in DECOMPRESS if tiles.fits(layout.rows, layout.features, 1)]
        x = torch.randn(batch, layout.features, device=device).to(dtype)
        values = torch.randn(layout.rows, layout.features // 2, device=device).to(dtype)
        out = torch.empty(batch, layout.rows, device=device, dtype=dtype)
        run = partial(decompress.matmul, x, values, self.flags, out)
        work = partial(_workspace, rows=layout.rows, device=device)
        self.tuned = Tuned("triton", for_batch(fitting, batch), key, device, run, work)

    def matmul(self, x: torch.Tensor, values: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        if out is None:
            out = x.new_empty(len(x), self.layout.rows)
        return decompress.matmul(x, values, self.flags, out, self.tuned.tiles, self.tuned.work(len(x)))

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "variant": "decompress", **asdict(self.tuned.tiles)}
