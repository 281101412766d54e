"""Unpack the half to a dense matrix with zeros, then multiply densely: any mask, any device, no speed."""

import torch

from blockshock.kernels.kernel import Kernel, Shape


class MaskedDense(Kernel):
    name = "masked_dense"

    @classmethod
    def worth_trying(cls, shape: Shape) -> bool:
        return not shape.blocks

    def matmul(self, x: torch.Tensor, values: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        return torch.mm(x, self.layout.unpack(values).t(), out=out)
