"""Pruned weights that ranks hold as overlapping 2:4 windows: 4 of every 6 columns on two ranks, 6 of 8 on three.

    block of 6:   a b c d e f      keeps the four largest
    window 0:     a b c d          two of the kept, 2:4
    window 1:         c d e f      the other two, 2:4

A block of 2W + 2 columns has W windows of four columns, two apart, and keeps 2W weights: two for each window. A window
has what the one before left of their shared pair, and takes from the next pair what it still lacks: as many as have
been pruned so far. Two are pruned in all, so the next pair has that many, and the last window is left with two. So
every choice can be dealt out, each kept weight to one window, and nothing is multiplied twice. (method=slide_sparse has
all windows on one GPU.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from blockshock.errors import ConfigError

if TYPE_CHECKING:
    from blockshock.config import Job


@dataclass
class WindowMask:
    """Prunes by magnitude inside each block."""

    name: str
    block: int  # columns: 6 or 8
    period: int | None = None
    column_wise: bool = False

    def __post_init__(self) -> None:
        if self.block not in (6, 8):
            raise ConfigError("mask.block", self.block, "columns of a block: 6 (two windows) or 8 (three)")

    def check(self, job: Job) -> None:
        """Reject a layer whose inputs are not whole blocks: a dense method prunes its weight, too."""
        inputs = {"model.K": job.model.K}
        if hasattr(job.workload, "hidden"):
            inputs["workload.hidden"] = job.workload.hidden
        for key, features in inputs.items() if getattr(job.workload, "acts_on", "layer") != "model" else ():
            if features % self.block:
                nearest = max(self.block, features // self.block * self.block)
                problem = f"mask={self.name} prunes blocks of {self.block} inputs; use a multiple, such as {nearest}"
                raise ConfigError(key, features, problem)

    @property
    def windows(self) -> int:
        return self.block // 2 - 1

    def keep(self, weight: Tensor) -> Tensor:
        """(N, K) -> bool (N, K): all but the two smallest of every block, the first of equals."""
        blocks = weight.abs().view(len(weight), -1, self.block)
        order = blocks.sort(dim=2, descending=True, stable=True).indices[:, :, : self.block - 2]
        return torch.zeros_like(blocks, dtype=torch.bool).scatter_(2, order, True).view(weight.shape)

    def prune(self, weight: Tensor) -> Tensor:
        """Exact zeros where nothing is kept."""
        return torch.where(self.keep(weight), weight, weight.new_zeros(()))

    def split(self, weight: Tensor) -> list[Tensor]:
        """Of each window, bool (N, 4K/block): which of its columns it has. Two of every four, each kept weight once."""
        pairs = self.keep(weight).view(len(weight), -1, self.block // 2, 2)
        taken = torch.zeros_like(pairs[:, :, 0])  # of the left pair, by the window before
        parts = []
        for window in range(self.windows):
            left = pairs[:, :, window] & ~taken
            needed = 2 - left.sum(2, keepdim=True)
            right = pairs[:, :, window + 1]
            taken = right & (right.cumsum(2) <= needed)
            parts.append(torch.cat([left, taken], dim=2).view(len(weight), -1))
        return parts


def take_window(x: Tensor, window: int, block: int) -> Tensor:
    """(B, K) -> (B, 4K/block), contiguous: the four columns of every block that a window has."""
    return x.view(len(x), -1, block)[:, :, 2 * window : 2 * window + 4].reshape(len(x), -1)
