"""What one would write today with PyTorch's own 2:4 support: the peer that Block-Shock's kernels must beat.

    rank 2s + g:   partial = F.linear(X[:, cols_s], to_sparse_semi_structured(W_g[:, cols_s]))
    all ranks:     Y = Σ partial            (all_reduce)

The parameter is a dense masked half (N, K/q). `to_sparse_semi_structured` compresses it, and since every optimizer step
changes it, compresses it again in every forward. `recompress=false` keeps the compressed form and renews it after each
optimizer step only, as a layer would whose forward runs more often than its update. PyTorch's sparse tensor has no
gradient to the weight it was made of, so the backward pass is dense: dX = dY W_g, dW = (dYᵀ X)∘M_g.

Backend and algorithm are PyTorch's choice, which the record names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.sparse import SparseSemiStructuredTensor, SparseSemiStructuredTensorCUSPARSELT, to_sparse_semi_structured

from blockshock.collectives.matmul_all_reduce import Total
from blockshock.dtypes import DTYPES
from blockshock.errors import ConfigError
from blockshock.kernels.cusparselt import flop_formulas
from blockshock.kernels.kernel import into
from blockshock.measure.timing import region
from blockshock.methods import ParallelLinear
from blockshock.methods.masked_split_dense import MaskedSplitLinear
from blockshock.methods.shared.halves import HalvesOptions, check_halves

if TYPE_CHECKING:
    from blockshock.config import Job
    from blockshock.problem import Problem


ON_A_CPU = "needs an NVIDIA GPU and a PyTorch with cuSPARSELt; use block_shock or masked_split_dense"
PLAIN = HalvesOptions(collective="nccl", overlap_chunks=1)  # all_reduce after the product


@dataclass
class TorchSemiStructured:
    name: str
    recompress: bool = True  # in every forward; false: after every optimizer step

    def check(self, job: Job) -> None:
        if job.hardware.device != "cuda":
            raise ConfigError("method", self.name, ON_A_CPU)
        rows, columns = check_halves(job, PLAIN)
        problem = unsupported(job.hardware.device, job.model.dtype, rows, columns)
        if problem:
            raise ConfigError("method", self.name, problem)

    def check_in_step(self, job: Job) -> None:
        raise ConfigError("method", self.name, "compresses weights, which a graph can't hold; use block_shock")

    def build(self, problem: Problem, weight: torch.Tensor) -> ParallelLinear:
        return TorchSemiStructuredLinear(self, problem, weight)


def unsupported(device: str, dtype: str, rows: int, K: int) -> str | None:
    """Why PyTorch can't make a half (rows, K) a semi-structured sparse tensor and multiply by it; None if it can."""
    here = torch.cuda.device_count() > 0  # a cluster's login node can't tell what its GPU nodes have
    if device != "cuda" or (here and not torch.backends.cusparselt.is_available()):
        return ON_A_CPU
    if dtype not in ("bf16", "fp16"):
        return f"multiplies bf16 and fp16, not {dtype}; use model.dtype=bf16, or block_shock or masked_split_dense"
    least = SparseSemiStructuredTensorCUSPARSELT._DTYPE_SHAPE_CONSTRAINTS[DTYPES[dtype]]
    if rows % least.sparse_min_rows or K % least.sparse_min_cols:
        multiples = f"{least.sparse_min_rows} and K={K} a multiple of {least.sparse_min_cols}"
        return f"needs a rank's rows N={rows} to be a multiple of {multiples}"
    return None


class TorchSemiStructuredLinear(MaskedSplitLinear):
    """Stored as the masked split is, dense with exact zeros; multiplied by PyTorch's sparse tensor."""

    def __init__(self, method: TorchSemiStructured, problem: Problem, weight: torch.Tensor) -> None:
        super().__init__(PLAIN, problem, weight)
        self.recompress = method.recompress
        compressed = [to_sparse_semi_structured(half.detach()) for half in self.weights]
        self.backend = type(compressed[0])
        self.algorithm = compressed[0].alg_id_cusparselt
        self.compressed_bytes = [_bytes(half) for half in compressed]
        self.compressed = [] if self.recompress else compressed

    def multiply(self, x: torch.Tensor, half: int) -> torch.Tensor:
        total = self.collective.total
        return _SemiStructuredLinear.apply(x, self.weights[half], self.masks[half], lambda: self._sparse(half), total)

    def parts(self, x: torch.Tensor) -> None:
        """PyTorch compresses inside its matmul."""

    def _sparse(self, half: int) -> SparseSemiStructuredTensor:
        if self.compressed:
            return self.compressed[half]
        with region("compress"):
            return to_sparse_semi_structured(self.weights[half].detach())

    def after_optimizer_step(self, step: int) -> None:
        if not self.compressed:
            return
        with region("compress"):
            for kept, weight in zip(self.compressed, self.weights, strict=True):
                fresh = to_sparse_semi_structured(weight.detach())
                for kept_part, values in zip(_buffers(kept), _buffers(fresh), strict=True):
                    kept_part.copy_(values)  # in place: a CUDA graph reads the same memory in every replay

    def half_bytes(self) -> float:
        return super().half_bytes() if self.recompress else self.compressed_bytes[0]

    def weight_bytes(self) -> int:
        """The dense halves, and the compressed ones that multiply, though `recompress` frees these after use."""
        return super().weight_bytes() + sum(self.compressed_bytes)

    def flop_formulas(self) -> dict[Any, Callable[..., int]]:
        return flop_formulas()

    def describe(self) -> dict[str, Any]:
        kernel = {"name": self.backend.BACKEND, "class": self.backend.__name__, "algorithm": self.algorithm}
        when = "forward" if self.recompress else "opt_step"  # the region that compression is in, or that it follows
        return {"kernel": kernel, "weights": "masked", "compresses": when}


def _buffers(half: SparseSemiStructuredTensor) -> list[torch.Tensor]:
    """The compressed values and, where the backend keeps it apart, their metadata."""
    return [part for part in (half.packed, half.meta) if part is not None]


def _bytes(half: SparseSemiStructuredTensor) -> int:
    return sum(part.numel() * part.element_size() for part in _buffers(half))


class _SemiStructuredLinear(torch.autograd.Function):
    """Y = X Wᵀ by the sparse tensor that `sparse()` gives; the gradients are those of the dense masked weight."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        mask: torch.Tensor,
        sparse: Callable[[], SparseSemiStructuredTensor],
        total: Total,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight, mask)

        def matmul(rows: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
            y = torch.nn.functional.linear(rows, sparse())
            return into(out, y).contiguous()  # some versions of PyTorch return a transpose, which NCCL refuses to sum

        return total(x, matmul)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, mask = ctx.saved_tensors
        dy = grads[0]
        dx = dy @ weight if ctx.needs_input_grad[0] else None
        dw = (dy.t() @ x).masked_fill_(~mask, 0.0) if ctx.needs_input_grad[1] else None
        return dx, dw, None, None, None
