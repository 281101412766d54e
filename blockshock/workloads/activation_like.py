"""What the second matrix of a transformer's MLP multiplies: GELU outputs, mostly near zero, with heavy tails."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from blockshock.workloads import normal, unit_mean_square


@dataclass
class ActivationLike:
    """Imitates the input of the down projection (`mlp.c_proj`, `fc2`).

    Pre-activations are normal with a scale of each feature drawn log-normally, as trained up projections have, and a
    negative mean, so that GELU leaves most elements close to zero and a few large.
    """

    name: str
    scale_spread: float = 0.7  # standard deviation of the log of a feature's scale
    shift: float = -0.5  # mean of the pre-activations

    def make(self, batch: int, features: int, generator: torch.Generator) -> torch.Tensor:
        scale = (self.scale_spread * normal(features, generator=generator)).exp()
        pre_activation = scale * normal(batch, features, generator=generator) + self.shift
        return unit_mean_square(torch.nn.functional.gelu(pre_activation))
