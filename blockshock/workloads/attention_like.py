"""What an attention block's output projection multiplies: averages of value vectors, head by head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from blockshock.errors import at_least
from blockshock.workloads import normal, unit_mean_square

if TYPE_CHECKING:
    from blockshock.config import Job


@dataclass
class AttentionLike:
    """Imitates the concatenated heads before `o_proj`: softmax(QKᵀ/√d) V for heads of `head_dim` features.

    Rows are convex combinations of the same value vectors, and those share a mean, so rows resemble one another;
    queries are sharpened so that attention is neither uniform nor one-hot.
    """

    name: str
    head_dim: int = 64
    sharpness: float = 2.0  # of the softmax
    value_mean: float = 0.5  # size of what the value vectors of a head share, over that of what they do not
    context: int = 256  # tokens attended to

    def check(self, job: Job) -> None:
        at_least("workload.head_dim", self.head_dim, 1)
        at_least("workload.context", self.context, 1)

    def make(self, batch: int, features: int, generator: torch.Generator) -> torch.Tensor:
        heads = []
        for start in range(0, features, self.head_dim):
            width = min(self.head_dim, features - start)
            query = self.sharpness * normal(batch, self.head_dim, generator=generator)
            key = normal(self.context, self.head_dim, generator=generator)
            shared = self.value_mean * normal(1, width, generator=generator)
            value = shared + normal(self.context, width, generator=generator)
            heads.append(torch.softmax(query @ key.t() / self.head_dim**0.5, dim=1) @ value)
        return unit_mean_square(torch.cat(heads, dim=1))
