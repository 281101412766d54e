"""What every kernel offers: the rank-local matmul of one 2:4 half, forward and backward, and what it can multiply.

half = Half(mask, period, batch=64, dtype=torch.bfloat16)
problem = Gather.unsupported(half.shape)        # None, or why not and what to do instead
kernel = Gather.build(half)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch

from blockshock.kernels.layouts import BlockLayout, PackedLayout

FEW_ROWS = 256  # of X, up to which it pays to try kernels made for few rows on masks without blocks


@dataclass(frozen=True)
class Shape:
    """A rank-local matmul (B, K) x (R, K)ᵀ as far as it is known before any rank has started."""

    device: str  # cpu | cuda
    dtype: torch.dtype
    rows: int  # R, of a rank's half
    features: int  # K
    batch: int  # B, rows of X
    blocks: int  # dense blocks that the mask is made of, 1 or 2 (layouts.py); 0 for any other mask


@dataclass(frozen=True)
class Half:
    """What a kernel is built for: a boolean mask half (R, K) whose rows repeat every `period` rows (None: they do not),
    multiplied with `batch` rows of X."""

    mask: torch.Tensor
    period: int | None
    batch: int
    dtype: torch.dtype

    @cached_property
    def blocks(self) -> BlockLayout | None:
        return BlockLayout.of(self.mask, self.period)

    @cached_property
    def packed(self) -> PackedLayout:
        return PackedLayout.of(self.mask, self.period)

    @property
    def device(self) -> torch.device:
        return self.mask.device

    @cached_property
    def shape(self) -> Shape:
        rows, features = self.mask.shape
        blocks = self.blocks.blocks if self.blocks else 0
        return Shape(self.device.type, self.dtype, rows, features, self.batch, blocks)


class KernelClass(Protocol):
    """What KERNELS lists: `Kernel` or a subclass of it, which `build` may leave to subclasses of its own."""

    def unsupported(self, shape: Shape) -> str | None: ...
    def worth_trying(self, shape: Shape) -> bool: ...
    def build(self, half: Half) -> Kernel: ...


class Kernel(ABC):
    """Products with one packed half. This base unpacks the weight for gradients: any mask, the dense work."""

    name = ""  # the value of `method.kernel`
    layout: PackedLayout | BlockLayout

    def __init__(self, layout: PackedLayout | BlockLayout, dtype: torch.dtype) -> None:
        self.layout, self.dtype = layout, dtype

    @classmethod
    def unsupported(cls, shape: Shape) -> str | None:
        """Why this kernel can't multiply such a half, and what to do instead; None if it can."""
        return None

    @classmethod
    def worth_trying(cls, shape: Shape) -> bool:
        """Whether `auto` measures this kernel for a shape that it supports."""
        return False

    @classmethod
    def build(cls, half: Half) -> Kernel:
        """The kernel for a half that it supports. A collective where it tunes itself."""
        return cls(half.packed, half.dtype)

    def adopt(self, values: torch.Tensor) -> torch.Tensor:
        """The packed values (R, K/2) in the storage from which the kernel multiplies; to be updated in place."""
        return values

    def recompress(self, values: torch.Tensor, dense: torch.Tensor) -> None:
        """Bring the adopted `values` up to date with a dense masked (R, K) weight that has changed."""
        values.copy_(self.layout.pack(dense))

    @abstractmethod
    def matmul(self, x: torch.Tensor, values: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
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
        """What the record says of this kernel."""
        return {"name": self.name}

    def flop_formulas(self) -> dict[Any, Callable[..., int]]:
        """FLOPs of operators that PyTorch's own counter does not know, by operator: see torch.utils.flop_counter."""
        return {}


def into(out: torch.Tensor | None, result: torch.Tensor) -> torch.Tensor:
    """`result`, copied to `out` where one is given: for products that can't be told where to write."""
    return result if out is None else out.copy_(result)
