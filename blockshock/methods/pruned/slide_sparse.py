"""SlideSparse's layer on one GPU: a pruned weight as overlapping 2:4 windows side by side, in one sparse matmul.

    W (N, K), 4 of 6 kept  ->  V (N, K' = 8/6 K), 2:4: two windows of each block        (6 of 8: K' = 12/8 K, three)
    forward:  Y = lift(X) Vᵀ          lift: X (B, K) -> (B, K'), the columns that the windows read
    backward: dX = dY W, dW = dYᵀ X at the kept places: dense, by the weight unpacked from V

So sparse tensor cores do 2/3 (3/4) of the dense multiplications, and can be 3/2 (4/3) times as fast at most. V is held
as its packed values, which are the parameter. The lift is part of every forward. SlideSparse (arXiv 2603.05232) is for
inference and fuses the lift into the quantization of X; in the model's dtype it is a kernel of its own. The backward
pass is ours: through the windows it would cost K'/K of these dense matmuls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from blockshock.errors import ConfigError
from blockshock.kernels import check_kernel, packed_linear
from blockshock.masks import prunes
from blockshock.masks.window import WindowMask
from blockshock.measure.roofline import Cost, matmul
from blockshock.methods import ParallelLinear
from blockshock.methods.pruned.lifted import Lifted, lifted_features

if TYPE_CHECKING:
    from blockshock.config import Job
    from blockshock.problem import Problem


@dataclass
class SlideSparse:
    name: str
    kernel: str = "auto"  # of the forward: auto | triton | sparse_mma | cusparselt | masked_dense | reference

    def check(self, job: Job) -> None:
        if not prunes(job.mask):
            problem = f"keeps every weight, and {self.name} multiplies pruned ones; use window_4of6 or window_6of8"
            raise ConfigError("mask", job.mask.name, problem)
        ranks = job.hardware.world_size
        if ranks != 1:
            problem = f"{self.name} runs on one rank; set it to 1, or use block_shock, whose ranks hold the windows"
            raise ConfigError("hardware.world_size", ranks, problem)
        mask: WindowMask = job.mask
        mask.check(job)  # before the kernel judges K'
        check_kernel(job, self.kernel, job.model.N, lifted_features(job.model.K, mask.block))

    def check_in_step(self, job: Job) -> None:
        raise ConfigError("method", self.name, "its sparse kernels are no operators of a graph; use block_shock")

    def build(self, problem: Problem, weight: Tensor) -> ParallelLinear:
        return SlideSparseLinear(self, problem, weight)


class SlideSparseLinear(ParallelLinear):
    def __init__(self, method: SlideSparse, problem: Problem, weight: Tensor) -> None:
        super().__init__()
        mask = problem.mask
        assert isinstance(mask, WindowMask)
        self.mask, self.batch = mask, problem.B
        self.kernel = Lifted.of(method.kernel, mask, weight, problem.B)
        self.weight = nn.Parameter(self.kernel.adopt(self.kernel.pack(weight)))

    def forward(self, x: Tensor) -> Tensor:
        return packed_linear(x, self.weight, self.kernel)

    def place_weight(self, parts: list[Tensor]) -> Tensor:
        return self.kernel.unpack(parts[0])

    def costs(self) -> dict[str, Cost]:
        """Of each column of X once: that the forward copies it into two windows is not useful work."""
        N, kept = self.weight.shape
        B, size = self.batch, self.weight.element_size()
        x = B * self.kernel.columns * size
        y, w = B * N * size, N * kept * size + self.kernel.layout.metadata_bits / 8
        return {
            "forward": matmul(B, N, kept, x, w, y),
            "backward_input": matmul(B, N, kept, y, w, x),
            "backward_weight": matmul(B, N, kept, y, x, w),
        }

    def weight_bytes(self) -> int:
        return self.kernel.weight_bytes

    def flop_formulas(self) -> dict[Any, Callable[..., int]]:
        return self.kernel.flop_formulas()

    def describe(self) -> dict[str, Any]:
        lifted = {"windows": self.mask.windows, "lifted_features": self.kernel.layout.features}
        return {"kernel": self.kernel.describe(), "weights": "packed", **lifted}
