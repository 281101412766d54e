"""Y = X Wᵀ with a dense weight, summed over ranks that hold parts of it; differentiable in X and W.

y = dense_linear(x, weight, total)
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from blockshock.collectives.matmul_all_reduce import Multiply, Total


def dense_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    total: Total,
    mask: torch.Tensor | None = None,
    multiply: Multiply | None = None,
) -> torch.Tensor:
    """(B, K), (R, K) -> (B, R). With a boolean `mask` (R, K) the weight's gradient is zero where the mask is.
    `multiply` multiplies by the weight in its own way; gradients are those of `matmul`.

    The loss is the same on every rank, so the sum over ranks passes the gradient on unchanged (g of Megatron-LM, 2019,
    section 3).
    """
    return _DenseLinear.apply(x, weight, total, mask, multiply or partial(matmul, weight=weight))


def matmul(x: torch.Tensor, out: torch.Tensor | None = None, *, weight: torch.Tensor) -> torch.Tensor:
    """(B, K), (R, K) -> (B, R), written into `out` where one is given."""
    return torch.mm(x, weight.t(), out=out)


class _DenseLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        total: Total,
        mask: torch.Tensor | None,
        multiply: Multiply,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight, mask)
        return total(x, multiply)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None, None]:
        x, weight, mask = ctx.saved_tensors
        dy = grads[0]
        dx = dy @ weight if ctx.needs_input_grad[0] else None
        dw = dy.t() @ x if ctx.needs_input_grad[1] else None
        if dw is not None and mask is not None:
            dw.masked_fill_(~mask, 0.0)
        return dx, dw, None, None, None
