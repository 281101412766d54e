"""A pruned weight as its 2:4 windows side by side, (N, K'), multiplied with X lifted to them by any kernel of halves.

    kernel = Lifted.of("auto", mask, weight, batch=64)
    values = kernel.adopt(kernel.pack(weight))            # (N, K) -> (N, K'/2)
    y = packed_linear(x, values, kernel)                  # X (B, K)

    block of 6:   a b c d e f   ->   a b c d | c d e f    (window after window, block after block)

`method.kernel` names the kernel inside, which multiplies in the forward pass. Gradients are dense
matmuls with K columns, not K': every kept weight is in one window, so the windows unpack to the pruned weight itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from blockshock.kernels.choice import make
from blockshock.kernels.gpu import decompress
from blockshock.kernels.gpu.lift import lift
from blockshock.kernels.gpu.triton_support import usable
from blockshock.kernels.kernel import Kernel
from blockshock.kernels.layouts import PackedLayout
from blockshock.masks.window import WindowMask


def lifted_features(K: int, block: int) -> int:
    """K': four columns for each window of every block."""
    return 4 * (block // 2 - 1) * K // block


class Lifted(Kernel):
    """`inner`, made for the windows (N, K'), as a kernel of the pruned weight (N, K)."""

    layout: PackedLayout  # of the windows

    @classmethod
    def of(cls, name: str, mask: WindowMask, weight: Tensor, batch: int) -> Lifted:
        """For the windows of `weight` (N, K), with kernel `name` of choice.py inside. A collective where it tunes."""
        parts = [part.view(len(weight), -1, 4) for part in mask.split(weight)]
        windows = torch.stack(parts, 2).view(len(weight), -1)
        return cls(make(name, windows, None, batch, weight.dtype), mask.block)

    def __init__(self, inner: Kernel, block: int) -> None:
        assert isinstance(inner.layout, PackedLayout)
        super().__init__(inner.layout, inner.dtype)
        self.inner, self.block, self.windows = inner, block, block // 2 - 1
        self.columns = inner.layout.features // (4 * self.windows) * block  # K

    def adopt(self, values: Tensor) -> Tensor:
        return self.inner.adopt(values)

    def recompress(self, values: Tensor, dense: Tensor) -> None:
        values.copy_(self.pack(dense))

    def matmul(self, x: Tensor, values: Tensor, out: Tensor | None = None) -> Tensor:
        return self.inner.matmul(lift(x.contiguous(), self.block), values, out)

    def input_grad(self, dy: Tensor, values: Tensor) -> Tensor:
        return dy @ self.unpack(values)

    def values_grad(self, dy: Tensor, x: Tensor) -> Tensor:
        return self.pack(dy.t() @ x)

    def pack(self, dense: Tensor) -> Tensor:
        """(N, K) -> (N, K'/2): the kept values, window after window; what is pruned is ignored."""
        flags = self.layout.flags
        if flags is not None and usable(dense.device, dense.dtype):
            return decompress.pack(dense.contiguous(), flags, self.windows)
        return dense.gather(1, self._index())

    def unpack(self, values: Tensor) -> Tensor:
        """(N, K'/2) -> (N, K), exact zeros where weights are pruned."""
        flags = self.layout.flags
        if flags is not None and usable(values.device, values.dtype):
            return decompress.unpack(values.contiguous(), flags, self.windows)
        return values.new_zeros(len(values), self.columns).scatter_(1, self._index(), values)

    def _index(self) -> Tensor:
        """int64 (N, K'/2): the column of W that each kept value has."""
        places = self.layout.places
        group = torch.arange(places.shape[1], device=places.device) // 2
        return group // self.windows * self.block + 2 * (group % self.windows) + places

    @property
    def weight_bytes(self) -> int:
        return self.inner.weight_bytes

    def describe(self) -> dict[str, Any]:
        return self.inner.describe()

    def flop_formulas(self) -> dict[Any, Callable[..., int]]:
        return self.inner.flop_formulas()
