"""Few rows of X times any 2:4 half on sparse tensor cores, by our own kernel (gpu/sparse_mma.cu)."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from blockshock.dtypes import short_name, torch_name
from blockshock.errors import ConfigError
from blockshock.kernels.gpu import nvrtc
from blockshock.kernels.gpu.sparse_mma_launch import STEP, MmaTiles, MmaWorkspace, arrange, matmul
from blockshock.kernels.gpu.tuning import Tuned, for_batch
from blockshock.kernels.kernel import FEW_ROWS, Half, Kernel, Shape
from blockshock.kernels.layouts import PackedLayout
from blockshock.measure import nvml

# The best few of each shape in a search over 190, on an H200.
CHOICES = (
    MmaTiles(64, 16, 4, 1, 1, 4),  # for GPUs with less shared memory
    MmaTiles(64, 64, 8, 2, 1, 3),
    MmaTiles(128, 16, 8, 1, 4, 5),
    MmaTiles(128, 16, 8, 2, 1, 5),
    MmaTiles(128, 16, 4, 1, 1, 5),
    MmaTiles(128, 16, 4, 1, 4, 5, cluster=True),
    MmaTiles(64, 16, 4, 1, 2, 8, cluster=True),
    MmaTiles(128, 16, 8, 1, 2, 5, cluster=True),
    MmaTiles(128, 64, 8, 2, 4, 6),
    MmaTiles(128, 64, 8, 2, 4, 3),
    MmaTiles(64, 64, 8, 2, 2, 4, cluster=True),
    MmaTiles(256, 64, 8, 2, 2, 4, cluster=True),
    MmaTiles(128, 64, 8, 2, 1, 3),
    MmaTiles(128, 64, 8, 2, 2, 3, cluster=True),
)


def fitting(rows: int, K: int, device: torch.device) -> list[MmaTiles]:
    """The tiles for a half (rows, K) that this GPU has room for."""
    gpu = torch.cuda.get_device_properties(device)
    room = getattr(gpu, "shared_memory_per_block_optin", gpu.shared_memory_per_block)  # not in the type stubs
    capability = (gpu.major, gpu.minor)
    return [tiles for tiles in CHOICES if tiles.fits(rows, K, capability, room)]


class SparseMma(Kernel):
    """Forward from packed values and two bits a value; gradients with the weight made dense in memory."""

    name = "sparse_mma"
    layout: PackedLayout

    @classmethod
    def unsupported(cls, shape: Shape) -> str | None:
        here = torch.cuda.device_count() > 0  # a cluster's login node can't tell what its GPU nodes have
        if shape.device != "cuda" or (here and not nvrtc.usable()):
            return "needs an NVIDIA GPU and the cuda-bindings that come with PyTorch for CUDA; use auto or masked_dense"
        if shape.dtype not in (torch.bfloat16, torch.float16):
            dtype = short_name(shape.dtype)
            return f"multiplies bf16 and fp16, not {dtype}; use model.dtype=bf16, or kernel auto or masked_dense"
        if shape.rows % 128 or shape.features % STEP:
            return f"needs a rank's rows N={shape.rows} to be a multiple of 128 and K={shape.features} of {STEP}"
        if here and (nvml.capability() or (8, 0)) < (8, 0):
            return "needs sparse tensor cores, a GPU of compute capability 8.0 or later; use auto or triton"
        return None

    @classmethod
    def worth_trying(cls, shape: Shape) -> bool:
        few = shape.device == "cuda" and not shape.blocks and shape.batch <= FEW_ROWS
        return few and bool(fitting(shape.rows, shape.features, torch.device("cuda", torch.cuda.current_device())))

    @classmethod
    def build(cls, half: Half) -> Kernel:
        return cls(half.packed, half.batch, half.dtype, half.device)

    def __init__(self, layout: PackedLayout, batch: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(layout, dtype)
        places = layout.places
        self._metadata = arrange(places.repeat(layout.rows // len(places), 1))
        key = {"R": layout.rows, "K": layout.features, "B": batch, "dtype": torch_name(dtype)}
        x = torch.randn(batch, layout.features, device=device).to(dtype)
        values = torch.randn(layout.rows, layout.features // 2, device=device).to(dtype)
        out = torch.empty(batch, layout.rows, device=device, dtype=dtype)
        run = partial(matmul, x, values, self._metadata, out)
        work = partial(_workspace, rows=layout.rows, device=device)
        choices = for_batch(fitting(layout.rows, layout.features, device), batch)
        if not choices:
            problem = "has no tiles that fit this GPU's shared memory; use auto, triton or cusparselt"
            raise ConfigError("method.kernel", self.name, problem)
        self.tuned = Tuned("sparse_mma", choices, key, device, run, work)

    def matmul(self, x: torch.Tensor, values: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        if out is None:
            out = x.new_empty(len(x), self.layout.rows)
        return matmul(x, values, self._metadata, out, self.tuned.tiles, self.tuned.work(len(x)))

    @property
    def weight_bytes(self) -> int:
        return super().weight_bytes + self._metadata.numel() * self._metadata.element_size()

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self.tuned.tiles)}


def _workspace(tiles: MmaTiles, batch: int, *, rows: int, device: torch.device) -> MmaWorkspace:
    return MmaWorkspace(tiles, rows, batch, device)
