"""A kernel's matmul as a differentiable linear layer.

y = packed_linear(x, values, kernel)      # differentiable in x and in the packed values; `total` sums over ranks
"""

from __future__ import annotations

from typing import Any

import torch

from blockshock.collectives.matmul_all_reduce import Total, alone
from blockshock.kernels.kernel import Kernel


class _PackedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, values: torch.Tensor, kernel: Kernel, total: Total) -> torch.Tensor:
        ctx.save_for_backward(x, values)
        ctx.kernel = kernel
        return total(x, lambda rows, out: kernel.matmul(rows, values, out))

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
        return total(x, lambda rows, out: kernel.matmul(rows, values, out))

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
