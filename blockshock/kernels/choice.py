"""Which kernel multiplies a half: the one that was named, or under `auto` the fastest on this machine.

kernel = make("auto", mask, period, batch=64, dtype=torch.bfloat16)

A new kernel is a subclass of `Kernel` in a file of its own in this folder, and its entry in KERNELS.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from blockshock.dtypes import DTYPES, torch_name
from blockshock.errors import ConfigError, one_of
from blockshock.kernels.cusparselt import CuSparseLt
from blockshock.kernels.gather import Gather
from blockshock.kernels.kernel import Half, Kernel, KernelClass, Shape
from blockshock.kernels.layouts import BlockLayout, mask_key
from blockshock.kernels.masked_dense import MaskedDense
from blockshock.kernels.reference import Reference
from blockshock.kernels.sparse_mma import SparseMma
from blockshock.kernels.triton import Triton
from blockshock.masks import halves
from blockshock.measure.cache import cached_measurement
from blockshock.measure.interleaved import medians_ms

if TYPE_CHECKING:
    from blockshock.config import Job

# By value of `method.kernel`. `auto` tries those that say so, in this order.
KERNELS: dict[str, KernelClass] = {
    "gather": Gather,
    "masked_dense": MaskedDense,
    "triton": Triton,
    "sparse_mma": SparseMma,
    "cusparselt": CuSparseLt,
    "reference": Reference,
}

IN_A_GRAPH = ("gather", "masked_dense", "reference")  # made of PyTorch's operators, so that a graph can hold them


def check_kernel(job: Job, name: str, rows: int, columns: int) -> None:
    """Refuse a kernel that can't multiply halves (rows, columns) of one rank, of this dtype or on this device."""
    one_of("method.kernel", name, ("auto", *KERNELS))
    if name == "auto":
        return
    model = job.model
    shape = Shape(job.hardware.device, DTYPES[model.dtype], rows, columns, model.B, blocks_of_mask(job))
    problem = KERNELS[name].unsupported(shape)
    if problem:
        raise ConfigError("method.kernel", name, problem)


def blocks_of_mask(job: Job) -> int:
    """How many dense blocks the mask is made of, 0 for none: a small matrix shows it."""
    if job.mask.period is None:
        return 0
    generator = torch.Generator().manual_seed(0)
    half, _ = halves(job.mask, torch.randn(16, 16, generator=generator), generator)
    layout = BlockLayout.of(half, job.mask.period)
    return layout.blocks if layout else 0


def make(name: str, mask: torch.Tensor, period: int | None, batch: int, dtype: torch.dtype) -> Kernel:
    """The kernel `name` for a boolean mask half (R, K); `auto` is the fastest here for `batch` rows of X.

    What is fastest is measured once a machine on random data, in turns, with the L2 cache cold, and cached
    (measure/cache.py); on several ranks the slowest rank's time decides, so all agree.
    """
    half = Half(mask, period, batch, dtype)
    if name != "auto":
        return KERNELS[name].build(half)
    names = candidates(half.shape)
    if len(names) == 1:
        return KERNELS[names[0]].build(half)

    shape = half.shape
    key = {"mask": mask_key(half.blocks), "R": shape.rows, "K": shape.features, "B": batch, "dtype": torch_name(dtype)}
    times = cached_measurement(
        "product", key | {"among": "+".join(names)}, half.device, partial(_measure, names, half), names
    )
    return KERNELS[min(times, key=lambda each: times[each])].build(half)


def candidates(shape: Shape) -> list[str]:
    """What `auto` chooses from."""
    return [name for name, kernel in KERNELS.items() if kernel.worth_trying(shape) and not kernel.unsupported(shape)]


def _measure(names: list[str], half: Half) -> dict[str, float]:
    shape = half.shape
    x = torch.randn(shape.batch, shape.features, device=half.device).to(half.dtype)
    values = torch.randn(shape.rows, shape.features // 2, device=half.device).to(half.dtype)
    kernels = {name: KERNELS[name].build(half) for name in names}
    steps = {name: partial(kernel.matmul, x, kernel.adopt(values)) for name, kernel in kernels.items()}
    return medians_ms(steps, half.device)
