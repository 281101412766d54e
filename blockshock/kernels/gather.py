"""For masks made of dense blocks: copy the columns of X that a block keeps, then multiply densely (layouts.py)."""

from __future__ import annotations

from typing import Any

import torch

from blockshock.kernels.kernel import Half, Kernel, Shape
from blockshock.kernels.layouts import BlockLayout, mask_key


class Gather(Kernel):
    """Forward, dX and dW are half of the dense work each, plus copies of X, dY or their results."""

    name = "gather"
    layout: BlockLayout

    @classmethod
    def unsupported(cls, shape: Shape) -> str | None:
        if shape.blocks:
            return None
        return "needs a mask made of dense blocks (complement_*, checkerboard); use masked_dense, triton or cusparselt"

    @classmethod
    def worth_trying(cls, shape: Shape) -> bool:
        return shape.blocks > 0

    @classmethod
    def build(cls, half: Half) -> Kernel:
        assert half.blocks is not None
        return cls(half.blocks, half.dtype)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "mask": mask_key(self.layout)}

    def matmul(self, x: torch.Tensor, values: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        return self.layout.matmul(x, values, out)

    def input_grad(self, dy: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return self.layout.input_grad(dy, values)

    def values_grad(self, dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.layout.values_grad(dy, x)
