"""Which kernel multiplies a half: the one that was named, or under `auto` the fastest on this machine.

kernel = make("auto", half_mask, period, batch=64, dtype=torch.bfloat16)
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from blockshock.errors import ConfigError, one_of
from blockshock.kernels.kernel import Kernel
from blockshock.kernels.layouts import BlockLayout, PackedLayout, mask_key
from blockshock.measure.cache import cached_measurement
from blockshock.measure.timing import quick_time_ms
from blockshock.ranks.distributed import max_over_ranks

if TYPE_CHECKING:
    from blockshock.config import Job


NAMES = ("auto", "cusparselt", "gather", "triton", "sparse_mma", "masked_dense", "reference")


FEW_ROWS = 256  # up to which it pays to try kernels made for few rows of X on masks without blocks


def check_kernel(job: Job, name: str, rows: int, columns: int) -> None:
    """Refuse a kernel that can't multiply halves (rows, columns) of one rank, of this dtype or on this device."""
    one_of("method.kernel", name, NAMES)
    model = job.model
    problem = _unsupported(name, job.hardware.device, model.dtype, rows, columns, model.B, _made_of_blocks(job))
    if problem:
        raise ConfigError("method.kernel", name, problem)


def _made_of_blocks(job: Job) -> bool:
    if job.mask.period is None:
        return False
    from blockshock.masks import halves

    generator = torch.Generator().manual_seed(0)
    half, _ = halves(job.mask, torch.randn(16, 16, generator=generator), generator)
    return BlockLayout.of(half, job.mask.period) is not None


def _unsupported(name: str, device: str, dtype: str, rows: int, K: int, B: int, blocks: bool) -> str | None:
    if name == "gather" and not blocks:
        return "needs a mask made of dense blocks (complement_*, checkerboard); use masked_dense, triton or cusparselt"
    if name == "triton":
        from blockshock.kernels import triton

        return triton.unsupported(device, dtype, rows, K, blocks)
    if name == "sparse_mma":
        from blockshock.kernels import sparse_mma

        return sparse_mma.unsupported(device, dtype, rows, K)
    if name == "cusparselt":
        from blockshock.kernels import cusparselt

        return cusparselt.unsupported(device, dtype, rows, K, B)
    return None


def make(name: str, half: torch.Tensor, period: int | None, batch: int, dtype: torch.dtype) -> Kernel:
    """The kernel `name` for a boolean mask half (R, K); `auto` is the fastest here for `batch` rows of X.

    What is fastest is measured once a machine on random data, with the L2 cache cold, and remembered (measured.py); on
    several ranks the slowest rank's time decides, so all agree.
    """
    blocks = BlockLayout.of(half, period)
    if name != "auto":
        return _build(name, blocks, half, period, batch, dtype)
    names = candidates(blocks, half.device.type, len(half), half.shape[1], batch, dtype)
    if len(names) == 1:
        return _build(names[0], blocks, half, period, batch, dtype)

    def measure() -> dict[str, float]:
        times = [_time(_build(each, blocks, half, period, batch, dtype), half, batch) for each in names]
        return dict(zip(names, max_over_ranks(times), strict=True))

    key = {"mask": mask_key(blocks), "R": len(half), "K": half.shape[1], "B": batch, "dtype": str(dtype)[6:]}
    times = cached_measurement("product", key | {"among": "+".join(names)}, half.device, measure, names)
    return _build(min(times, key=lambda each: times[each]), blocks, half, period, batch, dtype)


def _time(kernel: Kernel, half: torch.Tensor, batch: int) -> float:
    rows, features = half.shape
    x = torch.randn(batch, features, device=half.device).to(kernel.dtype)
    values = kernel.adopt(torch.randn(rows, features // 2, device=half.device).to(kernel.dtype))
    return quick_time_ms(partial(kernel.product, x, values), half.device)


def candidates(
    blocks: BlockLayout | None, device: str, rows: int, features: int, batch: int, dtype: torch.dtype
) -> list[str]:
    """What `auto` chooses from."""
    short = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "other")
    names = ["gather"] if blocks else ["masked_dense"]
    if device == "cuda":  # elsewhere the others can only be interpreted
        ours = ["triton"] if blocks else ["triton", "sparse_mma"] if batch <= FEW_ROWS else []
        # cuSPARSELt's rows are in their own order: with two blocks, gradients would pay more than forward could gain.
        theirs = [] if blocks and blocks.blocks == 2 else ["cusparselt"]
        if "sparse_mma" in ours and not _has_tiles(rows, features):
            ours.remove("sparse_mma")
        names += [
            name
            for name in (*ours, *theirs)
            if not _unsupported(name, device, short, rows, features, batch, blocks is not None)
        ]
    return names


def _has_tiles(rows: int, features: int) -> bool:
    from blockshock.kernels import sparse_mma

    return bool(sparse_mma.fitting(rows, features, torch.device("cuda", torch.cuda.current_device())))


def _build(
    name: str, blocks: BlockLayout | None, half: torch.Tensor, period: int | None, batch: int, dtype: torch.dtype
) -> Kernel:
    if name == "gather":
        from blockshock.kernels.gather import Gather

        assert blocks is not None
        return Gather(blocks, dtype)
    if name == "triton" and blocks is not None:
        from blockshock.kernels.triton import Blocks

        return Blocks(blocks, batch, dtype, half.device)
    layout = PackedLayout.of(half, period)
    if name == "triton":
        from blockshock.kernels.triton import Decompress

        return Decompress(layout, batch, dtype, half.device)
    if name == "sparse_mma":
        from blockshock.kernels.sparse_mma import SparseMma

        return SparseMma(layout, batch, dtype, half.device)
    if name == "cusparselt":
        from blockshock.kernels.cusparselt import CuSparseLt

        return CuSparseLt(layout, blocks, half, batch, dtype)
    if name == "masked_dense":
        from blockshock.kernels.masked_dense import MaskedDense

        return MaskedDense(layout, dtype)
    from blockshock.kernels.reference import Reference

    return Reference(layout, dtype)
