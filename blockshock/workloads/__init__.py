"""Inputs X of a linear layer. A workload is a dataclass with `name` and `make(batch, features, generator) -> (B, K)`.

All return float32 of about unit mean square, so that outputs of a unit-variance weight are of order one; the problem
rounds them to the dtype under test.
"""

from __future__ import annotations

from typing import Protocol

import torch


class Inputs(Protocol):
    name: str

    def make(self, batch: int, features: int, generator: torch.Generator) -> torch.Tensor: ...


def normal(*shape: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, device=generator.device)


def unit_mean_square(x: torch.Tensor) -> torch.Tensor:
    """`x` scaled to a mean square of one; zeros stay zeros."""
    return x / x.square().mean().sqrt().clamp_min(1e-30)
