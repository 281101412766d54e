"""Two of every four columns, drawn anew for each group of four: the mask with no structure to exploit."""

from __future__ import annotations

from dataclasses import dataclass

import torch

PATTERNS = ((1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1), (0, 1, 1, 0), (0, 1, 0, 1), (0, 0, 1, 1))


@dataclass
class Random2of4:
    name: str
    period: int | None = None
    column_wise: bool = False

    def make(self, weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """(N, K) -> bool (N, K); each of the six patterns is equally likely."""
        rows, columns = weight.shape
        drawn = torch.randint(len(PATTERNS), (rows, columns // 4), generator=generator, device=weight.device)
        return torch.tensor(PATTERNS, dtype=torch.bool, device=weight.device)[drawn].view(rows, columns)
