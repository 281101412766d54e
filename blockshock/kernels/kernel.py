"""What every kernel offers: the rank-local matmul of one 2:4 half, forward and backward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from blockshock.kernels.layouts import BlockLayout, PackedLayout


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
