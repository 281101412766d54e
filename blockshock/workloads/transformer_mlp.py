"""What the first matrix of a transformer's MLP multiplies: layer-normalised hidden states with outlier features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from blockshock.errors import at_least
from blockshock.workloads import normal

if TYPE_CHECKING:
    from blockshock.config import Job


@dataclass
class TransformerMlp:
    """Imitates the residual stream after layer norm (input of `mlp.c_fc`, `fc1`, the qkv projection).

    Tokens share a low-rank component (hidden states are correlated), and a few features are outliers in every token,
    about 20 times the others in about 0.1% of features, as Dettmers et al. (LLM.int8(), 2022, section 4) report.
    """

    name: str
    shared_rank: int = 16
    outlier_fraction: float = 0.001
    outlier_scale: float = 20.0

    def check(self, job: Job) -> None:
        at_least("workload.shared_rank", self.shared_rank, 1)

    def make(self, batch: int, features: int, generator: torch.Generator) -> torch.Tensor:
        mixing = normal(batch, self.shared_rank, generator=generator)
        directions = normal(self.shared_rank, features, generator=generator) / self.shared_rank**0.5
        hidden = mixing @ directions + normal(batch, features, generator=generator)
        outliers = max(1, round(self.outlier_fraction * features))
        chosen = torch.randperm(features, generator=generator, device=generator.device)[:outliers]
        hidden[:, chosen] *= self.outlier_scale
        return torch.nn.functional.layer_norm(hidden, (features,))
