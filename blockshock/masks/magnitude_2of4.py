"""The two largest of every four weights in one half, the two smallest in the other.

For Gaussian weights the first half carries 86.7% of the energy, so the halves differ as much as 2:4 halves can.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class Magnitude2of4:
    name: str
    period: int | None = None
    column_wise: bool = False

    def make(self, weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """(N, K) -> bool (N, K), from the weight's absolute values; ties go to either, two are kept always."""
        rows, columns = weight.shape
        groups = weight.abs().view(rows, columns // 4, 4)
        largest = groups.topk(2, dim=2).indices
        return torch.zeros_like(groups, dtype=torch.bool).scatter_(2, largest, True).view(rows, columns)
