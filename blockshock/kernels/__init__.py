"""The rank-local product of one 2:4 half, behind one interface; `make` chooses and prepares a kernel.

kernel = make("auto", half_mask, period, batch=64, dtype=torch.bfloat16)
values = kernel.adopt(kernel.layout.pack(weight))     # (R, K/2), where the kernel wants them
y = packed_linear(x, values, kernel)                  # differentiable in x and values
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from blockshock.distributed import max_over_ranks
from blockshock.errors import ConfigError, one_of
from blockshock.packing import PackedLayout
from blockshock.timing import quick_time_ms

if TYPE_CHECKING:
    from blockshock.config import Job

NAMES = ("auto", "cusparselt", "gather", "masked_dense", "reference")


class Kernel:
    """Products with one packed half. This base multiplies on gathered columns or unpacked weights (packing.py)."""

    name = "gather"

    def __init__(self, layout: PackedLayout) -> None:
        self.layout = layout

    def adopt(self, values: torch.Tensor) -> torch.Tensor:
        """The packed values (R, K/2) in the storage from which the kernel multiplies; to be updated in place."""
        return values

    def recompress(self, values: torch.Tensor, dense: torch.Tensor) -> None:
        """Bring the adopted `values` up to date with a dense masked (R, K) weight that has changed."""
        values.copy_(self.layout.pack(dense))

    def product(self, x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return self.layout.product(x, values)

    def input_grad(self, dy: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return self.layout.input_grad(dy, values)

    def values_grad(self, dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.layout.values_grad(dy, x)

    @property
    def weight_bytes(self) -> int:
        """Bytes that hold one half's weight and its layout, gradients and optimizer state apart."""
        values = self.layout.rows * self.layout.features // 2
        return values * self._itemsize + self.layout.places.numel()

    _itemsize = 0  # set by make()

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}


def check_kernel(job: Job, name: str, rows: int, period: int | None) -> None:
    """Refuse a kernel that can't multiply halves of this shape, dtype or device. `rows` are one rank's."""
    one_of("method.kernel", name, NAMES)
    problem = _unsupported(name, job.hardware.device, job.model.dtype, rows, job.model.K, job.model.B, period)
    if problem:
        raise ConfigError("method.kernel", name, problem)


def _unsupported(name: str, device: str, dtype: str, rows: int, K: int, B: int, period: int | None) -> str | None:
    if name == "gather" and period is None:
        return "needs a mask whose rows repeat (complement_*, checkerboard); use masked_dense or cusparselt"
    if name == "cusparselt":
        from blockshock.kernels import cusparselt

        return cusparselt.unsupported(device, dtype, rows, K, B)
    return None


def make(name: str, half: torch.Tensor, period: int | None, batch: int, dtype: torch.dtype) -> Kernel:
    """The kernel `name` for a boolean mask half (R, K); `auto` is the fastest here for `batch` rows of X.

    `auto` times the candidates on random data; on several ranks the slowest rank's time decides, so all agree.
    """
    layout = PackedLayout.of(half, period)
    if name != "auto":
        return _build(name, layout, half, batch, dtype)
    names = candidates(layout, half.device.type, batch, dtype)
    if len(names) == 1:
        return _build(names[0], layout, half, batch, dtype)
    x = torch.randn(batch, layout.features, device=half.device).to(dtype)
    w = torch.randn(layout.rows, layout.features // 2, device=half.device).to(dtype)
    built = []
    times = []
    for candidate in names:
        kernel = _build(candidate, layout, half, batch, dtype)
        values = kernel.adopt(w)
        built.append(kernel)
        times.append(quick_time_ms(lambda k=kernel, v=values: k.product(x, v), half.device))  # type: ignore[misc]
    slowest = max_over_ranks(times)
    return built[slowest.index(min(slowest))]


def candidates(layout: PackedLayout, device: str, batch: int, dtype: torch.dtype) -> list[str]:
    """What `auto` chooses from."""
    short = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "other")
    names = ["gather"] if layout.halves_work else ["masked_dense"]
    if not _unsupported("cusparselt", device, short, layout.rows, layout.features, batch, layout.period):
        names.append("cusparselt")
    return names


def _build(name: str, layout: PackedLayout, half: torch.Tensor, batch: int, dtype: torch.dtype) -> Kernel:
    kernel: Kernel
    if name == "cusparselt":
        from blockshock.kernels.cusparselt import CuSparseLt

        kernel = CuSparseLt(layout, half, batch, dtype)
    elif name == "masked_dense":
        from blockshock.kernels.masked_dense import MaskedDense

        kernel = MaskedDense(layout)
    elif name == "reference":
        from blockshock.kernels.reference import Reference

        kernel = Reference(layout)
    else:
        kernel = Kernel(layout)
    kernel._itemsize = dtype.itemsize
    return kernel


class _PackedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, values: torch.Tensor, kernel: Kernel) -> torch.Tensor:
        ctx.save_for_backward(x, values)
        ctx.kernel = kernel
        return kernel.product(x, values)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        x, values = ctx.saved_tensors
        dx = ctx.kernel.input_grad(grads[0], values) if ctx.needs_input_grad[0] else None
        dvalues = ctx.kernel.values_grad(grads[0], x) if ctx.needs_input_grad[1] else None
        return dx, dvalues, None


class _MaskedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, values: torch.Tensor, kernel: Kernel) -> torch.Tensor:
        ctx.save_for_backward(x, values)
        ctx.kernel = kernel
        return kernel.product(x, values)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        x, values = ctx.saved_tensors
        kernel = ctx.kernel
        dx = kernel.input_grad(grads[0], values) if ctx.needs_input_grad[0] else None
        dweight = kernel.layout.unpack(kernel.values_grad(grads[0], x)) if ctx.needs_input_grad[1] else None
        return dx, dweight, None, None


def packed_linear(x: torch.Tensor, values: torch.Tensor, kernel: Kernel) -> torch.Tensor:
    """(B, K), (R, K/2) -> (B, R). The packed values are the parameter: their gradient is packed too."""
    return _PackedLinear.apply(x, values, kernel)


def masked_linear(x: torch.Tensor, weight: torch.Tensor, values: torch.Tensor, kernel: Kernel) -> torch.Tensor:
    """(B, K), (R, K) -> (B, R). The parameter is the dense masked weight; `values` is its compressed copy, which
    is what multiplies and may be behind the parameter."""
    return _MaskedLinear.apply(x, weight, values, kernel)
