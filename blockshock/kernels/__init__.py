"""The rank-local product of one 2:4 half, behind one interface; `make` chooses and prepares a kernel.

kernel = make("auto", half_mask, period, batch=64, dtype=torch.bfloat16)
values = kernel.adopt(kernel.layout.pack(weight))     # (R, K/2), where the kernel wants them
y = packed_linear(x, values, kernel)                  # differentiable in x and values; `total` sums it over ranks
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from blockshock.collectives.product_sum import Total, alone
from blockshock.distributed import max_over_ranks
from blockshock.errors import ConfigError, one_of
from blockshock.measured import remembered
from blockshock.packing import BlockLayout, PackedLayout
from blockshock.timing import quick_time_ms

if TYPE_CHECKING:
    from blockshock.config import Job

NAMES = ("auto", "cusparselt", "gather", "triton", "sparse_mma", "masked_dense", "reference")

FEW_ROWS = 256  # up to which it pays to try kernels made for few rows of X on masks without blocks


class Kernel(ABC):
    """Products with one packed half. This base unpacks the weight for gradients: any mask, the dense work."""

    name = ""
    layout: PackedLayout | BlockLayout

    def __init__(self, layout: PackedLayout | BlockLayout, dtype: torch.dtype) -> None:
        self.layout, self.dtype = layout, dtype

    def adopt(self, values: torch.Tensor) -> torch.Tensor:
        """The packed values (R, K/2) in the storage from which the kernel multiplies; to be updated in place."""
        return values

    def recompress(self, values: torch.Tensor, dense: torch.Tensor) -> None:
        """Bring the adopted `values` up to date with a dense masked (R, K) weight that has changed."""
        values.copy_(self.layout.pack(dense))

    @abstractmethod
    def product(self, x: torch.Tensor, values: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """(B, K), (R, K/2) -> (B, R), written into `out` (contiguous) where one is given."""

    def input_grad(self, dy: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """(B, R), (R, K/2) -> (B, K)."""
        return dy @ self.layout.unpack(values)

    def values_grad(self, dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """(B, R), (B, K) -> (R, K/2)."""
        return self.layout.pack(dy.t() @ x)

    @property
    def weight_bytes(self) -> int:
        """Bytes that hold one half's weight and its layout, gradients and optimizer state apart."""
        values = self.layout.rows * self.layout.features // 2
        return values * self.dtype.itemsize + self.layout.metadata_bytes

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}


def into(out: torch.Tensor | None, result: torch.Tensor) -> torch.Tensor:
    """`result`, copied to `out` where one is given: for products that can't be told where to write."""
    return result if out is None else out.copy_(result)


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
        from blockshock.kernels import triton_product

        return triton_product.unsupported(device, dtype, rows, K, blocks)
    if name == "sparse_mma":
        from blockshock.kernels import sparse_mma_product

        return sparse_mma_product.unsupported(device, dtype, rows, K)
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
    times = remembered("product", key | {"among": "+".join(names)}, half.device, measure, names)
    return _build(min(times, key=lambda each: times[each]), blocks, half, period, batch, dtype)


def mask_key(blocks: BlockLayout | None) -> str:
    """What about a mask matters to the speed of its kernels: `01`, `01+23` or `any`."""
    return "+".join("".join(map(str, own)) for own in blocks.columns) if blocks else "any"


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
    from blockshock.kernels import sparse_mma_product

    return bool(sparse_mma_product.fitting(rows, features, torch.device("cuda", torch.cuda.current_device())))


def _build(
    name: str, blocks: BlockLayout | None, half: torch.Tensor, period: int | None, batch: int, dtype: torch.dtype
) -> Kernel:
    if name == "gather":
        from blockshock.kernels.gather import Gather

        assert blocks is not None
        return Gather(blocks, dtype)
    if name == "triton" and blocks is not None:
        from blockshock.kernels.triton_product import Blocks

        return Blocks(blocks, batch, dtype, half.device)
    layout = PackedLayout.of(half, period)
    if name == "triton":
        from blockshock.kernels.triton_product import Decompress

        return Decompress(layout, batch, dtype, half.device)
    if name == "sparse_mma":
        from blockshock.kernels.sparse_mma_product import SparseMma

        return SparseMma(layout, batch, dtype, half.device)
    if name == "cusparselt":
        from blockshock.kernels.cusparselt import CuSparseLt

        return CuSparseLt(layout, blocks, half, batch, dtype)
    if name == "masked_dense":
        from blockshock.kernels.masked_dense import MaskedDense

        return MaskedDense(layout, dtype)
    from blockshock.kernels.reference import Reference

    return Reference(layout, dtype)


class _PackedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, values: torch.Tensor, kernel: Kernel, total: Total) -> torch.Tensor:
        ctx.save_for_backward(x, values)
        ctx.kernel = kernel
        return total(x, lambda rows, out: kernel.product(rows, values, out))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        x, values = ctx.saved_tensors
        dx = ctx.kernel.input_grad(grads[0], values) if ctx.needs_input_grad[0] else None
        dvalues = ctx.kernel.values_grad(grads[0], x) if ctx.needs_input_grad[1] else None
        return dx, dvalues, None, None


class _MaskedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, values: torch.Tensor, kernel: Kernel, total: Total
    ) -> torch.Tensor:
        ctx.save_for_backward(x, values)
        ctx.kernel = kernel
        return total(x, lambda rows, out: kernel.product(rows, values, out))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None, None]:
        x, values = ctx.saved_tensors
        kernel = ctx.kernel
        dx = kernel.input_grad(grads[0], values) if ctx.needs_input_grad[0] else None
        dweight = kernel.layout.unpack(kernel.values_grad(grads[0], x)) if ctx.needs_input_grad[1] else None
        return dx, dweight, None, None, None


def packed_linear(x: torch.Tensor, values: torch.Tensor, kernel: Kernel, total: Total = alone) -> torch.Tensor:
    """(B, K), (R, K/2) -> (B, R). The packed values are the parameter: their gradient is packed too.

    `total` sums over the ranks that hold the other parts. The loss is the same on all, so the gradient passes as it is.
    """
    return _PackedLinear.apply(x, values, kernel, total)


def masked_linear(
    x: torch.Tensor, weight: torch.Tensor, values: torch.Tensor, kernel: Kernel, total: Total = alone
) -> torch.Tensor:
    """(B, K), (R, K) -> (B, R), summed by `total`. The parameter is the dense masked weight; `values` is its compressed
    copy, which is what multiplies and may be behind the parameter."""
    return _MaskedLinear.apply(x, weight, values, kernel, total)
