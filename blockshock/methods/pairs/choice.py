"""Which pairing a job gets: the one that was named, or under `auto` the first of PAIRINGS that its method has.

A new pairing is a subclass of `ParallelMlp` in a file of its own in this folder, and its entry in PAIRINGS. A method
takes part by a `build_column_row` or a `build_partial`; every method has `layers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from blockshock.errors import ConfigError, one_of
from blockshock.masks.window import WindowMask
from blockshock.methods.pairs.column_row import ColumnRowMlp
from blockshock.methods.pairs.layers import LayersMlp
from blockshock.methods.pairs.pair import DenseMlp, Mlp, MlpWeights, ParallelMlp
from blockshock.methods.pairs.reduce_scatter import ReduceScatterMlp
from blockshock.problem import Problem

if TYPE_CHECKING:
    from blockshock.config import Job
    from blockshock.methods import Method, ParallelModule

# By value of `workload.pairing`, the one that sends least first.
PAIRINGS: dict[str, type[ParallelMlp]] = {
    "column_row": ColumnRowMlp,
    "reduce_scatter": ReduceScatterMlp,
    "layers": LayersMlp,
}


def pairing_of(job: Job, name: str, mlp: Mlp) -> type[ParallelMlp]:
    """The pairing `name` of the job's method. Raises ConfigError where the method has none such."""
    one_of("workload.pairing", name, ("auto", *PAIRINGS))
    if name == "auto":
        return next(pairing for pairing in PAIRINGS.values() if pairing.unsupported(job, mlp) is None)
    problem = PAIRINGS[name].unsupported(job, mlp)
    if problem:
        raise ConfigError("workload.pairing", name, f"{problem} (method={job.method.name})")
    return PAIRINGS[name]


@dataclass(frozen=True)
class MlpProblem(Problem):
    """The pair in place of a layer: X (B, K), the first weight (rows, K), the second (N, hidden), Y (B, N)."""

    mlp: Mlp
    pairing: type[ParallelMlp]

    def weights(self) -> MlpWeights:
        """Normal, of variance 1/K and 1/hidden, so that Y is of order one."""
        return MlpWeights(self._weight("W_up", self.mlp.rows, self.K), self._weight("W_down", self.N, self.mlp.hidden))

    def kept(self) -> list[torch.Tensor] | None:
        mask, weights = self.mask, self.weights()
        return [mask.keep(weights.up), mask.keep(weights.down)] if isinstance(mask, WindowMask) else None

    def weight_quantities(self) -> list[str]:
        return ["dW_up", "dW_down"]

    def build(self, method: Method, weights: MlpWeights) -> ParallelModule:
        return self.pairing.build(self, method, self.mlp, weights)

    def dense(self, dtype: torch.dtype) -> nn.Module:
        weights = self.weights()
        return DenseMlp(self.mlp, MlpWeights(weights.up.to(dtype), weights.down.to(dtype)))
