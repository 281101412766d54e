"""Fixed masks: one small pattern repeated over the weight.

`1100` keeps the first two of every four columns in each row; its complement is `0011`. Rows of a pattern are
separated by slashes: `1100/1100/0011/0011` is the checkerboard, which is 2:4 along rows and along columns, and so is
its complement (every row and column sum of the 4x4 tile is two).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from blockshock.errors import ConfigError


@dataclass
class PatternMask:
    name: str
    pattern: str
    column_wise: bool = False

    def __post_init__(self) -> None:
        rows = self.pattern.split("/")
        if any(len(row) != 4 or set(row) - {"0", "1"} or row.count("1") != 2 for row in rows):
            raise ConfigError(
                "mask.pattern", self.pattern, "rows of four digits with two ones each, as 1100 or 1100/0011"
            )
        if len(rows) not in (1, 2, 4):
            raise ConfigError("mask.pattern", self.pattern, f"has {len(rows)} rows; allowed: 1, 2 or 4")

    @property
    def period(self) -> int:
        return len(self.pattern.split("/"))

    def make(self, weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """(N, K) -> bool (N, K), whatever the values are."""
        tile = torch.tensor([[c == "1" for c in row] for row in self.pattern.split("/")], device=weight.device)
        rows, columns = weight.shape
        return tile.repeat(rows // len(tile), columns // 4)
