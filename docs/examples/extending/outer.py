"""The first and the last of every four columns."""

from dataclasses import dataclass

import torch


@dataclass
class Outer:
    name: str
    period: int | None = 1  # rows after which the pattern repeats; None: it does not
    column_wise: bool = False  # whether columns are 2:4 as well

    def make(self, weight, generator):
        kept = torch.tensor([True, False, False, True], device=weight.device)
        return kept.repeat(weight.shape[1] // 4).expand(weight.shape).contiguous()
