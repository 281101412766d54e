"""Independent uniform inputs on [-√3, √3]: no tails, so every element uses about the same exponent."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from blockshock.workloads import uniform


@dataclass
class Uniform:
    """No real tensor: bounded values of unit variance, the easiest case for low precision."""

    name: str

    def make(self, batch: int, features: int, generator: torch.Generator) -> torch.Tensor:
        return (2 * uniform(batch, features, generator=generator) - 1) * 3**0.5
