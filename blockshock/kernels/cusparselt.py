"""NVIDIA's 2:4 sparse tensor cores through cuSPARSELt, as PyTorch carries it.

The compressed buffer is (R, K·9/16): first the R·K/2 kept values in row-major order, then metadata that depends on
the mask alone. So the parameter is a view of the buffer's head: an optimizer that updates it in place has updated
what the tensor cores read, and nothing is ever compressed again. The metadata comes from compressing the mask as
ones: compressing the values would encode another place for a kept weight that happens to be zero.
(Layout seen on H200s with cuSPARSELt 0.8.0, bf16 and fp16; every run checks the product against float64.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from blockshock.dtypes import short_name, torch_name
from blockshock.kernels.kernel import Half, Kernel, Shape
from blockshock.kernels.layouts import PackedLayout
from blockshock.measure.cache import cached_measurement
from blockshock.measure.timing import quick_time_ms
from blockshock.ranks.distributed import max_over_ranks

MULTIPLE = 128  # smallest rows and columns with which the buffer's layout was seen
BATCH_MULTIPLE = 8  # 16-byte rows of X


@dataclass(frozen=True)
class Algorithm:
    """What can be chosen of cuSPARSELt's product."""

    number: int
    transpose: bool  # whether the library writes the result row-major
    split_k: int = 1
    split_k_mode: int = -1  # 1: in one kernel, 2: in two; -1 where K is not split


class CuSparseLt(Kernel):
    """The forward product on sparse tensor cores. dX and dW have no 2:4 operand: they multiply the blocks of a mask
    that is made of blocks, at half of the dense work, and the unpacked weight of any other."""

    name = "cusparselt"
    layout: PackedLayout

    @classmethod
    def unsupported(cls, shape: Shape) -> str | None:
        here = torch.cuda.device_count() > 0  # a cluster's login node can't tell what its GPU nodes have
        if shape.device != "cuda" or (here and not torch.backends.cusparselt.is_available()):
            return "needs an NVIDIA GPU and a PyTorch with cuSPARSELt; use auto, gather or masked_dense"
        if shape.dtype not in (torch.bfloat16, torch.float16):
            it = short_name(shape.dtype)
            return f"multiplies bf16 and fp16, not {it}; use model.dtype=bf16, or kernel auto, gather or masked_dense"
        if shape.rows % MULTIPLE or shape.features % MULTIPLE:
            return f"needs K={shape.features} and a rank's rows N={shape.rows} to be multiples of {MULTIPLE}"
        if shape.batch % BATCH_MULTIPLE:
            return f"needs model.B={shape.batch} to be a multiple of {BATCH_MULTIPLE}"
        return None

    @classmethod
    def worth_trying(cls, shape: Shape) -> bool:
        # The library keeps rows in its own order: with two blocks, gradients would pay more than forward could gain.
        return shape.device == "cuda" and shape.blocks != 2

    @classmethod
    def build(cls, half: Half) -> Kernel:
        return cls(half)

    def __init__(self, half: Half) -> None:
        layout, dtype, batch = half.packed, half.dtype, half.batch
        super().__init__(layout, dtype)
        self._blocks = half.blocks
        self._kept = layout.rows * layout.features // 2
        self._metadata = torch._cslt_compress(half.mask.to(dtype)).flatten()[self._kept :].clone()
        self._buffer: torch.Tensor | None = None
        self._in_mask_order: torch.Tensor | None = None
        self._shape = (layout.rows, layout.features * 9 // 16)
        if self._kept + len(self._metadata) != self._shape[0] * self._shape[1]:
            raise RuntimeError("cuSPARSELt's compressed buffer is not (N, K*9/16) here: use another kernel")
        key = {"R": layout.rows, "K": layout.features, "B": batch, "dtype": torch_name(dtype)}
        measure = partial(self._measure, batch)
        fastest = cached_measurement("cusparselt", key, half.device, measure, ("algorithm", "ms", "tried"))
        self.algorithm = Algorithm(**fastest["algorithm"])

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
        values = values if self._in_mask_order is None else self._in_mask_order
        if self._blocks is None:
            return super().input_grad(dy, values)
        return self._blocks.input_grad(dy, self._blocks.from_row_major(values))

    def values_grad(self, dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if self._blocks is None:
            return super().values_grad(dy, x)
        return self._blocks.to_row_major(self._blocks.values_grad(dy, x))

    def matmul(self, x: torch.Tensor, values: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        assert self._buffer is not None
        assert values.data_ptr() == self._buffer.data_ptr(), "the packed weight was moved out of its buffer"
        return multiply(self._buffer, x, self.algorithm, out)

    def _measure(self, batch: int) -> dict[str, Any]:
        """The fastest algorithm here, the slowest rank's times deciding: all of them, then split-K of the best few."""
        device = self._metadata.device
        x = torch.randn(batch, self.layout.features, device=device).to(self.dtype)
        values = torch.randn(self._kept, device=device).to(self.dtype)
        buffer = torch.cat([values, self._metadata]).view(self._shape)
        plain = [Algorithm(number, transpose) for transpose in (True, False) for number in range(MOST_ALGORITHMS)]
        times = self._times(plain, buffer, x)
        best = sorted(plain, key=lambda each: times[plain.index(each)])[:WORTH_SPLITTING]
        split = [
            Algorithm(each.number, each.transpose, parts, mode) for each in best for parts in (2, 4) for mode in (1, 2)
        ]
        times += self._times(split, buffer, x)
        fastest = times.index(min(times))
        return {"algorithm": asdict((plain + split)[fastest]), "ms": times[fastest], "tried": len(times)}

    @staticmethod
    def _times(algorithms: list[Algorithm], buffer: torch.Tensor, x: torch.Tensor) -> list[float]:
        times = []
        for algorithm in algorithms:
            try:
                multiply(buffer, x, algorithm)
            except RuntimeError:  # how the library says that it has no such algorithm for this shape
                times.append(float("inf"))
            else:
                times.append(quick_time_ms(partial(multiply, buffer, x, algorithm), x.device, repeats=5))
        return max_over_ranks(times)

    @property
    def weight_bytes(self) -> int:
        return super().weight_bytes + self._metadata.numel() * self._metadata.element_size()

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self.algorithm)}

    def flop_formulas(self) -> dict[Any, Callable[..., int]]:
        return flop_formulas()


def multiply(
    buffer: torch.Tensor, x: torch.Tensor, algorithm: Algorithm, out: torch.Tensor | None = None
) -> torch.Tensor:
    """(R, K·9/16), (B, K) -> (B, R)."""
    y = torch._cslt_sparse_mm(
        buffer,
        x.t(),
        alg_id=algorithm.number,
        transpose_result=algorithm.transpose,
        split_k=algorithm.split_k,
        split_k_mode=algorithm.split_k_mode,
    )
    y = y if algorithm.transpose else y.t()
    return y.contiguous() if out is None else out.copy_(y)


MOST_ALGORITHMS = 24  # 21 were seen
WORTH_SPLITTING = 3  # how many of the best algorithms are also tried with split-K


def flop_formulas() -> dict[Any, Callable[..., int]]:
    """The FLOPs of cuSPARSELt's product, by the operators that call it; PyTorch counts none of them."""
    formulas: dict[Any, Callable[..., int]] = {torch.ops.aten._cslt_sparse_mm: sparse_mm_flops}
    # From torch 2.13 on its sparse tensors multiply by an operator of their own, which is there once one has been made.
    wrapped = getattr(torch.ops.semi_structured, "cusparselt_mm", None)
    if wrapped is not None:
        formulas[wrapped] = lambda dense, compressed, *_, **__: sparse_mm_flops(compressed, dense.t())
    return formulas


def sparse_mm_flops(compressed: torch.Tensor, dense: torch.Tensor, *_: Any, **__: Any) -> int:
    """2 × the kept values × columns of `dense` (K, B): what of the product is not multiplication by zero."""
    return 2 * (compressed.numel() * 8 // 9) * dense.shape[1]
