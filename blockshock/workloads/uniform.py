"""Independent uniform inputs on [-√3, √3]: no tails, so every element uses about the same exponent."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class Uniform:
    """No real tensor: bounded values of unit variance, the easiest case for low precision."""

    name: str

    def make(self, batch: int, features: int, generator: torch.Generator) -> torch.Tensor:
        return (2 * torch.rand(batch, features, generator=generator, device=generator.device) - 1) * 3**0.5
