"""Models made at random from a seed, whose choices are made before they run, so that Dynamo captures one graph."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn
from torch.nn import functional

ROWS, WIDTH = 24, 8
OPERATIONS = (
    "linear",
    "tanh",
    "gelu",
    "relu",
    "in_place",
    "residual",
    "gate",
    "split",
    "transposed",
    "top",
    "sorted",
    "dropout",
    "batch_norm",
    "layer_norm",
    "softmax",
    "wide",
)


class RandomModel(nn.Module):
    """`length` operations on values [24, 8], each on one of the last three values, some on a second."""

    def __init__(self, seed: int, length: int = 14) -> None:
        super().__init__()
        torch.manual_seed(seed)
        choose = random.Random(seed)
        self.linear, self.up, self.down = (
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, 4 * WIDTH),
            nn.Linear(4 * WIDTH, WIDTH),
        )
        self.batch_norm, self.layer_norm = nn.BatchNorm1d(WIDTH), nn.LayerNorm(WIDTH)
        self.steps = [
            (choose.choice(OPERATIONS), max(0, index - choose.randrange(3)), choose.randrange(index + 1))
            for index in range(length)
        ]

    def forward(self, x: Tensor) -> Tensor:
        values = [self.linear(x)]
        for operation, source, other in self.steps:
            values.append(self._apply(operation, values[source], values[other]))
        return torch.stack(values).square().mean()

    def _apply(self, operation: str, x: Tensor, y: Tensor) -> Tensor:
        if operation in ("linear", "batch_norm", "layer_norm"):
            return getattr(self, operation)(x)
        if operation == "wide":
            return self.down(functional.gelu(self.up(x)))
        if operation == "in_place":
            return (x + y).mul_(0.5).relu_()
        if operation == "residual":
            return x + y
        if operation == "gate":
            return x * torch.sigmoid(y)
        if operation == "split":
            first, second = x.split(WIDTH // 2, dim=1)
            return torch.cat([second, first.tanh()], dim=1)
        if operation == "transposed":
            return (x.t() @ y).softmax(0).repeat(ROWS // WIDTH, 1)
        if operation == "top":
            return x - x.max(dim=1, keepdim=True).values
        if operation == "sorted":
            return x.sort(dim=1).values
        if operation == "dropout":
            return functional.dropout(x, 0.3)
        return x.softmax(1) if operation == "softmax" else getattr(functional, operation)(x)


def random_batch(seed: int) -> tuple[Tensor]:
    return (torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed)),)
