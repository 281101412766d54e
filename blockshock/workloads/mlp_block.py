"""The pair of layers of a transformer's MLP, Y = φ(X W_upᵀ) W_downᵀ, in place of a single layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from blockshock.dtypes import DTYPES
from blockshock.errors import at_least, one_of
from blockshock.methods.pairs.choice import pairing_of
from blockshock.methods.pairs.mlp import ACTIVATIONS, Mlp, MlpProblem
from blockshock.workloads.transformer_mlp import TransformerMlp

if TYPE_CHECKING:
    from blockshock.config import Job


@dataclass
class MlpBlock(TransformerMlp):
    """X (B, model.K) is what an MLP reads, Y (B, model.N) what it adds to the residual stream."""

    acts_on: ClassVar[str] = "mlp"

    hidden: int | None = None  # features between the layers; null: 4 * model.K
    activation: str = "gelu"  # gelu | gelu_tanh | relu | silu
    gated: bool = False  # φ(X gateᵀ) ∘ (X upᵀ), as in Llama
    pairing: str = "auto"  # auto | column_row | reduce_scatter | layers

    def check(self, job: Job) -> None:
        super().check(job)
        if self.hidden is None:
            self.hidden = 4 * job.model.K
        at_least("workload.hidden", self.hidden, 1)
        one_of("workload.activation", self.activation, ACTIVATIONS)

    def check_method(self, job: Job) -> None:
        """Whether the method's layers can be paired at these sizes."""
        pairing_of(job, self.pairing).check(job, self._mlp())

    def problem(self, job: Job, device: torch.device) -> MlpProblem:
        model, mlp = job.model, self._mlp()
        pairing = pairing_of(job, self.pairing)
        dtype, seed = DTYPES[model.dtype], job.experiment.seed
        return MlpProblem(model.N, model.K, model.B, dtype, device, seed, self, job.mask, mlp, pairing)

    def _mlp(self) -> Mlp:
        assert self.hidden is not None
        return Mlp(self.hidden, ACTIVATIONS[self.activation], self.gated)
