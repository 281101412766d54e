"""Independent standard normal inputs: the neutral case, against which the others are read."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from blockshock.workloads import normal


@dataclass
class Gaussian:
    """No real tensor: what a linear layer sees at initialisation after a normalisation layer, to a first guess."""

    name: str

    def make(self, batch: int, features: int, generator: torch.Generator) -> torch.Tensor:
        return normal(batch, features, generator=generator)
