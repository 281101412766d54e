"""Every product in float64, rounded once: what the other kernels should have computed."""

import torch

from blockshock.kernels.kernel import Kernel, into


class Reference(Kernel):
    name = "reference"

    def matmul(self, x: torch.Tensor, values: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        return into(out, (x.double() @ self.layout.unpack(values).double().t()).to(x.dtype))

    def input_grad(self, dy: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return (dy.double() @ self.layout.unpack(values).double()).to(dy.dtype)

    def values_grad(self, dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.layout.pack(dy.double().t() @ x.double()).to(x.dtype)
