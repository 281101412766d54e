"""NVIDIA's 2:4 sparse tensor cores through cuSPARSELt, as PyTorch carries it.

The compressed buffer is (R, K·9/16): first the R·K/2 kept values in row-major order, then metadata that depends on
the mask alone. So the parameter is a view of the buffer's head: an optimizer that updates it in place has updated
what the tensor cores read, and nothing is ever compressed again. The metadata comes from compressing the mask as
ones: compressing the values would encode another place for a kept weight that happens to be zero.
(Layout seen on H200s with cuSPARSELt 0.8.0, bf16 and fp16; every run checks the product against float64.)
"""

from __future__ import annotations

from typing import Any

import torch

from blockshock.distributed import max_over_ranks
from blockshock.kernels import Kernel
from blockshock.packing import PackedLayout
from blockshock.timing import quick_time_ms

MULTIPLE = 128  # smallest rows and columns with which the buffer's layout was seen
BATCH_MULTIPLE = 8  # 16-byte rows of X


def unsupported(device: str, dtype: str, rows: int, K: int, B: int) -> str | None:
    """Why cuSPARSELt can't multiply (B, K) by a half (rows, K); None if it can."""
    here = torch.cuda.device_count() > 0  # a cluster's login node can't tell what its GPU nodes have
    if device != "cuda" or (here and not torch.backends.cusparselt.is_available()):
        return "needs an NVIDIA GPU and a PyTorch with cuSPARSELt; use auto, gather or masked_dense"
    if dtype not in ("bf16", "fp16"):
        return f"multiplies bf16 and fp16, not {dtype}; use model.dtype=bf16, or kernel auto, gather or masked_dense"
    if rows % MULTIPLE or K % MULTIPLE:
        return f"needs K={K} and a rank's rows N={rows} to be multiples of {MULTIPLE}"
    if B % BATCH_MULTIPLE:
        return f"needs model.B={B} to be a multiple of {BATCH_MULTIPLE}"
    return None


class CuSparseLt(Kernel):
    """The forward product on sparse tensor cores; gradients as in packing.py (dX and dW have no 2:4 operand)."""

    name = "cusparselt"

    def __init__(self, layout: PackedLayout, half: torch.Tensor, batch: int, dtype: torch.dtype) -> None:
        super().__init__(layout)
        self._dtype = dtype
        self._kept = layout.rows * layout.features // 2
        self._metadata = torch._cslt_compress(half.to(dtype)).flatten()[self._kept :].clone()
        self._buffer: torch.Tensor | None = None
        self._in_mask_order: torch.Tensor | None = None
        self._shape = (layout.rows, layout.features * 9 // 16)
        if self._kept + len(self._metadata) != self._shape[0] * self._shape[1]:
            raise RuntimeError("cuSPARSELt's compressed buffer is not (N, K*9/16) here: use another kernel")
        self.algorithm, self.transpose = self._fastest(batch)

    def adopt(self, values: torch.Tensor) -> torch.Tensor:
        buffer = torch.cat([values.reshape(-1), self._metadata])
        self._buffer = buffer.view(self._shape)
        return buffer[: self._kept].view(self.layout.rows, -1)

    def recompress(self, values: torch.Tensor, dense: torch.Tensor) -> None:
        # The library's own compression takes the places of kept values from the values: with an exact zero among them
        # they are not the mask's, and the gradient needs values in the mask's order.
        assert self._buffer is not None
        self._buffer.copy_(torch._cslt_compress(dense).view(self._shape))
        packed = self.layout.pack(dense)
        if self._in_mask_order is None:
            self._in_mask_order = torch.empty_like(packed)
        self._in_mask_order.copy_(packed)

    def input_grad(self, dy: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return super().input_grad(dy, values if self._in_mask_order is None else self._in_mask_order)

    def product(self, x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        assert self._buffer is not None
        assert values.data_ptr() == self._buffer.data_ptr(), "the packed weight was moved out of its buffer"
        return self._multiply(self._buffer, x, self.algorithm, self.transpose)

    @staticmethod
    def _multiply(buffer: torch.Tensor, x: torch.Tensor, algorithm: int, transpose: bool) -> torch.Tensor:
        y = torch._cslt_sparse_mm(buffer, x.t(), alg_id=algorithm, transpose_result=transpose)
        return y if transpose else y.t().contiguous()

    def _fastest(self, batch: int) -> tuple[int, bool]:
        """(algorithm id, whether the library writes the result row-major), by measurement; the same on every rank."""
        device = self.layout.places.device
        x = torch.randn(batch, self.layout.features, device=device).to(self._dtype)
        values = torch.randn(self._kept, device=device).to(self._dtype)
        buffer = torch.cat([values, self._metadata]).view(self._shape)
        choices: list[tuple[int, bool]] = []
        times: list[float] = []
        for transpose in (True, False):
            for algorithm in range(MOST_ALGORITHMS):
                choices.append((algorithm, transpose))
                times.append(self._time(buffer, x, algorithm, transpose))
        slowest = max_over_ranks(times)
        return choices[slowest.index(min(slowest))]

    def _time(self, buffer: torch.Tensor, x: torch.Tensor, algorithm: int, transpose: bool) -> float:
        try:
            self._multiply(buffer, x, algorithm, transpose)
        except RuntimeError:  # how the library says that it has no such algorithm for this shape
            return float("inf")
        return quick_time_ms(lambda: self._multiply(buffer, x, algorithm, transpose), x.device, repeats=5)

    @property
    def weight_bytes(self) -> int:
        return super().weight_bytes + self._metadata.numel() * self._metadata.element_size()

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "algorithm": self.algorithm, "transpose_result": self.transpose}


MOST_ALGORITHMS = 24  # 21 were seen


def sparse_mm_flops(compressed: torch.Tensor, dense: torch.Tensor, *_: Any, **__: Any) -> int:
    """2 × the kept values × columns of `dense` (K, B): what of the product is not multiplication by zero."""
    return 2 * (compressed.numel() * 8 // 9) * dense.shape[1]
