"""What a convolution lowered to a matrix product multiplies: 3x3 patches of a feature map."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from blockshock.errors import at_least
from blockshock.workloads import normal, unit_mean_square

if TYPE_CHECKING:
    from blockshock.config import Job


@dataclass
class VisionConv:
    """Imitates im2col of a convolution's input after ReLU: non-negative, smooth in space, each value in nine rows.

    A row is a pixel's 3x3 neighbourhood over K/9 channels (the last channel is cut where nine does not divide K).
    """

    name: str
    smoothing: int = 5  # width in pixels of the box filter that correlates neighbours

    def check(self, job: Job) -> None:
        at_least("workload.smoothing", self.smoothing, 1)

    def make(self, batch: int, features: int, generator: torch.Generator) -> torch.Tensor:
        side = math.ceil(batch**0.5)
        channels = math.ceil(features / 9)
        noise = normal(1, channels, side + self.smoothing - 1, side + self.smoothing - 1, generator=generator)
        smooth = torch.nn.functional.avg_pool2d(noise, self.smoothing, stride=1) * self.smoothing
        patches = torch.nn.functional.unfold(smooth.relu(), kernel_size=3, padding=1)[0].t()  # (side², 9·channels)
        return unit_mean_square(patches[:batch, :features].contiguous())
